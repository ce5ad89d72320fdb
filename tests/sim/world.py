"""Time, chance and the record of one run."""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter, deque
from collections.abc import Callable
from random import Random
from typing import Any, Final

US: Final = 1_000
MS: Final = 1_000_000
S: Final = 1_000_000_000
_TAIL_EVENTS: Final = 400


class SimulationError(AssertionError):
    """Something that must not happen has happened in a simulated cluster."""


class World:
    """The clock (``now``, in nanoseconds), the one source of chance, and what is to happen when."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.chance = Random(seed)
        self.now = 0
        self.events = 0
        self.counts: Counter[str] = Counter()
        self.pending = 0  # events that are not periodic: 0 when everything is quiet
        self._heap: list[tuple[int, int, bool, Callable[..., None], tuple[Any, ...]]] = []
        self._number = 0
        self._digest = hashlib.blake2b(digest_size=16)
        self._tail: deque[tuple[int, str, tuple[Any, ...]]] = deque(maxlen=_TAIL_EVENTS)

    # -- time ----------------------------------------------------------------------------------------------

    def at(self, when: int, action: Callable[..., None], *args: Any) -> None:
        """Do something at a moment, or now if that is over."""
        self._number += 1
        self.pending += 1
        heapq.heappush(self._heap, (max(when, self.now), self._number, True, action, args))

    def after(self, delay: int, action: Callable[..., None], *args: Any) -> None:
        """Do something after ``delay`` nanoseconds."""
        self.at(self.now + delay, action, *args)

    def periodically(self, delay: int, action: Callable[..., None], *args: Any) -> None:
        """As :meth:`after`, for what goes on for ever and means nothing: a heartbeat, a look at the leases."""
        self._number += 1
        heapq.heappush(self._heap, (self.now + delay, self._number, False, action, args))

    def step(self) -> bool:
        """The next event. False if there is none."""
        if not self._heap:
            return False
        self.now, _, once, action, args = heapq.heappop(self._heap)
        self.pending -= once
        self.events += 1
        action(*args)
        return True

    def run_for(self, duration: int) -> None:
        """The events of the next ``duration`` nanoseconds, in the middle of one that takes so long."""
        until = self.now + duration
        while self._heap and self._heap[0][0] <= until:
            self.step()
        self.now = until

    # -- chance --------------------------------------------------------------------------------------------

    def odds(self, probability: float) -> bool:
        """True with this probability; no draw where it is certain not to be."""
        return probability > 0 and self.chance.random() < probability

    def spread(self, low: int, high: int) -> int:
        """A time between ``low`` and ``high``, short ones as likely as long ones in the logarithm."""
        return int(low * (high / low) ** self.chance.random())

    # -- record --------------------------------------------------------------------------------------------

    def note(self, text: str, *args: Any) -> None:
        """Record an event: ``text`` % ``args``, of which the text and the plain ones count for the hash."""
        self._tail.append((self.now, text, args))
        self._digest.update(f"{self.now} {text} {args}".encode())

    def note_message(self, source: str, to: str, message: Any, data: bytes) -> None:
        """Record a message; it is written out only if somebody wants to read it."""
        self._tail.append((self.now, "%s -> %s %s", (source, to, message)))
        self._digest.update(data)
        self._digest.update(self.now.to_bytes(8, "little"))

    @property
    def trace_hash(self) -> str:
        return self._digest.hexdigest()

    def tail(self, lines: int = _TAIL_EVENTS) -> list[str]:
        """The last events, written out."""
        events = list(self._tail)[-lines:]
        return [f"{when / US:14.3f} us  {text % args if args else text}" for when, text, args in events]
