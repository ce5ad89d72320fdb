"""The node agent: one thread, one loop over ZeroMQ, userfaultfds and the Unix socket, around the pure machine.

Order matters in one place only: effects of the machine are carried out in the order in which it returned them.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from dsm import constants, errors, local, memory, transport, wire
from dsm.geometry import pages_per_frame
from dsm.uffd import FLAG_WP, FLAG_WRITE
from nodes import effects, machine
from nodes.applications import Applications
from nodes.bulk import Bulk
from nodes.links import Links
from nodes.memory import Mapping, RegionMemory

log = logging.getLogger("dsm.node")

_UNUSED_S: Final = 30.0
"""How long an agent that leaves with its last application waits for its first."""

_APPEND: Final = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

_NOW_NS: Final = time.perf_counter_ns


class Agent:
    """The agent of one host, joined to ``directory`` and listening for peers on ``listen`` (``tcp://IP:PORT``) and for
    applications on the Unix socket ``path``.

    ``end_applications``: kill those still attached when it stops. ``exit_when_idle``: stop when the last one has left.
    """

    def __init__(
        self,
        directory: str,
        listen: str,
        path: Path,
        name: str,
        group: str | None,
        *,
        end_applications: bool,
        exit_when_idle: bool,
    ) -> None:
        self.name = name
        self.started_s = time.monotonic()
        self.path = path
        listener = local.listen(path, group)
        try:
            self.links = Links(directory, listen, name)
        except BaseException:
            listener.close()
            path.unlink(missing_ok=True)
            raise
        self.machine = machine.NodeMachine(self.links.node)
        self.regions: dict[int, RegionMemory] = {}
        self.rejected = 0
        self._launched = end_applications and not exit_when_idle
        self._end_applications = end_applications
        self._exit_when_idle = exit_when_idle
        self._running = True
        self._fenced = False
        self._epoll = select.epoll()
        self._epoll_fd = self._epoll.fileno()
        self._on: dict[int, Callable[[int], None]] = {}
        # zmq_poll looks at each thing it watches: so all descriptors, which may be hundreds, are one of them.
        self._watched: list[tuple[transport.Socket | int, int]] = [
            (self.links.inbox, transport.READABLE),
            (self.links.directory, transport.READABLE),
            (self._epoll_fd, transport.READABLE),
        ]
        self._staging = memory.Staging(constants.EXTENT_BYTES)  # a page is not larger
        self._timer = memory.Timer()
        self._holds: deque[tuple[int, int, int]] = deque()  # when over (ns), region, page
        self._bulk = Bulk()
        self._bulk_waits = False  # for a peer to take more
        self._served: Mapping | None = None  # whose threads the last Install has woken
        self._next_heartbeat_s = 0.0
        self.applications = Applications(self, listener, group is not None)
        self._effects: dict[type[Any], Callable[[Any], None]] = {
            effects.Install: self._install,
            effects.Resume: self._resume,
            effects.Unprotect: self._unprotect,
            effects.Supply: self._supply,
            effects.Expedite: self._expedite,
            effects.Drop: self._drop,
            effects.Send: self._send,
            effects.Hold: self._hold,
            effects.Finished: self._finished,
            effects.Poison: self._poison,
        }
        self._messages: dict[type[Any], Callable[[Any], None]] = {
            wire.Member: lambda m: self.links.member(m.node, m.address),
            wire.MemberLeft: self._member_left,
            wire.Fenced: self._fence,
            wire.Destroy: self._destroy,
        }

    # -- the loop ----------------------------------------------------------------------------------------

    def watch(self, fd: int, handler: Callable[[int], None]) -> None:
        """Call ``handler`` with the events, as epoll gives them, whenever ``fd`` is readable or broken."""
        self._on[fd] = handler
        self._epoll.register(fd, select.EPOLLIN)

    def unwatch(self, fd: int) -> None:
        """No longer; ``fd`` is still open."""
        if self._on.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def remove_socket(self) -> None:
        """Remove the Unix socket, and with a launcher's last node the directory that was made for it."""
        self.path.unlink(missing_ok=True)
        if self._launched:
            with contextlib.suppress(OSError):  # another node's socket is still in it
                self.path.parent.rmdir()

    def stop(self) -> None:
        """Make :meth:`serve` return; may be called from a signal handler."""
        self._running = False

    def serve(self) -> None:
        """Serve until :meth:`stop`; then leave the cluster. Raises :class:`DsmError` if the directory sent us away."""
        self.watch(self._timer.fileno(), lambda _: self._timer.clear())
        links = self.links
        log.info(
            "%r is node %d of %s; applications: DSM_NODE=%s", self.name, links.node, links.directory_address, self.path
        )
        with _wakeup() as woken:
            self.watch(woken, lambda _: _drain(woken))
            try:
                while self._running:
                    self._turn()
            finally:
                self._leave()
        if self._fenced:
            raise errors.DirectoryUnreachable(
                "the directory no longer counts this node as a member, so its pages may be stale: "
                "its applications were ended; start the node again"
            )

    def _turn(self) -> None:
        """Wait, then take at most one message of each socket and whatever the descriptors tell."""
        now = time.monotonic()
        if now >= self._next_heartbeat_s:
            self._next_heartbeat_s = now + constants.HEARTBEAT_S
            self._heartbeat(now)
        wait_ms = int((self._next_heartbeat_s - now) * 1000) + 1
        watched = self._watched
        if self._bulk_waits:
            watched = watched + self.links.bulk_writable(self._bulk.requesters())
        elif self._bulk:
            wait_ms = 0
        for ready, _ in transport.wait(watched, wait_ms):
            if ready is self.links.inbox:
                self._from_peer()
            elif ready is self.links.directory:
                self._from_directory(self.links.directory.recv())
            elif ready == self._epoll_fd:
                self._local()
        if self._holds:
            self._expire_holds()
        if self._bulk:
            self._send_frame()

    def _local(self) -> None:
        for fd, events in self._epoll.poll(0):
            handler = self._on.get(fd)  # one handled a moment ago may have closed this one
            if handler is not None:
                handler(events)
        if self._exit_when_idle and self.applications.idle:
            self.stop()

    def _heartbeat(self, now: float) -> None:
        self.links.send(wire.DIRECTORY, wire.Heartbeat(self.applications.processes()))
        self.applications.look_after(now)
        if self._exit_when_idle and not self.applications.any_came and now - self.started_s > _UNUSED_S:
            self.stop()

    # -- messages ----------------------------------------------------------------------------------------

    def _from_peer(self) -> None:
        try:
            message, length = self.links.receive(self._staging.buffer)
        except errors.DsmError:
            self.rejected += 1
            return
        kind = type(message)
        if kind is wire.Data:
            region = self.regions.get(message[0])
            if region is None or length != message[5] * region.page_size:
                self.rejected += 1
                return
            region.stats.pages_in += message[5]
            self.run(self.machine.data(message, self._staging))  # type: ignore[arg-type]
        elif kind is wire.Ack and not length:
            self.run(self.machine.step(message))
        else:
            self.rejected += 1

    def _from_directory(self, data: bytes) -> None:
        try:
            message = wire.decode(data)
        except errors.DsmError as error:
            self.rejected += 1
            log.error("the directory sent what is no message: %s", error)
            return
        kind = type(message)
        if kind in self._messages:
            self._messages[kind](message)
        elif kind in self.applications.answers:
            self.applications.answered(message)
        elif kind in self.machine.messages:
            self.run(self.machine.step(message))
        else:
            self.rejected += 1
            log.error("the directory sent what it should not: %s", kind.__name__)

    def _member_left(self, m: wire.MemberLeft) -> None:
        """What was on its way to a node that has gone goes nowhere; what it was to take away is taken away."""
        self.links.member_left(m.node)
        self.run(self.machine.step(m))
        for fetch, start, count in self._bulk.cancel(requester=m.node):
            if not fetch.keep:
                self.regions[fetch.region].drop(start, count)

    def _destroy(self, m: wire.Destroy) -> None:
        region = self.regions.pop(m.region, None)
        self.machine.remove_region(m.region)
        self._bulk.cancel(region=m.region)
        if region is not None:
            region.close()

    def _fence(self, m: wire.Fenced) -> None:
        """The others go on without this node: nothing here may be read or written any more."""
        log.critical("fenced: %s; ending the applications that are attached", m.reason)
        self._fenced = self._end_applications = True
        self.stop()

    def _leave(self) -> None:
        if self._end_applications:
            self.applications.end_all()
        for region in self.regions.values():  # before the others may go on without this node
            only_here = self.machine.counts(region.number)["exclusive"]
            if only_here and not self._end_applications:  # a launcher ends everybody: nobody will miss them
                log.warning("leaving with the only copy of at least %d pages of region %r", only_here, region.name)
            region.withdraw()
        self.applications.close()
        self.links.close()
        for region in self.regions.values():
            region.close()

    # -- faults ------------------------------------------------------------------------------------------

    def add_region(self, region: RegionMemory) -> None:
        """A region is attached on this node for the first time."""
        self.regions[region.number] = region
        self.machine.add_region(region.number, region.pages, region.page_size)

    def take_in(self, mapping: Mapping) -> bool:
        """Serve the faults of a new mapping. False if its process has gone already."""
        if not mapping.region.take_in(mapping):
            return False
        self.watch(mapping.uffd.fileno(), lambda events: self._faults(mapping, events))
        return True

    def drop_mapping(self, mapping: Mapping) -> None:
        """An application has detached."""
        region = mapping.region
        self.unwatch(mapping.uffd.fileno())
        region.mappings.remove(mapping)
        mapping.prefetch = None  # it knows its connection, which knows the mapping: nobody collects cycles here
        mapping.uffd.close()
        self.machine.forget_waiter(region.number, mapping)

    def _faults(self, mapping: Mapping, events: int) -> None:
        region = mapping.region
        if events & select.EPOLLERR:  # its owner has made it blocking: reading could wait for ever
            self.blame(mapping, OSError(errno.EINVAL, "its userfaultfd was made blocking"))
            return
        now = _NOW_NS()
        for flags, address in self._read_faults(mapping):
            page = (address - mapping.address) // region.page_size
            if not 0 <= page < region.pages:  # of a range that is none of ours; nobody will serve it
                continue
            write = flags & (FLAG_WRITE | FLAG_WP) != 0
            decided = self.machine.fault(region.number, page, write, mapping)
            local_only = bool(decided) and type(decided[0]) is effects.Resume
            if page not in mapping.since:
                kind = "local" if local_only else "upgrade" if flags & FLAG_WP else "write" if write else "read"
                mapping.since[page] = (now, kind)
            self.run(decided)
            if not local_only:
                self._ahead(mapping, page, write)

    def _read_faults(self, mapping: Mapping) -> list[tuple[int, int]]:
        try:
            return mapping.uffd.faults()
        except OSError as error:
            self.blame(mapping, error)
            return []

    def blame(self, mapping: Mapping, error: OSError) -> None:
        """An application's userfaultfd does not do what it must: its memory cannot be kept coherent, so end it."""
        self.unwatch(mapping.uffd.fileno())
        line = f"dsm: ended: region {mapping.region.name!r} is no longer registered as it was ({error.strerror})"
        _tell(mapping.pid, line)
        self.applications.end(mapping)

    def _ahead(self, mapping: Mapping, page: int, write: bool) -> None:
        window = (mapping.writes if write else mapping.reads).fault(page)
        if window is not None:
            decided = self.machine.read_ahead(mapping.region.number, *window, write, mapping)
            mapping.region.stats.pages_ahead += window[1] - window[0]
            self.run(decided)

    # -- effects -----------------------------------------------------------------------------------------

    def run(self, decided: list[effects.Effect]) -> None:
        """Carry out what the machine decided, in order."""
        for effect in decided:
            self._effects[type(effect)](effect)
        self._served = None

    def _install(self, e: effects.Install) -> None:
        region = self.regions[e.region]
        woken = region.install(e.start, e.count, e.payload, e.write, e.target)
        if woken and e.count == 1:
            self._served = e.target

    def _resume(self, e: effects.Resume) -> None:
        region = self.regions[e.region]
        for mapping in e.waiters:
            if mapping is not self._served:
                region.resume(mapping, e.page, e.write)
            since = mapping.since.pop(e.page, None)
            if since is not None:
                region.stats.faults[since[1]].add(_NOW_NS() - since[0])

    def _unprotect(self, e: effects.Unprotect) -> None:
        self.regions[e.region].unprotect(e.waiter, e.start, e.count)

    def _drop(self, e: effects.Drop) -> None:
        region = self.regions[e.region]
        region.drop(e.start, e.count)
        region.stats.invalidations += e.count

    def _send(self, e: effects.Send) -> None:
        self.links.send(e.to, e.message)

    def _hold(self, e: effects.Hold) -> None:
        self._holds.append((_NOW_NS() + constants.HOLD_US * 1000, e.region, e.page))

    def _finished(self, e: effects.Finished) -> None:
        self.applications.prefetched(e.waiter)

    def _poison(self, e: effects.Poison) -> None:
        region = self.regions[e.region]
        for mapping in e.waiters:
            mapping.since.pop(e.page, None)
            _tell(
                mapping.pid,
                f"dsm: page {e.page} of region {region.name!r} is lost: node {e.node!r}, which had its only copy, "
                "is gone; touching it is a bus error",
            )
            region.poison(mapping, e.page)

    def _supply(self, e: effects.Supply) -> None:
        fetch = e.fetch
        region = self.regions[fetch.region]
        if e.protect:
            region.protect(fetch.start, fetch.count)
        if fetch.ahead or fetch.count > pages_per_frame(region.page_size):
            self._bulk.add(fetch, pages_per_frame(region.page_size))
        else:
            self._send_pages(region, fetch, fetch.start, fetch.count, False)

    def _expedite(self, e: effects.Expedite) -> None:
        frame = self._bulk.expedite(e.hurry)
        if frame is not None:
            self._send_pages(self.regions[frame.fetch.region], *frame, False)

    def _send_frame(self) -> None:
        frame = self._bulk.next(self.links.takes_bulk)
        self._bulk_waits = frame is None
        if frame is not None:
            self._send_pages(self.regions[frame.fetch.region], *frame, True)

    def _send_pages(self, region: RegionMemory, fetch: wire.Fetch, start: int, count: int, bulk: bool) -> None:
        payload = region.read(start, count)
        if not fetch.keep:  # before it is sent: the requester may write as soon as it has arrived
            region.drop(start, count)
            region.stats.invalidations += count
        data = wire.Data(fetch.region, fetch.generation, fetch.start, fetch.count, start, count, fetch.acks)
        self.links.send_pages(fetch.requester, data, payload, bulk)
        region.stats.pages_out += count

    def _expire_holds(self) -> None:
        """End the holds that are over, and wake up for the next if somebody waits for it."""
        now = _NOW_NS()
        while self._holds and self._holds[0][0] <= now:
            _, region, page = self._holds.popleft()
            self.run(self.machine.hold_expired(region, page))
        if self._holds and self.machine.deferred:
            self._timer.set_us(max(1, (self._holds[0][0] - now) // 1000))


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


def _tell(pid: int, line: str) -> None:
    """Add a line to where an application writes its errors. It cannot do so itself: it is in a page fault.

    Only for processes of the agent's own user, whose files it may write anyway, and never waiting for a reader.
    """
    log.error("%s (process %d)", line, pid)
    data = line.encode() + b"\n"
    with contextlib.suppress(OSError):
        if pid and os.stat(f"/proc/{pid}").st_uid == os.getuid():
            try:
                fd = os.open(f"/proc/{pid}/fd/2", _APPEND)
            except OSError as error:
                if error.errno == errno.ENXIO:  # a socket, as under systemd: it cannot be opened, only taken
                    with socket.socket(fileno=memory.take_descriptor(pid, 2)) as stream:
                        stream.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                return
            try:
                os.write(fd, data)
            finally:
                os.close(fd)
