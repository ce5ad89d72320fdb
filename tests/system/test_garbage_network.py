"""Garbage over TCP, at the directory and at the nodes: after each kind of it both nodes write and read as before."""

from __future__ import annotations

import contextlib
import random
import socket
import time

import zmq
from cluster import LIMIT_S, Cluster, until
from noise import SEED, Probe, lawless, random_messages

from dsm import transport, wire


def send_to_directory(cluster: Cluster, sent: list[list[bytes]]) -> list[wire.Message]:
    """Multipart messages from a stranger; what comes back until a question at the end is answered."""
    answers = []
    with transport.context() as context, transport.dealer(context, cluster.directory.address) as sock:
        for frames in sent:
            sock.send_multipart(frames)
        sock.send(wire.encode(wire.Query(77, "status", 0, 0, 0)))
        while True:
            assert sock.poll(int(LIMIT_S * 1000))
            answers.append(wire.decode(sock.recv()))
            if isinstance(answers[-1], wire.Answer) and answers[-1].ticket == 77:
                return answers


def test_noise_for_the_directory(cluster: Cluster, probe: Probe) -> None:
    plan = random.Random(SEED)
    noise = random_messages(plan, 300)
    answers = send_to_directory(cluster, [[data] for data in noise])
    assert len(answers) == len(noise) + 1
    assert all(isinstance(answer, wire.Failure) for answer in answers[:-1])
    probe()
    frames = [[plan.choice(noise) for _ in range(plan.randrange(2, 6))] for _ in range(50)]
    frames += [[wire.encode(wire.Leave())] * 2, [b"", b""], [b"", wire.encode(wire.Heartbeat(1))], [b"x"] * 1000]
    send_to_directory(cluster, frames)
    probe()


def test_strangers_at_the_directory(cluster: Cluster, probe: Probe) -> None:
    before = cluster.status()["cluster"]
    answers = send_to_directory(cluster, [[wire.encode(message)] for message in lawless(random.Random(SEED))])
    assert {type(answer) for answer in answers[:-1]} == {wire.Fenced}
    probe()
    after = cluster.status()["cluster"]
    assert [region["name"] for region in after["regions"]] == ["probe"]
    assert (after["locks"], after["barriers"]) == (before["locks"], before["barriers"])


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
        assert isinstance(send_to_directory(cluster, [[wire.encode(question)]])[0], wire.Failure | wire.Answer)
        assert isinstance(cluster.ask(question), wire.Failure | wire.Answer)
        probe()


ADDRESSES = [
    "nonsense", "tcp://", "inproc://x", "tcp://a b:1", "tcp://x/y:5", "tcp://1.2.3.4:*", "tcp://*:5", "tcp://127.0.0.1:1",
]  # fmt: skip


def test_a_member_with_an_address_that_is_none(cluster: Cluster, probe: Probe) -> None:
    """It asks for a page of the others, who have to send it there."""
    for number, address in enumerate(ADDRESSES):
        with transport.context() as context, transport.dealer(context, cluster.directory.address) as sock:
            sock.send(wire.encode(wire.Join(f"evil{number}", address)))
            assert sock.poll(int(LIMIT_S * 1000))
            if isinstance(wire.decode(sock.recv()), wire.Welcome):
                for page in (100 + number, 300 + number):  # nobody's
                    sock.send(wire.encode(wire.Request(1, page, page, 1, wire.READ, wire.FAULT)))
                sock.send(
                    wire.encode(wire.Request(1, 5, 1, 1, wire.READ, wire.FAULT))
                )  # the first page of the first probe
                sock.send(wire.encode(wire.Leave()))
                time.sleep(0.1)
        until(lambda: len(cluster.status()["cluster"]["nodes"]) == 2, "the end of its membership")
        probe()


def inboxes(cluster: Cluster) -> list[str]:
    return [node["address"] for node in cluster.status()["cluster"]["nodes"]]


def send_to_nodes(cluster: Cluster, sent: list[list[bytes]]) -> None:
    """Multipart messages to the inbox of each node, and wait until each has counted one more."""
    with transport.context() as context:
        for number, address in enumerate(inboxes(cluster)):
            before = counted(cluster, number)
            sock = transport.outbox(context, address, bulk=False)
            sock.linger = 10_000
            for frames in sent:
                sock.send_multipart(frames)
            sock.close()
            until(lambda number=number, before=before: counted(cluster, number) > before, "the last of it")  # type: ignore[misc]


def counted(cluster: Cluster, node: int) -> int:
    return sum(cluster.status(node)["node"]["counters"].values())


def test_noise_for_the_nodes(cluster: Cluster, probe: Probe) -> None:
    plan = random.Random(SEED)
    noise = random_messages(plan, 300)
    send_to_nodes(cluster, [[data] for data in noise])
    probe()
    frames = [[plan.choice(noise) for _ in range(plan.randrange(2, 6))] for _ in range(50)]
    send_to_nodes(cluster, [*frames, [b"x"] * 1000, [b""], [b"", b""]])
    probe()


def test_strangers_at_the_nodes(cluster: Cluster, probe: Probe) -> None:
    messages = [wire.encode(message) for message in lawless(random.Random(SEED))]
    payloads = [b"", b"x", bytes(4096), bytes(65536), bytes(65537), bytes(2 << 20)]
    send_to_nodes(cluster, [[data] for data in messages])
    probe()
    send_to_nodes(cluster, [[data, payload] for data in messages for payload in payloads])
    probe()
    send_to_nodes(cluster, [[data, bytes(4096), data] for data in messages])
    probe()


def tcp(address: str) -> socket.socket:
    host, port = address.removeprefix("tcp://").rsplit(":", 1)
    return socket.create_connection((host, int(port)), LIMIT_S)


def test_what_is_not_even_zeromq(cluster: Cluster, probe: Probe) -> None:
    plan = random.Random(SEED)
    addresses = [cluster.directory.address, *inboxes(cluster)]
    greeting = b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\0NULL" + bytes(48)
    texts = [b"GET / HTTP/1.1\r\n\r\n", plan.randbytes(5000), greeting, greeting + plan.randbytes(500), b"\xff", b""]
    for address in addresses:
        held = [tcp(address) for _ in texts]
        for sock, text in zip(held, texts, strict=True):
            with contextlib.suppress(ConnectionError):
                sock.sendall(text)
        probe()
        for sock in held:
            sock.close()
        for _ in range(100):
            tcp(address).close()
        probe()


def test_a_message_larger_than_any(cluster: Cluster, probe: Probe) -> None:
    large = bytes(5 << 20)
    for kind, address in [(zmq.DEALER, cluster.directory.address), *((zmq.PUSH, inbox) for inbox in inboxes(cluster))]:
        with transport.context() as context, context.socket(kind) as sock:
            sock.linger = 2000
            sock.connect(address)
            sock.send(large)
        probe()
