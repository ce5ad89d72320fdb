"""Distributed shared memory for Python: an ordinary numpy array that every process of every host reads and writes.

>>> import dsm
>>> grid = dsm.attach("grid", shape=(1024, 1024), dtype="f8").array  # doctest: +SKIP

``help(dsm.attach)`` is enough to start.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from dsm import errors
from dsm.errors import DsmError

if TYPE_CHECKING:
    from dsm.region import Region, attach
    from dsm.sync import Barrier, BoundedSemaphore, Condition, Counter, Event, Lock, RLock, Semaphore

__version__ = "0.1.0"

__all__ = [
    "Barrier",
    "BoundedSemaphore",
    "Condition",
    "Counter",
    "DsmError",
    "Event",
    "Lock",
    "RLock",
    "Region",
    "Semaphore",
    "__version__",
    "attach",
    "errors",
    "rank",
    "world_size",
]

_LAZY = {
    **dict.fromkeys(["Region", "attach"], "dsm.region"),
    **dict.fromkeys(
        ["Barrier", "BoundedSemaphore", "Condition", "Counter", "Event", "Lock", "RLock", "Semaphore"], "dsm.sync"
    ),
}
"""What only applications need: the services import dsm, too, for its vocabulary."""


def rank() -> int:
    """The number of this process among :func:`world_size`, from 0: ``DSM_RANK``, which ``dsm run`` sets; else 0.

    Raises :class:`~dsm.errors.InvalidArgument` if that is no number below ``world_size()``.
    """
    number, processes = _from_environment("DSM_RANK", 0), world_size()
    if number >= processes:
        raise errors.InvalidArgument(
            f"DSM_RANK is {number} among {processes} (DSM_WORLD_SIZE): ranks count from 0, and both are set together"
        )
    return number


def world_size() -> int:
    """How many processes there are: ``DSM_WORLD_SIZE``, which ``dsm run`` sets; else 1."""
    processes = _from_environment("DSM_WORLD_SIZE", 1)
    if not processes:
        raise errors.InvalidArgument("DSM_WORLD_SIZE is 0: it counts this process, too")
    return processes


def _from_environment(name: str, otherwise: int) -> int:
    text = os.environ.get(name)
    if text is None:
        return otherwise
    if not text.isdecimal():
        raise errors.InvalidArgument(
            f"{name} is {text!r}, not a number: `dsm run` sets it; without it, give each process its own"
        )
    return int(text)


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'dsm' has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
