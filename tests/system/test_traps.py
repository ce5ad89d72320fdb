"""What ordinary programs do that once gave wrong values or stopped a node."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

from cluster import Cluster

import dsm


def fill(count: int) -> int:
    for number in range(count):
        with dsm.attach(f"old {number}", 256 << 10) as region:
            region.array[:] = 0x11
    return count


def attach_fresh_ones_beside(count: int) -> int:
    """Threads read and close regions, with pages on their way, while fresh ones come to lie where those were."""
    left, fresh, wrong = iter(range(count)), [], 0
    turn = threading.Lock()

    def read_and_close() -> None:
        while True:
            with turn:
                number = next(left, None)
            if number is None:
                return
            with dsm.attach(f"old {number}") as region:
                assert [int(region.array[page * 4096]) for page in range(4)] == [0x11] * 4

    threads = [threading.Thread(target=read_and_close) for _ in range(3)]
    for thread in threads:
        thread.start()
    number = 0
    while any(thread.is_alive() for thread in threads):
        number += 1
        fresh.append(dsm.attach(f"fresh {os.getpid()} {number}", 256 << 10))
        if len(fresh) > 6:
            oldest = fresh.pop(0)
            wrong += bool(oldest.array.any())
            oldest.unlink()
            oldest.close()
    return wrong


def test_pages_on_their_way_never_reach_what_lies_at_their_address_now(cluster: Cluster) -> None:
    cluster.run(fill, 150, node=1)
    assert cluster.run(attach_fresh_ones_beside, 150, node=0) == 0


def attach_with_all_memory_locked() -> str:
    import ctypes

    assert ctypes.CDLL(None).mlockall(2) == 0  # MCL_FUTURE
    try:
        dsm.attach("old 0")
    except dsm.errors.UserfaultfdUnavailable as error:
        return str(error)
    return "attached"


def test_memory_that_is_filled_when_it_is_mapped_is_refused(cluster: Cluster) -> None:
    cluster.run(fill, 1, node=1)
    assert "attach first" in cluster.run(attach_with_all_memory_locked, node=0)
    assert cluster.run(read_one, node=0) == 0x11


def read_one() -> int:
    return int(dsm.attach("old 0").array[-1])


def make_the_userfaultfd_blocking() -> None:
    region = dsm.attach("old 0")
    for link in Path("/proc/self/fd").iterdir():
        if link.is_symlink() and os.readlink(link) == "anon_inode:[userfaultfd]":
            os.set_blocking(int(link.name), True)
    region.buf[0]


def test_a_userfaultfd_made_blocking_does_not_stop_the_node(cluster: Cluster) -> None:
    cluster.run(fill, 1, node=1)
    assert cluster.start(make_the_userfaultfd_blocking, node=0).wait() == -signal.SIGKILL
    assert cluster.run(read_one, node=0) == 0x11


def interrupt_questions(times: int) -> int:
    """A handler that raises, at any moment: the answers still belong to their questions."""

    class Interrupted(Exception):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupted

    signal.signal(signal.SIGALRM, interrupt)
    region, struck = dsm.attach("small", 1 << 16), 0
    for number in range(times):
        try:
            signal.setitimer(signal.ITIMER_REAL, 1e-6 * (1 + number % 250))
            region.prefetch()
            region.stats()
            signal.setitimer(signal.ITIMER_REAL, 0)
        except Interrupted:
            struck += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    region.prefetch()
    assert region.stats()["pages"]["shared"] == 16
    return struck


def test_an_interrupted_question_is_not_waited_for_and_its_answer_not_mistaken(cluster: Cluster) -> None:
    assert cluster.run(interrupt_questions, 2000) > 100
