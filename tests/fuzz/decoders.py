"""Every place where bytes become messages, fed with damage: in this process, by volume."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

from mutation import Mutator
from report import Outcome, measured, rss_kib

from dsm import constants, local, transport, wire
from dsm.errors import DsmError

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


def _frames(mutator: Mutator) -> list[bytes]:
    plan = mutator.plan
    some = [mutator.damaged() for _ in range(plan.choice((1, 1, 1, 2, 2, 2, 3, 4, 9)))]
    if plan.random() < 0.2:
        some[plan.randrange(len(some))] = bytes(plan.choice((0, 0, 1, 4095, 4096, 65536, 65537)))
    return some


def receive_with_payload(seed: int, count: int) -> Outcome:
    """``transport.receive_with_payload``: whatever frames come, all of them are read, in order and in pairs."""
    mutator = Mutator(seed)
    buffer = bytearray(constants.FRAME_BYTES)
    with transport.context() as context, measured("transport: PULL frames", rss_kib) as outcome:
        inbox, address = transport.inbox(context, "tcp://127.0.0.1:*")
        outbox = transport.outbox(context, address, bulk=False)
        with inbox, outbox:
            while outcome.messages < count:
                sent = [_frames(mutator) for _ in range(_BATCH)]
                for frames in sent:
                    outbox.send_multipart(frames)
                for frames in sent:
                    for at in range(0, len(frames), 2):
                        data, length = transport.receive_with_payload(inbox, buffer)
                        payload = b"".join(frames[at + 1 : at + 2])
                        assert (data, length) == (frames[at], len(payload))
                        assert buffer[:length] == payload[: len(buffer)]
                        _count(outcome, data)
                outcome.messages = outcome.accepted + outcome.refused
    return outcome


def receive_routed(seed: int, count: int) -> Outcome:
    """``transport.receive_routed``: one frame is a message, several are none, and nothing is left of them."""
    mutator = Mutator(seed)
    with transport.context() as context, measured("transport: ROUTER frames", rss_kib) as outcome:
        router, address = transport.router(context, "tcp://127.0.0.1:*", 10_000)
        dealer = transport.dealer(context, address)
        with router, dealer:
            while outcome.messages < count:
                sent = [_frames(mutator) for _ in range(_BATCH)]
                for frames in sent:
                    dealer.send_multipart(frames)
                for frames in sent:
                    received = transport.receive_routed(router)
                    assert received is not None
                    assert received[1] == (frames[0] if len(frames) == 1 else None)
                    if received[1] is None:
                        outcome.refused += 1
                    else:
                        _count(outcome, received[1])
                outcome.messages += len(sent)
    return outcome


def _count(outcome: Outcome, data: bytes) -> None:
    try:
        wire.decode(data)
        outcome.accepted += 1
    except DsmError:
        outcome.refused += 1


TARGETS = (decode, receive_local, receive_with_payload, receive_routed)
