"""The processes that run the programs, and a cluster for those that run on dsm."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from benchmarks.application import Cluster, on
from benchmarks.apps.lines import TREE
from benchmarks.apps.programs import Program, Rival, Sizes
from benchmarks.child import Child, Died, answers, python

_ENVIRONMENT: Final = {
    "OPENBLAS_NUM_THREADS": "1",  # or one process computes on all processors, and several get into each other's way
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}
_HELLO: Final = """\
from mpi4py import MPI
assert MPI.COMM_WORLD.size == 2, "mpirun and mpi4py are of different kinds"
if MPI.COMM_WORLD.rank == 0:
    print("null", flush=True)
"""


def _environment(more: dict[str, str]) -> dict[str, str]:
    paths = [str(TREE), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths)} | _ENVIRONMENT | more


class Ranks:
    """A cluster with one process of an example on each node, and one process on private memory."""

    def __init__(self, folder: Path, nodes: int, done: contextlib.ExitStack) -> None:
        cluster = Cluster(folder, done)
        self._services = cluster.services
        self._private = self._rank(cluster, "private", {})
        self._ranks = [self._rank(cluster, "dsm", on(cluster.node())) for _ in range(nodes)]

    def _rank(self, cluster: Cluster, memory: str, environment: dict[str, str]) -> Child:
        command, name = python("benchmarks.apps.rank", memory), f"a rank on {environment.get('DSM_NODE', memory)}"
        child = Child(command, _environment(environment), name)
        cluster.keep(child)
        child.answer()
        return child

    def run(self, program: Program, sizes: Sizes, nodes: int, result: Path) -> tuple[list[dict[str, Any]], float]:
        """What every rank has measured, and the processor time of the services in seconds; ``nodes=0``: privately."""
        children = self._ranks[:nodes] or [self._private]
        before = self._services_cpu()
        for rank, child in enumerate(children):
            child.tell(
                {
                    "module": program.name,
                    "function": program.function,
                    "sizes": sizes,
                    "barriers_before": program.barriers_before,
                    "rank": rank,
                    "ranks": len(children),
                    "result": str(result),
                }
            )
        measured = answers(*children)
        spent = self._services_cpu() - before
        for child in children:
            child.ask()
        return measured, spent

    def _services_cpu(self) -> float:
        """Seconds so far."""
        stats = [Path(f"/proc/{service.process.pid}/stat").read_text() for service in self._services.values()]
        ticks = [stat.rpartition(")")[2].split()[11:13] for stat in stats]
        return sum(int(user) + int(system) for user, system in ticks) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def ranks(nodes: int) -> Iterator[tuple[Ranks, Path]]:
    """And a folder for results."""
    with tempfile.TemporaryDirectory(prefix="dsm-") as folder, contextlib.ExitStack() as done:
        yield Ranks(Path(folder), nodes, done), Path(folder)


# -- rivals --------------------------------------------------------------------------------------------


class Absent(Exception):
    """A rival cannot run here; what to do, or why."""


class RivalProcesses:
    """Two processes of a rival, which keeps its files in ``folder``. Those of MPI are started for each run, since they
    compute while they wait."""

    def __init__(self, rival: Rival, function: str, folder: Path) -> None:
        self._needs = rival.needs
        self._command = python("benchmarks.apps.rival", rival.module, function)
        files = {"RAY_TMPDIR": str(folder), "RAY_USAGE_STATS_ENABLED": "0"}
        self._environment = _environment(rival.environment | files)
        self._mpirun: str | None = None
        self._child: Child | None = None

    def start(self) -> None:
        """Raises :class:`Absent` if it is not installed, or does not start."""
        if self._needs and find_spec(self._needs) is None:
            raise Absent(f"{self._needs} is not installed: make peers")
        try:
            if self._needs == "mpi4py":
                self._mpirun = _mpirun()
                self._with_mpi([sys.executable, "-c", _HELLO])
            else:
                self._child = Child(self._command, self._environment)
                self._child.answer()
        except Died as died:
            raise Absent(f"is installed, but does not run here. {died}") from died

    def run(self, sizes: Sizes, result: Path) -> float:
        """The seconds that it took."""
        order = {"sizes": sizes, "result": str(result)}
        if self._child is None:
            return float(self._with_mpi([*self._command, json.dumps([order])])["seconds"])
        return float(self._child.ask(order)["seconds"])

    def _with_mpi(self, command: list[str]) -> Any:
        """What two processes say that do one thing."""
        child = Child([str(self._mpirun), "-n", "2", *command], self._environment)
        try:
            return child.answer()
        finally:
            child.end()

    def close(self) -> None:
        """End them."""
        if self._child is not None:
            self._child.end()


def _mpirun() -> str:
    """That of the environment of this Python before any other: it fits its mpi4py."""
    places = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    found = shutil.which("mpirun", path=os.pathsep.join(places))
    if found is None:
        raise Absent("there is no mpirun: make peers")
    return found
