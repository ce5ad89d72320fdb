"""What stands in for dsm when an example runs on private memory: one process, and nobody to wait for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

_regions: Final[dict[str, Region]] = {}


class Region:
    """Memory of this process."""

    def __init__(self, name: str, array: NDArray[Any]) -> None:
        self._name = name
        self.array = array
        self.size = array.nbytes

    def prefetch(self, start: int = 0, stop: int | None = None, write: bool = False) -> None:
        """It is here."""

    def stats(self) -> dict[str, Any]:
        """Nothing ever moved."""
        return {"bytes_in": 0, "invalidations": 0, "faults": {}}

    def unlink(self) -> None:
        """Let go of it."""
        del _regions[self._name]


def attach(
    name: str, *, shape: int | Iterable[int] | None = None, dtype: DTypeLike = "f8", page_size: int = 4096
) -> Region:
    """The region of that name; zeros if it is new."""
    if name not in _regions:
        assert shape is not None, f"no region {name!r} to open"
        _regions[name] = Region(name, np.zeros(shape if isinstance(shape, int) else tuple(shape), dtype))
    return _regions[name]


class Barrier:
    """Of one."""

    def __init__(self, name: str, parties: int) -> None:
        assert parties == 1, name

    def wait(self) -> int:
        """Everybody is here."""
        return 0


class Lock:
    """Of one."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> bool:
        return True

    def __exit__(self, *_: object) -> None:
        pass


def rank() -> int:
    """As without ``dsm run``."""
    return 0


def world_size() -> int:
    """As without ``dsm run``."""
    return 1
