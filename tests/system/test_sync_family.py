"""The other primitives between processes of several nodes, and what is told to those who wait in vain."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest
from application import hear, raised, say
from cluster import Cluster, until
from test_broken_connections import break_some

import dsm

# --- locks ----------------------------------------------------------------------------------------------------------


def queue_at(cluster: Cluster, name: str) -> int:
    rows = cluster.status()["cluster"]["primitives"]
    return next((row["calls"] for row in rows if row["name"] == name), 0)


def hold_until_told(name: str) -> None:
    with dsm.Lock(name):
        say()
        hear()


def test_a_lock_goes_to_nodes_in_the_order_in_which_they_came(cluster3: Cluster) -> None:
    holder = cluster3.start(hold_until_told, "l")
    holder.hear()
    waiting = []
    for number in range(6):
        waiting.append(cluster3.start(note_the_turn, "l", number, node=number % 3))
        until(lambda number=number: queue_at(cluster3, "l") == number + 1, "another one in the queue")  # type: ignore[misc]
    holder.tell()
    holder.result()
    assert [child.result() for child in waiting] == list(range(1, 7))


def note_the_turn(name: str, number: int) -> int:
    with dsm.Lock(name):
        return dsm.Counter("turns").add(1)


def in_again() -> list[Any]:
    import threading

    lock, same = dsm.RLock("r"), dsm.RLock("r")
    found: list[Any] = [lock.acquire(), same.acquire(), lock.locked()]
    other = []
    thread = threading.Thread(target=lambda: other.extend([same.acquire(timeout=0.01), raised(same.release)[0][0]]))
    thread.start()
    thread.join()
    same.release()
    found += [*other, lock.locked()]
    say()
    hear()
    lock.release()
    return found


def test_a_reentrant_lock_belongs_to_a_thread(cluster: Cluster) -> None:
    child = cluster.start(in_again)
    child.hear()
    assert cluster.run(try_reentrant, node=1) is False
    child.tell()
    assert child.result() == [True, True, True, False, "LockNotHeld", True]
    assert cluster.run(try_reentrant, node=1) is True


def try_reentrant() -> bool:
    return dsm.RLock("r").acquire(blocking=False)


def end_with_it(name: str) -> None:
    dsm.Lock(name).acquire()
    os.kill(os.getpid(), signal.SIGKILL)


def inherit(name: str) -> list[Any]:
    """A block is not entered, and the mark stays, until somebody takes the lock by itself and releases it."""
    lock = dsm.Lock(name)
    entered = []

    def block() -> None:
        with lock:
            entered.append(1)

    found: list[Any] = [raised(block)[0][0], raised(block)[0][0], lock.locked(), raised(lock.acquire)[0][0]]
    found.append(lock.locked())
    lock.release()
    block()
    return [*found, len(entered)]


@pytest.mark.parametrize("node", [0, 1])
def test_the_next_owner_learns_that_the_last_one_died(cluster: Cluster, node: int) -> None:
    assert cluster.start(end_with_it, "l").wait() == -signal.SIGKILL
    assert cluster.run(inherit, "l", node=node) == ["OwnerDied", "OwnerDied", False, "OwnerDied", True, 1]


def test_the_next_owner_learns_that_the_node_of_the_last_one_died(cluster3: Cluster) -> None:
    holder = cluster3.start(hold_until_told, "l", node=2)
    holder.hear()
    waiting = cluster3.start(inherit, "l")
    until(lambda: queue_at(cluster3, "l") == 1, "the other to wait")
    victim = cluster3.nodes[2].process
    cluster3.ended.add(victim.pid)
    victim.kill()
    cluster3.path(2).unlink()
    assert waiting.result() == ["OwnerDied", "OwnerDied", False, "OwnerDied", True, 1]
    holder.tell()
    holder.wait()


# --- waiting in a circle --------------------------------------------------------------------------------------------


def cross(first: str, second: str) -> list[Any]:
    one, other = dsm.Lock(first), dsm.Lock(second)
    with one:
        say(os.getpid())
        hear()
        return raised(other.__enter__)


def test_two_nodes_that_wait_for_each_other(cluster: Cluster) -> None:
    older = cluster.start(cross, "a", "b", env={"DSM_RANK": "0", "DSM_WORLD_SIZE": "2"})
    younger = cluster.start(cross, "b", "a", node=1, env={"DSM_RANK": "1", "DSM_WORLD_SIZE": "2"})
    pids = [older.hear(), younger.hear()]
    older.tell()
    until(lambda: queue_at(cluster, "b") == 1, "the older one to wait")
    younger.tell()
    classes, text = younger.result()
    assert classes[0] == "DeadlockError" and "RuntimeError" in classes
    for what in ("lock 'a'", "lock 'b'", "rank 0", "rank 1", os.uname().nodename, *map(str, pids)):
        assert what in text, text
    assert older.result() == [[], ""]


def meet_or_learn(name: str, parties: int) -> list[Any]:
    barrier = dsm.Barrier(name, parties)
    barrier.wait()
    say()
    hear()
    return raised(barrier.wait)


def test_a_party_that_ends_is_not_waited_for(cluster3: Cluster) -> None:
    children = [cluster3.start(meet_or_learn, "b", 3, node=node) for node in range(3)]
    for child in children:
        child.hear()
    children[0].tell()
    until(lambda: queue_at(cluster3, "b") == 1, "the first to wait")
    children[1].kill()
    assert children[1].wait() == -signal.SIGKILL
    classes, text = children[0].result()
    assert classes[:2] == ["PartyDied", "BrokenBarrier"] and "BrokenBarrierError" in classes
    assert "process" in text
    children[2].tell()
    assert children[2].result()[0][0] == "BrokenBarrier"


# --- counting -------------------------------------------------------------------------------------------------------


def enter(rank: int, ranks: int, places: int, times: int) -> int:
    """How many were in at once, at most."""
    semaphore, inside = dsm.Semaphore("s", places), dsm.Counter("inside")
    most = 0
    for _ in range(times):
        with semaphore:
            most = max(most, inside.add(1))
            inside.add(-1)
    return most


def test_a_semaphore_lets_no_more_in_than_it_has(cluster3: Cluster) -> None:
    most = cluster3.everywhere(enter, 2, 30, each=2)
    assert max(most) == 2 and cluster3.run(value_of, "s", 2) == 2


def value_of(name: str, value: int) -> int:
    return dsm.Semaphore(name, value).get_value()


def count(rank: int, ranks: int, times: int) -> list[int]:
    counter = dsm.Counter("n")
    say()
    return [counter.add(1) for _ in range(times)]


def test_a_counter_gives_each_value_once_although_connections_break(cluster3: Cluster) -> None:
    children = [cluster3.start(count, rank, 3, 1500, node=rank) for rank in range(3)]
    for child in children:
        child.hear()
    broken = 0
    while any(child.process.poll() is None for child in children):
        broken += break_some(cluster3, lambda: set(range(100)))
        time.sleep(0.05)
    values = [child.result() for child in children]
    assert broken > 3
    assert sorted(value for some in values for value in some) == list(range(1, 4501))
    assert all(some == sorted(some) for some in values)


def disagree() -> list[Any]:
    bounded = dsm.BoundedSemaphore("bounded", 1)
    dsm.Semaphore("s", 3).acquire()
    dsm.Counter("n", 5).add(2)
    removed = dsm.Counter("removed")
    removed.unlink()
    wrong = [
        lambda: dsm.Semaphore("s", 4),
        lambda: dsm.BoundedSemaphore("s", 3),
        lambda: dsm.Lock("s").acquire(),
        lambda: dsm.Event("n").set(),
        lambda: dsm.Counter("n", 6),
        lambda: dsm.Counter("n", 5).add(1 << 63),
        lambda: dsm.Counter("n", 5).add((1 << 63) - 1),
        lambda: dsm.Semaphore("s", 3).release(0),
        bounded.release,
        removed.add,
        removed.unlink,
    ]  # fmt: skip
    return [raised(action)[0][:1] for action in wrong]


def test_what_does_not_fit_is_an_error_and_changes_nothing(cluster: Cluster) -> None:
    assert cluster.run(disagree) == [
        ["ValueMismatch"], ["KindMismatch"], ["KindMismatch"], ["KindMismatch"], ["ValueMismatch"], ["InvalidArgument"],
        ["InvalidArgument"], ["InvalidArgument"], ["SemaphoreOverflow"], ["PrimitiveNotFound"],
        ["PrimitiveNotFound"],
    ]  # fmt: skip
    assert cluster.run(how_they_are, node=1) == [2, 7, 1, False]


def how_they_are() -> list[Any]:
    event = dsm.Event("e")
    return [
        dsm.Semaphore("s", 3).get_value(),
        dsm.Counter("n", 5).value,
        dsm.BoundedSemaphore("bounded", 1).get_value(),
        event.is_set(),
    ]


# --- signals --------------------------------------------------------------------------------------------------------


def wait_for_it(name: str) -> bool:
    say()
    return dsm.Event(name).wait()


def set_it(name: str) -> None:
    dsm.Event(name).set()


def test_an_event_wakes_everybody_on_all_nodes(cluster3: Cluster) -> None:
    waiting = [cluster3.start(wait_for_it, "e", node=number % 3) for number in range(6)]
    until(lambda: queue_at(cluster3, "e") == 6, "all to wait")
    cluster3.run(set_it, "e", node=2)
    assert [child.result() for child in waiting] == [True] * 6
    assert cluster3.run(wait_for_it, "e", node=1) is True


def produce_or_consume(rank: int, ranks: int, items: int) -> list[int]:
    """A bounded queue in shared memory, as the textbooks have it: head, tail and eight places."""
    ring = dsm.attach("ring", shape=(10,), dtype="i8").array
    condition = dsm.Condition("ring")
    seen = []
    for item in range(items):
        with condition:
            if rank % 2:
                condition.wait_for(lambda: ring[1] > ring[0])
                seen.append(int(ring[2 + ring[0] % 8]))
                ring[0] += 1
            else:
                condition.wait_for(lambda: ring[1] - ring[0] < 8)
                ring[2 + ring[1] % 8] = rank * items + item
                ring[1] += 1
            condition.notify_all()
    return seen


def test_producers_and_consumers_around_a_condition(cluster: Cluster) -> None:
    seen = cluster.everywhere(produce_or_consume, 40, each=2)
    assert sorted(seen[1] + seen[3]) == [*range(40), *range(80, 120)]


def wait_without_the_lock() -> list[Any]:
    condition = dsm.Condition("c", dsm.Lock("of c"))
    found = [raised(condition.wait)[0][0], raised(condition.notify)[0][0]]
    with condition:
        found.append(condition.wait(0.01))
        found.append(condition.wait_for(lambda: 0, 0.01))
    return found


def test_a_condition_needs_its_lock(cluster: Cluster) -> None:
    assert cluster.run(wait_without_the_lock) == ["LockNotHeld", "LockNotHeld", False, 0]
