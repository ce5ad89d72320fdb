"""What the benchmarks measure, before anybody prints or draws it: figures beside the floor or peer of the same run."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

QUANTILES: Final = (0.5, 0.99, 0.999)

Progress = Callable[[str], None]
"""Told what is being measured next, in a few words."""


@dataclass(frozen=True)
class Bound:
    """A target: the median of a figure, divided by that of the figure it stands beside, is at most or at least so
    much. Beside nothing (``""``) it is absolute: so much of the figure's unit."""

    kind: Literal["at most", "at least"]
    ratio: float
    beside: str
    quantile: float = 0.5
    """Which quantile of the figure itself is meant; of the one beside it, it is always the median."""

    def met(self, ratio: float) -> bool:
        """Does a measured ratio do?"""
        return ratio <= self.ratio if self.kind == "at most" else ratio >= self.ratio


@dataclass
class Figure:
    """One thing that was measured, again and again.

    ``samples``: in ``unit``, one for each operation (latencies) or for each round (rates, times of programs).
    ``beside``: the names of figures of the same section, interleaved with this one, that it is divided by.
    """

    name: str
    unit: str
    samples: list[float] = field(default_factory=list)
    beside: tuple[str, ...] = ()
    bounds: tuple[Bound, ...] = ()
    note: str = ""

    def quantile(self, q: float) -> float:
        """The sample below which the share ``q`` of all lies."""
        ordered = sorted(self.samples)
        return ordered[round(q * (len(ordered) - 1))]

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def spread(self) -> tuple[float, float]:
        """The quartiles."""
        return self.quantile(0.25), self.quantile(0.75)


@dataclass
class Section:
    """What one module of the benchmarks has measured. ``absent``: peers and floors that are not there, with what to
    install; they are reported, not left out. ``facts``: what has no spread (lines of code, bytes moved), by figure."""

    name: str
    title: str
    about: str
    figures: list[Figure] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    draw: Callable[[Path], Path] | None = None
    """Makes a picture of the section's own in a folder."""

    def __getitem__(self, name: str) -> Figure:
        return next(figure for figure in self.figures if figure.name == name)

    def ratio(self, figure: Figure, beside: str, q: float = 0.5) -> float:
        """A quantile of a figure, in medians of the one beside it; as it is if that is none."""
        measured = figure.median if q == 0.5 else figure.quantile(q)
        return measured / self[beside].median if beside else measured

    def verdicts(self) -> list[tuple[Figure, Bound, float]]:
        """Every target, and the ratio that was measured."""
        there = {figure.name for figure in self.figures}
        return [
            (figure, bound, self.ratio(figure, bound.beside, bound.quantile))
            for figure in self.figures
            for bound in figure.bounds
            if not bound.beside or bound.beside in there
        ]

    def to_json(self) -> dict[str, Any]:
        """Everything, as a script would want it; samples in full only where there are few."""
        return {
            "name": self.name,
            "title": self.title,
            "figures": [self._figure_to_json(figure) for figure in self.figures],
            "absent": self.absent,
            "facts": self.facts,
        }

    def _figure_to_json(self, figure: Figure) -> dict[str, Any]:
        there = {other.name for other in self.figures}
        return {
            "name": figure.name,
            "unit": figure.unit,
            "samples": len(figure.samples),
            "quantiles": {f"p{100 * q:g}": figure.quantile(q) for q in (0.25, 0.75, *QUANTILES)},
            "ratios": {beside: self.ratio(figure, beside) for beside in figure.beside if beside in there},
            "bounds": [
                asdict(bound) | {"measured": ratio, "met": bound.met(ratio)}
                for other, bound, ratio in self.verdicts()
                if other is figure
            ],
            "note": figure.note,
        }


def interleave(rounds: int, progress: Progress, parts: Sequence[tuple[Figure, Callable[[], list[float]]]]) -> None:
    """Measure every part in turn, ``rounds`` times: what the machine does meanwhile, it does to all of them."""
    for number in range(rounds):
        for figure, part in parts:
            progress(f"{figure.name} ({number + 1} of {rounds})")
            figure.samples += part()
