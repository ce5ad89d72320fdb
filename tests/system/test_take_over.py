"""An agent that is killed: another takes its place, and no application notices more than a pause."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
from application import hear, say
from cluster import Cluster, until

import dsm
from dsm import wire
from dsm.constants import LEASE_S

ROUNDS = 6
PAUSE_S = 0.4
"""Between two kills: enough for pages to have moved on."""


def work(rank: int) -> dict[str, Any]:
    """Add to a number that all share, under a lock, and to some that only this process has, until told to stop."""
    import select

    region = dsm.attach("work", shape=(64, 512), dtype="i8")
    lock, counter, seats = dsm.Lock("work"), dsm.Counter("done"), dsm.Semaphore("seats", 3)
    done = 0
    longest_s = 0.0
    say("ready")
    while not select.select([sys.stdin], [], [], 0)[0]:
        began_s = time.monotonic()
        with lock:
            region.array[0, 0] += 1
            region.array[1 + done % 8, rank] += 1
        region.array[10 + rank, done % 512] += 1
        counter.add(1)
        with seats:
            region.array[20 + done % 8, 8 * rank] += 1
        done += 1
        longest_s = max(longest_s, time.monotonic() - began_s)
    return {"done": done, "longest_s": longest_s}


def totals() -> list[int]:
    array = dsm.attach("work").array
    shared = [int(array[0, 0]), dsm.Counter("done").add(0), *array[1:9, :4].sum(axis=0).tolist()]
    return [*shared, *array[10:14].sum(axis=1).tolist(), *array[20:28, :32:8].sum(axis=0).tolist()]


def replace(cluster: Cluster, node: int, how: str) -> None:
    """Kill the agent of a node, or let it be replaced; until all go on."""
    before = cluster.agent(node)
    if how == "kill":
        os.kill(before, signal.SIGKILL)
    else:
        upgrade = [sys.executable, "-m", "dsm", "node", "--upgrade", "--socket", str(cluster.path(node))]
        subprocess.run(upgrade, check=True, timeout=30, capture_output=True)
    goes_on(cluster, node, before)


def goes_on(cluster: Cluster, node: int, before: int) -> None:
    def is_there() -> bool:
        answer = cluster.ask(wire.Query(0, "here", 0, 0, 0), node)
        return isinstance(answer, wire.Answer) and answer.value["pid"] != before

    until(is_there, "another agent")


@pytest.mark.parametrize("how", ["kill", "upgrade"])
def test_nothing_is_lost_while_agents_are_replaced_again_and_again(cluster: Cluster, how: str) -> None:
    apps = [cluster.start(work, rank, node=rank % 2) for rank in range(4)]
    for app in apps:
        app.hear()
    for number in range(ROUNDS):
        time.sleep(PAUSE_S)
        replace(cluster, number % 2, how)
    for app in apps:
        app.tell()
    results = [app.result() for app in apps]
    done = [result["done"] for result in results]
    print("longest pauses:", [round(result["longest_s"], 3) for result in results], "rounds:", done)
    assert cluster.run(totals) == [sum(done), sum(done), *done, *done, *done]


def test_an_agent_that_is_stopped_is_replaced_before_its_lease_is_over(cluster: Cluster) -> None:
    """It would not hide its pages from those who could still read them when others write."""
    apps = [cluster.start(work, rank, node=rank % 2) for rank in range(4)]
    for app in apps:
        app.hear()
    before = cluster.agent(0)
    os.kill(before, signal.SIGSTOP)
    goes_on(cluster, 0, before)
    time.sleep(PAUSE_S)
    for app in apps:
        app.tell()
    done = [app.result()["done"] for app in apps]
    assert cluster.run(totals) == [sum(done), sum(done), *done, *done, *done]
    assert "event=hung" in cluster.logs()


def test_an_agent_that_is_stopped_while_its_lease_is_over_takes_its_applications_along(cluster: Cluster) -> None:
    cluster.add_node("standalone", with_parent=False)
    app = cluster.start(work, 0, node=2)
    app.hear()
    os.kill(cluster.directory.process.pid, signal.SIGSTOP)
    try:
        until(lambda: cluster.logs().count("event=suspended") == 3, "the nodes to hide their pages")
        os.kill(cluster.agent(2), signal.SIGSTOP)
        assert app.wait() == -signal.SIGKILL
    finally:
        os.kill(cluster.directory.process.pid, signal.SIGCONT)
    until(lambda: "event=rejoined" in cluster.logs(), "another membership")


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


@pytest.mark.parametrize("nodes", [(0, 0), (0, 1)], ids=["on one node", "on two"])
def test_what_is_held_and_waited_for_stays_so(cluster: Cluster, nodes: tuple[int, int]) -> None:
    holder = cluster.start(holds_and_waits, True, node=nodes[0])
    holder.hear()
    waiter = cluster.start(holds_and_waits, False, node=nodes[1])
    waiter.hear()
    until(lambda: any(one["calls"] for one in cluster.status()["cluster"]["primitives"]), "a call that waits")
    for node in sorted(set(nodes)):
        replace(cluster, node, "kill")
    assert any(one["calls"] for one in cluster.status()["cluster"]["primitives"])
    holder.tell()
    assert waiter.result() == [True, True, 5, True, False]
    assert holder.result() == 5


def die_with_it() -> None:
    dsm.Lock("of the dead").acquire()
    say("has it")
    hear()


def inherit() -> bool:
    try:
        dsm.Lock("of the dead").acquire()
    except dsm.errors.OwnerDied:
        return True
    return False


def test_who_dies_while_there_is_no_agent_is_told_of(cluster: Cluster) -> None:
    app = cluster.start(die_with_it, node=0)
    app.hear()
    with cluster.stopped(0):  # nobody hears of its end but the next agent
        before = cluster.agent(0)
        app.kill()
        os.kill(before, signal.SIGKILL)
    goes_on(cluster, 0, before)
    assert cluster.run(inherit, node=1) is True


def read_all(value: int) -> bool:
    """Fetch very much, which takes longer than an agent lives."""
    region = dsm.attach("much", shape=(32, 1 << 20), dtype="u1", page_size=65536)
    if value:
        region.array[:] = value
        return True
    say("begins")
    region.prefetch()
    return bool((region.array == 7).all())


def test_a_prefetch_goes_on(cluster: Cluster) -> None:
    assert cluster.run(read_all, 7, node=0)
    reader = cluster.start(read_all, 0, node=1)
    reader.hear()
    for number in range(4):
        replace(cluster, number % 2, "kill")
    assert reader.result() is True


def connect_often() -> int:
    """Each round makes connections of its own."""
    import select

    say("ready")
    done = 0
    while not select.select([sys.stdin], [], [], 0)[0]:
        with dsm.attach(f"short {done % 3}", shape=(512,), dtype="i8") as region:
            region.array[0] += 1
        done += 1
    return done


def test_attaching_goes_on(cluster: Cluster) -> None:
    apps = [cluster.start(connect_often, node=node) for node in (0, 1)]
    for app in apps:
        app.hear()
    for number in range(ROUNDS):
        time.sleep(PAUSE_S / 4)
        replace(cluster, number % 2, "kill")
    for app in apps:
        app.tell()
    assert all(app.result() > 10 for app in apps)


def test_an_agent_that_is_killed_while_its_lease_is_over_is_not_replaced(cluster: Cluster) -> None:
    cluster.add_node("standalone", with_parent=False)
    app = cluster.start(die_with_it, node=2)
    app.hear()
    before, member = cluster.agent(2), cluster.status(2)["node"]["id"]
    with cluster.stopped(2):
        time.sleep(LEASE_S + 1)
        os.kill(before, signal.SIGKILL)
    goes_on(cluster, 2, before)
    assert "event=taken_over" not in cluster.logs()
    assert cluster.status(2)["node"]["id"] > member
    app.kill()
    app.wait()


def test_an_agent_that_is_killed_while_it_waits_for_a_directory_is_replaced(cluster: Cluster) -> None:
    cluster.add_node("standalone", with_parent=False)
    with cluster.stopped(2):
        time.sleep(LEASE_S + 1)
    until(lambda: "event=rejoined" in cluster.logs(), "another membership")
    for _ in range(2):  # the second perhaps before it is a member again
        before = cluster.agent(2)
        os.kill(before, signal.SIGKILL)
        time.sleep(PAUSE_S)
    goes_on(cluster, 2, before)


def test_upgrade_says_what_it_did(cluster: Cluster) -> None:
    command = [sys.executable, "-m", "dsm", "node", "--upgrade", "--socket", str(cluster.path(0))]
    result = subprocess.run(command, check=True, timeout=30, capture_output=True, text=True)
    assert result.stdout == f"node 'node0' goes on as process {cluster.agent(0)}\n"
    (cluster.home / "nothing.sock").unlink(missing_ok=True)
    command[-1] = str(cluster.home / "nothing.sock")
    result = subprocess.run(command, timeout=30, capture_output=True, text=True)
    assert result.returncode == 1 and "no node agent answers" in result.stderr
