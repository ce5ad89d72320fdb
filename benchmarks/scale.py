"""How much one directory serves: ``python -m benchmarks scale``.

The pure core counts what it handles: messages of nodes, in CPU time of one core. Through sockets, one real directory is
kept busy by processes that are many nodes each (benchmarks/directory_load.py), each with several requests under way; a
miss there is a load from a page of another node or a store to a page that another node has a copy of, half and half,
with all messages. Memory is what the resident set of a process grows by that holds a directory's pages.
"""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from benchmarks import directory_load, directory_memory
from benchmarks.child import Child, answers, python
from benchmarks.measurements import Bound, Figure, Progress, Section, interleave
from directory.machine import PageMachine
from dsm import launch
from dsm.wire import EVICT, FAULT, PREFETCH, READ, WRITE, Done, Message, Request

_NODES: Final = (2, 10, 100, 1000)
_TOUCHED: Final = 10_000_000
_REGION_BYTES: Final = 1 << 40
_PAGE: Final = 4096

Script = list[tuple[int, Message]]
"""Messages to a directory, and the nodes that they are from."""


# --- the pure core -------------------------------------------------------------------------------------


class _Core:
    """A machine of pages whose nodes are ``1`` to ``nodes``, fed with messages that were made before."""

    def __init__(self, nodes: int) -> None:
        self.nodes = nodes
        self._machine = PageMachine()
        self._machine.add_region(1, _REGION_BYTES, _PAGE)
        self._random = random.Random(nodes)
        self._generation = 0

    def request(self, script: Script, node: int, page: int, op: int, count: int = 1, done: bool = True) -> None:
        self._generation = generation = self._generation % 0xFFFFFFFF + 1
        script.append((node, Request(1, generation, page, count, op, FAULT if count == 1 else PREFETCH)))
        if done:
            script.append((node, Done(1, generation, page, count)))

    def seconds(self, script: Script) -> float:
        """CPU time that the machine takes for a script, of which it may reject nothing."""
        step = self._machine.step
        began = time.process_time()
        for node, message in script:
            step(node, message)
        took = time.process_time() - began
        assert not self._machine.rejected, "the benchmark does not keep to the protocol"
        return took

    def others(self, node: int) -> int:
        """Some other node."""
        other = self._random.randrange(1, self.nodes)
        return other if other < node else other + 1


class _Misses(_Core):
    """A page is touched first, read by another node, written by that one, then written by a third (or the first)."""

    def __init__(self, nodes: int, count: int = 1) -> None:
        super().__init__(nodes)
        self._count = count  # pages of a request
        self._next = 0

    def script(self, misses: int) -> Script:
        made: Script = []
        places = list(range(self._next, self._next + misses // 4))
        self._next += misses // 4
        self._random.shuffle(places)
        owners = [self._random.randint(1, self.nodes) for _ in places]
        readers = [self.others(owner) for owner in owners]
        for who, op, done in ((owners, WRITE, False), (readers, READ, True), (readers, WRITE, True)):
            for place, node in zip(places, who, strict=True):
                self.request(made, node, place * self._count, op, self._count, done)
        for place, node in zip(places, readers, strict=True):
            self.request(made, self.others(node), place * self._count, WRITE, self._count)
        return made

    def events(self, misses: int) -> list[float]:
        """Messages a second."""
        script = self.script(misses)
        return [len(script) / self.seconds(script)]

    def pages(self, misses: int) -> list[float]:
        """Pages a second."""
        script = self.script(misses)
        return [misses * self._count / self.seconds(script)]

    def microseconds(self, misses: int) -> list[float]:
        """Of a miss."""
        return [1e6 * self.seconds(self.script(misses)) / misses]


class _Copysets(_Core):
    """Pages of which each is shared by a random half of the nodes: one joins them, and leaves again.

    Every page has a copyset of its own, a number of as many bits as there are nodes: what is flat here is not quite.
    """

    _PAGES: Final = 64

    def __init__(self, nodes: int) -> None:
        super().__init__(nodes)
        made: Script = []
        self._outside = []
        for page in range(self._PAGES):
            order = self._random.sample(range(1, nodes + 1), nodes)
            inside, outside = order[: max(1, nodes // 2)], order[max(1, nodes // 2) :]
            self._outside.append(outside)
            self.request(made, inside[0], page, WRITE, done=False)
            for node in inside[1:]:
                self.request(made, node, page, READ)
        self.seconds(made)

    def microseconds(self, misses: int) -> list[float]:
        """Of a miss, and of its eviction."""
        made: Script = []
        for i in range(misses):
            page = i % self._PAGES
            node = self._random.choice(self._outside[page])
            self.request(made, node, page, READ)
            self.request(made, node, page, EVICT)
        return [1e6 * self.seconds(made) / misses]


def _flat(kind: str, nodes: int, most: float, note: str = "") -> Figure:
    if nodes == _NODES[0]:
        return Figure(f"{kind}, {nodes} nodes", "µs", note=note)
    beside = f"{kind}, {_NODES[0]} nodes"
    return Figure(f"{kind}, {nodes} nodes", "µs", beside=(beside,), bounds=(Bound("at most", most, beside),))


def _pure(quick: bool, progress: Progress) -> list[Figure]:
    misses = 2_000 if quick else 20_000
    parts: list[tuple[Figure, Callable[[], list[float]]]] = []
    core, runs = _Misses(8), _Misses(8, directory_load.RUN_PAGES)
    figure = Figure("core", "events/s", bounds=(Bound("at least", 100_000, ""),), note="single pages, messages handled")
    parts.append((figure, lambda: core.events(misses)))
    parts.append((Figure("core, runs of 128", "pages/s"), lambda: runs.pages(misses)))
    for nodes in _NODES:
        machine, copysets = _Misses(nodes), _Copysets(nodes)
        parts.append((_flat("miss", nodes, 1.25), lambda machine=machine: machine.microseconds(misses)))  # type: ignore[misc]
        figure = _flat("shared by half", nodes, 1.5, "a read of one more node, and its eviction")
        parts.append((figure, lambda copysets=copysets: copysets.microseconds(misses // 4)))  # type: ignore[misc]
    interleave(3 if quick else 5, progress, parts)
    return [figure for figure, _ in parts]


# --- through sockets -----------------------------------------------------------------------------------


class Loads:
    """A directory and the processes that keep it busy, started and ready."""

    def __init__(self, processes: int, nodes: int, shards: int) -> None:
        self._shards = [launch.start_directory(shards=shards)]
        self.address = self._shards[0].address
        self._loads: list[Child] = []
        try:
            for _ in range(1, shards):
                self._shards.append(launch.start_directory(shard_of=self.address))
            for number in range(processes):
                self._loads.append(Child(python("benchmarks.directory_load", self.address, str(number), str(nodes))))
            answers(*self._loads)
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        """End all of them."""
        for load in self._loads:
            load.kill()
        for shard in reversed(self._shards):
            shard.stop()

    def round(self, kind: str, seconds: float) -> dict[str, float]:
        """Misses and pages a second, microseconds of CPU time that the directory took for a miss, in all its shards and
        in the one that took most, and how many misses there were in total."""
        before = self._cpu_ns()
        for load in self._loads:
            load.tell(kind, seconds)
        told = answers(*self._loads)
        rates = {what: sum(a[what] / a["seconds"] for a in told) for what in ("misses", "pages")}
        total = sum(answer["misses"] for answer in told)
        used = [(after - at) / 1e3 / total for at, after in zip(before, self._cpu_ns(), strict=True)]
        return rates | {"cpu": sum(used), "most": max(used), "total": total}

    def _cpu_ns(self) -> list[int]:
        """What each shard has used so far."""
        stats = [Path(f"/proc/{shard.process.pid}/schedstat") for shard in self._shards]
        return [int(stat.read_text().split()[0]) for stat in stats]


@contextlib.contextmanager
def loads(processes: int, nodes: int, shards: int = 1) -> Iterator[Loads]:
    """As :class:`Loads`; ended afterwards."""
    made = Loads(processes, nodes, shards)
    try:
        yield made
    finally:
        made.end()


_TWO_SHARDS: Final = "shards and loads share the cores that there are: with a core for each of them, see the CPU time"


def _sockets(quick: bool, progress: Progress) -> list[Figure]:
    one, two = "single-page misses", "single-page misses, 2 shards"
    cpu = "single-page miss, CPU of the directory"
    figures = {
        (1, directory_load.FIRST_TOUCH, "misses"): Figure("first touches", "misses/s"),
        (1, directory_load.MISSES, "misses"): Figure(one, "misses/s", bounds=(Bound("at least", 10_000, ""),)),
        (1, directory_load.MISSES, "cpu"): Figure(cpu, "µs"),
        (1, directory_load.RUNS, "pages"): Figure(
            "pages in runs of 128", "pages/s", bounds=(Bound("at least", 1_000_000, ""),)
        ),
        (2, directory_load.MISSES, "misses"): Figure(two, "misses/s", beside=(one,), note=_TWO_SHARDS),
        (2, directory_load.MISSES, "most"): Figure(
            "single-page miss, CPU of the busier of 2 shards", "µs", beside=(cpu,), bounds=(Bound("at most", 0.6, cpu),)
        ),
    }
    seconds, rounds = (0.3, 2) if quick else (1.0, 5)
    kinds = {1: (directory_load.FIRST_TOUCH, directory_load.MISSES, directory_load.RUNS), 2: (directory_load.MISSES,)}
    nodes = 4 if quick else 16
    with loads(2, nodes) as single, loads(2, nodes, 2) as double:
        for number in range(rounds):
            for shards, running in ((1, single), (2, double)):
                for kind in kinds[shards]:
                    progress(f"{kind}, through sockets, shards: {shards} ({number + 1} of {rounds})")
                    measured = running.round(kind, seconds)
                    for (of, what_kind, what), figure in figures.items():
                        if (of, what_kind) == (shards, kind):
                            figure.samples.append(measured[what])
    return list(figures.values())


# --- memory --------------------------------------------------------------------------------------------


def _memory(quick: bool, progress: Progress) -> tuple[list[Figure], dict[str, dict[str, Any]]]:
    pages = 200_000 if quick else _TOUCHED
    figures, facts = [], {}
    for pattern in directory_memory.PATTERNS:
        progress(f"memory: {pattern}")
        command = python("benchmarks.directory_memory", pattern, str(pages))
        taken = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        bounds = () if quick else (Bound("at most", 160.0, ""),)
        figure = Figure(f"memory, {pattern}", "MB", [taken["bytes"] / 1e6], bounds=bounds)
        figures.append(figure)
        facts[figure.name] = {"pages": taken["touched"], "bytes a page": taken["bytes"] / taken["touched"]}
    return figures, facts


def measure(quick: bool, progress: Progress) -> Section:
    """All of it."""
    section = Section("scale", "Scale of the directory", __doc__.partition("\n\n")[2] if __doc__ else "")
    section.figures += _pure(quick, progress)
    section.figures += _sockets(quick, progress)
    figures, facts = _memory(quick, progress)
    section.figures += figures
    section.facts |= facts
    return section
