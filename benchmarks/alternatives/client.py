"""The client of an alternative, a child of the benchmark: it says what is here, and does the operations that are asked
for.

It leaves when its standard input ends, whoever ended it, and takes what it has started with it.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack

from benchmarks.child import Child

Operations = Mapping[str, Callable[..., object]]


class Absent(Exception):
    """Something that a benchmark needs is not installed here."""


# --- the child's side ----------------------------------------------------------------------------------


def obey(begin: Callable[[ExitStack], tuple[str, Operations]]) -> None:
    """Say the version that ``begin`` gives, or that something is absent; then do the operations that are asked for.

    ``begin`` imports and starts what is measured, and hands to the stack what ends it.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the alternative prints is no answer

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


class Client(Child):
    """A child that is starting; it can be asked once it is :meth:`ready`."""

    version = ""

    def ready(self) -> None:
        """Wait until it has begun. Raises :class:`Absent` if it says that something is not installed."""
        told = self.answer()
        if "absent" in told:
            raise Absent(told["absent"])
        self.version = told["version"]
