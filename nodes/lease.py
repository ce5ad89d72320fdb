"""The lease of a node: until when the directory is sure to count it as a member. Pure; times are seconds of any clock
that only goes forward.

(Gray, Cheriton, "Leases: an efficient fault-tolerant mechanism for distributed file cache consistency", SOSP 1989.)
"""

from __future__ import annotations

from typing import Final

from dsm.constants import LEASE_MARGIN_S, LEASE_S
from dsm.wire import Lease as Renewal

_UNANSWERED_MAX: Final = 64
"""Heartbeats whose answer would be of use: those of the last minute."""


class Lease:
    """Runs from when a heartbeat was sent, which is before the directory can have heard it, and ends before the
    directory gives the node up. Each of the ``shards`` gives its own. ``until``: of an agent that was killed."""

    def __init__(self, shards: int, now: float, until: float = 0.0) -> None:
        self._until = [until or now + LEASE_S - LEASE_MARGIN_S] * shards
        self._sent: dict[int, float] = {}
        self._beat = 0

    def beat(self, now: float) -> int:
        """A heartbeat is sent: its number."""
        self._beat = (self._beat + 1) & 0xFFFFFFFF
        self._sent[self._beat] = now
        if len(self._sent) > _UNANSWERED_MAX:
            del self._sent[next(iter(self._sent))]
        return self._beat

    def renewed(self, m: Renewal) -> None:
        """A shard has answered a heartbeat."""
        sent = self._sent.get(m.beat)
        if sent is not None and m.shard < len(self._until):
            self._until[m.shard] = max(self._until[m.shard], sent + LEASE_S - LEASE_MARGIN_S)

    @property
    def until(self) -> float:
        """When it is over."""
        return min(self._until)

    def left_s(self, now: float) -> float:
        """How long it still runs; negative once it is over."""
        return self.until - now
