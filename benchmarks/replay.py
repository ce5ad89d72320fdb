"""A pattern of accesses, recorded or by name, replayed through the policy that reads ahead: no cluster, no clock.

A recorded pattern is a text file with one access on each line: the number of a page, and ``w`` after it for a write.
Empty lines and what follows a ``#`` do not count.

The memory is the simplest there is: what was asked for is there when it is touched next, and what was touched stays.
So a page faults once without the policy. A write to a page that is here to be read is a fault, too.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.table import Table

from dsm.constants import PAGE_BYTES, WINDOW_BYTES_MAX, WINDOW_PAGES_MIN
from nodes.readahead import ReadAhead

Access = tuple[int, bool]
"""A page, and whether it is written."""

_PAGES: Final = 20_000
"""Of the region that the patterns by name go through."""


@dataclass(frozen=True)
class Outcome:
    """What a replay came to; ``right`` and ``wrong`` are pages asked ahead that were touched later, or never."""

    accesses: int
    faults_without: int
    faults_with: int
    asked_ahead: int
    right: int

    @property
    def wrong(self) -> int:
        """Pages that came for nothing."""
        return self.asked_ahead - self.right

    @property
    def extra_percent(self) -> float:
        """Bytes that came for nothing, of those that had to come."""
        needed = self.faults_with + self.right
        return 100 * self.wrong / needed if needed else 0.0


class _Memory:
    """What is here: 1 to be read, 2 to be written. ``ahead``: asked for and not touched yet."""

    def __init__(self) -> None:
        self.here: dict[int, int] = {}
        self.ahead: set[int] = set()

    def touch(self, page: int, write: bool) -> bool:
        """Does this access fault? Afterwards the page is here."""
        level = 2 if write else 1
        faults = self.here.get(page, 0) < level
        if faults:
            self.here[page] = level
        return faults


def replay(accesses: Iterable[Access], pages: int, page_bytes: int = PAGE_BYTES) -> Outcome:
    """Feed the accesses to the policy of a region of ``pages``."""
    window_max = max(WINDOW_PAGES_MIN, WINDOW_BYTES_MAX // page_bytes)
    policies = [ReadAhead(WINDOW_PAGES_MIN, window_max, pages) for _ in range(2)]
    plain, memory = _Memory(), _Memory()
    count = without = with_policy = asked = right = 0
    for page, write in accesses:
        count += 1
        without += plain.touch(page, write)
        fault = memory.touch(page, write)
        if page in memory.ahead:
            memory.ahead.remove(page)
            right += 1
        if not fault:
            continue
        with_policy += 1
        for start, stop in policies[write].fault(page) or ():
            new = [other for other in range(start, stop) if other not in memory.here]
            asked += len(new)
            memory.ahead.update(new)
            memory.here.update(dict.fromkeys(new, 2 if write else 1))
    return Outcome(count, without, with_policy, asked, right)


# --- patterns -------------------------------------------------------------------------------------------


def _reads(pages: Iterable[int]) -> Iterator[Access]:
    return ((page, False) for page in pages)


def _random(chance: random.Random) -> Iterator[Access]:
    return _reads(chance.randrange(_PAGES) for _ in range(_PAGES // 4))


def _zipf(chance: random.Random) -> Iterator[Access]:
    order = chance.sample(range(_PAGES), _PAGES)
    return _reads(chance.choices(order, [1 / (rank + 1) for rank in range(_PAGES)], k=_PAGES))


def _stencil(_: random.Random) -> Iterator[Access]:
    """Rows of four pages: three are read, that of another array is written."""
    half = _PAGES // 2
    for row in range(4, half - 8, 4):
        for column in range(4):
            yield from _reads(row + column + beside for beside in (-4, 0, 4))
            yield half + row + column, True


def _two_streams(_: random.Random) -> Iterator[Access]:
    half = _PAGES // 2
    return _reads(array * half + page for page in range(half) for array in range(2))


PATTERNS: Final[dict[str, Callable[[random.Random], Iterator[Access]]]] = {
    "sequential": lambda _: _reads(range(_PAGES)),
    "reverse": lambda _: _reads(range(_PAGES - 1, -1, -1)),
    "strided": lambda _: _reads(range(0, _PAGES, 7)),
    "random": _random,
    "zipf": _zipf,
    "stencil": _stencil,
    "two-streams": _two_streams,
}


def parse(text: str) -> list[Access]:
    """The accesses of a recorded pattern. ValueError names the line that is none."""
    accesses = []
    for number, line in enumerate(text.splitlines(), 1):
        match line.partition("#")[0].split():
            case []:
                continue
            case [page, *how] if page.isascii() and page.isdigit() and how in ([], ["w"]):
                accesses.append((int(page), bool(how)))
            case _:
                raise ValueError(f"line {number} is no access: {line!r} (a page number, and w for a write)")
    return accesses


# --- command --------------------------------------------------------------------------------------------


def _table(outcomes: dict[str, Outcome]) -> Table:
    table = Table(title="Reading ahead, replayed")
    for heading in ("pattern", "accesses", "faults without", "with", "asked ahead", "right", "wrong", "extra bytes"):
        table.add_column(heading, justify="left" if heading == "pattern" else "right")
    for name, outcome in outcomes.items():
        o = outcome
        counts = (o.accesses, o.faults_without, o.faults_with, o.asked_ahead, o.right, o.wrong)
        table.add_row(name, *(f"{count:,}" for count in counts), f"{o.extra_percent:.1f} %")
    return table


@click.command(help="Replay the recorded accesses in FILE, or a pattern by name (without either: all of those).")
@click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--pattern", type=click.Choice(list(PATTERNS)), help="A generated pattern instead of a file.")
@click.option("--pages", type=click.IntRange(min=1), help="Size of the region of FILE; as far as it goes otherwise.")
@click.option("--page-size", type=click.IntRange(min=PAGE_BYTES), default=PAGE_BYTES, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True, help="Of the patterns that are random.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(file: Path | None, pattern: str | None, pages: int | None, page_size: int, seed: int, as_json: bool) -> None:
    """Replay and print."""
    if file and pattern:
        raise click.UsageError("a file or --pattern, not both")
    if pages and not file:
        raise click.UsageError("--pages belongs to a file")
    if file:
        outcomes = {file.name: _recorded(file, pages, page_size)}
    else:
        names = [pattern] if pattern else list(PATTERNS)
        outcomes = {name: replay(PATTERNS[name](random.Random(seed)), _PAGES, page_size) for name in names}
    if as_json:
        figures = {
            name: {**asdict(o), "wrong": o.wrong, "extra_percent": o.extra_percent} for name, o in outcomes.items()
        }
        click.echo(json.dumps(figures, indent=2))
    else:
        Console().print(_table(outcomes))


def _recorded(file: Path, pages: int | None, page_size: int) -> Outcome:
    try:
        accesses = parse(file.read_text())
    except ValueError as error:
        raise click.ClickException(f"{file}: {error}") from None
    reach = 1 + max((page for page, _ in accesses), default=0)
    if pages and pages < reach:
        raise click.ClickException(f"{file}: page {reach - 1} is outside a region of {pages} pages")
    return replay(accesses, pages or reach, page_size)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.replay")
