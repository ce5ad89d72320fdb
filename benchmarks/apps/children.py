"""The processes that run the programs, and a cluster for those that run on dsm."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from benchmarks.apps.lines import TREE
from benchmarks.apps.programs import Peer, Program, Sizes
from dsm import launch

LIMIT_S: Final = 120
"""More than any run takes, however busy the machine."""

_ENVIRONMENT: Final = {
    "OPENBLAS_NUM_THREADS": "1",  # or one process computes on all processors, and several get into each other's way
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}
_HELLO: Final = "from mpi4py import MPI; assert MPI.COMM_WORLD.size == 2, 'mpirun and mpi4py are of different kinds'"


def _environment(more: dict[str, str]) -> dict[str, str]:
    paths = [str(TREE), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | _ENVIRONMENT | more


class Child:
    """A process that answers a line of JSON with a line of JSON, and says one when it is ready."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        self._arguments = arguments
        self._process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=_environment(environment),
            text=True,
            start_new_session=True,
        )
        self.answer()

    def tell(self, order: dict[str, Any]) -> None:
        """Give an order."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """What it says next; an error if it ends instead."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            how = launch.how_it_ended(self._process.wait())
            raise ChildProcessError(f"python -m {' '.join(self._arguments)} ended: {how}")
        return json.loads(line)

    def close(self) -> None:
        """End it, and what it may have started, when it has had the time to do that itself."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process.stdout.close()


class Ranks:
    """A directory, nodes with one process of an example on each, and one process on private memory."""

    def __init__(self, folder: Path, nodes: int) -> None:
        with contextlib.ExitStack() as stack:
            directory = launch.start_directory()
            stack.callback(directory.stop)
            self._services = [directory]
            self._private = stack.enter_context(contextlib.closing(Child("benchmarks.apps.rank", "private")))
            self._ranks = []
            for number in range(1, nodes + 1):
                socket = folder / f"{number}.sock"
                node = launch.start_node(directory.address, socket=socket, name=f"node{number}")
                stack.callback(node.stop)
                self._services.append(node)
                child = Child("benchmarks.apps.rank", "dsm", DSM_NODE=str(socket))
                self._ranks.append(stack.enter_context(contextlib.closing(child)))
            self._stack = stack.pop_all()

    def close(self) -> None:
        """End all of them."""
        self._stack.close()

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
        answers = [child.answer() for child in children]
        spent = self._services_cpu() - before
        for child in children:
            child.tell({})
            child.answer()
        return answers, spent

    def _services_cpu(self) -> float:
        """Seconds so far."""
        stats = [Path(f"/proc/{service.process.pid}/stat").read_text() for service in self._services]
        ticks = [stat.rpartition(")")[2].split()[11:13] for stat in stats]
        return sum(int(user) + int(system) for user, system in ticks) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def ranks(nodes: int) -> Iterator[tuple[Ranks, Path]]:
    """And a folder for results."""
    with tempfile.TemporaryDirectory(prefix="dsm-") as folder, contextlib.closing(Ranks(Path(folder), nodes)) as all_:
        yield all_, Path(folder)


# -- peers ---------------------------------------------------------------------------------------------


def missing(peer: Peer) -> str:
    """Why a peer cannot run here, with what to do; empty if it can."""
    if peer.needs and find_spec(peer.needs) is None:
        return f"{peer.needs} is not installed: make peers"
    if peer.needs != "mpi4py":
        return ""
    mpirun = _mpirun()
    if mpirun is None:
        return "there is no mpirun: make peers"
    hello = subprocess.run(
        [mpirun, "-n", "2", sys.executable, "-c", _HELLO],
        env=_environment(peer.environment),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=LIMIT_S,
    )
    return f"mpirun failed: {hello.stderr.strip()[-300:]}" if hello.returncode else ""


def _mpirun() -> str | None:
    """That of the environment of this Python before any other: it fits its mpi4py."""
    return shutil.which("mpirun", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))


class PeerProcesses:
    """Two processes of a peer, which keeps its files in ``folder``. Those of MPI are started for each run, since they
    compute while they wait."""

    def __init__(self, peer: Peer, function: str, folder: Path) -> None:
        self._command = ["benchmarks.apps.peer", peer.module, function]
        self._environment = peer.environment | {"RAY_TMPDIR": str(folder), "RAY_USAGE_STATS_ENABLED": "0"}
        self._child = None if peer.needs == "mpi4py" else Child(*self._command, **self._environment)

    def run(self, sizes: Sizes, result: Path) -> float:
        """The seconds that it took."""
        order = {"sizes": sizes, "result": str(result)}
        if self._child is None:
            return float(json.loads(self._once(order))["seconds"])
        self._child.tell(order)
        return float(self._child.answer()["seconds"])

    def _once(self, order: dict[str, Any]) -> str:
        command: Sequence[str] = [str(_mpirun()), "-n", "2", sys.executable, "-m", *self._command, json.dumps(order)]
        return subprocess.run(
            command,
            env=_environment(self._environment),
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            check=True,
            timeout=LIMIT_S,
        ).stdout

    def close(self) -> None:
        """End them."""
        if self._child is not None:
            self._child.close()
