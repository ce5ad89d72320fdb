"""Nothing on a node is read or written while the directory may have given the node up.

A node that has not heard of its directory for almost a lease hides every page from its applications, which wait. If
the directory then still counts it as a member, whatever had come meanwhile is done, and they go on; if not, it is
told so (Fenced), and what it had is gone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from dsm import wire
from dsm.logline import line
from nodes.lease import Lease
from nodes.notes import Notes
from nodes.pager import Pager

if TYPE_CHECKING:
    from nodes.applications import Applications


class Tenure:
    """``tell`` takes a line for a log. ``suspended``: the lease is over, and nothing is to happen here but to wait for
    the directory's word."""

    def __init__(
        self,
        shards: int,
        now: float,
        pager: Pager,
        applications: Applications,
        tell: Callable[[str], None],
        notes: Notes,
    ) -> None:
        self.suspended = False
        self._lease = Lease(shards, now, notes.lease)
        self._notes = notes
        notes.renew(self._lease.until)
        self._pager = pager
        self._applications = applications
        self._tell = tell
        self._held_back: list[Callable[[], object]] = []

    def heartbeat(self, now: float) -> wire.Heartbeat:
        """What to tell the directory now."""
        return wire.Heartbeat(self._applications.processes(), self._lease.beat(now), self._applications.ledger.heard)

    def left_s(self, now: float) -> float:
        """How long the lease still runs."""
        return self._lease.left_s(now)

    def look(self, now: float) -> None:
        """To be called at least with every heartbeat."""
        if not self.suspended and self._lease.left_s(now) <= 0:
            self.suspended = True
            self._tell(line("suspended", reason="no word of the directory for a lease: applications wait"))
            self._pager.suspend()
            self._applications.primitives.suspend()

    def renewed(self, m: wire.Lease, now: float) -> None:
        """The directory counts this node as a member, as of a heartbeat."""
        self._lease.renewed(m)
        if self.suspended and self._lease.left_s(now) > 0:
            self.suspended = False
            self._tell(line("resumed", reason="the directory is there again, and counts this node as a member"))
            self._pager.resume()
            self._applications.primitives.resume()
            held_back, self._held_back = self._held_back, []
            for call in held_back:
                call()
        # Not before the pages are all back: until then nobody else can take them over.
        self._notes.renew(self._lease.until)

    def hold_back(self, call: Callable[[], object]) -> None:
        """Do this once the lease runs again."""
        self._held_back.append(call)
