"""What is kept of pages under way, and the notes of an agent: found again by whoever has the memory, whenever the
writer stopped."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

from dsm.constants import EXTENT_BYTES, PAGE_BYTES
from nodes.notes import NOTE_BYTES_MAX, SharedNotes
from nodes.retained import SharedRetained

PAGES = 32


def page(value: int, size: int = PAGE_BYTES) -> bytes:
    return value.to_bytes(8, "little") * (size // 8)


class Peer:
    """Acknowledges what it is told to."""

    def __init__(self) -> None:
        self.acknowledged = {(2, False): 0, (2, True): 0}

    def __call__(self, node: int, bulk: bool) -> int:
        return self.acknowledged[node, bulk]


@pytest.fixture
def peer() -> Peer:
    return Peer()


@pytest.fixture
def retained(peer: Peer) -> Iterator[SharedRetained]:
    kept = SharedRetained(peer)
    yield kept
    for fd in kept.memfds:
        os.close(fd)


def another(retained: SharedRetained, peer: Peer) -> SharedRetained:
    """That of the next agent, in the same memory."""
    return SharedRetained(peer, retained.memfds)


def test_the_next_one_finds_what_was_kept_last_of_each_page(retained: SharedRetained, peer: Peer) -> None:
    retained.add(1, 5, 2, page(1) + page(2))
    retained.add(1, 6, 1, page(3))
    retained.add(2, 0, 1, page(4))
    found = another(retained, peer)
    assert found.look() == {1: [(5, 2)], 2: [(0, 1)]}
    assert [found.page(1, 5), found.page(1, 6), found.page(2, 0), found.page(2, 1)] == [page(1), page(3), page(4), None]


def test_nothing_that_has_not_come_is_overwritten(retained: SharedRetained, peer: Peer) -> None:
    chance = random.Random(1)
    last: dict[int, tuple[int, int]] = {}  # by page: what was in it, and the message with it
    for number in range(1, 3000):
        start = chance.randrange(PAGES)
        retained.add(1, start, 1, page(number))
        retained.sent(2, False, number)
        last[start] = number, number
        peer.acknowledged[2, False] = max(peer.acknowledged[2, False], number - chance.randrange(1, 200))
    found = another(retained, peer)
    for start, (value, message) in last.items():
        if message > peer.acknowledged[2, False]:
            assert found.page(1, start) == page(value)
    assert os.fstat(retained.memfds[0]).st_blocks * 512 < 8 << 20  # what has come was


def test_pages_of_all_sizes_are_kept_and_the_last_counts_whatever_row_it_is_in(
    retained: SharedRetained, peer: Peer
) -> None:
    retained.add(1, 0, 32, b"".join(map(page, range(32))))
    retained.add(3, 0, 1, page(7, EXTENT_BYTES))
    retained.add(3, 1, 1, page(8, EXTENT_BYTES))
    found = another(retained, peer)
    assert found.look() == {1: [(0, 32)], 3: [(0, 2)]}
    assert found.page(3, 1) == page(8, EXTENT_BYTES) and found.page(1, 31) == page(31)


def test_while_it_holds_nothing_is_overwritten_though_it_has_come(retained: SharedRetained, peer: Peer) -> None:
    retained.hold()
    peer.acknowledged[2, False] = 1 << 30
    for number in range(1, 1000):
        retained.add(1, number, 1, page(number))
        retained.sent(2, False, number)
    assert retained.look() == {1: [(1, 999)]}
    retained.clear()
    assert retained.look() == {}
    retained.add(1, 3, 1, page(5))
    assert another(retained, peer).look() == {1: [(3, 1)]}


def test_what_was_cut_off_in_the_middle_is_none(retained: SharedRetained, peer: Peer) -> None:
    retained.add(1, 1, 1, page(1))
    retained.add(1, 2, 1, page(2))
    used = 2 * (40 + PAGE_BYTES + 63 & -64)
    os.pwrite(retained.memfds[0], b"\xff" * 40, used)  # no use of a segment has this number
    assert another(retained, peer).look() == {1: [(1, 2)]}


def test_notes_are_what_was_put_last() -> None:
    notes = SharedNotes()
    try:
        slots = [notes.take_slot() for _ in range(3)]
        for turn in range(5):
            for slot in slots:
                notes.put(slot, bytes([slot, turn]) * 100)
        notes.put(slots[0], b"x" * NOTE_BYTES_MAX)
        notes.use(77)
        notes.renew(12.5)
        notes.free(slots[1])
        found = SharedNotes(notes.memfd)
        assert [found.get(slot) for slot in slots] == [b"x" * NOTE_BYTES_MAX, b"", bytes([slots[2], 4]) * 100]
        assert (found.ticket, found.lease) == (77, 12.5)
        found.found([slots[0], slots[2]])
        assert [found.take_slot(), found.take_slot()] == [slots[1], slots[2] + 1]
    finally:
        os.close(notes.memfd)
