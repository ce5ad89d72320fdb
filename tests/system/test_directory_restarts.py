"""A directory that is killed: another goes on with what it had written down, and with what the nodes have."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from application import hear, say
from cluster import Cluster, until

import dsm
from dsm import asking, errors, launch, wire
from dsm.constants import LEASE_S

ROUNDS = 5


@pytest.fixture
def lasting() -> Iterator[Cluster]:
    cluster = Cluster(2, lasting=True)
    try:
        yield cluster
        cluster.check()
    finally:
        cluster.clean()


def work(rank: int) -> dict[str, Any]:
    """Add to a number that all share, under a lock, and to some that only this process has, until told to stop."""
    import select

    region = dsm.attach("work", shape=(64, 512), dtype="i8")
    lock = dsm.Lock("work")
    done = 0
    longest_s = 0.0
    say("ready")
    while not select.select([sys.stdin], [], [], 0)[0]:
        began_s = time.monotonic()
        with lock:
            region.array[0, 0] += 1
            region.array[1 + done % 8, rank] += 1
        region.array[10 + rank, done % 512] += 1
        done += 1
        longest_s = max(longest_s, time.monotonic() - began_s)
    return {"done": done, "longest_s": longest_s}


def totals() -> list[int]:
    array = dsm.attach("work").array
    return [int(array[0, 0]), *array[1:9, :4].sum(axis=0).tolist(), *array[10:14].sum(axis=1).tolist()]


def test_nothing_is_lost_while_the_directory_is_killed_again_and_again(lasting: Cluster) -> None:
    apps = [lasting.start(work, rank, node=rank % 2) for rank in range(4)]
    for app in apps:
        app.hear()
    for _ in range(ROUNDS):
        time.sleep(0.5)
        lasting.kill_directory()
        lasting.begin_again()
        until(lambda: not away(lasting), "the return of the nodes")
    for app in apps:
        app.tell()
    results = [app.result() for app in apps]
    done = [result["done"] for result in results]
    print("longest pauses:", [round(result["longest_s"], 3) for result in results], "rounds:", done)
    assert lasting.run(totals) == [sum(done), *done, *done]
    assert lasting.logs().count("event=returned") >= 2 * ROUNDS


def status(cluster: Cluster) -> Any:
    return asking.ask(cluster.directory.address, wire.Query(0, "status", 0, 0, 0), 10.0)


def away(cluster: Cluster) -> Any:
    return status(cluster)["away"]


def holds_and_waits(first: bool) -> Any:
    """The first holds what the second waits for."""
    lock, event, counter = dsm.Lock("held"), dsm.Event("set"), dsm.Counter("count")
    seats = dsm.Semaphore("seats", 2)
    if first:
        lock.acquire()
        seats.acquire()
        counter.add(5)
        say("has them")
        hear()
        event.set()
        lock.release()
        dsm.Barrier("both", 2).wait()
        return counter.add(0)
    say("waits")
    found = [lock.acquire(), event.wait()]
    lock.release()
    dsm.Barrier("both", 2).wait()
    return [*found, counter.add(0), seats.acquire(blocking=False), seats.acquire(blocking=False)]


def test_what_is_held_and_waited_for_stays_so(lasting: Cluster) -> None:
    holder = lasting.start(holds_and_waits, True, node=0)
    holder.hear()
    waiter = lasting.start(holds_and_waits, False, node=1)
    waiter.hear()
    until(lambda: any(one["calls"] for one in status(lasting)["primitives"]), "a call that waits")
    lasting.kill_directory()
    lasting.begin_again()
    until(lambda: not away(lasting), "the return of the nodes")
    assert any(one["calls"] for one in status(lasting)["primitives"])
    holder.tell()
    assert waiter.result() == [True, True, 5, True, False]
    assert holder.result() == 5


def store(value: int) -> None:
    dsm.attach("kept", shape=(4, 512), dtype="i8").array[:] = value


def load() -> list[int]:
    return dsm.attach("kept").array[:, 0].tolist()  # type: ignore[no-any-return]


def shape_and_lost(name: str) -> list[Any]:
    region = dsm.attach(name)
    return [list(region.array.shape), [list(run)[:2] for run in region.lost()]]


def test_names_and_sizes_outlive_everything(lasting: Cluster) -> None:
    lasting.run(store, 3)
    node, _ = lasting.nodes
    for one in lasting.nodes:
        one.stop()
    lasting.ended = {one.process.pid for one in lasting.nodes}
    lasting.directory.stop()
    lasting.begin_again()
    lasting.nodes.append(launch.start_node(lasting.directory.address, socket=lasting.path(2), name="late", stderr=None))
    # What only a node had that has left is lost, and is told to be.
    assert lasting.run(shape_and_lost, "kept", node=2) == [[4, 512], [[0, 4 * 4096]]]
    assert node.process.returncode == 0


def test_who_does_not_come_back_takes_its_pages_along(lasting: Cluster) -> None:
    lasting.run(store, 3, node=0)
    assert lasting.run(load, node=1) == [3, 3, 3, 3]
    lasting.run(store_first, 4, node=0)
    lasting.kill_directory()
    lasting.nodes[0].process.send_signal(signal.SIGKILL)
    lasting.nodes[0].process.wait()
    lasting.path(0).unlink()
    lasting.ended.add(lasting.nodes[0].process.pid)
    began_s = time.monotonic()
    lasting.begin_again()
    until(lambda: not away(lasting), "the end of its lease")
    assert time.monotonic() - began_s > LEASE_S - 1
    # The copies that the other has are found.
    assert lasting.run(shape_and_lost, "kept", node=1) == [[4, 512], [[0, 4096]]]


def store_first(value: int) -> None:
    dsm.attach("kept").array[0] = value


def test_two_directories_cannot_have_one_file(lasting: Cluster) -> None:
    with pytest.raises(errors.InvalidArgument, match="another directory uses it"):
        launch.start_directory(state=lasting.state)


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_text("This is no database, and never was one." * 100)
    with pytest.raises(errors.InvalidArgument, match="file is not a database"):
        launch.start_directory(state=path)
    assert path.read_text().startswith("This is no database")
