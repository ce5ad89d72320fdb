"""Pictures of the results, as PNG files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib
import numpy as np
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks import rows
from benchmarks.measurements import Bound, Figure, Section

_MANY: Final = 100
"""From so many samples on a figure has a shape worth drawing."""

_OURS, _MET, _MISSED = "tab:blue", "tab:green", "tab:red"
_FLOORS: Final = ("0.5", "tab:orange", "tab:brown", "tab:purple")

matplotlib.rcParams.update({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False})


def targets(folder: Path, verdicts: Sequence[tuple[Figure, Bound, float]]) -> Path:
    """How far every figure is from its target: right of the line it is missed."""
    names = [f"{figure.name}\n{rows.aim(figure, bound)}" for figure, bound, _ in verdicts]
    far = [ratio / bound.ratio if bound.kind == "at most" else bound.ratio / ratio for _, bound, ratio in verdicts]
    picture = Picture(figsize=(8, 1 + 0.4 * len(verdicts)), layout="constrained")
    axes = picture.add_subplot()
    colours = [_MET if bound.met(ratio) else _MISSED for _, bound, ratio in verdicts]
    axes.barh(range(len(far)), np.array(far) - 1, left=1, color=colours)
    for place, (_, bound, ratio) in enumerate(verdicts):
        verdict = "met" if bound.met(ratio) else "missed"
        axes.text(max(far[place], 1), place, f" {rows.number(ratio)} {verdict}", va="center")
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(min(0.1, *far, 1) / 1.2, max(*far, 1) * 3)
    axes.set_xlabel("measured, in parts of the target (1: just met; right of it: missed)")
    return _save(picture, folder, "targets")


def latencies(folder: Path, section: Section) -> Path | None:
    """A histogram of every figure that has many samples, those beside it as lines. Upright: p50 and p99."""
    drawn = [figure for figure in section.figures if len(figure.samples) >= _MANY]
    if not drawn:
        return None
    columns = min(3, len(drawn))
    lines = -(-len(drawn) // columns)
    picture = Picture(figsize=(3.2 * columns, 2 * lines), layout="constrained")
    for number, figure in enumerate(drawn, 1):
        _histogram(picture.add_subplot(lines, columns, number), section, figure)
    return _save(picture, folder, f"{section.name}-latencies")


def _histogram(axes: Any, section: Section, figure: Figure) -> None:
    floors = [section[name] for name in figure.beside if rows.there(section, name)]
    samples = [np.array(shown.samples) for shown in (figure, *floors)]
    low = max(min(s.min() for s in samples), 1e-3)
    high = max(float(np.quantile(s, 0.999)) for s in samples)
    bins = np.geomspace(low, max(high, low * 1.1), 60)
    for number, (floor, values) in enumerate(zip(floors, samples[1:], strict=True)):
        line: dict[str, Any] = {"color": _FLOORS[number % len(_FLOORS)], "linewidth": 0.8}
        axes.hist(values, bins, weights=np.full(len(values), 100 / len(values)), histtype="step", **line)
        axes.plot([], [], label=floor.name, **line)
    axes.hist(samples[0], bins, weights=np.full(len(samples[0]), 100 / len(samples[0])), color=_OURS, alpha=0.7)
    for q, style in ((0.5, "-"), (0.99, ":")):
        axes.axvline(figure.quantile(q), color=_OURS, linestyle=style, linewidth=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 30 * low else (1,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_title(f"{figure.name}: p50 {rows.number(figure.median)}, p99 {rows.number(figure.quantile(0.99))}", size=7)
    axes.set_xlabel(figure.unit)
    axes.set_ylabel("% of all")
    if floors:
        axes.legend(fontsize=5, frameon=False)


def medians(folder: Path, section: Section) -> Path | None:
    """Medians and quartiles of the figures with few samples, those of one unit together."""
    units: dict[str, list[Figure]] = defaultdict(list)
    for figure in section.figures:
        if 0 < len(figure.samples) < _MANY:
            units[figure.unit].append(figure)
    if not units:
        return None
    sizes = [len(figures) for figures in units.values()]
    picture = Picture(figsize=(8, sum(0.7 + 0.25 * size for size in sizes)), layout="constrained")
    parts = picture.subplots(len(units), squeeze=False, height_ratios=[2 + size for size in sizes])
    for axes, (unit, figures) in zip(parts[:, 0], units.items(), strict=True):
        _bars(axes, unit, figures)
    return _save(picture, folder, f"{section.name}-medians")


def _bars(axes: Any, unit: str, figures: list[Figure]) -> None:
    centre = np.array([figure.median for figure in figures])
    spread = np.array([figure.spread for figure in figures]).T
    whiskers = np.maximum([centre - spread[0], spread[1] - centre], 0)
    named = {name for figure in figures for name in figure.beside}
    colours = [_FLOORS[0] if figure.name in named and not figure.beside else _OURS for figure in figures]
    axes.barh(range(len(figures)), centre, xerr=whiskers, color=colours, error_kw={"linewidth": 1})
    for place, value in enumerate(centre):
        axes.text(value + whiskers[1][place], place, f" {rows.number(value)}", va="center", size=7)
    axes.set_yticks(range(len(figures)), [figure.name for figure in figures])
    axes.invert_yaxis()
    axes.set_xlabel(unit)


def _save(picture: Picture, folder: Path, name: str) -> Path:
    path = folder / f"{name}.png"
    picture.savefig(path, dpi=120)
    return path
