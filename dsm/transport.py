"""Page data that nobody waits for, in bulk, from node to node: the one file that speaks ZeroMQ.

A node binds one PULL; each peer that supplies pages has a PUSH to it. What somebody waits for goes another way
(:mod:`dsm.stream`), so it never queues behind this.
"""

from __future__ import annotations

import errno
from typing import Any, Final

import zmq

from dsm.address import check_address, host_of, port_of
from dsm.constants import CONTROL_BYTES_MAX, EXTENT_BYTES, FRAME_BYTES
from dsm.errors import InvalidArgument

Context = zmq.Context[zmq.Socket[bytes]]
Socket = zmq.Socket[bytes]

_BULK_FRAMES_MAX: Final = 2
"""Frames of page data that wait in a connection's queue and in its send buffer: the least that keeps it busy."""
_INBOX_MAX: Final = 16
"""Messages of one connection that wait in an inbox: few, since nothing can overtake the frames among them; but at half
of this ZeroMQ wakes its own thread to say that there is room again, which costs a fault 50 µs if done for each."""
_MESSAGE_BYTES_MAX: Final = max(CONTROL_BYTES_MAX, EXTENT_BYTES)
"""ZeroMQ drops the connection of whoever sends more: no message is larger than a page, and no page than an extent."""


def context() -> Context:
    """One context a service, with libzmq's single I/O thread."""
    return zmq.Context(io_threads=1)


def _socket(ctx: Context, kind: int, address: str) -> Socket:
    sock = ctx.socket(kind)
    sock.linger = 0
    sock.maxmsgsize = _MESSAGE_BYTES_MAX
    sock.ipv6 = ":" in host_of(address)
    return sock


def inbox(ctx: Context, beside: str) -> tuple[Socket, str]:
    """A node's socket for its peers' bulk, at the port after that of ``beside``, where the node listens, or at any if
    that has been given any; and the address that it really has."""
    check_address(beside)
    port = port_of(beside)
    address = f"{beside.rpartition(':')[0]}:{port + 1 if port else '*'}"
    sock = _socket(ctx, zmq.PULL, address)
    sock.rcvhwm = _INBOX_MAX  # of each connection; what is beyond waits at its sender, and nothing is dropped
    sock.rcvbuf = _BULK_FRAMES_MAX * FRAME_BYTES
    try:
        sock.bind(address)
    except zmq.ZMQError as error:
        sock.close()
        why = "another process listens there" if error.errno == errno.EADDRINUSE else error.strerror
        raise InvalidArgument(
            f"cannot listen on {address}, for bulk data: {why}; a node needs the port that it is given with --listen "
            "and the one after it"
        ) from error
    return sock, str(sock.getsockopt_string(zmq.LAST_ENDPOINT))


def outbox(ctx: Context, address: str) -> Socket:
    """A connection to a peer's inbox. It takes few frames at a time: a page that is still with the agent can be sent
    before others, one that is here cannot."""
    check_address(address, peer=True)
    sock = _socket(ctx, zmq.PUSH, address)
    sock.sndhwm = _BULK_FRAMES_MAX
    sock.sndbuf = _BULK_FRAMES_MAX * FRAME_BYTES
    try:
        sock.connect(address)
    except zmq.ZMQError as error:
        sock.close()
        raise InvalidArgument(f"{address!r} is no address: give tcp://HOST:PORT") from error
    return sock


def descriptor(sock: Socket) -> int:
    """Becomes readable when something has happened to ``sock``, once: ask what before waiting again."""
    return int(sock.getsockopt(zmq.FD))


def is_writable(sock: Socket) -> bool:
    """Can a message be sent without waiting?"""
    return bool(int(sock.getsockopt(zmq.EVENTS)) & int(zmq.POLLOUT))


def send_with_payload(sock: Socket, data: bytes, payload: bytes) -> None:
    """Send one message and the page data that belongs to it."""
    sock.send(data, zmq.SNDMORE)
    sock.send(payload)


def receive_with_payload(sock: Socket, buffer: Any) -> tuple[bytes, int] | None:
    """One message of a PULL, and how many bytes of page data came with it into ``buffer`` (more than fit, if cut off);
    None if there is none now.

    A third frame would be taken for the next message: its sender could as well have sent it as one.
    """
    try:
        frame = sock.recv(zmq.DONTWAIT, copy=False)
    except zmq.Again:
        return None
    return frame.bytes, sock.recv_into(buffer) if frame.more else 0
