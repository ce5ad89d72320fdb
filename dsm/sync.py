"""Named primitives for the processes of all nodes, with the methods of :mod:`threading`.

All objects of one name are the same primitive, in whichever process of whichever host. They wait in the order in which
they came. All waiting happens in socket calls: other threads of the process run meanwhile, and Ctrl-C ends it. The
state lives in the directory; a lock that was released stays with its node until another one wants it. Objects can be
pickled, and go through ``fork``, ``forkserver`` and ``spawn``.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from dsm import client, release, travel, wire
from dsm.constants import NAME_CHARS_MAX
from dsm.errors import BrokenBarrier, InvalidArgument, LockNotHeld, OwnerDied

_PARTIES_MAX: Final = (1 << 32) - 1
_COUNT_MAX: Final = (1 << 63) - 1


class _Identity(threading.local):
    """Who a thread is to the others: a random number of its process, its own in that, and a text for people."""

    process = 0
    fields: tuple[int, int, str] = (0, 0, "")


_identity: Final = _Identity()
_process = 0


def _renew_process() -> None:
    global _process
    _process = int.from_bytes(os.urandom(8), "little") >> 1


_renew_process()
os.register_at_fork(after_in_child=_renew_process)


def _say_goodbye() -> None:
    """Whoever ends in good order was, perhaps, no party of the barriers that it opened."""
    client.say_goodbye(wire.Gone(_process, False))


_polite = 0
"""The process (see :data:`_process`) that will say goodbye already, if it is a child of multiprocessing."""


def _say_goodbye_at_the_end() -> None:
    global _polite
    if "multiprocessing.process" in sys.modules:
        from multiprocessing import process, util

        if process.parent_process() is not None:  # it ends without the functions of atexit, if it was forked
            if _polite != _process:
                util.Finalize(None, _say_goodbye, exitpriority=-1)
            _polite = _process
            return
    atexit.unregister(_say_goodbye)
    atexit.register(_say_goodbye)


def _me() -> tuple[int, int, str]:
    if _identity.process != _process:
        rank = os.environ.get("DSM_RANK")
        where = f"process {os.getpid()} of {os.uname().nodename}, {threading.current_thread().name}"
        text = f"rank {rank} ({where})" if rank else where
        who = text.encode(errors="replace").decode()[:NAME_CHARS_MAX]
        _identity.process = _process
        _identity.fields = _process, threading.get_ident(), who
    return _identity.fields


class _Primitive:
    """What all of them have: a name, and how they travel."""

    _kind: int
    _what: str
    """The kind, for people."""

    def __init__(self, name: str) -> None:
        client.check_name(name, self._what)
        self.name = name

    def unlink(self) -> None:
        """Remove it from the cluster, with its state; the next use of the name makes a new one.

        Raises :class:`~dsm.errors.InUse` if somebody waits for it, :class:`~dsm.errors.PrimitiveNotFound` if there is
        nothing to remove.
        """
        self._ask(wire.Forget(0, self.name, self._kind))

    def _ask(self, question: wire.Message) -> int:
        with client.borrowed() as connection:
            return connection.ask(question, wire.Granted).value

    def _state(self) -> dict[str, Any]:
        with client.borrowed() as connection:
            return connection.ask(wire.Inspect(0, self.name, self._kind), wire.Answer).value

    def _question(self, patience: float | None) -> wire.Acquire:
        how = wire.FOREVER if patience is None else wire.TIMED if patience > 0 else wire.TRY
        return wire.Acquire(0, self.name, self._kind, how, *_me())

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return travel.reduced(type(self), self.name)

    def __repr__(self) -> str:
        return f"<dsm.{type(self).__name__} {self.name!r}>"


def _patience(blocking: bool, timeout: float | None) -> float | None:
    """How many seconds to wait, None for ever. As :meth:`threading.Lock.acquire` has it: -1 is for ever."""
    if timeout is None:
        timeout = -1
    try:
        threading.Lock().acquire(blocking, timeout)  # by its own rules, for what it refuses
    except ValueError as error:
        raise InvalidArgument(str(error)) from None
    if not blocking:
        return 0.0
    return None if timeout == -1 else float(timeout)


# -- locks ---------------------------------------------------------------------------------------------


class _BaseLock(_Primitive):
    """What Lock and RLock share: acquiring, and giving back, a lock over a connection. Closing that would tell the
    others that the owner has died."""

    def _take(self, patience: float | None) -> tuple[client.Connection | None, bool]:
        """The connection that holds the lock now, if it could be had, and whether its last owner died."""
        connection = client.take()
        try:
            answer = connection.wait(self._question(patience), patience or None, self._undo)
        except BaseException:
            connection.close()
            raise
        if isinstance(answer, wire.Granted):
            return connection, answer.value & wire.OWNER_DIED != 0
        client.give_back(connection)
        return None, False

    def _undo(self, granted: wire.Granted) -> wire.Message:
        return wire.Release(self.name, granted.value & wire.OWNER_DIED != 0)

    def _give_back(self, connection: client.Connection, died: bool) -> None:
        try:
            try:
                release.mirror_all()
            finally:
                connection.ask(wire.Release(self.name, died), wire.Ready)
        except BaseException:
            connection.close()
            raise
        client.give_back(connection)

    def _owner_died(self) -> OwnerDied:
        return OwnerDied(
            f"{self._what} {self.name!r} is yours now, but whoever held it before ended without releasing it: mend "
            "what it protects, then release() it. (A `with` block is not entered: for this, acquire() it by itself.)"
        )

    def _not_held(self) -> LockNotHeld:
        return LockNotHeld(f"{self._what} {self.name!r} is not held here: acquire it first")

    def acquire(self, blocking: bool = True, timeout: float | None = -1) -> bool:
        raise NotImplementedError

    def _release(self, died: bool) -> None:
        raise NotImplementedError

    # What a Condition needs:

    def _is_owned(self) -> bool:
        raise NotImplementedError

    def _set_aside(self) -> tuple[client.Connection, Any]:
        """Somebody else is about to release it, over this connection; what :meth:`_take_up` needs comes with it."""
        raise NotImplementedError

    def _take_up(self, state: Any) -> None:
        """Acquire it again, as often as before."""
        raise NotImplementedError

    def release(self) -> None:
        """Give it back. Raises :class:`~dsm.errors.LockNotHeld` (a RuntimeError) if it is not held here."""
        self._release(died=False)

    def unlink(self) -> None:
        """A lock has nothing to remove: nobody keeps one that is free."""

    def locked(self) -> bool:
        """Whether anybody holds it, in any process."""
        return bool(self._state()["locked"])

    def __enter__(self) -> bool:
        try:
            return self.acquire()
        except OwnerDied:
            self._release(died=True)
            raise

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self._release(died=isinstance(error, OwnerDied))


class Lock(_BaseLock):
    """The lock called ``name``. All ``Lock`` objects of that name, in whichever process, are the same lock.

    >>> with dsm.Lock("ledger"):                                     # doctest: +SKIP
    ...     balance[0] += 1                                          # nobody else, on any host, is in here

    Not reentrant: a thread that acquires it twice waits for itself, and is told so (:class:`~dsm.errors.DeadlockError`)
    unless it gave a timeout. Any thread of the process may release it, through the object that acquired it. First come
    first served among nodes; the processes of a node where it was released may take it again until another node's wish
    has arrived.

    A process that ends has released it, but the next to acquire it is told: :class:`~dsm.errors.OwnerDied`. A forked
    child does not hold what its parent holds.
    """

    _kind = wire.LOCK
    _what = "lock"

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._holding: client.Connection | None = None

    def acquire(self, blocking: bool = True, timeout: float | None = -1) -> bool:
        """Wait until the lock is ours, ``timeout`` seconds at most unless it is -1. Returns whether it is.

        Raises :class:`~dsm.errors.OwnerDied` *with the lock acquired* if its last owner ended without releasing it,
        :class:`~dsm.errors.DeadlockError` if it can never be had, :class:`~dsm.errors.InvalidArgument` and
        OverflowError where :meth:`threading.Lock.acquire` raises ValueError and OverflowError.
        """
        connection, died = self._take(_patience(blocking, timeout))
        if connection is not None:
            self._holding = connection
        if died:
            raise self._owner_died()
        return connection is not None

    def _is_owned(self) -> bool:
        return self._holding is not None and not self._holding.closed

    def _set_aside(self) -> tuple[client.Connection, Any]:
        connection, self._holding = self._holding, None
        if connection is None or connection.closed:
            raise self._not_held()
        return connection, None

    def _take_up(self, state: Any) -> None:
        self.acquire()

    def _release(self, died: bool) -> None:
        connection, _ = self._set_aside()
        self._give_back(connection, died)


class _Hold:
    """A reentrant lock that this process holds: by which thread, and how often."""

    __slots__ = ("connection", "count", "thread")

    def __init__(self, connection: client.Connection) -> None:
        self.connection = connection
        self.thread = threading.get_ident()
        self.count = 1


_holds: Final[dict[str, _Hold]] = {}


class RLock(_BaseLock):
    """The reentrant lock called ``name``: the thread that holds it may acquire it again, through any object of the
    name.

    It is free for others once it has been released as often. Otherwise as :class:`Lock`; only the thread that holds it
    may release it.
    """

    _kind = wire.RLOCK
    _what = "reentrant lock"

    def acquire(self, blocking: bool = True, timeout: float | None = -1) -> bool:
        """As :meth:`Lock.acquire`; at once if this thread holds it."""
        patience = _patience(blocking, timeout)
        hold = self._mine()
        if hold is not None:
            hold.count += 1
            return True
        connection, died = self._take(patience)
        if connection is not None:
            _holds[self.name] = _Hold(connection)
        if died:
            raise self._owner_died()
        return connection is not None

    def _mine(self) -> _Hold | None:
        hold = _holds.get(self.name)
        if hold is None or hold.thread != threading.get_ident() or hold.connection.closed:
            return None
        return hold

    def _is_owned(self) -> bool:
        return self._mine() is not None

    def _set_aside(self) -> tuple[client.Connection, Any]:
        hold = self._mine()
        if hold is None:
            raise self._not_held()
        del _holds[self.name]
        return hold.connection, hold.count

    def _take_up(self, state: Any) -> None:
        try:
            self.acquire()
        finally:
            hold = self._mine()
            if hold is not None:
                hold.count = state

    def _release(self, died: bool) -> None:
        hold = self._mine()
        if hold is None:
            raise self._not_held()
        hold.count -= 1
        if not hold.count:
            del _holds[self.name]
            self._give_back(hold.connection, died)


class Condition:
    """The condition called ``name``, for those who hold its lock.

    ``lock``: a :class:`Lock` or an :class:`RLock`, the same for all; None: an RLock of its own, called ``name +
    ".lock"``. The methods are those of :class:`threading.Condition`.
    """

    _kind = wire.CONDITION

    def __init__(self, name: str, lock: Lock | RLock | None = None) -> None:
        client.check_name(name, "condition")
        if lock is not None and not isinstance(lock, Lock | RLock):
            raise InvalidArgument(f"a condition's lock is a dsm.Lock or a dsm.RLock, not {lock!r}")
        self.name = name
        self._lock: Lock | RLock = RLock(f"{name}.lock") if lock is None else lock

    def acquire(self, blocking: bool = True, timeout: float | None = -1) -> bool:
        """Acquire the lock: see :meth:`Lock.acquire`."""
        return self._lock.acquire(blocking, timeout)

    def release(self) -> None:
        """Release the lock: see :meth:`Lock.release`."""
        self._lock.release()

    def wait(self, timeout: float | None = None) -> bool:
        """Release the lock, wait to be notified, acquire it again. False if ``timeout`` (seconds) ran out before.

        Raises :class:`~dsm.errors.LockNotHeld` (a RuntimeError) without the lock.
        """
        patience = None if timeout is None else max(0.0, timeout)
        how = wire.FOREVER if patience is None else wire.TIMED
        connection, state = self._lock._set_aside()
        try:
            release.mirror_all()
            question = wire.WaitOn(self.name, self._lock.name, how, *_me())
            answer = connection.wait(question, patience)
        except BaseException:
            connection.close()
            raise
        else:
            client.give_back(connection)
        finally:
            self._lock._take_up(state)
        return isinstance(answer, wire.Granted)

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
        """Wait until ``predicate()`` is true, ``timeout`` seconds at most. Its last value."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not (value := predicate()):
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                break
            self.wait(left)
        return value

    def notify(self, n: int = 1) -> None:
        """Wake ``n`` of those who wait, at most. Raises :class:`~dsm.errors.LockNotHeld` without the lock."""
        if not self._lock._is_owned():
            raise self._lock._not_held()
        if n > 0:
            with client.borrowed() as connection:
                connection.ask(wire.Post(0, self.name, self._kind, min(n, wire.ALL)), wire.Granted)

    def notify_all(self) -> None:
        """Wake all who wait. Raises :class:`~dsm.errors.LockNotHeld` without the lock."""
        self.notify(wire.ALL)

    def __enter__(self) -> bool:
        return self._lock.__enter__()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._lock.__exit__(kind, error, trace)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return travel.reduced(Condition, self.name, self._lock)

    def __repr__(self) -> str:
        return f"<dsm.Condition {self.name!r} with {self._lock!r}>"


# -- counting ------------------------------------------------------------------------------------------


class Semaphore(_Primitive):
    """The semaphore called ``name``, which begins with ``value``.

    It lives, with what it counts, until somebody calls :meth:`unlink`: a process that ends gives nothing back. Raises
    :class:`~dsm.errors.ValueMismatch` if it exists and began with another value.
    """

    _kind = wire.SEMAPHORE
    _what = "semaphore"

    def __init__(self, name: str, value: int = 1) -> None:
        super().__init__(name)
        if type(value) is not int or not 0 <= value <= _COUNT_MAX:
            raise InvalidArgument(f"a semaphore begins with 0 or more, not {value!r}")
        self._initial = value
        self._ask(wire.Enroll(0, name, self._kind, value, *_me()))

    def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool:
        """Take one, when there is one, within ``timeout`` seconds. Returns whether it did."""
        patience = _patience(blocking, timeout)
        with client.borrowed() as connection:
            answer = connection.wait(self._question(patience), patience or None, self._undo)
        return isinstance(answer, wire.Granted)

    def _undo(self, _: wire.Granted) -> wire.Message:
        return wire.Post(0, self.name, self._kind, 1)

    def release(self, n: int = 1) -> None:
        """Give back ``n``, 1 or more (else :class:`~dsm.errors.InvalidArgument`, a ValueError)."""
        if type(n) is not int or not 0 < n <= _COUNT_MAX:
            raise InvalidArgument(f"release 1 or more, not {n!r}")
        self._ask(wire.Post(0, self.name, self._kind, n))

    def get_value(self) -> int:
        """How many there are now."""
        return int(self._state()["value"])

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return travel.reduced(type(self), self.name, self._initial)


class BoundedSemaphore(Semaphore):
    """A semaphore that never has more than it began with: releasing more raises
    :class:`~dsm.errors.SemaphoreOverflow` (a ValueError)."""

    _kind = wire.BOUNDED_SEMAPHORE
    _what = "bounded semaphore"


class Event(_Primitive):
    """The event called ``name``: set or not, at first not. The methods are those of :class:`threading.Event`."""

    _kind = wire.EVENT
    _what = "event"

    def is_set(self) -> bool:
        """Is it set?"""
        return bool(self._state()["set"])

    def set(self) -> None:
        """Set it: whoever waits goes on, and whoever comes until it is cleared."""
        self._ask(wire.Post(0, self.name, self._kind, 1))

    def clear(self) -> None:
        """From now on it has to be waited for."""
        self._ask(wire.Post(0, self.name, self._kind, 0))

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set, ``timeout`` seconds at most. Returns whether it was."""
        patience = None if timeout is None else max(0.0, timeout)
        with client.borrowed() as connection:
            answer = connection.wait(self._question(patience), patience or None)
        return isinstance(answer, wire.Granted)


class Counter(_Primitive):
    """The whole number called ``name``, which begins with ``value`` and is added to by all.

    >>> ticket = dsm.Counter("tickets").add(1)                       # doctest: +SKIP

    It fits 64 bits with a sign and lives until :meth:`unlink`. Raises :class:`~dsm.errors.ValueMismatch` if it exists
    and began with another value.
    """

    _kind = wire.COUNTER
    _what = "counter"

    def __init__(self, name: str, value: int = 0) -> None:
        super().__init__(name)
        self._initial = _whole(value)
        self._ask(wire.Enroll(0, name, self._kind, value, *_me()))

    def add(self, n: int = 1) -> int:
        """Add ``n``, which may be negative; the new value, which nobody else has been given.

        It is added exactly once, however often connections between hosts break meanwhile.
        """
        return self._ask(wire.Post(0, self.name, self._kind, _whole(n)))

    @property
    def value(self) -> int:
        """What it is now."""
        return int(self._state()["value"])

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return travel.reduced(type(self), self.name, self._initial)


def _whole(value: int) -> int:
    if type(value) is not int or abs(value) > _COUNT_MAX:
        raise InvalidArgument(f"a counter counts whole numbers of 64 bits, not {value!r}")
    return value


# -- barriers ------------------------------------------------------------------------------------------

_Action: TypeAlias = Callable[[], object]


class Barrier(_Primitive):
    """The barrier called ``name``, where ``parties`` waiters, in whichever processes, wait for each other.

    ``action`` is called by one of them when all are there, before any goes on; ``timeout`` (seconds) is that of
    :meth:`wait` if it is given none.

    The threads that open it are taken to be its parties if they are exactly as many, later those that came last time.
    If one of these ends, the others are told that they wait in vain: :class:`~dsm.errors.PartyDied`. Raises
    :class:`~dsm.errors.BarrierMismatch` if it exists with another number of parties.
    """

    _kind = wire.BARRIER
    _what = "barrier"

    def __init__(self, name: str, parties: int, action: _Action | None = None, timeout: float | None = None) -> None:
        self._set_up(name, parties, action, timeout)
        self._ask(wire.Enroll(0, name, self._kind, parties, *_me()))
        _say_goodbye_at_the_end()

    def _set_up(self, name: str, parties: int, action: _Action | None, timeout: float | None) -> None:
        _Primitive.__init__(self, name)
        if type(parties) is not int or not 0 < parties <= _PARTIES_MAX:
            raise InvalidArgument(f"a barrier needs at least one party, not {parties!r}")
        self._parties = parties
        self._action = action
        self._timeout = timeout

    @classmethod
    def _received(cls, name: str, parties: int, action: _Action | None, timeout: float | None) -> Barrier:
        """Unpickled: only who waits at it is a party, for it may be on its way through many hands."""
        self = cls.__new__(cls)
        self._set_up(name, parties, action, timeout)
        return self

    def wait(self, timeout: float | None = None) -> int:
        """Wait until all parties are here. Returns the order of arrival: 0 for the first.

        Raises :class:`~dsm.errors.BrokenBarrier` if it is reset or aborted, if any party's ``timeout`` (seconds) runs
        out or its action fails, :class:`~dsm.errors.PartyDied` if a party has ended,
        :class:`~dsm.errors.DeadlockError`, :class:`~dsm.errors.BarrierMismatch` if others came with another number of
        parties.
        """
        if timeout is None:
            timeout = self._timeout
        patience = None if timeout is None else max(0.0, timeout)
        how = wire.FOREVER if patience is None else wire.TIMED
        release.mirror_all()
        question = wire.Arrive(0, self.name, self._parties, how, self._action is not None, *_me())
        with client.borrowed() as connection:
            answer = connection.wait(question, patience)
        if not isinstance(answer, wire.Granted):
            raise BrokenBarrier(f"barrier {self.name!r}: not all of {self._parties} came within {timeout} s")
        if answer.value & wire.ACT:
            self._act()
        return answer.value & ~wire.ACT

    def _act(self) -> None:
        assert self._action is not None
        try:
            self._action()
        except BaseException:
            self.abort()
            raise
        self._ask(wire.Post(0, self.name, self._kind, 0))

    def reset(self) -> None:
        """Make it as new; whoever waits gets :class:`~dsm.errors.BrokenBarrier`."""
        self._ask(wire.BarrierReset(0, self.name, self._parties, False))

    def abort(self) -> None:
        """Leave it broken until :meth:`reset`; whoever waits or comes gets :class:`~dsm.errors.BrokenBarrier`."""
        self._ask(wire.BarrierReset(0, self.name, self._parties, True))

    @property
    def parties(self) -> int:
        """How many waiters it takes."""
        return self._parties

    @property
    def n_waiting(self) -> int:
        """How many wait now."""
        return int(self._state()["waiting"])

    @property
    def broken(self) -> bool:
        """Whether it is broken."""
        return bool(self._state()["broken"])

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return travel.reduced(Barrier._received, self.name, self._parties, self._action, self._timeout)

    def __repr__(self) -> str:
        return f"<dsm.Barrier {self.name!r} of {self._parties}>"
