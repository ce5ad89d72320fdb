"""The one file that speaks ZeroMQ.

The directory binds a ROUTER; every node has a DEALER to it: replies need no second connection, and a sender is known
by its connection, not by what it says of itself. Page data and acknowledgements go from node to node: a node binds
one PULL and has two PUSH to each peer, one for what somebody waits for and one for bulk. The PULL queues fairly
between connections, so a demanded page passes at most one frame of bulk (DESIGN.md, decision 11).
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator
from typing import Any, Final

import zmq
from zmq.backend import zmq_poll

from dsm import wire
from dsm.address import check_address, host_of, is_loopback
from dsm.constants import CONTROL_BYTES_MAX, EXTENT_BYTES, FRAME_BYTES
from dsm.errors import DirectoryUnreachable, InvalidArgument, from_wire

Context = zmq.Context[zmq.Socket[bytes]]
Socket = zmq.Socket[bytes]

READABLE: Final = int(zmq.POLLIN)
WRITABLE: Final = int(zmq.POLLOUT)
_BULK_FRAMES_MAX: Final = 2
"""Frames of page data that wait in a bulk connection's queue and in its send buffer: the least that keeps it busy."""
_INBOX_MAX: Final = 16
"""Messages of one connection that wait in an inbox: few, since nothing can overtake the frames among them; but at half
of this ZeroMQ wakes its own thread to say that there is room again, which costs a fault 50 µs if done for each."""
_UNREAD_MAX: Final = 1 << 10
"""Messages of one connection that wait in the directory: a flood waits with its sender."""
_UNSENT_MAX: Final = 1 << 16
"""Messages that wait in the directory for one connection to read them: more than can be of use to a node that is alive,
and as much memory as somebody who only talks may cost."""
_MESSAGE_BYTES_MAX: Final = max(CONTROL_BYTES_MAX, EXTENT_BYTES)
"""ZeroMQ drops the connection of whoever sends more: no message is larger than a page, and no page than an extent."""


def context() -> Context:
    """One context a service, with libzmq's single I/O thread."""
    return zmq.Context(io_threads=1)


def _socket(ctx: Context, kind: int) -> Socket:
    sock = ctx.socket(kind)
    sock.linger = 0
    # A dropped protocol message would leave a page waiting for ever: nothing is dropped at a high-water mark.
    # What may be under way is bounded by the protocol, one request a page and node.
    sock.sndhwm = 0
    sock.rcvhwm = 0
    sock.maxmsgsize = _MESSAGE_BYTES_MAX
    return sock


def _bind(sock: Socket, address: str) -> str:
    check_address(address)
    try:
        sock.bind(address)
    except zmq.ZMQError as error:
        if error.errno == errno.EADDRINUSE:
            raise InvalidArgument(f"another process listens on {address}: choose another port with --listen") from error
        raise InvalidArgument(
            f"cannot listen on {address}: {error.strerror}; give tcp://IP:PORT of this host"
        ) from error
    return str(sock.getsockopt_string(zmq.LAST_ENDPOINT))


def _connect(sock: Socket, address: str) -> None:
    check_address(address, peer=True)
    try:
        sock.connect(address)
    except zmq.ZMQError as error:
        raise InvalidArgument(f"{address!r} is no address: give tcp://HOST:PORT") from error


def router(ctx: Context, address: str, wait_ms: int) -> tuple[Socket, str]:
    """The directory's socket and the address that it really has; it waits for ``wait_ms`` for a message."""
    sock = _socket(ctx, zmq.ROUTER)
    sock.rcvtimeo = wait_ms
    sock.rcvhwm = _UNREAD_MAX
    sock.sndhwm = _UNSENT_MAX
    sock.router_mandatory = True  # tell who is gone from who does not read
    return sock, _bind(sock, address)


def dealer(ctx: Context, address: str) -> Socket:
    """A connection to the directory."""
    sock = _socket(ctx, zmq.DEALER)
    _connect(sock, address)
    return sock


def inbox(ctx: Context, address: str) -> tuple[Socket, str]:
    """A node's socket for its peers, and the address that it really has."""
    sock = _socket(ctx, zmq.PULL)
    sock.rcvhwm = _INBOX_MAX  # of each connection; what is beyond waits at its sender, and nothing is dropped
    sock.rcvbuf = _BULK_FRAMES_MAX * FRAME_BYTES
    return sock, _bind(sock, address)


def outbox(ctx: Context, address: str, *, bulk: bool) -> Socket:
    """A connection to a peer's inbox. A ``bulk`` one takes few frames at a time: a page that is still with the agent
    can be sent before others, one that is here cannot."""
    sock = _socket(ctx, zmq.PUSH)
    if bulk:
        sock.sndhwm = _BULK_FRAMES_MAX
        sock.sndbuf = _BULK_FRAMES_MAX * FRAME_BYTES
    _connect(sock, address)
    return sock


def wait(watched: list[tuple[Socket | int, int]], timeout_ms: int) -> list[tuple[Socket | int, int]]:
    """Those of ``watched``, pairs of a socket or descriptor and :data:`READABLE`, that are readable, after a while.

    A ZeroMQ socket's own descriptor is edge-triggered and tells of much beside messages; zmq_poll(3) knows how to ask.
    """
    return zmq_poll(watched, timeout_ms)  # type: ignore[return-value]  # its stub forgets the sockets


def is_writable(sock: Socket) -> bool:
    """Can a message be sent without waiting?"""
    return bool(int(sock.getsockopt(zmq.EVENTS)) & WRITABLE)


def receive_routed(sock: Socket) -> tuple[bytes, bytes | None] | None:
    """One message of a ROUTER: the sender's connection, and what it sent, None unless that is exactly one frame.

    None at all if nothing came for as long as :func:`router` was told to wait.
    """
    try:
        identity = sock.recv()
    except zmq.Again:
        return None
    frame = sock.recv(copy=False)  # such a frame knows whether more follow; asking the socket costs ten times as much
    data: bytes | None = frame.bytes
    while frame.more:
        data = None
        frame = sock.recv(copy=False)
    return identity, data


def send_routed(sock: Socket, identity: bytes, data: bytes) -> bool:
    """Send one message to the connection ``identity`` of a ROUTER; nowhere if it is gone.

    False if it was dropped: the connection has not read very many others.
    """
    try:
        sock.send(identity, zmq.SNDMORE | zmq.DONTWAIT)
        sock.send(data)
    except zmq.Again:
        return False
    except zmq.ZMQError as error:
        if error.errno != errno.EHOSTUNREACH:
            raise
    return True


def send_with_payload(sock: Socket, data: bytes, payload: bytes) -> None:
    """Send one message and the page data that belongs to it."""
    sock.send(data, zmq.SNDMORE)
    sock.send(payload)


def receive_with_payload(sock: Socket, buffer: Any) -> tuple[bytes, int]:
    """One message of a PULL, and how many bytes of page data came with it into ``buffer`` (more than fit, if cut off).

    A third frame would be taken for the next message: its sender could as well have sent it as one.
    """
    frame = sock.recv(copy=False)
    return frame.bytes, sock.recv_into(buffer) if frame.more else 0


def ask(address: str, question: wire.Query, timeout_s: float) -> dict[str, Any]:
    """One question to a directory by somebody who is no node. Raises :class:`DirectoryUnreachable` after
    ``timeout_s``."""
    with _asking(address) as sock:
        sock.send(wire.encode(question))
        if not sock.poll(int(timeout_s * 1000)):
            raise DirectoryUnreachable(unreachable(address, timeout_s))
        answer = wire.decode(sock.recv())
    if isinstance(answer, wire.Failure):
        raise from_wire(answer.error, answer.text)
    if not isinstance(answer, wire.Answer):
        raise DirectoryUnreachable(f"the directory at {address} answered with {type(answer).__name__}")
    return answer.value


def unreachable(address: str, timeout_s: float) -> str:
    """What to tell somebody whose directory is silent."""
    return (
        f"no directory answers at {address} within {timeout_s:g} s: "
        "start one with `dsm directory --listen tcp://IP:7400`, or check the address and the firewall"
    )


@contextlib.contextmanager
def _asking(address: str) -> Iterator[Socket]:
    with context() as ctx, dealer(ctx, address) as sock:
        yield sock


def check_reachable(bound: str, directory: str) -> None:
    """Raise :class:`InvalidArgument` if only this host can reach ``bound``, but others the directory: they would send
    what is for this node to themselves."""
    if not is_loopback(bound) or is_loopback(directory):
        return
    try:
        # A name may be one of the loopback, too. What cannot be looked up cannot be reached, which is said later.
        if is_loopback(f"tcp://{socket.gethostbyname(host_of(directory))}:0"):
            return
    except (OSError, UnicodeError):
        pass
    port = bound.rpartition(":")[2]
    raise InvalidArgument(
        f"other hosts cannot reach {bound}, but the directory is at {directory}: give --listen tcp://IP:{port} with "
        f"this host's address, or tcp://0.0.0.0:{port}, which takes the one from which the directory is reached"
    )


def reachable(bound: str, towards: str) -> str:
    """The address that others should use for a socket bound to ``bound``: where that is every interface of this host,
    the one from which ``towards`` is reached."""
    prefix, _, port = bound.rpartition(":")
    if prefix not in ("tcp://0.0.0.0", "tcp://[::]"):
        return bound
    host, _, other_port = towards.removeprefix("tcp://").rpartition(":")
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, int(other_port)))  # sends nothing; only chooses the route
            return f"tcp://{probe.getsockname()[0]}:{port}"
    except (OSError, ValueError) as error:
        raise DirectoryUnreachable(f"cannot find a route to the directory at {towards}: {error}") from error
