"""Where a byte lies: pages, extents, shards. Pure arithmetic, shared by every side so that all agree."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from dsm.constants import EXTENT_BYTES, FRAME_BYTES, PAGE_BYTES, REGION_BYTES_MAX
from dsm.errors import InvalidArgument, RegionTooLarge


def check_size(size: int, page_size: int) -> None:
    """Raise :class:`InvalidArgument` unless a region of ``size`` bytes in pages of ``page_size`` can exist."""
    if size <= 0:
        raise InvalidArgument(f"a region needs at least one byte, not {size}: give size= or a shape= without zeros")
    if not 0 < page_size <= EXTENT_BYTES or page_size % PAGE_BYTES:
        raise InvalidArgument(
            f"page_size {page_size} is not possible: use a multiple of {PAGE_BYTES}, {EXTENT_BYTES} at most"
        )
    if size > REGION_BYTES_MAX:
        raise RegionTooLarge(
            f"{size} bytes do not fit any address space, which has {REGION_BYTES_MAX} bytes: choose a smaller region"
        )


def pages_in(size: int, page_size: int) -> int:
    """How many pages hold ``size`` bytes."""
    return -(-size // page_size)


def pages_per_extent(page_size: int) -> int:
    """Pages of one extent: what one directory shard owns in a row, and what one message may name."""
    return EXTENT_BYTES // page_size


def pages_per_frame(page_size: int) -> int:
    """Pages that travel in one frame of data."""
    return max(1, FRAME_BYTES // page_size)


def shard_of(region: int, page: int, page_size: int, shards: int) -> int:
    """The directory shard that owns a page. Extents go round, and regions start at different shards."""
    return (region + page // pages_per_extent(page_size)) % shards


def split(start: int, stop: int, step: int) -> Iterator[tuple[int, int]]:
    """``[start, stop)`` cut at the multiples of ``step``."""
    while start < stop:
        end = min(stop, (start // step + 1) * step)
        yield start, end
        start = end


def joined(runs: Iterable[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    """Runs ``(start, stop, node)``, in order: those that touch, of one node, as one."""
    together: list[tuple[int, int, str]] = []
    for start, stop, node in sorted(runs):
        if together and together[-1][1:] == (start, node):
            start = together.pop()[0]
        together.append((start, stop, node))
    return together
