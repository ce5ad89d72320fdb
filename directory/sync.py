"""The named primitives of the cluster, by name: pure.

Locks (locks.py), barriers (barriers.py), semaphores, events, conditions and counters (semaphores.py) share one set of
names. A primitive is made at its first use and kept while there is anything to remember of it; a semaphore and a
counter until they are forgotten. Exactly one answer reaches a ticket.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from itertools import islice
from typing import Any, Final, cast

from directory import deadlock
from directory.barriers import Barrier
from directory.locks import Lock
from directory.semaphores import Condition, Counter, Event, Semaphore
from directory.waiting import Call, Outgoing, Primitive, Thread, Waiting, thread_of
from dsm import errors, wire
from dsm.wire import (
    BARRIER,
    BOUNDED_SEMAPHORE,
    CONDITION,
    COUNTER,
    EVENT,
    KIND_NAMES,
    LOCK,
    RLOCK,
    SEMAPHORE,
    Acquire,
    Answer,
    Arrive,
    BarrierReset,
    Cancel,
    Enroll,
    Forget,
    Gone,
    Granted,
    Holds,
    Inspect,
    Message,
    Post,
    Return,
)

_NAMES_MAX: Final = 1 << 20
"""Primitives of which something is to be remembered."""

_TOLD_MAX: Final = 1000
"""Of them that a status names: it has to fit a message."""

_LOCKS: Final = (LOCK, RLOCK)
_SEMAPHORES: Final = (SEMAPHORE, BOUNDED_SEMAPHORE)


class SyncMachine:
    """One door: :meth:`step`."""

    def __init__(self) -> None:
        self._named: dict[str, Primitive] = {}
        self._waiting = Waiting()
        self.rejected = 0
        self._handlers: dict[type[Any], Callable[[int, Any], Outgoing]] = {
            Acquire: self._acquire,
            Post: self._post,
            Enroll: self._enroll,
            Arrive: self._arrive,
            BarrierReset: self._reset,
            Inspect: self._inspect,
            Forget: self._forget,
            Cancel: self._cancel,
            Return: self._return,
            Holds: self._holds,
            Gone: self._gone,
        }

    @property
    def messages(self) -> frozenset[type[Any]]:
        """The kinds of message that belong here."""
        return frozenset(self._handlers)

    def step(self, node: int, message: Message) -> Outgoing:
        """What to send after a message of ``node``. One that the rules do not allow changes nothing and is counted."""
        if isinstance(message, Acquire | Arrive) and not self._waiting.may_wait(node, message.ticket):
            self.rejected += 1
            return []
        try:
            return self._handlers[type(message)](node, message)
        except errors.DsmError as error:
            return [(node, wire.failure(cast(Any, message).ticket, error))]

    def forget_node(self, node: int) -> Outgoing:
        """A node has left: its locks pass on, its waiters go, the barriers of its processes cannot fill."""
        out: Outgoing = []
        for call in self._waiting.of_node(node):
            if call.primitive is not None:  # else one of the node's own has just broken the barrier of both
                out += self._end(call)
        for primitive in list(self._named.values()):
            if isinstance(primitive, Lock) and primitive.node == node:
                out += self._passed_on(primitive, primitive.returned(died=True))
            elif isinstance(primitive, Barrier):
                for process in primitive.processes_of(node):
                    out += primitive.gone(process, died=True)
                self._tidy(primitive)
        del self._waiting.load[node]
        return [(to, message) for to, message in out if to != node]

    def waits(self, node: int, ticket: int) -> bool:
        """Will this ticket be answered?"""
        if self._waiting.call(node, ticket) is not None:
            return True
        return any(isinstance(one, Lock) and one.asks(node, ticket) for one in self._named.values())

    def recall_again(self, node: int) -> Outgoing:
        """A node may have missed that others want its locks."""
        locks = [one for one in self._named.values() if isinstance(one, Lock) and one.node == node]
        return [message for lock in locks for message in lock.recall_again()]

    def not_held(self, node: int, held: Container[tuple[int, str]]) -> list[Return]:
        """The agent of a node was killed, which had all but these locks (how granted, and name) for nobody: how to take
        the others back. Who holds them the next one will tell: it may be somebody else by then."""
        locks = [one for one in self._named.values() if isinstance(one, Lock) and one.node == node]
        for lock in locks:
            lock.holder = None
        idle = [lock for lock in locks if (lock.grant, lock.name) not in held]
        return [Return(lock.grant, lock.name, False) for lock in idle]

    def status(self) -> dict[str, Any]:
        """What is known of primitives, for people to read; of very many, only the first."""
        told = islice(self._named.values(), _TOLD_MAX)
        return {
            "primitives": [
                {"name": one.name, "kind": KIND_NAMES[one.kind], "calls": one.calls, **one.state()} for one in told
            ]
        }

    # -- names -------------------------------------------------------------------------------------------

    def _find(self, name: str, kind: int) -> Primitive | None:
        """The primitive of this name, if it is there. Raises :class:`KindMismatch` if it is of another kind."""
        found = self._named.get(name)
        if found is not None and found.kind != kind:
            raise errors.KindMismatch(
                f"{name!r} is a {KIND_NAMES[found.kind]}, and cannot be a {KIND_NAMES[kind]}, too: choose another name"
            )
        return found

    def _find_or_make(self, name: str, kind: int, make: Callable[[], Primitive]) -> Primitive:
        found = self._find(name, kind)
        if found is None:
            if len(self._named) >= _NAMES_MAX:
                raise errors.NodeExhausted(f"the directory keeps {_NAMES_MAX} primitives at most: unlink() some")
            found = self._named[name] = make()
        return found

    def _tidy(self, primitive: Primitive) -> None:
        if not primitive.says:
            self._named.pop(primitive.name, None)

    def _enroll(self, node: int, m: Enroll) -> Outgoing:
        if m.kind == BARRIER:
            barrier = self._barrier(m.name, m.value)
            barrier.enroll(node, thread_of(m))
            return [(node, Granted(m.ticket, 0)), *self._untangle(call.thread for call in barrier.here)]
        if m.kind in _SEMAPHORES:
            if m.value < 0:
                raise errors.InvalidArgument(f"a semaphore begins with 0 or more, not {m.value}")
            made = self._find_or_make(m.name, m.kind, lambda: Semaphore(m.name, m.kind, m.value, self._waiting))
            self._check_value(cast(Semaphore, made), m.value)
        elif m.kind == COUNTER:
            made = self._find_or_make(m.name, COUNTER, lambda: Counter(m.name, m.value))
            self._check_value(cast(Counter, made), m.value)
        else:
            self._find(m.name, m.kind)
        return [(node, Granted(m.ticket, 0))]

    @staticmethod
    def _check_value(primitive: Semaphore | Counter, value: int) -> None:
        if primitive.initial != value:
            raise errors.ValueMismatch(
                f"{primitive.title} was made with {primitive.initial}, not {value}: open it with the same value, "
                "or unlink() it first"
            )

    def _forget(self, node: int, m: Forget) -> Outgoing:
        found = self._find(m.name, m.kind)
        if found is None:
            raise errors.PrimitiveNotFound(f"there is no {KIND_NAMES[m.kind]} {m.name!r} to unlink")
        if found.calls or isinstance(found, Lock):
            raise errors.InUse(f"{found.title} is in use: {found.calls} wait for it")
        del self._named[m.name]
        return [(node, Granted(m.ticket, 0))]

    def _inspect(self, node: int, m: Inspect) -> Outgoing:
        found = self._find(m.name, m.kind)
        if isinstance(found, Lock):
            return found.inspect(node, m.ticket)
        nothing: dict[int, dict[str, Any]] = {
            EVENT: {"set": False},
            BARRIER: {"waiting": 0, "broken": False},
            CONDITION: {},
        }
        if found is None and m.kind not in nothing:
            if m.kind in _LOCKS:
                return [(node, Answer(m.ticket, {"locked": False}))]
            raise _not_found(m)
        return [(node, Answer(m.ticket, found.state() if found is not None else nothing[m.kind]))]

    # -- waiting -----------------------------------------------------------------------------------------

    def _acquire(self, node: int, m: Acquire) -> Outgoing:
        call = Call(node, m.ticket, m.wait, thread_of(m))
        if m.kind in _LOCKS:
            lock = self._find_or_make(m.name, m.kind, lambda: Lock(m.name, m.kind, self._waiting))
            out = cast(Lock, lock).acquire(call)
            return out + self._untangle([call.thread])
        if m.kind in _SEMAPHORES:
            found = self._find(m.name, m.kind)
            if found is None:
                raise _not_found(m)
            return cast(Semaphore, found).acquire(call)
        if m.kind == EVENT:
            event = self._find_or_make(m.name, EVENT, lambda: Event(m.name, self._waiting))
            out = cast(Event, event).acquire(call)
            self._tidy(event)
            return out
        if m.kind == CONDITION:
            condition = self._find_or_make(m.name, CONDITION, lambda: Condition(m.name, self._waiting))
            out = cast(Condition, condition).acquire(call)
            self._tidy(condition)
            return out
        raise errors.InvalidArgument(f"nobody can wait for a primitive of kind {m.kind}")

    def _post(self, node: int, m: Post) -> Outgoing:
        found = self._find(m.name, m.kind)
        if isinstance(found, Barrier):
            out = found.acted(node)
            if out is None:
                raise errors.BrokenBarrier(f"{found.title} was broken while its action ran")
            return [(node, Granted(m.ticket, 0)), *out]
        if found is None and m.kind == EVENT:
            if not m.count:
                return [(node, Granted(m.ticket, 0))]
            found = self._find_or_make(m.name, EVENT, lambda: Event(m.name, self._waiting))
        if found is None and m.kind == CONDITION:
            return [(node, Granted(m.ticket, 0))]
        if not isinstance(found, Semaphore | Event | Condition | Counter):
            raise _not_found(m)
        out = found.post(m.count)
        self._tidy(found)
        return [*out, (node, Granted(m.ticket, found.value if isinstance(found, Counter) else 0))]

    def _cancel(self, node: int, m: Cancel) -> Outgoing:
        """What was granted before the cancellation came stands."""
        call = self._waiting.call(node, m.ticket)
        if call is None:
            return []
        if m.died:
            return self._end(call)
        primitive = cast(Primitive, call.primitive)
        out = primitive.leave(call)
        self._tidy(primitive)
        return [call.cancelled(), *out]

    def _end(self, call: Call) -> Outgoing:
        """Who waited has ended."""
        primitive = cast(Primitive, call.primitive)
        out = primitive.died(call) if isinstance(primitive, Barrier) else primitive.leave(call)
        self._tidy(primitive)
        return [call.cancelled(), *out]

    def _untangle(self, threads: Iterable[Thread]) -> Outgoing:
        """Are these threads, which wait for more than before, in a circle? Then its youngest call fails."""
        out: Outgoing = []
        for thread in threads:
            while circle := deadlock.circle(thread, self._waiting):
                victim = max(circle, key=lambda call: call.order)
                primitive = cast(Primitive, victim.primitive)
                text = deadlock.story(circle)
                out.append(victim.failed("DeadlockError", text))
                out += primitive.leave(victim)
                self._tidy(primitive)
        return out

    # -- locks -------------------------------------------------------------------------------------------

    def _lock_of(self, node: int, name: str) -> Lock | None:
        lock = self._named.get(name)
        if isinstance(lock, Lock) and lock.node == node:
            return lock
        self.rejected += 1
        return None

    def _return(self, node: int, m: Return) -> Outgoing:
        lock = self._lock_of(node, m.name)
        if lock is None or lock.grant != m.grant:  # said again by another agent of the node, which got it anew since
            return []
        return self._passed_on(lock, lock.returned(m.died))

    def _holds(self, node: int, m: Holds) -> Outgoing:
        lock = self._lock_of(node, m.name)
        if lock is None:
            return []
        out = lock.is_held(thread_of(m))
        return out + self._untangle([thread_of(m)])

    def _passed_on(self, lock: Lock, out: Outgoing) -> Outgoing:
        self._tidy(lock)
        return out + (self._untangle([lock.holder]) if lock.holder is not None else [])

    # -- barriers ----------------------------------------------------------------------------------------

    def _barrier(self, name: str, parties: int) -> Barrier:
        if not 0 < parties < 2**32:
            raise errors.BarrierMismatch(f"a barrier needs at least one party, not {parties}")
        made = cast(Barrier, self._find_or_make(name, BARRIER, lambda: Barrier(name, parties, self._waiting)))
        if made.parties != parties and made.is_idle:
            self._named[name] = made = Barrier(name, parties, self._waiting)
        if made.parties != parties:
            raise errors.BarrierMismatch(
                f"barrier {name!r} has {made.parties} parties, not {parties}: every party must give the same number"
            )
        return made

    def _arrive(self, node: int, m: Arrive) -> Outgoing:
        barrier = self._barrier(m.name, m.parties)
        call = Call(node, m.ticket, m.wait, thread_of(m))
        out = barrier.arrive(call, m.act)
        return out + self._untangle([call.thread])

    def _reset(self, node: int, m: BarrierReset) -> Outgoing:
        barrier = self._barrier(m.name, m.parties)
        out = barrier.reset(broken=m.broken)
        self._tidy(barrier)
        return [*out, (node, Granted(m.ticket, 0))]

    def _gone(self, node: int, m: Gone) -> Outgoing:
        out: Outgoing = []
        for barrier in [one for one in self._named.values() if isinstance(one, Barrier)]:
            if m.process in barrier.processes_of(node):
                out += barrier.gone(m.process, m.died)
                self._tidy(barrier)
        return out


def _not_found(m: Acquire | Post | Inspect) -> errors.PrimitiveNotFound:
    return errors.PrimitiveNotFound(f"there is no {KIND_NAMES[m.kind]} {m.name!r} any more: it was unlinked")
