"""One more shard of a directory: the pages of its extents, and nothing else. Pure.

The first shard (:class:`~directory.cluster.Cluster`) says who is a member and which regions there are, over a
conversation of its own, and hears who was lost here. Each node is a member of every shard, by the number that the first
one gave it: what a shard says to a node, of members as of pages, comes in one order. A node that is out at one shard is
out at all.
"""

from __future__ import annotations

from typing import Final

from directory.machine import PageMachine
from directory.members import Members, Node, Outgoing
from dsm import wire
from dsm.errors import InvalidArgument, NodeNameInUse
from dsm.geometry import pages_in
from dsm.story import Story

FIRST: Final = b"the first shard"
"""Stands for its connection: no name of a conversation is so short."""
_EARLY_MAX: Final = 1 << 10
"""Nodes that have come before the first shard has told of them."""


class Shard(Members):
    """Shard ``number`` of ``shards``; ``address``, for people to read, is where it listens."""

    def __init__(self, address: str, now: float, number: int, shards: int, story: Story | None = None) -> None:
        super().__init__(address, now, PageMachine(story, number, shards), number)
        self._regions: dict[int, wire.Opened] = {}
        self._known: dict[int, wire.Member] = {}  # that are to come, or are here
        self._early: dict[bytes, wire.Enlist] = {}

    def is_member(self, identity: bytes) -> bool:
        """Is whoever speaks on this connection part of the cluster?"""
        return identity == FIRST or super().is_member(identity)

    # -- nodes -------------------------------------------------------------------------------------------

    def _stranger(self, identity: bytes, message: wire.Message, now: float) -> Outgoing:
        if isinstance(message, wire.Enlist):
            return self._enlist(identity, message, now)
        if isinstance(message, wire.Leave):
            return []
        if isinstance(message, wire.Join | wire.Query | wire.JoinShard):
            return self.malformed(identity, InvalidArgument("this is one more shard of a directory: ask the first one"))
        return self._refused(identity)

    def _enlist(self, identity: bytes, m: wire.Enlist, now: float) -> Outgoing:
        known = self._known.get(m.node)
        if known is None:  # the first shard's word of it is on its way
            if len(self._early) >= _EARLY_MAX:
                del self._early[next(iter(self._early))]
            self._early[identity] = m
            return []
        if m.node in self._nodes or (known.name, known.address) != (m.name, m.address):
            return self.malformed(identity, NodeNameInUse(f"node {m.node} is another, or here already"))
        return self._welcome(Node(m.node, m.name, m.address, identity, now))

    def _handle(self, node: Node, message: wire.Message, now: float) -> Outgoing:
        if isinstance(message, wire.Leave):
            return self._remove(node, "it left")
        if isinstance(message, wire.Heartbeat):
            return self._heartbeat(node, message)
        self._rejected += 1
        return []

    def _remove(self, node: Node, reason: str) -> Outgoing:
        return [(FIRST, wire.MemberLeft(node.number, reason)), *self._forget(node, reason)]

    def _forget(self, node: Node, reason: str) -> Outgoing:
        self._known.pop(node.number, None)
        out = self._take_out(node, reason)
        return out + self._to_members(self._pages.forget_node(node.number, node.name))

    # -- the first shard ---------------------------------------------------------------------------------

    def from_first(self, message: wire.Message, now: float) -> Outgoing:
        """What to send after a message of the first shard."""
        if isinstance(message, wire.Member):
            self._known[message.node] = message
            # Several may have said that they are this node: the first shard's word tells which one is.
            early = [(identity, m) for identity, m in self._early.items() if m.node == message.node]
            out: Outgoing = []
            for identity, m in early:
                del self._early[identity]
                out += self._enlist(identity, m, now)
            return out
        if isinstance(message, wire.MemberLeft):
            self._known.pop(message.node, None)
            node = self._nodes.get(message.node)
            return self._forget(node, message.reason) if node is not None else []
        if isinstance(message, wire.Opened):
            self._regions[message.region] = message
            self._pages.add_region(message.region, message.size, message.page_size)
            return [(FIRST, wire.Granted(message.ticket, 0))]
        if isinstance(message, wire.Destroy):
            if self._regions.pop(message.region, None) is not None:
                self._pages.remove_region(message.region)
            return []
        if isinstance(message, wire.Query):
            return [(FIRST, self._query(message))]
        self._rejected += 1
        return []

    def _query(self, m: wire.Query) -> wire.Message:
        if m.what == "status":
            rejected = self.connections_rejected + self._rejected + self._pages.rejected
            counters = {"transactions": self._pages.transactions, "rejected": rejected}
            pages = {
                str(number): counts for number in self._regions if any((counts := self._pages.counts(number)).values())
            }
            return wire.Answer(m.ticket, {"counters": counters, "pages": pages})
        region = self._regions.get(m.region)
        if region is not None and m.what == "owners":
            return wire.Answer(m.ticket, {"owners": self._pages.owner_numbers(m.region, m.start, m.count)})
        if region is not None and m.what == "lost":
            return wire.Answer(m.ticket, self._pages.lost(m.region, m.start, m.count))
        if region is not None and m.what == "story" and m.start < pages_in(region.size, region.page_size):
            return wire.Answer(m.ticket, {"directory": self._pages.story_of(m.region, m.start)})
        return wire.Failure(m.ticket, "InvalidArgument", f"cannot answer {m.what!r} of region {m.region}")
