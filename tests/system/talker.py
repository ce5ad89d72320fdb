"""Somebody who talks to services and is none: by hand, one message at a time, and whatever else can be sent."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Self

from cluster import LIMIT_S

from dsm import launch, wire
from dsm.address import host_of, port_of
from dsm.listener import Listener
from dsm.poller import Poller
from dsm.session import HEAD, HELLO, Session, read_hello
from dsm.stream import Link

_TICKET: Final = 0x7EA51DE5
"""Of what it asks itself: no other."""
_RESET: Final = struct.pack("ii", 1, 0)  # linger for no time at all: what was not read is thrown away


def connect(address: str) -> socket.socket:
    """A connection on which nothing has been said yet."""
    return socket.create_connection((host_of(address), port_of(address)), LIMIT_S)


def closed(sock: socket.socket) -> Callable[[], bool]:
    """Has the other end closed it?"""
    sock.setblocking(False)

    def is_closed() -> bool:
        try:
            while sock.recv(1 << 16):
                pass
        except BlockingIOError:
            return False
        except ConnectionError:
            pass
        return True

    return is_closed


def is_closed(sock: socket.socket) -> bool:
    """Does the other end close the connection, after whatever it still says? Waits for it."""
    with contextlib.suppress(ConnectionError):
        while sock.recv(1 << 16):
            pass
    return True  # else the time-out of the socket has failed the test


class Talker:
    """A conversation with the service at ``address``: blocking, one thread."""

    def __init__(self, address: str, name: bytes = b"") -> None:
        self.address = address
        self.session = Session(name or os.urandom(16))
        self.sock: socket.socket
        self.connect(False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def connect(self, known: bool = True) -> None:
        """Connect (again), and send what the other end has not."""
        self.sock = connect(self.address)
        self.sock.sendall(self.session.hello(known))
        _, received, known = read_hello(self._read(HELLO.size))
        assert known
        for frame in self.session.resume(received):
            self.sock.sendall(frame)

    def close(self) -> None:
        """Close the connection."""
        self.sock.close()

    def reset(self) -> None:
        """Break it, so that what is under way is lost."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.sock.close()

    def send(self, data: bytes, payload: bytes = b"") -> None:
        """Send a message, or what is none."""
        self.sock.sendall(self.session.frame(data, payload))

    def tell(self, *messages: wire.Message) -> None:
        """Send messages."""
        for message in messages:
            self.send(wire.encode(message))

    def _read(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            more = self.sock.recv(length - len(data))
            if not more:
                raise ConnectionError(f"{self.address} has closed the connection")
            data += more
        return data

    def receive(self) -> bytes:
        """The next message. Raises ``TimeoutError`` after LIMIT_S, ``ConnectionError`` if the connection is closed."""
        while True:
            length, payload_length, received = HEAD.unpack(self._read(HEAD.size))
            self.session.acknowledge(received)
            data = self._read(length + payload_length)
            if length:
                if self.session.arrived(HEAD.size + len(data)):
                    with contextlib.suppress(ConnectionError):
                        self.sock.sendall(self.session.acknowledgement())
                return data[:length]

    def hear(self, kind: Any = object) -> Any:
        """The next message of this kind; others are thrown away."""
        while True:
            message = wire.decode(self.receive())
            if isinstance(message, kind):
                return message

    def ask(self, question: Any) -> Any:
        """The answer of a directory to a question."""
        self.tell(question._replace(ticket=_TICKET))
        while True:
            answer = self.hear((wire.Failure, wire.Answer, wire.Opened))
            if answer.ticket == _TICKET:
                return answer

    def flush(self) -> None:
        """Wait until a directory has dealt with everything."""
        self.ask(wire.Query(0, "nothing of that name", 0, 0, 0))

    def finish(self) -> None:
        """Wait until the other end, which answers nothing, has received everything; then close."""
        self.sock.shutdown(socket.SHUT_WR)
        assert is_closed(self.sock)
        self.close()


class Service:
    """A service that is this test itself: what others send to ``address`` waits until it is asked for."""

    def __init__(self) -> None:
        self._poller = Poller()
        self._listener = Listener(self._poller, launch.LOOPBACK)
        self.address = self._listener.address
        self._came: deque[tuple[Link, bytes]] = deque()
        self._listener.start(lambda link, data, _: self._came.append((link, bytes(data))), lambda _: True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self._poller.close()

    def receive(self) -> tuple[Link, bytes]:
        """The next message, and whom an answer can be sent to."""
        deadline = time.monotonic() + LIMIT_S
        while not self._came:
            assert time.monotonic() < deadline, "nobody says anything"
            self._poller.wait(0.1)
        return self._came.popleft()

    def hear(self, kind: type[Any]) -> tuple[Link, Any]:
        """The next message of this kind; others are thrown away."""
        while True:
            link, data = self.receive()
            message = wire.decode(data)
            if isinstance(message, kind):
                return link, message
