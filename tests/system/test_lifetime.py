"""Regions come and go: attaching, detaching, unlinking, and what is left of them in the agents."""

from __future__ import annotations

import contextlib
import gc
import random
import resource
from typing import Any

import numpy as np
from application import attach_by_hand, hear, map_by_hand, say
from cluster import Cluster, until

import dsm
from dsm import local, wire


def attach_and_detach(rank: int, ranks: int, times: int) -> int:
    for number in range(times):
        name = f"region {rank} {number % 3}"
        with dsm.attach(name, 10_000 + number, page_size=4096 * (1 + number % 4)) as region:
            assert not any(region.buf[:64])  # unlinked and made anew: zeros again
            region.buf[0] = region.buf[number] = region.buf[9_999] = 1 + rank
            assert region.buf[9_999] == 1 + rank
            region.unlink()
    return times


def test_a_storm_of_regions_leaves_nothing_in_the_agents(cluster: Cluster) -> None:
    assert cluster.everywhere(attach_and_detach, 60, each=2) == [60] * 4
    for node in range(2):
        until(lambda node=node: cluster.all_gone(node) and cluster.memory(node) == 0, "the last detach")  # type: ignore[misc]
    assert cluster.status()["cluster"]["regions"] == []


def storm_over_one_name(rank: int, ranks: int, times: int) -> int:
    """All attach to, and unlink, one name. Whose region it is at any moment is anybody's guess, but each works."""
    plan = random.Random(rank)
    kept = []
    for number in range(times):
        region = dsm.attach("contested", ranks * 4096)
        mine = region.buf[rank * 4096 : rank * 4096 + 16]
        mine[:] = number.to_bytes(16, "little")
        if plan.random() < 0.3:
            with contextlib.suppress(dsm.errors.RegionNotFound):  # another was faster
                region.unlink()
        assert bytes(mine) == number.to_bytes(16, "little")
        if plan.random() < 0.2:
            kept.append((region, mine, number))
    for region, mine, number in kept:
        # The same region may have been attached to again since.
        assert int.from_bytes(mine, "little") >= number
        region.close()
    return times


def test_a_storm_over_one_name(cluster: Cluster) -> None:
    assert cluster.everywhere(storm_over_one_name, 80, each=2) == [80] * 4


def attach_while_the_last_one_leaves(name: str) -> int:
    """The only process of the node detaches in the very moment in which it attaches again."""
    path = local.socket_path()
    first, second = local.connect(path, 5), local.connect(path, 5)
    attach_by_hand(first, name, 4096)
    local.send(second, wire.Attach(name, 0, 0, 2, {}))
    first.close()
    answer, fds = local.receive(second)
    assert isinstance(answer, wire.Attached)
    pages, _uffd = map_by_hand(second, fds)
    say()
    hear()  # meanwhile it is unlinked
    pages[0] = 7
    return pages[0]


def test_a_detach_that_crosses_an_attach(cluster: Cluster) -> None:
    for number in range(5):
        child = cluster.start(attach_while_the_last_one_leaves, f"region {number}")
        child.hear()
        assert [region["attached"] for region in cluster.status()["cluster"]["regions"]] == [["node0"]]
        assert cluster.ask(wire.Unlink(0, f"region {number}")) == wire.Ready()
        child.tell()
        assert child.result() == 7
        until(lambda: not cluster.status()["cluster"]["regions"], "the end of the region")


def is_kept_by_its_last_holder() -> list[int]:
    region = dsm.attach("kept", 3 * 4096)
    region.buf[0] = 1
    region.unlink()
    again = dsm.attach("kept", 5000)
    seen = [region.buf[0], again.buf[0], region.size, again.size]
    region.buf[4096] = 2
    again.unlink()
    with contextlib.suppress(dsm.errors.RegionNotFound):
        again.unlink()
        seen.append(-1)
    return [*seen, region.buf[4096]]


def test_unlink_frees_the_name_at_once(cluster: Cluster) -> None:
    assert cluster.run(is_kept_by_its_last_holder) == [1, 0, 3 * 4096, 5000, 2]


def write_and_stay() -> None:
    region = dsm.attach("shared", 100_000)
    region.buf[:6] = b"before"
    say()
    hear()
    say([bytes(region.buf[:6]).decode(), bytes(region.buf[50_000:50_005]).decode()])
    hear()


def unlink_and_stay() -> str:
    region = dsm.attach("shared")
    region.unlink()
    seen = bytes(region.buf[:6]).decode()
    region.buf[:6] = b"after!"
    region.buf[50_000:50_005] = b"first"
    say()
    hear()
    return seen


def test_after_unlink_those_attached_go_on_and_the_memory_ends_with_the_last(cluster: Cluster) -> None:
    first = cluster.start(write_and_stay, node=0)
    first.hear()
    second = cluster.start(unlink_and_stay, node=1)
    second.hear()
    first.tell()
    assert first.hear() == ["after!", "first"]
    second.tell()
    assert second.result() == "before"
    assert [region["unlinked"] for region in cluster.status()["cluster"]["regions"]] == [True]
    assert cluster.memory(0) == 1
    first.tell()
    first.result()
    for node in range(2):
        until(lambda node=node: cluster.memory(node) == 0, "the end of the memory")  # type: ignore[misc]
    assert cluster.status()["cluster"]["regions"] == []


def keep_arrays() -> list[Any]:
    region = dsm.attach("arrays", shape=(4, 4096), dtype="i4")
    array, buf, row = region.array, region.buf, region.ndarray(4096, "i4", 4 * 4096)
    array[:] = np.arange(4)[:, None]
    region.close()
    region.close()
    say()
    hear()  # meanwhile the other node has written
    array[3, 5] += 40  # a page that is not here
    seen: list[Any] = [int(array[2, 0]), int(array[3, 5]), buf[4 * 4 * 4096 - 4], int(row.sum())]
    try:
        region.buf  # noqa: B018
    except dsm.errors.RegionClosed:
        seen.append("closed")
    del array, buf
    say()
    hear()  # still attached, by one row
    row[0] = 9
    del row
    gc.collect()
    say()
    hear()
    return seen


def add_thirty() -> int:
    array = dsm.attach("arrays").array
    array[2:] += 30
    return int(array[3, 5])


def test_arrays_outlive_close_and_hold_the_attachment(cluster: Cluster) -> None:
    child = cluster.start(keep_arrays)
    child.hear()
    assert cluster.run(add_thirty, node=1) == 33
    child.tell()
    child.hear()
    assert cluster.descriptors(0, "[userfaultfd]") == 1
    child.tell()
    child.hear()
    until(lambda: cluster.all_gone(0), "the detach, while the process lives")
    child.tell()
    assert child.result() == [32, 73, 33, 4096, "closed"]


def attach_many_times_over(times: int) -> int:
    """One process may attach to one region as often as it likes: all of it is the same memory."""
    regions = [dsm.attach("again", 8192) for _ in range(times)]
    for number, region in enumerate(regions):
        region.buf[number] = number
    return sum(region.buf[:times] == bytes(range(times)) for region in regions)


def test_one_process_attaches_many_times_to_one_region(cluster: Cluster) -> None:
    assert cluster.run(attach_many_times_over, 20) == 20


def leave_pages_behind(value: int) -> int:
    with dsm.attach("left", 3 * 4096) as region:
        before = region.buf[4096]
        region.buf[4096] = value
        return before


def test_the_data_outlives_every_process(cluster: Cluster) -> None:
    assert cluster.run(leave_pages_behind, 5) == 0
    assert cluster.run(leave_pages_behind, 6) == 5
    assert cluster.run(leave_pages_behind, 7, node=1) == 6
    assert cluster.run(leave_pages_behind, 8, node=0) == 7


def attached(name: str) -> None:
    with dsm.attach(name, 5000):
        say()
        hear()


def test_status_counts_the_applications_of_its_node_as_of_now(cluster: Cluster) -> None:
    children = [cluster.start(attached, "counted") for _ in range(3)]
    for child in children:
        child.hear()
    status = cluster.status()
    rows = {row["name"]: row["applications"] for row in status["cluster"]["nodes"]}
    assert (status["node"]["applications"], rows["node0"], rows["node1"]) == (3, 3, 0)
    for child in children:
        child.tell()
        child.result()


def hold_many(count: int) -> int:
    """Attach until the agent has no descriptor left; what was attached goes on."""
    regions, refused = [], 0
    for number in range(count):
        try:
            regions.append(dsm.attach(f"many {number}", 4096))
        except dsm.errors.DsmError as error:
            assert str(error)
            refused += 1
            if refused == 3:
                break
    for number, region in enumerate(regions):
        region.buf[0] = number % 256
    assert [region.buf[0] for region in regions] == [number % 256 for number in range(len(regions))]
    assert len(regions) > 5
    return refused


def test_an_agent_that_runs_out_of_descriptors_says_so_and_goes_on(cluster: Cluster) -> None:
    pid = cluster.agent(0)
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (80, limits[1]))
    assert cluster.run(hold_many, 60, limit_s=30) == 3
    resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    assert cluster.run(leave_pages_behind, 5) == 0
    assert cluster.run(leave_pages_behind, 6, node=1) == 5
