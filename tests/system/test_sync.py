"""Locks and barriers between processes of several nodes: they wait, give up, break and are inherited as told."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
from typing import Any

import pytest
from application import hear, raised, say
from cluster import Cluster

import dsm


def hold(name: str) -> None:
    with dsm.Lock(name):
        say()
        hear()


def try_in_every_way(name: str) -> list[bool]:
    lock = dsm.Lock(name)
    return [
        lock.acquire(blocking=False),
        lock.acquire(timeout=0),
        lock.acquire(timeout=0.05),
        lock.acquire(True, 0.05),
        lock.locked(),
    ]


@pytest.mark.parametrize("node", [0, 1])
def test_a_lock_that_is_held(cluster: Cluster, node: int) -> None:
    holder = cluster.start(hold, "lock")
    holder.hear()
    assert cluster.run(try_in_every_way, "lock", node=node) == [False, False, False, False, True]
    assert cluster.run(try_in_every_way, "another", node=node) == [True, False, False, False, True]
    holder.tell()
    holder.result()
    assert cluster.run(try_in_every_way, "lock", node=node)[0] is True


def acquire_when_told(name: str) -> bool:
    lock = dsm.Lock(name)
    say()
    try:
        lock.acquire()
    except dsm.errors.OwnerDied:
        say("OwnerDied")
    else:
        say("acquired")
    lock.release()
    return lock.locked()


@pytest.mark.parametrize("node", [0, 1])
def test_kill_9_of_the_holder_passes_the_lock_on(cluster: Cluster, node: int) -> None:
    holder = cluster.start(hold, "lock")
    holder.hear()
    waiting = [cluster.start(acquire_when_told, "lock", node=node) for _ in range(2)]
    for child in waiting:
        child.hear()
    holder.kill()
    assert holder.wait() == -signal.SIGKILL
    assert sorted(child.hear() for child in waiting) == ["OwnerDied", "acquired"]
    for child in waiting:
        assert child.result() in (True, False)
    assert cluster.run(try_in_every_way, "lock", node=node)[0] is True


def test_kill_9_of_one_that_waits_does_not_take_the_lock_with_it(cluster: Cluster) -> None:
    holder = cluster.start(hold, "lock")
    holder.hear()
    waiting = cluster.start(acquire_when_told, "lock", node=1)
    waiting.hear()
    waiting.kill()
    assert waiting.wait() == -signal.SIGKILL
    holder.tell()
    holder.result()
    assert cluster.run(try_in_every_way, "lock")[0] is True


def misuse_locks() -> list[Any]:
    lock, same = dsm.Lock("mine"), dsm.Lock("mine")
    found: list[Any] = []
    for action in (lock.release, lambda: lock.acquire(blocking=False, timeout=1), lambda: lock.acquire(timeout=-3)):
        try:
            action()
        except dsm.errors.DsmError as error:
            found.append(type(error).__name__)
    assert lock.acquire()
    found.append(same.acquire(timeout=0.01))
    try:
        same.release()
    except dsm.errors.LockNotHeld as error:
        assert "mine" in str(error)
        found.append("not held")
    copy = pickle.loads(pickle.dumps(lock))
    found += [copy.acquire(blocking=False), copy.locked()]
    lock.release()
    found.append(copy.acquire(timeout=5))
    with dsm.Lock("thine"), dsm.Lock("hers"):
        found.append(copy.locked())
    return found


def test_locks_that_are_used_wrongly(cluster: Cluster) -> None:
    assert cluster.run(misuse_locks) == [
        "LockNotHeld", "InvalidArgument", "InvalidArgument", False, "not held", False, True, True, True,
    ]  # fmt: skip


def count_in_threads(rank: int, ranks: int, threads: int, times: int) -> int:
    """Objects of their own and one that they share, short time-outs that run out in the middle of being granted."""
    shared = dsm.Lock("threads")
    region = dsm.attach("threads", shape=(1,), dtype="i8")

    def work(lock: dsm.Lock) -> None:
        for number in range(times):
            while not lock.acquire(timeout=0.0005 * (number % 4)):
                pass
            region.array[0] += 1
            lock.release()

    locks = [shared, dsm.Lock("threads"), shared, dsm.Lock("threads")]
    workers = [threading.Thread(target=work, args=(locks[number],)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    dsm.Barrier("counted", ranks).wait()
    return int(region.array[0])


def test_time_outs_that_cross_grants_lose_no_lock(cluster: Cluster) -> None:
    assert cluster.everywhere(count_in_threads, 4, 25) == [200, 200]


def meet(rank: int, ranks: int, rounds: int) -> list[int]:
    barrier = dsm.Barrier("meet", ranks)
    assert barrier.parties == ranks
    return [barrier.wait() for _ in range(rounds)]


def test_a_barrier_lets_all_go_at_once_round_after_round(cluster3: Cluster) -> None:
    arrivals = cluster3.everywhere(meet, 20, each=2)
    assert [sorted(turn) for turn in zip(*arrivals, strict=True)] == [list(range(6))] * 20
    assert cluster3.run(how_it_stands, "meet", 6) == [0, False]


def wait_at(name: str, parties: int, timeout: float | None) -> str:
    barrier = dsm.Barrier(name, parties)
    say()
    try:
        return str(barrier.wait(timeout))
    except threading.BrokenBarrierError as error:
        return type(error).__name__


def how_it_stands(name: str, parties: int) -> list[Any]:
    barrier = dsm.Barrier(name, parties)
    return [barrier.n_waiting, barrier.broken]


def until_waiting(name: str, parties: int, waiting: int) -> None:
    barrier = dsm.Barrier(name, parties)
    while barrier.n_waiting != waiting:
        time.sleep(0.002)


def act(what: str, name: str, parties: int) -> None:
    getattr(dsm.Barrier(name, parties), what)()


def test_a_time_out_breaks_the_barrier_for_all(cluster: Cluster) -> None:
    patient = [cluster.start(wait_at, "b", 4, None, node=node) for node in range(2)]
    cluster.run(until_waiting, "b", 4, 2)
    assert cluster.run(wait_at, "b", 4, 0.05) == "BrokenBarrier"
    assert [child.result() for child in patient] == ["BrokenBarrier"] * 2
    assert cluster.run(how_it_stands, "b", 4, node=1) == [0, True]
    assert cluster.run(wait_at, "b", 4, None, node=1) == "BrokenBarrier"
    cluster.run(act, "reset", "b", 4)
    assert cluster.run(how_it_stands, "b", 4, node=1) == [0, False]
    again = [cluster.start(wait_at, "b", 4, 50, node=number % 2) for number in range(4)]
    assert sorted(child.result() for child in again) == ["0", "1", "2", "3"]


@pytest.mark.parametrize(("what", "broken"), [("reset", False), ("abort", True)])
def test_reset_and_abort_wake_those_who_wait(cluster: Cluster, what: str, broken: bool) -> None:
    waiting = cluster.start(wait_at, "b", 2, None)
    cluster.run(until_waiting, "b", 2, 1, node=1)
    cluster.run(act, what, "b", 2, node=1)
    assert waiting.result() == "BrokenBarrier"
    assert cluster.run(how_it_stands, "b", 2) == [0, broken]


def test_kill_9_of_one_that_waits_breaks_the_barrier(cluster: Cluster) -> None:
    victim, other = cluster.start(wait_at, "b", 3, None), cluster.start(wait_at, "b", 3, None, node=1)
    cluster.run(until_waiting, "b", 3, 2)
    victim.kill()
    assert victim.wait() == -signal.SIGKILL
    assert other.result() == "PartyDied"


def disagree() -> list[str]:
    found = []
    for parties in (3, 0, -1, 1 << 40):
        try:
            dsm.Barrier("b", parties).wait(5)
        except dsm.errors.DsmError as error:
            assert isinstance(error, ValueError)
            found.append(type(error).__name__)
    return found


def test_a_barrier_with_another_number_of_parties(cluster: Cluster) -> None:
    waiting = cluster.start(wait_at, "b", 2, None)
    cluster.run(until_waiting, "b", 2, 1)
    assert cluster.run(disagree, node=1) == ["BarrierMismatch", *["InvalidArgument"] * 3]
    assert cluster.run(wait_at, "b", 2, None, node=1) == "1"
    assert waiting.result() == "0"


def interrupted(what: str) -> list[Any]:
    """Ctrl-C while waiting: what was waited for is given up, and what comes next works."""
    lock = dsm.Lock("interrupted")
    try:
        say()
        if what == "lock":
            lock.acquire()
        else:
            dsm.Barrier("interrupted too", 2).wait()
    except KeyboardInterrupt:
        say("interrupted")
    hear()  # the lock has been released meanwhile
    return [lock.acquire(timeout=50), dsm.Barrier("interrupted too", 2).broken]


@pytest.mark.parametrize("what", ["lock", "barrier"])
def test_ctrl_c_ends_the_wait(cluster: Cluster, what: str) -> None:
    holder = cluster.start(hold, "interrupted")
    holder.hear()
    child = cluster.start(interrupted, what, node=1)
    child.hear()
    if what == "barrier":
        cluster.run(until_waiting, "interrupted too", 2, 1)
    child.kill(signal.SIGINT)
    assert child.hear() == "interrupted"
    holder.tell()
    holder.result()
    child.tell()
    assert child.result() == [True, what == "barrier"]


def acquire_without_waiting() -> list[Any]:
    say()
    hear()
    return raised(lambda: dsm.Lock("silence").acquire(blocking=False))


def acquire_and_release() -> bool:
    lock = dsm.Lock("silence")
    taken = lock.acquire(timeout=20)
    lock.release()
    return taken


def test_a_lock_of_a_directory_that_is_silent_is_an_error_and_is_not_kept(cluster: Cluster) -> None:
    impatient = cluster.start(acquire_without_waiting)
    impatient.hear()
    pid = cluster.directory.process.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        impatient.tell()
        classes, text = impatient.result()
        assert classes[0] == "DirectoryUnreachable" and cluster.directory.address in text
    finally:
        os.kill(pid, signal.SIGCONT)
    assert cluster.run(acquire_and_release, node=1)  # what was granted too late was given back
