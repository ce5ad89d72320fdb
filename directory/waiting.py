"""Who waits for which named primitive: pure. What all kinds of primitives have in common.

A waiting call is known by its node and its ticket, the node's own number for it. Whoever waits is a thread of a process
of an application: it waits for one thing at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from dsm.wire import FOREVER, KIND_NAMES, Acquire, Arrive, Cancelled, Enroll, Failure, Granted, Holds, Message

Outgoing = list[tuple[int, Message]]
"""Messages, each with the number of the node that it is for."""

_NODE_MAX: Final = 1 << 16
"""Locks that one node may have and calls that may wait there, together: more than its applications can make."""


class Thread(NamedTuple):
    """A thread of an application: ``process`` and ``thread`` tell it from all others, ``who`` is for people."""

    process: int
    thread: int
    who: str


def thread_of(m: Acquire | Arrive | Enroll | Holds) -> Thread:
    """Who speaks, or is spoken of."""
    return Thread(m.process, m.thread, m.who)


class Call:
    """One waiting call. ``order`` counts them: a later one is younger."""

    __slots__ = ("act", "node", "order", "primitive", "thread", "ticket", "wait")

    def __init__(self, node: int, ticket: int, wait: int, thread: Thread) -> None:
        self.node = node
        self.ticket = ticket
        self.wait = wait
        self.thread = thread
        self.order = 0
        self.act = False  # at a barrier: it has an action to run
        self.primitive: Primitive | None = None  # for which it waits

    def granted(self, value: int = 0) -> tuple[int, Message]:
        """The answer that lets it go on."""
        return self.node, Granted(self.ticket, value)

    def cancelled(self) -> tuple[int, Message]:
        """The answer that it did not get it."""
        return self.node, Cancelled(self.ticket)

    def failed(self, error: str, text: str) -> tuple[int, Message]:
        """The answer that it never will; ``error`` is one of :mod:`dsm.errors`."""
        return self.node, Failure(self.ticket, error, text)


class Primitive:
    """One named primitive. It is kept while it :attr:`says` something that a new one would not."""

    __slots__ = ("kind", "name")

    def __init__(self, name: str, kind: int) -> None:
        self.name = name
        self.kind = kind

    @property
    def title(self) -> str:
        """For people: ``"semaphore 'seats'"``."""
        return f"{KIND_NAMES[self.kind]} {self.name!r}"

    @property
    def says(self) -> bool:
        """Is there anything to remember?"""
        raise NotImplementedError

    @property
    def calls(self) -> int:
        """How many wait for it."""
        raise NotImplementedError

    def leave(self, call: Call) -> Outgoing:
        """A call no longer waits for it. What that means for others."""
        raise NotImplementedError

    def blockers(self, call: Call) -> Iterable[Thread]:
        """The threads without which a waiting call cannot go on, as far as they are known: all of them have to act."""
        return ()

    def state(self) -> dict[str, Any]:
        """What Inspect is told, and status."""
        raise NotImplementedError


class Waiting:
    """All waiting calls, and how much each node has of calls and locks."""

    def __init__(self) -> None:
        self._calls: dict[tuple[int, int], Call] = {}
        self._by_thread: dict[tuple[int, int], Call] = {}
        self._order = 0
        self.load: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self._calls)

    def may_wait(self, node: int, ticket: int) -> bool:
        """A ticket is one call, which waits for one thing."""
        return (node, ticket) not in self._calls and self.load[node] < _NODE_MAX

    def add(self, call: Call, primitive: Primitive) -> None:
        """A call begins to wait."""
        self._order += 1
        call.order = self._order
        call.primitive = primitive
        self._calls[call.node, call.ticket] = call
        self._by_thread[call.thread[:2]] = call
        self.load[call.node] += 1

    def remove(self, call: Call) -> None:
        """It has got what it waits for, or gives up."""
        del self._calls[call.node, call.ticket]
        if self._by_thread.get(call.thread[:2]) is call:
            del self._by_thread[call.thread[:2]]
        self.load[call.node] -= 1
        call.primitive = None

    def call(self, node: int, ticket: int) -> Call | None:
        """The call with this ticket, if it waits."""
        return self._calls.get((node, ticket))

    def of_thread(self, thread: Thread) -> Call | None:
        """The call with which a thread waits for ever, if it does."""
        call = self._by_thread.get(thread[:2])
        return call if call is not None and call.wait == FOREVER else None

    def of_node(self, node: int) -> list[Call]:
        """All calls of a node, oldest first."""
        return [call for (number, _), call in self._calls.items() if number == node]
