"""Other ways to memory that is not here: the kernel on behalf of a system call, and explicit prefetching."""

from __future__ import annotations

import io
import os
import random
import socket
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from application import hear, say
from cluster import Cluster

import dsm

SIZE = 40 * 4096 + 123


def read_in_the_kernel(size: int, seed: int) -> int:
    """System calls that store into pages which are another node's, shared, or nobody's."""
    data = random.Random(seed).randbytes(size)
    region = dsm.attach("kernel", size)
    buf, third = region.buf, size // 3

    ours, theirs = socket.socketpair()
    sender = threading.Thread(target=lambda: theirs.sendall(data[:third]))
    sender.start()
    got = 0
    while got < third:
        got += ours.recv_into(buf[got:third])
    sender.join()

    path = Path("data")
    path.write_bytes(data)
    with path.open("rb", buffering=0) as file:
        file.seek(third)
        assert os.readv(file.fileno(), [buf[third : third + 5000], buf[third + 5000 : 2 * third]]) == 2 * third - third
        assert os.preadv(file.fileno(), [buf[2 * third : 2 * third + 1]], 2 * third) == 1
        file.seek(2 * third + 1)
        raw: io.RawIOBase = file
        assert raw.readinto(buf[2 * third + 1 :]) == size - 2 * third - 1
    path.unlink()
    ours.close()
    theirs.close()
    return bytes(buf) == data


def write_in_the_kernel(size: int, seed: int) -> list[bool]:
    """System calls that load from pages which are another node's."""
    data = random.Random(seed).randbytes(size)
    region = dsm.attach("kernel", create=False)
    buf = region.buf
    path = Path("copy")
    with path.open("wb", buffering=0) as file:
        assert os.writev(file.fileno(), [buf[:7000], buf[7000:9000]]) == 9000
        written = file.write(buf[9000:])
        assert written == size - 9000
    found = [path.read_bytes() == data]
    region.array.tofile(path)
    found.append(path.read_bytes() == data)
    path.unlink()
    ours, theirs = socket.socketpair()
    sender = threading.Thread(target=ours.sendall, args=(buf,))
    sender.start()
    received = b""
    while len(received) < size:
        received += theirs.recv(1 << 16)
    sender.join()
    ours.close()
    theirs.close()
    return [*found, received == data]


def spoil() -> None:
    """Every second page becomes this node's, every third one shared."""
    with dsm.attach("kernel", create=False) as region:
        region.buf[:: 2 * 4096] = bytes(len(region.buf[:: 2 * 4096]))
        sum(region.buf[:: 3 * 4096])


@pytest.mark.parametrize("first", [0, 1])
def test_system_calls_read_into_and_write_from_absent_pages(cluster: Cluster, first: int) -> None:
    assert cluster.run(read_in_the_kernel, SIZE, 1, node=first) is True
    assert cluster.run(write_in_the_kernel, SIZE, 1, node=1 - first) == [True] * 3
    cluster.run(spoil, node=1 - first)
    assert cluster.run(read_in_the_kernel, SIZE, 2, node=first) is True
    assert cluster.run(write_in_the_kernel, SIZE, 2, node=1 - first) == [True] * 3


def receive_while_another_thread_runs() -> int:
    """A system call that waits for a page does not hold the GIL."""
    region = dsm.attach("kernel", create=False)
    ours, theirs = socket.socketpair()
    theirs.sendall(bytes(range(256)))
    say()
    hear()  # the node that has the page is stopped now
    receiver = threading.Thread(target=lambda: ours.recv_into(region.buf[100:356]))
    receiver.start()
    say()  # it may have run until here only; the rest is said while the receiver waits
    for number in range(100_000):
        assert number or receiver.is_alive()
    say()
    receiver.join()
    ours.close()
    theirs.close()
    return int(region.buf[99]) + int(bytes(region.buf[100:356]) == bytes(range(256)))


def leave_a_byte() -> None:
    with dsm.attach("kernel", 100_000) as region:
        region.buf[99] = 41


def test_a_system_call_that_waits_for_a_page_lets_other_threads_run(cluster: Cluster) -> None:
    cluster.run(leave_a_byte, node=1)
    child = cluster.start(receive_while_another_thread_runs, node=0)
    child.hear()
    with cluster.stopped(1):
        child.tell()
        child.hear()
        child.hear()
    assert child.result() == 42


def write_all_of_it() -> None:
    with dsm.attach("ahead", shape=(700, 512), dtype="i8") as region:
        region.array[:] = np.arange(700)[:, None]


def read_after_prefetch() -> list[Any]:
    region = dsm.attach("ahead")
    with dsm.attach("empty", 4096) as other:
        other.prefetch()
        assert not any(other.buf)
    region.prefetch(4096, 4096)
    region.prefetch(5 * 4096 + 17, 6 * 4096 + 1)
    after_two = region.stats()["pages_in"]
    region.prefetch()
    faults = remote_faults(region)
    same = bool((region.array == np.arange(700)[:, None]).all())
    return [after_two, region.stats()["pages_in"], remote_faults(region) - faults, same]


def remote_faults(region: dsm.Region) -> int:
    counts = region.stats()["faults"]
    return sum(counts[kind]["count"] for kind in ("read", "write", "upgrade"))


def write_after_prefetch() -> list[int]:
    region = dsm.attach("ahead")
    region.prefetch(0, 300 * 4096, write=True)  # some of them are shared here, others not here
    faults = remote_faults(region)
    region.array[:300] += 1
    more = remote_faults(region) - faults
    region.prefetch(write=True)
    region.prefetch(write=True)
    return [more, int(region.array[299, 1]), int(region.array[300, 1]), region.stats()["pages"]["exclusive"]]


def test_prefetch_brings_pages_so_that_touching_them_is_no_fault(cluster: Cluster) -> None:
    cluster.run(write_all_of_it, node=0)
    assert cluster.run(read_after_prefetch, node=1, also=(remote_faults,)) == [2, 700, 0, True]
    assert cluster.run(write_after_prefetch, node=0, also=(remote_faults,)) == [0, 300, 300, 700]
    assert cluster.run(write_after_prefetch, node=1, also=(remote_faults,)) == [0, 301, 300, 700]


def prefetch_again_and_again(size: int) -> int:
    """What is here already is over at once, however much it is."""
    with dsm.attach("large", size) as region:
        for _ in range(2):
            region.prefetch(write=True)
        region.prefetch()
        return int(region.stats()["pages"]["exclusive"])


def test_prefetch_of_much_that_is_here(cluster: Cluster) -> None:
    assert cluster.run(prefetch_again_and_again, 1 << 30) == 1 << 18


def prefetch_among_writers(rank: int, ranks: int, times: int) -> int:
    """Half of the ranks write growing numbers while the others prefetch, to read or to write, and look."""
    barrier, over = dsm.Barrier("writers", ranks), dsm.Barrier("over", ranks)
    region = dsm.attach("stormy", shape=(200, 512), dtype="i8")
    array, seen = region.array, np.zeros(200, "i8")
    barrier.wait()
    for number in range(1, times + 1):
        if rank % 2:
            array[:, rank] = number
        else:
            region.prefetch(4096 * number, 4096 * (200 - number), write=number % 2 == 0)
            now = array[:, ranks - 1].copy()
            assert (now >= seen).all() and (now <= times).all()
            seen = now
            array[:, rank] += 1
    over.wait()
    assert (array[:, :ranks] == times).all()
    return times


def test_prefetch_while_others_write(cluster: Cluster) -> None:
    assert cluster.everywhere(prefetch_among_writers, 15, each=2) == [15] * 4


def prefetch_where_it_cannot_be() -> list[str]:
    region = dsm.attach("small", 5000)
    found = []
    for start, stop in ((0, 5001), (-1, 4), (4, 3), (6000, 7000)):
        try:
            region.prefetch(start, stop)
        except dsm.errors.InvalidArgument as error:
            found.append(str(error))
    region.prefetch(4999, 5000)
    assert all("'small'" in text and "5000" in text for text in found)
    return found


def test_prefetch_outside_of_the_region(cluster: Cluster) -> None:
    assert len(cluster.run(prefetch_where_it_cannot_be)) == 4
