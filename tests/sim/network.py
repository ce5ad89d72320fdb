"""The simulated network: connections that keep their order, each with delays of its own.

A connection between two hosts that is cut delivers nothing until it is mended; then it goes on where it stopped, as TCP
does after a pause. One that breaks loses what is under way, and is made again after a while: then the production's
:class:`~dsm.session.Session` of each end decides what is sent again. What a host has sent when it dies may arrive or
not, from some point on nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from dsm import wire
from dsm.session import HEAD, Session
from nodes.outgoing import Muted, Outgoing, Said

from .world import MS, US, World

DIRECTORY: Final = 0
BULK_FRAMES_MAX: Final = 4
"""What a bulk connection takes before its sender has to wait: what its buffers hold (dsm/stream.py)."""


_NAME: Final = bytes(16)


class Packet(NamedTuple):
    arrives: int
    message: wire.Message
    data: bytes
    payload: bytes | None
    frame_bytes: int


Deliver = Callable[["Channel", Packet], None]


class Channel:
    """One direction of one connection from host ``source`` to host ``to``."""

    __slots__ = (
        "_receiver", "_sender", "broken", "bulk", "conversation", "deliver", "ended", "name", "network", "packets",
        "scheduled", "source", "to", "unknown",
    )  # fmt: skip

    def __init__(self, network: Network, source: int, to: int, bulk: bool, deliver: Deliver) -> None:
        self.network = network
        self.source = source
        self.to = to
        self.bulk = bulk
        self.deliver = deliver
        self.packets: deque[Packet] = deque()
        self.scheduled = False
        self.broken = False
        self.ended = False  # its sender has closed it, or died
        self.conversation = 0  # with the directory, by number
        self.unknown = False  # its sender has found out that the other end does not know it
        self._sender, self._receiver = Session(_NAME), Session(_NAME)
        self.name = f"{_name(source)}{'~' if bulk else ''}", _name(to)

    def send(self, message: wire.Message, payload: bytes | None = None) -> None:
        frame = self._sender.frame(wire.encode(message), payload or b"")
        if not self.broken:
            self._enqueue(frame)

    def _enqueue(self, frame: bytes) -> None:
        length, payload_length, _ = HEAD.unpack_from(frame)
        data, payload = frame[HEAD.size : HEAD.size + length], frame[HEAD.size + length :] or None
        network = self.network
        delay = network.delay(self.source, self.to)
        arrives = network.world.now + delay + (payload_length >> 3 << 3)  # a byte a nanosecond
        if self.packets:
            arrives = max(arrives, self.packets[-1].arrives)
        self.packets.append(Packet(arrives, wire.decode(data), data, payload, len(frame)))
        self._schedule()

    def _schedule(self) -> None:
        if self.packets and not self.scheduled:
            self.scheduled = True
            self.network.world.at(self.packets[0].arrives, self._arrive)

    def _arrive(self) -> None:
        self.scheduled = False
        if not self.packets:
            return
        if self.network.is_cut(self.source, self.to):
            self.network.stopped.append(self)
            self.scheduled = True  # until it is mended
            return
        packet = self.packets.popleft()
        self._schedule()
        if self._receiver.arrived(packet.frame_bytes):
            self._receiver.acknowledgement()
            self._sender.acknowledge(self._receiver.received)
        self.network.world.note_message(*self.name, packet.message, packet.data)
        self.deliver(self, packet)

    def go_on(self) -> None:
        """The connection is mended."""
        self.scheduled = False
        self._schedule()

    def break_off(self) -> None:
        """The connection breaks: nothing that is under way arrives."""
        self.broken = True
        self.packets.clear()

    def connect_again(self) -> None:
        """There is another connection: each end tells what it has."""
        if self.broken and not self.ended:
            self.broken = False
            for frame in self._sender.resume(self._receiver.received):
                self._enqueue(frame)

    def lose(self, keep: int) -> None:
        """The sender has gone: only the first ``keep`` packets under way will arrive."""
        self.ended = True
        while len(self.packets) > keep:
            self.packets.pop()


class Network:
    """All connections. ``delays``: the shortest and the longest that a message takes by itself, in microseconds."""

    def __init__(self, world: World, delays: tuple[int, int]) -> None:
        self.world = world
        self.stopped: list[Channel] = []
        self.gone: set[int] = set()  # hosts that nothing reaches any more; what is sent to them waits at the sender
        self._delays = (delays[0] * US, delays[1] * US)
        self._channels: dict[tuple[int, int, bool], Channel] = {}
        self._orphaned: list[Channel] = []  # their sender was killed
        self._cuts: dict[int, Callable[[int, int], bool]] = {}
        self._slow: dict[frozenset[int], int] = {}
        self._last_cut = 0
        self.peer_broken: Callable[[int, int, bool], None]

    def channel(self, source: int, to: int, bulk: bool, deliver: Deliver) -> Channel:
        """The connection between two hosts, made when it is first used."""
        key = source, to, bulk
        channel = self._channels.get(key)
        if channel is None:
            channel = self._channels[key] = Channel(self, source, to, bulk, deliver)
        return channel

    def channels_of(self, host: int) -> list[Channel]:
        """Those on which a host sends."""
        return [channel for channel in self._channels.values() if channel.source == host]

    def forget(self, source: int, to: int) -> None:
        """The sender has closed its connections: what they had not sent yet is gone."""
        for bulk in (False, True):
            channel = self._channels.pop((source, to, bulk), None)
            if channel is not None:
                channel.ended = True
                channel.packets.clear()
        self.hang_up(source, to)

    def hang_up(self, source: int, to: int) -> None:
        """The receiver is another process now, or has noticed that the sender is: nothing of that one arrives more."""
        for channel in self._orphaned:
            if (channel.source, channel.to) == (source, to):
                channel.packets.clear()
        self._orphaned = [channel for channel in self._orphaned if channel.packets]

    def leave_on_its_way(self, source: int, to: int) -> None:
        """The sender has died: some of what is under way arrives still, and nothing else on this connection."""
        channel = self._channels.pop((source, to, False), None)
        if channel is not None:
            channel.lose(self.world.chance.randint(0, len(channel.packets)))
            self._orphaned.append(channel)

    def anew(self, links: Links) -> Links:
        """An agent was killed. What it has sent may arrive, or not; what was sent to it does not, and the next one does
        not know the conversations, which peers find out by and by."""
        node = links.node
        links.dead = True
        links.hang_up()
        for key, channel in list(self._channels.items()):
            if channel.source == node:
                del self._channels[key]
                channel.lose(self.world.chance.randint(0, len(channel.packets)))
                self._orphaned.append(channel)
            elif channel.to == node:
                channel.break_off()
                channel.ended = True
                if channel.source == DIRECTORY:
                    del self._channels[key]
                else:
                    self.world.after(self.world.spread(20 * US, 20 * MS), self._find_out, key, channel)
        return links.another()

    def _find_out(self, key: tuple[int, int, bool], channel: Channel) -> None:
        if self._channels.get(key) is channel and not channel.unknown:
            channel.unknown = True
            self.peer_broken(channel.source, channel.to, channel.bulk)

    def renew_broken(self, source: int) -> None:
        """Conversations that the other end does not know any more begin anew."""
        for key, channel in list(self._channels.items()):
            if channel.source == source and channel.unknown:
                del self._channels[key]

    def channels_between(self, a: int, b: int) -> list[Channel]:
        """Those of two hosts, both ways."""
        return [channel for channel in self._channels.values() if {channel.source, channel.to} == {a, b}]

    def delay(self, source: int, to: int) -> int:
        low, high = self._delays
        factor = self._slow.get(frozenset((source, to)), 1) if self._slow else 1
        return self.world.spread(low, high) * factor

    # -- faults --------------------------------------------------------------------------------------------

    def is_cut(self, source: int, to: int) -> bool:
        return to in self.gone or any(cuts(source, to) for cuts in self._cuts.values())

    def cut(self, cuts: Callable[[int, int], bool]) -> int:
        """Stop the connections between all pairs for which ``cuts`` is true. What :meth:`mend` wants."""
        self._last_cut += 1
        self._cuts[self._last_cut] = cuts
        return self._last_cut

    def mend(self, number: int) -> None:
        self._cuts.pop(number, None)
        stopped, self.stopped = self.stopped, []
        for channel in stopped:
            channel.go_on()

    def slow_down(self, pair: frozenset[int], factor: int) -> None:
        """Messages between two hosts take ``factor`` times as long (1: no longer than usual)."""
        if factor == 1:
            self._slow.pop(pair, None)
        else:
            self._slow[pair] = factor


def _name(host: int) -> str:
    return f"n{host}" if host else "directory"


class Links:
    """What a node's :class:`nodes.links.Links` is to its pager and its applications."""

    def __init__(
        self,
        network: Network,
        node: int,
        to_peer: Callable[[int], Deliver],
        to_directory: Deliver,
        conversation: int = 1,
        called: Callable[[], None] = lambda: None,
        anew: bool = False,
    ):
        self.node = node
        self.address = f"tcp://10.0.0.1:{node}"
        self.directory_address = "tcp://10.0.0.1:7400"
        self._network = network
        self._to_peer = to_peer
        self._to_directory = to_directory
        self._members: set[int] = set()
        self._outgoing = Outgoing()
        self.said = Said()
        self._away = False
        self.conversation = conversation  # with the directory, by number
        self.called = called
        self.anew = anew
        self.dead = False  # the connection to the directory; nobody has noticed

    def directory_died(self) -> None:
        """It was killed: what is sent to it is lost, and what it has sent may arrive still."""
        self.dead = True
        self._network.leave_on_its_way(DIRECTORY, self.node)

    def hang_up(self) -> None:
        """That is noticed: nothing comes from it any more."""
        self._network.hang_up(DIRECTORY, self.node)

    def rejoin(self) -> None:
        self.dead = False
        self._away = True
        self.conversation += 1
        self._outgoing = Muted()
        anew = self._network.world.chance.getrandbits(31) + 1 if self.anew else 0
        self.send(DIRECTORY, wire.Rejoin(self.node, f"speaks {self.node:4} {1:4}".encode(), anew))

    def say_again(self, messages: list[wire.Message]) -> None:
        self._away = False
        for message in messages:
            self.send(DIRECTORY, message)

    def hear_peers(self) -> None:
        """They are heard anyway."""

    def renew_broken(self) -> None:
        self._network.renew_broken(self.node)

    def another(self) -> Links:
        """Those of another agent, in place of these."""
        return Links(
            self._network,
            self.node,
            self._to_peer,
            self._to_directory,
            self.conversation,
            self.called,
            anew=True,
        )

    def sent(self, node: int, bulk: bool) -> int:
        return 0

    def go_on(self) -> None:
        self.anew = False
        self._outgoing = Outgoing()

    @property
    def peers(self) -> list[int]:
        return list(self._members)

    def tell(self, message: wire.Message) -> None:
        if type(message) in wire.REMEMBERED:
            self.said.add(message)
        if not self._away:
            self.send(DIRECTORY, message)

    def knows(self, nodes: Iterable[int]) -> None:
        """These were members before this one began to listen."""
        self._members.update(node for node in nodes if node != self.node)

    def member(self, node: int, address: str) -> None:
        assert address
        self._members.add(node)

    def member_left(self, node: int) -> None:
        self._members.discard(node)
        self._network.forget(self.node, node)

    def send(self, to: int, message: wire.Message) -> None:
        self.called()
        if not to:
            self._send_all(self._outgoing.send(message))
            if self._outgoing.waits is not None:
                self._network.world.after(self._network.world.spread(1 * US, 60 * US), self._flush)
            return
        channel = self._channel(to, False)
        if channel is not None:
            channel.send(message)

    def send_to_shards(self, message: wire.Message) -> None:
        self.send(DIRECTORY, message)

    def _flush(self) -> None:
        if self.node not in self._network.gone:
            self._send_all(self._outgoing.flush())

    def _send_all(self, messages: list[wire.Message]) -> None:
        if self.dead:
            return
        for message in messages:
            channel = self._network.channel(self.node, DIRECTORY, False, self._to_directory)
            channel.conversation = self.conversation
            channel.send(message)

    def send_pages(self, to: int, message: wire.Message, payload: bytes, bulk: bool) -> None:
        self.called()
        channel = self._channel(to, bulk)
        if channel is not None:
            channel.send(message, payload)

    def takes_bulk(self, node: int) -> bool:
        channel = self._channel(node, True)
        return channel is None or (not channel.broken and len(channel.packets) < BULK_FRAMES_MAX)

    def _channel(self, to: int, bulk: bool) -> Channel | None:
        if to not in self._members:  # it has just left
            return None
        return self._network.channel(self.node, to, bulk, self._to_peer(to))
