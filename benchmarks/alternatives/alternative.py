"""What is known of an alternative: its name, what installs it, what of it is measured, and what it is compared for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

from benchmarks.alternatives.client import Client

VALUE: Final = 4096
"""Bytes: a page of dsm, and what every alternative is asked for."""

BLOCK: Final = 1 << 20
"""Bytes of a value of those that store values, and of one transfer of those that are told how much to transfer."""

ARRAY: Final = 32 * BLOCK
"""Bytes of an array that is read or written as a whole."""

VALUES: Final = 128
"""How many values an alternative holds; successive operations take successive ones."""


REMOTE_READ: Final = "dsm: remote read of a page"
READ_AGAIN: Final = "dsm: read of the same page again"
UPGRADE: Final = "dsm: write of a page that another node has"
SCAN: Final = "dsm: scan of a remote array"
OVERWRITE: Final = "dsm: overwriting an array that another node has"
LOCAL_READ: Final = "dsm, one node: read of a page of another process"
LOCAL_STORE: Final = "dsm, one node: first write of a page of another process"
LOCAL_SCAN: Final = "dsm, one node: scan of an array of another process"


@dataclass(frozen=True)
class Latency:
    """``operation`` of a child is told how often, and gives µs of each; ``instead`` names the figures of dsm that a
    user would have instead of it."""

    operation: str
    figure: str
    instead: tuple[str, ...]
    unit: ClassVar = "µs"

    def measure(self, child: Client, count: int) -> Any:
        return child.ask(self.operation, count)


@dataclass(frozen=True)
class Rate:
    """``operation`` of a child gives the GB/s of a whole array; ``instead`` as above."""

    operation: str
    figure: str
    instead: tuple[str, ...]
    unit: ClassVar = "GB/s"

    def measure(self, child: Client, count: int) -> Any:
        return child.ask(self.operation)


@dataclass(frozen=True)
class Alternative:
    """``start`` is given a folder, which is the child's own. Either it or the child's ``ready`` raises
    :class:`~benchmarks.alternatives.client.Absent`."""

    name: str
    install: str
    about: str
    measured: tuple[Latency | Rate, ...]
    start: Callable[[Path], Client]
