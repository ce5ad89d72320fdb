"""What it costs to take a range exclusive: one round of messages, however many extents it has, however it is held."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator

import pytest
from simulated_cluster import REGION, Channel, Cluster, Node, Packet

from dsm.constants import EXTENT_BYTES
from dsm.geometry import split
from dsm.wire import Data, Fetch, Message
from nodes import effects

PER_EXTENT = 16
PREFETCHER = 1


class Counted(Cluster):
    """A cluster that counts messages and how many hops each is from what nobody asked for."""

    def __init__(self, nodes: int, extents: int) -> None:
        self.kinds: Counter[str] = Counter()
        self.finished: list[int] = []  # after so many hops a piece was all here
        self._hops: dict[Channel, deque[int]] = {}
        self._fetches: dict[tuple[int, int, int], int] = {}  # hops, by requester, generation and first page
        self._now = 0
        super().__init__(nodes, extents * PER_EXTENT, page_size=EXTENT_BYTES // PER_EXTENT, frame_pages=PER_EXTENT)

    def forget(self) -> None:
        self.kinds.clear()
        self.finished.clear()
        self._now = 0

    def send(
        self, source: int, to: int, message: Message, contents: list[int] | None = None, bulk: bool = False
    ) -> None:
        hops = self._fetches[to, message.generation, message.first] if type(message) is Data else self._now
        self.kinds[type(message).__name__] += 1
        self._hops.setdefault(Channel(source, to, bulk), deque()).append(hops + 1)
        super().send(source, to, message, contents, bulk)

    def deliver(self, channel: Channel) -> Packet:
        self._now = self._hops[channel].popleft()
        message = self.channels[channel][0].message
        if type(message) is Fetch:
            self._fetches[message.requester, message.generation, message.start] = self._now
        return super().deliver(channel)

    def effect(self, node: Node, effect: effects.Effect) -> None:
        if type(effect) is effects.Finished:
            self.finished.append(self._now)

    def settle(self) -> None:
        """Deliver whatever is on its way, and let every hold be over."""
        while True:
            if pending := self.pending():
                self.deliver(pending[0])
            elif busy := [node for node in self.nodes.values() if list(node.bulk)]:
                busy[0].send_frame()
            elif held := [node for node in self.nodes.values() if node.holds]:
                held[0].expire_hold()
            else:
                return

    def prefetch(self, number: int, start: int, stop: int, write: bool) -> None:
        """All pieces at once, then everything until it is quiet."""
        node = self.nodes[number]
        self.forget()
        for piece in split(start, stop, PER_EXTENT):
            node.applications[0].prefetches += 1
            node.run(node.machine.prefetch(REGION, *piece, write, node.applications[0]))
        self.settle()
        self.check()
        self.check_quiet()


def held(node: Node, extents: int) -> Iterator[int]:
    return (node.state(page) for page in range(extents * PER_EXTENT))


@pytest.mark.parametrize("extents", [1, 3, 8])
@pytest.mark.parametrize("readers", [0, 1, 4])
@pytest.mark.parametrize("reads_itself", [False, True])
def test_a_range_is_taken_exclusive_in_one_round(extents: int, readers: int, reads_itself: bool) -> None:
    cluster = Counted(2 + readers, extents)
    pages = extents * PER_EXTENT
    cluster.prefetch(2, 0, pages, True)
    for reader in [*range(3, 3 + readers), *([PREFETCHER] if reads_itself else [])]:
        cluster.prefetch(reader, 0, pages, False)
    cluster.prefetch(PREFETCHER, 0, pages, True)
    others = readers + 1 if reads_itself else readers  # who has to be told besides the one that sends the pages
    wanted = {"Request": 1, "Invalidate": others, "Ack": others, "Done": 1}
    wanted |= {"Grant": 1} if reads_itself else {"Fetch": 1, "Data": 1}
    assert cluster.kinds == Counter({kind: count * extents for kind, count in wanted.items()})
    assert len(cluster.finished) == extents
    assert max(cluster.finished) <= 3
    assert len(set(held(cluster.nodes[PREFETCHER], extents))) == 1


@pytest.mark.parametrize("extents", [1, 8])
def test_what_nobody_has_touched_is_granted_in_runs(extents: int) -> None:
    cluster = Counted(2, extents)
    cluster.prefetch(PREFETCHER, 0, extents * PER_EXTENT, True)
    assert cluster.kinds == Counter(Request=extents, Grant=extents)
    assert max(cluster.finished) == 2


@pytest.mark.parametrize("owners", [2, 4, 8])
def test_owners_of_parts_are_asked_at_once(owners: int) -> None:
    cluster = Counted(1 + owners, 1)
    part = PER_EXTENT // owners
    for place in range(owners):
        cluster.prefetch(2 + place, place * part, (place + 1) * part, True)
    cluster.prefetch(PREFETCHER, 0, PER_EXTENT, True)
    assert cluster.kinds == Counter(Request=1, Fetch=owners, Data=owners, Done=owners)
    assert cluster.finished and max(cluster.finished) <= 3


def test_what_is_here_to_be_read_is_upgraded_beside_what_is_not() -> None:
    """Own copies and missing pages of one piece are two kinds of request, and go out together."""
    cluster = Counted(2, 1)
    cluster.prefetch(2, 0, PER_EXTENT, True)
    cluster.prefetch(PREFETCHER, 0, PER_EXTENT // 2, False)
    cluster.prefetch(PREFETCHER, 0, PER_EXTENT, True)
    assert cluster.kinds == Counter(Request=2, Grant=1, Invalidate=1, Ack=1, Fetch=1, Data=1, Done=2)
    assert cluster.finished == [3]
