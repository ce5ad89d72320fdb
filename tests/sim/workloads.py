"""Workloads that check themselves. Each runs on processes of several nodes, at the same time as the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .programs import (
    WORD,
    Call,
    Load,
    Process,
    Program,
    Region,
    Sleep,
    Store,
    acquire,
    attach,
    barrier,
    detach,
    prefetch,
    release,
    unlink,
)
from .world import MS, US, SimulationError

if TYPE_CHECKING:
    from .cluster import SimulatedCluster
    from .host import Host

_AFTERMATH: Final = 5 * MS
"""How long after one of its processes was killed a program as a whole is ended, where it cannot go on without."""


class Workload:
    """A program that runs as ``workers`` processes on hosts drawn at random, with one region of ``pages`` pages.

    ``needs_all``: without one of its processes the others would wait for ever, so whoever started it ends all.
    ``broken``: some process was killed.
    """

    needs_all = False

    def __init__(self, cluster: SimulatedCluster, name: str, workers: int, rounds: int, pages: int, page_size: int):
        self.cluster = cluster
        self.world = cluster.world
        self.chance = cluster.world.chance
        self.name = name
        self.rounds = rounds
        self.pages = pages
        self.page_size = page_size
        self.broken = False
        self.processes: list[Process] = []
        self.parties = workers
        hosts = cluster.serving_hosts()
        for index in range(workers):
            self.spawn(self.chance.choice(hosts), index)

    def __repr__(self) -> str:
        return f"{self.name}({self.parties} processes, {self.rounds} rounds, {self.pages} pages of {self.page_size})"

    def spawn(self, host: Host, index: int) -> None:
        process = Process(host, f"{self.name}.{index}")
        self.processes.append(process)
        process.start(f"{self.name}.{index}", self.worker(process, index))

    def worker(self, process: Process, index: int) -> Program:
        """What one process does."""
        raise NotImplementedError

    def check(self) -> None:
        """What must hold when all processes are over; only if none was killed, unless a class says otherwise."""

    def join(self, host: Host) -> None:
        """A node has arrived: perhaps there is something to do for it."""

    def was_killed(self, process: Process) -> None:
        if process in self.processes and not self.broken:
            self.broken = True
            if self.needs_all:
                self.world.after(self.world.spread(_AFTERMATH // 100, _AFTERMATH), self.end)

    def end(self) -> None:
        for process in self.processes:
            process.kill("whoever started it")

    # -- what workers share ----------------------------------------------------------------------------------

    def attach(self, process: Process) -> Call:
        return attach(process, self.name, self.pages * self.page_size, self.page_size)

    def place(self, item: int, items: int) -> int:
        """The word of an item: all over the region, several on a page if there are more of them than pages."""
        words = self.pages * self.page_size // WORD
        return item * (words // items)

    def lock(self, item: int) -> str:
        return f"{self.name}.{item}"

    def demand(self, truth: bool, what: str) -> None:
        if not truth:
            raise SimulationError(f"{self!r}: {what}")


class Counters(Workload):
    """Counters under locks: each ends at exactly as many as were added, whoever dies."""

    def __init__(self, *args, **kwargs) -> None:  # type: ignore[no-untyped-def]
        self.added: dict[int, int] = {}
        super().__init__(*args, **kwargs)

    def worker(self, process: Process, index: int) -> Program:
        region = yield from self.attach(process)
        for _ in range(self.rounds):
            counter = self.chance.randrange(4)
            patience = self.world.spread(100 * US, 5 * MS) if self.chance.random() < 0.2 else 0
            held = yield from acquire(process, self.lock(counter), patience)
            if held is None:
                continue
            value = yield Load(region, self.place(counter, 4))
            self.demand(value == self.added.get(counter, 0), f"counter {counter} is {value}, not {self.added}")
            yield Store(region, self.place(counter, 4), value + 1)
            self.demand(value == self.added.get(counter, 0), f"an addition to counter {counter} is lost")
            if process.host.trusted:
                self.added[counter] = value + 1
            yield from release(process, self.lock(counter), held)


class Bank(Workload):
    """Transfers between accounts under two locks: the total stays what it was."""

    needs_all = True
    accounts: Final = 6

    def worker(self, process: Process, index: int) -> Program:
        region = yield from self.attach(process)
        if index == 0:
            for account in range(self.accounts):
                yield Store(region, self.place(account, self.accounts), 1000)
        yield from barrier(process, self.name, self.parties)
        for _ in range(self.rounds):
            a, b = sorted(self.chance.sample(range(self.accounts), 2))
            first = yield from acquire(process, self.lock(a))
            second = yield from acquire(process, self.lock(b))
            amount = self.chance.randint(-50, 50)
            has = yield Load(region, self.place(a, self.accounts))
            amount = max(-has, amount)
            other = yield Load(region, self.place(b, self.accounts))
            amount = min(amount, other)
            yield Store(region, self.place(a, self.accounts), has + amount)
            yield Store(region, self.place(b, self.accounts), other - amount)
            yield from release(process, self.lock(b), second)
            yield from release(process, self.lock(a), first)
        yield from barrier(process, self.name, self.parties)
        total = 0
        for account in range(self.accounts):
            total += yield Load(region, self.place(account, self.accounts))
        self.demand(total == 1000 * self.accounts, f"the total is {total}")


class Ring(Workload):
    """A ring of pointers, three of which are turned round at a time under one lock: it stays one ring.

    After FoundationDB's Cycle workload (fdbserver/workloads/Cycle.cpp).
    """

    needs_all = True
    nodes: Final = 7

    def worker(self, process: Process, index: int) -> Program:
        region = yield from self.attach(process)
        if index == 0:
            for node in range(self.nodes):
                yield Store(region, self.place(node, self.nodes), (node + 1) % self.nodes + 1)
        yield from barrier(process, self.name, self.parties)
        for _ in range(self.rounds):
            held = yield from acquire(process, self.lock(0))
            a = self.chance.randrange(self.nodes)
            b = yield from self._next(region, a)
            c = yield from self._next(region, b)
            d = yield from self._next(region, c)
            for node, after in ((a, c), (c, b), (b, d)):
                yield Store(region, self.place(node, self.nodes), after + 1)
            yield from release(process, self.lock(0), held)
        yield from barrier(process, self.name, self.parties)
        at, seen = 0, set()
        while at not in seen:
            seen.add(at)
            at = yield from self._next(region, at)
        self.demand(len(seen) == self.nodes, f"the ring has {len(seen)} nodes")

    def _next(self, region: Region, node: int) -> Call:
        value = yield Load(region, self.place(node, self.nodes))
        self.demand(0 < value <= self.nodes, f"node {node} points to {value - 1}")
        return value - 1


class HotPage(Workload):
    """Everybody writes a word of their own on one page and reads those of the others: none ever goes back."""

    def worker(self, process: Process, index: int) -> Program:
        region = yield from self.attach(process)
        seen = [0] * self.parties
        for count in range(1, self.rounds + 1):
            yield Store(region, index, count)
            other = self.chance.randrange(self.parties)
            value = yield Load(region, other)
            self.demand(value >= seen[other], f"word {other} went from {seen[other]} back to {value}")
            seen[other] = value


class FalseSharing(Workload):
    """Different words of the same pages are counted up without locks: no count is lost."""

    def worker(self, process: Process, index: int) -> Program:
        region = yield from self.attach(process)
        threads = self.chance.randint(1, 2)
        for thread in range(threads):
            process.start(f"{self.name}.{index}.{thread}", self._count(region, index * 2 + thread))

    def _count(self, region: Region, mine: int) -> Program:
        for count in range(self.rounds):
            word = (count % self.pages) * (self.page_size // WORD) + mine
            value = yield Load(region, word)
            self.demand(value == count // self.pages, f"word {word} is {value}, not {count // self.pages}")
            yield Store(region, word, value + 1)


class Scan(Workload):
    """One writes all pages, the others read them in order, some with an explicit prefetch; then the next writes."""

    needs_all = True

    def worker(self, process: Process, index: int) -> Program:
        region = yield from self.attach(process)
        step = self.page_size // WORD
        for turn in range(max(1, self.rounds // 8)):
            if turn % self.parties == index:
                if self.chance.random() < 0.3:
                    yield from prefetch(region, 0, self.pages, True)
                for page in range(self.pages):
                    yield Store(region, page * step + turn % step, turn * 1000 + page)
            yield from barrier(process, self.name, self.parties)
            if self.chance.random() < 0.4:
                start = self.chance.randrange(self.pages)
                yield from prefetch(region, start, self.chance.randint(start, self.pages), False)
            for page in range(self.pages):
                value = yield Load(region, page * step + turn % step)
                self.demand(value == turn * 1000 + page, f"page {page} has {value} in turn {turn}")
            yield from barrier(process, self.name, self.parties)


class AttachStorm(Workload):
    """Regions are attached, touched, detached and unlinked all the time."""

    def worker(self, process: Process, index: int) -> Program:
        for turn in range(max(2, self.rounds // 4)):
            name = f"{self.name}.{self.chance.randrange(2)}"
            region: Region = yield from attach(process, name, self.pages * self.page_size, self.page_size)
            for _ in range(self.chance.randint(0, 6)):
                word = self.chance.randrange(region.words)
                if self.chance.random() < 0.5:
                    yield Store(region, word, turn * 1000 + index + 1)
                else:
                    yield Load(region, word)
            if self.chance.random() < 0.3:
                start = self.chance.randrange(self.pages)
                yield from prefetch(region, start, self.pages, self.chance.random() < 0.5)
            if self.chance.random() < 0.4:
                yield from unlink(process, name)
            if self.chance.random() < 0.8:
                yield from detach(process, region)
            if self.chance.random() < 0.3:
                yield Sleep(self.world.spread(10 * US, 2 * MS))


class Roamers(Workload):
    """Several threads of each process load and store anywhere; processes are killed and others take their place."""

    def worker(self, process: Process, index: int) -> Program:
        region = yield from self.attach(process)
        for thread in range(self.chance.randint(1, 3)):
            process.start(f"{self.name}.{index}.{thread}", self._roam(region, process.pid * 10 + thread))

    def _roam(self, region: Region, sign: int) -> Program:
        step = self.page_size // WORD
        for count in range(self.rounds):
            page = self.chance.randrange(self.pages)
            what = self.chance.random()
            if what < 0.05:
                stop = self.chance.randint(page, self.pages)
                yield from prefetch(region, page, stop, self.chance.random() < 0.5)
            elif what < 0.15:
                for neighbour in range(page, min(page + 6, self.pages)):
                    yield Load(region, neighbour * step)
            elif what < 0.5:
                yield Store(region, page * step + self.chance.randrange(3), sign * 1000 + count)
            else:
                yield Load(region, page * step + self.chance.randrange(3))

    def join(self, host: Host) -> None:
        self.spawn(host, len(self.processes))

    def was_killed(self, process: Process) -> None:
        first = process in self.processes
        super().was_killed(process)
        hosts = self.cluster.serving_hosts()
        if first and hosts and len(self.processes) < 3 * self.parties:
            self.spawn(self.chance.choice(hosts), len(self.processes))


ALL: Final[tuple[type[Workload], ...]] = (
    Counters, Bank, Ring, HotPage, FalseSharing, Scan, AttachStorm, Roamers,
)  # fmt: skip

LARGE: Final[tuple[type[Workload], ...]] = (Counters,)
"""Those for a process on each of very many nodes. The others would have very many waiters in one extent, and what the
directory does after a Done grows with more than the square of their number."""
