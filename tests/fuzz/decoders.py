"""Every place where bytes become messages, fed with damage: in this process, by volume."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import time
from collections.abc import Callable, Iterator

from mutation import Mutator
from noise import strange_head, strange_opening
from report import Outcome, measured, rss_kib
from talker import closed

from dsm import constants, local, wire
from dsm.errors import DsmError
from dsm.listener import Listener
from dsm.poller import Poller
from dsm.session import HEAD, Session

_BATCH = 64
"""Messages that are on their way together: what waits in a socket's buffer must fit it."""


def decode(seed: int, count: int) -> Outcome:
    """``wire.decode``: refuses as documented, or returns what encodes to the same message again."""
    mutator = Mutator(seed)
    with measured("wire.decode", rss_kib) as outcome:
        for _ in range(count):
            data = mutator.damaged()
            try:
                message = wire.decode(data)
            except DsmError as error:
                assert len(str(error)) < 300, error
                outcome.refused += 1
                continue
            again = wire.decode(wire.encode(message))
            # NaN is not equal to itself, and is the same all the same.
            assert type(again) is type(message) and (again == message or repr(again) == repr(message)), data
            outcome.accepted += 1
    return outcome


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@contextlib.contextmanager
def _some_descriptors() -> Iterator[list[int]]:
    """Of many kinds, the test's own."""
    with contextlib.ExitStack() as stack:
        found = [*os.pipe(), os.open("/dev/null", os.O_RDONLY), os.memfd_create("fuzz"), os.eventfd(0)]
        for fd in found:
            stack.callback(os.close, fd)
        one, other = socket.socketpair()
        stack.enter_context(one)
        stack.enter_context(other)
        yield [*found, one.fileno(), other.fileno()]


def receive_local(seed: int, count: int) -> Outcome:
    """``local.receive``: packets with 0 to 20 descriptors, valid, damaged or too long; none stays open."""
    mutator, plan = Mutator(seed), Mutator(seed + 1).plan
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(_some_descriptors())
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stack.enter_context(here)
        stack.enter_context(there)
        there.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        before = _descriptors()
        with measured("local.receive", rss_kib) as outcome:
            for number in range(count):
                data = wire.encode(mutator.message()) if plan.random() < 0.3 else mutator.damaged()
                if number % 1000 == 0:
                    data = bytes(plan.choice((constants.LOCAL_BYTES_MAX, constants.LOCAL_BYTES_MAX + 1, 200_000)))
                fds = plan.choices(ours, k=plan.choice((0, 0, 0, 1, 2, 4, 5, 20)))
                socket.send_fds(there, [data], fds) if fds else there.send(data)
                try:
                    message, came = local.receive(here)
                except DsmError:
                    outcome.refused += 1
                    continue
                assert (message is None) == (not data) and len(came) <= len(fds)
                local.close_all(came)
                outcome.accepted += 1
        assert _descriptors() == before
    return outcome


# --- the frames of a stream -----------------------------------------------------------------------------------------


class _Hearer:
    """A listener, what it has delivered, and connections to it whose bytes are the test's own."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.came: list[tuple[bytes, bytes]] = []
        self.poller = stack.enter_context(Poller())
        self.listener = Listener(self.poller, "tcp://127.0.0.1:*")
        stack.callback(self.listener.close)
        self.listener.start(lambda _, data, payload: self.came.append((bytes(data), bytes(payload))), lambda _: True)

    def connect(self, plan: random.Random) -> socket.socket:
        host, port = self.listener.address.removeprefix("tcp://").split(":")
        source = f"127.0.0.{plan.randrange(2, 250)}"  # each has its own ports: a closed connection keeps one for long
        sock = socket.create_connection((host, int(port)), source_address=(source, 0))
        sock.setblocking(False)
        return sock

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            self.poller.wait(0.01)
            assert time.monotonic() < deadline, "something was lost"

    def play(self, sock: socket.socket, data: bytes, plan: random.Random) -> None:
        """Send all of this, in pieces of any size, and read what the listener says."""
        view = memoryview(data)
        while view:
            with contextlib.suppress(BlockingIOError):
                view = view[sock.send(view[: plan.choice((1, 7, 16, 17, 100, 4096, 1 << 20))]) :]
            if plan.random() < 0.3:
                self.poller.wait(0)
                with contextlib.suppress(BlockingIOError):
                    sock.recv(1 << 16)

    def end(self, sock: socket.socket) -> None:
        """Say no more, and wait until the listener has closed the connection."""
        with contextlib.suppress(OSError):  # it has been closed already
            sock.shutdown(socket.SHUT_WR)
        self.until(closed(sock))
        sock.close()


def frames(seed: int, count: int) -> Outcome:
    """``stream.Link``: whatever is in the frames of a connection, and however it is cut, all of it comes in order."""
    mutator = Mutator(seed)
    plan = mutator.plan
    with contextlib.ExitStack() as stack, measured("stream: frames", rss_kib) as outcome:
        hearer = _Hearer(stack)
        sock, session = stack.enter_context(hearer.connect(plan)), Session(plan.randbytes(16))
        hearer.play(sock, session.hello(False), plan)
        while outcome.messages < count:
            sent = [
                (mutator.damaged() or b"\0", bytes(plan.choice((0, 0, 0, 0, 1, 4096, 65536)))) for _ in range(_BATCH)
            ]
            sent[0] = sent[0][0], bytes(plan.choice((0, 0, 0, 0, 0, 0, 1 << 20, constants.EXTENT_BYTES)))
            hearer.play(sock, b"".join([session.frame(*each) for each in sent]), plan)
            session.kept.clear()
            hearer.until(lambda: len(hearer.came) >= _BATCH)
            assert hearer.came == sent
            hearer.came.clear()
            for data, _ in sent:
                _count(outcome, data)
            outcome.messages += _BATCH
        assert hearer.listener.rejected == 0
    return outcome


def _stream(mutator: Mutator) -> tuple[bytes, int]:
    """The bytes of a connection, most often with something wrong; and how many messages come before that, -1 if nothing
    is wrong at all."""
    plan = mutator.plan
    hello, frames = Session(plan.randbytes(16)).hello(False), []
    wrong = plan.random()
    if wrong < 0.1:
        return strange_opening(plan), 0
    for _ in range(plan.choice((0, 1, 2, 15, 16, 17, 40))):
        data = mutator.damaged() or b"\0"
        frames.append(HEAD.pack(len(data), 0, 0) + data)
    good = hello + b"".join(frames)
    if wrong < 0.2:
        return hello[: plan.randrange(len(hello))], 0
    if wrong < 0.8:
        return good + strange_head(plan) + plan.randbytes(plan.choice((0, 0, 10, 5000))), len(frames)
    return good + (frames[-1][: plan.randrange(len(frames[-1]))] if frames else b""), -1  # cut, as connections are


def connections(seed: int, count: int) -> Outcome:
    """``listener.Listener``: what is before the damage is delivered, the damage ends its connection and is counted, and
    no conversation stays that nobody can have."""
    mutator = Mutator(seed)
    plan = mutator.plan
    with contextlib.ExitStack() as stack, measured("stream: connections", rss_kib) as outcome:
        hearer = _Hearer(stack)
        kept = _descriptors()
        for _ in range(count):
            data, whole = _stream(mutator)
            rejected = hearer.listener.rejected
            sock = hearer.connect(plan)
            with contextlib.suppress(ConnectionError):  # it ends in the middle of the damage
                hearer.play(sock, data, plan)
            hearer.end(sock)
            assert hearer.listener.rejected - rejected == (whole >= 0), data
            assert whole < 0 or len(hearer.came) == whole
            hearer.came.clear()
            outcome.refused += whole >= 0
            outcome.accepted += whole < 0
            assert len(hearer.listener.links) <= 1024
        assert _descriptors() == kept
    return outcome


def _count(outcome: Outcome, data: bytes) -> None:
    try:
        wire.decode(data)
        outcome.accepted += 1
    except DsmError:
        outcome.refused += 1


TARGETS = (decode, receive_local, frames, connections)
