"""A directory of several processes: pages of two shards are as coherent as those of one, and as lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from application import hear, say
from cluster import LIMIT_S, TREE, Cluster, is_stopped, until

import dsm
from dsm import asking, errors, launch, wire
from dsm.constants import EXTENT_BYTES
from dsm.geometry import shard_of

PAGES = 4 * EXTENT_BYTES // 4096
IN_FIRST, IN_SECOND = sorted((3, EXTENT_BYTES // 4096 + 3), key=lambda page: shard_of(1, page, 4096, 2))
"""Pages of the first region that there is: neighbouring extents belong to different shards."""


@pytest.fixture
def sharded(start_cluster: Callable[..., Cluster]) -> Cluster:
    return start_cluster(2, shards=2)


def add_in_turns(rank: int, ranks: int, pages: int, rounds: int) -> int:
    """Every page of every extent is written by every rank."""
    barrier = dsm.Barrier("turn", ranks)
    with dsm.attach("grid", shape=(pages, 512), dtype="i8") as region:
        grid = region.array
        for turn in range(rounds * ranks):
            if turn % ranks == rank:
                grid[::7, 0] += 1
            barrier.wait()
            assert (grid[::7, 0] == turn + 1).all()
            barrier.wait()
        return int(grid.sum())


def test_every_rank_reads_what_others_wrote_to_pages_of_both_shards(sharded: Cluster) -> None:
    written = -(-PAGES // 7) * 6
    assert sharded.everywhere(add_in_turns, PAGES, 3) == [written, written]
    status = sharded.status()["cluster"]
    (region,) = status["regions"]
    assert sum(region["pages"].values()) == PAGES
    assert [shard["state"] for shard in status["shards"]] == ["up"]
    # Its own shard counts each page once.
    assert status["counters"]["transactions"] > 2 * 6 * PAGES // 7


def write_and_wait(pages: int) -> None:
    region = dsm.attach("grid", shape=(pages, 512), dtype="i8")
    region.array[:] = np.arange(pages)[:, None]
    say()
    hear()


def look(pages: list[int]) -> list[int]:
    array = dsm.attach("grid").array
    return [int(array[page, 0]) for page in pages]


def test_the_death_of_an_application_loses_nothing_at_either_shard(sharded: Cluster) -> None:
    child = sharded.start(write_and_wait, PAGES)
    child.hear()
    child.kill()
    assert child.wait() == -signal.SIGKILL
    assert sharded.run(look, [IN_FIRST, IN_SECOND], node=1) == [IN_FIRST, IN_SECOND]


@pytest.mark.parametrize("page", [IN_FIRST, IN_SECOND], ids=["first", "second"])
def test_the_pages_of_a_node_that_dies_are_lost_at_both_shards(sharded: Cluster, page: int) -> None:
    keeper = sharded.start(write_and_wait, PAGES)
    keeper.hear()
    assert sharded.run(look, [0, PAGES - 1], node=1) == [0, PAGES - 1]
    sharded.ended.add(sharded.nodes[0].process.pid)
    sharded.nodes[0].process.kill()
    sharded.nodes[0].process.wait()
    sharded.path(0).unlink()
    keeper.kill()
    keeper.wait()
    until(lambda: len(sharded.status(1)["cluster"]["nodes"]) == 1, "the end of the lease")
    assert sharded.run(look, [0, PAGES - 1], node=1) == [0, PAGES - 1]
    child = sharded.start(look, [page], node=1)
    assert child.wait() == -signal.SIGBUS
    assert f"page {page} " in child.stderr and "'node0'" in child.stderr


def touch_when_told(pages: int) -> None:
    region = dsm.attach("grid", shape=(pages, 512), dtype="i8")
    while (page := hear()) is not None:
        region.array[page, 0] = page
        say(page)


def test_faults_wait_for_the_shard_of_their_page_and_for_no_other(sharded: Cluster) -> None:
    first, second = (sharded.start(touch_when_told, PAGES) for _ in range(2))
    for child in (first, second):
        child.tell(IN_FIRST)
        child.hear()
    pid = sharded.shards[0].process.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        until(lambda: is_stopped(pid), "the stop")
        second.tell(IN_SECOND)
        first.tell(IN_FIRST + 1)
        assert first.hear() == IN_FIRST + 1
        status = sharded.status()["cluster"]
        assert [shard["state"] for shard in status["shards"]] == ["silent"]
    finally:
        os.kill(pid, signal.SIGCONT)
    assert second.hear() == IN_SECOND
    for child in (first, second):
        child.tell(None)
        child.result()


def test_the_story_of_a_page_is_that_of_its_shard(sharded: Cluster) -> None:
    child = sharded.start(write_and_wait, PAGES)
    child.hear()
    for page in (IN_FIRST, IN_SECOND):
        command = [sys.executable, "-m", "dsm", "story", "grid", str(page)]
        environment = os.environ | {"DSM_NODE": str(sharded.path(0))}
        told = subprocess.run(command, cwd=TREE, env=environment, capture_output=True, text=True, timeout=LIMIT_S)
        assert told.returncode == 0, told.stderr
        assert "exclusive" in told.stdout and "directory" in told.stdout
    child.tell()
    child.result()


def test_no_node_is_taken_in_before_all_shards_have_come() -> None:
    directory = launch.start_directory(shards=2)
    try:
        with pytest.raises(errors.DirectoryUnreachable, match="--shard-of"):
            launch.start_node(directory.address, socket=Path("/tmp/never.sock"), name="early")
        shard = launch.start_directory(shard_of=directory.address)
        try:
            with pytest.raises(errors.DsmError, match="no more shards"):
                launch.start_directory(shard_of=directory.address)
            with pytest.raises(errors.DsmError, match="ask the first one"):
                asking.ask(shard.address, wire.Query(0, "status", 0, 0, 0), LIMIT_S)
        finally:
            shard.stop()
    finally:
        directory.stop()


def test_ranks_on_a_directory_of_three_shards() -> None:
    source = "import dsm; a = dsm.attach('x', 9 << 20).buf; a[dsm.rank() << 22] = 1; dsm.Barrier('b', 2).wait();"
    source += " print(sum(a[::1 << 22]))"
    command = [sys.executable, "-m", "dsm", "run", "--nodes", "2", "--shards", "3", "--", sys.executable, "-c", source]
    done = subprocess.run(command, cwd=TREE, capture_output=True, text=True, timeout=LIMIT_S)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["2", "2"], "")
