"""Messages and pages between services, over TCP sockets of our own.

A message library with threads of its own (ZeroMQ, with which dsm began) hands a message from the thread that sends it
to one that writes it, and at the other end from one that reads it to the one that waits: two wake-ups more a hop, and a
fault has three hops; and what was under way when a connection broke is lost. docs/performance.md has the figures. Here
the thread that has something to say writes it, and :mod:`dsm.session` sees to it that it arrives.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from dsm.address import check_address, host_of, port_of
from dsm.constants import CONNECT_TIMEOUT_S, CONTROL_BYTES_MAX, EXTENT_BYTES, FRAME_BYTES, LEASE_S
from dsm.errors import InvalidArgument, ProtocolError, Violation
from dsm.poller import READABLE, WRITABLE, Poller
from dsm.session import HEAD, HELLO, Session, read_hello

_BUFFER_BYTES: Final = 16 << 10
"""What is read from a connection at once, at most, unless it fills that again and again."""
_LARGE_BYTES: Final = 256 << 10
"""What is then read at once: the fewer reads, the better for bulk."""
_TURN_BYTES: Final = 128 << 10
"""What is delivered of one connection in a turn: what others wait for."""
_JOINED_BYTES_MAX: Final = 16 << 10
"""Page data that is cheaper to copy than to hand over beside its message."""
_BULK_BYTES: Final = 2 * FRAME_BYTES
"""What the kernel keeps of bulk that is to be sent: little, since nothing can overtake it there, but enough to keep the
connection busy."""
_TURN_MESSAGES: Final = 16
"""Messages of one connection that are handled in a turn: a flood costs the others no more than that."""
REDIAL_S: Final = 0.1
"""How long to wait at least before another connection is tried."""

Deliver = Callable[["Link", memoryview, memoryview], None]
"""Called with each message, and the page data that came with it; both are gone once it returns."""

_head = HEAD.unpack_from


class Link:
    """One end of a conversation with another service, over whichever connection there is at the moment.

    ``broken`` is called when the connection has broken, which the conversation outlives, and with an error if it does
    not. ``error``: why the conversation is over, if it is; what is sent from then on goes nowhere. ``proven``: the
    other end has said something sensible, as its reader tells.
    """

    __slots__ = (
        "_broken",
        "_buffer",
        "_deliver",
        "_end",
        "_more",
        "_pending",
        "_poller",
        "_receive",
        "_send",
        "_session",
        "_socket",
        "_start",
        "_unsent",
        "error",
        "name",
        "proven",
    )

    def __init__(
        self, poller: Poller, name: bytes, deliver: Deliver, broken: Callable[[Link, Exception | None], None]
    ) -> None:
        self.name = name
        self.error: Exception | None = None
        self.proven = False
        self._session = Session(name)
        self._poller = poller
        self._deliver = deliver
        self._broken = broken
        self._socket: socket.socket | None = None
        self._unsent: deque[bytes | memoryview] = deque()
        self._buffer = memoryview(b"")
        self._start = self._end = 0  # what has come and was not delivered yet
        self._more = False  # messages are among it
        self._pending = False  # what was decrypted already will be looked for

    @property
    def connected(self) -> bool:
        return self._socket is not None

    @property
    def idle(self) -> bool:
        """Would a message go out at once?"""
        return self._socket is not None and not self._unsent

    @property
    def unacknowledged_bytes(self) -> int:
        """What was sent and the other end is not known to have received."""
        return self._session.kept_bytes

    @property
    def sent(self) -> int:
        """Messages that were sent."""
        return self._session.sent

    @property
    def acknowledged(self) -> int:
        """How many of them the other end is known to have received."""
        return self._session.acknowledged

    def acknowledge(self) -> None:
        """Tell what has been received, where nothing is sent that tells it."""
        if self._socket is not None and self._session.owes:
            self._transmit(self._session.acknowledgement())

    def adopt(self, sock: socket.socket, received: int, hello: bytes) -> None:
        """Go on over another connection: say ``hello``, then what the other end, which has ``received`` so many
        messages, has not. Raises :class:`ProtocolError` if that cannot be."""
        frames = self._session.resume(received)
        self._forget_connection()
        sealed = self._poller.seal is not None
        self._poller.watch(sock.fileno(), self._sealed_ready if sealed else self._ready)  # may fail: before all else
        self._socket = sock
        self._send = self._poller.around("send", sock.send)
        self._receive = self._poller.around("receive", sock.recv_into)
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        for frame in [hello, *frames] if hello else frames:
            self._transmit(frame)
        if sealed:  # more may have come with the hello
            self._poller.soon(self._look_for_pending)

    def hello(self, known: bool) -> bytes:
        """What a connection begins with."""
        return self._session.hello(known)

    def close(self) -> None:
        """The conversation is over. What was handed to the kernel still goes out."""
        self._forget_connection()

    def _forget_connection(self) -> None:
        sock, self._socket = self._socket, None
        if sock is not None:
            self._poller.unwatch(sock.fileno())
            sock.close()
        self._unsent.clear()
        self._buffer = memoryview(b"")
        self._start = self._end = 0
        self._more = False

    def _break(self, error: Exception | None = None) -> None:
        self.error = error
        self._forget_connection()
        self._broken(self, error)

    # -- sending -----------------------------------------------------------------------------------------

    def send(self, data: bytes, payload: bytes = b"") -> None:
        """Send one message, and the page data that belongs to it. It arrives once, also if connections break."""
        if self.error is None:
            if len(payload) > _JOINED_BYTES_MAX:
                self._transmit_parts(*self._session.parts(data, payload))
            else:
                self._transmit(self._session.frame(data, payload))

    def send_all(self, messages: list[bytes]) -> None:
        """Send several messages at once."""
        if self.error is None:
            self._transmit(b"".join(map(self._session.frame, messages)))

    def _transmit(self, frame: bytes) -> None:
        if self._unsent:
            self._unsent.append(frame)
        elif self._socket is not None:
            try:
                sent = self._send(frame)
            except BlockingIOError:
                sent = 0
            except OSError:
                self._break()
                return
            if sent < len(frame):
                self._unsent.append(memoryview(frame)[sent:])
                self._poller.change(self._socket.fileno(), READABLE | WRITABLE)

    def _transmit_parts(self, head: bytes, payload: bytes) -> None:
        if self._unsent or self._socket is None:
            self._transmit(head)
            self._transmit(payload)
            return
        try:
            sent = self._socket.sendmsg((head, payload))
        except BlockingIOError:
            sent = 0
        except OSError:
            self._break()
            return
        beyond = sent - len(head)
        if beyond < len(payload):
            self._unsent += [memoryview(head)[sent:], payload] if beyond < 0 else [memoryview(payload)[beyond:]]
            self._poller.change(self._socket.fileno(), READABLE | WRITABLE)

    def _flush(self) -> None:
        unsent = self._unsent
        while unsent:
            try:
                sent = self._send(unsent[0])
            except BlockingIOError:
                return
            except OSError:
                self._break()
                return
            if sent < len(unsent[0]):
                unsent[0] = memoryview(unsent[0])[sent:]
                return
            unsent.popleft()
        if self._socket is not None:
            self._poller.change(self._socket.fileno(), READABLE)

    # -- receiving ---------------------------------------------------------------------------------------

    def _ready(self, events: int) -> None:
        if events & WRITABLE:
            self._flush()
        if events == WRITABLE or self._more or self._socket is None:
            return  # what has come already goes first: there may be no room for more
        end = self._end
        try:
            length = self._receive(self._buffer[end:] if end else self._buffer)
        except BlockingIOError:
            return
        except OSError:
            length = 0
        if length:
            self._end = end + length
            self._take()
        else:
            self._break()

    def _sealed_ready(self, events: int) -> None:
        """No event tells of what was decrypted already, and did not fit the buffer."""
        self._ready(events)
        sock: Any = self._socket
        if sock is not None and not self._pending and sock.pending():
            self._pending = True
            self._poller.soon(self._look_for_pending)

    def _look_for_pending(self) -> None:
        self._pending = False
        sock: Any = self._socket
        if sock is not None and sock.pending():
            self._sealed_ready(READABLE)

    def _take(self) -> None:
        try:
            self._more = self._deliver_some()
        except Violation:  # of this end: no fault of the connection
            raise
        except ProtocolError as error:
            self._break(error)
        else:
            if self._more:
                self._poller.soon(self._take)

    def _deliver_some(self) -> bool:
        """Deliver what has come, but not too much at once. True if more is here."""
        session = self._session
        enough = self._start + _TURN_BYTES
        for _ in range(_TURN_MESSAGES):
            buffer, start = self._buffer, self._start
            if start > enough:
                return True
            whole = self._end - start
            if whole < HEAD.size:
                break
            length, payload_length, received = _head(buffer, start)
            middle = start + HEAD.size + length
            stop = middle + payload_length
            if stop > self._end:
                break
            if received != session.acknowledged:
                session.acknowledge(received)
            self._start = stop
            if length:
                is_time = session.arrived(stop - start)
                self._deliver(self, buffer[start + HEAD.size : middle], buffer[middle:stop])
                if is_time:
                    self._transmit(session.acknowledgement())
            elif payload_length:
                raise ProtocolError("page data without a message")
            if self._start == self._end:
                self._start = self._end = 0
                if len(buffer) > _LARGE_BYTES:  # a large message is over
                    self._buffer = memoryview(bytearray(_LARGE_BYTES))
                return False
        else:
            return True
        self._make_room()
        return False

    def _make_room(self) -> None:
        """What is left is the beginning of a frame: see to it that the rest fits behind it."""
        start, end = self._start, self._end
        if start == end:  # the connection has gone meanwhile
            return
        whole = HEAD.size
        if end - start >= whole:
            length, payload_length, _ = _head(self._buffer, start)
            if length > CONTROL_BYTES_MAX or payload_length > EXTENT_BYTES:
                raise ProtocolError("a frame that is longer than any message")
            whole += length + payload_length
        room = len(self._buffer)
        if end == room and (room < _LARGE_BYTES or whole > room):  # memory for what comes, not for what is announced
            buffer = memoryview(bytearray(2 * room))
        elif start and start + whole > room:
            buffer = self._buffer
        else:
            return
        buffer[: end - start] = self._buffer[start:end]
        self._buffer = buffer
        self._start, self._end = 0, end - start


class Greeting:
    """A connection on which a hello is awaited: one that was accepted, or one that is made, which says ``hello``. Where
    connections are sealed, that comes first."""

    def __init__(
        self,
        poller: Poller,
        sock: socket.socket,
        greeted: Callable[[Greeting, bytes], None],
        hello: bytes = b"",
    ) -> None:
        self.since_s = time.monotonic()
        self.socket = sock
        self._poller = poller
        self._greeted = greeted
        self._hello = hello
        self._got = b""
        self._seals = poller.seal is not None
        self._wrapped = False
        poller.watch(sock.fileno(), self._ready, WRITABLE if hello else READABLE)

    def _ready(self, _: int) -> None:
        try:
            if self._seals and not self._is_sealed():
                return
            if self._hello:
                self.socket.send(self._hello)  # so few bytes fit a new connection's buffer; fails if it failed
                self._hello = b""
                self._poller.change(self.socket.fileno(), READABLE)
                return
            more = self.socket.recv(HELLO.size - len(self._got))
        except BlockingIOError:
            return
        except OSError:
            more = b""
        self._got += more
        if not more or len(self._got) == HELLO.size:
            self._poller.unwatch(self.socket.fileno())
            self._greeted(self, self._got if more else b"")

    def _is_sealed(self) -> bool:
        """Go on with the handshake. Raises OSError if it fails."""
        seal: Any = self._poller.seal
        fd = self.socket.fileno()
        if not self._wrapped:
            error = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                raise OSError(error, os.strerror(error))
            self._wrapped = True
            self.socket = seal.wrap(self.socket, server=not self._hello)
        sock: Any = self.socket
        waits = sock.shake_hands()
        self._seals = waits != 0
        self._poller.change(fd, waits or (WRITABLE if self._hello else READABLE))
        return not self._seals

    def close(self) -> None:
        """Give it up."""
        self._poller.unwatch(self.socket.fileno())
        self.socket.close()


class Caller(Link):
    """The end of a conversation that makes the connections, to a listener at ``address``. Raises
    :class:`InvalidArgument` if nobody can be there.

    ``bulk``: what is sent waits here rather than in the kernel.
    """

    __slots__ = ("_addresses", "_bulk", "_dialed_s", "_greeting", "_known")

    def __init__(
        self,
        poller: Poller,
        address: str,
        deliver: Deliver,
        broken: Callable[[Link, Exception | None], None],
        *,
        bulk: bool = False,
    ) -> None:
        super().__init__(poller, os.urandom(16), deliver, broken)
        self._addresses = deque(resolve(address))  # the one to try next is the first
        self._bulk = bulk
        self._greeting: Greeting | None = None
        self._known = False
        self._dialed_s = 0.0
        self.look_after()

    def look_after(self) -> None:
        """To be called now and then: makes a connection if there is none."""
        now = time.monotonic()
        if self._greeting is not None and now - self._greeting.since_s > CONNECT_TIMEOUT_S:
            self._greeting.close()
            self._greeting = None
        if self._socket is None and self._greeting is None and self.error is None and now - self._dialed_s > REDIAL_S:
            self._dialed_s = now
            self._dial()

    def _dial(self) -> None:
        family, address = self._addresses[0]
        self._addresses.rotate(-1)
        try:
            sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError:  # no descriptors now, or no such protocol here: later, perhaps
            return
        tune(sock)
        if self._bulk:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BULK_BYTES)
        if sock.connect_ex(address) in (0, errno.EINPROGRESS):
            self._greeting = Greeting(self._poller, sock, self._greeted, self.hello(self._known))
        else:
            sock.close()

    def close(self) -> None:
        if self._greeting is not None:
            self._greeting.close()
            self._greeting = None
        super().close()

    def farewell(self, timeout_s: float) -> None:
        """Bring out what was sent, if no call for it has to wait for so long, and close. Nobody is heard any more:
        whoever says goodbye is in no state to answer."""
        if self.error is None:
            with contextlib.suppress(OSError, ProtocolError):
                self._bring_out(timeout_s)
        self.close()

    def _bring_out(self, timeout_s: float) -> None:
        if self._socket is not None:
            self._socket.settimeout(timeout_s)
            _finish(self._socket, list(self._unsent))
            return
        self.close()  # a greeting that is under way
        family, address = self._addresses[0]
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.settimeout(timeout_s)
            sock.connect(address)
            seal = self._poller.seal
            if seal is None:
                self._say_all(sock)
            else:
                with seal.wrap(sock, server=False) as sealed:
                    sealed.do_handshake()
                    self._say_all(sealed)

    def _say_all(self, sock: socket.socket) -> None:
        sock.sendall(self.hello(self._known))
        data = b""
        while len(data) < HELLO.size and (more := sock.recv(HELLO.size - len(data))):
            data += more
        _, received, _ = read_hello(data)
        _finish(sock, self._session.resume(received))

    def _break(self, error: Exception | None = None) -> None:
        super()._break(error)
        self.look_after()  # at once, if that is not all it does

    def _greeted(self, greeting: Greeting, data: bytes) -> None:
        self._greeting = None
        try:
            if data:
                name, received, known = read_hello(data)
                if name != self.name:
                    raise ProtocolError("the other end answered in another conversation")
                if known:
                    self._known = True
                    self._addresses.rotate(1)  # this one is right
                    self.adopt(greeting.socket, received, b"")
                    return
                if not self._session.fresh:
                    raise ProtocolError("the other end does not know of this conversation any more")
                self._known = False
                self._dialed_s = 0.0  # it will be known at once
            error = None
        except ProtocolError as e:
            error = e
        greeting.socket.close()
        self._break(error)


def _finish(sock: socket.socket, frames: Sequence[bytes | memoryview]) -> None:
    """Send these and wait until the other end has closed, too: to close while something has not been read would throw
    away what was sent."""
    for frame in frames:
        sock.sendall(frame)
    sock.shutdown(socket.SHUT_WR)
    while sock.recv(_BUFFER_BYTES):
        pass


def tune(sock: socket.socket) -> None:
    """Set the options of a connection, made or accepted."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # What is not acknowledged for so long breaks the connection: another may find a way.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(CONNECT_TIMEOUT_S * 1000))
    # Nor does one stay for ever whose other end has vanished without a word, and to which nothing is sent.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, int(LEASE_S))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, int(CONNECT_TIMEOUT_S))


def resolve(address: str) -> list[tuple[int, Any]]:
    """The families and socket addresses of ``tcp://HOST:PORT``. Raises :class:`InvalidArgument` if there is none."""
    check_address(address, peer=True)
    try:
        found = socket.getaddrinfo(host_of(address), port_of(address), type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise InvalidArgument(f"cannot find {address}: {error}; give tcp://HOST:PORT") from error
    return [(family, where) for family, _, _, _, where in found]
