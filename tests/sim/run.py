"""One run: everything drawn from a seed, the workloads with faults, healing, and what is demanded in the end."""

from __future__ import annotations

import traceback
from typing import Any, Final, NamedTuple

from dsm.constants import EXTENT_BYTES, PAGE_BYTES

from . import faults, workloads
from .cluster import SimulatedCluster
from .kernel import KernelNoise
from .workloads import Workload
from .world import S, SimulationError, World

_EVENTS_MAX: Final = 200_000
"""Of a cluster of the usual size; most runs need 4000."""
_LARGE_NODES: Final = 64
"""A cluster with more nodes has one workload, which uses all of them, and ten times as many events."""
_TIME_MAX: Final = 600 * S
"""Simulated. The longest faults and the leases that they cost take less than 100 s."""


class Run:
    """A cluster of ``nodes`` nodes, with faults of the ``kinds`` (each drawn if None), and everything else, as drawn
    from ``seed``."""

    def __init__(self, seed: int, nodes: int | None = None, kinds: list[str] | None = None) -> None:
        self.world = world = World(seed)
        chance = world.chance
        drawn = chance.choice((2, 2, 2, 3, 3, 3, 4, 4, 5, 6, 8, 11, 16))
        self.nodes = nodes or drawn
        noisy = chance.random() < 0.8
        self.noise = KernelNoise(
            again=chance.choice((0.0, 0.01, 0.2)) if noisy else 0.0,
            partial=chance.choice((0.0, 0.5)) if noisy else 0.0,
            spurious=chance.choice((0.0, 0.02, 0.3)) if noisy else 0.0,
            parallel=chance.choice((0.0, 0.2, 0.5)),
            preempted=chance.choice((0.0, 0.0, 0.05)),
            no_memory=chance.choice((0.0, 0.0, 0.05, 0.3)) if noisy else 0.0,
        )
        self.delays = chance.choice(((20, 60), (20, 400), (5, 5000)))
        self.cluster = SimulatedCluster(world, self.nodes, self.noise, self.delays)
        mood = chance.random()
        some = [] if mood < 0.15 else list(faults.MILD if mood < 0.55 else faults.KINDS)
        self.kinds = sorted(chance.sample(some, chance.randint(1, len(some)))) if some else []
        if kinds is not None:
            self.kinds = kinds
        self.fault_count = chance.randint(1, 10)
        self.span = world.spread(*faults.EVERY_MS)
        with self.cluster.kernel.installed():
            if self.nodes > _LARGE_NODES:
                self._start_large()
            else:
                self._start_workloads()
        self.faults = faults.Faults(self.cluster, self.kinds, self.fault_count, self.span)

    def _start_workloads(self) -> None:
        chance = self.world.chance
        for kind in chance.sample(workloads.ALL, chance.randint(1, 3)):
            workers = chance.randint(2, min(6, self.nodes + 2))
            page_size = chance.choice((PAGE_BYTES, PAGE_BYTES, 4 * PAGE_BYTES))
            pages = chance.choice((1, 2, 5, 12, 24, 40))
            rounds = chance.randint(4, 40)
            if chance.random() < 0.05:  # more than one extent
                pages, rounds = EXTENT_BYTES // page_size + chance.randint(1, 40), 8
            self._start(kind, workers, rounds, pages, page_size)

    def _start_large(self) -> None:
        """As many processes as nodes, but a short life of each."""
        kind = self.world.chance.choice(workloads.LARGE)
        self._start(kind, self.nodes, 2, self.nodes // 2, PAGE_BYTES)

    def _start(self, kind: type[Workload], workers: int, rounds: int, pages: int, page_size: int) -> None:
        self.cluster.workloads.append(kind(self.cluster, kind.__name__.lower(), workers, rounds, pages, page_size))

    def describe(self) -> str:
        """The configuration, for people."""
        noise = ", ".join(f"{name} {value:g}" for name, value in vars(self.noise).items())
        return "\n".join(
            [
                f"{self.nodes} nodes; messages take {self.delays[0]} to {self.delays[1]} us; kernel: {noise}",
                f"workloads: {', '.join(map(repr, self.cluster.workloads))}",
                f"faults: {self.fault_count} within {self.span / 1e6:.1f} ms, of {', '.join(self.kinds) or 'no kind'}",
            ]
        )

    def describe_failure(self, error: BaseException, lines: int) -> str:
        """What somebody who has to find the cause wants to see."""
        world = self.world
        where = "".join(traceback.format_tb(error.__traceback__)[-3:])
        return "\n".join(
            [
                f"seed {world.seed} FAILED after {world.events} events, {world.now / S:.6f} s simulated",
                self.describe(),
                "--- the last events ---",
                *world.tail(lines),
                f"--- {type(error).__name__}: {error}",
                where,
            ]
        )

    def execute(self) -> None:
        """Run to the end. Raises :class:`SimulationError`, or whatever production code raises."""
        world = self.world
        with self.cluster.kernel.installed():
            self._until(lambda: self.faults.over, "the faults are over")
            self._end_the_stranded()
            self._until(lambda: not self.cluster.alive, "every thread has ended")
            self._until(lambda: not world.pending, "everything is quiet")
            for _ in range(2):  # two more rounds of heartbeats change nothing
                until = world.now + S
                self._until(lambda: world.now > until and not world.pending, "everything stays quiet")  # noqa: B023
            self.cluster.oracle.check_quiet()
            for workload in self.cluster.workloads:
                workload.check()

    def _until(self, done: Any, what: str) -> None:
        world = self.world
        while not done():
            if not world.step():
                raise SimulationError(f"nothing happens any more, before {what}")
            if world.events > _EVENTS_MAX * (10 if self.nodes > _LARGE_NODES else 1) or world.now > _TIME_MAX:
                raise SimulationError(f"no convergence: not {what}; still waiting:\n  " + self._who_waits())

    def _end_the_stranded(self) -> None:
        """Processes whose agent has gone wait for ever, as is said in the README: somebody ends them."""
        for process in self.cluster.processes():
            if not process.host.serving:
                process.kill("an operator")

    def _who_waits(self) -> str:
        waiting = [t for process in self.cluster.processes() for t in process.threads if not t.over]
        return "\n  ".join(map(repr, waiting)) or "nobody"


class Outcome(NamedTuple):
    """What one seed came to; ``failure``, and what it was in short, are empty if it went well."""

    seed: int
    nodes: int | None
    failure: str
    events: int
    simulated_s: float
    counts: dict[str, int]
    trace_hash: str
    what: str

    @property
    def replay_command(self) -> str:
        """What to type to see it again."""
        nodes = f" --nodes {self.nodes}" if self.nodes else ""
        return f"python -m tests.sim --seed {self.seed}{nodes}"


def simulate(task: tuple[int, int | None, int]) -> Outcome:
    """Run one seed: with a number of nodes, or as drawn; with so many lines of its trace if it fails."""
    seed, nodes, lines = task
    run = Run(seed, nodes)
    failure = what = ""
    try:
        run.execute()
    except Exception as error:
        failure, what = run.describe_failure(error, lines), f"{type(error).__name__}: {error}"
    world = run.world
    return Outcome(seed, nodes, failure, world.events, world.now / S, dict(world.counts), world.trace_hash, what)
