"""A node that is stopped in the ordinary way: what only it has goes to others before it leaves."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from application import hear, say
from cluster import LIMIT_S, TREE, Cluster, until

import dsm
from dsm import launch

ROWS = 3000
"""Pages: of several extents."""


@pytest.fixture
def standing(cluster: Cluster) -> Iterator[Cluster]:
    """With a third node that nobody's end ends."""
    add_standing(cluster)
    yield cluster


def add_standing(cluster: Cluster) -> launch.Service:
    number = len(cluster.nodes)
    with (cluster.home / f"standing{number}.log").open("ab") as log:
        node = launch.start_node(
            cluster.directory.address,
            socket=cluster.path(number),
            name=f"standing{number}",
            with_parent=False,
            stderr=log,
        )
    cluster.nodes.append(node)
    return node


def fill(rows: int) -> None:
    import numpy as np

    dsm.attach("filled", shape=(rows, 512), dtype="i8").array[:] = np.arange(rows)[:, None]


def is_filled(rows: int) -> list[object]:
    import numpy as np

    region = dsm.attach("filled")
    return [region.lost(), bool((region.array == np.arange(rows)[:, None]).all())]


def end(cluster: Cluster, node: launch.Service) -> None:
    node.process.send_signal(signal.SIGTERM)
    assert node.process.wait(LIMIT_S) == 0
    cluster.ended.add(node.process.pid)


def test_what_only_it_has_goes_to_others(standing: Cluster) -> None:
    standing.run(fill, ROWS, node=2)
    end(standing, standing.nodes[2])
    assert standing.run(is_filled, ROWS, node=0) == [[], True]


def test_others_that_do_not_know_the_region_take_it(standing: Cluster) -> None:
    """And it is over, on all of them, when it is unlinked."""
    standing.run(fill, ROWS, node=2)
    assert [standing.memory(node) for node in (0, 1)] == [0, 0]
    end(standing, standing.nodes[2])
    assert sum(standing.memory(node) for node in (0, 1)) > 0


def test_the_last_node_leaves_all_the_same(cluster: Cluster) -> None:
    for node in list(cluster.nodes):
        node.stop()
        cluster.ended.add(node.process.pid)
    last = add_standing(cluster)
    cluster.run(fill, 10, node=2)
    end(cluster, last)
    assert "lost_pages=10" in cluster.logs()


def keep_a_row(row: int) -> None:
    region = dsm.attach("filled")
    region.array[row] = row
    say("has it")
    hear()
    region.close()


def test_applications_that_are_still_there_do_not_hold_it_up(standing: Cluster) -> None:
    standing.run(fill, ROWS, node=0)
    app = standing.start(keep_a_row, 7, node=2)
    app.hear()
    end(standing, standing.nodes[2])
    assert standing.run(is_filled, ROWS, node=0) == [[], True]
    app.kill()
    app.wait()


def drain(cluster: Cluster, node: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "dsm", "node", "--drain", "--socket", str(cluster.path(node))],
        env={"PYTHONPATH": str(TREE)}, capture_output=True, text=True, timeout=LIMIT_S,
    )  # fmt: skip


def test_drain_ends_the_node_and_waits_for_it(standing: Cluster) -> None:
    standing.run(fill, ROWS, node=2)
    done = drain(standing, 2)
    assert (done.returncode, done.stderr) == (0, "")
    assert "'standing2' has left" in done.stdout
    assert standing.nodes[2].process.wait(LIMIT_S) == 0
    standing.ended.add(standing.nodes[2].process.pid)
    assert standing.run(is_filled, ROWS, node=0) == [[], True]


def test_drain_refuses_while_applications_are_attached(standing: Cluster) -> None:
    standing.run(fill, 10, node=0)
    app = standing.start(keep_a_row, 7, node=2)
    app.hear()
    refused = drain(standing, 2)
    assert refused.returncode == 1
    assert f"process {app.pid}" in refused.stderr
    app.tell()
    app.result()
    until(lambda: standing.all_gone(2), "the end of the application")
    assert drain(standing, 2).returncode == 0
    standing.nodes[2].process.wait(LIMIT_S)
    standing.ended.add(standing.nodes[2].process.pid)


def test_where_there_is_no_node_drain_says_so(cluster: Cluster) -> None:
    refused = drain(cluster, 7)
    assert refused.returncode == 1 and "7.sock" in refused.stderr
