"""Processes that a test has started, and what Ctrl-C is to them."""

from __future__ import annotations

import signal
from pathlib import Path


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def is_deaf(pid: str) -> bool:
    """Is Ctrl-C nothing to this process?"""
    status = dict(line.split(":\t") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool((int(status["SigBlk"], 16) | int(status["SigIgn"], 16)) >> signal.SIGINT - 1 & 1)


def at_a_terminal() -> None:
    """Where Ctrl-C is not ignored, as it is in all that a script starts in the background: perhaps these tests, too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
