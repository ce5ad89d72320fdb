"""How an explicit prefetch is cut into requests, and how many of them are open at a time: pure arithmetic."""

from __future__ import annotations


class Pieces:
    """The pages ``[start, stop)``, cut at the multiples of ``step``; at most ``open_max`` pieces are open."""

    __slots__ = ("_open", "_open_max", "_start", "_step", "_stop")

    def __init__(self, start: int, stop: int, step: int, open_max: int) -> None:
        self._start = start
        self._stop = stop
        self._step = step
        self._open_max = open_max
        self._open = 0

    @property
    def over(self) -> bool:
        """Has everything been taken, and come?"""
        return not self._open and self._start >= self._stop

    def take(self) -> tuple[int, int] | None:
        """Open the next piece, if there is one and it may be opened now."""
        if self._open == self._open_max or self._start >= self._stop:
            return None
        start = self._start
        self._start = min(self._stop, (start // self._step + 1) * self._step)
        self._open += 1
        return start, self._start

    def came(self) -> None:
        """One of the open pieces is all here."""
        assert self._open, "a piece came that nobody had taken"
        self._open -= 1
