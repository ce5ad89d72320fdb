"""What the agent of a node that is traced (:mod:`dsm.trace`) uses instead: the same, and each call recorded."""

from __future__ import annotations

from dsm.trace import Around
from dsm.uffd import Outcome, Userfaultfd
from nodes.links import Links


class TracedUserfaultfd(Userfaultfd):
    """Takes the place, and the descriptor, of another."""

    def __init__(self, uffd: Userfaultfd, around: Around) -> None:
        super().__init__(uffd.fileno())
        self._faults = around("read events", super().faults)
        self._copy = around("copy", super().copy)
        self._protect = around("protect", super().protect)
        self._unprotect = around("unprotect", super().unprotect)
        self._wake = around("wake", super().wake)

    def faults(self) -> list[tuple[int, int]]:
        events: list[tuple[int, int]] = self._faults()
        return events

    def copy(self, to: int, source: int, length: int, protect: bool) -> Outcome:
        outcome: Outcome = self._copy(to, source, length, protect)
        return outcome

    def protect(self, address: int, length: int) -> Outcome:
        outcome: Outcome = self._protect(address, length)
        return outcome

    def unprotect(self, address: int, length: int) -> Outcome:
        outcome: Outcome = self._unprotect(address, length)
        return outcome

    def wake(self, address: int, length: int) -> Outcome:
        outcome: Outcome = self._wake(address, length)
        return outcome


class TracedOutlets:
    """What the pager needs of the connections of a node."""

    def __init__(self, links: Links, around: Around) -> None:
        self.send = around("message", links.send)
        self.send_pages = around("pages", links.send_pages)
        self.takes_bulk = links.takes_bulk
        self.sent = links.sent
        self.member_left = links.member_left
