"""Ctrl-C of a long run of real clusters: heard once, and never where a process was started that nobody knows yet."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Final

INTERRUPTED: Final = 130
"""The exit code, as shells have it: 128 + SIGINT."""


class _Ear:
    """Ctrl-C: once, and later if it comes while ``held``."""

    def __init__(self) -> None:
        self.held = 0
        self.heard = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the clusters are being ended: once more cannot be quicker
        self.heard = True
        self.tell()

    def tell(self) -> None:
        if self.heard and not self.held:
            self.heard = False
            raise KeyboardInterrupt


_ear = _Ear()


def listen() -> None:
    """From now on the first Ctrl-C is a KeyboardInterrupt, and those that follow are nothing.

    Also where it was ignored, as in a job that a shell has put into the background: who sends the signal means it.
    """
    signal.signal(signal.SIGINT, _ear)


@contextlib.contextmanager
def postponed() -> Iterator[None]:
    """A Ctrl-C is heard at the end of this. Processes started here never hear it: who starts them ends them.

    They inherit that it is blocked. For this process that is not enough: the threads of a library (those of numpy's
    BLAS) do not block it, and what any thread receives, Python runs in the main thread.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    _ear.held += 1
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        _ear.held -= 1
        _ear.tell()
