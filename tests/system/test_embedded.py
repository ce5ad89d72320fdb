"""The embedded directory and node: what the library is told, and that the three processes go together."""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dsm import launch, local, wire

LIMIT_S = 60


class Embedded:
    """One ``python -m dsm.embedded``, started the way the library does it, or a ``source`` in its place."""

    def __init__(self, path: Path, source: str | None = None) -> None:
        self.socket = path
        argv, environment = launch.program("dsm.embedded")
        if source is not None:
            argv = [sys.executable, "-c", source]
        self._ready, told = os.pipe()
        self.process = subprocess.Popen(
            [*argv, "--socket", str(path), "--ready-fd", str(told)],
            env=environment,
            pass_fds=[told],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        os.close(told)
        self.services: list[int] = []

    def line(self) -> str:
        """What it says on the ready descriptor."""
        assert select.select([self._ready], [], [], LIMIT_S)[0]
        with open(self._ready) as ready:
            said = ready.read()
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children")
        self.services = [int(child) for child in children.read_text().split()] if children.exists() else []
        return said

    def wait(self) -> int:
        """Wait for all three; the exit code of the supervisor."""
        code = self.process.wait(LIMIT_S)
        deadline = time.monotonic() + LIMIT_S
        while any(Path(f"/proc/{pid}/exe").exists() for pid in self.services):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return code


@pytest.fixture
def home() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="t-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def embedded(home: Path) -> Iterator[Embedded]:
    embedded = Embedded(home / "s")
    yield embedded
    for pid in [*embedded.services, embedded.process.pid]:
        if Path(f"/proc/{pid}/exe").exists():
            os.kill(pid, signal.SIGKILL)
    embedded.process.communicate(timeout=LIMIT_S)


def ask(application: socket.socket) -> None:
    """Be sure that the node serves this connection."""
    local.send(application, wire.Query(0, "status", 0, 0, 0))
    assert isinstance(local.receive(application)[0], wire.Answer)


def test_it_serves_and_leaves_with_the_last_application(embedded: Embedded, home: Path) -> None:
    assert embedded.line() == f"ready {home / 's'}\n"
    assert len(embedded.services) == 2
    with local.connect(embedded.socket, 5) as one, local.connect(embedded.socket, 5) as other:
        ask(one)
        ask(other)
        one.close()
        ask(other)
        assert embedded.process.poll() is None
    assert embedded.wait() == 0
    assert list(home.iterdir()) == []


def test_it_lets_go_of_the_applications_output(embedded: Embedded) -> None:
    embedded.line()
    with local.connect(embedded.socket, 5) as application:
        ask(application)
        assert embedded.process.stdout
        assert embedded.process.stdout.read() == b""  # to its end, while the node is serving
        ask(application)


def test_sigterm_cleans_up(embedded: Embedded, home: Path) -> None:
    embedded.line()
    embedded.process.terminate()
    assert embedded.wait() == 0
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("victim", ["supervisor", "directory", "node"])
def test_kill_9_of_one_ends_the_others(embedded: Embedded, home: Path, victim: str) -> None:
    embedded.line()
    with local.connect(embedded.socket, 5) as application:  # so that the node is not idle
        ask(application)
        pids = dict(zip(["directory", "node"], embedded.services, strict=True), supervisor=embedded.process.pid)
        os.kill(pids[victim], signal.SIGKILL)
        assert embedded.wait() == (-signal.SIGKILL if victim == "supervisor" else 1)
    assert list(home.iterdir()) == []


def test_a_second_one_says_that_the_place_is_taken(embedded: Embedded) -> None:
    embedded.line()
    with local.connect(embedded.socket, 5) as application:
        ask(application)
        second = Embedded(embedded.socket)
        assert second.line().startswith("error NodeNameInUse ")
        assert second.wait() == 1
        second.process.communicate()
        ask(application)


def test_a_place_that_cannot_be(home: Path) -> None:
    embedded = Embedded(home / "missing" / "s")
    assert embedded.line().startswith("error InvalidArgument ")
    assert embedded.wait() == 1
    embedded.process.communicate()


def test_what_a_service_wrote_before_it_broke_is_told(home: Path) -> None:
    source = (
        "import sys; from dsm import embedded, launch\n"
        "broken = [sys.executable, '-c', 'raise RuntimeError(\"broken installation\")']\n"
        "launch.program = lambda module: (broken, {})\n"
        "sys.exit(embedded.main())"
    )
    embedded = Embedded(home / "s", source)
    assert re.fullmatch(r"error DirectoryUnreachable .*\(RuntimeError: broken installation\)\n", embedded.line())
    assert embedded.wait() == 1
    embedded.process.communicate()
