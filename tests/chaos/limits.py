"""Control groups that limit the memory of a process and its children (cgroups(7), of either version). Pages of a memory
file count for who brings them."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_IS_NEW = (_ROOT / "cgroup.controllers").exists()


class MemoryGroup:
    """One control group, at first without a limit. Raises OSError where none can be made."""

    def __init__(self, name: str) -> None:
        self._path = (_ROOT if _IS_NEW else _ROOT / "memory") / name
        self._path.mkdir()
        self._limit = self._path / ("memory.max" if _IS_NEW else "memory.limit_in_bytes")
        self._usage = self._path / ("memory.current" if _IS_NEW else "memory.usage_in_bytes")
        self._usage.read_text()  # is there a controller of memory?

    def take(self, pid: int) -> None:
        """A process, and all that it forks, belongs to it."""
        (self._path / "cgroup.procs").write_text(str(pid))

    def fill(self, more: int) -> None:
        """From now on it has no more memory than it has, and ``more`` bytes."""
        with contextlib.suppress(OSError):  # busy: it has more by now
            self._limit.write_text(str(int(self._usage.read_text()) + more))

    def free(self) -> None:
        """It has as much as it wants again."""
        self._limit.write_text("max" if _IS_NEW else "-1")

    def close(self) -> None:
        """Remove it; nobody is in it any more."""
        with contextlib.suppress(OSError):
            self._path.rmdir()


def can_limit() -> bool:
    """Can this process make such groups?"""
    try:
        MemoryGroup(f"dsm-chaos-{os.getpid()}-try").close()
    except OSError:
        return False
    return True
