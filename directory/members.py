"""Who is a member, and on which connection: what every shard of a directory keeps beside its pages. Pure."""

from __future__ import annotations

from collections import deque
from typing import Any, Final

from directory.machine import PageMachine
from dsm import constants, errors, wire
from dsm.logline import line
from dsm.story import text
from dsm.wire import PAGES

TICK_S: Final = 0.25
"""How often leases are to be looked at."""
Outgoing = list[tuple[bytes, wire.Message]]
"""Messages with the identity of the connection that each is for."""


class Node:
    """A member. ``session`` is the conversation in which it became one, ``identity`` that of now.

    ``heard``: how many REMEMBERED messages have come from it. ``answers``: what it was told on tickets, as far as it is
    not known to have read it; ``answers_read`` are the ones before.
    """

    __slots__ = (
        "address", "answers", "answers_read", "applications", "deaf", "heard", "heard_s", "identity", "name", "number",
        "session",
    )  # fmt: skip

    def __init__(self, number: int, name: str, address: str, identity: bytes, now: float) -> None:
        self.number = number
        self.name = name
        self.address = address
        self.identity = self.session = identity
        self.heard = 0
        self.answers: deque[wire.Message] = deque()
        self.answers_read = 0
        self.applications = 0
        self.deaf = False  # it does not read what it is sent, and has missed something
        self.heard_s = now

    def told(self) -> wire.Member:
        """How others are told of it."""
        return wire.Member(self.number, self.name, self.address)


class Members:
    """The members of a cluster, and pages that they share.

    ``due_s``: when the next :meth:`tick` is due. ``news``: what became of members since its reader last cleared it.
    ``forgotten``: connections that the shell is to end, and clears.
    ``connections_rejected``: on how many no conversation came about, which the shell counts.
    """

    def __init__(self, address: str, now: float, pages: PageMachine, shard: int = 0) -> None:
        self._shard = shard
        self.address = address
        self.due_s = now
        self.news: list[str] = []
        self.forgotten: list[bytes] = []
        self.connections_rejected = 0
        self._pages = pages
        self.events = pages.events
        self._nodes: dict[int, Node] = {}
        self._by_identity: dict[bytes, Node] = {}
        self._rejected = 0

    # -- doors -------------------------------------------------------------------------------------------

    def step(self, identity: bytes, message: wire.Message, now: float) -> Outgoing:
        """What to send after a message that came on the connection ``identity``."""
        node = self._by_identity.get(identity)
        if node is None:
            return self._stranger(identity, message, now)
        node.heard_s = now
        if type(message) in PAGES:  # most of them: no detour
            return self._to_members(self._pages.step(node.number, message))
        return self._handle(node, message, now)

    def malformed(self, identity: bytes, error: errors.DsmError) -> Outgoing:
        """What came is no message, or none that can be served: it changes nothing and is counted."""
        self._rejected += 1
        return [(identity, wire.failure(0, error))]

    def is_member(self, identity: bytes) -> bool:
        """Is whoever speaks on this connection part of the cluster?"""
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

    def status(self, now: float) -> dict[str, Any]:
        """For people and for metrics. Another thread may ask, while this one goes on."""
        return {"counters": self._counters(), "nodes": [], "away": [], "regions": []}

    def _counters(self) -> dict[str, int]:
        rejected = self.connections_rejected + self._rejected + self._pages.rejected
        return {"transactions": self._pages.transactions, "rejected": rejected}

    def story_of(self, region: int, page: int) -> str:
        """What happened to a page, as text for a log."""
        return text(self._pages.story_of(region, page)) if self._pages.has_region(region) else "of no region here"

    # -- what differs from shard to shard ----------------------------------------------------------------

    def _stranger(self, identity: bytes, message: wire.Message, now: float) -> Outgoing:
        """A message of somebody who is no member."""
        raise NotImplementedError

    def _handle(self, node: Node, message: wire.Message, now: float) -> Outgoing:
        """A message of a member that is not about pages."""
        raise NotImplementedError

    def _remove(self, node: Node, reason: str) -> Outgoing:
        """A member has left, or is no longer counted as one."""
        raise NotImplementedError

    # -- what does not -----------------------------------------------------------------------------------

    def _refused(self, identity: bytes) -> Outgoing:
        self._rejected += 1
        return [(identity, wire.Fenced("this directory does not know you: it was restarted, or you were silent"))]

    def _to_members(self, outgoing: list[tuple[int, wire.Message]]) -> Outgoing:
        nodes = self._nodes
        return [(nodes[to].identity, message) for to, message in outgoing if to in nodes]

    def _welcome(self, newcomer: Node) -> Outgoing:
        """Take a node in, and tell it and the others of each other."""
        out: Outgoing = [(newcomer.identity, wire.Welcome(newcomer.number))]
        for node in self._nodes.values():
            out.append((newcomer.identity, node.told()))
            out.append((node.identity, newcomer.told()))
        self._nodes[newcomer.number] = newcomer
        self._by_identity[newcomer.identity] = newcomer
        self.news.append(line("joined", node=newcomer.number, name=newcomer.name, address=newcomer.address))
        return out

    def _heartbeat(self, node: Node, m: wire.Heartbeat) -> Outgoing:
        node.applications = m.applications
        while node.answers and node.answers_read < m.heard:
            node.answers.popleft()
            node.answers_read += 1
        return [(node.identity, wire.Lease(self._shard, m.beat, node.heard))]

    def _take_out(self, node: Node, reason: str) -> Outgoing:
        """Strike a node off, and tell the others."""
        del self._nodes[node.number]
        del self._by_identity[node.identity]
        self.news.append(line("gone", node=node.number, name=node.name, reason=reason))
        return [(other.identity, wire.MemberLeft(node.number, reason)) for other in self._nodes.values()]
