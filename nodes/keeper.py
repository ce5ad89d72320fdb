"""The keeper of a node: the process that started it. It has nothing to do but to hold what must outlive an agent, and
to start another one when the agent is killed. An agent that has hung, or was stopped, it kills: that one would neither
serve the applications nor hide the pages from them when the lease is over.

It holds descriptors: the memory files of regions, duplicates of the applications' userfaultfds (so that their mappings
stay registered, and faults that were told to the dead agent are told again), their connections, the sockets that
listen. The agent puts them here (:class:`Shelf`); the next agent is forked from the keeper, and so has them. What goes
with each is a small note of the agent's, which the keeper does not read.
"""

from __future__ import annotations

import contextlib
import logging
import math
import mmap
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, NoReturn, Protocol

from dsm import constants, memory
from dsm.codec import pack, unpack
from dsm.logline import line

log = logging.getLogger("dsm.node")

UPGRADE: Final = 75
"""Exit code of an agent that is to be replaced by one of the program as it is installed now."""
_HUNG_BEATS: Final = 6
_HUNG_BEATS_AT_LEASE_END: Final = 2
"""So often has the keeper, which was there itself, waited for a heartbeat when it gives the agent up. Another one has
to be there before the lease is over; when it is over already, the applications have to be ended before the directory
gives the node up (LEASE_MARGIN_S)."""
_PULSE: Final = struct.Struct("=Qd")
"""How many heartbeats there were, and when the lease is over (monotonic clock)."""
_STOPPED: Final = (signal.SIGTERM, signal.SIGINT)
_FDS_MAX: Final = 8
_PACKET_BYTES: Final = 64 << 10


class Thing(NamedTuple):
    """Descriptors, and what the agent noted of them."""

    note: bytes
    fds: list[int]


class Shelf(Protocol):
    """What an agent sees of its keeper. ``listener``: the Unix socket for applications, which is there all the time.
    ``found``: what the agent before this one has left, if there was one (``again``)."""

    listener: socket.socket
    found: dict[str, Thing]
    again: bool

    def put(self, name: str, note: bytes, fds: Sequence[int]) -> None:
        """Keep duplicates of these descriptors, in place of what was there under this name."""

    def drop(self, name: str) -> None:
        """Keep it no longer."""

    def clear(self) -> None:
        """Keep nothing any more: the node has left, and nothing of it is to be taken over."""

    def settled(self) -> None:
        """This agent has taken over."""

    def beat(self, lease: float) -> None:
        """This agent is alive, and its lease is over then. To be called with every heartbeat, once there was one."""


class _Shelf:
    def __init__(
        self, listener: socket.socket, found: dict[str, Thing], again: bool, keeper: socket.socket, pulse: mmap.mmap
    ) -> None:
        self.listener = listener
        self.found = found
        self.again = again
        self._keeper = keeper
        self._pulse = pulse

    def put(self, name: str, note: bytes, fds: Sequence[int]) -> None:
        self._say(["put", name, note], fds)

    def drop(self, name: str) -> None:
        self._say(["drop", name, b""], ())

    def clear(self) -> None:
        self.found = {}
        self._say(["clear", "", b""], ())

    def settled(self) -> None:
        self.found = {}
        self._say(["settled", "", b""], ())

    def beat(self, lease: float) -> None:
        beats, _ = _PULSE.unpack_from(self._pulse)
        _PULSE.pack_into(self._pulse, 0, beats + 1, lease)

    def _say(self, words: list[object], fds: Sequence[int]) -> None:
        with contextlib.suppress(BrokenPipeError):  # the keeper has been killed, and takes this process along
            socket.send_fds(self._keeper, [pack(*words)], fds)


class _Keeper:
    def __init__(self, listener: socket.socket, things: dict[str, Thing], served: bool) -> None:
        self.listener = listener
        self.things = things
        self.agent = 0
        self.pulse = mmap.mmap(-1, mmap.PAGESIZE)  # of the agent, which writes to it
        self._beats = self._missed = 0
        self._next_look_s = 0.0
        self.stopping = False
        self.served = served  # an agent was a member
        self.settled_s = time.monotonic() if things else math.inf  # when there last was an agent; there is one

    def stop(self, *_: object) -> None:
        """Asked to end: the agent knows how."""
        self.stopping = True
        if self.agent:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.agent, signal.SIGTERM)

    def hear(self, agent: socket.socket) -> bool:
        """Do what the agent says. False when it has nothing more to say."""
        try:
            flags = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
            data, fds, _, _ = socket.recv_fds(agent, _PACKET_BYTES, _FDS_MAX, flags)
        except BlockingIOError:
            return False
        except ConnectionResetError:
            return True
        if not data:
            return False
        word, name, note = unpack(data)
        if word == "settled":
            self.settled_s = math.inf
        elif word == "clear":
            self.settled_s = math.inf
            self._clear()
            self.expect_nothing()  # it takes as long as it takes to join again
        else:
            self._drop(name)
        if word == "put":
            self.served = True
            self.things[name] = Thing(note, list(fds))
        return True

    def _drop(self, name: str) -> None:
        before = self.things.pop(name, None)
        if before is not None:
            for fd in before.fds:
                os.close(fd)

    def wait(self, agent: socket.socket) -> int:
        """Keep what the agent gives, until it ends: its wait status."""
        pidfd = os.pidfd_open(self.agent)
        poll = select.poll()
        poll.register(agent, select.POLLIN)
        poll.register(pidfd, select.POLLIN)
        try:
            while True:
                now = time.monotonic()
                left_s = self.settled_s + constants.LEASE_S - now
                ready = poll.poll(max(0.0, min(left_s, self._next_look_s - now)) * 1000)
                self._look()
                if not ready and left_s <= 0:  # the applications must not go on without anybody for longer
                    log.critical("%s", line("ended", reason="no agent could take over for the length of a lease"))
                    self.end()
                    self.settled_s = math.inf
                    os.kill(self.agent, signal.SIGKILL)
                for fd, _ in ready:
                    if fd == agent.fileno() and not self.hear(agent):
                        poll.unregister(agent)
                if any(fd == pidfd for fd, _ in ready):
                    while self.hear(agent):
                        pass
                    return os.waitpid(self.agent, 0)[1]
        finally:
            os.close(pidfd)

    def expect_nothing(self) -> None:
        """The agent is not a member yet, or no longer."""
        _PULSE.pack_into(self.pulse, 0, 0, 0.0)

    def _look(self) -> None:
        """Is the agent alive? Only time counts in which this process was running, too: a host that stops as a whole is
        no reason to kill it."""
        now = time.monotonic()
        if now < self._next_look_s:
            return
        self._next_look_s = now + constants.HEARTBEAT_S
        beats, lease = _PULSE.unpack_from(self.pulse)
        self._missed = self._missed + 1 if beats == self._beats else 0
        self._beats = beats
        if beats and self._missed >= (_HUNG_BEATS if now < lease else _HUNG_BEATS_AT_LEASE_END):
            log.critical("%s", line("hung", agent=self.agent, heartbeats_missed=self._missed))
            self.expect_nothing()
            os.kill(self.agent, signal.SIGKILL)

    def end(self) -> None:
        """Kill the applications: nobody keeps their memory coherent any more."""
        end_applications(self.things)
        self._clear()

    def _clear(self) -> None:
        for known in list(self.things):
            self._drop(known)


MAPPED: Final = "mapped "
"""Names of things whose first descriptor is the pidfd of an application that has a region mapped."""


def end_applications(things: dict[str, Thing]) -> None:
    """Kill every application that has a region mapped, as far as it can be seen from here."""
    for name, thing in things.items():
        if name.startswith(MAPPED):
            with contextlib.suppress(OSError):  # it has ended, or is of another container
                signal.pidfd_send_signal(thing.fds[0], signal.SIGKILL)


def keep(argv: list[str], listen: Callable[[], socket.socket], ready_fd: int | None, resumed: int | None) -> Shelf:
    """Fork an agent, and whenever it is killed another one. Returns in the agents only: the keeper ends (SystemExit)
    as its agent does. ``argv`` starts this program anew, with ``--resume`` and a descriptor (``resumed``) from which
    the new program's keeper has what the old one had. ``listen`` makes the socket for applications."""
    keeper = _Keeper(listen(), {}, False) if resumed is None else _Keeper(*_read(resumed), True)
    for number in _STOPPED:
        signal.signal(number, keeper.stop)
    while True:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        keeper.expect_nothing()
        keeper.agent = os.fork()
        if not keeper.agent:
            ours.close()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to both; the keeper says when to stop
            memory.die_with_parent(signal.SIGKILL)
            return _Shelf(keeper.listener, keeper.things, keeper.served, theirs, keeper.pulse)
        theirs.close()
        if ready_fd is not None:
            os.close(ready_fd)
            ready_fd = None
        if keeper.stopping:
            keeper.stop()
        status = keeper.wait(ours)
        ours.close()
        killed_by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        if not killed_by and os.WEXITSTATUS(status) == UPGRADE:
            _execute(argv, keeper.listener, keeper.things)
        if not killed_by or keeper.stopping or not keeper.served:
            sys.exit(128 + killed_by if killed_by else os.WEXITSTATUS(status))
        log.warning("%s", line("killed", agent=keeper.agent, signal=signal.Signals(killed_by).name))
        if keeper.things:
            keeper.settled_s = min(keeper.settled_s, time.monotonic())
        else:  # nobody waits for it
            time.sleep(constants.HEARTBEAT_S)


def _execute(argv: list[str], listener: socket.socket, things: dict[str, Thing]) -> NoReturn:
    """Become the program as it is installed now."""
    note = os.memfd_create("dsm-kept", 0)
    listener.set_inheritable(True)
    os.write(note, pack(listener.fileno(), *([name, thing.note, thing.fds] for name, thing in things.items())))
    os.lseek(note, 0, os.SEEK_SET)
    for thing in things.values():
        for fd in thing.fds:
            os.set_inheritable(fd, True)
    os.execv(argv[0], [*argv, "--resume", str(note)])


def _read(note: int) -> tuple[socket.socket, dict[str, Thing]]:
    with open(note, "rb") as file:
        listening, *kept = unpack(file.read())
    listener = socket.socket(fileno=listening)
    listener.set_inheritable(False)
    things = {name: Thing(text, fds) for name, text, fds in kept}
    for thing in things.values():
        for fd in thing.fds:
            os.set_inheritable(fd, False)
    return listener, things
