"""The connections of a node: to the directory, from its peers, and to each peer."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from dsm import asking, constants, errors, route, wire
from dsm.listener import Listener
from dsm.poller import Poller
from dsm.stream import Caller, Deliver, Link
from nodes.outgoing import Outgoing

log = logging.getLogger("dsm.node")

_GOODBYE_S: Final = 0.5
"""The goodbye should arrive, but nobody waits for it longer than this."""


class Links:
    """Joined to ``directory`` as ``node``. Nothing is delivered before :meth:`start`."""

    def __init__(self, poller: Poller, directory: str, listen: str, name: str) -> None:
        self.directory_address = directory
        self._poller = poller
        self._members: dict[int, str] = {}  # addresses by node id
        self._outgoing = Outgoing()
        self._callers: dict[int, Caller] = {}  # by node id; the directory is 0
        self._bulk: dict[int, Caller] = {}
        self._connected = True  # with the directory, as of the last look
        self._early: list[bytes] = []  # what the directory has said before start
        self._deliver: Callable[[bytes | memoryview], None] = lambda data: self._early.append(bytes(data))
        self._lost: Callable[[str], None] = lambda why: None
        self._listener = Listener(poller, listen)
        try:
            self.address = route.reachable(self._listener.address, directory)
            route.check_reachable(self.address, directory)
            caller = Caller(poller, directory, lambda _, data, __: self._deliver(data), self._broken)
            self._callers[wire.DIRECTORY] = caller
            self.node = self._join(caller, wire.Join(name, self.address))
        except BaseException:
            self._close()
            raise

    def _join(self, directory: Caller, join: wire.Join) -> int:
        directory.send(wire.encode(join))
        data = asking.first_answer(self._poller, directory, self._early, constants.CONNECT_TIMEOUT_S)
        if data is None:
            raise errors.DirectoryUnreachable(asking.unreachable(self.directory_address, constants.CONNECT_TIMEOUT_S))
        answer = wire.decode(data)
        if isinstance(answer, wire.Failure):
            raise errors.from_wire(answer.error, answer.text)
        if not isinstance(answer, wire.Welcome):
            raise errors.ProtocolError(f"the directory answered Join with {type(answer).__name__}")
        return int(answer.node)

    def start(
        self,
        from_directory: Callable[[bytes | memoryview], None],
        from_peer: Deliver,
        lost: Callable[[str], None],
    ) -> None:
        """Deliver what comes from now on. ``lost``: why the directory does not know this node any more."""
        self._lost = lost
        for data in self._early[1:]:  # the first was the Welcome
            from_directory(data)
        self._deliver = from_directory
        self._poller.idle = self.flush
        self._listener.start(from_peer, lambda link: link.proven)

    @property
    def rejected(self) -> int:
        """Connections on which no conversation came about."""
        return self._listener.rejected

    def look_after(self) -> None:
        """To be called now and then: makes connections that are missing."""
        self._listener.look_after()
        connected = self._callers[wire.DIRECTORY].connected
        if connected != self._connected:
            self._connected = connected
            log.warning(
                "the directory %s", "is reached again" if connected else "cannot be reached: faults wait for it"
            )
        for caller in (*self._callers.values(), *self._bulk.values()):
            caller.look_after()

    def _broken(self, link: Link, error: Exception | None) -> None:
        if error is None:
            return
        if link is self._callers.get(wire.DIRECTORY):
            self._lost(str(error))
        else:  # until that one has left the cluster, what it should have been sent is missing
            log.error("a peer has ended its conversation with this node: %s", error)

    def close(self) -> None:
        """Say goodbye and close every socket."""
        self.send(wire.DIRECTORY, wire.Leave())  # and before it what waits
        self._callers[wire.DIRECTORY].farewell(_GOODBYE_S)
        self._close()

    def _close(self) -> None:
        self._listener.close()
        for caller in (*self._callers.values(), *self._bulk.values()):
            caller.close()

    def member(self, m: wire.Member) -> None:
        """A peer is there; it is connected to when something is first sent to it."""
        self._members[m.node] = m.address

    def member_left(self, node: int) -> None:
        """A peer has gone; what is still to be sent to it goes nowhere."""
        self._members.pop(node, None)
        for callers in (self._callers, self._bulk):
            caller = callers.pop(node, None)
            if caller is not None:
                caller.close()

    def send(self, to: int, message: wire.Message) -> None:
        """A message to the directory (0) or to a peer."""
        if to:
            caller = self._callers.get(to) or self._caller(self._callers, to)
            if caller is not None:
                caller.send(wire.encode(message))
        else:
            self._send_all(self._outgoing.send(message))

    @property
    def waits(self) -> bool:
        """Does anything wait for :meth:`flush`?"""
        return self._outgoing.waits is not None

    def flush(self) -> None:
        """Send what waits."""
        if self._outgoing.waits is not None:
            self._send_all(self._outgoing.flush())

    def _send_all(self, messages: list[wire.Message]) -> None:
        if messages:
            self._callers[wire.DIRECTORY].send_all(list(map(wire.encode, messages)))

    def send_pages(self, to: int, message: wire.Data, payload: bytes, bulk: bool) -> None:
        """Page data to a peer; ``bulk``: on the connection where it delays nothing that somebody waits for."""
        callers = self._bulk if bulk else self._callers
        caller = callers.get(to) or self._caller(callers, to)
        if caller is not None:
            caller.send(wire.encode(message), payload)

    def takes_bulk(self, node: int) -> bool:
        """Can page data be sent to a peer's bulk connection at once? What goes nowhere can."""
        caller = self._bulk.get(node) or self._caller(self._bulk, node)
        return caller is None or caller.idle or caller.error is not None

    def _caller(self, callers: dict[int, Caller], to: int) -> Caller | None:
        address = self._members.get(to)
        if address is None:  # it has just left
            return None
        bulk = callers is self._bulk
        callers[to] = caller = Caller(self._poller, address, _deliver_nothing, self._broken, bulk=bulk)
        return caller


def _deliver_nothing(link: Link, data: memoryview, payload: memoryview) -> None:
    """A peer that is called has nothing to say: it calls back on a connection of its own."""
