"""Everything that a directory knows, as one pure machine: who is a member, the regions, and the pages, locks and
barriers that belong to them.

Its doors are :meth:`Cluster.step` for a message of a connection, :meth:`Cluster.tick` for the passing of time,
:meth:`Cluster.malformed` for what was no message, and :meth:`Cluster.unread` for who does not read. Each but the last
returns messages with the connection that each is for. Times are seconds of any clock that only goes forward.
"""

from __future__ import annotations

from itertools import islice
from typing import Any, Final

from directory.machine import PageMachine
from directory.registry import Registry
from directory.sync import SyncMachine
from dsm import constants, errors, wire
from dsm.address import check_peer, is_loopback
from dsm.geometry import pages_in
from dsm.story import Story, text

TICK_S: Final = 0.25
"""How often leases are to be looked at."""
_PAGES: Final = frozenset((wire.Request, wire.Done, wire.GaveUp, wire.Hurry))

Outgoing = list[tuple[bytes, wire.Message]]
"""Messages with the identity of the connection that each is for."""


class _Node:
    __slots__ = ("address", "applications", "deaf", "heard_s", "identity", "name", "number")

    def __init__(self, number: int, m: wire.Join, identity: bytes, now: float) -> None:
        self.number = number
        self.name = m.name
        self.address = m.address
        self.identity = identity
        self.applications = 0
        self.deaf = False  # it does not read what it is sent, and has missed something
        self.heard_s = now


def _member(node: _Node) -> wire.Member:
    return wire.Member(node.number, node.name, node.address)


class Cluster:
    """The cluster as its directory sees it; ``address``, for people to read, is where that listens.

    ``due_s``: when the next :meth:`tick` is due. ``news``: what became of members since its reader last cleared it.
    ``connections_rejected``: on how many no conversation came about, which the shell counts.
    """

    def __init__(self, address: str, now: float, story: Story | None = None) -> None:
        self.address = address
        self.due_s = now
        self.news: list[str] = []
        self.connections_rejected = 0
        self._pages = PageMachine(story)
        self._registry = Registry()
        self._sync = SyncMachine()
        self._sync_messages = self._sync.messages
        self._nodes: dict[int, _Node] = {}
        self._by_identity: dict[bytes, _Node] = {}
        self._last_node = 0
        self._rejected = 0
        self._handlers: dict[type[Any], Any] = {
            wire.Heartbeat: self._heartbeat,
            wire.Leave: self._leave,
            wire.Open: self._open,
            wire.Keep: self._keep,
            wire.Close: self._close,
            wire.Unlink: self._unlink,
        }

    # -- doors -------------------------------------------------------------------------------------------

    def step(self, identity: bytes, message: wire.Message, now: float) -> Outgoing:
        """What to send after a message that came on the connection ``identity``."""
        node = self._by_identity.get(identity)
        if node is not None:
            node.heard_s = now
            if type(message) in _PAGES:  # most of them: no detour
                return self._to_members(self._pages.step(node.number, message))
            return self._handle(node, message, now)
        if isinstance(message, wire.Join):
            return self._join(identity, message, now)
        if isinstance(message, wire.Query):
            return [(identity, self._query(message, now))]
        if isinstance(message, wire.Leave):
            return []
        self._rejected += 1
        return [(identity, wire.Fenced("this directory does not know you: it was restarted, or you were silent"))]

    def malformed(self, identity: bytes, error: errors.DsmError) -> Outgoing:
        """What came is no message, or none that can be served: it changes nothing and is counted."""
        self._rejected += 1
        return [(identity, wire.failure(0, error))]

    def is_member(self, identity: bytes) -> bool:
        """Is whoever speaks on this connection a node of the cluster?"""
        return identity in self._by_identity

    def unread(self, identity: bytes) -> None:
        """A message for this connection was dropped, because it reads none: who misses one is no member for long."""
        node = self._by_identity.get(identity)
        if node is not None:
            node.deaf = True

    def tick(self, now: float) -> Outgoing:
        """Time has passed: whoever was silent for too long has left."""
        if now - self.due_s > constants.HEARTBEAT_S:  # it was the directory that was stopped, or swamped
            for node in self._nodes.values():
                node.heard_s = now
        self.due_s = now + TICK_S
        out: Outgoing = []
        for node in [n for n in self._nodes.values() if n.deaf or now - n.heard_s > constants.LEASE_S]:
            why = "it did not read what it was sent" if node.deaf else f"silent for {constants.LEASE_S:g} s"
            out += self._remove(node, why)
        return out

    def _handle(self, node: _Node, message: wire.Message, now: float) -> Outgoing:
        kind = type(message)
        if kind in self._sync_messages:
            return self._to_members(self._sync.step(node.number, message))
        if kind is wire.Query:
            return [(node.identity, self._query(message, now))]  # type: ignore[arg-type]
        if kind in self._handlers:
            out: Outgoing = self._handlers[kind](node, message)
            return out
        self._rejected += 1
        return []

    def _to_members(self, outgoing: list[tuple[int, wire.Message]]) -> Outgoing:
        nodes = self._nodes
        return [(nodes[to].identity, message) for to, message in outgoing if to in nodes]

    # -- membership --------------------------------------------------------------------------------------

    def _join(self, identity: bytes, m: wire.Join, now: float) -> Outgoing:
        try:
            self._check_newcomer(m)
        except errors.DsmError as error:
            return self.malformed(identity, error)
        self._last_node += 1
        newcomer = _Node(self._last_node, m, identity, now)
        out: Outgoing = [(identity, wire.Welcome(newcomer.number))]
        for node in self._nodes.values():
            out.append((identity, _member(node)))
            out.append((node.identity, _member(newcomer)))
        self._nodes[newcomer.number] = newcomer
        self._by_identity[identity] = newcomer
        self.news.append(f"node {newcomer.number} {newcomer.name!r} joined from {newcomer.address}")
        return out

    def _check_newcomer(self, m: wire.Join) -> None:
        """Raise why somebody cannot become a member."""
        check_peer(m.address)
        if clash := self._clash(m):
            raise errors.NodeNameInUse(clash)
        if self._last_node >= constants.NODES_MAX:
            raise errors.InvalidArgument("this directory has run out of node numbers")

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

    def _heartbeat(self, node: _Node, m: wire.Heartbeat) -> Outgoing:
        node.applications = m.applications
        return []

    def _leave(self, node: _Node, _: wire.Leave) -> Outgoing:
        return self._remove(node, "it left")

    def _remove(self, node: _Node, reason: str) -> Outgoing:
        del self._nodes[node.number]
        del self._by_identity[node.identity]
        self.news.append(f"node {node.number} {node.name!r} is gone: {reason}")
        out: Outgoing = [(other.identity, wire.MemberLeft(node.number, reason)) for other in self._nodes.values()]
        for region, known in self._registry.forget_node(node.number).items():
            out += self._destroy(region, known)
        out += self._to_members(self._pages.forget_node(node.number, node.name))
        out += self._to_members(self._sync.forget_node(node.number))
        return out

    # -- regions -----------------------------------------------------------------------------------------

    def _open(self, node: _Node, m: wire.Open) -> Outgoing:
        try:
            region, new = self._registry.open(node.number, m)
        except errors.DsmError as error:
            return [(node.identity, wire.failure(m.ticket, error))]
        if new:
            self._pages.add_region(region.number, region.size, region.page_size)
        answer = wire.Opened(m.ticket, region.number, region.size, region.page_size, region.options)
        return [(node.identity, answer)]

    def _keep(self, node: _Node, m: wire.Keep) -> Outgoing:
        if self._is_attached(node, m.region):
            self._registry.keep(node.number, m.region)
        return []

    def _is_attached(self, node: _Node, region: int) -> bool:
        attached = self._registry.is_attached(node.number, region)
        self._rejected += not attached
        return attached

    def _close(self, node: _Node, m: wire.Close) -> Outgoing:
        if not self._is_attached(node, m.region):
            return []
        told = self._registry.close(node.number, m.region, m.opens)
        return self._destroy(m.region, told) if m.region not in self._registry.regions else []

    def _unlink(self, node: _Node, m: wire.Unlink) -> Outgoing:
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
        return self._to_members([(node, wire.Destroy(region)) for node in sorted(told)])

    # -- questions ---------------------------------------------------------------------------------------

    def _query(self, m: wire.Query, now: float) -> wire.Message:
        if m.what == "status":
            return wire.Answer(m.ticket, self._status(now))
        if m.what == "owners" and self._pages.has_region(m.region):
            return wire.Answer(m.ticket, {"owners": self._owners(m)})
        if m.what == "story":
            return self._story(m)
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

    def story_of(self, region: int, page: int) -> str:
        """What happened to a page, as text for a log."""
        return text(self._pages.story_of(region, page)) if self._pages.has_region(region) else "of no region here"

    def _owners(self, m: wire.Query) -> bytes:
        """Little-endian u16 node ids, one a page; what does not fit a message is cut off."""
        stop = min(m.start + m.count, m.start + constants.LOCAL_BYTES_MAX // 4)
        runs = self._pages.owners(m.region, m.start, stop)
        return b"".join(owner.to_bytes(2, "little") * (b - a) for a, b, owner in runs)

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
