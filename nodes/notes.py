"""What an agent notes of its applications for the one that takes its place, should it be killed.

It is memory that outlives it. A kill at any moment leaves what was noted before or what is noted now, never a part of
each: a slot has two halves, and one byte, written last, says which of them counts.
"""

from __future__ import annotations

import errno
import heapq
import mmap
import os
import struct
from typing import Final, Protocol

from dsm import memory
from dsm.codec import pack, unpack

_HALF_BYTES: Final = 32 << 10
_SLOT_BYTES: Final = 2 * _HALF_BYTES
_SLOTS: Final = 1 << 16
"""A process has fewer descriptors. Only the pages that are written take memory: one or two a slot."""
_LENGTH: Final = struct.Struct("=I")
NOTE_BYTES_MAX: Final = _HALF_BYTES - 64
"""Of what is noted of one connection."""
_OWN: Final = 0
"""The slot for what concerns the whole agent."""


class Notes(Protocol):
    """What an agent notes. ``ticket`` is the last that was used, ``lease`` when the lease is over (in seconds of the
    host's monotonic clock): both 0 before any was noted."""

    ticket: int
    lease: float

    def use(self, ticket: int) -> None:
        """Note a ticket, before it is used."""

    def renew(self, lease: float) -> None:
        """Note that the lease is over then."""

    def take_slot(self) -> int:
        """A slot that is free. Raises OSError if there is none."""

    def put(self, slot: int, note: bytes) -> None:
        """What is in a slot from now on."""

    def get(self, slot: int) -> bytes:
        """What is in a slot; nothing if it is free."""

    def free(self, slot: int) -> None:
        """It is free again."""


class SharedNotes:
    """Notes in the memory file ``memfd``, made if there is none (-1)."""

    def __init__(self, memfd: int = -1) -> None:
        length = _SLOTS * _SLOT_BYTES
        self.memfd: Final = memfd if memfd >= 0 else memory.create_memfd("dsm-notes", length)
        self._memory = mmap.mmap(self.memfd, length, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        own = self.get(_OWN)
        self.ticket: int
        self.lease: float
        self.ticket, self.lease = unpack(own) if own else (0, 0.0)
        self._free: list[int] = []
        self._next = 1  # slots from there on were never used

    def use(self, ticket: int) -> None:
        """See :class:`Notes`."""
        self.ticket = ticket
        self.put(_OWN, pack(self.ticket, self.lease))

    def renew(self, lease: float) -> None:
        """See :class:`Notes`."""
        self.lease = lease
        self.put(_OWN, pack(self.ticket, self.lease))

    def found(self, slots: list[int]) -> None:
        """The agent before this one has used these slots."""
        self._next = max([0, *slots]) + 1
        self._free = sorted(set(range(1, self._next)) - set(slots))

    def take_slot(self) -> int:
        """See :class:`Notes`."""
        if self._free:
            return heapq.heappop(self._free)
        if self._next == _SLOTS:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        self._next += 1
        return self._next - 1

    def put(self, slot: int, note: bytes) -> None:
        """See :class:`Notes`."""
        at, data = slot * _SLOT_BYTES, self._memory
        half = 2 if data[at] == 1 else 1
        start = at + 64 if half == 1 else at + _HALF_BYTES
        _LENGTH.pack_into(data, start, len(note))
        data[start + _LENGTH.size : start + _LENGTH.size + len(note)] = note
        data[at] = half

    def get(self, slot: int) -> bytes:
        """See :class:`Notes`."""
        at, data = slot * _SLOT_BYTES, self._memory
        if not data[at]:
            return b""
        start = at + 64 if data[at] == 1 else at + _HALF_BYTES
        (length,) = _LENGTH.unpack_from(data, start)
        start += _LENGTH.size
        return data[start : start + length]

    def free(self, slot: int) -> None:
        """See :class:`Notes`."""
        self._memory[slot * _SLOT_BYTES] = 0
        heapq.heappush(self._free, slot)
