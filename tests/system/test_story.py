"""The story of a page: what ``dsm story`` tells of a live one, and that a broken invariant stops a service with it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from application import hear, say
from cluster import LIMIT_S, TREE, Cluster
from talker import Service

import dsm
from directory.service import Directory
from dsm import doctor, errors, launch, wire


def pass_a_page_on(rank: int, ranks: int) -> None:
    region = dsm.attach("passed on", 3 * 4096)
    barrier = dsm.Barrier("turn", ranks)
    for turn in range(ranks):
        if turn == rank:
            region.buf[4096] = turn
        barrier.wait()
    say()
    hear()


def dsm_story(cluster: Cluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dsm", "story", *arguments]
    environment = os.environ | {"DSM_NODE": str(cluster.path(0))}
    return subprocess.run(command, cwd=TREE, env=environment, capture_output=True, text=True, timeout=LIMIT_S)


def test_the_story_of_a_live_page(cluster: Cluster) -> None:
    children = [cluster.start(pass_a_page_on, rank, 2, node=rank) for rank in range(2)]
    for child in children:
        child.hear()
    told = dsm_story(cluster, "passed on", "1")
    assert told.returncode == 0, told.stderr
    lines = told.stdout.splitlines()
    assert lines[:3] == [
        "page 1 of passed on; nodes: n1 node0, n2 node1",
        "directory: exclusive to n2; under way: nothing",
        "node0: absent; under way: nothing",
    ]
    assert re.search(r"zeros granted: untouched -> exclusive  \(request \d+ of n1 to write\)", lines[4])
    assert re.search(r"sent, dropped: exclusive -> absent  \(Fetch p1 generation=\d+ requester=2\)", told.stdout)
    assert re.search(r"over: exclusive to n1 -> exclusive to n2  \(Done p1 generation=\d+\)", lines[-1])
    story = json.loads(dsm_story(cluster, "passed on", "1", "--json").stdout)
    assert story["node"]["story"][0]["what"] == "asked for, to write"
    assert json.loads(dsm_story(cluster, "passed on", "2", "--json").stdout)["directory"]["story"] == []
    for child in children:
        child.tell()
        child.result()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(("nothing", "0"), "there is no region 'nothing'"), (("here", "1"), "has no page 1"), (("here", "-1"), "-1")],
)
def test_a_story_of_what_is_not_there(cluster: Cluster, arguments: tuple[str, str], said: str) -> None:
    child = cluster.start(attach_one_page)
    child.hear()
    told = dsm_story(cluster, "--", *arguments)
    assert told.returncode and said in told.stderr and "Traceback" not in told.stderr
    child.tell()
    child.result()


def attach_one_page() -> None:
    with dsm.attach("here", 100):
        say()
        hear()


def load_one() -> int:
    return dsm.attach("false", 4096).buf[0]


class Liar(Service):
    """A directory that is this test itself."""

    def answer(self, kind: type[Any], reply: Callable[[Any], wire.Message]) -> None:
        """Wait for a message of this kind, leave all others unanswered, and reply."""
        link, message = self.hear(kind)
        link.send(wire.encode(reply(message)))


def test_a_directory_that_breaks_the_rules_stops_the_node_and_its_applications(
    start_cluster: Callable[[int], Cluster],
) -> None:
    """It grants without data a page that is not there."""
    cluster = start_cluster(0)
    log = cluster.home / "node.log"
    with Liar() as liar, log.open("wb") as stderr, ThreadPoolExecutor(1) as pool:
        starting = pool.submit(
            launch.start_node, liar.address, socket=cluster.path(0), name="node", with_parent=False, stderr=stderr
        )
        liar.answer(wire.Join, lambda m: wire.Welcome(1))
        node = starting.result(LIMIT_S)
        child = cluster.start(load_one)
        liar.answer(wire.Open, lambda m: wire.Opened(m.ticket, 1, 4096, 4096, {}))
        liar.answer(wire.Request, lambda m: wire.Grant(1, m.generation, 0, 1, 0, False))
        assert child.wait() == -signal.SIGKILL
        assert node.process.wait(LIMIT_S) == 1
    said = log.read_text()
    assert "page 0 of region 1 is absent, asked for to read, and cannot be 'granted without data'" in said
    assert "asked for, to read: absent -> absent, asked for to read  (a load)" in said
    assert "Traceback" not in said


@pytest.mark.skipif(doctor.is_compiled(), reason="replaces a method; what is compiled calls its own")
def test_a_violation_in_the_directory_is_told_with_its_story(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    directory = Directory(launch.LOOPBACK)
    pages = directory._cluster._pages
    pages.add_region(1, 5 * 4096, 4096)
    pages.step(1, wire.Request(1, 1, 3, 1, wire.WRITE, False))
    pages.step(2, wire.Request(1, 1, 3, 1, wire.WRITE, False))
    pages._regions[1].table.set(3, 0)  # as a bug would

    def turn() -> None:
        pages.step(2, wire.Done(1, 1, 3, 1))

    monkeypatch.setattr(directory, "_turn", turn)
    with pytest.raises(errors.Violation, match="no longer exclusive to n1, but untouched"):
        directory.serve()
    assert "the owner hands it over, other copies are invalidated: exclusive to n1 -> exclusive" in caplog.text
