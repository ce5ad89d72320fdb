"""A cluster of real services on this host for one test, the applications that run on it, and that nothing of it stays.

An application is a function of a test module (see :meth:`Cluster.start`), run by a process of its own: the test's
process never attaches to a region and never faults, since a thread in a page fault holds the GIL. Everything that a
test starts carries a mark in its environment, by which it is found again whoever its parent is.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Final

from interrupting import postponed

from dsm import asking, launch, local, seal, wire
from dsm.seal import Seal

LIMIT_S: Final = 60.0
"""The hard limit of one application, and of everything that is waited for. Nothing should ever come near it."""

_SIGNAL_S: Final = 0.5
"""How long a wait lasts before Python looks for signals. One that arrives in another thread, or in this one just before
it begins to wait, does not wake it: Python only takes a note of it until this thread runs again."""

_HERE: Final = Path(__file__).resolve().parent
TREE: Final = _HERE.parents[1]
_MARK: Final = "DSM_TEST_ID"
END: Final = object()

_PRELUDE: Final = """\
from __future__ import annotations
import contextlib, fcntl, gc, io, itertools, multiprocessing, os, pickle, random, resource, signal, socket
import subprocess, sys, threading, time, traceback, zlib
from pathlib import Path
from typing import Any
import numpy as np
import dsm
from dsm import local, memory, wire
from dsm.uffd import Userfaultfd, open_device
from application import attach_by_hand, hear, main, map_by_hand, raised, say

{source}

if __name__ == "__main__":
    main({name}, {seconds})
"""


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for a condition. Fails with ``what`` after LIMIT_S."""
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, f"in vain waited for: {what}"
        time.sleep(0.005)


def is_stopped(pid: int) -> bool:
    """By SIGSTOP."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def worker(pid: int) -> int:
    """The process that does the work of a service: of a node the agent, which is the child of its keeper."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[0]) if children else pid


def descriptors(pid: int, kind: str = "") -> int:
    """How many descriptors of a process have ``kind`` in what /proc says of them."""
    found = 0
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found += kind in os.readlink(entry)
    return found


class Child:
    """A running application. What it says and hears are lines of JSON on its standard output and input."""

    def __init__(self, process: subprocess.Popen[bytes], limit_s: float) -> None:
        self.process = process
        self.pid = process.pid
        self.stderr = ""
        self._deadline = time.monotonic() + limit_s
        self._said: queue.Queue[Any] = queue.Queue()
        self._last: Any = None
        self._readers = [threading.Thread(target=self._read_out), threading.Thread(target=self._read_err)]
        for reader in self._readers:
            reader.start()

    def _read_out(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self._said.put(json.loads(line))
        self._said.put(END)

    def _read_err(self) -> None:
        for line in self.process.stderr or ():
            self.stderr += line.decode(errors="replace")

    def hear(self) -> Any:
        """The next thing it says. Fails if it ends, or says nothing within its limit."""
        said = self.hear_or_end()
        assert said is not END, f"the application ended ({self.wait()}) instead of saying something:\n{self.stderr}"
        self._last = said
        return said

    def hear_or_end(self) -> Any:
        """The next thing it says, or END if it has ended instead."""
        while (left := self._deadline - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                said = self._said.get(timeout=min(left, _SIGNAL_S))
                if said is END:
                    self._said.put(END)  # it stays the end
                return said
        self.process.kill()
        self.finish()
        raise AssertionError(f"the application hung; its standard error:\n{self.stderr}")

    def tell(self, value: object = None) -> None:
        """Say something to it."""
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):  # who listens to it next learns that it has ended, and how
            self.process.stdin.write(json.dumps(value).encode() + b"\n")
            self.process.stdin.flush()

    def wait(self) -> int:
        """Its exit code, -n for signal n, once it has ended and all its children have closed its output."""
        while (said := self.hear_or_end()) is not END:
            self._last = said
        return self.finish()

    def result(self) -> Any:
        """What its function returned. Fails if it failed."""
        code = self.wait()
        assert code == 0, f"exit code {code}:\n{self.stderr}"
        return self._last

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def finish(self) -> int:
        """Wait for its end, and for that of everything it has said. May be repeated."""
        code = self.process.wait(LIMIT_S)
        for reader in self._readers:
            reader.join(LIMIT_S)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            with contextlib.suppress(BrokenPipeError):
                if pipe:
                    pipe.close()
        return code


class Cluster:
    """``nodes`` agents and a directory of ``shards`` (nothing at all if 0), and a folder with a short name for sockets
    and files. ``lasting``: another directory can take the place of the one that there is. ``sealed``: it has a key."""

    def __init__(self, nodes: int, shards: int = 1, *, lasting: bool = False, sealed: bool = False) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="t-", dir="/tmp"))  # a socket path has 107 bytes at most
        self.mark = f"{_MARK}={uuid.uuid4()}"
        os.environ[_MARK] = self.mark.partition("=")[2]  # the launcher hands the environment on
        self.children: list[Child] = []
        self._logs: list[IO[bytes]] = []
        self.nodes: list[launch.Service] = []
        self.ended: set[int] = set()
        """Pids of services that the test itself ends, or that it expects to fail."""
        self._files = 0
        self.shards: list[launch.Service] = []
        """Of the directory, beside its first."""
        self.key = self.home / "key" if sealed else None
        self.seal: Seal | None = None
        if self.key is not None:
            seal.make(self.key)
            self.seal = Seal(self.key)
        self.state = self.home / "directory.state" if lasting else None
        if nodes:
            self.directory = self._start_directory(launch.LOOPBACK, shards)
        for number in range(1, shards):
            log = self._log(f"shard{number}")
            self.shards.append(launch.start_directory(shard_of=self.directory.address, key=self.key, stderr=log))
        for number in range(nodes):
            self.add_node(f"node{number}")

    def _start_directory(self, address: str, shards: int = 1) -> launch.Service:
        log = self._log("directory")
        return launch.start_directory(address, shards=shards, state=self.state, key=self.key, stderr=log)

    def kill_directory(self) -> None:
        """Nothing that it has not written down is left of it."""
        self.directory.process.kill()
        self.directory.process.wait(LIMIT_S)

    def begin_again(self) -> None:
        """Another directory takes its place."""
        self.directory = self._start_directory(self.directory.address)

    def add_node(self, name: str, with_parent: bool = True) -> launch.Service:
        """Start one more agent, by default as a launcher does."""
        path = self.home / f"{len(self.nodes)}.sock"
        log = self._log(name)
        node = launch.start_node(
            self.directory.address, socket=path, name=name, key=self.key, with_parent=with_parent, stderr=log
        )
        self.nodes.append(node)
        return node

    def _log(self, name: str) -> IO[bytes]:
        log = (self.home / f"{name}.log").open("ab", buffering=0)
        self._logs.append(log)
        return log

    def path(self, node: int) -> Path:
        """The socket of a node."""
        return self.home / f"{node}.sock"

    # -- applications ------------------------------------------------------------------------------------

    def start(
        self,
        function: Callable[..., Any],
        *arguments: object,
        node: int | None = 0,
        also: tuple[Callable[..., Any], ...] = (),
        limit_s: float = LIMIT_S,
        **options: Any,
    ) -> Child:
        """Run a function of the test module, whose text is copied, in a process of its own, attached to ``node``.

        ``also``: functions it uses. ``arguments`` and what it returns travel as JSON. ``options`` are Popen's.
        """
        self._files += 1
        script = self.home / f"{function.__name__}_{self._files}.py"
        source = "\n\n".join(textwrap.dedent(inspect.getsource(each)) for each in (*also, function))
        script.write_text(_PRELUDE.format(source=source, name=function.__name__, seconds=limit_s - 5))
        command = [sys.executable, str(script), json.dumps(arguments)]
        environment = {name: value for name, value in os.environ.items() if name != "DSM_NODE"}
        environment |= {"PYTHONPATH": f"{TREE}{os.pathsep}{_HERE}"} | options.pop("env", {})
        if node is not None:
            environment["DSM_NODE"] = str(self.path(node))
        streams: dict[str, Any] = {name: subprocess.PIPE for name in ("stdin", "stdout", "stderr")} | options
        process: subprocess.Popen[bytes] = subprocess.Popen(command, cwd=self.home, env=environment, **streams)
        self.children.append(child := Child(process, limit_s))
        return child

    def run(self, function: Callable[..., Any], *arguments: object, **options: Any) -> Any:
        """Start, and wait for the result."""
        return self.start(function, *arguments, **options).result()

    def everywhere(self, function: Callable[..., Any], *arguments: object, each: int = 1, **options: Any) -> list[Any]:
        """Run ``function(rank, ranks, *arguments)`` on every node, ``each`` times, at once; the results by rank."""
        ranks = len(self.nodes) * each
        children = [
            self.start(function, rank, ranks, *arguments, node=rank % len(self.nodes), **options)
            for rank in range(ranks)
        ]
        return [child.result() for child in children]

    # -- what the agents have ----------------------------------------------------------------------------

    def ask(self, question: wire.Message, node: int = 0) -> Any:
        """The answer of a node to one message."""
        with local.connect(self.path(node), LIMIT_S) as sock:
            sock.settimeout(LIMIT_S)
            local.send(sock, question)
            return local.receive(sock)[0]

    def status(self, node: int = 0) -> dict[str, Any]:
        """As ``dsm status`` has it."""
        answer = self.ask(wire.Query(0, "status", 0, 0, 0), node)
        assert isinstance(answer, wire.Answer), answer
        return answer.value

    def agent(self, node: int) -> int:
        """The process of an agent."""
        keeper = self.nodes[node].process.pid
        until(lambda: worker(keeper) != keeper, "the agent")
        return worker(keeper)

    def descriptors(self, node: int, kind: str) -> int:
        """How many descriptors of an agent have ``kind`` in what /proc says of them."""
        return descriptors(self.agent(node), kind)

    def all_gone(self, node: int) -> bool:
        """Does an agent have nothing of any application any more?"""
        return not any(self.descriptors(node, kind) for kind in ("[userfaultfd]", "[pidfd]"))

    def memory(self, node: int) -> int:
        """How many regions an agent has memory of."""
        return self.descriptors(node, "memfd:dsm:")

    @contextlib.contextmanager
    def stopped(self, node: int) -> Iterator[None]:
        """Nothing that needs this node is answered meanwhile. Shorter than a lease, or it is no member any more."""
        pids = self.nodes[node].process.pid, self.agent(node)  # the keeper would put another agent in the place of one
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            until(lambda: all(is_stopped(pid) for pid in pids), "the stop")
            yield
        finally:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):  # it was killed meanwhile
                    os.kill(pid, signal.SIGCONT)

    def services(self) -> list[launch.Service]:
        """The nodes, then the directory."""
        return [*self.nodes, *self.shards, *([self.directory] if self.nodes else [])]

    def alive(self, service: launch.Service) -> bool:
        """Is it running, and meant to?"""
        return service.process.pid not in self.ended and service.process.poll() is None

    # -- the end -----------------------------------------------------------------------------------------

    def processes(self) -> dict[int, str]:
        """Everything alive that carries the mark: pid and command."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                with contextlib.suppress(OSError):
                    if self.mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                        found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
        return found

    def check(self) -> None:
        """Nothing of the test's applications is left in the agents; then end the services: nothing of them is left."""
        for service in self.services():
            if service.process.pid not in self.ended:
                assert service.process.poll() is None, f"a service died:\n{self.logs()}"
        assert [child.process.args for child in self.children if child.process.poll() is None] == []
        nodes = [number for number, node in enumerate(self.nodes) if self.alive(node)]
        for node in nodes:
            until(lambda node=node: self.all_gone(node), f"node {node} to close what it had of applications")  # type: ignore[misc]
        if nodes:
            # Of the directory itself: what a node tells an application may be too much for one message.
            status = asking.ask(self.directory.address, wire.Query(0, "status", 0, 0, 0), LIMIT_S, self.seal)
            for region in status["regions"]:
                if not region["unlinked"]:
                    assert self.ask(wire.Unlink(0, region["name"]), nodes[0]) == wire.Ready()
            for node in nodes:
                until(lambda node=node: self.memory(node) == 0, f"node {node} to free its memory")  # type: ignore[misc]
        self._check_services()
        until(lambda: not self.processes(), f"the end of {self.processes()}")
        left = [path.name for path in self.home.rglob("*") if path.is_socket()]
        assert left == []

    def _check_services(self) -> None:
        for service in self.services():
            if service.process.pid not in self.ended:
                service.stop()
                assert service.process.returncode == 0, f"exit code {service.process.returncode}:\n{self.logs()}"
        assert "Traceback" not in self.logs()

    def logs(self) -> str:
        """What the services wrote on their standard error."""
        return "".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in sorted(self.home.glob("*.log")))

    def clean(self) -> None:
        """End whatever a failed test has left."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for child in self.children:
            child.finish()
        for service in self.services():
            service.process.wait(LIMIT_S)
        for log in self._logs:
            log.close()
        os.environ.pop(_MARK, None)
        shutil.rmtree(self.home)


@contextlib.contextmanager
def running(nodes: int) -> Iterator[Cluster]:
    """A cluster for what is no test of pytest, or for a part of one. Checked and cleaned up like a test's."""
    cluster = Cluster(nodes)
    try:
        yield cluster
        cluster.check()
    finally:
        with postponed():
            cluster.clean()
