"""Garbage of every kind, and the probe that tells whether a cluster still works."""

from __future__ import annotations

import contextlib
import random
from typing import Any, Final

import msgpack
from application import hear, say
from cluster import LIMIT_S, Cluster

import dsm
from dsm import wire
from dsm.constants import CONTROL_BYTES_MAX, EXTENT_BYTES, PROTOCOL_VERSION
from dsm.session import HEAD, HELLO, Session

SEED: Final = 20240607


def serve_probes(rank: int) -> None:
    """Write the numbers that are told, each on a page of its own, and read those of the other node."""
    region = dsm.attach("probe", shape=(2, 200, 512), dtype="i8")
    while number := hear():
        if number > 0:
            region.array[rank, number] = number
        say(int(region.array[1 - rank, abs(number) - 1, 5]))


class Probe:
    """One application on each node, to see whether the cluster still works."""

    def __init__(self, cluster: Cluster, limit_s: float = LIMIT_S) -> None:
        self.cluster = cluster
        self.children = [cluster.start(serve_probes, rank, node=rank, limit_s=limit_s) for rank in range(2)]
        self.asks_for_the_status = True
        self._last = 0

    def __call__(self) -> None:
        """Each writes a new page and reads what the other wrote the time before."""
        self._last += 1
        for child in self.children:
            child.tell(self._last)
            assert child.hear() == self._last - 1
        if self.asks_for_the_status:
            nodes = self.cluster.status(self._last % 2)["cluster"]["nodes"]
            assert [node["name"] for node in nodes] == ["node0", "node1"]

    def end(self) -> None:
        """The applications leave."""
        self()
        for child in self.children:
            child.tell(0)
            child.result()


def random_values(plan: random.Random) -> Any:
    """Anything that MessagePack can say."""
    kind = plan.randrange(9)
    if kind == 0:
        return plan.choice([0, 1, 2, 3, -1, 255, 1 << 16, (1 << 32) - 1, 1 << 32, (1 << 63) - 1, 1 << 63, -(1 << 63)])
    if kind == 1:
        return plan.choice(["", "probe", "status", "owners", "x" * 256, "\0", "\U0010ffff" * 255])
    if kind == 2:
        return plan.randbytes(plan.randrange(40))
    if kind == 3:
        return plan.choice([True, False, None, 1.5, float("nan")])
    if kind == 4:
        return [random_values(plan) for _ in range(plan.randrange(4))]
    if kind == 5:
        return {str(n): random_values(plan) for n in range(plan.randrange(4))}
    if kind == 6:
        return msgpack.ExtType(plan.randrange(128), plan.randbytes(4))
    return plan.randrange(1 << plan.randrange(1, 63))


def random_messages(plan: random.Random, count: int) -> list[bytes]:
    """Right heads with wrong fields, wrong heads, cut and changed ones, and noise. None of them is a message."""
    found: list[bytes] = []
    while len(found) < count:
        kind = plan.randrange(len(wire.MESSAGES) + 2)
        fields = [random_values(plan) for _ in range(plan.randrange(9))]
        data: bytes = msgpack.packb(
            [plan.choice([PROTOCOL_VERSION] * 4 + [0, PROTOCOL_VERSION + 1, "1", None]), kind, *fields]
        )
        if plan.random() < 0.3:
            data = data[: plan.randrange(len(data) + 1)]
        if plan.random() < 0.2:
            data = plan.randbytes(plan.randrange(1, 200))
        with contextlib.suppress(dsm.DsmError):
            wire.decode(data)
            continue  # by chance, it is one
        found.append(data)
    deep = b"\x91" * 5000
    return [*found, b"", b"\xc1", deep, b"\xdf\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"]


def lawless(plan: random.Random) -> list[wire.Message]:
    """Messages that are well formed, from somebody who has no business to send them."""
    far = (1 << 63) - 1
    return [
        wire.Request(1, 1, 0, 1, wire.WRITE, wire.FAULT),
        wire.Request(99, 1, far, 0xFFFFFFFF, 255, wire.GUESS),
        wire.Done(1, 1, 0, 1),
        wire.Done(1, 1, far, 0),
        wire.Grant(1, 1, 0, 1, 0, True),
        wire.Fetch(1, 1, 0, 1, 2, 0, False, False),
        wire.Fetch(1, 1, 5, 1, 9, 0, False, False),
        wire.Invalidate(1, 1, 0, 1, 2),
        wire.Refuse(1, 1, 0, 1),
        wire.Lost(1, 1, 0, 1, "x"),
        wire.Data(1, 1, 0, 1, 0, 1, 0),
        wire.Data(1, 0xFFFFFFF0, 0, 0xFFFFFFFF, far, 0xFFFFFFFF, 0xFFFF),
        wire.Data(1, 1, 0, 1, 0, 0, 0),
        wire.Data(99, 1, 0, 1, 0, 1, 0),
        wire.Ack(1, 0xFFFFFFF0, 0, 0xFFFF),
        wire.Ack(99, 1, far, 1),
        wire.Welcome(1),
        wire.Member(2, "node1", "nonsense"),
        wire.MemberLeft(1, "because"),
        wire.Heartbeat(1, 1, 0),
        wire.Leave(),
        wire.Fenced("because"),
        wire.Failure(1, "DsmError", "because"),
        wire.Answer(1, {}),
        wire.Open(1, "evil", 100, 4096, 0, {}),
        wire.Opened(1, 1, 100, 4096, {}),
        wire.Close(1, 1),
        wire.Unlink(1, "probe"),
        wire.Destroy(1),
        wire.Acquire(1, "evil", wire.LOCK, wire.FOREVER, 1, 1, "a thread"),
        wire.Release("evil", True),
        wire.Arrive(1, "evil", 2, wire.FOREVER, True, 1, 1, "a thread"),
        wire.BarrierReset(1, "evil", 2, True),
        wire.Inspect(1, "evil", wire.LOCK),
        wire.Cancel(1, True),
        wire.Cancelled(1),
        wire.Granted(1, 1),
        wire.Mapped(0),
        wire.Ready(),
        wire.Prefetch(0, 10, True),
        wire.StatsQuery(),
        wire.Post(1, "evil", wire.BARRIER, -1),
        wire.Enroll(1, "evil", wire.BARRIER, 1 << 60, 1, 1, "a thread"),
        wire.Forget(1, "evil", wire.LOCK),
        wire.Recall("evil"),
        wire.Holds("evil", 1, 1, "a thread"),
        wire.Return(1, "evil", True),
        wire.Gone(1, True),
        wire.WaitOn("evil", "evil", wire.FOREVER, 1, 1, "a thread"),
    ]


_ZEROMQ: Final = b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\0NULL" + bytes(48)


def strange_opening(plan: random.Random) -> bytes:
    """What a connection may begin with, and no conversation comes about: as long as a hello at least."""
    session = Session(plan.randbytes(16))
    kind = plan.randrange(6)
    if kind == 0:
        return session.hello(True)  # of a conversation that was forgotten, or never was
    if kind == 1:
        session.received = plan.choice((1, 1000, (1 << 64) - 1))
        return session.hello(False)
    if kind == 2:
        return b"\xff" + plan.randbytes(HELLO.size + plan.choice((0, 10, 5000)))
    if kind == 3:
        return _ZEROMQ + plan.randbytes(plan.choice((0, 500)))
    if kind == 4:
        return b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n"
    return bytes(HELLO.size + plan.randrange(10))


def strange_head(plan: random.Random) -> bytes:
    """The head of a frame that ends a conversation in which the other end has said nothing."""
    kind = plan.randrange(4)
    if kind == 0:
        return HEAD.pack(plan.choice((CONTROL_BYTES_MAX + 1, 1 << 31, (1 << 32) - 1)), plan.choice((0, 10)), 0)
    if kind == 1:
        return HEAD.pack(plan.choice((1, 10)), plan.choice((EXTENT_BYTES + 1, 1 << 31, (1 << 32) - 1)), 0)
    if kind == 2:
        return HEAD.pack(0, 4, 0) + b"page"  # page data of no message
    return HEAD.pack(3, 0, plan.choice((1, 1000, 1 << 40, (1 << 64) - 1))) + b"abc"  # has more than was sent
