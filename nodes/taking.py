"""Pages that this node fetches though nobody here has asked for them: another node has the only copy, and is about to
leave, or wants a second one (directory/copies.py)."""

from __future__ import annotations

from typing import Final, Protocol

from dsm.constants import PREFETCH_BYTES, PREFETCHES_MAX
from dsm.wire import DIRECTORY, Message, Take, Taken
from nodes.pager import Pager
from nodes.pieces import Pieces


class Links(Protocol):
    """What this needs of :class:`nodes.links.Links`."""

    def send(self, to: int, message: Message) -> None: ...


class Taking:
    """What one Take asks for. It is a waiter of the machine, as mappings are."""

    __slots__ = ("_asking", "_links", "_m", "_pager", "_pieces")

    def __init__(self, pager: Pager, m: Take, links: Links) -> None:
        self._pager: Final = pager
        self._links: Final = links
        self._m: Final = m
        self._pieces: Final = Pieces(m.start, m.start + m.count, max(1, PREFETCH_BYTES // m.page_size), PREFETCHES_MAX)
        self._asking = False

    def go_on(self) -> None:
        """Ask for what may be asked for now."""
        self._asking = True
        while (piece := self._pieces.take()) is not None:
            self._pager.run(self._pager.machine.prefetch(self._m.region, *piece, False, self, mapped=False))
        self._asking = False
        if self._pieces.over:
            self._links.send(DIRECTORY, Taken(self._m.region, self._m.start, self._m.count))

    def came(self) -> None:
        """A piece is all here."""
        self._pieces.came()
        if not self._asking:
            self.go_on()
