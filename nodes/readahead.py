"""When to ask for pages ahead of the faults: a pure policy, fed with fault addresses only.

A window that doubles while the guess is right and goes when it is wrong (as Linux readahead: mm/readahead.c). It
opens at the second fault in a row, so random access costs nothing. While the reader runs into pages that are still on
their way, the next window is asked for already: several are in flight.
"""

from __future__ import annotations


class ReadAhead:
    """The policy for one kind of access of one application; ``window_max`` in pages."""

    __slots__ = ("_frontier", "_last", "_window", "_window_max", "_window_min")

    def __init__(self, window_min: int, window_max: int) -> None:
        self._window_min = window_min
        self._window_max = window_max
        self._window = 0
        self._last = -2
        self._frontier = -1  # the page after the last one asked for

    def fault(self, page: int) -> tuple[int, int] | None:
        """The pages ``[start, stop)`` to ask for beside the faulting one, if any."""
        if page == self._last:  # another thread at the same place
            return None
        if self._last < page <= self._frontier:
            self._last = page
            if page + self._window < self._frontier:  # far enough ahead still
                return None
            start = max(self._frontier, page + 1)
            self._window = min(2 * self._window, self._window_max) or self._window_min
            self._frontier = start + self._window
            return start, self._frontier
        self._last = page
        self._frontier = page + 1
        self._window = 0
        return None
