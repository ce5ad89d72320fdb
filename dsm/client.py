"""Conversations with the node agent: finding it, starting one where there is none, asking one thing at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from dsm import errors, forking, local, wire
from dsm.constants import CONNECT_TIMEOUT_S, NAME_CHARS_MAX, START_TIMEOUT_S

if TYPE_CHECKING:
    import socket
    import subprocess

ANSWER_TIMEOUT_S: Final = 2 * CONNECT_TIMEOUT_S
"""How long an agent may take to answer what needs no waiting: longer than it waits for its directory itself."""

_POLL_S_MAX: Final = 86400.0
"""poll(2) counts milliseconds in an int: longer waits are made of several."""

_LINE_BYTES_MAX: Final = 8192

_Kind = TypeVar("_Kind", bound=tuple[Any, ...])


class Connection:
    """One conversation with the agent. Threads take turns; an answer comes for each question, in order."""

    __slots__ = ("__weakref__", "_answers", "_first", "_number", "_questions", "_sock", "_turn", "path")
    # A signal handler may raise between any two calls: what was sent and what has come is counted by the very call of C
    # that sends or receives, or a late answer would be taken for the answer to the next question.

    def __init__(self, path: Path, sock: socket.socket) -> None:
        self.path = path
        self._sock = sock
        self._turn = threading.Lock()
        self._questions: list[int] = []  # one entry for each that was sent
        self._answers: list[local.Received] = []
        self._number = 0  # of the last question; 0 is none
        self._first: Any = None  # the first question, until there is an answer to it

    @property
    def _owed(self) -> int:
        """How many answers will still come, those whose questioner was interrupted included."""
        return max(0, len(self._questions) - len(self._answers))

    @classmethod
    def open(cls, path: Path) -> Connection:
        """Connect to the agent at ``path``. Raises :class:`~dsm.errors.NodeUnreachable`."""
        with forking.gate:
            connection = cls(path, local.connect(path, CONNECT_TIMEOUT_S))
            forking.connections.add(connection)
        return connection

    def another(self) -> Connection:
        """A new connection to the same agent."""
        return Connection.open(self.path)

    @property
    def closed(self) -> bool:
        """True after :meth:`close`, which a lost agent and a fork cause as well."""
        return self._sock.fileno() < 0

    def close(self) -> None:
        """Close it: the agent takes back whatever was asked for or given on it."""
        with forking.gate:
            self._sock.close()

    @property
    def idle(self) -> bool:
        """True if it is open and every question has been answered."""
        return not self.closed and not self._owed

    def alive(self) -> bool:
        """Whether the agent is still there. Only of an idle connection: an answer would look like its end."""
        return not self._answered(0)

    def ask(self, question: wire.Message, kind: type[_Kind], fds: Sequence[int] = ()) -> _Kind:
        """The answer to a question that the agent answers at once.

        Raises the error it answers with, and :class:`~dsm.errors.NodeUnreachable` if none comes.
        """
        answer, received = self.ask_for_descriptors(question, kind, fds)
        local.close_all(received)
        return answer

    def ask_for_descriptors(
        self, question: wire.Message, kind: type[_Kind], fds: Sequence[int] = ()
    ) -> tuple[_Kind, list[int]]:
        """As :meth:`ask`, with the descriptors that came; the caller closes them."""
        with self._turn:
            self._put(question, fds)
            answer, received = self._take(ANSWER_TIMEOUT_S)
        if isinstance(answer, kind):
            return answer, received
        local.close_all(received)
        raise errors.ProtocolError(f"the node agent answered {type(answer).__name__} instead of {kind.__name__}")

    def wait(
        self,
        question: wire.Message,
        timeout: float | None = None,
        undo: Callable[[wire.Granted], wire.Message] | None = None,
    ) -> wire.Message:
        """The answer to a question that may take long, without the GIL. After ``timeout`` seconds it is cancelled;
        then the answer is what comes of that. ``undo``: what gives back what was granted, should Ctrl-C come
        between."""
        with self._turn:
            try:
                self._put(question)
                if timeout is not None and not self._answered(timeout):
                    self._cancel()
                    return self._take(ANSWER_TIMEOUT_S)[0]
                return self._take(None)[0]
            except Exception:
                raise
            except BaseException:
                with contextlib.suppress(Exception):
                    self._abandon(undo)
                raise

    def _cancel(self) -> None:
        with contextlib.suppress(OSError):  # no question: the answer is that to what it cancels
            local.send(self._sock, wire.Cancel(0, False), number=self._number)

    def _abandon(self, undo: Callable[[wire.Granted], wire.Message] | None) -> None:
        """Nobody wants the answer any more. Another Ctrl-C ends this, too: then the connection is closed."""
        if self._owed:
            self._cancel()
            self._take(ANSWER_TIMEOUT_S)
        answer = local.parse(self._answers[-1])[0] if self._answers else None
        if undo is not None and isinstance(answer, wire.Granted):
            self._number = self._number % 0xFFFFFFFF + 1
            local.send(self._sock, undo(answer), number=self._number)

    def _put(self, question: wire.Message, fds: Sequence[int] = ()) -> None:
        while self._owed:  # Ctrl-C has interrupted somebody who waited, and the answer must not be taken for ours
            with contextlib.suppress(errors.DsmError):
                local.close_all(self._take(None)[1])
            if self.closed:
                break
        self._questions, self._answers = [], []
        self._number = self._number % 0xFFFFFFFF + 1
        self._send(question, fds)

    def _send(self, message: wire.Message, fds: Sequence[int] = ()) -> None:
        arguments = local.packet(message, fds, self._number)
        self._first = arguments if self._number == 1 and not fds else None
        try:
            self._questions.extend(map(self._sock.sendmsg, *((argument,) for argument in arguments)))
        except (BrokenPipeError, ConnectionResetError):
            pass  # the agent has closed; what it said before, and why, is still to be read
        except OSError as error:
            raise self._gone(error.strerror or str(error)) from error

    def _take(self, timeout: float | None) -> tuple[wire.Message, list[int]]:
        if timeout is not None and not self._answered(timeout):
            raise errors.NodeUnreachable(
                f"the node agent at {self.path} has not answered for {timeout:g} s: "
                "if its process is stopped, continue it; else start it again"
            )
        try:
            message, fds = self._receive()
        except errors.DsmError:  # not a message of ours: what else may come is nothing to rely on
            self.close()
            raise
        except OSError as error:
            raise self._gone(error.strerror or str(error)) from error
        if message is None:
            if self._first is not None:
                return self._ask_once_more(timeout)
            raise self._gone("it closed the connection")
        self._first = None
        if isinstance(message, wire.Failure):
            local.close_all(fds)
            raise errors.from_wire(message.error, message.text)
        return message, fds

    def _receive(self) -> tuple[wire.Message | None, list[int]]:
        receive = partial(map, self._sock.recvmsg, *((argument,) for argument in local.RECEIVE))
        self._answered(None)
        try:
            self._answers.extend(receive())
        except ConnectionResetError:  # told once, before what the agent still had to say
            self._answers.extend(receive())
        return local.parse(self._answers[-1])

    def _ask_once_more(self, timeout: float | None) -> tuple[wire.Message, list[int]]:
        """An agent may have been killed when it had just accepted this connection, before another could know of it:
        then it has heard nothing on it."""
        question, self._first = self._first, None
        self._answers = []
        try:
            with forking.gate:
                self._sock.close()
                self._sock = local.connect(self.path, CONNECT_TIMEOUT_S)
            self._sock.sendmsg(*question)
        except errors.NodeUnreachable:
            raise self._gone("it closed the connection") from None
        except OSError as error:
            raise self._gone(error.strerror or str(error)) from error
        return self._take(timeout)

    def _gone(self, how: str) -> errors.NodeUnreachable:
        self.close()
        return errors.NodeUnreachable(f"the node agent at {self.path} has gone ({how}): start it again")

    def _answered(self, timeout: float | None) -> bool:
        """Is there an answer, within ``timeout`` seconds, or the end of the connection? What an agent says again that
        another one, which was killed, has said before is none."""
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = _POLL_S_MAX if deadline is None else deadline - time.monotonic()
            if poll.poll(min(max(left, 0.0), _POLL_S_MAX) * 1000):
                if not 0 < local.next_number(self._sock) < self._number:
                    return True
                local.take(self._sock)
            elif left <= 0:
                return False


# -- the pool: connections between two operations ------------------------------------------------------

_idle: Final[list[Connection]] = []


def take() -> Connection:
    """A connection for an operation, to be given back after it; starts an embedded agent as :func:`connect` does."""
    path = local.socket_path()
    while _idle:
        with contextlib.suppress(IndexError):  # another thread took the last one
            connection = _idle.pop()
            if connection.path == path and connection.idle and connection.alive():
                return connection
            connection.close()
    return connect()


def give_back(connection: Connection) -> None:
    """Keep the connection for the next operation. One whose operation failed is closed instead."""
    _idle.append(connection)


@contextlib.contextmanager
def borrowed() -> Iterator[Connection]:
    """A connection of the pool for one operation. If it fails, for instance by Ctrl-C, the connection is closed:
    the agent then takes back whatever was asked for on it, or granted in the same moment."""
    connection = take()
    try:
        yield connection
    except BaseException:
        connection.close()
        raise
    give_back(connection)


def say_goodbye(message: wire.Message) -> None:
    """Tell the agent something at the end of this process, if it has a connection to it still."""
    with contextlib.suppress(errors.DsmError, IndexError):
        _idle.pop().ask(message, wire.Ready)


# -- finding an agent ----------------------------------------------------------------------------------

_started: Final[list[subprocess.Popen[bytes]]] = []
"""Embedded agents that this process has started: they end when they like, so they are only kept to be reaped."""


def connect() -> Connection:
    """A new connection to this process's agent: the one ``DSM_NODE`` names, else the user's, started if need be.

    Raises :class:`~dsm.errors.NodeUnreachable`, or what the embedded agent could not start for.
    """
    path = local.socket_path()
    if os.environ.get("DSM_NODE"):
        return Connection.open(path)
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        connection = _open_or_start(path)
        try:
            # An embedded agent may be leaving, idle, with this connection still in its backlog.
            connection.ask(wire.Query(0, "here", 0, 0, 0), wire.Answer)
            _stay_at(path)
            return connection
        except errors.NodeUnreachable:
            connection.close()
            if time.monotonic() > deadline:
                raise


_presence: Connection | None = None
"""An embedded agent leaves with its last process: not with that process's last region, nor with the last operation
that Ctrl-C has ended together with its connection."""


def _stay_at(path: Path) -> None:
    global _presence
    if _presence is None or _presence.closed or _presence.path != path:
        _presence = Connection.open(path)


def _open_or_start(path: Path) -> Connection:
    with contextlib.suppress(errors.NodeUnreachable):
        return Connection.open(path)
    with _start_lock():
        with contextlib.suppress(errors.NodeUnreachable):  # somebody else has started it meanwhile
            return Connection.open(path)
        pid = _start_embedded(path)
        print(
            f"dsm: started an embedded directory and node for this host (pid {pid}); it leaves with its last process",
            file=sys.stderr,
        )
        return Connection.open(path)


@contextlib.contextmanager
def _start_lock() -> Iterator[None]:
    with open(local.runtime_directory() / "start.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield
        finally:  # closing would not do: a child forked by another thread has the same lock open
            fcntl.flock(lock, fcntl.LOCK_UN)


def _start_embedded(path: Path) -> int:
    """Start ``python -m dsm.embedded`` and wait for its one line. Its process number."""
    import subprocess

    from dsm import launch

    _started[:] = [process for process in _started if process.poll() is None]
    command, environment = launch.program("dsm.embedded")
    ready, told = os.pipe()
    with open(ready, "rb", buffering=0) as answer:
        try:
            process = subprocess.Popen(
                [*command, "--socket", str(path), "--ready-fd", str(told)],
                cwd="/",
                env=environment,
                pass_fds=[told],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        finally:
            os.close(told)
        try:
            _check_ready(answer.fileno())
        except BaseException:
            launch.stop(process)
            raise
    _started.append(process)
    return process.pid


def _check_ready(fd: int) -> None:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    said = os.read(fd, _LINE_BYTES_MAX).decode(errors="replace") if poll.poll(START_TIMEOUT_S * 1000) else ""
    word, _, rest = said.strip().partition(" ")
    if word == "error":
        name, _, text = rest.partition(" ")
        raise errors.from_wire(name, f"the embedded node could not start: {text}")
    if word != "ready":
        raise errors.NodeUnreachable(
            "the embedded directory and node did not start: `dsm doctor` says what this host lacks; "
            "or start them yourself, as `dsm directory --help` and `dsm node --help` tell"
        )


# -- names ---------------------------------------------------------------------------------------------


def check_name(name: str, what: str) -> None:
    """Raise :class:`~dsm.errors.InvalidArgument` unless ``name`` may name a region, a lock or a barrier (``what``)."""
    if not isinstance(name, str):
        raise errors.InvalidArgument(f"the name of a {what} is a str, not {type(name).__name__}")
    if not 0 < len(name) <= NAME_CHARS_MAX:
        raise errors.InvalidArgument(
            f"the name of a {what} has 1 to {NAME_CHARS_MAX} characters, not {len(name)}: choose another"
        )
    if "/" in name or not name.isprintable():
        raise errors.InvalidArgument(
            f"the name of a {what} has no '/' and no control characters, unlike {name!r}: choose another"
        )
