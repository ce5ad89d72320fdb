"""Every process below this one: adopt, reap and end them, whoever started them.

For a process that blocks the signals it waits for and takes them by ``sigtimedwait``: no handler, no polling, no race.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

_PR_SET_CHILD_SUBREAPER: Final = 36


def adopt_orphans() -> None:
    """From now on a descendant that loses its parent becomes a child of this process (PR_SET_CHILD_SUBREAPER)."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def children() -> set[int]:
    """Processes whose parent is this one, adopted orphans included, not yet reaped."""
    found = set()
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            after_name = Path("/proc", name, "stat").read_bytes().rpartition(b")")[2]
            if int(after_name.split()[1]) == os.getpid():
                found.add(int(name))
    return found


def reap() -> Iterator[tuple[int, int]]:
    """Every child that has ended: its pid and its return code, as :mod:`subprocess` gives it."""
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            yield found[0], os.waitstatus_to_exitcode(found[1])


def wait(signals: Collection[int], deadline: float | None) -> int | None:
    """The next of ``signals``, or None once ``deadline`` (monotonic) has passed."""
    if deadline is None:
        return signal.sigwait(signals)
    got = signal.sigtimedwait(signals, max(0.0, deadline - time.monotonic()))
    return None if got is None else got.si_signo


def end(deadline: float, spared: Collection[int] = ()) -> None:
    """SIGTERM to every descendant as it becomes a child of this process, SIGKILL from ``deadline`` (monotonic) on.

    Returns when there is none but the ``spared`` children. SIGCHLD must be blocked. The new parent of an orphan is
    not told; but it is told of the death that made the orphan, and a look at each SIGCHLD finds all.
    """
    told = set()
    while left := {pid for pid in children().difference(spared) if os.waitpid(pid, os.WNOHANG)[0] == 0}:
        number = signal.SIGTERM if time.monotonic() < deadline else signal.SIGKILL
        for pid in left:
            if (pid, number) not in told:
                told.add((pid, number))
                tell(pid, number)
        wait({signal.SIGCHLD}, deadline if number == signal.SIGTERM else None)


def tell(pid: int, number: int) -> None:
    """Signal a child. One that has just ended, or runs as another user, is left alone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
