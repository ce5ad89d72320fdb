"""Semaphores, events, conditions and counters of the cluster: pure, first come first served."""

from __future__ import annotations

from collections import deque
from typing import Any, Final

from directory.waiting import Call, Outgoing, Primitive, Waiting
from dsm.errors import InvalidArgument, SemaphoreOverflow
from dsm.wire import BOUNDED_SEMAPHORE, CONDITION, COUNTER, EVENT, TRY

_LARGEST: Final = 2**63 - 1
"""What fits the field of a message."""


class _Queued(Primitive):
    """A primitive at which calls wait in order of arrival."""

    __slots__ = ("_queue", "_waiting")

    def __init__(self, name: str, kind: int, waiting: Waiting) -> None:
        super().__init__(name, kind)
        self._waiting = waiting
        self._queue: deque[Call] = deque()

    @property
    def calls(self) -> int:
        return len(self._queue)

    def leave(self, call: Call) -> Outgoing:
        self._queue.remove(call)
        self._waiting.remove(call)
        return []

    def acquire(self, call: Call) -> Outgoing:
        """Grant what is asked for, or let the call wait."""
        if self._has_one():
            return [call.granted()]
        if call.wait == TRY:
            return [call.cancelled()]
        self._queue.append(call)
        self._waiting.add(call, self)
        return []

    def _has_one(self) -> bool:
        raise NotImplementedError

    def _wake(self, count: int) -> Outgoing:
        woken = [self._queue.popleft() for _ in range(min(count, len(self._queue)))]
        for call in woken:
            self._waiting.remove(call)
        return [call.granted() for call in woken]


class Semaphore(_Queued):
    """A semaphore that began with ``initial``; a bounded one never has more."""

    __slots__ = ("_count", "initial")

    def __init__(self, name: str, kind: int, initial: int, waiting: Waiting) -> None:
        super().__init__(name, kind, waiting)
        self.initial = self._count = initial

    @property
    def says(self) -> bool:
        return True

    def post(self, count: int) -> Outgoing:
        """``count`` more. Raises :class:`InvalidArgument` and :class:`SemaphoreOverflow`."""
        if count < 1:
            raise InvalidArgument(f"release at least 1 of {self.title}, not {count}")
        if self.kind == BOUNDED_SEMAPHORE and self._count + count > self.initial:
            raise SemaphoreOverflow(
                f"{self.title} has {self._count} of {self.initial}: {count} more were never acquired"
            )
        if self._count + count > _LARGEST:
            raise InvalidArgument(f"{self.title} cannot count beyond {_LARGEST}")
        out = self._wake(count)
        self._count += count - len(out)
        return out

    def state(self) -> dict[str, Any]:
        return {"value": self._count, "initial": self.initial}

    def _has_one(self) -> bool:
        if not self._count:
            return False
        self._count -= 1
        return True


class Event(_Queued):
    """An event, set or not."""

    __slots__ = ("_set",)

    def __init__(self, name: str, waiting: Waiting) -> None:
        super().__init__(name, EVENT, waiting)
        self._set = False

    @property
    def says(self) -> bool:
        return self._set or bool(self._queue)

    def post(self, count: int) -> Outgoing:
        """Set it (1), which wakes all who wait, or clear it (0)."""
        self._set = count != 0
        return self._wake(len(self._queue)) if self._set else []

    def state(self) -> dict[str, Any]:
        return {"set": self._set}

    def _has_one(self) -> bool:
        return self._set


class Condition(_Queued):
    """A condition: it is notified for those who wait, and for nobody else."""

    __slots__ = ()

    def __init__(self, name: str, waiting: Waiting) -> None:
        super().__init__(name, CONDITION, waiting)

    @property
    def says(self) -> bool:
        return bool(self._queue)

    def post(self, count: int) -> Outgoing:
        """Notify so many, at most."""
        if count < 0:
            raise InvalidArgument(f"notify 0 or more that wait for {self.title}, not {count}")
        return self._wake(count)

    def state(self) -> dict[str, Any]:
        return {}

    def _has_one(self) -> bool:
        return False


class Counter(Primitive):
    """A number that is added to. Nobody waits for it."""

    __slots__ = ("initial", "value")

    def __init__(self, name: str, initial: int) -> None:
        super().__init__(name, COUNTER)
        self.initial = self.value = initial

    @property
    def says(self) -> bool:
        return True

    @property
    def calls(self) -> int:
        return 0

    def post(self, count: int) -> Outgoing:
        """Add to it. Raises :class:`InvalidArgument` where it would not fit."""
        if abs(self.value + count) > _LARGEST:
            raise InvalidArgument(f"{self.title} cannot go from {self.value} beyond {_LARGEST} or below {-_LARGEST}")
        self.value += count
        return []

    def leave(self, call: Call) -> Outgoing:
        raise AssertionError("nobody waits for a counter")

    def state(self) -> dict[str, Any]:
        return {"value": self.value, "initial": self.initial}
