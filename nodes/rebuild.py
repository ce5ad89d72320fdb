"""A node's part when its directory begins again (directory/recovery.py has the whole of it).

Until all is found again no fault is served that has to ask; what is here may be read and written meanwhile.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol

from dsm import wire
from dsm.constants import PACKED_BYTES_MAX
from dsm.logline import line
from nodes.outgoing import Said
from nodes.pager import Pager

if TYPE_CHECKING:
    from nodes.applications import Applications

_RUN: Final = struct.Struct("<QI")
_RUNS_MAX: Final = PACKED_BYTES_MAX // _RUN.size


class Links(Protocol):
    """What this needs of :class:`nodes.links.Links`."""

    node: int
    said: Said

    @property
    def peers(self) -> list[int]: ...
    @property
    def anew(self) -> bool: ...
    def rejoin(self) -> None: ...
    def renew_broken(self) -> None: ...
    def hear_peers(self) -> None: ...
    def say_again(self, messages: list[wire.Message]) -> None: ...
    def go_on(self) -> None: ...
    def send(self, to: int, message: wire.Message) -> None: ...
    def send_pages(self, to: int, message: wire.Message, payload: bytes, bulk: bool) -> None: ...


class Rebuild:
    """``fence`` is called with the reason if this node cannot go on; ``tell`` takes a line for a log."""

    def __init__(
        self,
        links: Any,
        pager: Pager,
        applications: Applications,
        fence: Callable[[str], None],
        tell: Callable[[str], None],
    ) -> None:
        self._links: Links = links
        self._pager = pager
        self._applications = applications
        self._fence = fence
        self._tell = tell
        self._epoch = -1  # of the directory, while it begins again
        # A peer has two connections, and each brings its Flushed: those that came, and those that are awaited, if any.
        self._came: set[tuple[int, bool]] = set()
        self._awaited: set[tuple[int, bool]] | None = None
        self._flushed = False  # peers have been told
        self._reported = False  # the directory has

    def begin(self) -> None:
        """The directory has forgotten the conversation with this node."""
        self._tell(line("returning", reason="the directory begins again: faults wait until it has found all pages"))
        self._epoch = -1
        self._awaited = None
        self._flushed = self._reported = False
        self._pager.freeze()
        self._applications.ledger.heard = 0  # of answers in the conversation that begins
        self._links.rejoin()

    def rejoined(self, m: wire.Rejoined) -> None:
        """It knows this node."""
        anew, said = self._links.anew, self._links.said
        if anew:
            said.begin(m.heard)
        again = self._applications.restate() if anew else said.unheard(m.heard)
        if again is None:
            self._fence("the directory's state is older than what it had said")
            return
        self._epoch = m.epoch
        self._came.clear()
        tickets = self._applications.ledger.awaited([] if anew else again)
        self._links.say_again(again)
        self._links.send(wire.DIRECTORY, wire.Awaited(struct.pack(f"<{len(tickets)}I", *tickets)))

    def flush(self, m: wire.Flush) -> None:
        """All are there: nobody acts on a word of the directory as it was any more."""
        here = {node for (node,) in struct.iter_unpack("<H", m.nodes)} - {self._links.node}
        for node in self._links.peers:
            if node not in here:
                self._pager.member_left(wire.MemberLeft(node, "it did not come back"))
        self._links.hear_peers()
        self._links.renew_broken()
        self._pager.bring_out()
        self._awaited = {(node, bulk) for node in here for bulk in (False, True)}
        self._flushed = True
        for node, bulk in sorted(self._awaited):
            self._tell_flushed(node, bulk)
        self._report_if_all_came()

    def _tell_flushed(self, node: int, bulk: bool) -> None:
        self._links.send_pages(node, wire.Flushed(self._epoch, self._links.node, bulk), b"", bulk)

    def broken(self, node: int, bulk: bool) -> None:
        """The agent of a peer was killed, which shows in that the next one does not know the conversation with it: what
        was sent in that is lost, and what it was about is void."""
        if self._flushed:
            self._links.renew_broken()
            self._tell_flushed(node, bulk)

    def flushed(self, m: wire.Flushed) -> bool:
        """Nothing is on its way any more on this connection of a peer, which may be told before this node is told to
        flush. False if it is not of this beginning."""
        if m.epoch != self._epoch:
            return False
        self._came.add((m.sender, m.bulk))
        self._report_if_all_came()
        return True

    def member_left(self, node: int) -> None:
        """A peer has gone: nothing comes from it."""
        if self._awaited is not None:
            self._awaited -= {(node, False), (node, True)}
            self._report_if_all_came()

    def _report_if_all_came(self) -> None:
        if self._awaited is None or self._awaited - self._came:
            return
        self._awaited = None
        send = self._links.send
        for region, how, runs in self._pager.report():
            for at in range(0, max(1, len(runs)), _RUNS_MAX):
                packed = b"".join(_RUN.pack(*run) for run in runs[at : at + _RUNS_MAX])
                send(wire.DIRECTORY, wire.Have(region, how, packed))
        send(wire.DIRECTORY, wire.Rebuilt(self._epoch))
        self._reported = True

    def revived(self) -> None:
        """Pages that were nowhere are here again."""
        if self._reported:
            self._links.send(wire.DIRECTORY, wire.Rebuilt(self._epoch))

    def go_on(self, _: wire.GoOn) -> None:
        """The directory knows where everything is."""
        self._epoch = -1
        self._flushed = self._reported = False
        self._links.go_on()
        self._pager.thaw()
        self._applications.go_on()
        self._tell(line("returned", reason="the directory has found all pages"))
