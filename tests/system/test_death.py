"""Applications that die in the worst moment, and nodes that leave: what the others see."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from application import hear, say
from cluster import Cluster, until

import dsm


def write_and_wait(name: str, pages: int, value: int) -> None:
    """All pages become this node's alone."""
    region = dsm.attach(name, shape=(pages, 512), dtype="i8")
    region.array[:] = value
    say()
    hear()


def read_sum(name: str) -> int:
    return int(dsm.attach(name).array.sum())


def test_kill_9_of_the_only_writer_loses_nothing(cluster: Cluster) -> None:
    child = cluster.start(write_and_wait, "written", 40, 7)
    child.hear()
    child.kill()
    assert child.wait() == -signal.SIGKILL
    assert cluster.run(read_sum, "written", node=1) == 40 * 512 * 7
    assert cluster.run(read_sum, "written", node=0) == 40 * 512 * 7


def add_for_ever(name: str, column: int) -> None:
    array = dsm.attach(name, shape=(64, 512), dtype="i8").array
    while True:
        array[:, column] += 1
        if array[63, column] == 5:
            say()


def add(rank: int, ranks: int, name: str, times: int) -> bool:
    array = dsm.attach(name, shape=(64, 512), dtype="i8").array
    for _ in range(times):
        array[:, rank] += 1
    return bool((array[:, rank] == times).all())


def column(name: str, number: int) -> list[int]:
    return dsm.attach(name).array[:, number].tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("node", [0, 1])
def test_kill_9_again_and_again_while_pages_fly(cluster: Cluster, node: int) -> None:
    steady = [cluster.start(add, rank, 2, "flying", 120, node=rank) for rank in range(2)]
    for victim in range(4):
        child = cluster.start(add_for_ever, "flying", 100 + victim, node=node)
        child.hear()
        child.kill()
        assert child.wait() == -signal.SIGKILL
    assert [child.result() for child in steady] == [True, True]
    for victim in range(4):
        left = cluster.run(column, "flying", 100 + victim)
        # It was killed between two pages of one sweep: each store it made is there, and none after it.
        assert left[0] >= 5
        assert sorted(left, reverse=True) == left
        assert left[0] - left[-1] in (0, 1)


def touch(name: str, write: bool) -> int:
    region = dsm.attach(name)
    say()
    hear()
    if write:
        region.buf[4096] = 1
    return region.buf[4096]


@pytest.mark.parametrize("write", [False, True], ids=["load", "store"])
def test_kill_9_in_the_middle_of_a_fault(cluster: Cluster, write: bool) -> None:
    owner = cluster.start(write_and_wait, "page", 4, 1)
    owner.hear()
    victim = cluster.start(touch, "page", write, node=1)
    victim.hear()
    with cluster.stopped(0):
        victim.tell()
        until(lambda: in_a_fault(victim.pid), "the fault")
        victim.kill()
        assert victim.wait() == -signal.SIGKILL
    assert cluster.run(read_sum, "page", node=1) == 4 * 512
    assert cluster.run(read_sum, "page", node=0) == 4 * 512
    owner.tell()
    owner.result()


def in_a_fault(pid: int) -> bool:
    return "handle_userfault" in Path(f"/proc/{pid}/wchan").read_text() or faulting(pid)


def faulting(pid: int) -> bool:
    """Where the kernel does not tell where a process waits: asleep although nothing is there to wait for."""
    return Path(f"/proc/{pid}/syscall").read_text().startswith("-1 ")


def sleep_in_a_loop_of_faults() -> str:
    array = dsm.attach("loop", shape=(64, 512), dtype="i8").array
    try:
        say()
        while True:
            array[:, 1] += 1
    except KeyboardInterrupt:
        return "interrupted"


def test_ctrl_c_among_faults(cluster: Cluster) -> None:
    other = cluster.start(add_for_ever, "loop", 2, node=1)
    child = cluster.start(sleep_in_a_loop_of_faults)
    child.hear()
    child.kill(signal.SIGINT)
    assert child.result() == "interrupted"
    other.kill()
    assert other.wait() == -signal.SIGKILL


def interrupted_prefetch() -> list[Any]:
    region = dsm.attach("page")
    say()
    try:
        hear()
        region.prefetch()
    except KeyboardInterrupt:
        say("interrupted")
    hear()  # the other node goes on
    region.prefetch()
    return [region.stats()["pages_in"], int(region.array.sum())]


def test_ctrl_c_ends_a_prefetch(cluster: Cluster) -> None:
    owner = cluster.start(write_and_wait, "page", 4, 1)
    owner.hear()
    child = cluster.start(interrupted_prefetch, node=1)
    child.hear()
    with cluster.stopped(0):
        child.tell()
        until(lambda: b"poll" in Path(f"/proc/{child.pid}/wchan").read_bytes() or asleep(child.pid), "the prefetch")
        child.kill(signal.SIGINT)
        assert child.hear() == "interrupted"
    child.tell()
    assert child.result() == [4, 4 * 512]
    owner.tell()
    owner.result()


def asleep(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


# --- nodes that leave ------------------------------------------------------------------------------------------


def leave(cluster: Cluster, node: int) -> None:
    """SIGTERM: the node says goodbye."""
    service = cluster.nodes[node]
    cluster.ended.add(service.process.pid)
    service.stop()
    assert service.process.returncode == 0, cluster.logs()
    others = [number for number, other in enumerate(cluster.nodes) if cluster.alive(other)]
    until(lambda: len(cluster.status(others[0])["cluster"]["nodes"]) == len(others), "the end of the membership")


def write_pages(name: str, pages: int) -> None:
    dsm.attach(name, shape=(pages, 512), dtype="i8").array[:] = np.arange(pages)[:, None]


def touch_pages(name: str, pages: list[int], write: bool) -> list[int]:
    array = dsm.attach(name).array
    found = []
    for page in pages:
        if write:
            array[page, 1] = 5
        found.append(int(array[page, 0]))
    return found


@pytest.mark.parametrize("write", [False, True], ids=["load", "store"])
def test_a_page_that_left_with_its_node_is_a_bus_error_that_says_so(cluster3: Cluster, write: bool) -> None:
    cluster3.run(write_pages, "grid", 40, node=0)
    # What another node has a copy of survives.
    assert cluster3.run(touch_pages, "grid", [3, 4, 8], False, node=1) == [3, 4, 8]
    assert cluster3.run(touch_pages, "grid", [4], True, node=1) == [4]
    leave(cluster3, 0)
    assert cluster3.run(touch_pages, "grid", [8, 4, 3], write, node=2) == [8, 4, 3]
    for node in (1, 2):
        child = cluster3.start(touch_pages, "grid", [4, 20], write, node=node)
        assert child.wait() == -signal.SIGBUS
        lines = [line for line in child.stderr.splitlines() if line.startswith("dsm:")]
        assert len(lines) == 1
        assert "page 20 " in lines[0] and "'grid'" in lines[0] and "'node0'" in lines[0]
    # Nobody is disturbed by it, and what was never written is still zeros.
    assert cluster3.run(touch_pages, "grid", [3, 4, 8], True, node=1) == [3, 4, 8]
    assert cluster3.run(use_another, node=2) == [0, 1]


def raised_by_prefetch(start: int, stop: int) -> str:
    region = dsm.attach("grid")
    try:
        region.prefetch(start, stop)
    except dsm.errors.PageLost as error:
        return f"OSError {isinstance(error, OSError)}: {error}"
    return ""


def lost() -> list[list[Any]]:
    return [list(run) for run in dsm.attach("grid").lost()]


def reset(start: int, stop: int | None) -> list[list[Any]]:
    region = dsm.attach("grid")
    region.reset(start, stop)
    return [list(run) for run in region.lost()]


def test_lost_pages_are_told_listed_and_reset(cluster3: Cluster) -> None:
    cluster3.run(write_pages, "grid", 40, node=0)
    assert cluster3.run(touch_pages, "grid", [3, 4, 8], False, node=1) == [3, 4, 8]
    assert cluster3.run(lost, node=1) == []
    leave(cluster3, 0)
    runs = cluster3.run(lost, node=1)  # but for what had been read ahead
    assert runs[0] == [0, 3 * 4096, "node0"]
    assert [stop for _, stop, _ in runs][-1] == 40 * 4096
    told = cluster3.run(raised_by_prefetch, 3 * 4096, 40 * 4096, node=1)
    assert told.startswith(f"OSError True: bytes {runs[-1][0]} to 163840 of region 'grid' are lost: node 'node0'"), told
    assert cluster3.run(raised_by_prefetch, 3 * 4096, 5 * 4096, node=2) == ""
    assert cluster3.start(touch_pages, "grid", [31], True, node=2).wait() == -signal.SIGBUS
    # Two pages begin anew, also on the node where touching one of them was a bus error.
    left = cluster3.run(reset, 30 * 4096, 32 * 4096, node=1)
    assert left == [*runs[:-1], [runs[-1][0], 30 * 4096, "node0"], [32 * 4096, 40 * 4096, "node0"]]
    assert cluster3.run(touch_pages, "grid", [31, 30], True, node=2) == [0, 0]
    assert cluster3.run(touch_pages, "grid", [3, 8, 31, 30], True, node=1) == [3, 8, 0, 0]
    assert cluster3.start(touch_pages, "grid", [35], False, node=1).wait() == -signal.SIGBUS
    assert cluster3.run(reset, 0, None, node=2) == []
    assert cluster3.run(touch_pages, "grid", [0, 3, 4, 8, 29, 35, 39], False, node=1) == [0, 3, 4, 8, 0, 0, 0]


def survive_bus_errors(page: int) -> int:
    """Touches a lost page in a child, which has the memory of the mapping that is poisoned; then again, when told."""
    import ctypes

    libc = ctypes.CDLL(None)
    region = dsm.attach("grid")
    address = region.array.ctypes.data + page * 4096
    read, write = os.pipe()
    # The kernel looks at the page for us: EFAULT in place of SIGBUS.
    say(libc.write(write, ctypes.c_void_p(address), 8))
    hear()
    say(libc.write(write, ctypes.c_void_p(address), 8))
    return int.from_bytes(os.read(read, 8), "little")


def store(page: int, value: int) -> None:
    dsm.attach("grid").array[page, 0] = value


def test_a_poisoned_mapping_sees_what_was_stored_after_a_reset(cluster3: Cluster) -> None:
    cluster3.run(write_pages, "grid", 8, node=0)
    leave(cluster3, 0)
    here = [cluster3.start(survive_bus_errors, 5, node=node) for node in (1, 1, 2)]
    assert [child.hear() for child in here] == [-1, -1, -1]
    assert cluster3.run(reset, 0, None, node=2) == []
    cluster3.run(store, 5, 77, node=1)
    for child in here:
        child.tell()
        assert child.hear() == 8
        assert child.result() == 77


def use_another() -> list[int]:
    with dsm.attach("another", 100_000) as region:
        region.buf[1] = 1
        return list(region.buf[:2])


def touch_with_a_log(page: int) -> None:
    array = dsm.attach("grid").array
    os.write(2, b"before\n")
    say(int(array[page, 0]))


def test_the_line_about_a_lost_page_is_appended_to_the_applications_log(cluster: Cluster) -> None:
    cluster.run(write_pages, "grid", 8, node=0)
    leave(cluster, 0)
    path = cluster.home / "errors"
    for _ in range(2):
        with path.open("wb") as log:  # not opened for appending, as a shell's 2> does
            child = cluster.start(touch_with_a_log, 5, node=1, stderr=log)
            assert child.wait() == -signal.SIGBUS
            os.write(log.fileno(), b"Bus error\n")  # as a shell says, where it has got to
        lines = path.read_bytes().splitlines()
        assert lines[0] == b"before" and lines[-1] == b"Bus error"
        assert b"page 5 " in b"".join(lines)


def test_the_line_about_a_lost_page_goes_to_a_socket_too(cluster: Cluster) -> None:
    cluster.run(write_pages, "grid", 8, node=0)
    leave(cluster, 0)
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            child = cluster.start(touch_with_a_log, 5, node=1, stderr=theirs)
        assert child.wait() == -signal.SIGBUS
        lines = ours.recv(1 << 16, socket.MSG_WAITALL).splitlines()  # to the end
    assert lines[0] == b"before"
    assert b"page 5 " in b"".join(lines)


def touch_with_a_full_pipe(page: int) -> None:
    """Nobody reads what this process writes on its standard error."""
    array = dsm.attach("grid").array
    read, write = os.pipe()
    os.set_blocking(write, False)
    try:
        while True:
            os.write(write, bytes(4096))
    except BlockingIOError:
        os.set_blocking(write, True)
    os.dup2(write, 2)
    say(read)
    say(int(array[page, 0]))


def test_an_application_that_nobody_listens_to_does_not_stop_its_node(cluster: Cluster) -> None:
    cluster.run(write_pages, "grid", 8, node=0)
    leave(cluster, 0)
    child = cluster.start(touch_with_a_full_pipe, 5, node=1)
    child.hear()
    assert cluster.run(use_another, node=1, limit_s=20) == [0, 1]
    assert child.wait() == -signal.SIGBUS


def test_touching_a_page_while_its_node_leaves_gives_its_value_or_a_bus_error(cluster: Cluster) -> None:
    owner = cluster.start(write_and_wait, "page", 4, 1)
    owner.hear()
    children = [cluster.start(touch, "page", write, node=1) for write in (False, True)]
    for child in children:
        child.hear()
    with cluster.stopped(0):
        for child in children:
            child.tell()
        until(lambda: all(in_a_fault(child.pid) for child in children), "the faults")
        cluster.ended.add(cluster.nodes[0].process.pid)
        cluster.nodes[0].process.terminate()
    assert cluster.nodes[0].process.wait(50) == 0
    assert owner.wait() == -signal.SIGKILL  # attached to a node that was started by somebody who is to outlive it
    for child in children:
        assert child.wait() in (0, -signal.SIGBUS), child.stderr
        assert child._last in (None, 1)
    assert cluster.run(use_another, node=1) == [0, 1]


def hold_and_wait_for_ever(name: str) -> None:
    lock, region = dsm.Lock(name), dsm.attach("held", 4096)
    lock.acquire()
    region.buf[0] = 1
    say()
    hear()


def lock_it(name: str) -> bool | str:
    try:
        return dsm.Lock(name).acquire()
    except dsm.errors.OwnerDied:
        return "OwnerDied"


def test_locks_of_a_node_that_leaves_pass_on(cluster: Cluster) -> None:
    holder = cluster.start(hold_and_wait_for_ever, "lock", node=1)
    holder.hear()
    waiting = cluster.start(lock_it, "lock", node=0)
    leave(cluster, 1)
    assert waiting.result() == "OwnerDied"
    assert holder.wait() == -signal.SIGKILL


def test_a_node_may_come_back_under_its_name(cluster: Cluster) -> None:
    cluster.run(write_pages, "grid", 8, node=1)
    assert cluster.run(touch_pages, "grid", [2], False, node=0) == [2]
    leave(cluster, 1)
    cluster.add_node("node1")
    assert cluster.run(touch_pages, "grid", [2], True, node=2) == [2]
    assert cluster.run(touch_pages, "grid", [2], True, node=0) == [2]
    assert cluster.start(touch_pages, "grid", [3], True, node=2).wait() == -signal.SIGBUS
