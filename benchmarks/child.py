"""A process that a benchmark asks to do things: a line of JSON in, a line of JSON out.

What computes for a benchmark is such a process, so that nobody's threads, signal handlers and page faults are in the
benchmark's own. One that dies or hangs is an error that says which and why, and what it has started ends with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from dsm import launch

LIMIT_S: Final = 120.0
"""How long a child may take for anything, however busy the machine: it is ended then. The slowest, the start of ray,
takes some seconds."""

END_S: Final = 30.0
"""How long a child may take to end what it has started: ray takes one or two seconds on an idle machine."""

REST_S: Final = 2.0
"""How long those that a child has left behind may take to end when they are asked to."""

_ERRORS: Final = 2000
"""Bytes of what a dead child last wrote on its standard error, where a launcher of others hides the reason."""


class Died(RuntimeError):
    """A child that is needed has ended, or was ended because it hung."""


class Child:
    """A child that is starting. What it says first, before it is asked anything, is that it has begun."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None, name: str = "") -> None:
        self.name: Final = name or shlex.join(command)
        self._errors: Final = tempfile.TemporaryFile()  # noqa: SIM115 closed by kill
        self._process: Final = subprocess.Popen(
            command,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=dict(os.environ) | dict(environment or {}),
            start_new_session=True,  # a terminal's Ctrl-C is for the benchmark, which ends its children in order
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._orders: Final = self._process.stdin
        self._answers: Final = self._process.stdout
        os.set_blocking(self._orders.fileno(), False)
        self._ended: Final = os.pidfd_open(self._process.pid)
        self._said = b""

    def tell(self, *what: object) -> None:
        """Give it an order, and do not wait for the answer."""
        self._expect_alive()
        line = json.dumps(what).encode() + b"\n"
        deadline = time.monotonic() + LIMIT_S
        while line:
            if not _ready([self._ended], [self._orders.fileno()], deadline):
                raise self._died(f"took no order for {LIMIT_S:g} s")
            try:
                line = line[os.write(self._orders.fileno(), line) :]
            except BlockingIOError:  # it has ended, and somebody whom it has started holds the pipe
                raise self._died("took no order") from None
            except BrokenPipeError:
                raise self._died("closed its standard input") from None

    def answer(self) -> Any:
        """To the oldest order that has none yet."""
        return answers(self)[0]

    def ask(self, *what: object) -> Any:
        """Tell, and wait for the answer."""
        self.tell(*what)
        return self.answer()

    @property
    def has_answered(self) -> bool:
        """Would :meth:`answer` return at once? Raises :class:`Died` if it never will."""
        self._expect_alive()
        while b"\n" not in self._said:
            ended = _ready([self._ended], [])  # looked at first: what it said before that can be read
            if not _ready([self._answers.fileno()], []):
                if ended:
                    raise self._died("ended")
                return False
            more = os.read(self._answers.fileno(), 1 << 20)
            if not more:
                raise self._died("closed its standard output")
            self._said += more
        return True

    def taken(self) -> Any:
        """The oldest answer, which is there."""
        line, _, self._said = self._said.partition(b"\n")
        return json.loads(line)

    def leave(self) -> None:
        """Let it leave, without waiting for that."""
        self._orders.close()

    def end(self) -> int:
        """Let it leave, and what it has started with it; end by force who does not. Its exit code; may be repeated."""
        self.leave()
        if self._process.returncode is None:
            _ready([self._ended], [], time.monotonic() + END_S)
        return self.kill()

    def kill(self) -> int:
        """End it and its process group at once. Its exit code; may be repeated.

        Those that it has started are asked first: what it holds may be for them to remove.
        """
        if self._process.returncode is None:  # so the number of the group is not anybody else's
            group = self._process.pid
            os.kill(group, signal.SIGKILL)
            deadline = time.monotonic() + REST_S
            if _others(group):
                os.killpg(group, signal.SIGTERM)
            while _others(group) and time.monotonic() < deadline:
                time.sleep(0.01)
            os.killpg(group, signal.SIGKILL)
            self._process.wait()
            os.close(self._ended)
            self._orders.close()
            self._answers.close()
            self._errors.close()
        return self._process.returncode

    def silent(self) -> Died:
        """The error that it has not answered in time; it is ended."""
        return self._died(f"silent for {LIMIT_S:g} s")

    def _expect_alive(self) -> None:
        if self._process.returncode is not None:
            raise Died(f"{self.name} has ended ({launch.how_it_ended(self._process.returncode)})")

    def _died(self, how: str) -> Died:
        """The error that it has ended, or ``how`` it failed if it has not; it has then."""
        by_itself = _ready([self._ended], [], time.monotonic() + 1.0)  # its last descriptor closes a moment before
        self._errors.seek(0)
        said = self._errors.read()[-_ERRORS:].decode(errors="replace").strip()
        code = self.kill()
        how = launch.how_it_ended(code) if by_itself else f"{how}, and was killed"
        return Died(
            f"{self.name} ended ({how}); " + (f"it last wrote on stderr:\n{said}" if said else "it wrote nothing")
        )

    def fileno(self) -> int:
        """Readable when it has said something."""
        return self._answers.fileno()

    @property
    def pidfd(self) -> int:
        """Readable when it has ended."""
        return self._ended


def answers(*children: Child) -> list[Any]:
    """The next answer of each. Raises :class:`Died` as soon as one has died: the others may wait for it for ever."""
    deadline = time.monotonic() + LIMIT_S
    while waiting := [child for child in children if not child.has_answered]:
        ends = [end for child in waiting for end in (child.fileno(), child.pidfd)]
        if not _ready(ends, [], deadline):
            raise Died("\n".join(str(child.silent()) for child in waiting))
    return [child.taken() for child in children]


def python(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of the benchmarks."""
    return [sys.executable, "-m", module, *arguments]


def _ready(to_read: Iterable[int], to_write: Iterable[int], deadline: float = 0.0) -> bool:
    """Wait for any of these; whether one is ready."""
    poll = select.poll()
    for descriptor in to_read:
        poll.register(descriptor, select.POLLIN)
    for descriptor in to_write:
        poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))


def _others(group: int) -> bool:
    """Is anybody left of a process group but its leader, zombies apart?"""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            state, _, of = stat.read_text().rpartition(")")[2].split()[:3]
            if int(of) == group and int(stat.parent.name) != group and state not in "ZX":
                return True
    return False
