"""What a node does whose directory is silent for longer than a lease, and one that the directory has given up."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from application import hear, say
from cluster import Cluster, until

import dsm
from dsm import asking, wire
from dsm.constants import LEASE_S


def read_and_write(name: str, column: int) -> list[int]:
    """Pages that others have read, and pages that only this node has; each time it is told, until it is told 0."""
    region = dsm.attach(name, shape=(8, 512), dtype="i8")
    region.array[column] = 1
    say("ready")
    while turn := hear():
        region.array[column] += turn
        say(region.array[:, 0].tolist())
    return region.array[:, 0].tolist()  # type: ignore[no-any-return]


def test_applications_wait_for_a_directory_that_is_silent_for_longer_than_a_lease(cluster: Cluster) -> None:
    apps = [cluster.start(read_and_write, "shared", node, node=node) for node in range(2)]
    for app in apps:
        app.hear()
    for app in apps:
        app.tell(1)
        app.hear()
    pid = cluster.directory.process.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        until(lambda: cluster.logs().count("event=suspended") == 2, "both nodes to hide their pages")
        for app in apps:
            app.tell(10)
        # Both have everything they want to touch, and neither may.
        until(lambda: all(in_a_fault(app.pid) for app in apps), "a page fault in each")
    finally:
        os.kill(pid, signal.SIGCONT)
    for app in apps:
        app.hear()  # both have stored, before either looks
    for app in apps:
        app.tell(0)
    assert [app.result()[:2] for app in apps] == [[12, 12], [12, 12]]
    assert cluster.logs().count("event=resumed") == 2


def in_a_fault(pid: int) -> bool:
    return "handle_userfault" in Path(f"/proc/{pid}/wchan").read_text() or Path(
        f"/proc/{pid}/syscall"
    ).read_text().startswith("-1 ")


def lost(name: str) -> list[Any]:
    return [list(run) for run in dsm.attach(name).lost()]


def test_a_node_that_was_given_up_comes_back_as_another(cluster: Cluster) -> None:
    cluster.add_node("standalone", with_parent=False)
    app = cluster.start(read_and_write, "shared", 0, node=2)
    app.hear()
    before = members(cluster)
    with cluster.stopped(2):
        until(lambda: len(members(cluster)) == 2, "the end of its lease")
    assert app.wait() == -signal.SIGKILL  # what it had written is nowhere any more
    until(lambda: "standalone" in members(cluster), "its return")
    assert members(cluster)["standalone"] > before["standalone"]
    assert cluster.run(lost, "shared", node=2) == [[0, 4096, "standalone"]]
    assert "event=rejoined" in cluster.logs()


def members(cluster: Cluster) -> dict[str, int]:
    status = asking.ask(cluster.directory.address, wire.Query(0, "status", 0, 0, 0), 4 * LEASE_S)
    time.sleep(0.1)
    return {node["name"]: node["id"] for node in status["nodes"]}
