"""Conducts a run: starts its services and its ranks, passes signals on, and ends everything.

Every rank leads a session of its own. It has no controlling terminal, so a terminal's Ctrl-C reaches only the guard
(run.py) and is passed on exactly once; reading the terminal still works, because job control does not apply to it.

A rank that is blocked in a page fault ends only by SIGKILL, so ending is SIGTERM, ``STOP_TIMEOUT_S``, SIGKILL.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from types import FrameType
from typing import Final, Protocol

import click

from dsm import launch, memory
from dsm.cli import descendants
from dsm.cli.output import Output
from dsm.constants import STOP_TIMEOUT_S

ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
JOB_CONTROL: Final = (signal.SIGTSTP, signal.SIGCONT)
TIMED_OUT: Final = 124
"""As timeout(1) has it."""


class CannotRun(click.ClickException):
    exit_code = 126  # this and the next: as env(1), nohup(1) and every shell have it


class NotFound(CannotRun):
    exit_code = 127


class Part:
    """A process of a run: a rank, or the ranks of one host. ``title``: for people. ``prefix``: for its lines."""

    def __init__(
        self, title: str, command: list[str], environment: dict[str, str], *, prefix: bytes | None = None
    ) -> None:
        self.title = title
        self.command = command
        self.environment = environment
        self.prefix = prefix
        self.stdin: int | None = subprocess.DEVNULL

    def explain(self, returncode: int) -> str:
        """How it ended, in words."""
        return launch.how_it_ended(returncode)


class HostPart(Part):
    """It ends what it has started when its standard input ends, which does so with this process, too."""

    stop_s = 2 * STOP_TIMEOUT_S
    told = b""
    """What it reads first."""


class Plan(Protocol):
    """What a run consists of. ``directories``: how many of its services, the first ones, are a directory's.
    ``is_all``: it is no part of another run, which shows the error."""

    directories: int
    is_all: bool

    def services(self, sockets: Path) -> Iterator[tuple[str, launch.Service]]:
        """Start them one after the other; with a title for people."""

    def parts(self, sockets: Path) -> list[Part]:
        """What to start then."""


class Conductor:
    """The services and the ranks of one run. ``several`` ranks: what they write is watched."""

    def __init__(
        self, plan: Plan, timeout: float | None, sockets: Path, signals: Collection[int], usual: Collection[int]
    ) -> None:
        self._plan = plan
        self._timeout = timeout
        self._sockets = sockets
        self._signals = signals
        self._usual = usual
        self._services: dict[int, tuple[str, launch.Service]] = {}
        self._parts: dict[int, tuple[Part, subprocess.Popen[bytes]]] = {}
        self._output = Output()
        self._limit: float | None = None
        self._deadline: float | None = None
        self._killed = False
        self._signalled = 0
        self._code = 0
        self._blamed: tuple[Part, str] | None = None
        """Who failed while others were running, and how."""

    def conduct(self) -> int:
        """Start everything, wait for the ranks, leave nothing. The exit code."""
        try:
            with self._interruptible():
                for title, service in self._plan.services(self._sockets):
                    self._services[service.process.pid] = title, service
            self._start_parts()
            self._output.begin()
            self._reap()  # a service that died while others were starting
            while self._parts:
                self._next_event()
        finally:
            self._clean()
        self._show_last()
        return self._code

    # --- start ---------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Let a signal end the wait for a service that is starting; started by then, it inherits the usual mask."""

        def interrupt(number: int, _frame: FrameType | None) -> None:
            signal.pthread_sigmask(signal.SIG_BLOCK, self._signals)  # one is enough: the next must not disturb _clean
            raise SystemExit(128 + number)

        for number in set(ENDING) & set(self._signals):
            signal.signal(number, interrupt)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._usual)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, self._signals)

    def _start_parts(self) -> None:
        parts = self._plan.parts(self._sockets)
        for part in parts:
            # One rank alone writes where its user wants it. Of several the last words of one that fails are kept.
            piped = part.prefix is not None or isinstance(part, HostPart)
            stdout = self._output.pipe(1, part.prefix) if piped else None
            stderr = self._output.pipe(2, part.prefix, part.title) if piped or len(parts) > 1 else None
            try:
                process = subprocess.Popen(
                    part.command,
                    env=part.environment,
                    stdin=subprocess.PIPE if isinstance(part, HostPart) else part.stdin,
                    stdout=stdout,
                    stderr=stderr,
                    start_new_session=True,
                    preexec_fn=self._before_exec,
                )
            except OSError as error:  # a script without its #! line, a process limit
                raise CannotRun(f"cannot run {part.command[0]}: {error}") from error
            self._parts[process.pid] = part, process
            if isinstance(part, HostPart) and process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):  # how it ended is told later
                    process.stdin.write(part.told)
                    process.stdin.flush()
        if self._timeout is not None:
            self._limit = time.monotonic() + self._timeout

    def _before_exec(self) -> None:
        memory.die_with_parent(signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._usual)

    # --- wait ----------------------------------------------------------------------------------------

    def _next_event(self) -> None:
        deadline = self._limit if self._deadline is None else None if self._killed else self._deadline
        number = descendants.wait(self._signals, deadline)
        if number is None and self._deadline is None:
            say(f"not over after {self._timeout:g} s: all ranks are ended")
            self._code = TIMED_OUT
            self._end()
        elif number is None:
            self._killed = True
            self._tell(signal.SIGKILL)
        elif number == signal.SIGCHLD:
            self._reap()
        elif number in JOB_CONTROL:
            self._tell(signal.SIGSTOP if number == signal.SIGTSTP else number)
        else:
            self._signalled = number
            self._tell(number)
            self._deadline = self._deadline or self._soon()

    def _reap(self) -> None:
        dead = dict(descendants.reap())
        for pid in dead.keys() & self._services.keys():  # first: a rank may have failed because of it
            self._service_died(pid, dead[pid])
        for pid in dead.keys() & self._parts.keys():
            self._part_ended(pid, dead[pid])

    def _service_died(self, pid: int, returncode: int) -> None:
        title, service = self._services.pop(pid)
        service.process.returncode = returncode
        say(f"{title} died: {launch.how_it_ended(returncode)}")
        self._code = self._code or 1
        self._end()

    def _part_ended(self, pid: int, returncode: int) -> None:
        part, process = self._parts.pop(pid)
        process.returncode = returncode
        if returncode == 0:
            return
        if self._parts and self._deadline is None:
            how = part.explain(returncode)
            self._blamed = part, how
            say(f"{part.title} failed, the others are ended: {how}")
        if not self._code:
            by_signal = self._killed or (self._signalled and isinstance(part, HostPart))
            self._code = 128 + self._signalled if by_signal else exit_code(returncode)
        self._end()

    def _end(self) -> None:
        """Ask the ranks to end, once. When there was time enough they are killed."""
        if self._deadline is None:
            self._deadline = self._soon()
            self._tell(signal.SIGTERM)

    def _soon(self) -> float:
        on_hosts = any(isinstance(part, HostPart) for part, _ in self._parts.values())
        return time.monotonic() + (HostPart.stop_s if on_hosts else STOP_TIMEOUT_S)

    def _tell(self, number: int) -> None:
        """Signal the ranks with all of their process groups, and what dead ranks have left."""
        for pid, (part, process) in self._parts.items():
            if isinstance(part, HostPart) and number in ENDING and process.stdin is not None:
                process.stdin.close()
                continue
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, number)
        for pid in descendants.children() - self._parts.keys() - self._services.keys():
            descendants.tell(pid, number)

    # --- end -----------------------------------------------------------------------------------------

    def _clean(self) -> None:
        """End ranks, then what they left (their node still serves their faults), then nodes, then the directory."""
        if self._parts:
            self._end()
        while self._parts:
            self._next_event()
        descendants.end(self._deadline or self._soon(), self._services)
        services = [service for _, service in self._services.values()]
        for service in services[self._plan.directories :]:
            service.process.terminate()
        for service in reversed(services):
            service.stop()
        descendants.end(time.monotonic())
        shutil.rmtree(self._sockets, ignore_errors=True)

    def _show_last(self) -> None:
        """Whatever the others have written meanwhile, the error is what one sees in the end."""
        self._output.end()
        if self._blamed is not None and self._plan.is_all:
            part, how = self._blamed
            words = self._output.tail(part.title)
            if words:
                say(f"{part.title} failed ({how}), after it had written:")
                sys.stderr.write(words if words.endswith("\n") else words + "\n")
                sys.stderr.flush()


def exit_code(returncode: int) -> int:
    """As a shell has it."""
    return returncode if returncode >= 0 else 128 - returncode


def say(text: str) -> None:
    """To whoever started the run."""
    print("dsm run:", text, file=sys.stderr, flush=True)
