"""The services run without a collector of cycles (``__main__.py`` of both), so they must not make any on their way."""

from __future__ import annotations

import gc
import random

from directory.cluster import Cluster
from directory.members import Outgoing
from dsm import wire
from dsm.errors import DsmError


def converse(cluster: Cluster, dice: random.Random) -> None:
    """Nodes come, open a region, ask for pages and locks, send nonsense, and go."""
    names = [dice.randbytes(16) for _ in range(4)]
    for number, name in enumerate(names):
        cluster.step(name, wire.Join(f"n{number}", f"tcp://127.0.0.1:{7000 + number}"), 0.0)
        cluster.step(name, wire.Open(1, "grid", 1 << 24, 4096, wire.OPEN_OR_CREATE, {}), 0.0)
    answers: Outgoing = []
    for generation in range(400):
        name = dice.choice(names)
        start, count, op = dice.randrange(400), dice.randrange(1, 20), dice.choice((wire.READ, wire.WRITE))
        answers += cluster.step(name, wire.Request(1, generation, start, count, op, wire.FAULT), 0.0)
        for to, m in answers[:]:
            if type(m) in (wire.Grant, wire.Fetch):
                cluster.step(to, wire.Done(m[0], m[1], m[2], m[3]), 0.0)
        answers.clear()
        cluster.step(name, wire.Acquire(generation, "lock", wire.LOCK, wire.FOREVER, 1, generation, "somebody"), 0.0)
        try:
            wire.decode(dice.randbytes(30))
        except DsmError as error:
            cluster.malformed(name, error)
        cluster.step(dice.randbytes(16), wire.Query(1, "status", 0, 0, 0), 0.0)
        cluster.step(name, wire.Query(1, "story", 1, start, 0), 0.0)
    cluster.tick(1.0)
    for name in names:
        cluster.step(name, wire.Leave(), 1.0)


def test_a_directory_makes_no_reference_cycles() -> None:
    cluster = Cluster("tcp://127.0.0.1:7400", 0.0)
    converse(cluster, random.Random(1))  # what is made once is made now
    gc.collect()
    gc.disable()
    try:
        converse(cluster, random.Random(2))
        assert cluster._pages.transactions > 200
        assert gc.collect() == 0
    finally:
        gc.enable()
