"""Regions with replicas: of what was released nothing is lost with one node, whenever that dies."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from directory.machine import PageMachine
from dsm.constants import LEASE_S, PAGE_BYTES
from dsm.errors import Violation
from nodes.memory import RegionMemory

from .cluster import SimulatedCluster
from .faults import Faults
from .kernel import KernelNoise
from .programs import WORD, Load, Process, Program, Store, acquire, attach, detach, flush, release
from .workloads import Workload
from .world import MS, S, SimulationError, World

SEEDS = 60
STEP = PAGE_BYTES // WORD


class Savers(Workload):
    """Each stores to pages of its own, and to some of all under a lock, and releases what it has stored."""

    def worker(self, process: Process, index: int) -> Program:
        region = yield from attach(process, self.name, self.pages * PAGE_BYTES, replicas=1)
        for turn in range(1, self.rounds + 1):
            for page in range(index, self.pages - 2, self.parties):
                if self.chance.random() < 0.7:
                    yield Store(region, page * STEP + turn % 7, turn * 100 + index)
            held = yield from acquire(process, self.name)
            for page in (self.pages - 2, self.pages - 1):
                value = yield Load(region, page * STEP)
                yield Store(region, page * STEP, value + 1)
            yield from flush(process, region)
            yield from release(process, self.name, held)
            yield Load(region, self.chance.randrange(self.pages) * STEP + turn % 7)
        yield from detach(process, region)


def run(seed: int) -> World:
    """A node dies at any time; everything else that happens is harmless."""
    world, plan = World(seed), Random(seed)
    cluster = SimulatedCluster(world, plan.choice((2, 3, 3, 4)), KernelNoise(0, 0.2, 0.02, 0.1, 0, 0), (20, 400))
    with cluster.kernel.installed():
        cluster.workloads.append(Savers(cluster, "saved", 4, 12, plan.choice((4, 8, 20)), PAGE_BYTES))
        kinds = ["cut connection", "broken connection", "slow link", "stopped agent"]
        faults = Faults(cluster, plan.sample(kinds, plan.randrange(len(kinds))), 3, 20 * MS)
        victim = cluster.hosts[plan.choice(list(cluster.hosts))]
        world.after(world.spread(MS // 2, 60 * MS), _die, cluster, victim)
        until = 80 * S
        while world.now < until and (cluster.alive or world.pending or not faults.over):
            assert world.step(), "nothing happens any more"
        assert not cluster.alive, "some process waits for ever"
        world.run_for(int((LEASE_S + 5) * S))  # perhaps only the dead had processes
        cluster.oracle.check_quiet()
    return world


def _die(cluster: SimulatedCluster, victim: Any) -> None:
    if victim.busy:  # in the middle of a system call of the simulation's own
        cluster.world.after(1000, _die, cluster, victim)
        return
    cluster.oracle.departed(victim)
    victim.die()


def test_nothing_that_was_released_is_lost() -> None:
    revived = sum(run(seed).counts["word that is as it was released"] for seed in range(SEEDS))
    assert revived


def keep_nothing(patch: pytest.MonkeyPatch) -> None:
    """Who gives a page up for another writer forgets it, as in any region."""
    patch.setattr(RegionMemory, "give_up", RegionMemory.drop)


def keep_what_is_old(patch: pytest.MonkeyPatch) -> None:
    """Only the first version of a page is kept."""
    give_up = RegionMemory.give_up
    kept: set[tuple[int, int]] = set()

    def lazy(self: RegionMemory, start: int, count: int) -> None:
        if (id(self), start) in kept:
            self.drop(start, count)
        else:
            kept.add((id(self), start))
            give_up(self, start, count)

    patch.setattr(RegionMemory, "give_up", lazy)


def revive_nobody(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PageMachine, "_revive", lambda *_: None)


def release_at_once(patch: pytest.MonkeyPatch) -> None:
    """A release does not wait for the other node."""
    from directory.cluster import Cluster

    patch.setattr(Cluster, "_only_with", lambda *_: [])


@pytest.mark.parametrize("bug", [keep_nothing, keep_what_is_old, revive_nobody, release_at_once])
def test_a_bug_is_found(bug: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    bug(monkeypatch)
    with pytest.raises((SimulationError, AssertionError, Violation)):
        for seed in range(SEEDS):
            run(seed)
