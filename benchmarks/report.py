"""The results as one page with plots: ``benchmarks.md``, and pictures in the folder ``benchmarks`` beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from benchmarks import plots, rows
from benchmarks.measurements import Section

_ARGODSM: Final = (
    ("remote read fault", "135 µs", "latency", "remote read, from its owner"),
    ("write upgrade", "105 µs", "latency", "upgrade, 1 sharer"),
    ("sequential read, 16 pages a load", "0.23 GB/s", "bandwidth", "sequential read"),
)
"""What was measured, by whom it is measured here: suite and figure."""


def write(folder: Path, facts: dict[str, str], quick: bool, sections: list[Section], failed: dict[str, str]) -> Path:
    """Write it all; where the page is."""
    pictures = folder / "benchmarks"
    pictures.mkdir(parents=True, exist_ok=True)
    page = folder / "benchmarks.md"
    page.write_text("\n".join(_lines(pictures, facts, quick, sections, failed)) + "\n")
    return page


def _lines(
    pictures: Path, facts: dict[str, str], quick: bool, sections: list[Section], failed: dict[str, str]
) -> Iterator[str]:
    yield "# Benchmarks\n"
    yield "Written by `make bench`. Every figure stands beside a floor or a peer that was measured in the same run on"
    yield "the same machine, in turn with it; ratios are ratios of medians unless they say otherwise. How the figures"
    yield "came to be what they are: [performance.md](performance.md).\n"
    if quick:
        yield "**A quick run: few samples, so take the figures as a sign that the suite works.**\n"
    yield from _table([("measured on", ""), *facts.items()])
    yield from _targets(pictures, sections)
    for name, error in failed.items():
        yield f"\n## {name}\n\nFailed: {error}"
    for section in sections:
        yield from _section(pictures, section)
    yield from _elsewhere(sections)


def _targets(pictures: Path, sections: Sequence[Section]) -> Iterator[str]:
    verdicts = [(figure, bound, ratio) for section in sections for figure, bound, ratio in section.verdicts()]
    if not verdicts:
        return
    met = sum(bound.met(ratio) for _, bound, ratio in verdicts)
    yield f"\n## Targets: {met} met, {len(verdicts) - met} missed\n"
    yield from _picture(plots.targets(pictures, verdicts), "every target and what was measured")
    yield from _table(
        [("", "target", "measured", "")]
        + [
            (figure.name, rows.aim(figure, bound), rows.number(ratio), "met" if bound.met(ratio) else "**missed**")
            for figure, bound, ratio in verdicts
        ]
    )


def _section(pictures: Path, section: Section) -> Iterator[str]:
    yield f"\n## {section.title}\n"
    yield f"{section.about.strip()}\n"
    yield from _table([rows.HEADINGS, *rows.figures(section)])
    for figure in section.figures:
        if figure.note:
            yield f"\n{figure.name}: {figure.note}"
    yield ""
    if section.draw is not None:
        yield from _picture(section.draw(pictures), section.title)
    else:
        yield from _picture(plots.latencies(pictures, section), f"{section.title}: how long")
        yield from _picture(plots.medians(pictures, section), f"{section.title}: medians")
    if table := rows.facts(section):
        yield from _table(table)
    for name, install in section.absent.items():
        yield f"\nAbsent: {name} ({install})."


def _elsewhere(sections: Sequence[Section]) -> Iterator[str]:
    here = {(section.name, figure.name): figure for section in sections for figure in section.figures}
    table = [
        (what, theirs, f"{rows.number(figure.median)} {figure.unit}" if figure and figure.samples else "not measured")
        for what, theirs, suite, name in _ARGODSM
        for figure in [here.get((suite, name))]
    ]
    yield "\n## ArgoDSM, on another machine\n"
    yield "ArgoDSM (C++, MPI over TCP loopback) was measured once, on **another** 2-core virtual machine: its figures"
    yield "are copied here, not measured beside those of dsm, and no ratio of the two would mean anything.\n"
    yield from _table([("", "ArgoDSM, there", "dsm, here"), *table])


def _table(table: Sequence[Sequence[str]]) -> Iterator[str]:
    heading, *body = table
    yield _line(heading)
    yield "|" + "---|" * len(heading)
    yield from map(_line, body)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _picture(path: Path | None, what: str) -> Iterator[str]:
    if path is not None:
        yield f"![{what}](benchmarks/{path.name})\n"
