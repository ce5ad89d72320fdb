"""A cluster with a key: what is said between its services nobody else can read, join or disturb."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import LIMIT_S, TREE, Cluster, until

import dsm
from dsm import asking, errors, launch, seal, wire
from dsm.address import port_of
from dsm.seal import Seal

SECRET = "what nobody else is to read"


@pytest.fixture(params=[1, 2], ids=["one shard", "two shards"])
def sealed(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    cluster = Cluster(2, request.param, sealed=True)
    try:
        yield cluster
        cluster.check()
    finally:
        cluster.clean()


def scan_and_count(rank: int, ranks: int) -> list[int]:
    """Much data in both directions, and small messages at the same time."""
    region = dsm.attach("scanned", shape=(ranks, 4096, 512), dtype="i8")
    counted = dsm.attach("counted", shape=(8, 512), dtype="i8")
    barrier, lock = dsm.Barrier("turn", ranks), dsm.Lock("counted")
    region.array[rank] = rank + 1
    barrier.wait()
    other = (rank + 1) % ranks
    wrong = int((region.array[other] != other + 1).sum())
    for _ in range(100):
        with lock:
            counted.array[0, 0] += 1
    barrier.wait()
    return [wrong, int(counted.array[0, 0])]


def test_everything_works_with_a_key(sealed: Cluster) -> None:
    assert sealed.everywhere(scan_and_count) == [[0, 200], [0, 200]]


def test_a_stranger_is_refused_and_counted(sealed: Cluster, tmp_path: Path) -> None:
    other = tmp_path / "other"
    seal.make(other)
    address = sealed.directory.address

    def rejected() -> int:
        status = asking.ask(address, wire.Query(0, "status", 0, 0, 0), LIMIT_S, sealed.seal)
        count: int = status["counters"]["rejected"]
        return count

    before = rejected()
    for stranger in (None, Seal(other)):  # in plain text; with another key
        with pytest.raises(errors.DirectoryUnreachable, match="the same: --key"):
            asking.ask(address, wire.Query(0, "status", 0, 0, 0), 0.3, stranger)
    with socket.create_connection(("127.0.0.1", port_of(address))) as sock:
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n" * 10)
        sock.settimeout(LIMIT_S)
        with contextlib.suppress(ConnectionResetError):
            while sock.recv(4096):  # an alert, and the end
                pass
    until(lambda: rejected() >= before + 3, "all of them to be counted")
    with pytest.raises(errors.DirectoryUnreachable):
        launch.start_node(address, socket=tmp_path / "n.sock", name="stranger", key=other)
    assert sealed.everywhere(scan_and_count) == [[0, 200], [0, 200]]


class Tap:
    """Passes on what is said to ``port``, and keeps it."""

    def __init__(self, port: int) -> None:
        self.heard = bytearray()
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._stop, self._stopped = os.pipe()
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        pairs: dict[socket.socket, socket.socket] = {}
        while True:
            ready = set(
                select.select([self._stop, self._listener.fileno(), *[one.fileno() for one in pairs]], [], [])[0]
            )
            if self._stop in ready:
                break
            for sock in [each for each in (self._listener, *pairs) if each.fileno() in ready]:
                if sock is self._listener:
                    near = self._listener.accept()[0]
                    far = socket.create_connection(("127.0.0.1", self._to))
                    pairs |= {near: far, far: near}
                elif data := sock.recv(65536):
                    self.heard += data
                    pairs[sock].sendall(data)
                else:
                    other = pairs.pop(sock)
                    pairs.pop(other, other).close()
                    other.close()
        for sock in (*pairs, self._listener):
            sock.close()

    def close(self) -> None:
        os.close(self._stopped)
        self._thread.join(LIMIT_S)
        os.close(self._stop)


def unlink(name: str) -> None:
    dsm.attach(name, shape=(8,), dtype="i8").unlink()


@pytest.mark.parametrize("with_key", [False, True], ids=["plain", "sealed"])
def test_nobody_reads_what_is_said(with_key: bool) -> None:
    cluster = Cluster(1, sealed=with_key)
    tap = Tap(port_of(cluster.directory.address))
    try:
        node = launch.start_node(tap.address, socket=cluster.path(1), name="tapped", key=cluster.key)
        cluster.nodes.append(node)
        cluster.run(unlink, SECRET, node=1)
        assert (SECRET.encode() in tap.heard) != with_key
        cluster.check()
    finally:
        cluster.clean()
        tap.close()


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    key = tmp_path / "key"
    seal.make(key)
    assert key.stat().st_mode & 0o777 == 0o600
    key.chmod(0o640)
    with pytest.raises(errors.InvalidArgument, match=r"others can read the key .* chmod 600"):
        launch.start_directory(key=key)


def test_what_is_no_key_is_refused(tmp_path: Path) -> None:
    for text in ("", "-----BEGIN CERTIFICATE-----\nabc\n-----END CERTIFICATE-----\n"):
        key = tmp_path / "key"
        key.touch(0o600)
        key.write_text(text)
        with pytest.raises(errors.InvalidArgument, match="is no key of"):
            launch.start_directory(key=key)


def test_who_listens_to_other_hosts_needs_a_key_or_says_that_it_wants_none() -> None:
    with pytest.raises(errors.InvalidArgument, match=r"make a key with `dsm keygen FILE`.*--insecure"):
        launch.start_directory("tcp://0.0.0.0:*")
    launch.start_directory("tcp://0.0.0.0:*", insecure=True).stop()


def keygen(path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dsm", "keygen", str(path)],
        env=os.environ | {"PYTHONPATH": str(TREE)},
        capture_output=True,
        text=True,
    )


def test_keygen_writes_a_key_and_never_over_one(tmp_path: Path) -> None:
    path = tmp_path / "cluster.key"
    assert keygen(path).returncode == 0
    before = path.read_bytes()
    again = keygen(path)
    assert (again.returncode, path.read_bytes()) == (1, before)
    assert "exists already" in again.stderr
    launch.start_directory("tcp://0.0.0.0:*", key=path).stop()
