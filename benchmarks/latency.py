"""How long a single operation takes, beside what it cannot do without.

Nodes on this host over TCP loopback, an application on each and a second one on the first. Pages are touched in random
order, every other one, so that nothing is read ahead, unless a figure says "in order". Every round measures a batch of
everything. First three nodes; then nine, for what takes many or keeps the processors busy (more sharers, barriers,
ping-pong): of services and applications that all want to run, each waits for the others, and for a while after. All
nodes share the processors of this host: what eight hosts would do at once (invalidate a copy, leave a barrier) they
do here in turn.

- hit: a numpy operation on memory that is here already, beside the same on private memory.
- local fault: a store to a page that a neighbour on the same node has written; the agent alone settles it.
- first touch: a store to a page that nobody ever touched.
- remote read: a load from a page that another node has alone (its owner), or that others share.
- upgrade: a store to a page of which other nodes have copies.
- lock: an acquire that nobody contests, of a lock that no node has and of one that this node was the last to have; a
  hand-over from the release on one node to the acquired lock on another that waited for it.
- barrier: from the last arrival until the last has left; one party a node.
- ping-pong: two nodes store to one page all the time; a turn is a store before which the other side has stored.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from typing import Any, Final

from benchmarks import private_memory
from benchmarks.application import Cluster, cluster, together
from benchmarks.fault_thread import FaultThread, NoFaultThread
from benchmarks.floors import PAGE, Floors
from benchmarks.measurements import Bound, Figure, Progress, Section, interleave

SHARERS: Final = (1, 2, 4, 8)
FEW: Final = (1, 2)
PARTIES: Final = range(2, 9)
_REGION: Final = "benchmark.latency"
_HIT_BYTES: Final = 1 << 20

ROUND_TRIP: Final = "pyzmq round trip of 4 KiB"
_THREE_HOPS: Final = "pyzmq, three hops"
_THREE_HOPS_TCP: Final = "bare TCP, three hops"
_THREAD: Final = "a C thread that serves userfaultfd"
_PRIVATE_TOUCH: Final = "first touch of private memory"
_LOCK_NAME: Final = "benchmark.latency"


class Accesses:
    """What an application does when told so: everything in nanoseconds, of a clock that all processes share."""

    def __init__(self, pages: int) -> None:
        import numpy as np

        import dsm

        self._region = dsm.attach(_REGION, size=pages * PAGE)
        self._memory = self._region.buf
        self._lock = dsm.Lock(_LOCK_NAME)
        self._new_locks = (dsm.Lock(f"{_LOCK_NAME}.new.{number}") for number in itertools.count())
        self._own_lock = dsm.Lock(f"{_LOCK_NAME}.own")
        self._barriers = {parties: dsm.Barrier(f"{_REGION}.{parties}", parties) for parties in PARTIES}
        self._hits: Any = {"dsm": self._region.ndarray(_HIT_BYTES // 8, "f8"), "private": np.zeros(_HIT_BYTES // 8)}
        self._picked: Any = np.random.default_rng(1).permutation(_HIT_BYTES // 8)
        self._into: Any = np.zeros(_HIT_BYTES // 8)

    def load(self, pages: list[int]) -> list[int]:
        """A byte of each page."""
        memory, now, took = self._memory, time.perf_counter_ns, []
        for page in pages:
            at = page * PAGE
            start = now()
            memory[at]
            took.append(now() - start)
        return took

    def store(self, pages: list[int]) -> list[int]:
        """To a byte of each page."""
        memory, now, took = self._memory, time.perf_counter_ns, []
        for page in pages:
            at = page * PAGE
            start = now()
            memory[at] = 1
            took.append(now() - start)
        return took

    def add(self, where: str, count: int) -> list[int]:
        """One to every element."""
        import numpy as np

        array = self._hits[where]
        return _timed(count, lambda: np.add(array, 1, array))

    def pick(self, where: str, count: int) -> list[int]:
        """Every element, in random order."""
        array = self._hits[where]
        return _timed(count, lambda: array.take(self._picked, 0, self._into, "clip"))

    def touch_private(self, count: int) -> list[int]:
        """The floor of a first touch."""
        return private_memory.first_touches(count)

    def lock_alone(self, count: int, new: bool) -> list[int]:
        """Acquire what nobody else wants: one lock again and again, or each time a ``new`` one."""
        locks = list(itertools.islice(self._new_locks, count)) if new else [self._own_lock] * count
        took = []
        for lock in locks:
            start = time.perf_counter_ns()
            lock.acquire()
            took.append(time.perf_counter_ns() - start)
            lock.release()
        return took

    def lock_contended(self, count: int) -> list[tuple[int, int, int]]:
        """When it was asked for, acquired, released."""
        now, times = time.perf_counter_ns, []
        self._barriers[2].wait()
        for _ in range(count):
            asked = now()
            self._lock.acquire()
            acquired, released = now(), now()
            self._lock.release()
            times.append((asked, acquired, released))
        return times

    def barrier(self, parties: int, count: int) -> list[tuple[int, int]]:
        """When this party came and when it left."""
        barrier, now, times = self._barriers[parties], time.perf_counter_ns, []
        for _ in range(count):
            came = now()
            barrier.wait()
            times.append((came, now()))
        return times

    def contend(self, page: int, side: int, nanoseconds: int) -> tuple[int, list[int]]:
        """Store to a page for a time: how many stores, and how long each took before which the other side has had its
        turn, as its own word in the page tells."""
        words, now = self._memory.cast("Q"), time.perf_counter_ns
        own, other = page * PAGE // 8 + side, page * PAGE // 8 + 1 - side
        stores, turns = words[own], []
        before, seen = stores, words[other]
        self._barriers[2].wait()
        begin = now()
        end = begin + nanoseconds
        while begin < end:
            stores += 1
            words[own] = stores
            there = words[other]
            after = now()
            if there != seen:
                turns.append(after - begin)
                seen = there
            begin = after
        return stores - before, turns


def _timed(count: int, operation: Callable[[], object]) -> list[int]:
    now, took = time.perf_counter_ns, []
    for _ in range(count):
        start = now()
        operation()
        took.append(now() - start)
    return took


class _Measured:
    """The applications, and the pages that are still to be touched. Each method gives the samples of a batch, in
    microseconds; those that find pages in a certain state leave them in the state that the next one expects."""

    def __init__(self, services: Cluster, rounds: int, batch: int, sharers: tuple[int, ...]) -> None:
        self.batch = batch
        self._sharers = sharers
        spread, self._in_order = _pages(rounds, batch, len(sharers))
        self._unused = iter(spread)
        self._contended = _HIT_BYTES // PAGE
        pages = self._in_order[-1] + 1
        nodes = [services.node() for _ in range(1 + sharers[-1])]
        self.writer, *self.readers = applications = [services.start(node, Accesses, pages) for node in nodes]
        self.neighbour = services.start(nodes[0], Accesses, pages)
        self.applications = applications
        self._shared: dict[int, list[int]] = {}  # by sharers: the pages of this round
        for where in ("dsm", "private"):
            self.writer.ask("add", where, 1)  # the pages are here from now on

    def _some(self, count: int) -> list[int]:
        return [next(self._unused) for _ in range(count)]

    # -- pages -----------------------------------------------------------------------------------------

    def hit(self, operation: str, where: str) -> list[float]:
        return _us(self.writer.ask(operation, where, self.batch))

    def first_touch(self) -> list[float]:
        self._shared = {sharers: self._some(self.batch) for sharers in self._sharers}
        return _us(self.writer.ask("store", self._all()))

    def _all(self) -> list[int]:
        return [page for pages in self._shared.values() for page in pages]

    def read_owner(self) -> list[float]:
        return _us(self.readers[0].ask("load", self._all()))

    def read_sharer(self) -> list[float]:
        pages = [page for sharers, pages in self._shared.items() if sharers > 1 for page in pages]
        return _us(self.readers[1].ask("load", pages))

    def upgrade(self, sharers: int) -> list[float]:
        for number in range(2, sharers):
            self.readers[number].ask("load", self._shared[sharers])
        return _us(self.writer.ask("store", self._shared[sharers]))

    def local_fault(self) -> list[float]:
        return _us(self.neighbour.ask("store", self._shared[1]))

    def touch_in_order(self) -> list[float]:
        pages, self._in_order = self._in_order[: self.batch], self._in_order[self.batch :]
        return [sum(self.writer.ask("store", pages)) / len(pages) / 1000]

    # -- locks and barriers -----------------------------------------------------------------------------

    def lock_alone(self, new: bool) -> list[float]:
        """Locks that nobody else wants."""
        return _us(self.writer.ask("lock_alone", self.batch, new))

    def hand_over(self) -> list[float]:
        """From a release to the acquire that was waiting for it on the other node."""
        told = together(*[(application, ["lock_contended", self.batch]) for application in self.readers[:2]])
        turns = sorted((acquired, asked, released, who) for who in (0, 1) for asked, acquired, released in told[who])
        return [
            (acquired - before[2]) / 1000
            for before, (acquired, asked, _, who) in pairwise(turns)
            if who != before[3] and asked < before[2]
        ]

    def barrier(self, parties: int) -> list[float]:
        count = max(2, self.batch // 5)
        told = together(*[(application, ["barrier", parties, count]) for application in self.applications[:parties]])
        rounds = [zip(*times, strict=True) for times in zip(*told, strict=True)]
        return [(max(left) - max(came)) / 1000 for came, left in rounds]

    # -- a contended page -------------------------------------------------------------------------------

    def ping_pong(self, shares: tuple[Figure, ...]) -> list[float]:
        """How long each turn of either side was waited for. The shares of the sides go to ``shares``."""
        for_ns = 200_000_000 if self.batch > 20 else 50_000_000
        sides = self.readers[:2]
        told = together(*[(side, ["contend", self._contended, n, for_ns]) for n, side in enumerate(sides)])
        stores, turns = [stores for stores, _ in told], [len(waits) for _, waits in told]
        for figure, counted in zip(shares, (*_percent(stores), *_percent(turns)), strict=True):
            figure.samples.append(counted)
        return [took / 1000 for _, waits in told for took in waits]


def _percent(counts: list[int]) -> list[float]:
    return [100 * count / max(1, sum(counts)) for count in counts]


def _us(nanoseconds: list[int]) -> list[float]:
    return [took / 1000 for took in nanoseconds]


def _pages(rounds: int, batch: int, kinds: int) -> tuple[list[int], list[int]]:
    """Pages to touch at random, none beside another, and pages to touch in order; the array for hits and the page to
    contend for come before them."""
    first = _HIT_BYTES // PAGE + 2
    spread = list(range(first, first + 2 * kinds * rounds * batch, 2))
    random.Random(1).shuffle(spread)
    after = max(spread) + 64
    return spread, list(range(after, after + rounds * batch))


Part = tuple[Figure, Callable[[], list[float]]]


def _remote(name: str, *bounds: Bound) -> Figure:
    return Figure(name, "µs", beside=(ROUND_TRIP, _THREE_HOPS, _THREE_HOPS_TCP), bounds=bounds)


def _floors(floors: Floors, thread: FaultThread | None, m: _Measured) -> Iterator[Part]:
    yield Figure(ROUND_TRIP, "µs"), lambda: _us(floors.round_trips(m.batch))
    yield Figure(_THREE_HOPS, "µs"), lambda: _us(floors.three_hops(m.batch))
    yield Figure(_THREE_HOPS_TCP, "µs"), lambda: _us(floors.three_hops_tcp(m.batch))
    if thread is not None:
        yield Figure(_THREAD, "µs"), lambda: _us(thread.faults(m.batch))
    yield Figure(_PRIVATE_TOUCH, "µs"), lambda: _us(m.writer.ask("touch_private", m.batch))


def _hits(m: _Measured) -> Iterator[Part]:
    for operation, what in (("add", "adding to every element of 1 MiB"), ("pick", "picking from 1 MiB at random")):
        private, ours = f"{what}, private", f"hit: {what}"
        figure = Figure(ours, "µs", beside=(private,), bounds=(Bound("at most", 1.05, private),))
        yield Figure(private, "µs"), partial(m.hit, operation, "private")
        yield figure, partial(m.hit, operation, "dsm")


def _faults(m: _Measured) -> Iterator[Part]:
    owner = "remote read, from its owner"
    at_most = [Bound("at most", ratio, ROUND_TRIP) for ratio in (1.2, 1.5)]
    yield Figure("first touch", "µs", beside=(ROUND_TRIP, _PRIVATE_TOUCH)), m.first_touch
    yield _remote(owner, *at_most, Bound("at most", 3, owner, 0.99)), m.read_owner
    yield _remote("remote read, from a sharer"), m.read_sharer
    one = "upgrade, 1 sharer"
    yield _remote(one, Bound("at most", 1.5, ROUND_TRIP)), lambda: m.upgrade(1)
    yield Figure("upgrade, 2 sharers", "µs", beside=(ROUND_TRIP, one)), partial(m.upgrade, 2)
    local = Bound("at most", 1.5, _THREAD)
    yield Figure("local fault", "µs", beside=(_THREAD, ROUND_TRIP), bounds=(local,)), m.local_fault
    note = "the time of a batch by its pages: a run of them is granted at once, so most stores do not fault"
    in_order = Figure("first touch, in order", "µs a page", [], (_THREAD, _PRIVATE_TOUCH), (local,), note)
    yield in_order, m.touch_in_order


def _locks(m: _Measured) -> Iterator[Part]:
    yield Figure("lock, uncontended", "µs", beside=(ROUND_TRIP,)), partial(m.lock_alone, True)
    yield Figure("lock, taken again", "µs", beside=(ROUND_TRIP,)), partial(m.lock_alone, False)
    yield Figure("lock, hand-over", "µs", beside=(ROUND_TRIP,)), m.hand_over


def _of_nine(name: str) -> str:
    return f"{name}, of nine nodes"


def _many(floors: Floors, m: _Measured, shares: tuple[Figure, ...]) -> Iterator[Part]:
    floor, one = _of_nine(ROUND_TRIP), _of_nine("upgrade, 1 sharer")
    yield (
        Figure(floor, "µs", note="the same, measured in turn with what follows"),
        lambda: _us(floors.round_trips(m.batch)),
    )
    yield Figure(_of_nine("first touch"), "µs", beside=(floor,)), m.first_touch
    yield Figure(_of_nine("remote read"), "µs", beside=(floor,)), m.read_owner
    yield Figure(_of_nine("remote read, from a sharer"), "µs", beside=(floor,)), m.read_sharer
    yield Figure(one, "µs", beside=(floor,)), lambda: m.upgrade(1)
    for sharers in SHARERS[1:]:
        bounds = (Bound("at most", 1.5, one),) if sharers == SHARERS[-1] else ()
        figure = Figure(_of_nine(f"upgrade, {sharers} sharers"), "µs", beside=(floor, one), bounds=bounds)
        yield figure, partial(m.upgrade, sharers)
    two = f"barrier of {PARTIES[0]}"
    for parties in PARTIES:
        beside = (floor,) if parties == PARTIES[0] else (floor, two)
        yield Figure(f"barrier of {parties}", "µs", beside=beside), partial(m.barrier, parties)
    yield Figure("ping-pong: a turn", "µs", beside=(floor,)), lambda: m.ping_pong(shares)


def _shares() -> tuple[Figure, ...]:
    """Of the two sides of the ping-pong."""
    names = [(f"ping-pong: {what} of the first", f"ping-pong: {what} of the second") for what in ("stores", "turns")]
    return tuple(
        Figure(own, f"% of {own.split()[1]}", beside=(other,))
        for first, second in names
        for own, other in ((first, second), (second, first))
    )


def measure(quick: bool, progress: Progress) -> Section:
    """Everything, ``quick`` with few rounds of small batches."""
    rounds, batch = (3, 12) if quick else (50, 50)
    section = Section("latency", "Latency", (__doc__ or "").strip())
    with ExitStack() as done:
        floors = Floors()
        done.callback(floors.close)
        thread = None
        try:
            thread = FaultThread()
            done.callback(thread.close)
        except NoFaultThread as error:
            section.absent[_THREAD] = str(error)
        with cluster() as services:
            progress("starting three nodes")
            few = _Measured(services, rounds, batch, FEW)
            parts = [*_floors(floors, thread, few), *_hits(few), *_faults(few), *_locks(few)]
            interleave(rounds, progress, parts)
        with cluster() as services:
            progress("starting nine nodes")
            shares = _shares()
            crowd = list(_many(floors, _Measured(services, rounds, batch, SHARERS), shares))
            interleave(rounds, progress, crowd)
    section.figures = [figure for figure, _ in (*parts, *crowd)] + list(shares)
    return section
