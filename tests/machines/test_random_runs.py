"""The machines against chance: random accesses, deliveries, evictions and departures, each run from one printed seed.

After every step a writer must be alone with its page and every copy must have the last stored value; at the end nothing
may be open and all sides must agree. To look further, or again:
``DSM_SEEDS=0:20000 pytest tests/machines/test_random_runs.py``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from random import Random
from typing import Final, NamedTuple

import pytest
from simulated_cluster import REGION, Cluster, Node, Thread

from dsm.constants import EXTENT_BYTES

NODES: Final = 3
PAGES: Final = 8
EXTENT_PAGES: Final = 4
"""Two extents; pages are so large only to make them small."""

STEPS: Final = 150
SETTLE_STEPS_MAX: Final = 5000
"""A run that is still busy this long after the last access makes no progress."""


class Action(NamedTuple):
    """Something that may happen next. Each ``kind`` has its own weight in a run: some are quick in it, some slow."""

    kind: object
    text: str
    do: Callable[[], object]


class Run:
    """One run: what happens, and when, is drawn from ``seed``."""

    def __init__(self, seed: int, departures: int) -> None:
        self.chance = chance = Random(seed)
        self.cluster = Cluster(
            NODES,
            PAGES,
            page_size=EXTENT_BYTES // EXTENT_PAGES,
            frame_pages=chance.choice([1, 2, 4]),
            applications=chance.choice([1, 2]),
            threads=chance.choice([1, 2]),
        )
        self.departures = departures
        self.writes = chance.choice([0.2, 0.5, 0.9])
        self.hot = chance.choice([1, 2, PAGES])  # pages that are accessed
        self.trace: list[str] = []
        self._weights: dict[object, float] = {}

    def run(self) -> None:
        for _ in range(STEPS):
            self._step([*self._under_way(), *self._new()])
        for _ in range(SETTLE_STEPS_MAX):
            actions = list(self._under_way())
            if not actions:
                break
            self._step(actions)
        else:
            raise AssertionError("no end: somebody makes no progress")
        self.cluster.check_quiet()
        assert self.cluster.directory.rejected == 0
        left = NODES - len(self.cluster.nodes)
        assert left or not any(node.machine.late for node in self.cluster.nodes.values())

    def _step(self, actions: list[Action]) -> None:
        if not actions:
            return
        for kind in (action.kind for action in actions if action.kind not in self._weights):
            self._weights[kind] = self.chance.choice([1.0, 1.0, 0.2, 0.02])
        (action,) = self.chance.choices(actions, [self._weights[action.kind] for action in actions])
        self.trace.append(action.text)
        action.do()
        self.cluster.check()

    # -- what must happen sooner or later ----------------------------------------------------------------

    def _under_way(self) -> Iterator[Action]:
        cluster = self.cluster
        for channel in cluster.pending():
            message = cluster.channels[channel][0].message
            yield Action(channel, f"{channel.source} -> {channel.to} {message}", partial(cluster.deliver, channel))
        for node in cluster.nodes.values():
            name = f"n{node.number}"
            if node.holds:
                yield Action((name, "hold"), f"{name} hold of p{node.holds[0]} is over", node.expire_hold)
            if node.bulk:
                yield Action((name, "bulk"), f"{name} sends a frame: {next(iter(node.bulk))}", node.send_frame)
            for thread in node.threads():
                if thread.access is not None and not thread.asleep:
                    yield Action((name, "retry"), f"{thread} retries", partial(node.access, thread))
                elif thread.access is not None and not thread.reported:
                    yield Action((name, "fault"), f"{thread} faults", partial(node.report, thread))

    # -- what applications and operators may think of -----------------------------------------------------

    def _new(self) -> Iterator[Action]:
        for node in self.cluster.nodes.values():
            name = f"n{node.number}"
            for thread in node.threads():
                if thread.access is None:
                    yield Action("access", f"{thread} starts an access", partial(self._access, node, thread))
            yield Action("evict", f"{name} evicts", partial(self._evict, node))
            if node.applications:
                yield Action("ahead", f"{name} reads ahead", partial(self._ahead, node))
                yield Action("prefetch", f"{name} prefetches", partial(self._prefetch, node))
                if len(self.cluster.nodes) < NODES:
                    yield Action("reset", f"{name} resets", partial(self._reset, node))
            if len(node.applications) > 1 and self.chance.random() < 0.02:
                yield Action("detach", f"{node.applications[0]} detaches", partial(node.detach, node.applications[0]))
            if self.departures and self.chance.random() < 0.03:
                yield Action("leave", f"{name} leaves", partial(self._leave, node))

    def _range(self) -> tuple[int, int]:
        """Pages of one extent, often few."""
        start = self.chance.randrange(PAGES)
        end = (start // EXTENT_PAGES + 1) * EXTENT_PAGES
        return start, self.chance.randint(start + 1, end)

    def _is_write(self) -> bool:
        return self.chance.random() < self.writes

    def _access(self, node: Node, thread: Thread) -> None:
        thread.access = self.chance.randrange(self.hot), self._is_write()
        self._also(f"{thread}")
        node.access(thread)

    def _evict(self, node: Node) -> None:
        start, _ = self._range()
        stop = self.chance.randint(start + 1, PAGES)
        self._also(f"{start}:{stop}")
        node.run(node.machine.evict(REGION, start, stop))

    def _ahead(self, node: Node) -> None:
        (start, _), write = self._range(), self._is_write()
        stop = self.chance.randint(start + 1, PAGES + 2)  # a window may reach beyond the end
        sure = self.chance.random() < 0.5
        self._also(f"{start}:{stop} {write=} {sure=}")
        node.run(node.machine.read_ahead(REGION, start, stop, write, self.chance.choice(node.applications), sure))

    def _prefetch(self, node: Node) -> None:
        (start, stop), write = self._range(), self._is_write()
        application = self.chance.choice(node.applications)
        application.prefetches += 1
        self._also(f"{start}:{stop} {write=} for {application}")
        node.run(node.machine.prefetch(REGION, start, stop, write, application))

    def _reset(self, node: Node) -> None:
        start, stop = self._range()
        application = self.chance.choice(node.applications)
        application.prefetches += 1
        self._also(f"{start}:{stop} for {application}")
        node.run(node.machine.reset(REGION, start, stop, application))

    def _leave(self, node: Node) -> None:
        self.departures -= 1
        self.cluster.leave(node.number, lambda sent: self.chance.randint(0, sent))

    def _also(self, text: str) -> None:
        self.trace[-1] += f": {text}"


def _seeds(default: int) -> range:
    first, _, stop = os.environ.get("DSM_SEEDS", f"0:{default}").partition(":")
    return range(int(first), int(stop))


def _try(seed: int, departures: int) -> None:
    run = Run(seed, departures)
    try:
        run.run()
    except Exception as error:
        steps = "\n".join(run.trace)
        raise AssertionError(f"seed {seed}, {departures} departures: {error!r}\n{steps}") from error


@pytest.mark.parametrize("departures", [0, 1, 2])
def test_random_runs(departures: int) -> None:
    for seed in _seeds(80):
        _try(seed, departures)
