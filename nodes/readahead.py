"""When to ask for pages ahead of the faults: a pure policy, fed with the numbers of faulting pages only.

A stream is a place that moves on by the same step: forward, backward, or across. Its window doubles while the guess is
right (as Linux readahead: mm/readahead.c); when the reader enters the last window that was asked for, the next one is
asked for already. There are a few streams, for threads and arrays that are read in turn; a new one takes the place of
that which was used longest ago.

Two neighbours in a row are weak evidence, and open a stream on credit. Its first windows are paid for and given
back once the stream goes on; every fault earns a little. So an application whose accesses look like streams and are
none costs a few per cent, and one that has lost its credit has to show a longer run. A fault that belongs to no stream
halves all windows: among random accesses a wide window is met by chance.
"""

from __future__ import annotations

from typing import Final

from dsm.constants import AHEAD_CREDIT_PAGES, AHEAD_PRICE_FAULTS, AHEAD_RECENT, AHEAD_STREAMS, STRIDE_PAGES_MAX

_PROOF: Final = 4
"""Equal steps that are a stream to anybody."""

_STRIDED_MAX: Final = 16
"""Pages in a window of a stream that leaves some out: each is a request of its own."""


class _Stream:
    __slots__ = ("last", "next", "paid", "step", "window")

    def __init__(self, last: int, step: int, window: int, paid: int) -> None:
        self.last = last
        self.step = step
        self.window = window
        self.next = last + step  # the first page that was not asked for
        self.paid = paid  # for the last window, on credit


class ReadAhead:
    """The policy for one kind of access of one application, to a region of ``pages``; windows are in pages."""

    __slots__ = ("_credit", "_pages", "_recent", "_streams", "_window_max", "_window_min", "sure")

    def __init__(self, window_min: int, window_max: int, pages: int) -> None:
        self._window_min = window_min
        self._window_max = window_max
        self._pages = pages
        self._streams: list[_Stream] = []  # that used last comes first
        self._recent: list[int] = []  # faults that belong to no stream, the last comes last
        self._credit = AHEAD_CREDIT_PAGES * AHEAD_PRICE_FAULTS
        self.sure = False
        """Were the last pages asked for by a stream that has been right before?"""

    def fault(self, page: int) -> list[tuple[int, int]] | None:
        """The runs ``[start, stop)`` to ask for beside the faulting page, the nearest first, if any."""
        self._credit = min(self._credit + 1, AHEAD_CREDIT_PAGES * AHEAD_PRICE_FAULTS)
        streams = self._streams
        for place in range(len(streams)):
            stream = streams[place]
            passed = (page - stream.last) * stream.step
            if passed == 0:  # another thread at the same place
                return None
            if 0 < passed <= (stream.next - stream.last) * stream.step and passed % (stream.step * stream.step) == 0:
                if place:
                    del streams[place]
                    streams.insert(0, stream)
                return self._go_on(stream, page)
        return self._open(page)

    def _go_on(self, stream: _Stream, page: int) -> list[tuple[int, int]] | None:
        stream.last = page
        if abs(stream.next - page) > stream.window * abs(stream.step):  # far enough ahead still
            return None
        if stream.next == page:
            stream.next += stream.step
        window_max = self._window_max if abs(stream.step) == 1 else min(_STRIDED_MAX, self._window_max)
        stream.window = min(2 * stream.window, window_max)
        self._credit += stream.paid
        stream.paid = stream.window * AHEAD_PRICE_FAULTS if stream.window <= 2 * self._window_min else 0
        self._credit -= stream.paid
        return self._ask(stream)

    def _open(self, page: int) -> list[tuple[int, int]] | None:
        for stream in self._streams:
            stream.window = max(stream.window // 2, self._window_min)
        step = self._step(page)
        recent = self._recent
        price = self._window_min * AHEAD_PRICE_FAULTS
        if step and self._credit < price:
            if self._run(page, step) < _PROOF:
                step = 0
            price = 0
        recent.append(page)
        if len(recent) > AHEAD_RECENT:
            del recent[0]
        if not step:
            return None
        self._credit -= price
        stream = _Stream(page, step, self._window_min, price)
        self._streams.insert(0, stream)
        if len(self._streams) > AHEAD_STREAMS:
            self._streams.pop()
        return self._ask(stream)

    def _step(self, page: int) -> int:
        """The step with which recent faults lead to this one, or 0. Forward, one is enough; else it takes two."""
        recent = self._recent
        if page - 1 in recent:
            return 1
        for place in range(len(recent) - 1, 0, -1):
            step = page - recent[place]
            if step and -STRIDE_PAGES_MAX <= step <= STRIDE_PAGES_MAX and self._run(page, step) >= 2:
                return step
        return 0

    def _run(self, page: int, step: int) -> int:
        """How many recent faults in order lead to this one."""
        count = 0
        recent = self._recent
        for place in range(len(recent) - 1, -1, -1):
            if recent[place] == page - step * (count + 1):
                count += 1
        return count

    def _ask(self, stream: _Stream) -> list[tuple[int, int]] | None:
        start, step = stream.next, stream.step
        room = (self._pages - start + step - 1) // step if step > 0 else start // -step + 1
        count = min(stream.window, room)
        if count <= 0:
            return None
        self.sure = stream.window > self._window_min
        stream.next = start + count * step
        if step == 1:
            return [(start, stream.next)]
        if step == -1:
            return [(stream.next + 1, start + 1)]
        return [(page, page + 1) for page in range(start, stream.next, step)]
