"""``dsm ls`` and ``dsm rm`` on real clusters."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from application import hear, say
from cluster import TREE, Cluster

import dsm


def make_some() -> None:
    regions = [
        dsm.attach("grid", shape=(30, 2), dtype="f8"),
        dsm.attach("tmp-1", 10_000, persist=False),
        dsm.attach("tmp-2", 1 << 20, page_size=65536),
    ]
    dsm.Semaphore("places", 4).acquire()
    dsm.Counter("tickets").add(3)
    dsm.Event("go").set()
    with dsm.Lock("held"):
        say()
        hear()
        regions[0].array[29, 1] = 7  # which it goes on with
        say(regions[0].array[29].tolist())
        hear()


def command(cluster: Cluster, *words: str, node: int = 1) -> tuple[int, str, str]:
    environment = {**os.environ, "PYTHONPATH": str(TREE), "DSM_NODE": str(cluster.path(node))}
    done = subprocess.run(
        [sys.executable, "-m", "dsm", *words], env=environment, capture_output=True, text=True, timeout=50
    )
    return done.returncode, done.stdout, done.stderr


def names(cluster: Cluster) -> list[str]:
    code, out, _ = command(cluster, "ls", "--json")
    assert code == 0
    return sorted(row["name"] for rows in json.loads(out).values() for row in rows)


def test_what_there_is_is_listed_and_removed_by_name_or_pattern(cluster: Cluster) -> None:
    assert "nothing" in command(cluster, "ls")[1]
    child = cluster.start(make_some)
    child.hear()
    shown = [" ".join(line.split()) for line in command(cluster, "ls")[1].splitlines()]
    assert "grid 480 B 30 × 2 <f8 4 KiB node0 until it is unlinked" in shown
    assert "tmp-1 9.8 KiB 4 KiB node0 while it is used" in shown
    assert "places semaphore 0 value 3, initial 4" in shown
    everything = ["go", "grid", "held", "places", "tickets", "tmp-1", "tmp-2"]
    assert names(cluster) == everything

    code, out, err = command(cluster, "rm", "absent", "held")
    assert (code, out) == (1, "")
    assert [line.split("'")[1] for line in err.splitlines()] == ["absent", "held"]
    assert names(cluster) == everything

    code, out, err = command(cluster, "rm", "tmp-*", "tickets", "grid")
    assert (code, err) == (0, "")
    assert sorted(out.splitlines()) == [
        "removed counter tickets", "removed region grid", "removed region tmp-1", "removed region tmp-2",
    ]  # fmt: skip
    assert "while it is used: it was unlinked" in command(cluster, "ls")[1]
    child.tell()
    assert child.hear() == [0.0, 7.0]
    child.tell()
    child.result()
    assert command(cluster, "rm", "*")[0] == 0
    assert [name for name in names(cluster) if name != "held"] == []  # a lock stays with its node


def wait_at(name: str) -> None:
    say()
    dsm.Event(name).wait()


def test_what_is_waited_for_is_not_removed(cluster: Cluster) -> None:
    child = cluster.start(wait_at, "go")
    child.hear()
    while "go" not in names(cluster):
        pass
    code, out, err = command(cluster, "rm", "go")
    assert (code, out) == (1, "")
    assert "event 'go' is in use: 1 wait for it" in err
    assert names(cluster) == ["go"]
    child.kill()
    child.wait()
