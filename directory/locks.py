"""Locks of the cluster: pure, first come first served.

A lock belongs to a node, which keeps it after its release for the next of its own processes and gives it back when it
is told that others wait (Recall). So whoever takes a lock again and again where nobody else wants it asks nobody.
Whether it is held there at the moment the directory does not know, until the node has answered.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

from directory.waiting import Call, Outgoing, Primitive, Thread, Waiting
from dsm.wire import CONTENDED, OWNER_DIED, TRY, Answer, Recall


class Lock(Primitive):
    """A lock that belongs to ``node``, or to none (0) because its last holder died and nobody came since (``died``).

    ``holder`` is who holds it for sure: as told by the node, or granted when others waited already. ``grant`` is the
    ticket with which the node got it.
    """

    __slots__ = ("_asking", "_queue", "_recalled", "_waiting", "died", "grant", "holder", "node")

    def __init__(self, name: str, kind: int, waiting: Waiting) -> None:
        super().__init__(name, kind)
        self._waiting = waiting
        self.node = self.grant = 0
        self.holder: Thread | None = None
        self.died = False
        self._recalled = False
        self._queue: deque[Call] = deque()
        self._asking: list[tuple[int, int]] = []  # tickets that want to know whether it is held

    @property
    def says(self) -> bool:
        return bool(self.node) or self.died

    @property
    def calls(self) -> int:
        return len(self._queue)

    def acquire(self, call: Call) -> Outgoing:
        """Grant it or let the call wait."""
        if not self.node:
            return [self._grant(call)]
        if call.wait == TRY and (self.holder is not None or self._queue):
            return [call.cancelled()]
        self._queue.append(call)
        self._waiting.add(call, self)
        return self._recall()

    def inspect(self, node: int, ticket: int) -> Outgoing:
        """Is it held? Only the node that it belongs to knows."""
        if not self.node or self.holder is not None:
            return [(node, self._answer(ticket))]
        self._asking.append((node, ticket))
        return self._recall()

    def returned(self, died: bool) -> Outgoing:
        """Its node has given it back: the next one's turn."""
        self._waiting.load[self.node] -= 1
        self.node = 0
        self.holder = None
        self.died = self.died or died
        self._recalled = False
        out: Outgoing = []
        if self._queue:
            call = self._queue.popleft()
            self._waiting.remove(call)
            out.append(self._grant(call))
        return self._tell_askers() + out

    def is_held(self, holder: Thread) -> Outgoing:
        """Its node has answered that somebody there holds it."""
        self.holder = holder
        out: Outgoing = []
        while self._queue and self._queue[0].wait == TRY:
            call = self._queue.popleft()
            self._waiting.remove(call)
            out.append(call.cancelled())
        return self._tell_askers() + out

    def recall_again(self) -> Outgoing:
        """The node may not have been told."""
        return [(self.node, Recall(self.name))] if self._recalled else []

    def asks(self, node: int, ticket: int) -> bool:
        """Does the answer to this Inspect wait for the node that has the lock?"""
        return (node, ticket) in self._asking

    def leave(self, call: Call) -> Outgoing:
        self._queue.remove(call)
        self._waiting.remove(call)
        return []

    def blockers(self, call: Call) -> Iterable[Thread]:
        return () if self.holder is None else (self.holder,)

    def state(self) -> dict[str, Any]:
        holder = "" if self.holder is None else self.holder.who  # known once others wait
        return {"node": self.node, "holder": holder, "owner died": self.died}

    def _grant(self, call: Call) -> tuple[int, Any]:
        self.node, self.grant = call.node, call.ticket
        self._waiting.load[call.node] += 1
        self._recalled = bool(self._queue)
        self.holder = call.thread if self._queue else None
        value = (CONTENDED if self._queue else 0) | (OWNER_DIED if self.died else 0)
        self.died = False
        return call.granted(value)

    def _recall(self) -> Outgoing:
        if self._recalled:
            return []
        self._recalled = True
        return [(self.node, Recall(self.name))]

    def _tell_askers(self) -> Outgoing:
        asking, self._asking = self._asking, []
        return [(node, self._answer(ticket)) for node, ticket in asking]

    def _answer(self, ticket: int) -> Answer:
        return Answer(ticket, {"locked": self.holder is not None or bool(self._queue)})
