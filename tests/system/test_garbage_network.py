"""Garbage over TCP, at the directory and at the nodes: after each kind of it both nodes write and read as before."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import socket
import time
from collections.abc import Callable, Iterable

import pytest
from cluster import Cluster, descriptors, until
from noise import SEED, Probe, lawless, random_messages, strange_head, strange_opening
from talker import Talker, connect, is_closed

from dsm import constants, wire
from dsm.session import HEAD, Session

Frames = Iterable[tuple[bytes, bytes]]
"""Messages, each with page data or none."""


def send_to_directory(cluster: Cluster, sent: Frames) -> list[wire.Message]:
    """Messages from a stranger; what comes back until a question at the end is answered."""
    answers: list[wire.Message] = []
    with Talker(cluster.directory.address) as talker:
        for data, payload in sent:
            talker.send(data, payload)
        talker.tell(wire.Query(77, "status", 0, 0, 0))
        while True:
            answers.append(talker.hear())
            if isinstance(answers[-1], wire.Answer) and answers[-1].ticket == 77:
                return answers


def refused_by_directory(cluster: Cluster) -> int:
    refused: int = cluster.status()["cluster"]["counters"]["rejected"]
    return refused


def test_noise_for_the_directory(cluster: Cluster, probe: Probe) -> None:
    plan = random.Random(SEED)
    noise = [data for data in random_messages(plan, 300) if data]  # nothing at all is no message to a stream
    before = refused_by_directory(cluster)
    payloads = [b"x", bytes(4096), bytes(65536), bytes(constants.EXTENT_BYTES)]
    for sent in (
        [(data, b"") for data in noise],
        [(wire.encode(wire.Query(1, "status", 0, 0, 0)), payload) for payload in payloads],
    ):
        answers = send_to_directory(cluster, sent)
        assert len(answers) == len(sent) + 1
        assert all(isinstance(answer, wire.Failure) for answer in answers[:-1])
        assert refused_by_directory(cluster) == before + len(sent)
        before += len(sent)
        probe()


def test_strangers_at_the_directory(cluster: Cluster, probe: Probe) -> None:
    before = cluster.status()["cluster"]
    answers = send_to_directory(cluster, [(wire.encode(message), b"") for message in lawless(random.Random(SEED))])
    assert {type(answer) for answer in answers[:-1]} == {wire.Fenced}
    probe()
    after = cluster.status()["cluster"]
    assert [region["name"] for region in after["regions"]] == ["probe"]
    assert after["primitives"] == before["primitives"]


QUESTIONS = [
    wire.Query(1, "owners", 1, (1 << 63) - 1, (1 << 32) - 1),
    wire.Query(1, "owners", 1, 0, (1 << 32) - 1),
    wire.Query(1, "owners", 1, 399, 100),
    wire.Query(1, "owners", 1, 1 << 40, 100),
    wire.Query(1, "owners", 9999, 0, 1),
    wire.Query(1, "nonsense", 0, 0, 0),
    wire.Query(1, "\U0010ffff" * 255, 0, 0, 0),
]


def test_questions_that_make_no_sense(cluster: Cluster, probe: Probe) -> None:
    for question in QUESTIONS:
        assert isinstance(send_to_directory(cluster, [(wire.encode(question), b"")])[0], wire.Failure | wire.Answer)
        assert isinstance(cluster.ask(question), wire.Failure | wire.Answer)
        probe()


ADDRESSES = [
    "nonsense", "tcp://", "inproc://x", "tcp://a b:1", "tcp://x/y:5", "tcp://1.2.3.4:*", "tcp://*:5", "tcp://127.0.0.1:1",
]  # fmt: skip


def test_a_member_with_an_address_that_is_none(cluster: Cluster, probe: Probe) -> None:
    """It asks for a page of the others, who have to send it there."""
    for number, address in enumerate(ADDRESSES):
        with Talker(cluster.directory.address) as evil:
            evil.tell(wire.Join(f"evil{number}", address))
            if isinstance(evil.hear(), wire.Welcome):
                for page in (100 + number, 300 + number):  # nobody's
                    evil.tell(wire.Request(1, page, page, 1, wire.READ, wire.FAULT))
                evil.tell(wire.Request(1, 5, 1, 1, wire.READ, wire.FAULT))  # the first page of the first probe
                evil.tell(wire.Leave())
                time.sleep(0.1)
            evil.flush()
        until(lambda: len(cluster.status()["cluster"]["nodes"]) == 2, "the end of its membership")
        probe()


def inboxes(cluster: Cluster) -> list[str]:
    return [node["address"] for node in cluster.status()["cluster"]["nodes"]]


def send_to_nodes(cluster: Cluster, sent: Frames) -> None:
    """Messages to each node, which has to count each once."""
    for number, address in enumerate(inboxes(cluster)):
        before, told = counted(cluster, number), 0
        with Talker(address) as talker:
            for data, payload in sent:
                talker.send(data, payload)
                told += 1
            talker.finish()
        assert counted(cluster, number) == before + told


def counted(cluster: Cluster, node: int) -> int:
    return sum(cluster.status(node)["node"]["counters"].values())


def test_noise_for_the_nodes(cluster: Cluster, probe: Probe) -> None:
    plan = random.Random(SEED)
    noise = random_messages(plan, 300)
    send_to_nodes(cluster, [(data, payload) for data in noise if data for payload in (b"", b"x")])
    probe()


def test_strangers_at_the_nodes(cluster: Cluster, probe: Probe) -> None:
    messages = [wire.encode(message) for message in lawless(random.Random(SEED))]
    payloads = [b"", b"x", bytes(4096), bytes(65536), bytes(65537), bytes(2 << 20)]
    send_to_nodes(cluster, [(data, payload) for data in messages for payload in payloads])
    probe()


# --- connections ----------------------------------------------------------------------------------------------------


def services(cluster: Cluster) -> list[tuple[str, Callable[[], int], int]]:
    """Address, what has been refused, and process: of the directory and of each node."""
    found: list[tuple[str, Callable[[], int], int]] = [
        (cluster.directory.address, lambda: refused_by_directory(cluster), cluster.directory.process.pid)
    ]
    for number, address in enumerate(inboxes(cluster)):
        found.append((address, lambda number=number: counted(cluster, number), cluster.agent(number)))  # type: ignore[misc]
    return found


def test_connections_on_which_no_conversation_comes_about(cluster: Cluster, probe: Probe) -> None:
    """Noise, half hellos, forgotten conversations, frames longer than any: counted once each, and nothing stays."""
    plan = random.Random(SEED)
    hello = Session(b"x" * 16).hello(False)
    for address, refused, pid in services(cluster):
        before, kept = refused(), descriptors(pid)
        texts = [b"", b"\xff", hello[:-1], *(strange_opening(plan) for _ in range(50))]
        texts += [Session(os.urandom(16)).hello(False) + strange_head(plan) for _ in range(50)]
        held = [connect(address) for _ in texts]
        for sock, text in zip(held, texts, strict=True):
            with contextlib.suppress(ConnectionError):
                sock.sendall(text)
        probe()
        for sock in held:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_WR)
            assert is_closed(sock)
            sock.close()
        after = before + len(texts)
        until(lambda refused=refused, after=after: refused() >= after, "all of it to be counted")  # type: ignore[misc]
        assert refused() == after
        until(lambda pid=pid, kept=kept: descriptors(pid) <= kept, "the connections to be closed")  # type: ignore[misc]
        probe()


def test_who_says_nothing_is_not_waited_for(cluster: Cluster, probe: Probe) -> None:
    """Nor who says half of what a conversation begins with; who has begun one may be silent."""
    hello = Session(b"x" * 16).hello(False)
    for address, refused, _ in services(cluster):
        before = refused()
        with connect(address) as silent, connect(address) as half, Talker(address) as quiet:
            half.sendall(hello[:5])
            assert is_closed(silent) and is_closed(half)  # by the service, of its own
            until(lambda refused=refused, many=before + 2: refused() >= many, "both to be counted")  # type: ignore[misc]
            assert refused() == before + 2
            if address == cluster.directory.address:
                quiet.flush()
        probe()


FEW = 4
"""Connections that two nodes may yet make to each other."""


@pytest.mark.parametrize("which", ["directory", "node"])
@pytest.mark.parametrize("spare", [30, 1000])
def test_very_many_who_say_nothing(cluster: Cluster, probe: Probe, which: str, spare: int) -> None:
    """With few descriptors left or many: they make room for each other, and for whoever has something to say."""
    for _ in range(3):
        probe()  # by now the nodes are connected
    address, refused, pid = services(cluster)[which == "node"]
    before, kept = refused(), descriptors(pid)
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (kept + spare, limits[1]))
    probe.asks_for_the_status = False  # which needs a descriptor
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(connect(address)) for _ in range(700)]
        with Talker(address):
            probe()
        until(lambda: descriptors(pid) <= kept + FEW, "the others to be given up")  # by the service, of its own
    resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    until(lambda: refused() >= before + len(held), "all of them to be counted")
    assert refused() == before + len(held)
    probe.asks_for_the_status = True
    probe()


@pytest.mark.parametrize("which", ["directory", "node"])
def test_more_conversations_than_descriptors(cluster: Cluster, probe: Probe, which: str) -> None:
    """Whoever is connected goes on; when some have gone, others can connect again."""
    for _ in range(3):
        probe()  # by now the nodes are connected
    address, _, pid = services(cluster)[which == "node"]
    kept = descriptors(pid)
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (kept + 30, limits[1]))
    probe.asks_for_the_status = False
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(connect(address)).sendall(Session(os.urandom(16)).hello(False))
        until(lambda: descriptors(pid) >= kept + 30, "the descriptors to run out")
        for _ in range(5):
            probe()
            time.sleep(0.3)  # the services look after their connections meanwhile
    until(lambda: descriptors(pid) <= kept + FEW, "the connections to be closed")
    resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    Talker(address).close()
    probe.asks_for_the_status = True
    probe()


def test_conversations_without_end_are_bounded(cluster: Cluster, probe: Probe) -> None:
    """Thousands that are begun, and whose connection then breaks: their memory is not kept."""
    for address, refused, pid in services(cluster):
        before, kept = refused(), descriptors(pid)
        for number in range(3000):
            with connect(address) as sock:
                sock.sendall(Session(number.to_bytes(16)).hello(False))
                if number % 100 == 0:
                    sock.shutdown(socket.SHUT_WR)
                    is_closed(sock)
        until(lambda pid=pid, kept=kept: descriptors(pid) <= kept, "the connections to be closed")  # type: ignore[misc]
        # The last of a burst, at the latest, may be closed by a reset before its hello was read.
        assert refused() - before < 3000
        probe()


def test_page_data_without_end(cluster: Cluster, probe: Probe) -> None:
    """Many announce the longest frame there is, and send none of it: memory is taken for what comes."""
    for address, _, pid in services(cluster):
        before = memory_kib(pid)
        with contextlib.ExitStack() as stack:
            for _ in range(200):
                talker = stack.enter_context(Talker(address))
                talker.sock.sendall(HEAD.pack(constants.CONTROL_BYTES_MAX, constants.EXTENT_BYTES, 0) + b"x")
            probe()
            assert memory_kib(pid) - before < 200 * 200
        probe()


def memory_kib(pid: int) -> int:
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))


def test_a_message_larger_than_any(cluster: Cluster, probe: Probe) -> None:
    large = bytes(5 << 20)
    for address, refused, _ in services(cluster):
        before = refused()
        with Talker(address) as talker:
            with contextlib.suppress(ConnectionError):
                talker.send(large)
            assert is_closed(talker.sock)
        until(lambda refused=refused, before=before: refused() == before + 1, "it to be counted")  # type: ignore[misc]
        probe()
