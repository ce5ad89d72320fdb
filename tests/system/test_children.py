"""Children of a process that is attached: forked, spawned and from a fork server. They share with all nodes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import traceback
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from application import hear, say
from cluster import Cluster, until

import dsm

METHODS = ["fork", "forkserver", "spawn"]


def in_child(work: Callable[[], object]) -> int:
    """Run it in a forked child; the child's pid. Exit code 0 if nothing was raised."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def ended_well(*pids: int) -> None:
    """Wait for children."""
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * len(pids)


def write_on_demand(name: str) -> None:
    """Another node's process: it writes a page when it is told its number, and reads it when told minus that."""
    array = dsm.attach(name, shape=(64, 512), dtype="i8").array
    while page := hear():
        if page > 0:
            array[page] = page
        say(array[abs(page)].tolist()[:2])


def fork_with_arrays() -> list[Any]:
    region = dsm.attach("inherited", shape=(64, 512), dtype="i8")
    array, row = region.array, region.ndarray(512, "i8", 5 * 4096)
    array[3] = 33
    say()
    hear()  # the other node has written page 1, which is not here yet, and page 2, which was

    def work() -> None:
        assert array[3, 0] == 33  # what the parent wrote
        assert array[1, 7] == 1 and array[2, 511] == 2  # what another node wrote
        assert not array[40:].any()  # never touched
        assert row[0] == 0
        row[:] = 55  # through another array, on an absent page
        array[3, 1] = 34  # on a page that is present, and the parent's
        array[1, 1] = 11  # on one that another node had
        region.buf[9 * 4096] = 9
        with dsm.attach("inherited") as again:
            again.array[10, 0] = 10

    ended_well(in_child(work))
    return [*array[3, :2].tolist(), *array[1, :2].tolist(), int(row[100]), *array[9:11, 0].tolist()]


def test_a_forked_child_shares_the_arrays_it_inherits(cluster: Cluster) -> None:
    other = cluster.start(write_on_demand, "inherited", node=1)
    child = cluster.start(fork_with_arrays, also=(in_child, ended_well))
    child.hear()
    for page in (1, 2):
        other.tell(page)
        assert other.hear() == [page, page]
    child.tell()
    assert child.result() == [33, 34, 1, 11, 55, 9, 10]
    found = []
    for page in (3, 1, 5, 9, 10):
        other.tell(-page)
        found.append(other.hear())
    assert found == [[33, 34], [1, 11], [55, 55], [9, 0], [10, 0]]
    other.tell(0)
    other.result()


def reader_and_writer(name: str, told: Any, answers: Any) -> None:
    """A child of multiprocessing that attaches by name."""
    with dsm.attach(name) as region:
        while (page := told.get()) is not None:
            answers.put(int(region.array[page, 1]))
            region.array[page, 2] = page


def use_children(method: str) -> list[list[int]]:
    context: Any = multiprocessing.get_context(method)
    told, answers = context.Queue(), context.Queue()
    region = dsm.attach("by name", shape=(16, 512), dtype="i8")
    children = [context.Process(target=reader_and_writer, args=("by name", told, answers)) for _ in range(2)]
    for child in children:
        child.start()
    found = []
    for page in range(16):
        region.array[page, 1] = page + 100
        told.put(page)
        found.append(answers.get())
    for _ in children:
        told.put(None)
    for child in children:
        child.join()
        assert child.exitcode == 0
    return [found, region.array[:, 2].tolist()]


@pytest.mark.parametrize("method", METHODS)
def test_children_of_multiprocessing_attach(cluster: Cluster, method: str) -> None:
    assert cluster.run(use_children, method, also=(reader_and_writer,)) == [list(range(100, 116)), list(range(16))]
    assert cluster.run(column, node=1) == list(range(16))


def column() -> Any:
    return dsm.attach("by name").array[:, 2].tolist()


def add_in_place(argument: tuple[Any, int]) -> int:
    """For a pool: the region comes pickled, or the array inherited."""
    region, row = argument
    region.array[row] += row
    return int(region.array[row].sum())


def use_a_pool(method: str) -> list[int]:
    with dsm.attach("pool", shape=(12, 700), dtype="i8") as region:
        region.array[:] = 1
        with multiprocessing.get_context(method).Pool(3) as pool:
            sums = pool.map(add_in_place, [(region, row) for row in range(12)])
            pool.close()
            pool.join()
        assert sums == region.array.sum(axis=1).tolist()
        return sums


@pytest.mark.parametrize("method", METHODS)
def test_a_pool_works_on_a_pickled_region(cluster: Cluster, method: str) -> None:
    expected = [700 * (row + 1) for row in range(12)]
    assert cluster.run(use_a_pool, method, also=(add_in_place,)) == expected


def count(counters: Any, lock: dsm.Lock, times: int) -> None:
    for _ in range(times):
        with lock:
            counters[0] += 1
            counters[600] += 1


def count_with_children(rank: int, ranks: int, method: str, children: int, times: int) -> list[int]:
    context: Any = multiprocessing.get_context(method)
    barrier, lock = dsm.Barrier("counted", ranks), dsm.Lock("counter")
    region = dsm.attach("counted", shape=(1024,), dtype="i8")
    barrier.wait()
    if method == "fork":
        workers = [context.Process(target=count, args=(region.array, lock, times)) for _ in range(children)]
    else:
        workers = [context.Process(target=count_attached, args=(region, lock, times)) for _ in range(children)]
    for worker in workers:
        worker.start()
    count(region.array, lock, times)
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    barrier.wait()
    return [int(region.array[0]), int(region.array[600])]


def count_attached(region: dsm.Region, lock: dsm.Lock, times: int) -> None:
    count(region.array, lock, times)


@pytest.mark.parametrize("method", METHODS)
def test_parents_and_children_of_two_nodes_count_without_a_loss(cluster: Cluster, method: str) -> None:
    found = cluster.everywhere(count_with_children, method, 2, 40, also=(count, count_attached))
    assert found == [[240, 240]] * 2


def fork_and_die() -> None:
    region = dsm.attach("orphan", shape=(4, 512), dtype="i8")
    lock = dsm.Lock("parent's")
    lock.acquire()
    region.array[0] = 1
    parent = os.getpid()

    def work() -> None:
        while os.getppid() == parent:
            pass
        assert region.array[0, 0] == 1
        region.array[1:3] = [[2], [3]]
        inherited = dsm.Lock("parent's")  # the parent's hold does not live on in the child
        try:
            inherited.acquire()
        except dsm.errors.OwnerDied:
            region.array[3] = 4
        inherited.release()

    in_child(work)
    region.array[2] = 0  # at the same time
    os.kill(os.getpid(), signal.SIGKILL)


def column_of_orphan() -> list[int]:
    with dsm.Lock("written"):
        return dsm.attach("orphan", shape=(4, 512), dtype="i8").array[:, 99].tolist()  # type: ignore[no-any-return]


def test_a_child_outlives_its_parent(cluster: Cluster) -> None:
    child = cluster.start(fork_and_die, also=(in_child,))
    assert child.wait() == -signal.SIGKILL
    assert child.stderr == ""
    assert cluster.run(column_of_orphan, node=1) == [1, 2, 3, 4]


def fork_while_holding_a_lock() -> list[bool]:
    lock = dsm.Lock("held")
    lock.acquire()

    def work() -> None:
        assert lock.locked()
        assert not lock.acquire(blocking=False)
        try:
            lock.release()
        except dsm.errors.LockNotHeld:
            return
        raise AssertionError("a child has released its parent's lock")

    ended_well(in_child(work))
    held = lock.locked()
    lock.release()
    return [held, lock.locked()]


def test_a_lock_stays_with_the_parent(cluster: Cluster) -> None:
    assert cluster.run(fork_while_holding_a_lock, also=(in_child, ended_well)) == [True, False]


def fork_in_generations(depth: int) -> list[int]:
    region = dsm.attach("generations", shape=(16, 512), dtype="i8")
    array = region.array

    def generation(number: int) -> None:
        array[number] = number + 1
        if number < depth:
            ended_well(in_child(lambda: generation(number + 1)))
            assert array[depth, 3] == depth + 1

    generation(0)
    region.close()
    return array[: depth + 2, 5].tolist()  # type: ignore[no-any-return]


def test_children_of_children(cluster: Cluster) -> None:
    assert cluster.run(fork_in_generations, 4, also=(in_child, ended_well)) == [1, 2, 3, 4, 5, 0]


def fork_without_the_region() -> list[int]:
    """Regions that are closed in the parent, in the child, or kept only by an array."""
    gone, kept = dsm.attach("gone", 8192), dsm.attach("kept", 8192)
    gone.buf[0] = kept.buf[0] = 1
    view = kept.buf[4096:]
    gone.close()
    kept.close()

    def work() -> None:
        view[0] = 7
        with dsm.attach("gone") as again:
            again.buf[4096] = 8

    ended_well(in_child(work))
    return [view[0], dsm.attach("gone").buf[4096]]


def test_regions_that_were_closed_before_the_fork(cluster: Cluster) -> None:
    assert cluster.run(fork_without_the_region, also=(in_child, ended_well)) == [7, 8]


def fork_while_threads_fault(forks: int) -> int:
    """The other threads are in page faults, prefetches and attachments when the process forks."""
    region = dsm.attach("busy", shape=(300, 512), dtype="i8")
    over = threading.Event()

    def fault() -> None:
        while not over.is_set():
            zlib.crc32(region.buf)

    def prefetch() -> None:
        while not over.is_set():
            region.prefetch()

    def attach() -> None:
        while not over.is_set():
            with dsm.attach("brief", 4096) as brief:
                brief.buf[0] = 1

    threads = [threading.Thread(target=work) for work in (fault, prefetch, attach)]
    for thread in threads:
        thread.start()
    for number in range(forks):

        def work(number: int = number) -> None:
            region.array[number] = number + 1
            region.prefetch(write=True)
            assert (region.array[: number + 1, 0] == np.arange(1, number + 2)).all()

        ended_well(in_child(work))
    over.set()
    for thread in threads:
        thread.join()
    return int(region.array[:, 0].sum())


def disturb() -> None:
    """Write all over the region, so that its pages come and go."""
    array = dsm.attach("busy", shape=(300, 512), dtype="i8").array
    say()
    while True:
        array[:, 1] += 1


def test_forks_while_threads_fault(cluster: Cluster) -> None:
    other = cluster.start(disturb, node=1)
    other.hear()
    assert cluster.run(fork_while_threads_fault, 12, also=(in_child, ended_well)) == 78
    other.kill()
    assert other.wait() == -signal.SIGKILL


def run_a_program() -> list[str]:
    """What was forked to run another program holds nothing open."""
    region = dsm.attach("program", 4096)
    region.buf[0] = 1
    with dsm.Lock("program"):
        shown = subprocess.run(["ls", "-l", "/proc/self/fd"], capture_output=True, text=True, check=True).stdout
    return [line for line in shown.splitlines() if "socket:" in line or "memfd" in line or "userfaultfd" in line]


def test_a_program_inherits_nothing(cluster: Cluster) -> None:
    assert cluster.run(run_a_program) == []


def child_stays() -> None:
    region = dsm.attach("stays", 4096)
    region.buf[0] = 1

    def work() -> None:
        region.close()
        say()
        hear()

    in_child(work)
    hear()
    os._exit(0)


def test_a_child_that_has_closed_its_region_does_not_hold_its_parents(cluster: Cluster) -> None:
    child = cluster.start(child_stays, also=(in_child,))
    child.hear()
    until(lambda: cluster.descriptors(0, "[userfaultfd]") == 1, "the detach of the child, while the parent lives")
    child.kill()
    until(lambda: cluster.all_gone(0), "the detach of the parent, while the child lives")
    child.tell()
    assert child.wait() == -signal.SIGKILL
