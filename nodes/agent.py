"""The node agent: one thread, one loop over TCP connections, userfaultfds and the Unix socket, around the pager."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import socket
import stat
import struct
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dsm import constants, daemon, errors, memory, wire
from dsm.codec import pack, unpack
from dsm.logline import line
from dsm.poller import BROKEN, Handler, Poller
from dsm.story import Story, text
from dsm.stream import REDIAL_S, Link
from dsm.trace import Trace, untraced
from nodes.applications import Applications
from nodes.keeper import UPGRADE, Shelf, Thing
from nodes.links import Links, Membership
from nodes.memory import Mapping, RegionMemory
from nodes.notes import SharedNotes
from nodes.pager import Pager
from nodes.rebuild import Rebuild
from nodes.retained import SharedRetained
from nodes.taking import Taking
from nodes.tenure import Tenure
from nodes.tracing import TracedOutlets, TracedUserfaultfd

if TYPE_CHECKING:
    from dsm.seal import Seal

log = logging.getLogger("dsm.node")

_NODE: Final = "node"
_REGION: Final = "region "
"""Names on the shelf: of what an agent needs before all else, and of a region."""

_UNUSED_S: Final = 30.0
"""How long an agent that leaves with its last application waits for its first."""

_APPEND: Final = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Agent:
    """The agent of one host, joined to ``directory`` and listening for peers on ``listen`` (``tcp://IP:PORT``) and for
    applications on the Unix socket ``path``.

    ``trace``: where to record what is done when. ``end_applications``: kill those still attached when it stops.
    ``exit_when_idle``: stop when the last one has left.
    """

    def __init__(
        self,
        directory: str,
        listen: str,
        path: Path,
        name: str,
        group: str | None,
        trace: Trace | None = None,
        *,
        end_applications: bool,
        exit_when_idle: bool,
        shelf: Shelf,
        seal: Seal | None = None,
    ) -> None:
        self.name = name
        self._shelf = shelf
        found = shelf.found
        self.started_s = time.monotonic()
        self.path = path
        self._trace = trace
        self._poller = Poller(trace.around if trace else untraced)
        self._poller.seal = seal
        before, descriptors = _before(found)
        try:
            self.links = Links(self._poller, directory, listen, name, before)
        except BaseException:
            self._poller.close()
            raise
        self._notes = SharedNotes(*descriptors[:1])
        retained = SharedRetained(self.links.acknowledged, descriptors[1:])
        if before is None:
            node, session, listening = self.links.membership
            kept = [self._notes.memfd, *retained.memfds, listening]
            shelf.put(_NODE, pack(node, session, self.links.shards), kept)
        numbers = _unguessable()
        story = Story(time.time)
        self.pager = Pager(
            self.links.node,
            TracedOutlets(self.links, trace.around) if trace else self.links,
            time.perf_counter_ns,
            finished=self._finished,
            blame=self.blame,
            tell=_tell,
            retained=retained,
            story=trace.follow(story) if trace else story,
            number=lambda _: next(numbers),
            shards=self.links.shards,
        )
        self.rejected = 0
        self._launched = end_applications and not exit_when_idle
        self._end_applications = end_applications
        self._comes_back = not end_applications  # as another node, when the directory has sent it away
        self._exit_when_idle = exit_when_idle
        self._running = True
        self._fenced = False
        self._steps_aside = False
        self._leaving = False
        self._timer = memory.Timer()
        self._next_heartbeat_s = 0.0
        self.applications = Applications(self, group is not None, self._notes, shelf)
        self._tenure = Tenure(
            self.links.shards, self.started_s, self.pager, self.applications, log.warning, self._notes
        )
        self._rebuild = Rebuild(self.links, self.pager, self.applications, self._fence, log.warning)
        self._messages: dict[type[Any], Callable[[Any], None]] = {
            wire.Member: self.links.member,
            wire.MemberLeft: self._member_left,
            wire.Fenced: lambda m: self._fence(m.reason),
            wire.Destroy: self._destroy,
            wire.Recall: lambda m: self.applications.primitives.recall(m),
            wire.Rejoined: self._rebuild.rejoined,
            wire.Flush: self._rebuild.flush,
            wire.GoOn: self._go_on,
            wire.Take: self._take,
            wire.Revive: self._revive,
            wire.Drained: self._drained,
        }
        if before is not None:
            self._take_over(found)

    # -- the loop ----------------------------------------------------------------------------------------

    def watch(self, fd: int, handler: Handler) -> None:
        """Call ``handler`` with the events, as epoll gives them, whenever ``fd`` is readable or broken."""
        self._poller.watch(fd, handler)

    def unwatch(self, fd: int) -> None:
        """No longer; ``fd`` is still open."""
        self._poller.unwatch(fd)

    def remove_socket(self) -> None:
        """Remove the Unix socket, and with a launcher's last node the directory that was made for it. Not if another
        agent goes on, as another node: whoever connects meanwhile waits for it."""
        if self._fenced and self._comes_back:
            return
        self.path.unlink(missing_ok=True)
        if self._launched:
            with contextlib.suppress(OSError):  # another node's socket is still in it
                self.path.parent.rmdir()
        self._shelf.listener.close()

    def lease_left_s(self, now: float) -> float:
        """How long the directory is sure to count this node as a member."""
        return self._tenure.left_s(now)

    def stop(self) -> None:
        """Make :meth:`serve` return; may be called from a signal handler. What only this node has goes to others first,
        unless this is called once more, or there is nobody to ask."""
        at_once = self._leaving or self._end_applications or self._exit_when_idle
        if at_once or self.links.shards > 1 or not self.links.is_connected:
            self._running = False
        else:
            self.drain()

    def drain(self) -> None:
        """Leave when others have what only this node has."""
        self._leaving = True
        self.links.send(wire.DIRECTORY, wire.Drain())

    def _drained(self, m: wire.Drained) -> None:
        if m.left:
            log.warning("%s", line("leaving", lost_pages=m.left, reason="no other node could take them"))
        self._running = False

    def _take(self, m: wire.Take) -> None:
        """Fetch pages that another node is about to take along, or wants to be safe."""
        region = self.pager.regions.get(m.region)
        try:
            if region is None:
                region = self.new_region(m.region, m.name, m.size, m.page_size, m.options)
        except (errors.DsmError, OSError) as error:
            log.error("cannot take pages of region %r: %s", m.name, error)
            self.links.send(wire.DIRECTORY, wire.Taken(m.region, m.start, m.count))
        else:
            Taking(self.pager, m, self.links).go_on()

    def new_region(self, number: int, name: str, size: int, page_size: int, options: dict[str, Any]) -> RegionMemory:
        """A region is used here for the first time. Raises DsmError or OSError if there is no room for it."""
        region = RegionMemory(number, name, size, page_size, options, self.blame)
        self._shelf.put(f"{_REGION}{number}", pack(number, name, size, page_size, options), region.descriptors)
        self.pager.add_region(region)
        return region

    def _destroy(self, m: wire.Destroy) -> None:
        self._shelf.drop(f"{_REGION}{m.region}")
        self.pager.destroy(m.region)

    def _revive(self, m: wire.Revive) -> None:
        self.pager.step(m)
        self._rebuild.revived()

    def _take_over(self, found: dict[str, Thing]) -> None:
        """Go on where an agent that was killed has stopped: with its memory, its applications, and its peers."""
        self._notes.found([int(name.split()[1]) for name in found if name.startswith("connection ")])
        self.pager.freeze()
        for name, thing in found.items():
            if name.startswith(_REGION):
                number, label, size, page_size, options = unpack(thing.note)
                self.pager.take_over(RegionMemory(number, label, size, page_size, options, self.blame, thing.fds))
        self.applications.take_over(found)
        log.warning("%s", line("taken_over", node=self.links.node, applications=self.applications.processes()))

    def step_aside(self) -> None:
        """Let another agent take the place of this one: the program as it is installed now."""
        self._steps_aside = True
        self._running = False

    def _finished(self, waiter: Any) -> None:
        if type(waiter) is Taking:
            waiter.came()
        else:
            self.applications.attachments.prefetched(waiter)

    def _go_on(self, m: wire.GoOn) -> None:
        self._rebuild.go_on(m)
        if self._leaving:  # the directory has forgotten that
            self.drain()

    def serve(self) -> None:
        """Serve until :meth:`stop`; then leave the cluster. Raises :class:`~dsm.errors.Fenced` if the directory sent us
        away. Ends the process if it is to be replaced."""
        self.watch(self._timer.fileno(), lambda _: self._timer.clear())
        links = self.links
        links.start(self._from_directory, self._from_peer, self._forgotten, self._rebuild.broken)
        self._shelf.settled()  # from now on this hides the pages itself when the lease is over
        log.info(
            "%r is node %d of %s; applications: DSM_NODE=%s", self.name, links.node, links.directory_address, self.path
        )
        with _wakeup() as woken:
            self.watch(woken, lambda _: _drain(woken))
            try:
                daemon.serve(self._turn)
            except Exception as error:
                self._end_applications = True  # what they would read from now on is worth nothing
                if isinstance(error, errors.Violation):
                    self._report(error)
                raise
            finally:
                if self._steps_aside:
                    sys.exit(UPGRADE)
                self._leave()
        if self._fenced:
            raise errors.Fenced(
                "the directory no longer counts this node as a member, so its pages may be stale: "
                "its applications were ended; start the node again"
            )

    def _report(self, violation: errors.Violation) -> None:
        region = self.pager.regions.get(violation.region)
        if region is not None:
            story = text(self.pager.machine.story_of(violation.region, violation.page))
            log.critical("%s\npage %d of region %r: %s", violation, violation.page, region.name, story)

    def _turn(self) -> bool:
        """Wait, handle what is ready, and do the next piece of what can wait. Is there to be another turn?"""
        now = time.monotonic()
        if now >= self._next_heartbeat_s:
            self._next_heartbeat_s = now + constants.HEARTBEAT_S
            self._heartbeat(now)
        pager = self.pager
        links = self.links
        waits = links.waits
        at_once = pager.bulk and not pager.bulk_waits and not self._tenure.suspended
        returning = pager.frozen
        most_s = REDIAL_S if returning else self._next_heartbeat_s - now
        self._poller.wait(0 if at_once else most_s)
        if returning:  # others wait for this node
            links.look_after()
        if waits:  # a turn long
            links.flush()
        if self._tenure.suspended:
            return self._running
        if pager.holds:
            wait_us = pager.expire_holds()
            if wait_us:
                self._timer.set_us(wait_us)
        if pager.bulk:
            pager.send_frame()
        if self._exit_when_idle and self.applications.idle:
            self._running = False
        return self._running

    def _heartbeat(self, now: float) -> None:
        self.links.send_to_shards(self._tenure.heartbeat(now))
        self._tenure.look(now)
        self._shelf.beat(now + self._tenure.left_s(now))
        self.applications.look_after(now)
        self.links.look_after()
        if self._exit_when_idle and not self.applications.any_came and now - self.started_s > _UNUSED_S:
            self._running = False

    # -- messages ----------------------------------------------------------------------------------------

    def _from_peer(self, link: Link, data: memoryview, payload: memoryview) -> None:
        try:
            message = wire.decode(data)
        except errors.DsmError:
            self.rejected += 1
            return
        if self._tenure.suspended:
            kept = memoryview(bytearray(payload))  # what is in the link's buffer does not stay
            self._tenure.hold_back(partial(self._peer_said, link, message, kept))
        else:
            self._peer_said(link, message, payload)

    def _peer_said(self, link: Link, message: wire.Message, payload: memoryview) -> None:
        kind = type(message)
        if kind is wire.Data:
            if not self.pager.data(message, payload):  # type: ignore[arg-type]
                self.rejected += 1
                return
        elif kind is wire.Ack and not payload:
            self.pager.step(message)
        elif kind is wire.Flushed and not payload:
            if not self._rebuild.flushed(message):  # type: ignore[arg-type]
                self.rejected += 1
                return
        else:
            self.rejected += 1
            return
        link.proven = True

    def _from_directory(self, data: bytes | memoryview) -> None:
        try:
            message = wire.decode(data)
        except errors.DsmError as error:
            self.rejected += 1
            log.error("the directory sent what is no message: %s", error)
            return
        kind = type(message)
        if kind is wire.Lease:
            self._tenure.renewed(message, time.monotonic())  # type: ignore[arg-type]
            self.links.heard(message)  # type: ignore[arg-type]
        elif self._tenure.suspended and kind is not wire.Fenced:
            self._tenure.hold_back(partial(self._directory_said, message))
        else:
            self._directory_said(message)

    def _directory_said(self, message: wire.Message) -> None:
        kind = type(message)
        if kind in self._messages:
            self._messages[kind](message)
        elif kind in wire.ANSWERS:
            self.applications.ledger.answered(message)
        elif kind in self.pager.machine.messages:
            self.pager.step(message)
        else:
            self.rejected += 1
            log.error("the directory sent what it should not: %s", kind.__name__)

    def _member_left(self, m: wire.MemberLeft) -> None:
        self.pager.member_left(m)
        self._rebuild.member_left(m.node)

    def _forgotten(self, why: str) -> None:
        """The directory does not know the conversation with this node."""
        if self.links.shards > 1:  # such a directory cannot begin again
            self._fence(why)
        else:
            self._rebuild.begin()
            self._next_heartbeat_s = 0.0

    def _fence(self, reason: str) -> None:
        """The others go on without this node: nothing here may be read or written any more."""
        log.critical("%s", line("fenced", reason=reason))
        self._fenced = self._end_applications = True
        self._running = False

    def _leave(self) -> None:
        if self._end_applications:
            self.applications.end_all()
        self.pager.withdraw()  # before the others may go on without this node
        self.applications.close()
        self.links.close()
        for region in self.pager.regions.values():
            region.close()

    # -- mappings ----------------------------------------------------------------------------------------

    def take_in(self, mapping: Mapping) -> bool:
        """Serve the faults of a new mapping. False if its process has gone already."""
        if not mapping.region.take_in(mapping):
            return False
        if self._trace:
            mapping.uffd = TracedUserfaultfd(mapping.uffd, self._trace.around)
        self.watch(mapping.uffd.fileno(), lambda events: self._faults(mapping, events))
        return True

    def drop_mapping(self, mapping: Mapping) -> None:
        """An application has detached."""
        self.unwatch(mapping.uffd.fileno())
        self.pager.drop_mapping(mapping)

    def _faults(self, mapping: Mapping, events: int) -> None:
        if events & BROKEN:  # its owner has made it blocking: reading could wait for ever
            self.blame(mapping, OSError(errno.EINVAL, "its userfaultfd was made blocking"))
        else:
            self.pager.faults(mapping)

    def blame(self, mapping: Mapping, error: OSError) -> None:
        """An application's userfaultfd does not do what it must: its memory cannot be kept coherent, so end it."""
        self.unwatch(mapping.uffd.fileno())
        line = f"dsm: ended: region {mapping.region.name!r} is no longer registered as it was ({error.strerror})"
        _tell(mapping.pid, line)
        self.applications.end(mapping)


def may_be_taken_over(found: dict[str, Thing]) -> bool:
    """Can another agent go on with what one that was killed has left?"""
    if _NODE not in found:
        return False
    note, fds = found[_NODE]
    shards: int = unpack(note)[2]
    return shards == 1 and SharedNotes(fds[0]).lease > time.monotonic()


def _before(found: dict[str, Thing]) -> tuple[Membership | None, list[int]]:
    """The membership of an agent that was killed, if there was one; and the descriptors of its notes and of what it has
    retained."""
    if _NODE not in found:
        return None, []
    note, fds = found[_NODE]
    node, session, _ = unpack(note)
    listening = socket.socket(fileno=fds[-1])
    listening.setblocking(False)
    return Membership(node, session, listening), fds[:-1]


def _unguessable() -> Iterator[int]:
    """Numbers below 2**32 that nobody can guess; drawn many at a time, since each is on the way of a fault."""
    while True:
        for (number,) in struct.iter_unpack("I", os.urandom(4096)):
            yield number


def _drain(fd: int) -> None:
    with contextlib.suppress(BlockingIOError):
        os.read(fd, 4096)


@contextlib.contextmanager
def _wakeup() -> Any:
    """A descriptor that becomes readable when a signal has arrived: epoll would otherwise go back to sleep after it."""
    readable, writable = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    before = signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
    try:
        yield readable
    finally:
        signal.set_wakeup_fd(before)
        os.close(readable)
        os.close(writable)


def _standard_error(pid: int) -> int:
    """A file is taken rather than opened: what others write to it next comes behind, not over it. It cannot make us
    wait, as a pipe could."""
    path = f"/proc/{pid}/fd/2"
    if stat.S_ISREG(os.stat(path).st_mode):
        with contextlib.suppress(OSError):  # we may not, or it is in another container
            return memory.take_descriptor(pid, 2)
    return os.open(path, _APPEND)


def _tell(pid: int, line: str) -> None:
    """Add a line to where an application writes its errors. It cannot do so itself: it is in a page fault.

    Only for processes of the agent's own user, whose files it may write anyway, and never waiting for a reader.
    """
    log.error("%s (process %d)", line, pid)
    data = line.encode() + b"\n"
    with contextlib.suppress(OSError):
        if pid and os.stat(f"/proc/{pid}").st_uid == os.getuid():
            try:
                fd = _standard_error(pid)
            except OSError as error:
                if error.errno == errno.ENXIO:  # a socket, as under systemd: it cannot be opened, only taken
                    with socket.socket(fileno=memory.take_descriptor(pid, 2)) as stream:
                        stream.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                return
            try:
                os.write(fd, data)
            finally:
                os.close(fd)
