"""A drop-in for :mod:`multiprocessing.shared_memory` across hosts: the same names, arguments and errors.

>>> from dsm import shared_memory                                    # doctest: +SKIP
>>> block = shared_memory.SharedMemory("scores", create=True, size=800)
>>> numpy.ndarray(100, "f8", block.buf)[:] = 1.0                     # SharedMemory("scores") on any host sees it

What differs, for the better: a block that is tracked (the default) is never destroyed while some process uses it, and
never left behind when none does; CPython's resource tracker destroys what others still use
(https://github.com/python/cpython/issues/82300).
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import secrets
import struct
import threading
from collections.abc import Callable, Iterable
from multiprocessing import shared_memory as _theirs
from typing import Any, Final, TypeVar

from dsm import client, travel, wire
from dsm.errors import InvalidArgument, RegionExists, RegionNotFound
from dsm.region import Region, attach

_USE_POSIX: Final = True
_SHM_NAME_PREFIX: Final = "psm_"


class _Tracked:
    """The blocks that this process has created and not unlinked: they are there while it is. Over one connection."""

    def __init__(self) -> None:
        self._connection: client.Connection | None = None
        self._turn = threading.Lock()

    def hold(self, region: int) -> None:
        """As long as this process lives."""
        with self._turn:
            if self._connection is None or self._connection.closed:  # a forked child has closed what its parent had
                self._connection = client.connect()
            self._connection.ask(wire.Hold(region, True), wire.Ready)

    def let_go(self, region: int) -> None:
        """It was unlinked."""
        with self._turn:
            if self._connection is not None and not self._connection.closed:
                self._connection.ask(wire.Hold(region, False), wire.Ready)


_tracked = _Tracked()


def _renew_tracked() -> None:
    global _tracked
    _tracked = _Tracked()


os.register_at_fork(after_in_child=_renew_tracked)


def _make_filename() -> str:
    return _SHM_NAME_PREFIX + secrets.token_hex(8)


class SharedMemory:
    """A block of shared memory, as :class:`multiprocessing.shared_memory.SharedMemory`.

    ``name``: of the block; None with ``create``: a new one is made up. ``size``: bytes, if ``create``. ``track``, of
    whoever creates it: the block ends by itself once its creator has ended, however it ended, and nobody else has it
    open; without, it lives until somebody calls :meth:`unlink`.

    Raises :class:`~dsm.errors.RegionExists` (a FileExistsError), :class:`~dsm.errors.RegionNotFound` (a
    FileNotFoundError), :class:`~dsm.errors.InvalidArgument` (a ValueError), and what :func:`dsm.attach` raises.
    """

    def __init__(self, name: str | None = None, create: bool = False, size: int = 0, *, track: bool = True) -> None:
        self._region: Region | None = None
        self._buf: memoryview | None = None
        if size < 0 or (create and not size):
            raise InvalidArgument(f"'size' must be a positive number of bytes, not {size}")
        if name is None and not create:
            raise InvalidArgument("'name' can only be None if create=True")
        self._track = track
        self._region = self._attach(name, size if create else None)
        self._name = self._region.name
        self._size = self._region.size
        self._buf = self._region.buf
        self._number = self._region._mapping.region
        if create and track:
            _tracked.hold(self._number)

    def _attach(self, name: str | None, size: int | None) -> Region:
        if size is None:
            assert name is not None
            return attach(name)
        if name is not None:
            return attach(name, size, create=True, persist=not self._track)
        while True:
            with contextlib.suppress(RegionExists):
                return attach(_make_filename(), size, create=True, persist=not self._track)

    @property
    def name(self) -> str:
        """By which others find it."""
        return self._name

    @property
    def size(self) -> int:
        """Bytes: exactly what it was created with."""
        return self._size

    @property
    def buf(self) -> memoryview | None:
        """All of it, writable; None once it is closed."""
        return self._buf

    def close(self) -> None:
        """Let go of the memory; ``buf`` is None from now on. Arrays and memoryviews of it stay valid and
        keep this process a user (CPython raises BufferError here, or crashes when they are used). May be repeated."""
        self._buf = self._region = None

    def unlink(self) -> None:
        """Free the name; the memory ends with its last user. Raises :class:`~dsm.errors.RegionNotFound` (a
        FileNotFoundError) if somebody has done so before."""
        with client.borrowed() as connection:
            connection.ask(wire.Unlink(0, self._name), wire.Ready)
        _tracked.let_go(self._number)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return travel.reduced(functools.partial(type(self), track=self._track), self._name)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._name!r}, size={self._size})"


class ShareableList(_theirs.ShareableList):  # type: ignore[type-arg]  # of anything that it can pack
    """A list of fixed length in a block of shared memory, as :class:`multiprocessing.shared_memory.ShareableList`.

    ``sequence``: of int, float, bool, str, bytes (less than 10 MB each) and None; without it, the list called ``name``
    must exist. ``shm`` is its block. An item can be set to another value that takes no more bytes.
    """

    shm: SharedMemory  # type: ignore[assignment]

    def __init__(self, sequence: Iterable[Any] | None = None, *, name: str | None = None) -> None:
        if name is not None and sequence is None:
            self.shm = SharedMemory(name)
            self._list_len = struct.unpack_from("q", self._memory, 0)[0]
            self._allocated_offsets = list(struct.unpack_from(f"{self._list_len + 1}q", self._memory, 8))
            return
        items = list(sequence or ())
        lengths = [self._room(item) for item in items]
        self._list_len = len(items)
        self._allocated_offsets = [0, *itertools.accumulate(lengths)]
        self.shm = SharedMemory(name, create=True, size=8 * (len(items) + 2) + sum(lengths) + 9 * len(items))
        struct.pack_into(f"{len(items) + 2}q", self._memory, 0, len(items), *self._allocated_offsets)
        for position, item in enumerate(items):
            self._set_packing_format_and_transform(position, f"{lengths[position]}s", item)  # type: ignore[attr-defined]
            self[position] = item

    @property
    def _memory(self) -> memoryview:
        assert self.shm.buf is not None
        return self.shm.buf

    def _room(self, item: object) -> int:
        """Bytes of an item."""
        if isinstance(item, str | bytes):
            encoded = item.encode() if isinstance(item, str) else item
            return max(8 * (len(item) // 8 + 1), 8 * -(-len(encoded) // 8))  # theirs counts characters only
        if type(item) not in self._types_mapping:  # type: ignore[attr-defined]  # theirs, since Python 3.8
            raise InvalidArgument(f"a ShareableList has int, float, bool, str, bytes and None, not {item!r}")
        return 8

    def __reduce__(self) -> Any:
        return travel.reduced(functools.partial(_named, type(self)), self.shm.name)


def _named(kind: type[ShareableList], name: str) -> ShareableList:
    return kind(name=name)


_Made = TypeVar("_Made", SharedMemory, ShareableList)


class SharedMemoryManager:
    """Makes blocks and lists, and unlinks all of them at its :meth:`shutdown` or at the end of a ``with`` block, as
    :class:`multiprocessing.managers.SharedMemoryManager`; without a server process, for the cluster has its own."""

    def __init__(self) -> None:
        self._made: list[SharedMemory] | None = None

    def start(self) -> None:
        """From now on things can be made."""
        if self._made is not None:
            raise InvalidArgument("this SharedMemoryManager was started already")
        self._made = []

    def shutdown(self) -> None:
        """Unlink everything it made that is not unlinked yet. May be repeated."""
        made, self._made = self._made or [], None
        for block in made:
            with contextlib.suppress(RegionNotFound):
                block.unlink()

    def SharedMemory(self, size: int) -> SharedMemory:
        """A new block of ``size`` bytes. Raises :class:`~dsm.errors.InvalidArgument` (a ValueError) before
        :meth:`start`."""
        return self._keep(lambda: SharedMemory(None, True, size))

    def ShareableList(self, sequence: Iterable[Any] | None) -> ShareableList:
        """A new list of these items. Raises as :meth:`SharedMemory`."""
        return self._keep(lambda: ShareableList(sequence))

    def _keep(self, make: Callable[[], _Made]) -> _Made:
        if self._made is None:
            raise InvalidArgument("this SharedMemoryManager is not started: use it in a `with` block, or call start()")
        made: Any = make()
        block = made.shm if isinstance(made, ShareableList) else made
        self._made.append(block)
        return made  # type: ignore[no-any-return]

    def __enter__(self) -> SharedMemoryManager:
        if self._made is None:
            self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
