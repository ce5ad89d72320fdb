"""A process that a benchmark asks to do things: a line of JSON in, a line of JSON out.

The client of every peer is such a process, so that no peer's threads and signal handlers live in the benchmark's own.
It leaves when its standard input ends, whoever ended it, and takes what it has started with it.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, Final

ANSWER_S: Final = 120.0
"""How long a child may take for anything; it is ended then. The slowest, the start of ray, takes some seconds."""

END_S: Final = 30.0
"""How long a child may take to end what it has started: ray takes one or two seconds on an idle machine."""

Operations = Mapping[str, Callable[..., object]]


class Absent(Exception):
    """Something that a benchmark needs is not installed here."""


# --- the child's side ----------------------------------------------------------------------------------


def obey(begin: Callable[[ExitStack], tuple[str, Operations]]) -> None:
    """Say the version that ``begin`` gives, or that something is absent; then do the operations that are asked for.

    ``begin`` imports and starts what is measured, and hands to the stack what ends it.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the peer prints is no answer

    def say(what: object) -> None:
        answers.write(json.dumps(what) + "\n")
        answers.flush()

    with ExitStack() as stack:
        try:
            version, operations = begin(stack)
        except (ImportError, Absent) as error:
            say({"absent": str(error)})
            return
        say({"version": version})
        for line in sys.stdin:
            operation, *arguments = json.loads(line)
            say(operations[operation](*arguments))


def program(name: str) -> str:
    """Where a program is: beside this interpreter, or on the PATH."""
    places = [os.path.dirname(sys.executable), os.environ.get("PATH", "")]
    found = shutil.which(name, path=os.pathsep.join(places))
    if found is None:
        raise Absent(f"no program {name!r} on the PATH")
    return found


def each_us(count: int, operation: Callable[[int], object]) -> list[float]:
    """Microseconds of each of ``count`` operations, which are told their number."""
    now = time.perf_counter_ns
    took = []
    for number in range(count):
        start = now()
        operation(number)
        took.append(now() - start)
    return [nanoseconds / 1000 for nanoseconds in took]


def rate_gb_s(size: int, operation: Callable[[], object]) -> list[float]:
    """GB/s of one operation on so many bytes."""
    start = time.perf_counter_ns()
    operation()
    return [size / (time.perf_counter_ns() - start)]


# --- the benchmark's side ------------------------------------------------------------------------------


class Child:
    """A child that is starting; it can be asked once it is :meth:`ready`."""

    def __init__(self, command: list[str], environment: Mapping[str, str] | None = None) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 closed by end
        self._command = command
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=dict(os.environ) | dict(environment or {}),
            text=True,
            start_new_session=True,  # a terminal's Ctrl-C is for the benchmark, which ends its children in order
        )
        self.version = ""

    def ready(self) -> None:
        """Wait until it has begun. Raises :class:`Absent` if it says that something is not installed."""
        told = self._answer()
        if "absent" in told:
            raise Absent(told["absent"])
        self.version = told["version"]

    def ask(self, *what: object) -> Any:
        """Have it do an operation, given by name and arguments, and return what that returns."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        watchdog = threading.Timer(ANSWER_S, self._kill)
        watchdog.start()
        try:
            line = self._process.stdout.readline()
        finally:
            watchdog.cancel()
        if not line:
            self._errors.seek(0)
            raise RuntimeError(f"{shlex.join(self._command)} ended or hung:\n{self._errors.read()[-2000:]}")
        return json.loads(line)

    def leave(self) -> None:
        """Let it leave, without waiting for that."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def end(self) -> int:
        """Let it leave, and what it has started with it; end them by force if they do not. Its exit code; may be
        repeated."""
        if self._process.returncode is None:
            assert self._process.stdout is not None
            self.leave()
            try:
                self._process.wait(END_S)
            except subprocess.TimeoutExpired:
                self._kill()
                self._process.wait()
            self._process.stdout.close()
            self._errors.close()
        return self._process.returncode

    def _kill(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)


def python(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of the benchmarks."""
    return [sys.executable, "-m", module, *arguments]
