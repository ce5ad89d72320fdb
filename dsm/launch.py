"""Start the services as programs of their own and end them: ``python -m directory``, ``python -m nodes``.

The only place where the library meets the services. It knows their command lines and the one line with which they
answer on the ready descriptor (``ready <address>`` or ``error <ErrorName> <text>``); it never imports them.
"""

from __future__ import annotations

import os
import select
import signal
import site
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from dsm import errors
from dsm.constants import START_TIMEOUT_S, STOP_TIMEOUT_S

LOOPBACK: Final = "tcp://127.0.0.1:*"
"""Where a service listens that only this host uses: any free port."""

_LINE_BYTES_MAX: Final = 8192
"""A ready or error line is shorter: an error name, and a text of at most 4096 characters."""

_UNREACHABLE: Final = {"directory": errors.DirectoryUnreachable, "nodes": errors.NodeUnreachable}
"""What it means for the caller when the program of this name does not come up and does not say why."""

Output = int | IO[bytes] | IO[str] | None


@dataclass
class Service:
    """A service that is running and has said that it is ready; ``address`` is where it listens."""

    process: subprocess.Popen[bytes]
    address: str

    def stop(self) -> None:
        """Ask it to leave (SIGTERM), kill it after ``STOP_TIMEOUT_S``. Returns when it is gone; may be repeated."""
        stop(self.process)


def program(module: str) -> tuple[list[str], dict[str, str]]:
    """The command and the environment that run ``module`` from where this very ``dsm`` was imported.

    ``-P`` keeps the working directory out of the import path: a user's own folder named ``directory`` must not be
    started in place of the service.
    """
    environment = dict(os.environ)
    root = str(Path(__file__).resolve().parent.parent)
    if root not in (*site.getsitepackages(), site.getusersitepackages()):
        path = [root, *filter(None, [environment.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(path)
    return [sys.executable, "-P", "-m", module], environment


def start_directory(
    listen: str = LOOPBACK,
    *,
    shards: int = 1,
    shard_of: str | None = None,
    state: Path | None = None,
    key: Path | None = None,
    insecure: bool = False,
    with_parent: bool = True,
    trace: Path | None = None,
    stderr: Output = None,
) -> Service:
    """Start a directory, the first of ``shards``, or one more of the one at ``shard_of``, and wait until it answers.

    ``state``: the file from which another goes on if this one is killed, or ends.
    ``key``: that of the cluster, by default the file DSM_KEY. ``insecure``: none, though others can reach ``listen``.
    ``trace``: the file for its record of what it did when (:mod:`dsm.trace`).
    ``with_parent``: it ends when the *thread* that called this ends (the kernel's rule for PR_SET_PDEATHSIG).
    Raises the error the directory names, or :class:`~dsm.errors.DirectoryUnreachable` if it dies or stays silent.
    """
    arguments = ["--listen", listen, *_traced(trace), *_sealed(key, insecure)]
    if shards > 1:
        arguments += ["--shards", str(shards)]
    if shard_of is not None:
        arguments += ["--shard-of", shard_of]
    if state is not None:
        arguments += ["--state", str(state)]
    if with_parent:
        arguments.append("--with-parent")
    return _start("directory", arguments, stderr)


def start_node(
    directory: str,
    *,
    listen: str = LOOPBACK,
    socket: Path,
    name: str | None = None,
    key: Path | None = None,
    insecure: bool = False,
    with_parent: bool = True,
    exit_when_idle: bool = False,
    trace: Path | None = None,
    stderr: Output = None,
) -> Service:
    """Start a node agent that serves applications on ``socket`` and wait until it has joined ``directory``.

    ``key``, ``insecure``, ``with_parent`` and ``trace`` as for :func:`start_directory`. ``exit_when_idle``: it leaves
    once its last application has gone.
    Raises the error the node names, or :class:`~dsm.errors.NodeUnreachable` if it dies or stays silent.
    """
    arguments = ["--directory", directory, "--listen", listen, "--socket", str(socket), *_traced(trace)]
    arguments += _sealed(key, insecure)
    if name is not None:
        arguments += ["--name", name]
    if with_parent:
        arguments.append("--with-parent")
    if exit_when_idle:
        arguments.append("--exit-when-idle")
    return _start("nodes", arguments, stderr)


def _traced(trace: Path | None) -> list[str]:
    return [] if trace is None else ["--trace", str(trace)]


def _sealed(key: Path | None, insecure: bool) -> list[str]:
    return ["--insecure"] if insecure else [] if key is None else ["--key", str(key)]


def stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, ``STOP_TIMEOUT_S``, SIGKILL. Returns when the process is gone."""
    if process.poll() is not None:
        return
    process.terminate()
    if not _ended_within(process, STOP_TIMEOUT_S):
        process.kill()
    process.wait()


def how_it_ended(returncode: int) -> str:
    """In words: ``"exit code 3"``, ``"killed by SIGKILL"``. ``returncode`` as :mod:`subprocess` gives it."""
    if returncode >= 0:
        return f"exit code {returncode}"
    try:
        return f"killed by {signal.Signals(-returncode).name}"
    except ValueError:  # a real-time signal has no name
        return f"killed by signal {-returncode}"


def _start(module: str, arguments: Sequence[str], stderr: Output) -> Service:
    command, environment = program(module)
    ready, told = os.pipe()
    try:
        try:
            process = subprocess.Popen(
                [*command, *arguments, "--ready-fd", str(told)],
                env=environment,
                pass_fds=[told],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # the caller's standard output belongs to its own program
                stderr=stderr,
                start_new_session=True,  # a terminal's Ctrl-C is for the applications, which need their node to end
            )
        finally:
            os.close(told)
        return _when_ready(module, process, ready)
    finally:
        os.close(ready)


def _when_ready(module: str, process: subprocess.Popen[bytes], ready: int) -> Service:
    try:
        word, _, rest = _ready_line(process, ready).partition(" ")
        if word == "ready":
            return Service(process, rest)
        if word == "error":
            name, _, text = rest.partition(" ")
            raise errors.from_wire(name, text)
        # Its last descriptor closes a moment before it can be waited for.
        how = how_it_ended(process.returncode) if _ended_within(process, 1.0) else f"silent for {START_TIMEOUT_S:g} s"
        raise _UNREACHABLE[module](f"python -m {module} did not start ({how}); what it wrote on stderr says more")
    except BaseException:
        stop(process)
        raise


def _ready_line(process: subprocess.Popen[bytes], ready: int) -> str:
    """What the service said, without the newline; empty if it died or said nothing in time."""
    deadline = time.monotonic() + START_TIMEOUT_S
    said = b""
    ended = os.pidfd_open(process.pid)
    try:
        poll = select.poll()
        poll.register(ready, select.POLLIN)
        poll.register(ended, select.POLLIN)  # a child of the service may hold the pipe open after its death
        while b"\n" not in said and len(said) < _LINE_BYTES_MAX:
            events = dict(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))
            if ready not in events:
                break
            chunk = os.read(ready, _LINE_BYTES_MAX)
            if not chunk:
                break
            said += chunk
    finally:
        os.close(ended)
    return said.partition(b"\n")[0].decode(errors="replace")


def _ended_within(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Wait without polling (``Popen.wait`` with a time-out sleeps in a loop)."""
    if process.poll() is not None:
        return True
    ended = os.pidfd_open(process.pid)
    try:
        poll = select.poll()
        poll.register(ended, select.POLLIN)
        poll.poll(seconds * 1000)
    finally:
        os.close(ended)
    return process.poll() is not None
