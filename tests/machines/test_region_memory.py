"""What a node does to a memory file when the kernel helps only part of the way: a real memfd, a made-up userfaultfd."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import Any, cast

import pytest

from dsm import memory
from dsm.constants import EXTENT_BYTES, PAGE_BYTES
from dsm.uffd import Outcome, Userfaultfd
from nodes.memory import Mapping, RegionMemory

STORED = bytes([7]) * PAGE_BYTES


class Grudging:
    """A userfaultfd whose COPY brings the first page, wakes a thread that stores to it at once, and then fails."""

    def __init__(self, region: RegionMemory, failure: OSError | Outcome) -> None:
        self._region = region
        self._failure = failure

    def protect(self, address: int, length: int) -> Outcome:
        return Outcome.DONE

    def copy(self, to: int, source: int, length: int, protect: bool) -> Outcome:
        os.pwrite(self._region.memfd, STORED, to)
        if isinstance(self._failure, OSError):
            raise self._failure
        return self._failure

    def close(self) -> None:
        """Nothing to close."""


@pytest.fixture
def region() -> Iterator[RegionMemory]:
    def blame(mapping: Mapping, error: OSError) -> None:
        raise error

    region = RegionMemory(1, "region", 4 * PAGE_BYTES, PAGE_BYTES, {}, blame)
    yield region
    region.close()


@pytest.mark.parametrize("failure", [OSError(errno.ENOMEM, "no memory"), Outcome.PRESENT], ids=str)
def test_what_a_thread_stored_in_the_middle_of_an_install_stays(
    region: RegionMemory, failure: OSError | Outcome
) -> None:
    mapping = Mapping(region, cast(Userfaultfd, Grudging(region, failure)), 0, 0)
    assert region.take_in(mapping)
    staging = memory.Staging()
    staging.buffer[: 4 * PAGE_BYTES] = cast(Any, bytes([1]) * 4 * PAGE_BYTES)
    assert not region.install(0, 4, staging, True, mapping)
    assert region.read(0, 4) == STORED + bytes([1]) * 3 * PAGE_BYTES


# -- markers ---------------------------------------------------------------------------------------------


class Watched:
    """A userfaultfd that remembers the extents that were protected."""

    def __init__(self) -> None:
        self.protected: set[int] = set()

    def protect(self, address: int, length: int) -> Outcome:
        self.protected |= set(range(address // EXTENT_BYTES, -(-(address + length) // EXTENT_BYTES)))
        return Outcome.DONE

    def copy(self, to: int, source: int, length: int, protect: bool) -> Outcome:
        return Outcome.DONE

    def close(self) -> None:
        """Nothing to close."""


@pytest.fixture
def extents() -> Iterator[RegionMemory]:
    def blame(mapping: Mapping, error: OSError) -> None:
        raise error

    region = RegionMemory(1, "extents", 9 * EXTENT_BYTES, PAGE_BYTES, {}, blame)
    yield region
    region.close()


def taken_in(region: RegionMemory) -> Watched:
    watched = Watched()
    assert region.take_in(Mapping(region, cast(Userfaultfd, watched), 0, 0))
    return watched


def test_every_application_has_markers_before_a_page_becomes_present(extents: RegionMemory) -> None:
    applications = [taken_in(extents) for _ in range(3)]
    pages = EXTENT_BYTES // PAGE_BYTES
    extents.install(5 * pages + 1, 1, None, True, extents.mappings[1])
    extents.install(7 * pages - 1, 2, None, False, None)  # on both sides of a border
    assert [each.protected for each in applications] == [{0, 5, 6, 7}] * 3


def test_an_application_that_comes_late_has_markers_wherever_pages_may_be(extents: RegionMemory) -> None:
    taken_in(extents)
    pages = EXTENT_BYTES // PAGE_BYTES
    for extent in (8, 2, 3, 5):
        extents.install(extent * pages, 1, None, False, None)
    assert taken_in(extents).protected == {0, 2, 3, 5, 8}
