"""A compact map from page number to a small unsigned int: what the directory and every node remember of each page.

Nearly all pages nearly always agree with their neighbours, so a block of pages first keeps only where its value
changes (two arrays: the first page of each run, and its value). A block so fragmented that this would take more
memory than one value for every page keeps that instead. Values take two bytes in a block as long as all of them fit.
Either way a touched page costs at most 9 bytes (13 in a block with a larger value, 7 in a table of 8-bit values), an
untouched one nothing, and a run of any length no more than a single page. To this a block of which any page is touched
adds about 300 bytes.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import chain, compress, repeat
from operator import ne, sub
from typing import Final, Literal

Run = tuple[int, int, int]
"""``(start, stop, value)``: the pages ``[start, stop)`` all have this value."""

_SHIFT: Final = 14
_SPAN: Final = 1 << _SHIFT
"""Pages of one block. In larger ones inserting among scattered pages would be slower (it moves all that lies behind),
in smaller ones the objects of the block would weigh on its pages. An offset has to fit two bytes."""
_LAST: Final = _SPAN - 1

_RUNS_MAX: Final = {code: _SPAN * array(code).itemsize // (2 + array(code).itemsize) for code in ("B", "H", "I")}
"""With more runs in a block (two bytes and a value each), one value for every page would take less memory."""


_VALUES: Final = 1 << 32
"""How many values a table of 32-bit values has."""


class _RunBlock:
    """The pages of one block as runs: run ``i`` begins at ``starts[i]`` and ends where the next one begins.

    ``starts[0]`` is 0 and neighbouring runs differ in value, always.
    """

    __slots__ = ("runs_max", "starts", "values")

    def __init__(self, typecode: str) -> None:
        self.starts = array("H", (0,))
        self.values = array(typecode, (0,))
        self.runs_max = _RUNS_MAX[typecode]

    def get(self, offset: int) -> int:
        return self.values[bisect_right(self.starts, offset) - 1]

    def set(self, offset: int, value: int) -> bool:
        """Change one page; whether another form now suits the block.

        Does what ``fill(offset, offset + 1, value)`` would, at half its cost. A value out of range raises before
        anything has changed: in each case the values come first.
        """
        starts, values = self.starts, self.values
        after = bisect_right(starts, offset)
        run = after - 1
        old = values[run]
        if old == value:
            return False
        head = starts[run] == offset
        tail = starts[after] == offset + 1 if after < len(starts) else offset == _LAST
        joins_left = head and run > 0 and values[run - 1] == value
        joins_right = tail and after < len(starts) and values[after] == value
        if joins_left and joins_right:
            del values[run : after + 1], starts[run : after + 1]
        elif joins_left and tail:
            del values[run], starts[run]
        elif joins_left:
            starts[run] = offset + 1
        elif joins_right and head:
            del values[run], starts[after]
        elif joins_right:
            starts[after] = offset
        elif head and tail:
            values[run] = value
        elif head:
            values.insert(run, value)
            starts.insert(after, offset + 1)
        else:
            values.insert(after, value)
            starts.insert(after, offset)
            if not tail:
                values.insert(after + 1, old)
                starts.insert(after + 1, offset + 1)
        return not 1 < len(starts) <= self.runs_max

    def fill(self, start: int, stop: int, value: int) -> None:
        """Give the pages ``[start, stop)`` one value, joining it to equal neighbours."""
        starts, values = self.starts, self.values
        first = bisect_left(starts, start)
        beyond = bisect_right(starts, stop, first)
        cuts, contents = [], []
        if not first or values[first - 1] != value:
            cuts.append(start)
            contents.append(value)
        if stop < _SPAN and values[beyond - 1] != value:
            cuts.append(stop)
            contents.append(values[beyond - 1])
        inserted = array(values.typecode, contents)  # a value out of range raises here, before anything has changed
        starts[first:beyond] = array("H", cuts)
        values[first:beyond] = inserted

    def runs(self, start: int, stop: int, base: int) -> list[Run]:
        """The runs that cover ``[start, stop)``, as pages counted from ``base``."""
        first = bisect_right(self.starts, start) - 1
        beyond = bisect_left(self.starts, stop, first)
        cuts = [base + cut for cut in self.starts[first + 1 : beyond]]
        return list(zip([base + start, *cuts], [*cuts, base + stop], self.values[first:beyond], strict=True))

    def widen(self, typecode: str) -> None:
        """Make room for larger values."""
        self.values = array(typecode, self.values)
        self.runs_max = _RUNS_MAX[typecode]

    def nbytes(self) -> int:
        return sys.getsizeof(self) + sys.getsizeof(self.starts) + sys.getsizeof(self.values)


class _DenseBlock:
    """The pages of one block as one value each; made of a crowded block of runs."""

    __slots__ = ("values",)

    def __init__(self, runs: _RunBlock) -> None:
        lengths = map(sub, chain(runs.starts[1:], (_SPAN,)), runs.starts)
        self.values = array(runs.values.typecode, list(chain.from_iterable(map(repeat, runs.values, lengths))))

    def get(self, offset: int) -> int:
        return self.values[offset]

    def set(self, offset: int, value: int) -> bool:
        self.values[offset] = value
        return False

    def fill(self, start: int, stop: int, value: int) -> None:
        self.values[start:stop] = array(self.values.typecode, (value,)) * (stop - start)

    def runs(self, start: int, stop: int, base: int) -> list[Run]:
        """The runs that cover ``[start, stop)``, as pages counted from ``base``."""
        here, after = self.values[start:stop], self.values[start + 1 : stop]
        first, last = base + start, base + stop
        if here[:-1] == after:  # all equal: one memcmp instead of a look at every page
            return [(first, last, here[0])]
        cuts = list(compress(range(first + 1, last), map(ne, here, after)))
        return [(at, to, here[at - first]) for at, to in zip([first, *cuts], [*cuts, last], strict=True)]

    def widen(self, typecode: str) -> None:
        """Make room for larger values."""
        self.values = array(typecode, self.values)

    def nbytes(self) -> int:
        return sys.getsizeof(self) + sys.getsizeof(self.values)


class PageTable:
    """Page number -> unsigned int of 8 (typecode ``"B"``) or 32 bits (``"I"``); 0 where nothing was set."""

    __slots__ = ("_blocks", "_narrow", "_typecode")

    def __init__(self, typecode: Literal["B", "I"]) -> None:
        self._typecode = typecode
        self._narrow = "H" if typecode == "I" else typecode  # of a block, to begin with
        self._blocks: dict[int, _RunBlock | _DenseBlock] = {}

    def get(self, page: int) -> int:
        """The value of one page."""
        block = self._blocks.get(page >> _SHIFT)
        return block.get(page & _LAST) if block is not None else 0

    def set(self, page: int, value: int) -> None:
        """Give one page a value. Raises :class:`OverflowError` for one that does not fit the typecode."""
        number = page >> _SHIFT
        block = self._blocks.get(number)
        if block is None:
            self._fill(number, page & _LAST, (page & _LAST) + 1, value)
            return
        try:
            crowded = block.set(page & _LAST, value)
        except OverflowError:
            if not self._widen(block, value):
                raise
            crowded = block.set(page & _LAST, value)
        if crowded:
            self._settle(number, block)

    def set_run(self, start: int, stop: int, value: int) -> None:
        """Give all pages ``[start, stop)`` one value. Raises :class:`OverflowError` as :meth:`set` does."""
        if start >= stop:
            return
        numbers = self._touched(start, stop) if not value else range(start >> _SHIFT, (stop - 1 >> _SHIFT) + 1)
        for number in numbers:
            base = number << _SHIFT
            self._fill(number, max(start - base, 0), min(stop - base, _SPAN), value)

    def runs(self, start: int, stop: int) -> list[Run]:
        """The maximal runs of equal value that cover ``[start, stop)``, zeros included, in order."""
        if stop - start == 1:
            return [(start, stop, self.get(start))]
        if start >= stop:
            return []
        if start >> _SHIFT == stop - 1 >> _SHIFT:  # within one block: the usual question
            block = self._blocks.get(start >> _SHIFT)
            if block is None:
                return [(start, stop, 0)]
            base = start & ~_LAST
            return block.runs(start - base, stop - base, base)
        return list(_merged(self._pieces(start, stop), start, stop))

    def touched_runs(self) -> Iterator[Run]:
        """All maximal runs of a value other than 0, in order. The table may not change meanwhile."""
        last = max(self._blocks, default=-1) + 1 << _SHIFT
        return (run for run in _merged(self._pieces(0, last), 0, last) if run[2])

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the table takes, all its objects included."""
        blocks = self._blocks
        contents = sum(sys.getsizeof(number) + block.nbytes() for number, block in blocks.items())
        return sys.getsizeof(self) + sys.getsizeof(blocks) + contents

    def _touched(self, start: int, stop: int) -> list[int]:
        """The numbers of the blocks that exist and hold pages of ``[start, stop)``, in order."""
        wanted = range(start >> _SHIFT, (stop - 1 >> _SHIFT) + 1)
        if len(wanted) > len(self._blocks):
            return sorted(number for number in self._blocks if number in wanted)
        return [number for number in wanted if number in self._blocks]

    def _pieces(self, start: int, stop: int) -> Iterator[Run]:
        """What the blocks of ``[start, stop)`` hold, cut at their borders; nothing for pages of no block."""
        for number in self._touched(start, stop):
            base = number << _SHIFT
            yield from self._blocks[number].runs(max(start - base, 0), min(stop - base, _SPAN), base)

    def _fill(self, number: int, start: int, stop: int, value: int) -> None:
        """Give the offsets ``[start, stop)`` of a block one value."""
        block = self._blocks.get(number)
        if block is None or stop - start == _SPAN:
            block = _RunBlock(self._narrow)
        try:
            block.fill(start, stop, value)
        except OverflowError:
            if not self._widen(block, value):
                raise
            block.fill(start, stop, value)
        self._settle(number, block)

    def _widen(self, block: _RunBlock | _DenseBlock, value: int) -> bool:
        """A value did not fit a block, of which nothing has changed: let it, if it fits the table."""
        if block.values.typecode == self._typecode or not 0 <= value < _VALUES:
            return False
        block.widen(self._typecode)
        return True

    def _settle(self, number: int, block: _RunBlock | _DenseBlock) -> None:
        """Keep a block that has just changed in the form that suits it; a blank one not at all."""
        if isinstance(block, _DenseBlock):
            self._blocks[number] = block
        elif len(block.starts) == 1 and not block.values[0]:
            self._blocks.pop(number, None)
        else:
            self._blocks[number] = _DenseBlock(block) if len(block.starts) > block.runs_max else block


def _merged(pieces: Iterator[Run], start: int, stop: int) -> Iterator[Run]:
    """``[start, stop)`` as maximal runs, from ordered ones that may touch and may leave gaps (of zeros)."""
    begin, at, value = start, start, 0
    for first, last, content in pieces:
        if first > at and value:
            yield begin, at, value
            begin, value = at, 0
        if content != value:
            if first > begin:
                yield begin, first, value
            begin, value = first, content
        at = last
    if value:
        yield begin, at, value
        begin, value = at, 0
    if begin < stop:
        yield begin, stop, value
