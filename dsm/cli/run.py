"""``dsm run``: a directory, N node agents and P processes of a command on this host; afterwards, nothing.

Two processes look after it. The one the user sees *guards* the other, which *conducts*: it starts the services and
the ranks and waits. Both are subreapers (PR_SET_CHILD_SUBREAPER): whatever loses its parent becomes a child of the
nearer one, so either can find and end every descendant, whoever else was killed. If both die at once, the kernel's
PR_SET_PDEATHSIG ends ranks and services, and a node ends the processes that are still attached to it.

Every rank leads a session of its own. It has no controlling terminal, so a terminal's Ctrl-C reaches only the guard
and is passed on exactly once; reading the terminal still works, because job control does not apply to it.

A rank that is blocked in a page fault ends only by SIGKILL, so ending is SIGTERM, ``STOP_TIMEOUT_S``, SIGKILL.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

import click

from dsm import launch, memory
from dsm.cli import descendants
from dsm.constants import SHARDS_MAX, STOP_TIMEOUT_S

_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_JOB_CONTROL: Final = (signal.SIGTSTP, signal.SIGCONT)


class _CannotRun(click.ClickException):
    exit_code = 126  # this and the next: as env(1), nohup(1) and every shell have it


class _NotFound(_CannotRun):
    exit_code = 127


@click.command("run", context_settings={"allow_interspersed_args": False})
@click.option("--nodes", type=click.IntRange(min=1), default=1, show_default=True, help="Node agents.")
@click.option("--procs", type=click.IntRange(min=1), help="Processes of CMD, spread over the nodes; as many as nodes.")
@click.option("--shards", type=click.IntRange(1, SHARDS_MAX), default=1, show_default=True, help="Of the directory.")
@click.argument("command", metavar="[--] CMD...", nargs=-1, required=True, type=click.UNPROCESSED)
def command(nodes: int, procs: int | None, shards: int, command: tuple[str, ...]) -> NoReturn:
    """Run processes of CMD on nodes of their own on this host.

    A directory and node agents are started for them and end with them.

    Each process finds DSM_NODE, DSM_RANK and DSM_WORLD_SIZE in its environment; standard input goes to rank 0. The
    exit code is the first that was not zero, 128 + n for a process killed by signal n. When a process fails or a
    service dies the others are ended.
    """
    if shutil.which(command[0]) is None:
        raise _NotFound(f"cannot run {command[0]}: there is no such program")
    signals = {n for n in (*_ENDING, *_JOB_CONTROL) if signal.getsignal(n) is not signal.SIG_IGN}  # as nohup wants
    signals |= {signal.SIGCHLD, signal.SIGTERM}
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # an inherited SIG_IGN would swallow every exit code
    usual = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    sockets = Path(tempfile.mkdtemp(prefix="dsm-"))
    descendants.adopt_orphans()
    guard = os.getpid()
    conductor = os.fork()
    if conductor:
        raise SystemExit(_guard(conductor, signals, sockets))
    os.setsid()
    descendants.adopt_orphans()
    memory.die_with_parent(signal.SIGTERM)
    if os.getppid() != guard:
        signal.raise_signal(signal.SIGTERM)
    raise SystemExit(_Conductor(command, procs or nodes, nodes, shards, sockets, signals, usual).conduct())


def _guard(conductor: int, signals: Collection[int], sockets: Path) -> int:
    """Pass signals on until the conductor has ended, then end what it may have left. The exit code."""
    while True:
        number = signal.sigwait(signals)
        if number == signal.SIGCHLD:
            pid, status = os.waitpid(conductor, os.WNOHANG)
            if pid:
                break
        else:
            os.kill(conductor, number)
            if number == signal.SIGTSTP:
                os.kill(os.getpid(), signal.SIGSTOP)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        how = launch.how_it_ended(code)
        _say(f"the process that looks after the ranks and their nodes died ({how}): all of them are ended")
    descendants.end(_soon())
    shutil.rmtree(sockets, ignore_errors=True)
    return _exit_code(code)


class _Conductor:
    """The services and the ranks of one run."""

    def __init__(
        self,
        command: tuple[str, ...],
        procs: int,
        nodes: int,
        shards: int,
        sockets: Path,
        signals: Collection[int],
        usual: Collection[int],
    ) -> None:
        self._command = command
        self._procs = procs
        self._nodes = nodes
        self._shards = shards
        self._sockets = sockets
        self._signals = signals
        self._usual = usual
        self._services: dict[int, tuple[str, launch.Service]] = {}
        self._ranks: dict[int, tuple[int, subprocess.Popen[bytes]]] = {}
        self._deadline: float | None = None
        self._killed = False
        self._signalled = 0
        self._code = 0

    def conduct(self) -> int:
        """Start everything, wait for the ranks, leave nothing. The exit code."""
        try:
            with self._interruptible():
                self._start_services()
            self._start_ranks()
            self._reap()  # a service that died while others were starting
            while self._ranks:
                self._next_event()
        finally:
            self._clean()
        return self._code

    # --- start ---------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Let a signal end the wait for a service that is starting; started by then, it inherits the usual mask."""

        def interrupt(number: int, _frame: FrameType | None) -> None:
            signal.pthread_sigmask(signal.SIG_BLOCK, self._signals)  # one is enough: the next must not disturb _clean
            raise SystemExit(128 + number)

        for number in set(_ENDING) & set(self._signals):
            signal.signal(number, interrupt)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._usual)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, self._signals)

    def _start_services(self) -> None:
        directory = launch.start_directory(shards=self._shards)
        self._services[directory.process.pid] = ("the directory", directory)
        for number in range(1, self._shards):
            shard = launch.start_directory(shard_of=directory.address)
            self._services[shard.process.pid] = (f"shard {number} of the directory", shard)
        for number in range(1, self._nodes + 1):
            name = f"node{number}"
            node = launch.start_node(directory.address, socket=self._sockets / f"{name}.sock", name=name)
            self._services[node.process.pid] = (f"the agent of {name}", node)

    def _start_ranks(self) -> None:
        for rank in range(self._procs):
            node = rank * self._nodes // self._procs + 1
            environment = os.environ | {
                "DSM_NODE": str(self._sockets / f"node{node}.sock"),
                "DSM_RANK": str(rank),
                "DSM_WORLD_SIZE": str(self._procs),
            }
            try:
                process = subprocess.Popen(
                    self._command,
                    env=environment,
                    stdin=None if rank == 0 else subprocess.DEVNULL,
                    start_new_session=True,
                    preexec_fn=self._before_exec,
                )
            except OSError as error:  # a script without its #! line, a process limit
                raise _CannotRun(f"cannot run {self._command[0]}: {error}") from error
            self._ranks[process.pid] = (rank, process)

    def _before_exec(self) -> None:
        memory.die_with_parent(signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._usual)

    # --- wait ----------------------------------------------------------------------------------------

    def _next_event(self) -> None:
        number = descendants.wait(self._signals, None if self._killed else self._deadline)
        if number is None:
            self._killed = True
            self._tell(signal.SIGKILL)
        elif number == signal.SIGCHLD:
            self._reap()
        elif number in _JOB_CONTROL:
            self._tell(signal.SIGSTOP if number == signal.SIGTSTP else number)
        else:
            self._signalled = number
            self._tell(number)
            self._deadline = self._deadline or _soon()

    def _reap(self) -> None:
        dead = dict(descendants.reap())
        for pid in dead.keys() & self._services.keys():  # first: a rank may have failed because of it
            self._service_died(pid, dead[pid])
        for pid in dead.keys() & self._ranks.keys():
            self._rank_ended(pid, dead[pid])

    def _service_died(self, pid: int, returncode: int) -> None:
        label, service = self._services.pop(pid)
        service.process.returncode = returncode
        _say(f"{label} died: {launch.how_it_ended(returncode)}")
        self._code = self._code or 1
        self._end()

    def _rank_ended(self, pid: int, returncode: int) -> None:
        rank, process = self._ranks.pop(pid)
        process.returncode = returncode
        if returncode == 0:
            return
        if self._ranks and self._deadline is None:
            _say(f"rank {rank} failed, the others are ended: {launch.how_it_ended(returncode)}")
        if not self._code:
            self._code = 128 + self._signalled if self._killed else _exit_code(returncode)
        self._end()

    def _end(self) -> None:
        """Ask the ranks to end, once. When ``STOP_TIMEOUT_S`` has passed they are killed."""
        if self._deadline is None:
            self._deadline = _soon()
            self._tell(signal.SIGTERM)

    def _tell(self, number: int) -> None:
        """Signal the ranks with all of their process groups, and what dead ranks have left."""
        for pid in self._ranks:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, number)
        for pid in descendants.children() - self._ranks.keys() - self._services.keys():
            descendants.tell(pid, number)

    # --- end -----------------------------------------------------------------------------------------

    def _clean(self) -> None:
        """End ranks, then what they left (their node still serves their faults), then nodes, then the directory."""
        if self._ranks:
            self._end()
        while self._ranks:
            self._next_event()
        descendants.end(self._deadline or _soon(), self._services)
        services = [service for _, service in self._services.values()]
        for service in services[self._shards :]:
            service.process.terminate()
        for service in reversed(services):
            service.stop()
        descendants.end(time.monotonic())
        shutil.rmtree(self._sockets, ignore_errors=True)


def _soon() -> float:
    return time.monotonic() + STOP_TIMEOUT_S


def _exit_code(returncode: int) -> int:
    return returncode if returncode >= 0 else 128 - returncode


def _say(text: str) -> None:
    print("dsm run:", text, file=sys.stderr, flush=True)
