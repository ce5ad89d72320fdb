"""What is on its way, as one value: by channel, in order; and which pages were ever stored to."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

from simulated_cluster import Channel

from dsm.wire import DIRECTORY, Data, Done, GaveUp, Request
from nodes.outgoing import may_overtake

from .sides import LEFT, Sent
from .state import OUTDATED, Frozen, Rewrite, rewritten

Packet = tuple[Frozen, tuple[int, ...]]
"""A frozen message and, for Data, the contents of its pages."""


class Network(NamedTuple):
    """``stored``: a bit mask of the pages that have been stored to. ``channels``: those that are not empty, sorted."""

    stored: int
    channels: tuple[tuple[Channel, tuple[Packet, ...]], ...]


def pops(network: Network) -> Iterator[tuple[Channel, Packet, Network]]:
    """Each message that may arrive next, and what is left then."""
    channels = network.channels
    for i, (channel, packets) in enumerate(channels):
        for at in range(2 if _overtakes(packets) else 1):
            left = packets[:at] + packets[at + 1 :]
            rest = ((channel, left),) if left else ()
            yield channel, packets[at], network._replace(channels=channels[:i] + rest + channels[i + 1 :])


def _overtakes(packets: tuple[Packet, ...]) -> bool:
    """May the second message go before the first? The machine of a node does not know whether its Done waits."""
    if len(packets) < 2 or packets[0][0][0] is not Done or packets[1][0][0] is not Request:
        return False
    return may_overtake(Request(*packets[1][0][1:]), Done(*packets[0][0][1:]))


def pushed(network: Network, source: int, sent: tuple[Sent, ...], alive: frozenset[int]) -> Network:
    """What ``source`` sends is on its way; what is for a node that is gone is not."""
    channels = dict(network.channels)
    for to, bulk, message, contents in sent:
        if to == DIRECTORY or to in alive:
            channel = Channel(source, to, bulk)
            channels[channel] = (*channels.get(channel, ()), (message, contents))
    return network._replace(channels=tuple(sorted(channels.items(), key=lambda item: item[0])))


def stored_to(network: Network, page: int) -> Network:
    """A page has been stored to: what is on its way of it is outdated."""
    channels = tuple((channel, tuple(_outdated(p, page) for p in packets)) for channel, packets in network.channels)
    return Network(network.stored | 1 << page, channels)


def _outdated(packet: Packet, page: int) -> Packet:
    message, contents = packet
    if message[0] is not Data:
        return packet
    start = Data(*message[1:]).start
    return message, tuple(OUTDATED if start + i == page else value for i, value in enumerate(contents))


def lost(network: Network, gone: int) -> Iterator[tuple[dict[Channel, int], Network]]:
    """A node is gone, and with it what was for it, and any last part of what it had sent on each channel."""
    channels = {channel: packets for channel, packets in network.channels if channel.to != gone}
    mine = [channel for channel in channels if channel.source == gone]
    farewell = Channel(gone, DIRECTORY, False)
    for cuts in product(*(range(len(channels[channel]) + 1) for channel in mine)):
        left = dict(channels)
        for channel, cut in zip(mine, cuts, strict=True):
            left[channel] = left[channel][: len(left[channel]) - cut]
        left[farewell] = (*left.get(farewell, ()), (LEFT, ()))
        kept = sorted(((c, p) for c, p in left.items() if p), key=lambda item: item[0])
        yield {c: n for c, n in zip(mine, cuts, strict=True) if n}, network._replace(channels=tuple(kept))


def renamed(network: Network, how: Rewrite) -> Network:
    channels = [
        (
            Channel(how.node(c.source) if c.source else 0, how.node(c.to) if c.to else 0, c.bulk),
            tuple((rewritten(message, _asker(c, message), how), contents) for message, contents in packets),
        )
        for c, packets in network.channels
    ]
    return network._replace(channels=tuple(sorted(channels, key=lambda item: item[0])))


def _asker(channel: Channel, message: Frozen) -> int:
    """Whose generation a message carries, where it does not say so itself."""
    return channel.source if message[0] in (Request, Done, GaveUp) else channel.to
