"""The connections of a node: to the directory, from its peers, and to each peer."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from dsm import asking, route, wire
from dsm.listener import Listener
from dsm.poller import Poller
from dsm.stream import Caller, Deliver, Link
from nodes.outgoing import Muted, Outgoing, Said

log = logging.getLogger("dsm.node")

_ALL: Final = 1 << 62
_GOODBYE_S: Final = 0.5
"""The goodbye should arrive, but nobody waits for it longer than this."""


class Membership(NamedTuple):
    """What an agent has to know to take the place of another one: the number of the node, the conversation in which it
    became a member, and the socket on which its peers call."""

    node: int
    session: bytes
    listening: socket.socket


Told = Callable[[bytes | memoryview], None]
"""Takes what the directory says."""


class _Shard:
    """The conversation with a shard of the directory; what it says is kept until somebody listens."""

    __slots__ = ("address", "caller", "connected", "deliver", "early", "outgoing")

    def __init__(self, poller: Poller, address: str, broken: Callable[[Link, Exception | None], None]) -> None:
        self.address = address
        self.connected = True  # as of the last look
        self.early: list[bytes] = []
        self.deliver: Told = lambda data: self.early.append(bytes(data))
        self.outgoing = Outgoing()
        self.caller = Caller(poller, address, lambda _, data, __: self.deliver(data), broken)

    def start(self, deliver: Told) -> None:
        """Deliver what comes, first what has come."""
        for data in self.early:
            deliver(data)
        self.early.clear()
        self.deliver = deliver

    def answer(self, poller: Poller, kind: Any) -> Any:
        """Wait for the next thing that it says, which has to be of this kind."""
        return asking.answer(poller, self.caller, self.early, self.address, kind)

    def send(self, messages: list[wire.Message]) -> None:
        if messages:
            self.caller.send_all(list(map(wire.encode, messages)))


class Links:
    """Joined to ``directory``, in all its ``shards``, as ``node``. Nothing is delivered before :meth:`start`.

    ``before``: of the agent that was killed, in whose place this one goes on. It is ``anew`` until the directory has
    begun again with it.
    """

    def __init__(
        self, poller: Poller, directory: str, listen: str, name: str, before: Membership | None = None
    ) -> None:
        self.directory_address = directory
        self._poller = poller
        self._members: dict[int, str] = {}  # addresses by node id
        self._callers: dict[int, Caller] = {}  # by node id
        self._bulk: dict[int, Caller] = {}
        self._shards: list[_Shard] = []  # of the directory
        self._deliver: Told
        self._lost: Callable[[str], None] = lambda why: None
        self._peer_broken: Callable[[int, bool], None] = lambda node, bulk: None
        self._from_peer: Deliver
        self._started = self._hears_peers = False
        self.anew = before is not None
        self.said: Final = Said()
        self._away = False  # the directory has not told yet what it remembers of this node
        self._listener = Listener(poller, listen, before and before.listening)
        try:
            self.address = route.reachable(self._listener.address, directory)
            route.check_reachable(self.address, directory)
            if before is not None:
                self.node, self._session = before.node, before.session
                self.rejoin()
            else:
                self.node = self._join(name)
                self._session = self._shards[0].caller.name
        except BaseException:
            if len(self._shards) > 1:  # the first has taken this node in
                self._say_goodbye()
            self._close()
            raise
        self.shards = len(self._shards)
        self._first = self._shards[0].outgoing

    @property
    def membership(self) -> tuple[int, bytes, int]:
        """See :class:`Membership`; the last is the descriptor of the socket."""
        return self.node, self._session, self._listener.fileno()

    def _join(self, name: str) -> int:
        shard, answer = self._ask(self.directory_address, wire.Join(name, self.address), (wire.Shards, wire.Welcome))
        others: list[str] = []
        if isinstance(answer, wire.Shards):
            others = answer.addresses.split()
            answer = shard.answer(self._poller, wire.Welcome)
        node = int(answer.node)
        for address in others:
            self._ask(address, wire.Enlist(node, name, self.address), wire.Welcome)
        return node

    def _ask(self, address: str, question: wire.Message, kind: Any) -> tuple[_Shard, Any]:
        """Begin the conversation with one more shard, and hear what it answers."""
        shard = _Shard(self._poller, address, self._broken)
        self._shards.append(shard)
        shard.send([question])
        return shard, shard.answer(self._poller, kind)

    def start(
        self,
        from_directory: Told,
        from_peer: Deliver,
        lost: Callable[[str], None],
        peer_broken: Callable[[int, bool], None],
    ) -> None:
        """Deliver what comes from now on. ``lost``: why the directory does not know this conversation any more.
        ``peer_broken``: which peer does not (and whether that for bulk)."""
        self._deliver = from_directory
        self._lost = lost
        self._peer_broken = peer_broken
        self._started = True
        for shard in self._shards:
            shard.start(from_directory)
        self._poller.idle = self.flush
        self._from_peer = from_peer
        if not self.anew:
            self.hear_peers()

    def hear_peers(self) -> None:
        """Hear peers from now on. In the place of an agent that was killed not before all know that: what was sent to
        it would count as received."""
        if not self._hears_peers:
            self._hears_peers = True
            self._listener.start(self._from_peer, lambda link: link.proven)

    @property
    def rejected(self) -> int:
        """Connections on which no conversation came about."""
        return self._listener.rejected

    def look_after(self) -> None:
        """To be called now and then: makes connections that are missing."""
        if self._hears_peers:
            self._listener.look_after()
        for shard in self._shards:
            shard.caller.look_after()
            if shard.caller.connected != shard.connected:
                shard.connected = not shard.connected
                what = f"the shard at {shard.address} of the directory" if self.shards > 1 else "the directory"
                how = "is reached again" if shard.connected else "cannot be reached: faults wait for it"
                log.warning("%s %s", what, how)
        for caller in (*self._callers.values(), *self._bulk.values()):
            caller.look_after()

    def _broken(self, link: Link, error: Exception | None) -> None:
        if error is None:
            return
        if any(link is shard.caller for shard in self._shards):
            self._lost(str(error))
            return
        # Until all begin again, or that one has left the cluster, what it should have been sent is missing.
        log.warning("a peer has ended its conversation with this node: %s", error)
        for callers in (self._callers, self._bulk):
            for node in [node for node, caller in callers.items() if caller is link]:
                self._peer_broken(node, callers is self._bulk)

    def renew_broken(self) -> None:
        """Begin other conversations with peers that do not know those any more."""
        for callers in (self._callers, self._bulk):
            for node in [node for node, caller in callers.items() if caller.error is not None]:
                callers.pop(node).close()

    def close(self) -> None:
        """Say goodbye and close every socket."""
        self._say_goodbye()
        self._close()

    def _say_goodbye(self) -> None:
        for shard in self._shards:
            shard.send(shard.outgoing.send(wire.Leave()))  # and before it what waits
        for shard in self._shards:
            shard.caller.farewell(_GOODBYE_S)

    def _close(self) -> None:
        self._listener.close()
        for caller in (*self._callers.values(), *self._bulk.values()):
            caller.close()

    def rejoin(self) -> None:
        """Begin another conversation with the directory, as the node that this is. Nothing else is said in it before
        :meth:`say_again`, and of pages nothing before :meth:`go_on`."""
        self._away = True
        for shard in self._shards:
            shard.caller.close()
        first = _Shard(self._poller, self.directory_address, self._broken)
        self._shards = [first]
        if self._started:
            first.start(self._deliver)
        first.outgoing = self._first = Muted()
        anew = int.from_bytes(os.urandom(4), "little") | 1 if self.anew else 0
        first.send([wire.Rejoin(self.node, self._session, anew)])

    def say_again(self, messages: list[wire.Message]) -> None:
        """What the directory does not remember. From then on it is told everything as it comes."""
        self._away = False
        for message in messages:
            self.send(wire.DIRECTORY, message)

    def go_on(self) -> None:
        """The directory understands everything again."""
        self.anew = False
        self._shards[0].outgoing = self._first = Outgoing()

    @property
    def is_connected(self) -> bool:
        """Is there a directory to talk to?"""
        return not self._away and all(shard.caller.connected for shard in self._shards)

    @property
    def peers(self) -> list[int]:
        """The other nodes, as far as they are known here."""
        return list(self._members)

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
        """A message to a peer, to the directory (0, its first shard), or to another shard of it (-1, -2 and so on)."""
        if to > 0:
            caller = self._callers.get(to) or self._caller(self._callers, to)
            if caller is not None:
                caller.send(wire.encode(message))
        else:
            shard = self._shards[-to]
            shard.send(shard.outgoing.send(message))

    def tell(self, message: wire.Message) -> None:
        """A message to the directory that is not about pages: it comes there though that may be restarted."""
        if type(message) in wire.REMEMBERED:
            self.said.add(message)
        if not self._away:
            self.send(wire.DIRECTORY, message)

    def heard(self, m: wire.Lease) -> None:
        """The directory tells how much of what was said to it is not to be said again."""
        if m.shard == 0:
            self.said.heard(m.heard)

    def send_to_shards(self, message: wire.Message) -> None:
        """A message to every shard of the directory."""
        for shard in self._shards:
            shard.send(shard.outgoing.send(message))

    @property
    def waits(self) -> bool:
        """Does anything wait for :meth:`flush`?"""
        if self._first.waits is not None:
            return True
        return self.shards > 1 and any(shard.outgoing.waits is not None for shard in self._shards)

    def flush(self) -> None:
        """Send what waits."""
        for shard in self._shards:
            if shard.outgoing.waits is not None:
                shard.send(shard.outgoing.flush())

    def send_pages(self, to: int, message: wire.Message, payload: bytes, bulk: bool) -> None:
        """Page data, or what has to come after it, to a peer; ``bulk``: on the connection where it delays nothing that
        somebody waits for."""
        callers = self._bulk if bulk else self._callers
        caller = callers.get(to) or self._caller(callers, to)
        if caller is not None:
            caller.send(wire.encode(message), payload)

    def sent(self, node: int, bulk: bool) -> int:
        """How many messages were sent in a conversation with a peer."""
        caller = (self._bulk if bulk else self._callers).get(node)
        return caller.sent if caller is not None else 0

    def acknowledged(self, node: int, bulk: bool) -> int:
        """How many of them are known to have come. All, if it has left: then nobody asks any more."""
        caller = (self._bulk if bulk else self._callers).get(node)
        return caller.acknowledged if caller is not None else _ALL

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
