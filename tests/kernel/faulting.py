"""The test's side of `faulting_program.py`: starts the applications, sees every fault they take, and ends them."""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import dsm
from dsm import memory
from dsm.constants import PAGE_BYTES
from dsm.uffd import Outcome, Userfaultfd

PAGES: Final = 96
"""More than one read of a userfaultfd returns."""
ALL: Final = PAGES * PAGE_BYTES
PATIENCE_S: Final = 20.0
"""After this long, what was waited for will not come."""
GRACE_S: Final = 0.05
"""What has not come after this long is taken not to come."""

_PROGRAM: Final = Path(__file__).with_name("faulting_program.py")
_ENVIRONMENT: Final = {**os.environ, "PYTHONPATH": str(Path(dsm.__file__).parent.parent)}

Fault = tuple[int, int]
"""Flags, page."""


class Application:
    """A process that maps the memfd. ``told``: every fault it has taken so far, in order."""

    def __init__(self, memfd: int, device: int, user: int = 0) -> None:
        self.connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.connection.settimeout(PATIENCE_S)
        fds = (theirs.fileno(), memfd, device)
        command = [sys.executable, str(_PROGRAM), *map(str, (*fds, PAGES, user))]
        self.process = subprocess.Popen(command, pass_fds=fds, env=_ENVIRONMENT)
        theirs.close()
        self.told: list[Fault] = []
        self.memfd = memfd
        self.uffd = self.receive_userfaultfd()

    def receive_userfaultfd(self) -> Userfaultfd:
        """The descriptor that the process (or its forked child) hands over."""
        data, fds, _, _ = socket.recv_fds(self.connection, 8, 1)
        self.base: int = struct.unpack("<Q", data)[0]
        return Userfaultfd(fds[0])

    def say(self, command: str) -> None:
        self.connection.send(command.encode())

    def answer(self) -> str:
        """The answer, which must come without any further fault."""
        if self.connection.fileno() not in self._readable(PATIENCE_S):
            raise AssertionError(f"no answer, but faults: {self._collect() or 'none'}")
        return self.connection.recv(64).decode()

    def ask(self, command: str) -> str:
        self.say(command)
        return self.answer()

    def fault(self) -> Fault:
        """The one fault that the process takes now."""
        readable = self._readable(PATIENCE_S)
        assert readable == [self.uffd.fileno()], "an answer came instead of a fault" if readable else "no fault came"
        (fault,) = self._collect()
        return fault

    def silent(self) -> bool:
        """Neither an answer nor a fault comes: a process that was told to touch something is blocked."""
        return not self._readable(GRACE_S)

    def _readable(self, timeout_s: float) -> list[int]:
        watched = [fd for fd in (self.connection.fileno(), self.uffd.fileno()) if fd >= 0]
        return select.select(watched, [], [], timeout_s)[0]

    def _collect(self) -> list[Fault]:
        new = [(flags, (address - self.base) // PAGE_BYTES) for flags, address in self.uffd.faults()]
        self.told += new
        return new

    def waiting(self, count: int) -> None:
        """Returns once so many faults wait to be read (proc(5), fdinfo)."""
        deadline = time.monotonic() + PATIENCE_S
        info = Path(f"/proc/self/fdinfo/{self.uffd.fileno()}")
        while (found := re.search(r"pending:\s*(\d+)", info.read_text())) and int(found.group(1)) != count:
            assert time.monotonic() < deadline, f"{found.group(1)} faults wait, {count} were expected"
            time.sleep(0.001)

    # -- what a node agent does ---------------------------------------------------------------------------

    def at(self, page: int) -> int:
        return self.base + page * PAGE_BYTES

    def protect(self, page: int = 0, count: int = PAGES) -> None:
        assert self.uffd.protect(self.at(page), count * PAGE_BYTES) is Outcome.DONE

    def unprotect(self, page: int) -> None:
        assert self.uffd.unprotect(self.at(page), PAGE_BYTES) is Outcome.DONE

    def wake(self, page: int) -> None:
        assert self.uffd.wake(self.at(page), PAGE_BYTES) is Outcome.DONE

    def copy(self, page: int, source: memory.Staging, *, protect: bool) -> Outcome:
        return self.uffd.copy(self.at(page), source.address, len(source.buffer), protect)

    def unread_faults(self) -> list[Fault]:
        return self._collect() if self.uffd.fileno() >= 0 else []

    # -- its end ------------------------------------------------------------------------------------------

    def exit_code(self) -> int:
        """How the process ended by itself: minus the signal that killed it."""
        return self.process.wait(PATIENCE_S)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait(PATIENCE_S)
        self.connection.close()
        self.uffd.close()


def extract(page: int, memfd: int, applications: list[Application]) -> bytes:
    """Protect, read, punch: the page leaves every process, and nobody can have changed it after it was read."""
    for application in applications:
        application.protect(page, 1)
    data = os.pread(memfd, PAGE_BYTES, page * PAGE_BYTES)
    memory.punch_hole(memfd, page * PAGE_BYTES, PAGE_BYTES)
    return data


def filled(*values: int) -> memory.Staging:
    """As many pages, each full of one value."""
    source = memory.Staging(len(values) * PAGE_BYTES)
    source.buffer[:] = b"".join(bytes([value]) * PAGE_BYTES for value in values)
    return source


def pages_present(memfd: int) -> list[int]:
    return [
        page for start, stop in memory.present(memfd, ALL) for page in range(start // PAGE_BYTES, stop // PAGE_BYTES)
    ]
