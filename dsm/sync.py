"""Locks and barriers by name, for the processes of all nodes. The methods are those of :mod:`threading`.

All waiting happens in socket calls: other threads of the process run meanwhile, and Ctrl-C ends it.
"""

from __future__ import annotations

import threading

from dsm import client, wire
from dsm.errors import BrokenBarrier, InvalidArgument, LockNotHeld


class Lock:
    """The lock called ``name``. All ``Lock`` objects of that name, in whichever process, are the same lock.

    Not reentrant: a second :meth:`acquire` in the same process waits, too. Any thread of the process may release it,
    through the object that acquired it. A process that ends has released it. A forked child does not hold what its
    parent holds.
    """

    def __init__(self, name: str) -> None:
        client.check_name(name, "lock")
        self.name = name
        self._holding: client.Connection | None = None  # closing it releases the lock: a dead process holds none

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Wait until the lock is ours, ``timeout`` seconds at most unless it is -1. Returns whether it is.

        Raises :class:`~dsm.errors.InvalidArgument` and OverflowError where :meth:`threading.Lock.acquire` raises
        ValueError and OverflowError.
        """
        _check_timeout(blocking, timeout)
        question = wire.Acquire(0, self.name, blocking and timeout != 0)
        connection = client.take()
        try:
            if isinstance(connection.wait(question, None if timeout < 0 else timeout), wire.Granted):
                self._holding = connection
                return True
        except BaseException:  # also Ctrl-C: the agent cancels the question, or takes back the lock
            connection.close()
            raise
        client.give_back(connection)
        return False

    def release(self) -> None:
        """Give it back. Raises :class:`~dsm.errors.LockNotHeld` if this object did not acquire it."""
        connection, self._holding = self._holding, None
        if connection is None or connection.closed:
            raise LockNotHeld(f"lock {self.name!r} is not held through this object: acquire it first")
        try:
            connection.ask(wire.Release(0, self.name, 0), wire.Granted)
        except BaseException:
            connection.close()  # which releases it all the same
            raise
        client.give_back(connection)

    def locked(self) -> bool:
        """Whether anybody holds it, in any process."""
        with client.borrowed() as connection:
            return bool(connection.ask(wire.Inspect(0, self.name, 0), wire.Answer).value["locked"])

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    def __reduce__(self) -> tuple[type[Lock], tuple[str]]:
        return Lock, (self.name,)

    def __repr__(self) -> str:
        return f"<dsm.Lock {self.name!r}>"


class Barrier:
    """The barrier called ``name``, where ``parties`` waiters, in whichever processes, wait for each other."""

    def __init__(self, name: str, parties: int) -> None:
        client.check_name(name, "barrier")
        if type(parties) is not int or not 0 < parties < 1 << 32:
            raise InvalidArgument(f"a barrier needs at least one party, not {parties!r}")
        self.name = name
        self._parties = parties

    def wait(self, timeout: float | None = None) -> int:
        """Wait until all parties are here. Returns the order of arrival: 0 for the first.

        Raises :class:`~dsm.errors.BrokenBarrier` if it is reset or aborted, or if any party's ``timeout`` (seconds)
        runs out, :class:`~dsm.errors.BarrierMismatch` if others came with another number of parties.
        """
        patience = None if timeout is None else max(0.0, timeout)
        with client.borrowed() as connection:
            answer = connection.wait(wire.Arrive(0, self.name, self._parties), patience)
        if not isinstance(answer, wire.Granted):
            raise BrokenBarrier(f"barrier {self.name!r}: not all of {self._parties} came within {timeout} s")
        return answer.value

    def reset(self) -> None:
        """Make it as new; whoever waits gets :class:`~dsm.errors.BrokenBarrier`."""
        self._wake(broken=False)

    def abort(self) -> None:
        """Leave it broken until :meth:`reset`; whoever waits or comes gets :class:`~dsm.errors.BrokenBarrier`."""
        self._wake(broken=True)

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

    def _wake(self, *, broken: bool) -> None:
        with client.borrowed() as connection:
            connection.ask(wire.BarrierReset(0, self.name, self._parties, broken), wire.Ready)

    def _state(self) -> dict[str, int]:
        with client.borrowed() as connection:
            return connection.ask(wire.Inspect(0, self.name, self._parties), wire.Answer).value

    def __reduce__(self) -> tuple[type[Barrier], tuple[str, int]]:
        return Barrier, (self.name, self._parties)

    def __repr__(self) -> str:
        return f"<dsm.Barrier {self.name!r} of {self._parties}>"


def _check_timeout(blocking: bool, timeout: float) -> None:
    """By threading's own rules: a lock that is free answers at once."""
    try:
        threading.Lock().acquire(blocking, timeout)
    except ValueError as error:
        raise InvalidArgument(str(error)) from None
