"""The machines of a directory in two shards, joined by hand: each order in which what they say to each other and to the
nodes may arrive."""

from __future__ import annotations

from typing import Any

from directory.cluster import Cluster
from directory.shard import FIRST, Shard
from dsm.constants import LEASE_S
from dsm.geometry import shard_of
from dsm.wire import (
    WRITE,
    Answer,
    Close,
    Destroy,
    Done,
    Enlist,
    Failure,
    Fenced,
    Fetch,
    Grant,
    Heartbeat,
    Join,
    JoinShard,
    Lost,
    Member,
    MemberLeft,
    Open,
    Opened,
    Query,
    Request,
    Shards,
    Unlink,
    Welcome,
)

SHARD = b"the shard's connection"
ADDRESS = "tcp://10.0.0.9:7400"
PAGE, EXTENT = 4096, 512
THERE = next(page for page in (0, EXTENT) if shard_of(1, page, PAGE, 2) == 1)
"""A page of the first region that is the second shard's."""
HERE = EXTENT - THERE


class Two:
    """The first shard, the second, and what is on its way between them. ``told``: what each connection was sent."""

    def __init__(self) -> None:
        self.now = 0.0
        self.first = Cluster("tcp://10.0.0.1:7400", 0.0, shards=2)
        self.second = Shard(ADDRESS, 0.0, 1, 2)
        self.down: list[Any] = []
        self.up: list[Any] = []
        self.told: dict[bytes, list[Any]] = {}
        self._at_first(SHARD, JoinShard(ADDRESS))
        assert self.down == [Shards("tcp://10.0.0.9:7400"), Welcome(1)]
        self.down.clear()

    def _at_first(self, identity: bytes, message: Any) -> None:
        self.sort(self.first.step(identity, message, self.now))

    def sort(self, outgoing: list[tuple[bytes, Any]]) -> None:
        for to, message in outgoing:
            if to in (SHARD, FIRST):
                (self.down if to == SHARD else self.up).append(message)
            else:
                self.told.setdefault(to, []).append(message)

    def say(self, node: int, message: Any, shard: int = 0) -> list[Any]:
        """A node says something to a shard; what it has been told by that shard since it last said something."""
        identity = f"{node} at {shard}".encode()
        machine = self.second if shard else self.first
        self.told[identity] = []
        self.sort(machine.step(identity, message, self.now))
        return self.told[identity]

    def settle(self) -> None:
        """What is on its way between the shards arrives."""
        while self.down or self.up:
            if self.down:
                self.sort(self.second.from_first(self.down.pop(0), self.now))
            else:
                self._at_first(SHARD, self.up.pop(0))

    def heard(self, node: int, shard: int = 0) -> list[Any]:
        return self.told.get(f"{node} at {shard}".encode(), [])

    def join(self, node: int) -> None:
        name, address = f"n{node}", f"tcp://10.0.1.{node}:7401"
        told = self.say(node, Join(name, address))
        assert told[:2] == [Shards(ADDRESS), Welcome(node)]
        self.settle()
        assert self.say(node, Enlist(node, name, address), 1)[0] == Welcome(node)

    def open(self, node: int) -> None:
        self.say(node, Open(7, "grid", 4 * EXTENT * PAGE, PAGE, 0, {}))
        self.settle()
        assert self.heard(node)[-1] == Opened(7, 1, 4 * EXTENT * PAGE, PAGE, {})


def two_nodes() -> Two:
    two = Two()
    for node in (1, 2):
        two.join(node)
        two.open(node)
    return two


def test_no_node_is_taken_in_while_a_shard_is_missing_and_no_shard_once_all_are_there() -> None:
    first = Cluster("tcp://10.0.0.1:7400", 0.0, shards=2)
    ((_, refused),) = first.step(b"n", Join("n", "tcp://10.0.1.1:7401"), 0.0)
    assert isinstance(refused, Failure) and "--shard-of" in refused.text
    first.step(SHARD, JoinShard(ADDRESS), 0.0)
    ((_, refused),) = first.step(b"another", JoinShard("tcp://10.0.0.8:7400"), 0.0)
    assert isinstance(refused, Failure) and refused.error == "InvalidArgument"


def test_a_node_may_come_to_a_shard_before_that_has_been_told_of_it() -> None:
    two = Two()
    two.say(1, Join("n1", "tcp://10.0.1.1:7401"))
    assert two.say(1, Enlist(1, "n1", "tcp://10.0.1.1:7401"), 1) == []
    two.settle()
    assert two.heard(1, 1) == [Welcome(1)]


def test_nobody_else_can_come_as_a_node_that_is_awaited() -> None:
    two = Two()
    two.say(1, Join("n1", "tcp://10.0.1.1:7401"))
    two.settle()
    (refused,) = two.say(9, Enlist(1, "n9", "tcp://10.0.1.9:7401"), 1)
    assert isinstance(refused, Failure)
    assert two.say(1, Enlist(1, "n1", "tcp://10.0.1.1:7401"), 1) == [Welcome(1)]
    (refused,) = two.say(9, Enlist(1, "n1", "tcp://10.0.1.1:7401"), 1)
    assert isinstance(refused, Failure)
    assert two.say(9, Request(1, 1, THERE, 1, WRITE, 0), 1) == [Fenced(two.heard(9, 1)[0].reason)]


def test_no_node_hears_of_a_region_before_every_shard_knows_it() -> None:
    two = Two()
    for node in (1, 2):
        two.join(node)
    for node in (1, 2):
        assert two.say(node, Open(7, "grid", PAGE, PAGE, 0, {})) == []
    two.settle()
    for node in (1, 2):
        assert two.heard(node) == [Opened(7, 1, PAGE, PAGE, {})]


def test_each_shard_grants_its_own_pages_and_refuses_the_others() -> None:
    two = two_nodes()
    assert two.say(1, Request(1, 5, HERE, 1, WRITE, 0)) == [Grant(1, 5, HERE, 1, 0, True)]
    assert two.say(1, Request(1, 6, THERE, 1, WRITE, 0), 1) == [Grant(1, 6, THERE, 1, 0, True)]
    assert two.say(2, Request(1, 7, THERE, 1, WRITE, 0)) == []
    assert two.say(2, Request(1, 7, HERE, 1, WRITE, 0), 1) == []
    two.say(2, Request(1, 8, THERE, 1, WRITE, 0), 1)
    assert two.heard(1, 1)[-1] == Fetch(1, 8, THERE, 1, 2, 0, False, False)
    assert two.say(2, Done(1, 8, THERE, 1), 1) == []


def test_a_node_that_one_shard_loses_is_lost_at_all() -> None:
    for shard in (0, 1):
        two = two_nodes()
        for at, page in ((0, HERE), (1, THERE)):
            two.say(1, Request(1, 5, page, 1, WRITE, 0), at)
        two.now = LEASE_S + 1
        for node, at in ((2, 0), (2, 1), (1, 1 - shard)):
            two.say(node, Heartbeat(0, 1, 0), at)
        machine = two.second if shard else two.first
        machine.due_s = two.now  # it was not itself that slept
        two.sort(machine.tick(two.now))
        two.settle()
        for at, page in ((0, HERE), (1, THERE)):
            assert [m.node for m in two.heard(2, at) if isinstance(m, MemberLeft)] == [1]
            assert two.say(2, Request(1, 9, page, 1, WRITE, 0), at) == [Lost(1, 9, page, 1, "n1")]
            assert isinstance(two.say(1, Heartbeat(0, 1, 0), at)[0], Fenced)


def test_a_node_that_is_gone_before_it_came_to_a_shard_is_not_taken_in_there() -> None:
    two = Two()
    two.join(1)
    two.say(2, Join("n2", "tcp://10.0.1.2:7401"))
    two.sort(two.first.step(b"2 at 0", MemberLeft(2, ""), 0.0))  # only a shard may say so
    assert Member(2, "n2", "tcp://10.0.1.2:7401") in two.down and not any(isinstance(m, MemberLeft) for m in two.down)
    two.first.unread(b"2 at 0")
    two.sort(two.first.tick(0.0))
    two.settle()
    assert two.say(2, Enlist(2, "n2", "tcp://10.0.1.2:7401"), 1) == []
    assert two.say(2, Request(1, 1, THERE, 1, WRITE, 0), 1) != []  # fenced
    assert not any(isinstance(m, Member) for m in two.heard(1, 1))


def test_a_region_that_is_over_is_forgotten_at_every_shard() -> None:
    two = two_nodes()
    two.say(1, Request(1, 5, THERE, 1, WRITE, 0), 1)
    two.say(1, Unlink(8, "grid"))
    for node in (1, 2):
        two.say(node, Close(1, 1))
    assert Destroy(1) in two.down
    two.settle()
    assert two.say(2, Request(1, 6, THERE, 1, WRITE, 0), 1) == []


def test_what_all_shards_know_is_added_up() -> None:
    two = two_nodes()
    two.say(1, Request(1, 5, HERE, 2, WRITE, 0))
    two.say(2, Request(1, 6, THERE, 3, WRITE, 0), 1)
    two.say(1, Query(3, "status", 0, 0, 0))
    two.settle()
    (answer,) = two.heard(1)
    assert isinstance(answer, Answer)
    assert answer.value["regions"][0]["pages"] == {"shared": 0, "exclusive": 5, "lost": 0}
    assert answer.value["counters"]["transactions"] == 2
    assert answer.value["shards"] == [{"shard": 1, "address": ADDRESS, "state": "up"}]
    two.say(1, Query(4, "owners", 1, 0, 2 * EXTENT))
    two.settle()
    owners = two.heard(1)[0].value["owners"]
    found = [int.from_bytes(owners[2 * page : 2 * page + 2], "little") for page in range(2 * EXTENT)]
    assert {page: owner for page, owner in enumerate(found) if owner} == {
        **dict.fromkeys(range(HERE, HERE + 2), 1),
        **dict.fromkeys(range(THERE, THERE + 3), 2),
    }


def test_the_story_of_a_page_comes_from_its_shard() -> None:
    two = two_nodes()
    two.say(2, Request(1, 6, THERE, 1, WRITE, 0), 1)
    two.say(1, Query(3, "story", 1, THERE, 1))
    two.settle()
    (answer,) = two.heard(1)
    assert answer.value["directory"]["state"] == "exclusive to n2"
    assert answer.value["nodes"] == {"1": "n1", "2": "n2"}


def test_a_silent_shard_is_named_and_nobody_waits_for_it_for_long() -> None:
    two = two_nodes()
    assert two.say(1, Query(3, "status", 0, 0, 0)) == []
    assert two.say(2, Query(4, "story", 1, THERE, 1)) == []
    two.now = 2.0
    two.sort(two.first.tick(two.now))
    assert two.heard(1)[0].value["shards"][0]["state"] == "silent"
    (failure,) = two.heard(2)
    assert isinstance(failure, Failure) and ADDRESS in failure.text
    two.settle()  # its answers come too late
    assert len(two.heard(1)) == len(two.heard(2)) == 1


def test_a_shard_that_has_missed_something_is_told_so_and_none_takes_its_place() -> None:
    two = two_nodes()
    two.first.unread(SHARD)
    assert not two.first.is_member(SHARD)
    two.sort(two.first.step(SHARD, MemberLeft(1, "silent"), 0.0))
    assert isinstance(two.down.pop(), Fenced)
    ((_, refused),) = two.first.step(b"another", JoinShard(ADDRESS), 0.0)
    assert isinstance(refused, Failure)
    assert two.say(1, Request(1, 5, HERE, 1, WRITE, 0)) == [Grant(1, 5, HERE, 1, 0, True)]
