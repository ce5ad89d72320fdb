"""The machines against chance: random accesses, deliveries, evictions and departures, each run from one printed seed.

After every step a writer must be alone with its page and every copy must have the last stored value; at the end nothing
may be open and all sides must agree. To look further, or again: ``DSM_SEEDS=0:20000 pytest tests/machines/test_random_runs.py``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from random import Random
from typing import Final

import pytest
from simulated_cluster import REGION, Cluster, Node, Thread

from dsm.constants import EXTENT_BYTES

PAGES: Final = 8
EXTENT_PAGES: Final = 4
"""Two extents; pages are so large only to make them small."""

STEPS: Final = 150
SETTLE_STEPS_MAX: Final = 5000
"""A run that is still busy this long after the last access makes no progress."""

Action = Callable[[], object]


class Run:
    """One run: what may happen next is drawn from ``chance``."""

    def __init__(self, seed: int, departures: int) -> None:
        self.chance = chance = Random(seed)
        self.cluster = Cluster(
            3,
            PAGES,
            page_size=EXTENT_BYTES // EXTENT_PAGES,
            frame_pages=chance.choice([1, 2, 4]),
            applications=chance.choice([1, 2]),
            threads=chance.choice([1, 2]),
        )
        self.departures = self.departures_at_most = departures
        self.writes = chance.choice([0.2, 0.5, 0.9])
        self.hot = chance.choice([1, 2, PAGES])  # pages that are accessed
        self.trace: list[str] = []

    def run(self) -> None:
        for _ in range(STEPS):
            self._step([*self._under_way(), *self._new()])
        for _ in range(SETTLE_STEPS_MAX):
            actions = self._under_way()
            if not actions:
                break
            self._step(actions)
        else:
            raise AssertionError("no end")
        self.cluster.check_quiet()
        assert self.cluster.directory.rejected == 0

    def _step(self, actions: list[tuple[str, Action]]) -> None:
        name, action = self.chance.choice(actions)
        self.trace.append(name)
        action()
        self.cluster.check()

    def _under_way(self) -> list[tuple[str, Action]]:
        """All that must happen sooner or later."""
        cluster = self.cluster
        actions: list[tuple[str, Action]] = [
            (f"deliver {channel.source}->{channel.to} {cluster.channels[channel][0].message}",
             lambda channel=channel: cluster.deliver(channel))  # type: ignore[misc]
            for channel in cluster.pending()
        ]  # fmt: skip
        for node in cluster.nodes.values():
            if node.holds:
                actions.append((f"n{node.number} hold over p{node.holds[0]}", node.expire_hold))
            if node.bulk:
                actions.append((f"n{node.number} sends a frame of {node.bulk[0]}", node.send_frame))
            for application in node.applications:
                for thread in application.threads:
                    if thread.access is not None and not thread.asleep:
                        actions.append((f"{thread} retries", lambda node=node, thread=thread: node.access(thread)))  # type: ignore[misc]
                    elif thread.access is not None and not thread.reported:
                        actions.append((f"{thread} faults", lambda node=node, thread=thread: node.report(thread)))  # type: ignore[misc]
        return actions

    def _new(self) -> list[tuple[str, Action]]:
        """What applications and operators may think of."""
        actions: list[tuple[str, Action]] = []
        chance = self.chance
        for node in self.cluster.nodes.values():
            idle = [t for application in node.applications for t in application.threads if t.access is None]
            page, write = chance.randrange(self.hot), chance.random() < self.writes
            start, stop = self._range()
            for thread in idle:
                actions.append((
                    f"{thread} {'stores' if write else 'reads'} p{page}",
                    lambda node=node, thread=thread, page=page, write=write: self._access(node, thread, page, write),  # type: ignore[misc]
                ))  # fmt: skip
            if chance.random() < 0.3:
                actions.append((f"n{node.number} evicts {start}:{stop}",
                    lambda node=node, start=start, stop=stop: node.run(node.machine.evict(REGION, start, stop))))  # type: ignore[misc]  # fmt: skip
            if chance.random() < 0.3 and node.applications:
                actions.append((f"n{node.number} ahead {start}:{stop} {write}",
                    lambda node=node, start=start, stop=stop, write=write: self._ahead(node, start, stop, write)))  # type: ignore[misc]  # fmt: skip
            if chance.random() < 0.3 and node.applications:
                actions.append((f"n{node.number} prefetches {start}:{stop} {write}",
                    lambda node=node, start=start, stop=stop, write=write: self._prefetch(node, start, stop, write)))  # type: ignore[misc]  # fmt: skip
            if chance.random() < 0.02 and len(node.applications) > 1:
                actions.append((f"{node.applications[0]} detaches",
                    lambda node=node: node.detach(node.applications[0])))  # type: ignore[misc]  # fmt: skip
        if self.departures and chance.random() < 0.1:
            number = chance.choice(sorted(self.cluster.nodes))
            actions.append((f"n{number} leaves", lambda: self._leave(number)))
        return actions or [("nothing", lambda: None)]

    def _range(self) -> tuple[int, int]:
        start = self.chance.randrange(PAGES)
        return start, self.chance.randint(start + 1, PAGES)

    def _access(self, node: Node, thread: Thread, page: int, write: bool) -> None:
        thread.access = page, write
        node.access(thread)

    def _ahead(self, node: Node, start: int, stop: int, write: bool) -> None:
        application = self.chance.choice(node.applications)
        node.run(node.machine.read_ahead(REGION, start, stop, write, application))

    def _prefetch(self, node: Node, start: int, stop: int, write: bool) -> None:
        application = self.chance.choice(node.applications)
        stop = min(stop, (start // EXTENT_PAGES + 1) * EXTENT_PAGES)
        application.prefetches += 1
        node.run(node.machine.prefetch(REGION, start, stop, write, application))

    def _leave(self, number: int) -> None:
        self.departures -= 1
        self.cluster.leave(number, lambda sent: self.chance.randint(0, sent))


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
    for seed in _seeds(100):
        _try(seed, departures)
