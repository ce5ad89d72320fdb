"""Many nodes in one process, which keep a directory busy: ``python -m benchmarks.directory_load ADDRESS NAME NODES``.

The nodes are members and speak the protocol over the streams that real nodes have, each on a connection of its own (one
to each shard) and with several requests under way, but they have no memory and no applications: what goes from node to
node, which a directory never sees, is a call here. Obeys lines ``{"what": KIND, "seconds": S}`` on its standard input,
each answered with ``{"pages": N, "misses": N, "seconds": S}``.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from dsm import wire
from dsm.constants import HEARTBEAT_S, PAGE_BYTES, PREFETCH_BYTES
from dsm.geometry import shard_of
from dsm.poller import Poller
from dsm.stream import Caller
from dsm.wire import FAULT, PREFETCH, READ, WRITE

RUN_PAGES: Final = PREFETCH_BYTES // PAGE_BYTES
"""What a node asks for at a time when it prefetches."""
FIRST_TOUCH: Final = "first touch"
MISSES: Final = "misses"
RUNS: Final = "runs"
_REGION_BYTES: Final = 1 << 40
_IN_FLIGHT: Final = 4
"""Threads of a node that wait for pages of other nodes."""
_PLACES: Final = 32
"""Pages, or runs of pages, that a thread goes through."""
_ZONE: Final = _REGION_BYTES // PAGE_BYTES // 4
"""Pages of the region that a kind of load has for itself."""


class _Node:
    """A member: its connections to the shards of the directory, and what it has to say at the end of this turn."""

    def __init__(self, load: _Load, address: str, name: str, port: int) -> None:
        self.number = 0
        self.ready = False
        self._name = name
        self._address = f"tcp://127.0.0.1:{port}"
        self._load = load
        self._shards: list[Caller] = []
        self._out: list[list[bytes]] = []
        self._others: list[str] = []
        self._welcomes = 0
        self._call(address, wire.Join(name, self._address))

    def _call(self, address: str, message: wire.Message) -> None:
        self._shards.append(Caller(self._load.poller, address, self._deliver, lambda *_: None))
        self._out.append([wire.encode(message)])

    def send(self, message: wire.Message) -> None:
        self._out[0].append(wire.encode(message))

    def send_of_page(self, message: wire.Request | wire.Done) -> None:
        shard = shard_of(message.region, message.start, PAGE_BYTES, len(self._out))
        self._out[shard].append(wire.encode(message))

    def heartbeat(self) -> None:
        if self.ready:
            for out in self._out:
                out.append(wire.encode(wire.Heartbeat(0, 1, 0)))

    def flush(self) -> None:
        for shard, out in zip(self._shards, self._out, strict=True):
            if out:
                shard.send_all(out)
                out.clear()

    def told_of_shards(self, m: wire.Shards) -> None:
        self._others = m.addresses.split()

    def welcome(self, m: wire.Welcome) -> None:
        self._welcomes += 1
        self.number = m.node
        if self._welcomes == 1:
            for address in self._others:
                self._call(address, wire.Enlist(m.node, self._name, self._address))
        self.ready = self._welcomes == len(self._shards)

    def _deliver(self, _: object, data: memoryview, __: object) -> None:
        message = wire.decode(data)
        handler = self._load.handlers.get(type(message))
        if handler is not None:
            handler(self, message)


class _Thread:
    """Touches one place after the other: as one of two nodes to read and then to write, then as the other, and so on.
    Its number is the generation of its requests."""

    def __init__(self, number: int, nodes: tuple[_Node, _Node], places: Sequence[int], count: int) -> None:
        self.number = number
        self.nodes = nodes
        self.places = places
        self.count = count  # pages of a place
        self.fresh = True  # nobody has touched its places yet
        self.at = 0
        self.turn = 0  # whose
        self.op = WRITE
        self.owed: int | None = None  # acknowledgements; None until the directory or the owner tells
        self.acks = 0

    def request(self, region: int) -> None:
        need = FAULT if self.count == 1 else PREFETCH
        self.owed, self.acks = None, 0
        place = self.places[self.at]
        self.nodes[self.turn].send_of_page(wire.Request(region, self.number, place, self.count, self.op, need))

    def go_on(self) -> None:
        """It has what it asked for: what comes next."""
        if self.op == READ:
            self.op = WRITE
            return
        self.op = WRITE if self.fresh else READ
        self.at += 1
        if self.at == len(self.places):
            self.at = 0
            self.turn = 1 - self.turn
            self.fresh, self.op = False, READ


class _Load:
    def __init__(self, address: str, name: str, nodes: int) -> None:
        self.poller = Poller()
        self._next_heartbeat_s = time.monotonic() + HEARTBEAT_S
        self.handlers: dict[type[Any], Callable[[_Node, Any], None]] = {
            wire.Shards: lambda node, m: node.told_of_shards(m),
            wire.Welcome: lambda node, m: node.welcome(m),
            wire.Opened: self._opened,
            wire.Grant: self._grant,
            wire.Fetch: lambda _, m: self._came(m.generation, m.acks),
            wire.Invalidate: lambda _, m: self._ack(m.generation),
            wire.Failure: self._failed,
            wire.Fenced: self._failed,
        }
        port = 10_000 + 1000 * int(name)
        self._nodes = [_Node(self, address, f"load {name}.{i}", port + i) for i in range(nodes)]
        self._until(lambda: all(node.ready for node in self._nodes))
        self._region = 0
        for node in self._nodes:
            node.send(wire.Open(0, f"load {name}", _REGION_BYTES, PAGE_BYTES, wire.OPEN_OR_CREATE, {}))
            self._until(lambda: bool(self._region))
            node.send(wire.Keep(self._region))
        self._threads: dict[int, _Thread] = {}
        self._running: set[int] = set()
        self._goes_on: Callable[[_Thread], bool]
        self._pages = self._misses = 0
        self._kinds = {
            FIRST_TOUCH: self._add_threads(1, self._untouched()),
            MISSES: self._add_threads(1, self._shuffled(_ZONE, 1)),
            RUNS: self._add_threads(RUN_PAGES, self._shuffled(2 * _ZONE, RUN_PAGES)),
        }
        for kind in (MISSES, RUNS):  # some node has to have the pages
            self._start(kind, float("inf"), lambda thread: thread.fresh)

    def _untouched(self) -> list[Sequence[int]]:
        """For each thread more places than it will ever touch, none beside another."""
        threads = len(self._nodes) * _IN_FLIGHT
        share = _ZONE // threads
        return [range(share * i, share * (i + 1), 3) for i in range(threads)]

    def _shuffled(self, zone: int, count: int) -> list[Sequence[int]]:
        """For each thread its places, among those of others."""
        threads = len(self._nodes) * _IN_FLIGHT
        places = list(range(zone, zone + threads * _PLACES * count, count))
        random.Random(1).shuffle(places)
        return [places[i::threads] for i in range(threads)]

    def _add_threads(self, count: int, places: list[Sequence[int]]) -> list[int]:
        nodes, first = self._nodes, len(self._threads)
        for i, mine in enumerate(places):
            pair = nodes[i % len(nodes)], nodes[(i + 1) % len(nodes)]
            self._threads[first + i] = _Thread(first + i, pair, mine, count)
        return list(range(first, len(self._threads)))

    # -- messages ----------------------------------------------------------------------------------------

    def _opened(self, _: _Node, m: wire.Opened) -> None:
        self._region = m.region

    def _failed(self, _: _Node, m: Any) -> None:
        raise SystemExit(f"the directory says {m}")

    def _grant(self, _: _Node, m: wire.Grant) -> None:
        if m.zero or not m.acks:  # over at once
            self._over(self._threads[m.generation])
        else:
            self._came(m.generation, m.acks)

    def _came(self, number: int, acks: int) -> None:
        thread = self._threads[number]
        thread.owed = acks
        self._close_if_settled(thread)

    def _ack(self, number: int) -> None:
        thread = self._threads[number]
        thread.acks += 1
        self._close_if_settled(thread)

    def _close_if_settled(self, thread: _Thread) -> None:
        if thread.acks == thread.owed:
            place = thread.places[thread.at]
            thread.nodes[thread.turn].send_of_page(wire.Done(self._region, thread.number, place, thread.count))
            self._over(thread)

    def _over(self, thread: _Thread) -> None:
        self._misses += 1
        self._pages += thread.count
        thread.go_on()
        if self._goes_on(thread):
            thread.request(self._region)
        else:
            self._running.discard(thread.number)

    # -- rounds ------------------------------------------------------------------------------------------

    def _start(self, kind: str, seconds: float, goes_on: Callable[[_Thread], bool]) -> dict[str, float]:
        began = time.monotonic()
        ends = began + seconds
        self._goes_on = lambda thread: goes_on(thread) and time.monotonic() < ends
        self._pages = self._misses = 0
        self._running = set(self._kinds[kind])
        for number in self._kinds[kind]:
            self._threads[number].request(self._region)
        self._until(lambda: not self._running)
        return {"pages": self._pages, "misses": self._misses, "seconds": time.monotonic() - began}

    def round(self, kind: str, seconds: float) -> dict[str, float]:
        """So much of one kind of load."""
        return self._start(kind, seconds, lambda _: True)

    def command(self) -> Any:
        """The next line of standard input; the nodes stay members meanwhile. None at its end."""
        came = False

        def readable(_: int) -> None:
            nonlocal came
            came = True

        self.poller.watch(sys.stdin.fileno(), readable)
        self._until(lambda: came)
        self.poller.unwatch(sys.stdin.fileno())
        line = sys.stdin.readline()
        return json.loads(line) if line else None

    def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            if time.monotonic() >= self._next_heartbeat_s:
                self._next_heartbeat_s = time.monotonic() + HEARTBEAT_S
                for node in self._nodes:
                    node.heartbeat()
            for node in self._nodes:
                node.flush()
            self.poller.wait(HEARTBEAT_S / 2)


def main(address: str, name: str, nodes: str) -> None:
    load = _Load(address, name, int(nodes))
    print("{}", flush=True)
    while command := load.command():
        print(json.dumps(load.round(*command)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
