"""``python -m dsm.embedded``: a directory and one node for this host, for applications that found no agent.

Serves all processes of this user and leaves with the last of them (``--exit-when-idle`` of the node). Whichever of the
three processes is killed, the other two go: the services end with this one (``--with-parent``), it waits for both.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from dsm import launch
from dsm.errors import DsmError

_STOPPING = {signal.SIGTERM, signal.SIGINT}


def main(arguments: Sequence[str] | None = None) -> int:
    """Start, say ``ready <socket path>`` or ``error <ErrorName> <text>`` on the ready descriptor, wait, clean up."""
    parser = argparse.ArgumentParser(prog="python -m dsm.embedded", description=__doc__)
    parser.add_argument("--socket", type=Path, required=True, help="where the node listens for applications")
    parser.add_argument("--ready-fd", type=int, required=True, help="descriptor for the one line")
    options = parser.parse_args(arguments)
    _leave_the_application()
    for number in _STOPPING:
        signal.signal(number, _stop)
    with tempfile.TemporaryFile() as log:
        try:
            return _serve(options.socket.absolute(), options.ready_fd, log)
        except DsmError as error:
            _tell(options.ready_fd, f"error {type(error).__name__} {error} {_last_line(log)}")
            return 1


def _leave_the_application() -> None:
    """Give up the session and the standard streams of the application that happened to be first.

    Others use this process after that one has ended, and whoever reads its output must see the end of it.
    """
    with contextlib.suppress(PermissionError):  # it leads a session already
        os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)


def _serve(socket: Path, ready_fd: int, log: IO[bytes]) -> int:
    with contextlib.ExitStack() as started:
        directory = launch.start_directory(stderr=log)
        started.callback(directory.stop)
        node = launch.start_node(directory.address, socket=socket, exit_when_idle=True, stderr=log)
        started.callback(_remove, socket, socket.stat().st_ino)
        started.callback(node.stop)
        started.callback(signal.pthread_sigmask, signal.SIG_BLOCK, _STOPPING)  # cleaning up is not interrupted
        _tell(ready_fd, f"ready {socket}")
        _wait_for_any(node.process.pid, directory.process.pid)
        return 0 if node.process.poll() == 0 else 1


def _remove(socket: Path, inode: int) -> None:
    """A node that was killed leaves its file behind; another agent's at the same place is not ours to remove."""
    with contextlib.suppress(FileNotFoundError):
        if socket.stat().st_ino == inode:
            socket.unlink()


def _wait_for_any(*pids: int) -> None:
    poll = select.poll()
    ended = [os.pidfd_open(pid) for pid in pids]
    try:
        for fd in ended:
            poll.register(fd, select.POLLIN)
        poll.poll()
    finally:
        for fd in ended:
            os.close(fd)


def _stop(number: int, _frame: object) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    raise SystemExit(0)


def _tell(ready_fd: int, line: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # the application has gone; the node will find that it is idle
        os.write(ready_fd, " ".join(line.split()).encode() + b"\n")
    os.close(ready_fd)


def _last_line(log: IO[bytes]) -> str:
    log.seek(0)
    lines = log.read().decode(errors="replace").split("\n")
    return next((f"({line.strip()})" for line in reversed(lines) if line.strip()), "")


if __name__ == "__main__":
    sys.exit(main())
