"""How many bytes a second move between nodes, beside what a message library moves between two processes.

Three nodes on this host over TCP loopback, with an application on each and a second one on the second. One of them
owns the pages, the others read, overwrite or fetch them; before each measurement the owner takes all of them back.
Reading is copying into private memory.

- strided: every fourth page, in order. Random: each page once.
- overwriting: to store to every byte, in order, of pages that another node has alone, or of which both have copies.
- random access during a scan or a prefetch: by the second application of the same node, to other pages of one owner.
- pages moved by random reads: what has come to the node, with what was guessed wrongly.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any, Final

from benchmarks import private_memory
from benchmarks.application import Cluster, cluster, together
from benchmarks.floors import PAGE, Stream
from benchmarks.measurements import Bound, Figure, Progress, Section, interleave

_REGION: Final = "benchmark.bandwidth"
_CHUNK: Final = 64  # pages that are copied at once into private memory
_STRIDE: Final = 4
_TOUCHES: Final = 25  # random accesses between two looks whether the scan beside them is over

STREAM: Final = "pyzmq stream of 64 KiB frames into a memfd"
_PRIVATE: Final = "filling private memory"
_ALONE: Final = "random access, alone"
_ALONE_P99: Final = "random access, alone, p99"
_WANTED: Final = "pages read at random"

Part = tuple[Figure, Callable[[], list[float]]]
Pages = tuple[int, int]


class Mover:
    """What an application does when told so. Pages are numbers, times are seconds."""

    def __init__(self, pages: int) -> None:
        import numpy as np

        import dsm

        self._region = dsm.attach(_REGION, size=pages * PAGE)
        self._pages: Any = np.frombuffer(self._region.buf, np.uint8).reshape(-1, PAGE)
        self._private: Any = np.ones((_CHUNK, PAGE), np.uint8)

    def read(self, start: int, stop: int, order: str) -> float:
        """Copy pages into private memory, in this order."""
        pages = _ordered(start, stop, order)
        parts = [pages[at : at + _CHUNK] for at in range(0, len(pages), _CHUNK)]
        began = time.perf_counter()
        for part in parts:
            self._pages.take(part, 0, self._private[: len(part)], "clip")
        return time.perf_counter() - began

    def touch(self, pages: list[int]) -> list[float]:
        """Load a byte of each; the time of each."""
        column, now, took = self._pages[:, 0], time.perf_counter, []
        for page in pages:
            began = now()
            column[page]
            took.append(now() - began)
        return took

    def store(self, start: int, stop: int, value: int) -> float:
        """Store to every byte, in order."""
        began = time.perf_counter()
        self._pages[start:stop] = value
        return time.perf_counter() - began

    def prefetch(self, start: int, stop: int, write: bool) -> float:
        """Ask for all of them at once."""
        began = time.perf_counter()
        self._region.prefetch(start * PAGE, stop * PAGE, write)
        return time.perf_counter() - began

    def pages_in(self) -> int:
        """Pages that have come to this node, ever."""
        return int(self._region.stats()["pages_in"])


def _ordered(start: int, stop: int, order: str) -> list[int]:
    pages = list(range(start, stop, _STRIDE if order == "strided" else 1))
    if order == "reverse":
        pages.reverse()
    elif order == "random":  # a part of them: what is guessed wrongly must not be wanted later
        pages = random.Random(start).sample(pages, len(pages) // _STRIDE)
    return pages


class _Measured:
    """The applications, and the region that they share: a slice of ``size`` pages for nearly everything, one to be
    touched at random beside it, and one for each round to be filled."""

    def __init__(self, services: Cluster, rounds: int, size: int) -> None:
        self.size = size
        self.slice: Pages = (0, size)
        self.beside: Pages = (size, 2 * size)
        self._new = iter(range(2 * size, (rounds + 2) * size, size))
        pages = (rounds + 2) * size
        nodes = [services.node() for _ in range(3)]
        self.owner, self.reader, self.other = [services.start(node, Mover, pages) for node in nodes]
        self.neighbour = services.start(nodes[1], Mover, pages)
        self.owner.ask("store", 0, 2 * size, 1)

    def take_back(self, pages: Pages | None = None) -> None:
        """Every page is the owner's alone again."""
        start, stop = pages or self.slice
        self.owner.ask("prefetch", start, stop, True)
        self.owner.ask("store", start, stop, 2)

    def rate(self, seconds: float, pages: int | None = None) -> list[float]:
        """As a sample: GB/s."""
        return [(pages or self.size) * PAGE / seconds / 1e9]

    # -- parts: each gives the samples of a round --------------------------------------------------------

    def read(self, order: str) -> list[float]:
        self.take_back()
        size = self.size if order == "sequential" else self.size // _STRIDE
        stop = size if order == "reverse" else self.size
        return self.rate(self.reader.ask("read", 0, stop, order), size)

    def read_at_random(self, moved: Figure, wanted: Figure) -> list[float]:
        self.take_back()
        before = self.reader.ask("pages_in")
        size = self.size // _STRIDE  # enough, and slow
        seconds = self.reader.ask("read", 0, self.size, "random")
        moved.samples.append(self.reader.ask("pages_in") - before)
        wanted.samples.append(size)
        return [seconds / size * 1e6]

    def prefetch(self, write: bool) -> list[float]:
        self.take_back()
        return self.rate(self.reader.ask("prefetch", *self.slice, write))

    def fill(self) -> list[float]:
        start = next(self._new)
        return self.rate(self.owner.ask("store", start, start + self.size, 1))

    def overwrite(self, shared: bool) -> list[float]:
        self.take_back()
        if shared:
            self.reader.ask("prefetch", *self.slice, False)
        return self.rate(self.reader.ask("store", *self.slice, 3))

    def two_readers(self) -> list[float]:
        self.take_back()
        read = ["read", *self.slice, "sequential"]
        return self.rate(max(together((self.reader, read), (self.other, read))), 2 * self.size)

    def two_owners(self) -> list[float]:
        self.take_back()
        half = self.size // 2
        self.other.ask("prefetch", 0, half, True)
        self.other.ask("store", 0, half, 2)
        parts = ["read", 0, half, "sequential"], ["read", half, self.size, "sequential"]
        return self.rate(max(together((self.reader, parts[0]), (self.neighbour, parts[1]))))

    def touch_alone(self, p99: Figure) -> list[float]:
        """In microseconds."""
        self.take_back(self.beside)
        alone = Figure("", "µs", [1e6 * took for took in self.neighbour.ask("touch", self._at_random(8 * _TOUCHES))])
        p99.samples.append(alone.quantile(0.99))
        return alone.samples

    def touch_beside(self, method: str, *arguments: Any) -> list[float]:
        """The same while the other application of the node fetches pages of the same owner."""
        self.take_back(self.beside)
        self.take_back()
        pages = self._at_random(self.size)
        took: list[float] = []
        self.reader.tell(method, *self.slice, *arguments)
        while pages and not self.reader.has_answered:
            took += self.neighbour.ask("touch", pages[:_TOUCHES])
            del pages[:_TOUCHES]
        self.reader.answer()
        return [1e6 * t for t in took]

    def _at_random(self, count: int) -> list[int]:
        return random.Random(1).sample(range(*self.beside), min(count, self.size))


def _moving(m: _Measured, stream: Stream) -> Iterator[Part]:
    def figure(name: str, *bounds: Bound) -> Figure:
        return Figure(name, "GB/s", beside=(STREAM,), bounds=bounds)

    yield Figure(STREAM, "GB/s"), lambda: m.rate(stream.seconds())
    yield figure("sequential read", Bound("at least", 0.8, STREAM)), partial(m.read, "sequential")
    yield figure("strided read"), partial(m.read, "strided")
    yield figure("reverse read"), partial(m.read, "reverse")
    yield figure("prefetch"), partial(m.prefetch, False)
    yield figure("prefetch to write"), partial(m.prefetch, True)
    yield figure("overwriting another node's pages"), partial(m.overwrite, False)
    yield figure("overwriting shared pages"), partial(m.overwrite, True)
    yield figure("two readers of one owner, together"), m.two_readers
    yield figure("two applications of a node read from two owners, together"), m.two_owners
    yield Figure(_PRIVATE, "GB/s"), lambda: m.rate(private_memory.fill(m.size * PAGE))
    yield Figure("filling new memory", "GB/s", [], (_PRIVATE,), (Bound("at least", 0.4, _PRIVATE),)), m.fill


def _at_random(m: _Measured, moved: Figure, wanted: Figure, p99: Figure) -> Iterator[Part]:
    yield Figure("random read", "µs a page"), partial(m.read_at_random, moved, wanted)
    yield Figure(_ALONE, "µs"), partial(m.touch_alone, p99)
    bounds = (Bound("at most", 2, _ALONE_P99, 0.99),)
    yield (
        Figure("random access during a scan", "µs", [], (_ALONE,), bounds),
        partial(m.touch_beside, "read", "sequential"),
    )
    yield (
        Figure("random access during a prefetch", "µs", [], (_ALONE,), bounds),
        partial(m.touch_beside, "prefetch", False),
    )


def measure(quick: bool, progress: Progress) -> Section:
    """Everything, ``quick`` with little memory and few rounds."""
    rounds, size = (2, 2048) if quick else (7, 16384)
    section = Section("bandwidth", "Bandwidth", (__doc__ or "").strip())
    moved = Figure("pages moved by random reads", "pages", [], (_WANTED,), (Bound("at most", 1.1, _WANTED),))
    wanted, p99 = Figure(_WANTED, "pages"), Figure(_ALONE_P99, "µs")
    with ExitStack() as done:
        progress("starting three nodes")
        measured = _Measured(done.enter_context(cluster()), rounds, size)
        stream = Stream(size * PAGE)
        done.callback(stream.close)
        parts = [*_moving(measured, stream), *_at_random(measured, moved, wanted, p99)]
        interleave(rounds, progress, parts)
    section.figures = [figure for figure, _ in parts] + [p99, moved, wanted]
    return section
