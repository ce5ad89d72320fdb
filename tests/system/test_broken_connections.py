"""TCP connections between live services break, again and again: nothing is lost, nothing hangs, nothing is wrong."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from application import hear, say
from cluster import Cluster, until, worker

import dsm
from dsm import memory


def connections(pid: int) -> Iterator[socket.socket]:
    """The TCP connections of a process, as descriptors of this one."""
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile; or it listens, and has no peer
            if os.readlink(entry).startswith("socket:"):
                with socket.socket(fileno=memory.take_descriptor(pid, int(entry.name))) as sock:
                    if sock.family in (socket.AF_INET, socket.AF_INET6):
                        sock.getpeername()
                        yield sock


def break_some(cluster: Cluster, which: Callable[[], set[int]]) -> int:
    """Break connections of each service: of those that it has, ``which`` by number. How many."""
    broken = 0
    for service in cluster.services():
        numbers = which()
        for number, sock in enumerate(connections(worker(service.process.pid))):
            if number in numbers:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
                    broken += 1
    return broken


def count_and_write(rank: int, ranks: int, stop: str) -> list[int]:
    """Counters under a lock; pages that each writes and the next one reads, some of them in bulk. Until it is told."""
    region = dsm.attach("counters", shape=(8, 512), dtype="i8")
    pages = dsm.attach("pages", shape=(ranks, 150, 512), dtype="i8")
    lock, barrier = dsm.Lock("counters"), dsm.Barrier("turn", ranks)
    say("ready")
    for turn in itertools.count(1):
        for number in range(4):
            with lock:
                region.array[number, 0] += 1
                region.array[number + 4, 0] += 1
        pages.array[rank, :, ::50] = turn * ranks + rank
        if rank == 0:
            region.array[7, 1] = Path(stop).exists()
            Path(stop + ".turn").write_text(str(turn))
        barrier.wait()
        other = (rank + 1) % ranks
        wrong = np.unique(pages.array[other, :, ::50]).tolist()
        assert wrong == [turn * ranks + other], (turn, wrong)
        is_over = bool(region.array[7, 1])
        barrier.wait()
        if is_over:
            return [turn, *region.array[:, 0].tolist()]
    raise AssertionError


ROUNDS = 40
KINDS: dict[str, Callable[[random.Random], set[int]]] = {
    "one of a service": lambda plan: {plan.randrange(8)},
    "half of them": lambda plan: set(plan.sample(range(20), 10)),
    "all at once": lambda plan: set(range(100)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_connections_break_under_load(cluster3: Cluster, kind: str) -> None:
    plan = random.Random(kind)
    stop = cluster3.home / "stop"
    children = [cluster3.start(count_and_write, rank, 3, str(stop), node=rank) for rank in range(3)]
    for child in children:
        assert child.hear() == "ready"
    broken = 0
    for _ in range(ROUNDS):
        broken += break_some(cluster3, lambda: KINDS[kind](plan))
        time.sleep(plan.choice((0.01, 0.1, 0.2, 0.4)))
        assert [child.process.poll() for child in children] == [None] * 3
    assert broken >= ROUNDS / 2
    progress = Path(f"{stop}.turn")
    until(lambda: progress.exists() and int(progress.read_text() or 0) > 3, "progress")
    stop.touch()
    results = [child.result() for child in children]
    turns = results[0][0]
    assert turns > 3
    assert results == [[turns, *[3 * turns] * 8]] * 3
    status = cluster3.status()["cluster"]
    assert [(node["id"], node["name"]) for node in status["nodes"]] == [(1, "node0"), (2, "node1"), (3, "node2")]
    assert [region["pages"]["lost"] for region in status["regions"]] == [0, 0]


def wait_in_line(rank: int, ranks: int) -> None:
    """A lock that is held, one that is waited for, a barrier: what a directory remembers of calls that wait."""
    barrier = dsm.Barrier("all", ranks)
    if rank == 0:
        with dsm.Lock("held"):
            say("holds")
            hear()
    else:
        say("waits")
        with dsm.Lock("held"):
            pass
    barrier.wait()


def test_who_waits_goes_on_after_every_connection_broke(cluster3: Cluster) -> None:
    """Nothing is under way when they break; it comes when they are made again."""
    children = [cluster3.start(wait_in_line, 0, 3, node=0)]
    assert children[0].hear() == "holds"
    children += [cluster3.start(wait_in_line, rank, 3, node=rank) for rank in (1, 2)]
    assert [child.hear() for child in children[1:]] == ["waits", "waits"]
    until(lambda: waiting(cluster3) == [2], "both to wait")
    directory = cluster3.directory.process.pid
    for _ in range(3):
        until(lambda: sum(1 for _ in connections(directory)) == 3, "the connections of the nodes to the directory")
        assert break_some(cluster3, lambda: set(range(100))) >= 3
    children[0].tell()
    for child in children:
        child.result()


def waiting(cluster: Cluster) -> list[Any]:
    return [lock["calls"] for lock in cluster.status()["cluster"]["primitives"] if lock["kind"] == "lock"]
