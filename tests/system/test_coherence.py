"""What every node reads is what was last written on any: real processes on two and three nodes."""

from __future__ import annotations

import itertools
import os
import random
import threading
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cluster import Cluster, worker

import dsm


def write_and_compare(rank: int, ranks: int, size: int, page_size: int, rounds: int) -> int:
    """Each round cuts the region into pieces at random, each written by one rank; then all read all of it."""
    barrier = dsm.Barrier("round", ranks)
    plan = random.Random(size)  # the same for every rank
    expected = bytearray(size)
    with dsm.attach("region", size, page_size=page_size) as region:
        for _ in range(rounds):
            cuts = sorted({0, size, *(plan.randrange(size) for _ in range(24))})
            for start, stop in itertools.pairwise(cuts):
                writer, data = plan.randrange(ranks + 1), plan.randbytes(stop - start)
                if writer < ranks:  # else it stays as it is
                    expected[start:stop] = data
                if writer == rank:
                    region.buf[start:stop] = data
            barrier.wait()
            assert bytes(region.buf) == bytes(expected)
            barrier.wait()
    return zlib.crc32(expected)


@pytest.mark.parametrize(
    ("nodes", "size", "page_size"),
    [
        (2, 1, 4096),
        (2, 300_001, 4096),
        (2, 3 * 4096, 4096),
        (3, 500_123, 8192),
        (3, 100_000, 12288),
        (2, 1_000_001, 65536),
        (2, 5_000_001, 2 << 20),
    ],
)
def test_every_byte_written_anywhere_is_read_everywhere(
    start_cluster: Callable[[int], Cluster], nodes: int, size: int, page_size: int
) -> None:
    cluster = start_cluster(nodes)
    assert len(set(cluster.everywhere(write_and_compare, size, page_size, 5, each=3 - nodes // 2))) == 1


def count_under_a_lock(rank: int, ranks: int, times: int) -> list[int]:
    lock, barrier = dsm.Lock("counters"), dsm.Barrier("all", ranks)
    with dsm.attach("counters", shape=(1024,), dtype="i8") as region:
        counters = region.array
        barrier.wait()
        for _ in range(times):
            with lock:
                counters[0] += 1  # one page for all of them, and one for the last
                counters[7] += 2
                counters[1000] += 3
        barrier.wait()
        return [int(counters[at]) for at in (0, 7, 1000)]


def test_counters_under_a_lock_end_exact(cluster3: Cluster) -> None:
    assert cluster3.everywhere(count_under_a_lock, 100, each=2) == [[600, 1200, 1800]] * 6


def write_in_turns(rank: int, ranks: int, times: int) -> int:
    with dsm.attach("turn", shape=(1,), dtype="i8") as region:
        turn = region.array
        for mine in range(rank, times, ranks):
            while turn[0] != mine:
                pass
            turn[0] = mine + 1
        while turn[0] != times:
            pass
        return int(turn[0])


def test_nodes_that_write_one_page_alternately_all_advance(cluster3: Cluster) -> None:
    assert cluster3.everywhere(write_in_turns, 150) == [150] * 3


def store_beside_others(rank: int, ranks: int, times: int) -> list[int]:
    barrier = dsm.Barrier("start", ranks)
    with dsm.attach("words", shape=(ranks,), dtype="i8") as region:
        words = region.buf.cast("q")
        seen = [0] * ranks
        barrier.wait()
        for count in range(times):
            assert words[rank] == count
            words[rank] = count + 1
            other = words[count % ranks]
            assert other >= seen[count % ranks]  # what another has stored is never taken back
            seen[count % ranks] = other
        barrier.wait()
        return list(words)


@pytest.mark.parametrize(("nodes", "each"), [(2, 1), (3, 2)])
def test_false_sharing_loses_no_store(start_cluster: Callable[[int], Cluster], nodes: int, each: int) -> None:
    ranks = nodes * each
    assert start_cluster(nodes).everywhere(store_beside_others, 100_000, each=each) == [[100_000] * ranks] * ranks


def touch_here_and_there(rank: int, ranks: int, size: int) -> int:
    barrier = dsm.Barrier("touched", ranks)
    plan = random.Random(7)
    places = [0, size - 1, *(plan.randrange(1, size - 1) for _ in range(150))]
    with dsm.attach("sparse", size) as region:
        for number, at in enumerate(places):
            if number % ranks == rank:
                region.buf[at] = number + 1
        barrier.wait()
        for number, at in enumerate(places):
            assert region.buf[at] == number + 1
            assert not any(region.buf[at + 1 : at + 4])
    return len(places)


def test_a_region_larger_than_a_gibibyte_sparsely_touched(cluster: Cluster) -> None:
    touched = cluster.everywhere(touch_here_and_there, 1_500_000_001)[0]
    for node in range(2):
        assert memory_of_regions(cluster, node) <= 16 * touched * 4096


def memory_of_regions(cluster: Cluster, node: int) -> int:
    folder = f"/proc/{cluster.agent(node)}/fd"
    memfds = [path for path in os.scandir(folder) if "memfd:dsm:" in os.readlink(path)]
    return sum(path.stat().st_blocks * 512 for path in memfds)


def touch_the_corners(rank: int, ranks: int) -> list[int]:
    barrier = dsm.Barrier("touched", ranks)
    with dsm.attach("huge", 1 << 40) as region:
        buf, last = region.buf, (1 << 40) - 1
        if rank == 0:
            buf[0], buf[last // 2], buf[last] = 1, 2, 3
        barrier.wait()
        return [buf[0], buf[last // 2], buf[last], buf[12345678901]]


def test_a_region_of_a_tebibyte_costs_nothing_until_it_is_touched(cluster: Cluster) -> None:
    services = [cluster.directory, *cluster.nodes]
    before = [resident(worker(service.process.pid)) for service in services]
    assert cluster.everywhere(touch_the_corners) == [[1, 2, 3, 0]] * 2
    grown = [resident(worker(service.process.pid)) - kib for service, kib in zip(services, before, strict=True)]
    assert max(grown) < 16 << 10
    assert max(memory_of_regions(cluster, node) for node in range(2)) < 1 << 20


def resident(pid: int) -> int:
    """KiB of memory."""
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))


def use_many(rank: int, ranks: int, many: int) -> list[int]:
    barrier = dsm.Barrier("written", ranks)
    regions = [dsm.attach(f"region {number}", 5000) for number in range(many)]
    for number in range(rank, many, ranks):
        regions[number].buf[4999] = number + 1
    barrier.wait()
    return [region.buf[4999] for region in regions]


def test_fifty_regions_at_once(cluster: Cluster) -> None:
    assert cluster.everywhere(use_many, 50) == [list(range(1, 51))] * 2
    assert [cluster.memory(node) for node in range(2)] == [50, 50]


def fill_a_part(rank: int, ranks: int, each: int) -> int:
    barrier = dsm.Barrier("filled", ranks)
    with dsm.attach("parts", shape=(ranks, each), dtype="u2") as region:
        region.array[rank] = rank + 1
        barrier.wait()
        assert np.array_equal(region.array[:, 0], np.arange(1, ranks + 1))
        return int(region.array.sum())


def test_eight_processes_on_one_node(start_cluster: Callable[[int], Cluster]) -> None:
    each = 5000  # the parts share pages
    cluster = start_cluster(1)
    assert cluster.everywhere(fill_a_part, each, each=8) == [each * 36] * 8
    # Some other node reads what they have left.
    cluster.add_node("late")
    assert cluster.run(sum_up, "parts", node=1) == each * 36


def sum_up(name: str) -> int:
    return int(dsm.attach(name).array.sum())


def fault_in_threads(rank: int, ranks: int, threads: int) -> list[int]:
    """Both crc32 and numpy let go of the GIL, so that several threads fault at once, some of them on the same pages."""
    barrier = dsm.Barrier("phase", ranks)
    region = dsm.attach("threads", shape=(threads, 100_000), dtype="i8")
    found: list[Any] = [None] * threads

    def together(work: Callable[[int], None]) -> None:
        workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
        for each in workers:
            each.start()
        for each in workers:
            each.join()
        barrier.wait()

    def write(number: int) -> None:
        if number % ranks == rank:
            np.add(region.array[number], number + 1, out=region.array[number])

    def read(number: int) -> None:
        found[number] = zlib.crc32(region.buf) if number % 2 else int(region.array.sum())

    together(write)
    together(read)
    assert found[0] == sum(100_000 * (number + 1) for number in range(threads))
    assert len(set(found[0::2])) == len(set(found[1::2])) == 1
    return [found[0], found[1]]


def test_threads_of_one_process_fault_at_once(cluster: Cluster) -> None:
    first, second = cluster.everywhere(fault_in_threads, 6)
    assert first == second
