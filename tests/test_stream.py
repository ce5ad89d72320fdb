"""Callers and a listener in one process, with one poller: whatever the kernel and the network do with their bytes."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
from talker import closed

from dsm import asking, doctor, wire
from dsm.constants import CONTROL_BYTES_MAX, EXTENT_BYTES
from dsm.errors import DirectoryUnreachable, InvalidArgument, ProtocolError, Violation
from dsm.listener import Listener
from dsm.poller import READABLE, Poller
from dsm.session import HEAD, HELLO, Session, read_hello
from dsm.stream import Caller, Link

LIMIT_S = 60.0
ANY = "tcp://127.0.0.1:*"

Message = tuple[bytes, bytes]

calls_directly = pytest.mark.skipif(doctor.is_compiled(), reason="replaces a method; what is compiled calls its own")


class Hall:
    """A poller, a listener, and what each link has heard. Connections are made again as soon as they are missing."""

    def __init__(self) -> None:
        self.poller = Poller()
        self.heard: dict[bytes, list[Message]] = {}
        self.broken: list[Exception | None] = []
        self.kept = True
        self.callers: list[Caller] = []
        self.listener = Listener(self.poller, ANY)
        self.start()

    def start(self) -> None:
        self.listener.start(self.deliver, lambda _: self.kept)

    def deliver(self, link: Link, data: memoryview, payload: memoryview) -> None:
        self.heard.setdefault(link.name, []).append((bytes(data), bytes(payload)))

    def call(self, address: str = "") -> tuple[Caller, list[Message]]:
        """A caller, and what it hears."""
        heard: list[Message] = []
        caller = Caller(
            self.poller,
            address or self.listener.address,
            lambda _, data, payload: heard.append((bytes(data), bytes(payload))),
            lambda _, error: self.broken.append(error),
        )
        self.callers.append(caller)
        return caller, heard

    def of(self, caller: Link) -> list[Message]:
        """What the listener has heard of a caller."""
        return self.heard.setdefault(caller.name, [])

    def turn(self) -> None:
        self.poller.wait(0.001)
        for caller in self.callers:
            caller.look_after()

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not condition():
            assert time.monotonic() < deadline
            self.turn()

    def meet(self) -> tuple[Caller, list[Message], Link]:
        """A caller, what it hears, and the listener's end of its conversation."""
        caller, heard = self.call()
        self.until(lambda: caller.connected and caller.name in self.listener.links)
        return caller, heard, self.listener.links[caller.name]

    def stranger(self, data: bytes = b"") -> socket.socket:
        """A connection of which each byte is the test's own."""
        host, port = self.listener.address.removeprefix("tcp://").split(":")
        sock = socket.create_connection((host, int(port)), LIMIT_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(data)
        return sock

    def close(self) -> None:
        for caller in self.callers:
            caller.close()
        self.listener.close()
        self.poller.close()


@pytest.fixture
def hall() -> Iterator[Hall]:
    hall = Hall()
    yield hall
    hall.close()


def break_connection(link: Link) -> None:
    assert link._socket is not None
    with contextlib.suppress(OSError):  # it is broken already
        link._socket.shutdown(socket.SHUT_RDWR)


# --- messages -------------------------------------------------------------------------------------------


def test_messages_of_every_length_go_both_ways(hall: Hall) -> None:
    caller, heard, link = hall.meet()
    plan = random.Random(1)
    lengths = [(1, 0), (1, 1), (CONTROL_BYTES_MAX, 0), (1, EXTENT_BYTES), (CONTROL_BYTES_MAX, EXTENT_BYTES), (3, 4096)]
    for around in ((1 << 16) - HEAD.size, 1 << 16, 1 << 17):
        lengths += [(around + more, 0) for more in (-1, 0, 1)] + [(10, around - 10 + more) for more in (-1, 0, 1)]
    messages = [(plan.randbytes(length), plan.randbytes(payload)) for length, payload in lengths] * 2
    plan.shuffle(messages)
    for data, payload in messages:
        caller.send(data, payload)
        link.send(data, payload)
    assert not caller.idle, "the kernel took all of it: nothing is tested"
    hall.until(lambda: len(heard) == len(hall.of(caller)) == len(messages))
    assert heard == hall.of(caller) == messages
    assert caller.idle and link.idle


def test_several_at_once(hall: Hall) -> None:
    caller, heard, link = hall.meet()
    link.send_all([b"a", b"bc"])
    caller.send_all([bytes([number]) for number in range(100)])
    hall.until(lambda: len(heard) == 2 and len(hall.of(caller)) == 100)
    assert heard == [(b"a", b""), (b"bc", b"")]
    assert hall.of(caller) == [(bytes([number]), b"") for number in range(100)]


def test_what_was_said_before_there_was_a_connection(hall: Hall) -> None:
    caller, _ = hall.call()
    caller.send(b"early")
    assert not caller.connected
    hall.until(lambda: hall.of(caller))
    assert hall.of(caller) == [(b"early", b"")]


def test_acknowledgements_let_go(hall: Hall) -> None:
    """Though the other end has nothing to say."""
    caller, _, _ = hall.meet()
    most = 0
    for number in range(2000):
        caller.send(b"x", bytes(1000))
        hall.until(lambda number=number: len(hall.of(caller)) > number)  # type: ignore[misc]
        most = max(most, caller.unacknowledged_bytes)
    assert most < 300 << 10


# --- connections that break -----------------------------------------------------------------------------


class Network:
    """Between callers and a listener: passes bytes on in small pieces, and breaks each connection after some."""

    def __init__(self, hall: Hall, plan: random.Random) -> None:
        self._hall = hall
        self._plan = plan
        self.breaks = True
        self.broken = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.setblocking(False)
        self.address = f"tcp://127.0.0.1:{self._socket.getsockname()[1]}"
        self._open: set[socket.socket] = set()
        hall.poller.watch(self._socket.fileno(), self._accept)

    def close(self) -> None:
        self._hall.poller.unwatch(self._socket.fileno())
        for sock in [*self._open]:
            self._end(sock)
        self._socket.close()

    def _end(self, sock: socket.socket) -> None:
        if sock in self._open:
            self._open.discard(sock)
            self._hall.poller.unwatch(sock.fileno())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()

    def _accept(self, _: int) -> None:
        here, _ = self._socket.accept()
        there = self._hall.stranger()
        left = [self._plan.choice((0, 10, 29, 30, 100, 1000, 30_000)) if self.breaks else 1 << 60]
        for source, target in ((here, there), (there, here)):
            source.setblocking(False)
            self._open.add(source)

            def pass_on(
                _: int, source: socket.socket = source, target: socket.socket = target, left: list[int] = left
            ) -> None:
                piece = self._plan.choice((1, 5, 16, 100, 5000)) if self.breaks else 1 << 20
                data = b""
                with contextlib.suppress(OSError):
                    data = source.recv(min(piece, left[0]))
                    target.setblocking(True)
                    target.sendall(data)
                    target.setblocking(False)
                left[0] -= len(data)
                if not data:
                    self.broken += 1
                    self._end(source)
                    self._end(target)

            self._hall.poller.watch(source.fileno(), pass_on, READABLE)


@pytest.mark.parametrize("seed", range(12))
def test_nothing_is_lost_or_doubled_wherever_a_connection_breaks(hall: Hall, seed: int) -> None:
    plan = random.Random(seed)
    network = Network(hall, plan)
    pairs = [hall.call(network.address) for _ in range(2)]
    told: dict[bytes, tuple[list[Message], list[Message]]] = {caller.name: ([], []) for caller, _ in pairs}
    turns = 0
    # How soon there is a link again after a break is up to the kernel: until enough was said each way.
    while turns < 600 or any(len(said) <= 50 for both in told.values() for said in both):
        turns += 1
        assert turns < 100_000
        for caller, _ in pairs:
            link = hall.listener.links.get(caller.name)
            for number, end in enumerate((caller, link)):
                if end is not None and plan.random() < 0.3:
                    message = plan.randbytes(plan.randrange(1, 60)), bytes(plan.choice((0, 0, 0, 0, 4096, 20_000)))
                    told[caller.name][number].append(message)
                    end.send(*message)
        if plan.random() < 0.02:
            for caller, _ in pairs:
                if caller.connected:
                    break_connection(caller)
        hall.turn()
    network.breaks = False
    for caller, heard in pairs:
        there, back = told[caller.name]
        hall.until(lambda: len(hall.of(caller)) >= len(there) and len(heard) >= len(back))  # noqa: B023
        assert hall.of(caller) == there
        assert heard == back
    assert network.broken > 3
    assert [error for error in hall.broken if error] == []
    network.close()


def test_a_half_sent_message_is_sent_again_whole(hall: Hall) -> None:
    caller, heard, link = hall.meet()
    large = random.Random(2).randbytes(CONTROL_BYTES_MAX)
    told = [(large, bytes(EXTENT_BYTES))] * 5 + [(b"small", b"")]
    for end in (caller, link):
        for message in told:
            end.send(*message)
    assert not caller.idle and not link.idle
    hall.poller.wait(0)
    break_connection(link)
    hall.until(lambda: len(heard) == len(hall.of(caller)) == len(told))
    assert heard == hall.of(caller) == told


def test_a_new_connection_takes_the_place_of_one_that_nobody_ended(hall: Hall) -> None:
    """As after a cable was pulled: only one end knows that the connection is dead."""
    with hall.stranger(Session(b"n" * 16).hello(False) + Session(b"n" * 16).frame(b"one")) as old:
        hall.until(lambda: hall.heard.get(b"n" * 16) == [(b"one", b"")])
        session = Session(b"n" * 16)
        frames = [session.frame(data) for data in (b"one", b"two")]
        with hall.stranger(session.hello(True) + frames[1]) as new:
            hall.until(lambda: len(hall.heard[b"n" * 16]) == 2)
            hall.until(closed(old))
            assert hall.heard[b"n" * 16][1] == (b"two", b"")
            new.settimeout(LIMIT_S)
            assert read_hello(new.recv(HELLO.size)) == (b"n" * 16, 1, True)
    assert hall.listener.rejected == 0


def test_an_old_hello_that_comes_late_harms_nobody(hall: Hall) -> None:
    caller, heard, link = hall.meet()
    link.send(b"before")
    hall.until(lambda: heard)
    caller.send(b"I have it")
    hall.until(lambda: not link.unacknowledged_bytes)
    with hall.stranger(Session(caller.name).hello(True)) as late:  # has received nothing, it says
        hall.until(closed(late))
    assert hall.listener.rejected == 1
    link.send(b"after")
    hall.until(lambda: len(heard) == 2)
    assert hall.broken == []
    break_connection(caller)
    hall.until(lambda: hall.broken == [None])
    with hall.stranger(Session(caller.name).hello(True)) as late:
        late.close()
        hall.until(lambda: caller.connected)
    link.send(b"at the end")
    hall.until(lambda: len(heard) == 3)


def test_a_conversation_that_was_forgotten_is_over(hall: Hall) -> None:
    caller, heard, link = hall.meet()
    caller.send(b"x")
    link.send(b"y")
    hall.until(lambda: hall.of(caller) and heard)
    hall.kept = False
    break_connection(caller)
    hall.until(lambda: caller.error is not None)
    assert isinstance(caller.error, ProtocolError) and "does not know" in str(caller.error)
    assert hall.broken[-1] is caller.error
    assert hall.listener.links == {} and hall.listener.rejected == 1
    caller.look_after()
    assert not caller.connected


def test_a_listener_that_was_started_again_knows_nobody(hall: Hall) -> None:
    caller, heard, link = hall.meet()
    link.send(b"y")
    hall.until(lambda: heard)
    address = hall.listener.address
    hall.listener.close()
    hall.listener = Listener(hall.poller, address)
    hall.start()
    hall.until(lambda: caller.error is not None)
    assert isinstance(caller.error, ProtocolError) and "does not know" in str(caller.error)


def test_a_conversation_of_which_nothing_has_come_begins_anew_where_it_was_forgotten(hall: Hall) -> None:
    """As when a connection breaks between the hello of a newcomer and its Join."""
    hall.kept = False
    caller, _, link = hall.meet()
    for _ in range(3):
        break_connection(link)
        hall.until(lambda link=link: hall.listener.links.get(caller.name) not in (None, link))  # type: ignore[misc]
        link = hall.listener.links[caller.name]
    caller.send(b"after all")
    hall.until(lambda: (b"after all", b"") in hall.of(caller))
    assert caller.error is None


@calls_directly
def test_who_waits_to_be_called_again_is_not_called_all_the_time(hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    """While nobody listens there."""
    dialed = []
    dial = Caller._dial

    def counted(caller: Caller) -> None:
        dialed.append(caller)
        dial(caller)

    monkeypatch.setattr(Caller, "_dial", counted)
    hall.listener.close()
    began = time.monotonic()
    caller, _ = hall.call()
    hall.until(lambda: len(dialed) == 5)
    assert time.monotonic() - began > 4 * 0.1 and caller.error is None


@pytest.mark.parametrize("broken", [False, True], ids=["busy", "broken"])
def test_a_farewell_arrives(broken: bool) -> None:
    """Over a connection that is busy, and where there is none just now."""
    heard: list[bytes] = []
    with Poller() as poller:
        listener = Listener(poller, ANY)
        listener.start(lambda _, data, __: heard.append(bytes(data)), lambda _: True)

        def leave(caller: Caller) -> None:
            caller.send(b"goodbye")
            caller.farewell(LIMIT_S)

        with Poller() as other:
            caller = Caller(other, listener.address, lambda *_: None, lambda *_: None)
            caller.send(b"hello")
            deadline = time.monotonic() + LIMIT_S
            while not heard and time.monotonic() < deadline:
                other.wait(0.001)
                poller.wait(0.001)
            if broken:
                break_connection(caller)
                caller._dialed_s = time.monotonic()
                other.wait(1)
                assert not caller.connected
            else:
                caller.send(b"much", bytes(EXTENT_BYTES))
                caller.send(b"much", bytes(EXTENT_BYTES))
                caller.send(b"much", bytes(EXTENT_BYTES))
            leaving = threading.Thread(target=leave, args=(caller,))
            leaving.start()
            while leaving.is_alive():
                poller.wait(0.01)
        assert heard == [b"hello", *([] if broken else [b"much"] * 3), b"goodbye"]
        listener.close()


def test_a_connection_is_made_again_at_once(hall: Hall) -> None:
    """Without being looked after, unless it was made a moment ago."""
    caller, _, _ = hall.meet()
    caller._dialed_s -= 1
    hall.callers.clear()
    sock = caller._socket
    break_connection(caller)
    hall.until(lambda: caller._socket not in (None, sock))
    caller.close()


def test_who_comes_back_late_is_still_known(hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as it is kept: it may be a member whose way to this one was cut for long."""
    caller, _, _ = hall.meet()
    hall.callers.clear()
    break_connection(caller)
    hall.until(lambda: not hall.listener.links[caller.name].connected)
    clock = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() + 3600)
    hall.listener.look_after()
    monkeypatch.undo()
    caller.send(b"here I am")
    hall.callers.append(caller)
    hall.until(lambda: hall.of(caller))
    hall.kept = False
    hall.listener.look_after()
    assert caller.name in hall.listener.links, "it is connected"


@calls_directly
def test_a_connection_that_breaks_at_once_is_none(hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    """The conversation is as adrift as it was before, and forgotten like any other."""
    caller, _, link = hall.meet()
    hall.callers.clear()
    caller.close()
    hall.until(lambda: not link.connected)
    monkeypatch.setattr(Link, "_transmit", lambda self, _: self._break())
    with hall.stranger(caller.hello(True)) as sock:
        hall.until(closed(sock))
    assert not link.connected and caller.name in hall.listener.links
    hall.kept = False
    hall.listener.look_after()
    assert hall.listener.links == {}


def test_who_is_not_kept_is_forgotten_at_once_and_may_not_stay(hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, _, _ = hall.meet()
    kept_name = kept.name
    hall.listener.start(hall.deliver, lambda link: link.name == kept_name)
    for number in range(100):
        with hall.stranger(Session(number.to_bytes(16)).hello(False)):
            hall.until(lambda number=number: number.to_bytes(16) in hall.listener.links)  # type: ignore[misc]
        hall.until(lambda number=number: number.to_bytes(16) not in hall.listener.links)  # type: ignore[misc]
    with hall.stranger(Session(b"?" * 16).hello(False)) as sock:
        hall.until(lambda: b"?" * 16 in hall.listener.links)
        hall.listener.look_after()
        assert not closed(sock)()
        clock = time.monotonic
        monkeypatch.setattr(time, "monotonic", lambda: clock() + 11)
        hall.listener.look_after()
        monkeypatch.undo()
        hall.until(closed(sock))
    assert list(hall.listener.links) == [kept_name] and kept.connected and hall.listener.rejected == 1


def test_what_is_sent_in_a_conversation_that_is_over_goes_nowhere(hall: Hall) -> None:
    caller, heard, link = hall.meet()
    link.send(b"y")
    hall.until(lambda: heard)
    hall.kept = False
    break_connection(link)
    hall.until(lambda: caller.error is not None)
    for _ in range(10):
        caller.send(bytes(1000))
        caller.send_all([bytes(1000)] * 2)
    assert caller.unacknowledged_bytes == 0


def test_an_answer_in_another_conversation_is_refused() -> None:
    with Poller() as poller, socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(LIMIT_S)
        caller = Caller(poller, f"tcp://127.0.0.1:{server.getsockname()[1]}", lambda *_: None, lambda *_: None)
        with server.accept()[0] as sock:
            sock.sendall(Session(b"?" * 16).hello(True))
            deadline = time.monotonic() + LIMIT_S
            while caller.error is None and time.monotonic() < deadline:
                poller.wait(0.01)
        assert isinstance(caller.error, ProtocolError) and "another conversation" in str(caller.error)
        caller.close()


def test_memory_for_a_large_message_is_given_back(hall: Hall) -> None:
    caller, _, link = hall.meet()
    caller.send(b"large", bytes(EXTENT_BYTES))
    hall.until(lambda: hall.of(caller))
    assert len(link._buffer) <= 256 << 10


def test_nothing_is_waited_for_that_is_there_already(hall: Hall) -> None:
    """When everything has been written, that more could be is no news."""
    caller, _, _ = hall.meet()
    for _ in range(20):
        caller.send(b"much", bytes(1 << 20))
    assert not caller.idle
    hall.until(lambda: len(hall.of(caller)) == 20 and caller.idle)
    hall.until(lambda: hall.poller._poll(0) == [])


# --- who does not read, who says too much ---------------------------------------------------------------


def test_who_never_reads_harms_nobody(hall: Hall) -> None:
    deaf = Session(b"d" * 16)
    with hall.stranger(deaf.hello(False)) as sock:
        hall.until(lambda: deaf.name in hall.listener.links)
        link = hall.listener.links[deaf.name]
        told = [(bytes([number % 256]) * 10_000, b"") for number in range(1000)]
        for data, _ in told:
            link.send(data)
        assert not link.idle and link.unacknowledged_bytes == sum(HEAD.size + len(data) for data, _ in told)
        caller, _, _ = hall.meet()
        for number in range(100):
            caller.send(b"x")
            hall.until(lambda number=number: len(hall.of(caller)) > number)  # type: ignore[misc]
        # It speaks all the same, and is heard: what it has not read is not in the way. Nor do acknowledgements pile up.
        sock.sendall(b"".join(deaf.frame(b"y") for _ in range(1000)))
        hall.until(lambda: len(hall.heard.get(deaf.name, [])) == 1000)
        got = bytearray()
        sock.setblocking(False)

        def read_all() -> bool:
            with contextlib.suppress(BlockingIOError):
                while more := sock.recv(1 << 20):
                    got.extend(more)
            return link.idle and len(got) >= HELLO.size + link.unacknowledged_bytes

        hall.until(read_all)
        at, heard = HELLO.size, []
        while at < len(got):
            length, payload_length, _ = HEAD.unpack_from(got, at)
            if length:
                heard.append((bytes(got[at + HEAD.size : at + HEAD.size + length]), b""))
            at += HEAD.size + length + payload_length
        assert heard == told


def test_a_flood_on_one_connection_does_not_starve_another(hall: Hall) -> None:
    """What a quiet caller says is delivered within a turn, whatever else is to be delivered."""
    flood, quiet = Session(b"f" * 16), hall.meet()[0]
    order: list[bytes] = []
    hall.listener._deliver = lambda link, data, payload: order.append(link.name)
    hall.listener.links[quiet.name]._deliver = hall.listener._deliver
    frames = b"".join(flood.frame(b"x") for _ in range(3000))
    with hall.stranger(flood.hello(False) + frames):
        hall.until(lambda: len(order) > 100)
        flooded = 0
        for _ in range(5):
            del order[:]
            quiet.send(b"now")
            hall.poller.wait(0)
            assert quiet.name in order and order.index(quiet.name) <= 16
            assert order.count(flood.name) <= 16
            flooded += order.count(flood.name)
        assert flooded, "the flood was over already"
        hall.until(lambda: len(hall.listener.links[flood.name]._session.kept) == 0)


def test_a_frame_in_pieces_takes_turns(hall: Hall) -> None:
    """A large message that comes slowly, byte by byte at its ends, and another connection in between."""
    session, other = Session(b"s" * 16), hall.meet()[0]
    large = random.Random(3).randbytes(300_000)
    frame = session.hello(False) + session.frame(large, large) + session.frame(b"end")
    with hall.stranger() as sock:
        pieces = [*range(60), *range(1000, len(frame) - 50, 9973), *range(len(frame) - 50, len(frame) + 1)]
        for number, (start, stop) in enumerate(pairwise(pieces)):
            sock.sendall(frame[start:stop])
            if number % 10 == 0:
                other.send(b"x")
                hall.until(lambda number=number: len(hall.of(other)) == number // 10 + 1)  # type: ignore[misc]
            hall.poller.wait(0)
        hall.until(lambda: len(hall.heard.get(session.name, [])) == 2)
    assert hall.heard[session.name] == [(large, large), (b"end", b"")]


# --- what is wrong --------------------------------------------------------------------------------------

BAD_HEADS = {
    "too long a message": HEAD.pack(CONTROL_BYTES_MAX + 1, 0, 0),
    "as long as can be said": HEAD.pack((1 << 32) - 1, (1 << 32) - 1, 0),
    "too much page data": HEAD.pack(1, EXTENT_BYTES + 1, 0),
    "page data of nothing": HEAD.pack(0, 1, 0) + b"x",
    "acknowledges what was not sent": HEAD.pack(0, 0, 1),
    "a message that acknowledges it": HEAD.pack(1, 0, 1 << 63) + b"x",
}


@pytest.mark.parametrize("before", [0, 1, 15, 16, 17, 32, 33])
@pytest.mark.parametrize("head", BAD_HEADS)
def test_a_bad_frame_ends_its_conversation_after_whatever_came_before(hall: Hall, head: str, before: int) -> None:
    """In one piece, however many messages are handled in a turn."""
    good, session = hall.meet()[0], Session(b"b" * 16)
    frames = b"".join(session.frame(b"x") for _ in range(before))
    with hall.stranger(session.hello(False) + frames + BAD_HEADS[head]) as sock:
        hall.until(closed(sock))
    assert len(hall.heard.get(session.name, [])) == before
    assert hall.listener.rejected == 1 and [*hall.listener.links] == [good.name]
    good.send(b"still here")
    hall.until(lambda: hall.of(good))


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n",
        bytes(HELLO.size),
        b"dsm\x01" + bytes(HELLO.size),
        Session(b"?" * 16).hello(True),
        HELLO.pack(b"dsm\x00", b"?" * 16, 1, False),
        HELLO.pack(b"dsm\x00", b"?" * 16, (1 << 64) - 1, False),
    ],
)
def test_a_strange_hello_is_counted_and_nothing_stays_of_it(hall: Hall, data: bytes) -> None:
    for number in range(3):
        with hall.stranger(data) as sock:
            hall.until(closed(sock))
        assert hall.listener.rejected == number + 1
    assert hall.listener.links == {}
    assert hall.meet()[0].connected


def test_who_says_no_hello_is_given_up(hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = time.monotonic
    with hall.stranger() as silent, hall.stranger(b"dsm") as half:
        hall.until(lambda: len(hall.listener._greetings) == 2)
        hall.listener.look_after()
        assert hall.listener.rejected == 0
        monkeypatch.setattr(time, "monotonic", lambda: clock() + 6)
        hall.listener.look_after()
        monkeypatch.undo()
        assert hall.listener.rejected == 2
        hall.until(closed(silent))
        hall.until(closed(half))


def test_very_many_who_say_no_hello_make_room_for_each_other(hall: Hall) -> None:
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(hall.stranger()) for _ in range(300)]
        hall.until(lambda: hall.listener.rejected == 300 - 128)
        caller = hall.meet()[0]
        assert caller.connected
        hall.until(closed(held[0]))
        assert not closed(held[-1])()


def test_without_descriptors_nobody_comes_nor_goes(hall: Hall) -> None:
    """Neither a caller nor a listener fails: later there are some again."""
    before, _, link = hall.meet()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with hall.stranger() as waits, contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        spare = os.dup(waits.fileno())
        resource.setrlimit(resource.RLIMIT_NOFILE, (spare, hard))  # what is open stays open, and nothing more can be
        os.close(spare)
        late, _ = hall.call()
        late.send(b"late")
        for _ in range(5):
            hall.turn()
            hall.listener.look_after()
        assert not late.connected and late.error is None
        break_connection(link)
        before.send(b"before")
        for _ in range(5):
            hall.turn()
        assert before.error is None
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        hall.listener.look_after()
        hall.until(lambda: hall.of(late) and hall.of(before))


def test_a_connection_that_breaks_while_it_is_written_to(hall: Hall) -> None:
    """Readable, writable and broken at once."""
    deaf = Session(b"d" * 16)
    with hall.stranger(deaf.hello(False)) as sock:
        hall.until(lambda: deaf.name in hall.listener.links)
        link = hall.listener.links[deaf.name]
        while link.idle:
            link.send(bytes(100_000))
        sock.sendall(deaf.frame(b"last words"))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    hall.until(lambda: not link.connected)
    assert hall.listener.rejected == 0
    assert hall.heard.get(deaf.name, []) in ([], [(b"last words", b"")]), "the reset may have thrown them away"


def test_a_connection_that_is_closed_while_it_is_listened_to(hall: Hall) -> None:
    """By whoever a message is delivered to, as when a node learns that a peer has left."""
    session = Session(b"c" * 16)
    link: list[Link] = []

    def deliver(at: Link, data: memoryview, payload: memoryview) -> None:
        link.append(at)
        if len(link) in (1, 16):
            at.close()

    for many in (1, 2, 16, 17, 40):
        for number in range(2):
            session = Session(bytes([many]) * 15 + bytes([number]))
            del link[:]
            hall.listener._deliver = deliver
            with hall.stranger(session.hello(False) + b"".join(session.frame(b"x") for _ in range(many))) as sock:
                hall.until(closed(sock))
            hall.turn()
            assert len(link) == 1, "nothing is delivered of a conversation that is over"


def test_a_broken_invariant_is_not_the_fault_of_a_connection(hall: Hall) -> None:
    """It goes on to whoever runs the service, which stops with the story of the page."""
    caller, _, link = hall.meet()

    def deliver(*_: object) -> None:
        raise Violation("broken", 1, 2)

    link._deliver = deliver
    caller.send(b"x")
    with pytest.raises(Violation, match="broken"):
        hall.until(lambda: False)


def test_somebody_else_at_the_address_of_a_service() -> None:
    with Poller() as poller, socket.create_server(("127.0.0.1", 0)) as server:
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        broken: list[Exception | None] = []
        caller = Caller(poller, address, lambda *_: None, lambda _, error: broken.append(error))
        with server.accept()[0] as sock:
            sock.sendall(b"220 example.org ESMTP, who are you?\r\n")
            deadline = time.monotonic() + LIMIT_S
            while caller.error is None and time.monotonic() < deadline:
                poller.wait(0.01)
        assert isinstance(caller.error, ProtocolError) and "no dsm service" in str(caller.error)
        assert broken == [caller.error]
        caller.close()


def test_a_listener_that_claims_to_have_more_than_was_sent() -> None:
    with Poller() as poller, socket.create_server(("127.0.0.1", 0)) as server:
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        caller = Caller(poller, address, lambda *_: None, lambda *_: None)
        caller.send(b"x")
        with server.accept()[0] as sock:
            sock.sendall(HELLO.pack(b"dsm\x00", caller.name, 2, True))
            deadline = time.monotonic() + LIMIT_S
            while caller.error is None and time.monotonic() < deadline:
                poller.wait(0.01)
        assert isinstance(caller.error, ProtocolError) and "2 messages were received of 1" in str(caller.error)
        caller.close()


def test_nobody_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for _ in range(2):
        with pytest.raises(DirectoryUnreachable, match=f"127.0.0.1:{port}"):
            asking.ask(f"tcp://127.0.0.1:{port}", wire.Query(1, "status", 0, 0, 0), 0.3)


@pytest.mark.parametrize("address", ["nonsense", "tcp://127.0.0.1", "tcp://no-such-host.invalid:1", "tcp://*:*"])
def test_an_address_that_leads_nowhere(hall: Hall, address: str) -> None:
    with pytest.raises(InvalidArgument):
        Caller(hall.poller, address, lambda *_: None, lambda *_: None)


def test_two_listeners_on_one_port(hall: Hall) -> None:
    with pytest.raises(InvalidArgument, match="another process listens on"):
        Listener(hall.poller, hall.listener.address)
