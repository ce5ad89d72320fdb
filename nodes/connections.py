"""One connection of an application, and one process of which the directory is to know the end: what an agent knows of
them, and notes for the one that takes its place (:mod:`nodes.notes`)."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from typing import Final, NamedTuple

from dsm import errors, local, wire
from dsm.codec import pack, unpack
from nodes.memory import Mapping, RegionMemory
from nodes.notes import NOTE_BYTES_MAX

REPLY_BYTES_MAX: Final = 8 << 10
"""Of an answer that is noted. A longer one is to a question that may be asked again."""


class Noted(NamedTuple):
    """What was noted of a connection beside what is in it again: the number of its region, where that is mapped, the
    regions it holds, its process."""

    region: int
    address: int
    holds: list[int]
    party: int


class Connection:
    """``slot`` is its own in the notes. ``number`` is that of the last question; ``question`` what it waits for, as it
    was told to the directory under ``ticket``, or as it came; ``reply`` its last answer, a packet."""

    __slots__ = (
        "cancelled", "died", "holds", "locks", "mapping", "number", "party", "pid", "pidfd", "postponed", "question",
        "region", "reply", "slot", "sock", "ticket",
    )  # fmt: skip

    def __init__(self, sock: socket.socket, pid: int, slot: int, pidfd: int) -> None:
        self.sock = sock
        self.pid = pid
        self.slot = slot
        self.pidfd = pidfd  # -1: a process of another container
        self.region: RegionMemory | None = None  # attached, or about to be
        self.mapping: Mapping | None = None
        self.number = 0
        self.ticket = 0  # of what it waits for
        self.question: wire.Message | None = None
        self.reply = b""
        self.cancelled = False
        self.postponed = False  # it waits for the lease of this node
        self.locks: dict[str, tuple[int, bytes]] = {}  # held on this connection: how granted, how acquired
        self.died: list[tuple[int, int, str]] = []  # locks that were left as by one who died: when told, how granted
        self.holds: dict[int, None] = {}  # regions that are not over while it is open
        self.party: Party | None = None  # the process, once it has to do with a barrier

    @property
    def open(self) -> bool:
        return self.sock.fileno() >= 0

    @property
    def waits(self) -> bool:
        """Is an answer owed?"""
        return self.question is not None

    def note(self) -> bytes:
        """Everything that has to be known of it, packed. Raises :class:`ValueError` if that is too much."""
        note = pack(
            self.number,
            self.reply,
            self.ticket,
            b"" if self.question is None else wire.encode(self.question),
            self.cancelled,
            self.locks,
            self.died,
            0 if self.region is None else self.region.number,
            0 if self.mapping is None else self.mapping.address,
            list(self.holds),
            0 if self.party is None else self.party.number,
        )
        if len(note) > NOTE_BYTES_MAX:
            raise ValueError(f"a note of {len(note)} bytes")
        return note

    def recall(self, note: bytes) -> Noted:
        """Be as it was noted."""
        self.number, self.reply, self.ticket, question, self.cancelled, locks, died, *rest = unpack(note)
        self.question = wire.decode(question) if question else None
        self.locks = {name: (grant, acquired) for name, (grant, acquired) in locks.items()}
        self.died = [(told, grant, name) for told, grant, name in died]
        return Noted(*rest)

    def hang_up(self) -> None:
        """End it, also where a keeper has the socket, too."""
        with contextlib.suppress(OSError):  # the other end has gone already
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()

    def close(self) -> None:
        if self.open:
            self.hang_up()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1

    def kill(self) -> None:
        if self.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)


class Party:
    """A process that has to do with a barrier: the directory is to know when it has ended."""

    __slots__ = ("connections", "died", "number", "pid", "pidfd")

    def __init__(self, number: int, pid: int, pidfd: int) -> None:
        self.number = number
        self.pid = pid
        self.pidfd = pidfd
        self.connections = 0
        self.died = True  # if it ends without another word

    @property
    def ended(self) -> bool:
        """It may be without a connection for a while; in another container, that is all there is to know it by."""
        return not self.connections and (self.pidfd < 0 or local.ended(self.pidfd))

    def note(self) -> bytes:
        """What has to be known of it, packed."""
        return pack(self.number, self.pid, self.died)

    def descriptors(self) -> list[int]:
        """Its pidfd, if there is one."""
        return [self.pidfd] if self.pidfd >= 0 else []

    def close(self) -> None:
        if self.pidfd >= 0:
            os.close(self.pidfd)


def recall_party(note: bytes, fds: list[int]) -> Party:
    """The party that was noted like that."""
    number, pid, died = unpack(note)
    party = Party(number, pid, fds[0] if fds else -1)
    party.died = died
    return party


def exhausted(error: OSError) -> errors.NodeExhausted:
    """What to tell an application where there are no descriptors, or no memory, for it."""
    return errors.NodeExhausted(
        f"the node agent cannot serve one more application or region ({error.strerror}): raise its `ulimit -n`, "
        "or detach from regions that are no longer used"
    )
