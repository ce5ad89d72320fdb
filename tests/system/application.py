"""What the applications of the system tests have in common; the tests import the names, their processes run them."""

from __future__ import annotations

import faulthandler
import json
import mmap
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

from dsm import local, memory, wire
from dsm.uffd import Userfaultfd


def main(function: Callable[..., Any], seconds: float) -> None:
    """Run the function with the arguments of the command line and say what it returns."""
    # A C thread that does not need the GIL: it shows where a process hangs that is blocked in a page fault.
    faulthandler.dump_traceback_later(seconds, exit=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background may ignore it
    say(function(*json.loads(sys.argv[1])))


def say(value: object = None) -> None:
    """Tell the test something."""
    os.write(1, json.dumps(value).encode() + b"\n")


def hear() -> Any:
    """Wait for the test to say something."""
    return json.loads(sys.stdin.readline())


def raised(action: Callable[[], object]) -> list[Any]:
    """The names of an error's classes up to ``Exception``, and its text; ``[[], ""]`` if none is raised."""
    try:
        action()
    except Exception as error:
        return [[kind.__name__ for kind in type(error).__mro__ if issubclass(kind, Exception)], str(error)]
    return [[], ""]


def attach_by_hand(sock: socket.socket, name: str, size: int) -> tuple[mmap.mmap, Userfaultfd]:
    """What ``dsm.attach`` does, on a connection of the test's own; managed while the descriptor is open."""
    local.send(sock, wire.Attach(name, size, 0, 0, {}))
    answer, fds = local.receive(sock)
    assert isinstance(answer, wire.Attached), answer
    return map_by_hand(sock, fds)


def map_by_hand(sock: socket.socket, fds: list[int]) -> tuple[mmap.mmap, Userfaultfd]:
    """The second half of it, with the descriptors that came with ``Attached``."""
    length = os.fstat(fds[0]).st_size
    pages = memory.map_shared(fds[0], length)
    uffd = Userfaultfd.create(fds[1] if len(fds) > 1 else None)
    uffd.register(memory.address_of(pages), length)
    local.send(sock, wire.Mapped(memory.address_of(pages)), [uffd.fileno()])
    assert local.receive(sock) == (wire.Ready(), [])
    local.close_all(fds)
    return pages, uffd
