"""Regions with replicas: what was released outlives the loss of a host."""

from __future__ import annotations

import signal
from typing import Any

import pytest
from application import hear, say
from cluster import Cluster, until

import dsm
from dsm import launch

ROWS = 700
"""Pages: of two extents."""


def lose(cluster: Cluster, node: int) -> None:
    """The host of a node dies; its applications must have been killed."""
    before = len(cluster.status(0)["cluster"]["nodes"])
    cluster.nodes[node].process.send_signal(signal.SIGKILL)
    cluster.nodes[node].process.wait()
    cluster.ended.add(cluster.nodes[node].process.pid)
    cluster.path(node).unlink()
    until(lambda: len(cluster.status(0)["cluster"]["nodes"]) < before, "the end of its lease")


def release_then_write(rows: int) -> None:
    region = dsm.attach("kept", shape=(rows, 512), dtype="i8", replicas=1)
    region.array[:] = 1
    region.flush()
    region.array[::2] = 2
    say("has written")
    hear()


def what_is_kept(rows: int) -> list[Any]:
    region = dsm.attach("kept", shape=(rows, 512), dtype="i8")
    rest = sorted({int(value) for value in region.array[:, 5]})
    region.array[:] = 7  # and it can be written as ever
    return [region.replicas, region.lost(), rest]


def test_what_was_released_outlives_who_wrote_it(cluster3: Cluster) -> None:
    app = cluster3.start(release_then_write, ROWS, node=2)
    app.hear()
    app.kill()
    app.wait()
    lose(cluster3, 2)
    assert cluster3.run(what_is_kept, ROWS, node=1) == [1, [], [1]]


def count(rank: int) -> int:
    import select
    import sys

    region = dsm.attach("counted", shape=(8, 512), dtype="i8", replicas=1)
    lock = dsm.Lock("counted")
    done = 0
    say("ready")
    while not select.select([sys.stdin], [], [], 0)[0]:
        with lock:
            region.array[0, 0] += 1
        region.array[1 + rank, 0] = done = done + 1
        if done == 50:
            say("is at work")
    return done


def counted() -> list[Any]:
    region = dsm.attach("counted")
    return [region.lost(), region.array[:4, 0].tolist()]


def test_what_several_add_under_a_lock_outlives_one_of_them(cluster3: Cluster) -> None:
    apps = [cluster3.start(count, rank, node=rank) for rank in range(3)]
    for app in apps:
        assert [app.hear(), app.hear()] == ["ready", "is at work"]
    apps[2].tell()
    last = apps[2].result()  # all that it has counted was released
    lose(cluster3, 2)
    for app in apps[:2]:
        app.tell()
    done = [app.result() for app in apps[:2]]
    lost, (total, *own) = cluster3.run(counted, node=0)
    assert lost == []
    assert total == sum(done) + last
    assert own[:2] == done


def barrier_then_write(rank: int) -> None:
    region = dsm.attach("turns", shape=(2, 512), dtype="i8", replicas=1)
    barrier = dsm.Barrier("turns", 2)
    for turn in range(1, 6):
        region.array[rank] = turn
        barrier.wait()
    region.array[rank] = 99
    say("has written")
    hear()


def turns() -> list[Any]:
    region = dsm.attach("turns")
    return [region.lost(), region.array[:, 0].tolist()]


def test_a_barrier_is_a_release(cluster3: Cluster) -> None:
    apps = [cluster3.start(barrier_then_write, rank, node=1 + rank) for rank in range(2)]
    for app in apps:
        app.hear()
    for app in apps:
        app.kill()
        app.wait()
    lose(cluster3, 2)
    assert cluster3.run(turns, node=0) == [[], [99, 5]]


def attach_otherwise() -> list[str]:
    from dsm import errors

    dsm.attach("r", shape=(4,), dtype="i8", replicas=1)
    told = []
    for replicas in (0, 2, -1):
        try:
            dsm.attach("r", shape=(4,), dtype="i8", replicas=replicas)
        except errors.DsmError as error:
            told.append(type(error).__name__)
    return [*told, repr(dsm.attach("r").replicas)]


def test_replicas_are_checked(cluster: Cluster) -> None:
    assert cluster.run(attach_otherwise) == ["RegionMismatch", "RegionMismatch", "RegionMismatch", "1"]


def alone() -> int:
    region = dsm.attach("alone", shape=(512,), dtype="i8", replicas=1)
    region.array[:] = 1
    region.flush()
    with dsm.Lock("alone"):
        region.array[:] = 2
    return int(region.array.sum())


def test_one_node_has_nobody_to_keep_anything(start_cluster: Any) -> None:
    assert start_cluster(1).run(alone) == 2 * 512


def test_a_directory_of_several_processes_has_no_replicas(start_cluster: Any) -> None:
    cluster: Cluster = start_cluster(1, 2)
    with pytest.raises(AssertionError, match="replicas need a directory of one shard"):
        cluster.run(alone)
    assert isinstance(cluster.directory, launch.Service)
