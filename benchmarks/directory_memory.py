"""What a region of 1 TiB costs a directory in memory: ``python -m benchmarks.directory_memory PATTERN PAGES``.

Prints ``{"bytes": growth of the resident set, "touched": pages}``. In a process of its own, which has nothing else.
"""

from __future__ import annotations

import json
import random
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from directory.machine import PageMachine
from dsm.constants import EXTENT_BYTES, PAGE_BYTES
from dsm.geometry import split
from dsm.pagetable import PageTable
from dsm.wire import FAULT, READ, WRITE, Done, Request

REGION_BYTES: Final = 1 << 40
DENSE: Final = "dense"
EXTENTS: Final = "scattered extents"
PAGES: Final = "scattered pages"
_NODES: Final = 8
_EXTENT: Final = EXTENT_BYTES // PAGE_BYTES
_EXTENTS: Final = REGION_BYTES // EXTENT_BYTES
_HOLDINGS: Final = 1000
"""Different ways of being held, where only the table is filled: more than the others make."""


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


class _Directory:
    """A directory's machine of pages, and the requests that it gets."""

    def __init__(self) -> None:
        self.machine = PageMachine()
        self.machine.add_region(1, REGION_BYTES, PAGE_BYTES)
        self._generation = 0

    def take(self, node: int, start: int, count: int, op: int) -> None:
        self._generation = generation = self._generation % 0xFFFFFFFF + 1
        self.machine.step(node, Request(1, generation, start, count, op, FAULT))
        if op == READ:
            self.machine.step(node, Done(1, generation, start, count))

    @property
    def touched(self) -> int:
        return sum(self.machine.counts(1).values())


Kept = tuple[object, int]
"""What is to be measured, and how many pages it knows."""


def _dense(pages: int) -> Kept:
    """One array from the beginning, each node its part; the borders are read by the neighbours."""
    directory = _Directory()
    part = pages // _NODES
    for node in range(1, _NODES + 1):
        for start, stop in split((node - 1) * part, node * part, _EXTENT):
            directory.take(node, start, stop - start, WRITE)
    for node in range(1, _NODES):
        directory.take(node, node * part, 1, READ)
    return directory, directory.touched


def _extents(pages: int) -> Kept:
    """Extents all over the region, in each runs of 1 to 32 pages of different nodes; of a third of them another node
    has a copy."""
    directory = _Directory()
    rng = random.Random(1)
    for extent in rng.sample(range(_EXTENTS), pages // _EXTENT):
        at, end = extent * _EXTENT, (extent + 1) * _EXTENT
        while at < end:
            count = min(rng.randint(1, 32), end - at)
            node = rng.randint(1, _NODES)
            directory.take(node, at, count, WRITE)
            if not rng.randrange(3):
                directory.take(node % _NODES + 1, at, count, READ)
            at += count
    return directory, directory.touched


def _pages(pages: int) -> Kept:
    """Single pages all over the region, in no order: the table alone, since that many requests would take minutes."""
    table = PageTable("I")
    rng = random.Random(1)
    for page in _distinct(rng, pages):
        table.set(page, rng.randint(1, _HOLDINGS))
    return table, pages


def _distinct(rng: random.Random, pages: int) -> Iterator[int]:
    """So many different pages of the region in no order, without a set of them: some that differ, times a number that
    is odd as the number of pages is not."""
    total = REGION_BYTES // PAGE_BYTES
    step = total // pages
    return ((i * step + rng.randrange(step)) * 0x9E3779B1 % total for i in range(pages))


PATTERNS: Final[dict[str, Callable[[int], Kept]]] = {DENSE: _dense, EXTENTS: _extents, PAGES: _pages}


def main(pattern: str, pages: str) -> None:
    before = _resident_bytes()
    kept, touched = PATTERNS[pattern](int(pages))
    print(json.dumps({"bytes": _resident_bytes() - before, "touched": touched}))
    del kept


if __name__ == "__main__":
    main(*sys.argv[1:])
