"""Ctrl-C of a long run of real clusters: heard once, and never where a process was started that nobody knows yet."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Final

INTERRUPTED: Final = 130
"""The exit code, as shells have it: 128 + SIGINT."""


def _heard(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the clusters are being ended: once more cannot be quicker
    raise KeyboardInterrupt


def listen() -> None:
    """From now on the first Ctrl-C is a KeyboardInterrupt, and those that follow are nothing.

    Also where it was ignored, as in a job that a shell has put into the background: who sends the signal means it.
    """
    signal.signal(signal.SIGINT, _heard)


@contextlib.contextmanager
def postponed() -> Iterator[None]:
    """A Ctrl-C is heard at the end of this. Processes started here never hear it: who starts them ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
