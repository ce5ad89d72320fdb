"""Everything that a directory knows, as one pure machine: who is a member, the regions, and the pages, locks and
barriers that belong to them. Where it has several shards this is the first, which keeps all but the others' pages.

Its doors are :meth:`Cluster.step` for a message of a connection, :meth:`Cluster.tick` for the passing of time,
:meth:`Cluster.malformed` for what was no message, and :meth:`Cluster.unread` for who does not read. Each but the last
returns messages with the connection that each is for. Times are seconds of any clock that only goes forward.
"""

from __future__ import annotations

from itertools import islice
from typing import Any, Final

from directory.machine import PageMachine
from directory.members import TICK_S, Members, Node, Outgoing
from directory.others import Others
from directory.registry import Registry
from directory.sync import SyncMachine
from dsm import constants, errors, wire
from dsm.address import check_peer, is_loopback
from dsm.geometry import pages_in, shard_of
from dsm.story import Story

__all__ = ["TICK_S", "Cluster", "Outgoing"]

_TOO_LATE: Final = "all shards of this directory were there: one that was lost took its pages' owners with it"


class Cluster(Members):
    """The cluster as its directory sees it; ``address``, for people to read, is where that listens. It has ``shards``
    shards, this one included; before all of them have come no node is taken in. ``name`` tells this cluster from all
    others."""

    def __init__(self, address: str, now: float, story: Story | None = None, shards: int = 1, name: str = "") -> None:
        super().__init__(address, now, PageMachine(story, 0, shards))
        self._name = name
        self._others = Others(shards)
        self._registry = Registry()
        self._sync = SyncMachine()
        self._sync_messages = self._sync.messages
        self._last_node = 0
        self._handlers: dict[type[Any], Any] = {
            wire.Heartbeat: self._heartbeat,
            wire.Leave: self._leave,
            wire.Open: self._open,
            wire.Keep: self._keep,
            wire.Hold: self._hold,
            wire.Close: self._close,
            wire.Unlink: self._unlink,
        }

    # -- doors -------------------------------------------------------------------------------------------

    def _stranger(self, identity: bytes, message: wire.Message, now: float) -> Outgoing:
        if isinstance(message, wire.Join):
            return self._join(identity, message, now)
        if isinstance(message, wire.Query):
            return self._question(identity, message, now)
        if isinstance(message, wire.Leave):
            return []
        if self._others.has(identity):
            return self._from_shard(identity, message, now)
        if isinstance(message, wire.JoinShard):
            return self._join_shard(identity, message)
        return self._refused(identity)

    def is_member(self, identity: bytes) -> bool:
        """Is whoever speaks on this connection part of the cluster?"""
        return identity in self._by_identity or self._others.has(identity)

    def unread(self, identity: bytes) -> None:
        """A message for this connection was dropped, because it reads none: who misses one is no member for long."""
        super().unread(identity)
        self._others.lose(identity)

    def tick(self, now: float) -> Outgoing:
        """Time has passed: whoever was silent for too long has left."""
        return super().tick(now) + self._others.tick(now)

    def _handle(self, node: Node, message: wire.Message, now: float) -> Outgoing:
        kind = type(message)
        if kind in self._sync_messages:
            return self._to_members(self._sync.step(node.number, message))
        if kind is wire.Query:
            return self._question(node.identity, message, now)  # type: ignore[arg-type]
        if kind in self._handlers:
            out: Outgoing = self._handlers[kind](node, message)
            return out
        self._rejected += 1
        return []

    # -- membership --------------------------------------------------------------------------------------

    def _join(self, identity: bytes, m: wire.Join, now: float) -> Outgoing:
        try:
            self._check_newcomer(m)
        except errors.DsmError as error:
            return self.malformed(identity, error)
        self._last_node += 1
        newcomer = Node(self._last_node, m.name, m.address, identity, now)
        return [*self._others.introduce(newcomer), *self._welcome(newcomer)]

    def _check_newcomer(self, m: wire.Join) -> None:
        """Raise why somebody cannot become a member."""
        check_peer(m.address)
        if clash := self._clash(m):
            raise errors.NodeNameInUse(clash)
        if self._last_node >= constants.NODES_MAX:
            raise errors.InvalidArgument("this directory has run out of node numbers")
        if self._others.missing:
            raise errors.DirectoryUnreachable(
                f"this directory waits for {self._others.missing} more of its shards: start each with "
                f"`dsm directory --shard-of {self.address} --listen tcp://IP:PORT`"
            )

    def _clash(self, m: wire.Join) -> str:
        """Why a newcomer cannot be told from a node that is here, or not be reached from it; '' if it can."""
        for node in self._nodes.values():
            if node.name == m.name:
                return f"a node named {m.name!r} is here already: give this one another --name"
            if node.address == m.address:
                return (
                    f"node {node.name!r} is here already with the address {m.address}: give this one its own with "
                    f"--listen (one that was killed is forgotten after {constants.LEASE_S:g} s)"
                )
            if is_loopback(node.address) != is_loopback(m.address):
                return (
                    f"node {node.name!r} listens on {node.address}, this one on {m.address}: other hosts cannot reach "
                    "a loopback address; give both a --listen with the address of their host"
                )
        return ""

    def _leave(self, node: Node, _: wire.Leave) -> Outgoing:
        return self._remove(node, "it left")

    def _remove(self, node: Node, reason: str) -> Outgoing:
        out = self._take_out(node, reason) + self._others.tell(wire.MemberLeft(node.number, reason))
        for region, known in self._registry.forget_node(node.number).items():
            out += self._destroy(region, known)
        out += self._to_members(self._pages.forget_node(node.number, node.name))
        out += self._to_members(self._sync.forget_node(node.number))
        return out

    # -- other shards ------------------------------------------------------------------------------------

    def _join_shard(self, identity: bytes, m: wire.JoinShard) -> Outgoing:
        try:
            check_peer(m.address)
            if not self._others.missing:
                raise errors.InvalidArgument(f"this directory waits for no more shards: {_TOO_LATE}")
        except errors.DsmError as error:
            return self.malformed(identity, error)
        number, out = self._others.join(identity, m.address)
        self.news.append(f"shard {number} joined from {m.address}")
        return out

    def _from_shard(self, identity: bytes, m: wire.Message, now: float) -> Outgoing:
        if isinstance(m, wire.MemberLeft):
            node = self._nodes.get(m.node)  # it may be known here already
            return self._remove(node, m.reason) if node is not None else []
        if isinstance(m, wire.Granted | wire.Answer | wire.Failure):
            return self._others.answered(identity, m)
        self._rejected += 1
        return []

    # -- regions -----------------------------------------------------------------------------------------

    def _open(self, node: Node, m: wire.Open) -> Outgoing:
        try:
            region, new = self._registry.open(node.number, m)
        except errors.DsmError as error:
            return [(node.identity, wire.failure(m.ticket, error))]
        if new:
            self._pages.add_region(region.number, region.size, region.page_size)
        answer = wire.Opened(m.ticket, region.number, region.size, region.page_size, region.options)
        return self._others.opened(answer, new, (node.identity, answer))

    def _keep(self, node: Node, m: wire.Keep) -> Outgoing:
        if self._is_attached(node, m.region):
            self._registry.keep(node.number, m.region)
        return []

    def _hold(self, node: Node, m: wire.Hold) -> Outgoing:
        if not self._registry.may_hold(node.number, m.region, m.on):
            self._rejected += 1
            return []
        told = self._registry.hold(node.number, m.region, m.on)
        return self._destroy(m.region, told) if m.region not in self._registry.regions else []

    def _is_attached(self, node: Node, region: int) -> bool:
        attached = self._registry.is_attached(node.number, region)
        self._rejected += not attached
        return attached

    def _close(self, node: Node, m: wire.Close) -> Outgoing:
        if not self._is_attached(node, m.region):
            return []
        told = self._registry.close(node.number, m.region, m.opens)
        return self._destroy(m.region, told) if m.region not in self._registry.regions else []

    def _unlink(self, node: Node, m: wire.Unlink) -> Outgoing:
        try:
            region, told = self._registry.unlink(m.name)
        except errors.DsmError as error:
            return [(node.identity, wire.failure(m.ticket, error))]
        out = self._destroy(region, told) if region not in self._registry.regions else []
        return [*out, (node.identity, wire.Granted(m.ticket, 0))]

    def _destroy(self, region: int, told: set[int]) -> Outgoing:
        if not self._pages.has_region(region):
            return []
        self._pages.remove_region(region)
        out = self._others.destroyed(region)
        return out + self._to_members([(node, wire.Destroy(region)) for node in sorted(told)])

    # -- questions ---------------------------------------------------------------------------------------

    def _question(self, identity: bytes, m: wire.Query, now: float) -> Outgoing:
        """What the other shards know of it is added to the answer."""
        answer = self._query(m, now)
        if not self._others.there or not isinstance(answer, wire.Answer):
            return [(identity, answer)]
        if m.what == "story":
            region = self._registry.regions[m.region]
            shard = shard_of(m.region, m.start, region.page_size, self._others.shards)
            return self._others.ask_one(shard, identity, m, answer, now) if shard else [(identity, answer)]
        return self._others.ask_all(identity, m, answer, now)

    def _query(self, m: wire.Query, now: float) -> wire.Message:
        if m.what == "status":
            return wire.Answer(m.ticket, self._status(now))
        if m.what == "owners" and self._pages.has_region(m.region):
            return wire.Answer(m.ticket, {"owners": self._pages.owner_numbers(m.region, m.start, m.count)})
        if m.what == "lost" and self._pages.has_region(m.region):
            return wire.Answer(m.ticket, self._pages.lost(m.region, m.start, m.count))
        if m.what == "story":
            return self._story(m)
        if m.what == "cluster":
            return wire.Answer(m.ticket, {"cluster": self._name})
        return wire.Failure(m.ticket, "InvalidArgument", f"cannot answer {m.what!r} of region {m.region}")

    def _story(self, m: wire.Query) -> wire.Message:
        region = self._registry.regions.get(m.region)
        if region is None:
            return wire.Failure(m.ticket, "RegionNotFound", f"there is no region number {m.region} (any more)")
        last = pages_in(region.size, region.page_size) - 1
        if m.start > last:
            why = f"region {region.name!r} has no page {m.start}: its pages are 0 to {last}"
            return wire.Failure(m.ticket, "InvalidArgument", why)
        nodes = {str(node.number): node.name for node in islice(self._nodes.values(), constants.STORY_TOLD_MAX)}
        return wire.Answer(m.ticket, {"nodes": nodes, "directory": self._pages.story_of(m.region, m.start)})

    def _status(self, now: float) -> dict[str, Any]:
        names = {node.number: node.name for node in self._nodes.values()}
        nodes = [
            {
                "id": node.number,
                "name": node.name,
                "address": node.address,
                "applications": node.applications,
                "silent_s": round(now - node.heard_s, 3),
            }
            for node in self._nodes.values()
        ]
        regions = [
            {
                "id": region.number,
                "name": region.name,
                "size": region.size,
                "page_size": region.page_size,
                "options": region.options,
                "unlinked": region.unlinked,
                "attached": sorted(names[node] for node in region.nodes),
                "pages": self._pages.counts(region.number),
            }
            for region in self._registry.regions.values()
        ]
        counters = {
            "transactions": self._pages.transactions,
            "rejected": self.connections_rejected + self._rejected + self._pages.rejected + self._sync.rejected,
        }
        return {
            "directory": self.address,
            "nodes": nodes,
            "regions": regions,
            "counters": counters,
            **self._sync.status(),
        }
