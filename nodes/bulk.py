"""Pages on their way to other nodes, a frame at a time, so that whatever somebody waits for goes in between: pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

from dsm.wire import Fetch, Hurry


class Frame(NamedTuple):
    """Pages ``[start, start + count)`` of a Fetch, which travel in one message."""

    fetch: Fetch
    start: int
    count: int


class Bulk:
    """What is still to be sent, transfer by transfer in order of arrival."""

    __slots__ = ("_transfers",)

    def __init__(self) -> None:
        self._transfers: deque[tuple[Fetch, dict[int, Frame]]] = deque()  # the frames by first page, in order

    def __bool__(self) -> bool:
        return bool(self._transfers)

    def __iter__(self) -> Iterator[Frame]:
        for _, frames in self._transfers:
            yield from frames.values()

    def add(self, fetch: Fetch, frame_pages: int) -> None:
        """Send these pages, ``frame_pages`` at a time."""
        stop = fetch.start + fetch.count
        cut = range(fetch.start, stop, frame_pages)
        self._transfers.append((fetch, {start: Frame(fetch, start, min(frame_pages, stop - start)) for start in cut}))

    def next(self, ready: Callable[[int], bool]) -> Frame | None:
        """The first frame for a requester that is ``ready`` to take one. None if nobody is."""
        asked: set[int] = set()
        for fetch, frames in self._transfers:
            if fetch.requester in asked:
                continue
            asked.add(fetch.requester)
            if ready(fetch.requester):
                return self._take(frames, next(iter(frames)))
        return None

    def expedite(self, m: Hurry) -> Frame | None:
        """The frame with a page that somebody waits for now. None if it has been sent already."""
        for fetch, frames in self._transfers:
            if (fetch.region, fetch.generation, fetch.requester) == (m.region, m.generation, m.requester):
                for start, frame in frames.items():
                    if start <= m.page < start + frame.count:
                        return self._take(frames, start)
        return None

    def _take(self, frames: dict[int, Frame], start: int) -> Frame:
        frame = frames.pop(start)
        if not frames:
            self._transfers = deque(transfer for transfer in self._transfers if transfer[1])
        return frame

    def cancel(self, region: int | None = None, requester: int | None = None) -> list[Frame]:
        """Send nothing more of a region, or nothing more to a node; what it would have been."""
        gone = [f for f in self if f.fetch.region == region or f.fetch.requester == requester]
        self._transfers = deque(
            (fetch, frames)
            for fetch, frames in self._transfers
            if fetch.region != region and fetch.requester != requester
        )
        return gone
