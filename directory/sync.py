"""Locks and barriers of the cluster: pure, first come first served.

A waiter is a ``(node, ticket)``: the node's own number for one waiting call of one of its applications.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Any, Final

from dsm.wire import (
    Acquire,
    Answer,
    Arrive,
    BarrierReset,
    Cancel,
    Cancelled,
    Failure,
    Granted,
    Inspect,
    Message,
    Release,
)

Waiter = tuple[int, int]
Outgoing = list[tuple[int, Message]]

_NODE_MAX: Final = 1 << 16
"""Locks that one node may hold and calls that may wait there, together: more than its applications can have."""
_BARRIERS_MAX: Final = 1 << 16
"""Barriers that somebody waits at or that are broken: only the latter stay without anybody, until they are reset."""


class _Barrier:
    __slots__ = ("broken", "name", "parties", "waiting")

    def __init__(self, name: str, parties: int) -> None:
        self.name = name
        self.parties = parties
        self.waiting: list[Waiter] = []
        self.broken = False


class SyncMachine:
    """One door: :meth:`step`. A free lock is not stored, nor a whole barrier at which nobody waits."""

    def __init__(self) -> None:
        self._holder: dict[str, Waiter] = {}
        self._queues: dict[str, deque[Waiter]] = {}
        self._barriers: dict[str, _Barrier] = {}
        self._waits_for: dict[Waiter, str | _Barrier] = {}
        self._load: Counter[int] = Counter()  # locks held and calls waiting, by node
        self.rejected = 0
        self._handlers: dict[type[Any], Any] = {
            Acquire: self._acquire,
            Release: self._release,
            Arrive: self._arrive,
            BarrierReset: self._reset,
            Inspect: self._inspect,
            Cancel: self._cancel,
        }

    @property
    def messages(self) -> frozenset[type[Any]]:
        """The kinds of message that belong here."""
        return frozenset(self._handlers)

    def step(self, node: int, message: Message) -> Outgoing:
        """What to send after a message of ``node``. One that the rules do not allow changes nothing and is counted."""
        if isinstance(message, Acquire | Arrive) and not self._may_wait(node, message.ticket):
            self.rejected += 1
            return []
        out: Outgoing = self._handlers[type(message)](node, message)
        return out

    def _may_wait(self, node: int, ticket: int) -> bool:
        """A ticket is one call, which waits for one thing."""
        return (node, ticket) not in self._waits_for and self._load[node] < _NODE_MAX

    def forget_node(self, node: int) -> Outgoing:
        """A node has left: its locks pass on, its waiters go, the barriers they stood at break."""
        out: Outgoing = []
        for waiter in [w for w in self._waits_for if w[0] == node]:
            if waiter in self._waits_for:  # else one of the node's own has just broken the barrier of both
                out += self._give_up(waiter)
        for name in [name for name, holder in self._holder.items() if holder[0] == node]:
            out += self._pass_on(name)
        del self._load[node]
        return [(to, message) for to, message in out if to != node]

    def status(self) -> dict[str, Any]:
        """Locks that are held and barriers that are known, for people to read."""
        return {
            "locks": [
                {"name": name, "node": holder[0], "waiting": len(self._queues.get(name, ()))}
                for name, holder in self._holder.items()
            ],
            "barriers": [
                {"name": name, "parties": b.parties, "waiting": len(b.waiting), "broken": b.broken}
                for name, b in self._barriers.items()
            ],
        }

    # -- locks -----------------------------------------------------------------------------------------

    def _acquire(self, node: int, m: Acquire) -> Outgoing:
        if m.name not in self._holder:
            self._holder[m.name] = (node, m.ticket)
            self._load[node] += 1
            return [(node, Granted(m.ticket, 0))]
        if not m.wait:
            return [(node, Cancelled(m.ticket))]
        self._queues.setdefault(m.name, deque()).append((node, m.ticket))
        self._wait((node, m.ticket), m.name)
        return []

    def _release(self, node: int, m: Release) -> Outgoing:
        if self._holder.get(m.name) != (node, m.holder):
            return [(node, Failure(m.ticket, "LockNotHeld", f"lock {m.name!r} is not held here: acquire it first"))]
        return [(node, Granted(m.ticket, 0)), *self._pass_on(m.name)]

    def _pass_on(self, name: str) -> Outgoing:
        self._load[self._holder[name][0]] -= 1
        queue = self._queues.get(name)
        if not queue:
            del self._holder[name]
            return []
        node, ticket = waiter = queue.popleft()
        if not queue:
            del self._queues[name]
        self._stop_waiting(waiter)
        self._holder[name] = waiter
        self._load[node] += 1
        return [(node, Granted(ticket, 0))]

    # -- barriers ----------------------------------------------------------------------------------------

    def _barrier(self, name: str, parties: int) -> _Barrier | str:
        """The barrier, made at its first use, or why it cannot be joined."""
        if not parties:
            return "a barrier needs at least one party"
        barrier = self._barriers.get(name)
        if barrier is None:
            if len(self._barriers) >= _BARRIERS_MAX:
                return f"there are {_BARRIERS_MAX} barriers that are waited at or broken: reset those that are"
            barrier = self._barriers[name] = _Barrier(name, parties)
        if barrier.parties != parties:
            return (
                f"barrier {name!r} has {barrier.parties} parties, not {parties}: every party must give the same number"
            )
        return barrier

    def _arrive(self, node: int, m: Arrive) -> Outgoing:
        barrier = self._barrier(m.name, m.parties)
        if isinstance(barrier, str):
            return [(node, Failure(m.ticket, "BarrierMismatch", barrier))]
        if barrier.broken:
            return [(node, Failure(m.ticket, "BrokenBarrier", f"barrier {m.name!r} is broken: reset() mends it"))]
        barrier.waiting.append((node, m.ticket))
        self._wait((node, m.ticket), barrier)
        if len(barrier.waiting) < barrier.parties:
            return []
        arrived, barrier.waiting = barrier.waiting, []
        del self._barriers[m.name]
        for waiter in arrived:
            self._stop_waiting(waiter)
        return [(to, Granted(ticket, index)) for index, (to, ticket) in enumerate(arrived)]

    def _reset(self, node: int, m: BarrierReset) -> Outgoing:
        barrier = self._barrier(m.name, m.parties)
        if isinstance(barrier, str):
            return [(node, Failure(m.ticket, "BarrierMismatch", barrier))]
        out = self._break(barrier, "was aborted" if m.broken else "was reset")
        barrier.broken = m.broken
        if not m.broken:
            del self._barriers[m.name]
        return [*out, (node, Granted(m.ticket, 0))]

    def _break(self, barrier: _Barrier, why: str) -> Outgoing:
        waiting, barrier.waiting, barrier.broken = barrier.waiting, [], True
        for waiter in waiting:
            self._stop_waiting(waiter)
        return [
            (to, Failure(ticket, "BrokenBarrier", f"barrier {barrier.name!r} {why} while waiting"))
            for to, ticket in waiting
        ]

    # -- both --------------------------------------------------------------------------------------------

    def _wait(self, waiter: Waiter, awaited: str | _Barrier) -> None:
        self._waits_for[waiter] = awaited
        self._load[waiter[0]] += 1

    def _stop_waiting(self, waiter: Waiter) -> str | _Barrier:
        self._load[waiter[0]] -= 1
        return self._waits_for.pop(waiter)

    def _cancel(self, node: int, m: Cancel) -> Outgoing:
        """Exactly one answer reaches the ticket: what was granted before the cancellation came stands."""
        if (node, m.ticket) not in self._waits_for:
            return []
        return [(node, Cancelled(m.ticket)), *self._give_up((node, m.ticket))]

    def _give_up(self, waiter: Waiter) -> Outgoing:
        awaited = self._stop_waiting(waiter)
        if isinstance(awaited, str):
            queue = self._queues[awaited]
            queue.remove(waiter)
            if not queue:
                del self._queues[awaited]
            return []
        awaited.waiting.remove(waiter)
        return self._break(awaited, "lost a party that gave up")

    def _inspect(self, node: int, m: Inspect) -> Outgoing:
        if not m.parties:
            return [(node, Answer(m.ticket, {"locked": m.name in self._holder}))]
        barrier = self._barriers.get(m.name) or _Barrier(m.name, m.parties)
        return [(node, Answer(m.ticket, {"waiting": len(barrier.waiting), "broken": barrier.broken}))]
