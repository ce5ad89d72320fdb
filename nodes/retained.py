"""What was in pages that were handed over to another node, until that is known to have got them.

Such a page is nowhere while it is under way: if one of the two agents is killed then, this is all that is left of it.
The memory is rows of segments, written one after the other; one is used again when all that was sent of it has come.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol

from dsm import memory
from dsm.constants import FRAME_BYTES

_SEGMENT_BYTES: Final = (512 << 10, 4 << 20)
"""Of a row for what travels in one frame, so small that it stays in the cache, and of one for larger pages: twice the
largest."""
_FILE_BYTES: Final = 1 << 40
_HEAD: Final = struct.Struct("<QQQQII")
"""Which use of the segment, the number of the record, first page, bytes of data, region, count. In front of each."""
_ALIGNED: Final = 64
"""A head never crosses a page of the memory file: a kill can come between two of them."""


class Retained(Protocol):
    """``add`` before the pages are dropped, ``sent`` when they are sent."""

    def add(self, region: int, start: int, count: int, payload: bytes) -> None:
        """Keep what is in these pages."""

    def sent(self, node: int, bulk: bool, number: int) -> None:
        """It was sent, in the message of that number of the conversation with a node."""

    def hold(self) -> None:
        """Overwrite nothing until :meth:`clear`, whatever has come."""

    def look(self) -> dict[int, list[tuple[int, int]]]:
        """Everything that is kept: ``(first page, count)`` of runs, by region."""

    def page(self, region: int, page: int) -> bytes | None:
        """What was in a page when it was handed over the last time."""

    def clear(self) -> None:
        """All that was under way has come."""


class SharedRetained:
    """In the memory files ``memfds``, made if there are none. ``acknowledged`` tells how many messages of the
    conversation with a node, for bulk or not, are known to have come."""

    def __init__(self, acknowledged: Callable[[int, bool], int], memfds: Sequence[int] = ()) -> None:
        self._rows: Final = [
            _Row(acknowledged, size, memfd) for size, memfd in zip(_SEGMENT_BYTES, memfds or (-1, -1), strict=True)
        ]
        self._last = self._rows[0]
        self._number = 1  # of the next record, in whichever row
        self._found: dict[tuple[int, int], _Place] = {}  # by region and page
        if memfds:
            self.hold()
            self.look()

    @property
    def memfds(self) -> list[int]:
        """The memory files."""
        return [row.memfd for row in self._rows]

    def add(self, region: int, start: int, count: int, payload: bytes) -> None:
        """See :class:`Retained`."""
        self._last = row = self._rows[len(payload) > FRAME_BYTES]
        row.add(self._number, region, start, count, payload)
        self._number += 1

    def sent(self, node: int, bulk: bool, number: int) -> None:
        """See :class:`Retained`."""
        self._last.sent(node, bulk, number)

    def hold(self) -> None:
        """See :class:`Retained`."""
        for row in self._rows:
            row.holds = True

    def look(self) -> dict[int, list[tuple[int, int]]]:
        """See :class:`Retained`."""
        self._found.clear()
        for row in self._rows:
            row.look(self._found)
        self._number = max([self._number, *(place.number + 1 for place in self._found.values())])
        runs: dict[int, list[tuple[int, int]]] = {}
        for region, page in sorted(self._found):
            known = runs.setdefault(region, [])
            if known and sum(known[-1]) == page:
                known[-1] = known[-1][0], known[-1][1] + 1
            else:
                known.append((page, 1))
        return runs

    def page(self, region: int, page: int) -> bytes | None:
        """See :class:`Retained`."""
        place = self._found.get((region, page))
        return os.pread(place.memfd, place.length, place.at) if place is not None else None

    def clear(self) -> None:
        """See :class:`Retained`."""
        self._found.clear()
        for row in self._rows:
            row.clear()


class _Place(NamedTuple):
    """Where what was in a page is, by the number of its record."""

    number: int
    memfd: int
    at: int
    length: int


class _Row:
    """The segments of one memory file. ``holds``: nothing is overwritten."""

    def __init__(self, acknowledged: Callable[[int, bool], int], segment_bytes: int, memfd: int) -> None:
        self.memfd: Final = memfd if memfd >= 0 else memory.create_memfd("dsm-retained", _FILE_BYTES)
        self.holds = False
        self._acknowledged = acknowledged
        self._segment_bytes = segment_bytes
        self._owed: list[dict[tuple[int, bool], int]] = [{}]  # by segment: the message that has to have come
        self._current = 0
        self._at = 0  # where in the file the next record goes
        self._stop = 0 if memfd >= 0 else segment_bytes
        self._use = 1

    def add(self, number: int, region: int, start: int, count: int, payload: bytes) -> None:
        """Write a record."""
        length = _HEAD.size + len(payload)
        if self._at + length > self._stop:
            self._turn()
        os.pwritev(self.memfd, (_HEAD.pack(self._use, number, start, len(payload), region, count), payload), self._at)
        self._at += (length + _ALIGNED - 1) & -_ALIGNED

    def sent(self, node: int, bulk: bool, number: int) -> None:
        """What was written last is in this message."""
        self._owed[self._current][node, bulk] = number

    def _turn(self) -> None:
        """Go on with a segment of which everything has come, or with a new one."""
        self._current = next(filter(self._is_over, range(len(self._owed))), len(self._owed))
        if self._current == len(self._owed):
            self._owed.append({})
        else:
            self._owed[self._current].clear()
        self._use += 1
        self._at = self._current * self._segment_bytes
        self._stop = self._at + self._segment_bytes

    def _is_over(self, segment: int) -> bool:
        if segment == self._current or self.holds:
            return False
        return all(self._acknowledged(*to) >= number for to, number in self._owed[segment].items())

    def look(self, found: dict[tuple[int, int], _Place]) -> None:
        """Add to what was found: of each page the last."""
        size = self._segment_bytes
        present = memory.present(self.memfd, _FILE_BYTES)
        for segment in sorted({n for a, b in present for n in range(a // size, -(-b // size))}):
            while segment >= len(self._owed):
                self._owed.append({})
            self._look_into(segment * size, found)

    def _look_into(self, at: int, found: dict[tuple[int, int], _Place]) -> None:
        use, stop = 0, at + self._segment_bytes
        while at + _HEAD.size <= stop:
            its, number, start, length, region, count = _HEAD.unpack(os.pread(self.memfd, _HEAD.size, at))
            if not its or (use and its != use) or not count or at + _HEAD.size + length > stop:
                return
            use = its
            self._use = max(self._use, its)
            size = length // count
            for index in range(count):
                known = found.get((region, start + index))
                if known is None or known.number < number:
                    place = _Place(number, self.memfd, at + _HEAD.size + index * size, size)
                    found[region, start + index] = place
            at += (_HEAD.size + length + _ALIGNED - 1) & -_ALIGNED

    def clear(self) -> None:
        """Begin anew, in the first segment."""
        self.holds = False
        if len(self._owed) > 1:
            memory.punch_hole(self.memfd, 0, len(self._owed) * self._segment_bytes)
        self._owed = [{}]
        self._current = 0
        self._use += 1
        self._at, self._stop = 0, self._segment_bytes
        os.pwrite(self.memfd, bytes(_HEAD.size), 0)
