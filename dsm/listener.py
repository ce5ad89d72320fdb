"""The end of conversations that takes the calls of others."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable
from typing import Final

from dsm.address import address_of, check_address, host_of, port_of
from dsm.constants import CONNECT_TIMEOUT_S, FRAME_BYTES, NODES_MAX
from dsm.errors import InvalidArgument, ProtocolError
from dsm.poller import Poller
from dsm.session import Session, read_hello
from dsm.stream import Deliver, Greeting, Link, resolve, tune

_UNREAD_BYTES: Final = 4 * FRAME_BYTES
"""What the kernel keeps of a connection until it is read: no more, since nothing can overtake it there."""
_GREETINGS_MAX: Final = 128
"""Connections that have not said who they are: who has something to say does so at once."""
_NEWCOMER_S: Final = 2 * CONNECT_TIMEOUT_S
"""How long a conversation may last that is not to be kept: enough for a question, or to become a member."""
_ADRIFT_MAX: Final = 2 * NODES_MAX
"""Conversations without a connection that are remembered: a peer has two, for messages and for bulk."""
_EXHAUSTED: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
"""There is no descriptor or no memory for a connection now; later there may be."""


class Listener:
    """Takes the calls of others, on ``address`` (``tcp://IP:PORT``; ``*`` for any IP or port); ``self.address`` is
    what that really is. Nobody is heard before :meth:`start`.

    ``keeps`` tells whether a conversation may last, and is remembered when its connection breaks: who is still a member
    would miss what it was sent. One that was forgotten begins anew, if nothing had come of it. ``links``: by name.
    ``rejected``: connections on which no conversation came about, or none that lasts. ``listening``: a socket that
    listens there already.
    """

    def __init__(self, poller: Poller, address: str, listening: socket.socket | None = None) -> None:
        check_address(address)
        self.links: dict[bytes, Link] = {}
        self.rejected = 0
        self._poller = poller
        self._deliver: Deliver
        self._keeps: Callable[[Link], bool]
        self._adrift: dict[bytes, None] = {}  # conversations without a connection, the oldest first
        self._newcomers: dict[bytes, float] = {}  # since when there are those that may not be kept
        self._greetings: dict[Greeting, None] = {}  # the oldest first
        self._socket = listening or _bind(address)
        self._listens = False
        self.address = address_of(*self._socket.getsockname()[:2])

    def start(self, deliver: Deliver, keeps: Callable[[Link], bool]) -> None:
        """Hear others from now on."""
        self._deliver = deliver
        self._keeps = keeps
        self._listen()

    def fileno(self) -> int:
        """The descriptor of the socket that listens."""
        return self._socket.fileno()

    def close(self) -> None:
        """End every conversation."""
        for link in self.links.values():
            link.close()
        for greeting in self._greetings:
            greeting.close()
        self._poller.unwatch(self._socket.fileno())
        self._socket.close()

    def look_after(self) -> None:
        """To be called now and then: forgets who does not speak, and who does not come back."""
        now = time.monotonic()
        for greeting in [g for g in self._greetings if now - g.since_s > CONNECT_TIMEOUT_S]:
            self._give_up(greeting)
        for link in list(self.links.values()):  # a connection may break by that
            link.acknowledge()
        for name in [name for name in self._adrift if not self._keeps(self.links[name])]:
            self.forget(name)
        for name, since in list(self._newcomers.items()):
            if self._keeps(self.links[name]):
                del self._newcomers[name]
            elif now - since > _NEWCOMER_S:
                self.rejected += 1
                self.forget(name)
        self._listen()

    def _listen(self) -> None:
        if not self._listens:
            self._listens = True
            self._poller.watch(self._socket.fileno(), self._accept)

    def _accept(self, _: int) -> None:
        try:
            sock, _address = self._socket.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError as error:
            if error.errno not in _EXHAUSTED:
                raise
            if self._greetings:
                self._give_up(next(iter(self._greetings)))
            else:
                self._listens = False  # until somebody has gone
                self._poller.unwatch(self._socket.fileno())
            return
        sock.setblocking(False)
        tune(sock)
        self._greetings[Greeting(self._poller, sock, self._greeted)] = None
        if len(self._greetings) > _GREETINGS_MAX:
            self._give_up(next(iter(self._greetings)))

    def _give_up(self, greeting: Greeting) -> None:
        del self._greetings[greeting]
        self.rejected += 1
        greeting.close()

    def _greeted(self, greeting: Greeting, data: bytes) -> None:
        del self._greetings[greeting]
        try:
            if not data:
                raise ProtocolError("it was closed before a hello had come")
            name, received, known = read_hello(data)
            link = self.links.get(name)
            if link is None:
                if known:  # it says so where a conversation was forgotten here
                    greeting.socket.send(Session(name).hello(False))
                    raise ProtocolError("a conversation that is not known here")
                if received:
                    raise ProtocolError("something was received in a conversation that has not begun")
                link = self.links[name] = Link(self._poller, name, self._deliver, self._broken)
                self._newcomers[name] = time.monotonic()
            link.adopt(greeting.socket, received, link.hello(True))
            if link.connected:  # its connection may have broken at once
                self._adrift.pop(name, None)
        except (ProtocolError, OSError):
            self.rejected += 1
            greeting.socket.close()

    def _broken(self, link: Link, error: Exception | None) -> None:
        if error is not None:
            self.rejected += 1
        if error is not None or not self._keeps(link):
            self.forget(link.name)
            return
        self._adrift[link.name] = None
        if len(self._adrift) > _ADRIFT_MAX:
            self.forget(next(iter(self._adrift)))

    def forget(self, name: bytes) -> None:
        """End a conversation."""
        self._adrift.pop(name, None)
        self._newcomers.pop(name, None)
        link = self.links.pop(name, None)
        if link is not None:
            link.close()


def _bind(address: str) -> socket.socket:
    host = host_of(address).replace("*", "0.0.0.0")
    try:
        (family, where), *_ = resolve(address_of(host, port_of(address)))
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _UNREAD_BYTES)
            sock.bind(where)
            sock.listen(socket.SOMAXCONN)
        except BaseException:
            sock.close()
            raise
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            text = f"another process listens on {address}: choose another port with --listen"
        else:
            text = f"cannot listen on {address}: {error.strerror}; give tcp://IP:PORT of this host"
        raise InvalidArgument(text) from error
    return sock
