"""Regions that end with their last user, however it ends, and regions that do not."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
from application import hear, raised, say
from cluster import Cluster, until

import dsm


def use(name: str, persist: bool | None, value: int) -> list[int]:
    """Write a word of its own, say so, and stay until told."""
    region = dsm.attach(name, shape=(8, 512), dtype="i8", persist=persist)
    region.array[value] = value
    say()
    hear()
    return region.array[:, 7].tolist()  # type: ignore[no-any-return]


def regions(cluster: Cluster) -> list[str]:
    return [region["name"] for region in cluster.status()["cluster"]["regions"]]


def ended(cluster: Cluster) -> None:
    until(lambda: not regions(cluster), "the end of the region")
    for node, service in enumerate(cluster.nodes):
        if cluster.alive(service):
            until(lambda node=node: not cluster.memory(node), "the end of its memory")  # type: ignore[misc]


@pytest.mark.parametrize("how", ["returns", "is killed"])
def test_it_lives_until_the_last_of_two_nodes_has_left(cluster: Cluster, how: str) -> None:
    first = cluster.start(use, "r", False, 1)
    first.hear()
    second = cluster.start(use, "r", None, 2, node=1)
    second.hear()
    first.kill()
    assert first.wait() == -signal.SIGKILL
    third = cluster.start(use, "r", None, 3)
    third.hear()
    assert regions(cluster) == ["r"]
    third.tell()
    assert third.result() == [0, 1, 2, 3, 0, 0, 0, 0]  # what the first has written is there still
    assert regions(cluster) == ["r"]
    if how == "returns":
        second.tell()
        second.result()
    else:
        second.kill()
        assert second.wait() == -signal.SIGKILL
    ended(cluster)


def test_one_that_persists_stays_without_users(cluster: Cluster) -> None:
    child = cluster.start(use, "r", None, 1)
    child.hear()
    child.kill()
    assert child.wait() == -signal.SIGKILL
    until(lambda: cluster.all_gone(0), "the end of its mapping")
    assert regions(cluster) == ["r"]
    again = cluster.start(use, "r", True, 2, node=1)
    again.hear()
    again.tell()
    assert again.result() == [0, 1, 2, 0, 0, 0, 0, 0]


def test_it_ends_with_a_node_that_is_killed(cluster3: Cluster) -> None:
    child = cluster3.start(use, "r", False, 1, node=2)
    child.hear()
    victim = cluster3.nodes[2].process
    cluster3.ended.add(victim.pid)
    victim.kill()
    cluster3.path(2).unlink()
    child.kill()
    child.wait()
    ended(cluster3)


def leave_it_to_a_child(persist: bool) -> None:
    region = dsm.attach("r", shape=(8, 512), dtype="i8", persist=persist)
    region.array[1] = 1
    if os.fork() == 0:
        os.kill(os.getppid(), signal.SIGKILL)
        region.array[2] = 2
        say(region.persist)
        hear()
        say(region.array[:4, 1].tolist())
        os._exit(0)
    hear()


def test_a_forked_child_is_a_user_of_its_own(cluster: Cluster) -> None:
    parent = cluster.start(leave_it_to_a_child, False)
    assert parent.hear() is False
    assert regions(cluster) == ["r"]
    parent.tell()
    assert parent.hear() == [0, 1, 2, 0]
    parent.wait()
    ended(cluster)


def disagree() -> list[Any]:
    region = dsm.attach("r", 10, persist=False)
    found = [raised(lambda: dsm.attach("r", 10, persist=True)), raised(lambda: dsm.attach("r", persist=False))]
    return [region.persist, *found]


def test_another_wish_is_an_error(cluster: Cluster) -> None:
    persist, wrong, right = cluster.run(disagree)
    assert (persist, wrong[0][0], right) == (False, "RegionMismatch", [[], ""])
    assert "exists with persist False, not True" in wrong[1]
    ended(cluster)
