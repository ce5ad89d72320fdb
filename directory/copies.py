"""Second copies of pages that only one node has, made before they could be lost with it: pure.

A node that is about to leave (Drain), or whose applications have come to a point of release in a region with replicas
(Mirror), has pages that nobody else has. For each extent with such pages another node is told to fetch them (Take); it
reads them as anybody would, and says so (Taken). The first node's copy is then one of two.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from dsm.wire import Message, Take

_OPEN_MAX: Final = 32
"""Extents that are fetched for one job at a time."""

Extent = tuple[int, int, int]
"""Region, first page, number of pages."""


class _Job:
    __slots__ = ("over", "takers", "todo", "waits")

    def __init__(self, todo: Iterable[Extent], takers: list[int], over: Callable[[], Message]) -> None:
        self.todo = deque(todo)
        self.takers = takers
        self.waits: dict[Extent, int] = {}  # who fetches it
        self.over = over


class Copies:
    """All jobs, by the node that they are for and what it called them. ``describe`` makes the Take of an extent."""

    def __init__(self, describe: Callable[[Extent], Take | None]) -> None:
        self._describe = describe
        self._jobs: dict[tuple[int, int], _Job] = {}

    def begin(
        self, node: int, name: int, extents: Iterable[Extent], takers: list[int], over: Callable[[], Message]
    ) -> list[tuple[int, Message]]:
        """Have these extents fetched by ``takers`` in turn, then tell the node what ``over`` gives."""
        job = self._jobs[node, name] = _Job(extents if takers else (), takers, over)
        return self._go_on((node, name), job)

    def _go_on(self, key: tuple[int, int], job: _Job) -> list[tuple[int, Message]]:
        out: list[tuple[int, Message]] = []
        while job.todo and len(job.waits) < _OPEN_MAX and job.takers:
            extent = job.todo.popleft()
            take = self._describe(extent)
            if take is None or extent in job.waits:  # the region is over
                continue
            taker = job.takers[len(job.waits) % len(job.takers)]
            job.waits[extent] = taker
            out.append((taker, take))
        if not job.waits:
            del self._jobs[key]
            out.append((key[0], job.over()))
        return out

    def taken(self, node: int, extent: Extent) -> list[tuple[int, Message]]:
        """A node has fetched an extent."""
        return self._without(lambda each, taker: each == extent and taker == node)

    def forget_region(self, region: int) -> list[tuple[int, Message]]:
        """Nobody fetches its pages any more."""
        return self._without(lambda each, _: each[0] == region)

    def forget_node(self, node: int) -> list[tuple[int, Message]]:
        """It has left: what it was to fetch others have to."""
        for key in [key for key in self._jobs if key[0] == node]:
            del self._jobs[key]
        for job in self._jobs.values():
            job.takers = [taker for taker in job.takers if taker != node]
            job.todo.extend(extent for extent, taker in job.waits.items() if taker == node)
        return self._without(lambda _, taker: taker == node)

    def _without(self, over: Callable[[Extent, int], bool]) -> list[tuple[int, Message]]:
        out: list[tuple[int, Message]] = []
        for key, job in list(self._jobs.items()):
            gone = [extent for extent, taker in job.waits.items() if over(extent, taker)]
            for extent in gone:
                del job.waits[extent]
            if gone or not job.waits:
                out += self._go_on(key, job)
        return out


def extents_of(runs: Iterable[tuple[int, int]], per_extent: int) -> Iterator[tuple[int, int]]:
    """For each extent with some of the ``runs`` (start, stop) in it the first page and the number of pages from there
    to the last of them."""
    first = last = -1
    for start, stop in runs:
        while start < stop:
            index = start // per_extent
            end = min(stop, (index + 1) * per_extent)
            if first >= 0 and first // per_extent != index:
                yield first, last - first
                first = -1
            first = start if first < 0 else first
            last = end
            start = end
    if first >= 0:
        yield first, last - first
