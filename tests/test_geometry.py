"""The laws of pages, extents and shards."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsm.constants import EXTENT_BYTES, FRAME_BYTES, PAGE_BYTES, REGION_BYTES_MAX
from dsm.errors import InvalidArgument, RegionTooLarge
from dsm.geometry import check_size, joined, pages_in, pages_per_extent, pages_per_frame, shard_of, split

PAGE_SIZES = st.integers(1, EXTENT_BYTES // PAGE_BYTES).map(lambda pages: pages * PAGE_BYTES)
SIZES = st.integers(1, REGION_BYTES_MAX)
PAGES = st.integers(0, REGION_BYTES_MAX // PAGE_BYTES - 1)
REGIONS = st.integers(0, 2**32 - 1)


@given(SIZES, PAGE_SIZES)
def test_every_size_with_every_page_size_is_possible(size: int, page_size: int) -> None:
    check_size(size, page_size)


@pytest.mark.parametrize("page_size", [PAGE_BYTES, 2 * PAGE_BYTES, 3 * PAGE_BYTES, EXTENT_BYTES])
@pytest.mark.parametrize("size", [1, PAGE_BYTES, REGION_BYTES_MAX])
def test_the_limits_themselves_are_possible(size: int, page_size: int) -> None:
    check_size(size, page_size)


@pytest.mark.parametrize("size", [0, -1, -(2**70)])
def test_a_region_has_at_least_one_byte(size: int) -> None:
    with pytest.raises(InvalidArgument, match="at least one byte"):
        check_size(size, PAGE_BYTES)


@pytest.mark.parametrize("size", [REGION_BYTES_MAX + 1, 2**63, 2**80])
def test_a_region_fits_the_address_space(size: int) -> None:
    with pytest.raises(RegionTooLarge, match=str(REGION_BYTES_MAX)):
        check_size(size, PAGE_BYTES)


@pytest.mark.parametrize(
    "page_size", [0, -PAGE_BYTES, 1, PAGE_BYTES - 1, PAGE_BYTES + 1, EXTENT_BYTES + PAGE_BYTES, EXTENT_BYTES - 1]
)
def test_a_page_is_a_multiple_of_the_kernels_and_no_larger_than_an_extent(page_size: int) -> None:
    with pytest.raises(InvalidArgument, match=f"page_size {page_size} .*multiple of {PAGE_BYTES}"):
        check_size(1 << 20, page_size)


@given(SIZES, PAGE_SIZES)
def test_pages_hold_the_region_and_none_is_superfluous(size: int, page_size: int) -> None:
    pages = pages_in(size, page_size)
    assert (pages - 1) * page_size < size <= pages * page_size


@given(PAGE_SIZES)
def test_as_many_whole_pages_as_fit_in_an_extent(page_size: int) -> None:
    pages = pages_per_extent(page_size)
    assert pages >= 1
    assert pages * page_size <= EXTENT_BYTES < (pages + 1) * page_size


@given(PAGE_SIZES)
def test_a_frame_takes_whole_pages_and_at_least_one(page_size: int) -> None:
    pages = pages_per_frame(page_size)
    assert pages * page_size <= max(FRAME_BYTES, page_size) < (pages + 1) * page_size
    assert pages <= pages_per_extent(page_size)


@given(REGIONS, PAGES, PAGE_SIZES, st.integers(1, 64))
def test_a_shard_exists(region: int, page: int, page_size: int, shards: int) -> None:
    assert 0 <= shard_of(region, page, page_size, shards) < shards


@given(REGIONS, PAGES, PAGE_SIZES)
def test_one_shard_has_everything(region: int, page: int, page_size: int) -> None:
    assert shard_of(region, page, page_size, 1) == 0


@given(REGIONS, PAGES, PAGE_SIZES, st.integers(2, 64))
def test_an_extent_has_one_shard_and_the_next_extent_the_next_one(
    region: int, page: int, page_size: int, shards: int
) -> None:
    extent = page // pages_per_extent(page_size)
    first = extent * pages_per_extent(page_size)
    here = shard_of(region, page, page_size, shards)
    assert shard_of(region, first, page_size, shards) == here
    assert shard_of(region, first + pages_per_extent(page_size) - 1, page_size, shards) == here
    assert shard_of(region, first + pages_per_extent(page_size), page_size, shards) == (here + 1) % shards


@given(REGIONS, PAGES, st.integers(2, 64))
def test_regions_start_at_different_shards(region: int, page: int, shards: int) -> None:
    starts = [shard_of(region + other, page, PAGE_BYTES, shards) for other in range(shards)]
    assert sorted(starts) == list(range(shards))


@given(REGIONS, st.integers(1, 16), st.integers(1, 200))
def test_shards_share_the_extents_evenly(region: int, shards: int, extents: int) -> None:
    step = pages_per_extent(PAGE_BYTES)
    load = Counter(shard_of(region, extent * step, PAGE_BYTES, shards) for extent in range(extents))
    counts = [load[shard] for shard in range(shards)]
    assert max(counts) - min(counts) <= 1


@given(st.integers(0, 2**40), st.integers(1, 500), st.integers(1, 700))
def test_split_covers_the_range_and_cuts_exactly_at_the_multiples(start: int, count: int, step: int) -> None:
    pieces = list(split(start, start + count, step))
    assert [page for first, last in pieces for page in range(first, last)] == list(range(start, start + count))
    assert all(first // step == (last - 1) // step for first, last in pieces)
    assert all(last % step == 0 for _, last in pieces[:-1])


@pytest.mark.parametrize(("start", "stop"), [(0, 0), (512, 512), (7, 7), (9, 3)])
def test_an_empty_range_has_no_pieces(start: int, stop: int) -> None:
    assert list(split(start, stop, 512)) == []


def test_runs_that_touch_are_one_if_one_node_had_them() -> None:
    runs = [(8, 9, "b"), (0, 1, "a"), (1, 4, "a"), (4, 5, "b"), (6, 7, "b"), (5, 6, "b")]
    assert joined(runs) == [(0, 4, "a"), (4, 7, "b"), (8, 9, "b")]
    assert joined([]) == []
