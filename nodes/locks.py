"""The locks that belong to this node: pure. A lock that was released stays here until others want it, so that whoever
takes it again asks nobody (directory/locks.py has the other side)."""

from __future__ import annotations

from typing import Final

from dsm.wire import CONTENDED, TRY, Acquire, Cancelled, Granted, Holds, Message, Return

_FREE_MAX: Final = 4096
"""Locks that are kept though nobody holds them; the one that was released first goes back first."""


class _Lock:
    __slots__ = ("grant", "held", "kind", "recalled")

    def __init__(self, kind: int, grant: int) -> None:
        self.kind = kind
        self.grant = grant  # the ticket with which this node got it
        self.held: Acquire | None = None  # how it was acquired
        self.recalled = False


class Locks:
    """One node's locks. What has to be said to the directory is returned."""

    def __init__(self) -> None:
        self._locks: dict[str, _Lock] = {}
        self._free: dict[str, None] = {}  # those that nobody holds, in order of their release
        self.spared = 0
        """How often a lock was acquired without asking the directory."""

    def take(self, m: Acquire) -> Granted | Cancelled | None:
        """Acquire it if that can be decided here; None: ask the directory."""
        lock = self._locks.get(m.name)
        if lock is None or lock.kind != m.kind:
            return None
        if lock.held is not None:
            return Cancelled(0) if m.wait == TRY else None
        del self._free[m.name]
        lock.held = m
        self.spared += 1
        return Granted(0, 0)

    def granted(self, m: Acquire, value: int) -> None:
        """The directory has given the lock to this node, for who sent ``m``."""
        lock = self._locks[m.name] = _Lock(m.kind, m.ticket)
        lock.held = m
        lock.recalled = value & CONTENDED != 0

    def grant(self, name: str) -> int:
        """How this node got a lock that it has."""
        return self._locks[name].grant

    def restore(self, m: Acquire, grant: int) -> None:
        """The agent before this one has noted that ``m`` holds the lock. It may have noted that of two: then the one
        that got it first has ended."""
        known = self._locks.get(m.name)
        if known is None or (grant - known.grant) & 0x80000000 == 0:
            lock = self._locks[m.name] = _Lock(m.kind, grant)
            lock.held = m

    def released(self, name: str, grant: int, died: bool) -> list[Message]:
        """Who held it has released it, or ``died`` with it."""
        lock = self._locks.get(name)
        if lock is None or lock.grant != grant:  # it went back, and was got again, before an agent was killed
            return []
        lock.held = None
        if lock.recalled or died:
            return [self._give_back(name, died)]
        self._free[name] = None
        if len(self._free) <= _FREE_MAX:
            return []
        oldest = next(iter(self._free))
        del self._free[oldest]
        return [self._give_back(oldest)]

    def recalled(self, name: str) -> list[Message]:
        """Others want it."""
        lock = self._locks.get(name)
        if lock is None:  # it is on its way back already
            return []
        held = lock.held
        if held is not None:
            lock.recalled = True
            return [Holds(name, held.process, held.thread, held.who)]
        del self._free[name]
        return [self._give_back(name)]

    def is_held(self, name: str, kind: int) -> bool | None:
        """Does somebody hold it? None: it does not belong to this node."""
        lock = self._locks.get(name)
        return None if lock is None or lock.kind != kind else lock.held is not None

    def give_up(self) -> list[Message]:
        """This node leaves: what nobody holds goes back."""
        free, self._free = self._free, {}
        return [self._give_back(name) for name in free]

    def _give_back(self, name: str, died: bool = False) -> Return:
        return Return(self._locks.pop(name).grant, name, died)
