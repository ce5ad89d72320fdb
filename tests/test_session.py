"""A conversation over connections that break anywhere: every message comes once and in order, and no more is kept than
the other end may still need."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsm.errors import ProtocolError
from dsm.session import HEAD, HELLO, Session, read_hello

NAME = b"0123456789abcdef"


class End:
    """One end: what it has sent and heard, and the bytes that are on their way to it."""

    def __init__(self) -> None:
        self.session = Session(NAME)
        self.sent: list[tuple[bytes, bytes]] = []
        self.heard: list[tuple[bytes, bytes]] = []
        self.known = False
        self.coming = b""
        self._read = b""
        self._greeted = False

    def connect(self) -> bytes:
        """A new connection: what was read of a frame is worth nothing any more. The hello to send."""
        self._read = self.coming = b""
        self._greeted = False
        return self.session.hello(self.known)

    def say(self, data: bytes, payload: bytes) -> bytes:
        self.sent.append((data, payload))
        return self.session.frame(data, payload)

    def take(self, length: int) -> bytes:
        """So many bytes come. What it has to say to that."""
        self._read += self.coming[:length]
        self.coming = self.coming[length:]
        out = b""
        if not self._greeted:
            if len(self._read) < HELLO.size:
                return b""
            name, received, known = read_hello(self._read[: HELLO.size])
            assert name == NAME and (known or not self.known or not self.session.received)
            self._read = self._read[HELLO.size :]
            self._greeted = self.known = True
            out += b"".join(self.session.resume(received))
        while len(self._read) >= HEAD.size:
            length, payload_length, received = HEAD.unpack_from(self._read)
            middle, stop = HEAD.size + length, HEAD.size + length + payload_length
            if len(self._read) < stop:
                break
            self.session.acknowledge(received)
            if length:
                self.heard.append((self._read[HEAD.size : middle], self._read[middle:stop]))
                if self.session.arrived(stop):
                    out += self.session.acknowledgement()
            self._read = self._read[stop:]
        return out

    @property
    def greeted(self) -> bool:
        return self._greeted


class Conversation:
    def __init__(self) -> None:
        self.ends = End(), End()
        self.connect()

    def connect(self) -> None:
        """Whatever is under way is lost; both say hello."""
        hellos = [end.connect() for end in self.ends]
        self.ends[0].coming, self.ends[1].coming = hellos[1], hellos[0]

    def say(self, side: int, data: bytes, payload: bytes) -> None:
        frame = self.ends[side].say(data, payload)
        if self.ends[side].greeted:  # else it is sent when it is known what the other end has
            self.ends[1 - side].coming += frame

    def move(self, side: int, length: int) -> None:
        answer = self.ends[side].take(length)
        self.ends[1 - side].coming += answer

    def drain(self) -> None:
        while any(end.coming for end in self.ends):
            for side in (0, 1):
                self.move(side, 1 << 30)

    def check(self) -> None:
        for one, other in (self.ends, self.ends[::-1]):
            assert one.heard == other.sent[: len(one.heard)]
            assert one.session.received == len(one.heard)
            kept = [frame[HEAD.size :] for frame in one.session.kept]
            sent = [data + payload for data, payload in one.sent]
            assert kept == sent[len(sent) - len(kept) :]
            assert len(kept) >= len(sent) - len(other.heard), "what has not come may have to be sent again"
            assert one.session.kept_bytes == sum(map(len, one.session.kept))


SIDES = st.integers(0, 1)
ACTIONS: Any = st.lists(
    st.one_of(
        st.tuples(
            st.just("say"),
            SIDES,
            st.binary(min_size=1, max_size=40),
            st.sampled_from([b"", b"", b"p", bytes(300), bytes(150_000)]),
        ),
        st.tuples(st.just("move"), SIDES, st.sampled_from([1, 15, 16, 17, 28, 29, 30, 100, 1 << 20])),
        st.tuples(st.just("move"), SIDES, st.integers(1, 600)),
        st.tuples(st.just("connect")),
    ),
    max_size=80,
)


@given(ACTIONS)
def test_every_message_comes_once_and_in_order(actions: list[tuple[Any, ...]]) -> None:
    conversation = Conversation()
    for name, *arguments in actions:
        getattr(conversation, name)(*arguments)
        conversation.check()
    conversation.connect()
    conversation.drain()
    conversation.check()
    for one, other in (conversation.ends, conversation.ends[::-1]):
        assert one.heard == other.sent
    conversation.connect()  # in which both learn that all has come
    conversation.drain()
    assert [len(end.session.kept) for end in conversation.ends] == [0, 0]


@given(st.lists(st.integers(0, 100_000), min_size=1, max_size=300), SIDES)
def test_what_is_kept_is_bounded_by_acknowledgements(lengths: list[int], side: int) -> None:
    """Also if one end has nothing to say. A message of no length counts, too: it is an object."""
    conversation = Conversation()
    conversation.drain()
    session = conversation.ends[side].session
    for length in lengths:
        conversation.say(side, b"x", bytes(length))
        conversation.drain()
        assert session.kept_bytes <= 256 << 10
        assert len(session.kept) <= 128


def test_an_answer_acknowledges() -> None:
    conversation = Conversation()
    conversation.drain()
    one, other = conversation.ends
    for number in range(1000):
        conversation.say(number % 2, b"x", b"")
        conversation.drain()
        assert len(one.session.kept) + len(other.session.kept) <= 2
    assert len(one.heard) == len(other.heard) == 500


@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, (1 << 64) - 1))
def test_nobody_has_received_what_was_not_sent(sent: int, received: int, claimed: int) -> None:
    session = Session(NAME)
    for _ in range(sent):
        session.frame(b"x")
    session.acknowledge(min(received, sent))
    before = list(session.kept)
    if claimed > sent:
        for door in (session.acknowledge, session.resume):
            with pytest.raises(ProtocolError, match=f"{claimed} messages were received of {sent}"):
                door(claimed)
        assert list(session.kept) == before
    else:
        session.acknowledge(claimed)
        assert len(session.kept) == sent - max(claimed, min(received, sent))


def test_an_old_acknowledgement_changes_nothing() -> None:
    """It is in a frame that is sent again."""
    session = Session(NAME)
    frames = [session.frame(bytes([number])) for number in range(3)]
    session.acknowledge(2)
    session.acknowledge(1)
    session.acknowledge(0)
    assert list(session.kept) == frames[2:]
    assert session.kept_bytes == len(frames[2])


def test_who_has_forgotten_what_it_had_acknowledged_is_another() -> None:
    session = Session(NAME)
    session.frame(b"x")
    session.acknowledge(1)
    session.frame(b"y")
    with pytest.raises(ProtocolError, match="0 messages were received, where it had been 1"):
        session.resume(0)
    assert [frame[HEAD.size :] for frame in session.resume(1)] == [b"y"]


@pytest.mark.parametrize("data", [b"x" * HELLO.size, bytes(HELLO.size), b"GET / HTTP/1.1\r\n".ljust(HELLO.size)])
def test_what_is_no_hello(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        read_hello(data)


def test_a_hello_says_what_it_is() -> None:
    session = Session(NAME)
    session.arrived(1)
    assert read_hello(session.hello(True)) == (NAME, 1, True)
    assert read_hello(Session(NAME).hello(False)) == (NAME, 0, False)
