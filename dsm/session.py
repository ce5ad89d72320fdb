"""A conversation that outlives its connections: pure.

Messages go over a TCP connection in frames, in order. A connection may break without either end dying: whatever was
under way is then lost, and nobody knows what. So each end keeps what it has sent until the other is known to have it,
which every frame tells of the opposite direction; when they are connected again, each says how many messages it has
received, and the other goes on from there. Nothing is lost, nothing comes twice.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import Final

from dsm.errors import ProtocolError

HEAD: Final = struct.Struct("!IIQ")
"""Before each message: its length, that of the page data after it, and how many messages the sender has received."""
HELLO: Final = struct.Struct("!4s16sQ?")
"""First on a connection, from both ends: a magic word, the session, how many messages of it the sender has received,
and whether it knows that session from before."""
_MAGIC: Final = b"dsm\x00"

_OWED_BYTES_MAX: Final = 256 << 10
"""What an end receives before it acknowledges it though it has nothing to say."""
_MESSAGE_BYTES: Final = 2 << 10
"""What a message counts for, beside its length: it is an object at its sender."""


class Session:
    """One end of a conversation; ``name``, 16 bytes that nobody can guess, is what both ends call it.

    ``received``: messages that have come. ``kept``: frames that were sent and may have to be sent again.
    ``acknowledged``: messages that the other end is known to have received.
    """

    __slots__ = ("_owed_bytes", "acknowledged", "kept", "kept_bytes", "name", "received")

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.received = 0
        self.kept: deque[bytes | tuple[bytes, bytes]] = deque()
        self.kept_bytes = 0
        self.acknowledged = 0
        self._owed_bytes = 0

    def frame(self, data: bytes, payload: bytes = b"") -> bytes:
        """The bytes of a message, with the page data that belongs to it. It counts as sent."""
        self._owed_bytes = 0
        frame = HEAD.pack(len(data), len(payload), self.received) + data + payload
        self.kept.append(frame)
        self.kept_bytes += len(frame)
        return frame

    def parts(self, data: bytes, payload: bytes) -> tuple[bytes, bytes]:
        """The same in two parts, where there is too much page data to be copied once more."""
        self._owed_bytes = 0
        parts = HEAD.pack(len(data), len(payload), self.received) + data, payload
        self.kept.append(parts)
        self.kept_bytes += _length(parts)
        return parts

    def arrived(self, length: int) -> bool:
        """A message has come, whose frame has ``length`` bytes. Is it time to acknowledge?"""
        self.received += 1
        self._owed_bytes += length + _MESSAGE_BYTES
        return self._owed_bytes > _OWED_BYTES_MAX

    @property
    def owes(self) -> bool:
        """Has something come that was not acknowledged?"""
        return self._owed_bytes > 0

    @property
    def sent(self) -> int:
        """Messages that were sent."""
        return self.acknowledged + len(self.kept)

    def acknowledgement(self) -> bytes:
        """A frame by itself that tells what has been received; it is no message."""
        self._owed_bytes = 0
        return HEAD.pack(0, 0, self.received)

    def acknowledge(self, received: int) -> None:
        """The other end has received so many messages. Raises :class:`ProtocolError` if that cannot be."""
        news = received - self.acknowledged
        if news <= 0:
            return  # in a frame that is sent again
        if news > len(self.kept):
            raise ProtocolError(f"{received} messages were received of {self.acknowledged + len(self.kept)}")
        self.acknowledged = received
        for _ in range(news):
            self.kept_bytes -= _length(self.kept.popleft())

    @property
    def fresh(self) -> bool:
        """Has nothing come, and nothing arrived as far as is known? Then it may begin anew with an end that has
        forgotten it."""
        return not self.received and not self.acknowledged

    def hello(self, known: bool) -> bytes:
        """The first bytes of a connection; ``known``: the session is not new to this end."""
        self._owed_bytes = 0
        return HELLO.pack(_MAGIC, self.name, self.received, known)

    def resume(self, received: int) -> list[bytes]:
        """There is a connection again, and the other end has received so many messages: what to send, in order.

        Raises :class:`ProtocolError` if the other end has forgotten what it had acknowledged.
        """
        if received < self.acknowledged:
            raise ProtocolError(f"{received} messages were received, where it had been {self.acknowledged}")
        self.acknowledge(received)
        frames: list[bytes] = []
        for frame in self.kept:
            if isinstance(frame, bytes):
                frames.append(frame)
            else:
                frames += frame
        return frames


def _length(frame: bytes | tuple[bytes, bytes]) -> int:
    return len(frame) if isinstance(frame, bytes) else len(frame[0]) + len(frame[1])


def read_hello(data: bytes) -> tuple[bytes, int, bool]:
    """Session, messages received and whether it is known, of a hello. Raises :class:`ProtocolError` if it is none."""
    magic, name, received, known = HELLO.unpack(data) if len(data) == HELLO.size else (b"", b"", 0, False)
    if magic != _MAGIC:
        raise ProtocolError("no dsm service speaks on this connection")
    return name, received, known
