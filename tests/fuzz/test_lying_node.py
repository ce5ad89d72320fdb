"""A node that lies: the honest read right values, each lie is counted, and every service stays up.

What a member can do all the same, to pages that it takes part in, is written down in docs/trust.md.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from application import hear, say
from cluster import Cluster, until
from noise import Probe
from talker import Service, Talker

import dsm
from directory import service
from directory.cluster import Cluster as Members
from directory.machine import PageMachine
from dsm import listener, wire
from nodes.effects import Install, Send
from nodes.machine import NodeMachine

PAGE = 4096
FAR = (1 << 63) - 1


NOWHERE = "tcp://127.0.0.1:1"


class Liar(Talker):
    """A member of a real cluster, made by hand: its connection to the directory, its peers' to it, ways to them."""

    def __init__(self, cluster: Cluster, stack: contextlib.ExitStack) -> None:
        super().__init__(cluster.directory.address)
        stack.enter_context(self)
        self.cluster = cluster
        self._stack = stack
        self.inbox = stack.enter_context(Service())
        self.tell(wire.Join("liar", self.inbox.address))
        self.number = self.hear(wire.Welcome).node

    def to(self, node: int) -> Talker:
        """A way to a node, as its peers have one."""
        return self._stack.enter_context(Talker(self.cluster.status(node)["node"]["address"]))

    def counted(self) -> int:
        """What the directory has refused."""
        refused: int = self.ask(wire.Query(0, "status", 0, 0, 0)).value["counters"]["rejected"]
        return refused


@pytest.fixture(name="cluster")
def two_nodes() -> Iterator[Cluster]:
    """After the test, nothing of it may be left."""
    cluster = Cluster(2)
    try:
        yield cluster
        cluster.check()
    finally:
        cluster.clean()


@pytest.fixture
def liar(cluster: Cluster) -> Iterator[Liar]:
    with contextlib.ExitStack() as stack:
        liar = Liar(cluster, stack)
        yield liar
        liar.tell(wire.Leave())
        until(lambda: len(cluster.status()["cluster"]["nodes"]) == 2, "the end of its membership")


class TwoNodes(Probe):
    """The probe, beside a third node."""

    def __call__(self) -> None:
        self.asks_for_the_status = False
        super().__call__()


@pytest.fixture
def probe(cluster: Cluster) -> Iterator[Probe]:
    probe = TwoNodes(cluster)
    probe()
    yield probe
    probe.end()


def refused_by(cluster: Cluster, node: int) -> int:
    return sum(cluster.status(node)["node"]["counters"].values())


# --- to the directory -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lie",
    [
        wire.Done(1, 1, 0, 1),
        wire.Done(1, 1, FAR, 0xFFFFFFFF),
        wire.GaveUp(1, 1, 0, 1),
        wire.Hurry(1, 1, 0, 1),  # for another
        wire.Keep(1),
        wire.Hold(1, True),
        wire.Hold(1, False),
        wire.Close(1, 1),
        wire.Close(99, 0xFFFFFFFF),
        wire.Request(1, 1, 399, 2, wire.READ, wire.FAULT),  # one more than there is
        wire.Request(1, 1, FAR, 0xFFFFFFFF, wire.WRITE, wire.FAULT),
        wire.Request(1, 1, 0, 0, wire.READ, wire.FAULT),
        wire.Request(1, 1, 0, 1, 4, wire.FAULT),
        wire.Request(99, 1, 0, 1, wire.READ, wire.FAULT),
        wire.Join("another name", "tcp://127.0.0.1:7"),  # a member twice
        wire.Data(1, 1, 0, 1, 0, 1, 0),
        wire.Ack(1, 1, 0, 1),
        wire.Grant(1, 1, 0, 1, 0, True),
        wire.Fenced("go"),
        wire.Welcome(1),
    ],
    ids=repr,
)
def test_what_no_member_may_say_is_counted_and_changes_nothing(lie: wire.Message) -> None:
    """In process; a real directory gets them all below."""
    cluster = Members("tcp://127.0.0.1:1", 0.0)
    for number, identity in enumerate((b"one", b"two")):
        cluster.step(identity, wire.Join(f"n{number}", f"tcp://127.0.0.1:{number + 1}"), 0.0)
    assert cluster.step(b"one", wire.Open(1, "grid", 400 * PAGE, PAGE, 0, {}), 0.0)[0][1] == wire.Opened(
        1, 1, 400 * PAGE, PAGE, {}
    )
    cluster.step(b"one", wire.Request(1, 1, 0, 1, wire.WRITE, wire.FAULT), 0.0)
    before = status(cluster)
    assert cluster.step(b"two", lie, 0.0) == []
    after = status(cluster)
    assert after.pop("counters")["rejected"] == before.pop("counters")["rejected"] + 1
    assert after == before
    assert cluster.step(b"one", wire.Request(1, 2, 0, 1, wire.READ, wire.FAULT), 0.0) == [
        (b"one", wire.Grant(1, 2, 0, 1, 0, False))
    ]


def status(cluster: Members) -> dict[str, Any]:
    ((_, answer),) = cluster.step(b"somebody", wire.Query(1, "status", 0, 0, 0), 0.0)
    assert isinstance(answer, wire.Answer)
    return answer.value


def test_claims_to_a_real_directory(cluster: Cluster, probe: Probe, liar: Liar) -> None:
    before = liar.counted()
    for _ in range(200):
        liar.tell(
            wire.Done(1, 1, 0, 1), wire.GaveUp(1, 1, 0, 1), wire.Hurry(1, 1, 0, 1), wire.Keep(1), wire.Close(1, 9)
        )
    assert liar.counted() == before + 1000
    probe()
    assert cluster.status()["cluster"]["regions"][0]["attached"] == ["node0", "node1"]


@pytest.mark.parametrize(
    ("name", "address", "error"),
    [
        ("node0", "tcp://127.0.0.1:9", "NodeNameInUse"),
        ("new", "tcp://127.0.0.1:1", "NodeNameInUse"),  # would have pages sent to another's inbox
        ("new", "nonsense", "InvalidArgument"),
        ("new", "tcp://127.0.0.1:*", "InvalidArgument"),
        ("new", "tcp://*:9", "InvalidArgument"),
        ("new", "tcp://127.0.0.1:0", "InvalidArgument"),
        ("new", "tcp://127.0.0.1:65536", "InvalidArgument"),
        ("new", "tcp://no-such-host.invalid:9", "InvalidArgument"),
        ("new", "tcp://a b:9", "InvalidArgument"),
        ("new", "tcp://[::1%a b]:9", "InvalidArgument"),
        ("new", "inproc://x", "InvalidArgument"),
    ],
)
def test_a_newcomer_that_nobody_could_talk_to_is_refused(name: str, address: str, error: str) -> None:
    cluster = Members("tcp://127.0.0.1:1", 0.0)
    cluster.step(b"one", wire.Join("node0", "tcp://127.0.0.1:1"), 0.0)
    ((identity, answer),) = cluster.step(b"two", wire.Join(name, address), 0.0)
    assert isinstance(answer, wire.Failure)
    assert (identity, answer.error) == (b"two", error)
    assert status(cluster)["counters"]["rejected"] == 1
    assert [node["name"] for node in status(cluster)["nodes"]] == ["node0"]


def test_an_owner_survives_a_peer_whose_address_leads_nowhere(cluster: Cluster, probe: Probe) -> None:
    """Whatever a directory lets in, the owner of a page has to send it there."""
    for number, address in enumerate(
        ["tcp://127.0.0.1:1", "tcp://[::1]:1", "tcp://127.255.255.255:1", "tcp://127.0.0.9:65535"]
    ):
        with Talker(cluster.directory.address) as evil:
            evil.tell(wire.Join(f"evil{number}", address))
            evil.hear(wire.Welcome)
            out = cluster.status()["node"]["regions"]["probe"]["pages_out"]
            evil.tell(wire.Request(1, 1, 1, 1, wire.READ, wire.FAULT))  # the first page of the first probe
            until(lambda out=out: cluster.status()["node"]["regions"]["probe"]["pages_out"] > out, "the answer")  # type: ignore[misc]
            evil.tell(wire.Request(1, 2, 1, 50, wire.READ, wire.GUESS))  # in bulk
            evil.tell(wire.Leave())
            evil.flush()
        until(lambda: len(cluster.status()["cluster"]["nodes"]) == 2, "the end of its membership")
        probe()


def test_a_flood_of_requests_is_served_once_a_page(cluster: Cluster, probe: Probe, liar: Liar) -> None:
    """The first pages that the applications wrote, one on each node; what comes of it is never closed."""
    before = liar.counted()
    for generation in range(100):
        liar.tell(*(wire.Request(1, generation, page, 1, wire.READ, wire.FAULT) for page in (1, 201)))
    assert liar.counted() == before + 2 * 99
    probe()


def test_a_queue_has_a_node_once_a_page() -> None:
    pages = PageMachine()
    pages.add_region(1, 512 * PAGE, PAGE)
    pages.step(1, wire.Request(1, 1, 0, 512, wire.WRITE, wire.FAULT))
    pages.step(2, wire.Request(1, 1, 0, 512, wire.READ, wire.FAULT))
    for generation in range(1000):
        pages.step(3, wire.Request(1, generation, generation % 512, 1, wire.READ, wire.FAULT))
    assert pages.rejected == 1000 - 512


def test_a_member_that_reads_nothing_is_none_for_long() -> None:
    cluster = Members("tcp://127.0.0.1:1", 0.0)
    cluster.step(b"one", wire.Join("n0", "tcp://127.0.0.1:1"), 0.0)
    cluster.step(b"two", wire.Join("n1", "tcp://127.0.0.1:2"), 0.0)
    cluster.unread(b"nobody")
    assert cluster.tick(1.0) == []
    cluster.unread(b"two")
    ((identity, left),) = cluster.tick(2.0)
    assert identity == b"one" and isinstance(left, wire.MemberLeft) and left.node == 2


@pytest.mark.parametrize("is_member", [False, True])
def test_what_nobody_reads_is_bounded(is_member: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory keeps what a connection has not read up to a limit; a member that misses something is none any more,
    and is told so when it speaks again."""
    monkeypatch.setattr(service, "_UNREAD_BYTES_MAX", 100_000 if is_member else 1 << 40)
    monkeypatch.setattr(service, "_STRANGER_BYTES_MAX", 100_000)
    monkeypatch.setattr(listener, "_NEWCOMER_S", 60)  # time enough to fill it
    directory = service.Directory("tcp://127.0.0.1:*")
    most: list[int] = []
    serving = threading.Thread(target=directory.serve)
    serving.start()
    try:
        with Talker(directory.address) as deaf, Talker(directory.address) as other:
            if is_member:
                deaf.tell(wire.Join("deaf", NOWHERE))
                assert deaf.hear(wire.Welcome) == wire.Welcome(1)
            asked = 2000
            for _ in range(asked):
                deaf.tell(wire.Query(1, "status", 0, 0, 0))
                other.flush()  # the directory has gone on
                most.append(max(link.unacknowledged_bytes for link in directory._links.values()))
                if most[-1] > 100_000:
                    break
            assert 100_000 < most[-1] < 101_000
            for _ in range(200):
                deaf.tell(wire.Query(1, "status", 0, 0, 0))
            other.flush()
            until(lambda: not directory._cluster._nodes, "the end of its membership")
            assert max(link.unacknowledged_bytes for link in directory._links.values()) == most[-1]
            if is_member:
                deaf.tell(wire.Heartbeat(0, 1, 0))  # what was kept is read at last, then the end
                assert deaf.hear(wire.Answer)
    finally:
        directory.stop()
        serving.join()


# --- to its peers ---------------------------------------------------------------------------------------------------


def test_nobody_guesses_the_number_of_a_request(cluster: Cluster, probe: Probe, liar: Liar) -> None:
    """Page data and acknowledgements, in its own name and in that of others, for every page that is in use."""
    peer, before, sent = liar.to(0), refused_by(cluster, 0), 0
    for generation in range(300):
        for page in (200 + generation % 50, generation % 50):
            peer.send(wire.encode(wire.Data(1, generation, page, 1, page, 1, 0)), b"\xff" * PAGE)
            peer.tell(wire.Ack(1, generation, page, 1 + generation % 3))
            sent += 2
        if generation % 30 == 0:
            probe()
    until(lambda: refused_by(cluster, 0) == before + sent, "all of it to be counted")
    probe()


def read_the_page(page: int) -> list[int]:
    """Read a page twice; in between, another node writes it."""
    region = dsm.attach("lent", shape=(64, 512), dtype="i8")
    say("ready")
    hear()
    first = int(region.array[page, 7])
    say(first)
    hear()
    return [first, int(region.array[page, 7])]


def page_of(value: int) -> bytes:
    return value.to_bytes(8, "little") * 512


class Owner(Liar):
    """Owns pages of a region, and answers who asks for them, sooner or later."""

    def take(self, region: int, page: int) -> None:
        self.tell(wire.Request(region, 1, page, 1, wire.WRITE, wire.FAULT))
        grant = self.hear(wire.Grant)
        assert (grant.start, grant.zero) == (page, True)

    def answer(self, sock: Talker, fetch: wire.Fetch, value: int, **lie: int) -> None:
        data = wire.Data(fetch.region, fetch.generation, fetch.start, fetch.count, fetch.start, fetch.count, fetch.acks)
        sock.send(wire.encode(data._replace(**lie)), page_of(value))


def test_an_answer_of_an_old_generation_or_for_other_pages_is_dropped(cluster: Cluster) -> None:
    with contextlib.ExitStack() as stack:
        liar = Owner(cluster, stack)
        region = liar.ask(wire.Open(0, "lent", 64 * PAGE, PAGE, 0, {"shape": [64, 512], "dtype": "<i8"})).region
        liar.take(region, 9)
        child, sock = cluster.start(read_the_page, 9), liar.to(0)
        assert child.hear() == "ready"
        child.tell()
        fetch = liar.hear(wire.Fetch)
        before = refused_by(cluster, 0)
        for lie in (
            {"generation": (fetch.generation - 1) & 0xFFFFFFFF},
            {"generation": (fetch.generation + 1) & 0xFFFFFFFF},
            {"start": 10, "first": 10},
            {"first": 8},
            {"total": 2},
            {"count": 2},
            {"region": region + 1},
        ):
            liar.answer(sock, fetch, 666, **lie)
        liar.answer(sock, fetch, 41)
        liar.answer(sock, fetch, 666)  # twice
        sock.tell(wire.Ack(region, fetch.generation, 9, liar.number))  # nobody is owed one
        assert child.hear() == 41
        until(lambda: refused_by(cluster, 0) == before + 9, "each lie to be counted once")
        # The page is written by its owner again, and the old answer comes again while the next one is awaited.
        liar.tell(wire.Request(region, 2, 9, 1, wire.WRITE, wire.FAULT))
        assert liar.hear(wire.Grant).acks == 1
        liar.inbox.hear(wire.Ack)
        liar.tell(wire.Done(region, 2, 9, 1))
        child.tell()
        again = liar.hear(wire.Fetch)
        assert again.generation != fetch.generation
        liar.answer(sock, fetch, 666)
        liar.answer(sock, again, 42)
        assert child.result() == [41, 42]
        until(lambda: refused_by(cluster, 0) == before + 10, "the old answer to be counted")
        liar.tell(wire.Close(region, 1), wire.Leave())
        until(lambda: len(cluster.status()["cluster"]["nodes"]) == 2, "the end of its membership")


def test_an_acknowledgement_counts_once_and_what_is_not_owed_never() -> None:
    node = NodeMachine(1)
    node.add_region(1, 512, PAGE)
    node.fault(1, 5, False, "a")
    node.step(wire.Grant(1, 1, 5, 1, 0, True))
    node.fault(1, 5, True, "a")
    node.step(wire.Grant(1, 2, 5, 1, 2, False))
    assert (node.step(wire.Ack(1, 2, 5, 3)), node.late) == ([], 0)
    assert (node.step(wire.Ack(1, 2, 5, 3)), node.late) == ([], 1)  # again
    assert (node.step(wire.Ack(1, 2, 6, 2)), node.late) == ([], 2)  # for another page
    assert (node.step(wire.Ack(1, 1, 5, 2)), node.late) == ([], 3)  # of an old generation
    assert node.step(wire.Ack(1, 2, 5, 2))
    node.fault(1, 7, False, "a")
    assert (node.step(wire.Ack(1, 3, 7, 2)), node.late) == ([], 4)  # nobody acknowledges a read
    assert node.data(wire.Data(1, 3, 7, 1, 7, 1, 0), "page")[0] == Install(1, 7, 1, "page", False, "a")


def test_a_request_never_has_the_number_of_an_open_one() -> None:
    numbers = iter([5, 5, 6, 5, 6, 8])
    node = NodeMachine(1, number=lambda _: next(numbers))
    node.add_region(1, 512, PAGE)
    sent = [effect for page in range(3) for effect in node.fault(1, page, False, "a")]
    assert [effect.message[1] for effect in sent if isinstance(effect, Send)] == [5, 6, 8]


def test_a_flood_of_hurry_is_put_off_once() -> None:
    node = NodeMachine(1)
    node.add_region(1, 512, PAGE)
    node.fault(1, 5, True, "a")
    node.step(wire.Grant(1, 1, 5, 1, 0, True))
    node.step(wire.Fetch(1, 9, 5, 1, 2, 0, False, False))  # waits for the hold of page 5
    for _ in range(1000):
        node.step(wire.Hurry(1, 9, 5, 2))
    assert node.deferred == 2
