"""The local applications: their connections on the Unix socket, and what each of them waits for.

One connection carries one question at a time. What the directory has to answer gets a ticket, under which the
connection is found again. A connection that closes gives back everything it had: its mapping, its place in a queue,
its locks.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dsm import asking, errors, local, wire
from dsm.constants import DIRECTORY_TIMEOUT_S, PREFETCH_BYTES, PREFETCHES_MAX
from dsm.geometry import pages_in
from dsm.uffd import Userfaultfd, open_device
from nodes.locks import Locks
from nodes.memory import Mapping, RegionMemory
from nodes.pieces import Pieces

if TYPE_CHECKING:
    from nodes.agent import Agent


_OPTIONS_BYTES_MAX = 16 << 10
"""Of a region: they travel in every answer about it."""


class _Connection:
    __slots__ = ("holds", "locks", "mapping", "party", "pid", "pidfd", "postponed", "region", "sock", "ticket")

    def __init__(self, sock: socket.socket, pid: int) -> None:
        self.sock = sock
        self.pid = pid
        self.pidfd = os.pidfd_open(pid) if pid else -1  # no number here: a process of another container
        self.region: RegionMemory | None = None  # attached, or about to be
        self.mapping: Mapping | None = None
        self.ticket = 0  # of what it waits for
        self.postponed = False  # it waits for the lease of this node
        self.locks: dict[str, None] = {}  # held on this connection
        self.holds: dict[int, None] = {}  # regions that are not over while it is open
        self.party: _Party | None = None  # the process, once it has to do with a barrier

    @property
    def open(self) -> bool:
        return self.sock.fileno() >= 0

    def close(self) -> None:
        self.sock.close()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1

    def kill(self) -> None:
        if self.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)


class _Party:
    """A process that has to do with a barrier: the directory is to know when it has ended."""

    __slots__ = ("connections", "died", "number", "pidfd")

    def __init__(self, number: int, pid: int) -> None:
        self.number = number
        self.pidfd = os.pidfd_open(pid) if pid else -1
        self.connections = 0
        self.died = True  # if it ends without another word

    @property
    def ended(self) -> bool:
        """It may be without a connection for a while; in another container, that is all there is to know it by."""
        return not self.connections and (self.pidfd < 0 or local.ended(self.pidfd))

    def close(self) -> None:
        if self.pidfd >= 0:
            os.close(self.pidfd)


class _Prefetch:
    """An explicit prefetch, or a reset (``op``: READ, WRITE or RESET), of pages ``[start, stop)`` that is under way."""

    __slots__ = ("asking", "connection", "op", "pieces", "start", "stop")

    def __init__(self, connection: _Connection, start: int, stop: int, page_size: int, op: int) -> None:
        self.connection = connection
        self.start = start
        self.stop = stop
        self.pieces = Pieces(start, stop, max(1, PREFETCH_BYTES // page_size), PREFETCHES_MAX)
        self.op = op
        self.asking = False  # what is here already is over while it is asked for


class Applications:
    """All connections of one agent. ``any_user``: whoever may open the socket may use it, else its owner and root."""

    def __init__(self, agent: Agent, listener: socket.socket, any_user: bool) -> None:
        self._agent = agent
        self._listener = listener
        self._any_user = any_user
        self._device = open_device()
        self._spare = _spare()
        # Dicts for their order: what is done to all of them is done in order of arrival.
        self._connections: dict[_Connection, None] = {}
        self._silent: dict[_Connection, None] = {}  # closed, but the process has its region mapped still
        self._parties: dict[int, _Party] = {}  # by pid
        self._locks = Locks()
        self._suspended = False
        self._postponed: list[tuple[_Connection, wire.Acquire]] = []
        self._served_any = False
        self._last_ticket = 0
        self.heard = 0  # answers of the directory that have come, in its conversation of now
        # Who asked, what to do with the answer, and when it was asked (for ever, where a wait may last).
        self._tickets: dict[int, tuple[_Connection, Callable[[_Connection, Any], None], float]] = {}
        self._handlers: dict[type[Any], Callable[[_Connection, Any, list[int]], None]] = {
            wire.Attach: self._attach,
            wire.Mapped: self._mapped,
            wire.Detach: self._detached,
            wire.Hold: self._hold,
            wire.Prefetch: lambda c, m, _: self._fetch(c, m, wire.WRITE if m.write else wire.READ),
            wire.Reset: lambda c, m, _: self._fetch(c, m, wire.RESET),
            wire.Mirror: self._mirror,
            wire.StatsQuery: self._stats,
            wire.Query: self._query,
            wire.Unlink: self._unlink,
            wire.Acquire: self._acquire,
            wire.Release: self._release,
            wire.WaitOn: self._wait_on,
            wire.Enroll: self._enroll,
            wire.Arrive: self._arrive,
            wire.Post: self._synchronise,
            wire.BarrierReset: self._synchronise,
            wire.Forget: self._synchronise,
            wire.Inspect: self._inspect,
            wire.Gone: self._gone,
            wire.Cancel: self._cancel,
        }
        agent.watch(listener.fileno(), lambda _: self._accept())

    @property
    def idle(self) -> bool:
        """Has everybody who came left again?"""
        return self._served_any and not self._connections and not self._silent

    @property
    def any_came(self) -> bool:
        """Did any application ever connect?"""
        return self._served_any

    def processes(self, besides: _Connection | None = None) -> int:
        """How many processes are connected, not counting the connection ``besides``."""
        connections = self._connections | self._silent
        return len({connection.pid or connection for connection in connections if connection is not besides})

    def close(self) -> None:
        """Take no more connections, remove the socket, drop those that are there. Locks that nobody holds go back."""
        for message in self._locks.give_up():
            self._to_directory(message)
        self._agent.remove_socket()
        self._listener.close()
        for connection in self._connections | self._silent:
            connection.close()
        for party in self._parties.values():
            party.close()
        os.close(self._spare)
        if self._device is not None:
            os.close(self._device)

    def end_all(self) -> None:
        """Kill every process that is attached: without an agent it would wait in a page fault for ever."""
        for connection in self._connections | self._silent:
            if connection.mapping is not None:
                connection.kill()

    def end(self, mapping: Mapping) -> None:
        """Kill the process of a mapping that can no longer be kept coherent."""
        for connection in self._connections | self._silent:
            if connection.mapping is mapping or connection.pid == mapping.pid != 0:
                connection.kill()

    # -- connections -------------------------------------------------------------------------------------

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError as error:
            if error.errno == errno.EMFILE:
                self._turn_away(error)
            return  # else it has gone again
        sock.setblocking(False)
        try:
            pid, uid, _ = local.peer(sock)
            connection = _Connection(sock, pid)
        except OSError as error:
            _refuse(sock, _exhausted(error))
            return
        self._served_any = True
        self._connections[connection] = None
        if not self._any_user and uid not in (0, os.getuid()):
            text = f"this node belongs to user {os.getuid()}, you are user {uid}: start a node of your own"
            self._fail(connection, errors.PermissionDenied(text))
            return
        self._agent.watch(sock.fileno(), lambda _: self._readable(connection))

    def _turn_away(self, error: OSError) -> None:
        """Out of descriptors: a connection that is left in the queue would wake us for ever. One was kept for this."""
        os.close(self._spare)
        try:
            sock, _ = self._listener.accept()
            _refuse(sock, _exhausted(error))
        except OSError:
            pass
        finally:
            self._spare = _spare()

    def _readable(self, connection: _Connection) -> None:
        fds: list[int] = []
        try:
            message, fds = local.receive(connection.sock)
            if message is None:
                self._closed(connection)
                return
            handler = self._handlers.get(type(message))
            busy = connection.ticket or connection.postponed
            if handler is None or (busy and type(message) is not wire.Cancel):
                raise errors.ProtocolError(f"{type(message).__name__} was not expected now")
            handler(connection, message, fds)
        except BlockingIOError:
            return
        except errors.DsmError as error:
            self._fail(connection, error)
        except OSError:  # the application reset the connection
            self._closed(connection)
        finally:
            for fd in fds:
                with contextlib.suppress(OSError):
                    os.close(fd)

    def _reply(self, connection: _Connection, message: wire.Message, fds: list[int] | None = None) -> None:
        """Answer. An application that does not read its answer has gone, or will not be waited for."""
        if not connection.open:
            return
        try:
            try:
                local.send(connection.sock, message, fds or [])
            except errors.ProtocolError as error:  # too long for one packet
                local.send(connection.sock, wire.failure(0, error))
        except OSError:
            self._closed(connection)

    def _fail(self, connection: _Connection, error: errors.DsmError) -> None:
        """Say why, and end a connection that does not keep to the rules."""
        self._agent.rejected += 1
        self._reply(connection, wire.failure(0, error))
        self._closed(connection)

    def _closed(self, connection: _Connection) -> None:
        if connection not in self._connections:
            return
        del self._connections[connection]
        self._agent.unwatch(connection.sock.fileno())
        connection.sock.close()
        if connection.ticket:
            self._to_directory(wire.Cancel(connection.ticket, True))
        for name in connection.locks:
            self._released(name, died=True)
        for number in connection.holds:
            self._let_go_of(number)
        if connection.party is not None:
            connection.party.connections -= 1
            self._look_for(connection.pid or -connection.party.number, connection.party)
        self._silent[connection] = None
        self._let_go(connection)

    def _let_go(self, connection: _Connection) -> None:
        """Forget a closed connection, unless its process has the region mapped still: that must stay coherent."""
        mapping = connection.mapping
        if mapping is not None and mapping.region.is_mapped(mapping):
            return
        self._silent.pop(connection, None)
        connection.close()
        if mapping is not None:
            self._agent.drop_mapping(mapping)
        self._detach(connection)

    def look_after(self, now: float) -> None:
        """Let go who has left without a word; tell those who wait for a silent directory."""
        for connection in list(self._silent):
            self._let_go(connection)
        for key, party in list(self._parties.items()):
            self._look_for(key, party)
        for ticket, (connection, then, asked_s) in list(self._tickets.items()):
            if now - asked_s > DIRECTORY_TIMEOUT_S:
                text = asking.unreachable(self._agent.links.directory_address, DIRECTORY_TIMEOUT_S)
                self._reply(connection, wire.Failure(0, "DirectoryUnreachable", text))
                # What it is granted all the same is given back, as for a connection that has gone.
                self._tickets[ticket] = (connection, then, math.inf)
                self._closed(connection)

    def _detach(self, connection: _Connection) -> None:
        region, connection.region = connection.region, None
        if region is not None:
            region.users -= 1
            if not region.users:
                self._to_directory(wire.Close(region.number, region.opens))
                region.opens = 0

    # -- tickets -----------------------------------------------------------------------------------------

    def _to_directory(self, message: wire.Message) -> None:
        self._agent.links.tell(message)

    def _ask(self, connection: _Connection, message: Any, then: Callable[[_Connection, Any], None]) -> int:
        """Send a message to the directory under a new ticket; ``then`` gets the answer."""
        self._last_ticket = ticket = self._last_ticket % 0xFFFFFFFF + 1
        connection.ticket = ticket
        # It may wait for other applications as long as it takes.
        waits = type(message) in (wire.Arrive, wire.Mirror) or (
            type(message) is wire.Acquire and message.wait != wire.TRY
        )
        self._tickets[ticket] = (connection, then, math.inf if waits else time.monotonic())
        self._to_directory(message._replace(ticket=ticket))
        return ticket

    def answered(self, message: Any) -> None:
        """The directory has answered a ticket."""
        self.heard += 1
        asked = self._tickets.pop(message.ticket, None)
        if asked is not None:
            connection, then, _ = asked
            connection.ticket = 0
            then(connection, message)
        elif type(message) is wire.Opened:  # too late: nobody waits for it any more
            self._to_directory(wire.Close(message.region, 1))

    def awaited(self, again: list[Any]) -> list[int]:
        """Another conversation with the directory begins: the tickets that are still to be answered, but for those of
        messages that are said ``again``."""
        self.heard = 0
        said = {message.ticket for message in again if hasattr(message, "ticket") and type(message) is not wire.Cancel}
        return [ticket for ticket in self._tickets if ticket not in said]

    def _pass(self, connection: _Connection, answer: Any) -> None:
        """Hand the directory's answer to the application as it is; a bare success is told as Ready."""
        self._reply(connection, wire.Ready() if type(answer) is wire.Granted else answer._replace(ticket=0))

    def _forward(self, connection: _Connection, m: Any, _: list[int]) -> None:
        self._ask(connection, m, self._pass)

    # -- regions -----------------------------------------------------------------------------------------

    def _attach(self, connection: _Connection, m: wire.Attach, _: list[int]) -> None:
        if connection.region is not None:
            raise errors.ProtocolError("this connection is attached to a region already")
        if len(wire.encode(m)) > _OPTIONS_BYTES_MAX:
            raise errors.InvalidArgument(f"shape and dtype of a region take {_OPTIONS_BYTES_MAX} bytes at most")
        number = m.options.get("region")
        if number is None:
            question = wire.Open(0, m.name, m.size, m.page_size, m.create, m.options)
            self._ask(connection, question, lambda c, answer: self._opened(c, m.name, answer))
            return
        # A forked child of an attached process: it names the region by number, for the name may be unlinked.
        region = self._agent.pager.regions.get(number) if type(number) is int else None
        if region is None or not region.users:
            raise errors.RegionNotFound(f"region {m.name!r} is attached by nobody on this node any more")
        self._attached(connection, region)

    def _opened(self, connection: _Connection, name: str, m: Any) -> None:
        if type(m) is not wire.Opened:
            self._pass(connection, m)
            return
        region = self._agent.pager.regions.get(m.region)
        try:
            if region is None:
                region = RegionMemory(m.region, name, m.size, m.page_size, m.options, self._agent.blame)
                self._agent.pager.add_region(region)
        except (errors.DsmError, OSError) as error:
            self._to_directory(wire.Close(m.region, 1))
            self._fail(connection, error if isinstance(error, errors.DsmError) else _exhausted(error))
            return
        region.opens += 1
        self._attached(connection, region)

    def _attached(self, connection: _Connection, region: RegionMemory) -> None:
        connection.region = region
        region.users += 1
        if not connection.open:  # it left while the directory was asked
            self._detach(connection)
            return
        answer = wire.Attached(region.number, region.size, region.page_size, region.options, self._agent.name)
        self._reply(connection, answer, [region.memfd, *([] if self._device is None else [self._device])])

    def _mapped(self, connection: _Connection, m: wire.Mapped, fds: list[int]) -> None:
        region = connection.region
        if region is None or connection.mapping is not None or len(fds) != 1:
            raise errors.ProtocolError("Mapped comes once, after Attached, with one userfaultfd")
        uffd = Userfaultfd.adopt(fds[0])  # where it refuses, the descriptor is still ours
        fds.clear()
        mapping = Mapping(region, uffd, m.address, connection.pid)
        if not self._agent.take_in(mapping):
            mapping.uffd.close()
            raise errors.ProtocolError("the region is not registered with the userfaultfd that came with Mapped")
        connection.mapping = mapping
        if not region.kept:
            region.kept = True
            self._to_directory(wire.Keep(region.number))
        self._reply(connection, wire.Ready())

    def _detached(self, connection: _Connection, _: wire.Detach, __: list[int]) -> None:
        mapping, connection.mapping = connection.mapping, None
        if mapping is not None:
            self._agent.drop_mapping(mapping)
        self._detach(connection)
        self._reply(connection, wire.Ready())

    def _hold(self, connection: _Connection, m: wire.Hold, _: list[int]) -> None:
        region = self._agent.pager.regions.get(m.region)
        if m.on and (region is None or not region.users):
            raise errors.RegionNotFound(f"region number {m.region} is attached by nobody on this node any more")
        if m.on and region is not None and m.region not in connection.holds:
            connection.holds[m.region] = None
            region.holds += 1
            if region.holds == 1:
                self._to_directory(m)
        elif not m.on and m.region in connection.holds:
            del connection.holds[m.region]
            self._let_go_of(m.region)
        self._reply(connection, wire.Ready())

    def _let_go_of(self, number: int) -> None:
        region = self._agent.pager.regions.get(number)
        if region is not None:  # else it is over: it was unlinked
            region.holds -= 1
            if not region.holds:
                self._to_directory(wire.Hold(number, False))

    def _fetch(self, connection: _Connection, m: wire.Prefetch | wire.Reset, op: int) -> None:
        mapping = connection.mapping
        if mapping is None or mapping.prefetch is not None or not m.start <= m.stop <= mapping.region.size:
            raise errors.ProtocolError(f"{type(m).__name__} needs a range of the region attached on this connection")
        size = mapping.region.page_size
        stop = pages_in(m.stop, size) if m.start < m.stop else 0
        mapping.prefetch = _Prefetch(connection, m.start // size, stop, size, op)
        self._prefetch_more(mapping)

    def prefetched(self, mapping: Mapping) -> None:
        """A piece of an explicit prefetch has come."""
        if mapping.prefetch is not None:
            mapping.prefetch.pieces.came()
            if not mapping.prefetch.asking:
                self._prefetch_more(mapping)

    def _prefetch_more(self, mapping: Mapping) -> None:
        job: _Prefetch = mapping.prefetch
        pager, number = self._agent.pager, mapping.region.number
        job.asking = True
        while (piece := job.pieces.take()) is not None:
            if job.op == wire.RESET:
                pager.run(pager.machine.reset(number, *piece, mapping))
            else:
                pager.run(pager.machine.prefetch(number, *piece, job.op == wire.WRITE, mapping))
        job.asking = False
        if job.pieces.over:
            mapping.prefetch = None
            lost = pager.machine.lost(number, job.start, job.stop) if job.op != wire.RESET else None
            self._reply(job.connection, wire.Ready() if lost is None else _page_lost(mapping.region, *lost))

    def _mirror(self, connection: _Connection, m: wire.Mirror, _: list[int]) -> None:
        if connection.mapping is None:
            raise errors.ProtocolError("Mirror is for the region attached on this connection: there is none")
        self._ask(connection, m._replace(region=connection.mapping.region.number), self._pass)

    def _stats(self, connection: _Connection, _: wire.StatsQuery, __: list[int]) -> None:
        if connection.mapping is None:
            raise errors.ProtocolError("statistics are those of the region attached on this connection: there is none")
        region = connection.mapping.region
        report = region.stats.report(region.page_size)
        report["pages"] = self._agent.pager.machine.counts(region.number)
        report["node"] = self._agent.name
        self._reply(connection, wire.Answer(0, report))

    def _unlink(self, connection: _Connection, m: wire.Unlink, _: list[int]) -> None:
        self._ask(connection, m, self._pass)

    # -- questions ---------------------------------------------------------------------------------------

    def _query(self, connection: _Connection, m: wire.Query, _: list[int]) -> None:
        if m.what == "here":
            self._reply(connection, wire.Answer(0, {}))
        elif m.what == "drain":
            self._drain(connection)
        elif m.what == "story":
            self._ask(connection, m, lambda c, answer: self._story(c, m, answer))
        else:
            self._ask(connection, m, self._status if m.what == "status" else self._pass)

    def _drain(self, connection: _Connection) -> None:
        """Leave, if nobody needs this node any more; whoever asked waits for the end of the connection."""
        attached = [other for other in self._connections | self._silent if other.mapping is not None]
        if attached:
            who = ", ".join(sorted({f"process {o.pid}" if o.pid else "one in another container" for o in attached}))
            text = f"node {self._agent.name!r} has applications, which would wait for ever: end them first ({who})"
            self._reply(connection, wire.failure(0, errors.InUse(text)))
            return
        self._reply(connection, wire.Answer(0, {"name": self._agent.name}))
        self._agent.stop()

    def _story(self, connection: _Connection, m: wire.Query, answer: Any) -> None:
        if type(answer) is wire.Answer and m.region in self._agent.pager.regions:
            story = {"name": self._agent.name, **self._agent.pager.machine.story_of(m.region, m.start)}
            answer = wire.Answer(0, {**answer.value, "node": story})
        self._pass(connection, answer)

    def _status(self, connection: _Connection, m: Any) -> None:
        if type(m) is not wire.Answer:
            self._pass(connection, m)
            return
        agent = self._agent
        applications = self.processes(besides=connection)
        for row in m.value.get("nodes", []):
            if row.get("id") == agent.links.node:  # the directory knows it as of the last heartbeat
                row["applications"] = applications
        node = {
            "name": agent.name,
            "id": agent.links.node,
            "address": agent.links.address,
            "pid": os.getpid(),
            "uptime_s": round(time.monotonic() - agent.started_s, 3),
            "applications": applications,
            "counters": {"rejected": agent.rejected + agent.links.rejected, "late": agent.pager.machine.late},
            "regions": {region.name: region.stats.report(region.page_size) for region in agent.pager.regions.values()},
        }
        status = {"node": node, "directory": agent.links.directory_address, "cluster": m.value}
        self._reply(connection, wire.Answer(0, status))

    # -- locks and other primitives ----------------------------------------------------------------------

    def _acquire(self, connection: _Connection, m: wire.Acquire, _: list[int]) -> None:
        if m.kind not in (wire.LOCK, wire.RLOCK):
            self._synchronise(connection, m, [])
            return
        if m.name in connection.locks:
            raise errors.ProtocolError(f"lock {m.name!r} is held on this connection already")
        if self._suspended:  # the directory may have given it to others
            connection.postponed = True
            self._postponed.append((connection, m))
            return
        answer = self._locks.take(m)
        if answer is None:
            self._ask(connection, m, lambda c, answer: self._acquired(c, m, answer))
            return
        if type(answer) is wire.Granted:
            connection.locks[m.name] = None
        self._reply(connection, answer)

    def _acquired(self, connection: _Connection, m: wire.Acquire, answer: Any) -> None:
        if type(answer) is wire.Granted:
            self._locks.granted(m, answer.value)
            if not connection.open:  # nobody has learnt how the lock was left
                self._released(m.name, died=answer.value & wire.OWNER_DIED != 0)
                return
            connection.locks[m.name] = None
        self._reply(connection, answer._replace(ticket=0))

    def suspend(self) -> None:
        """Give no lock to anybody until :meth:`resume`."""
        self._suspended = True

    def resume(self) -> None:
        """Go on with what has waited."""
        self._suspended = False
        postponed, self._postponed = self._postponed, []
        for connection, m in postponed:
            connection.postponed = False
            if connection.open:
                self._acquire(connection, m, [])

    def _release(self, connection: _Connection, m: wire.Release, _: list[int]) -> None:
        if m.name not in connection.locks:
            text = f"lock {m.name!r} is not held here: acquire it first"
            self._reply(connection, wire.Failure(0, "LockNotHeld", text))
            return
        del connection.locks[m.name]
        self._released(m.name, died=m.died)
        self._reply(connection, wire.Ready())

    def _released(self, name: str, *, died: bool) -> None:
        for message in self._locks.released(name, died):
            self._to_directory(message)

    def recall(self, m: wire.Recall) -> None:
        """Others want a lock of this node."""
        for message in self._locks.recalled(m.name):
            self._to_directory(message)

    def _wait_on(self, connection: _Connection, m: wire.WaitOn, _: list[int]) -> None:
        if m.lock not in connection.locks:
            raise errors.ProtocolError(f"lock {m.lock!r} is not held on this connection")
        # The wait is known to the directory before anybody can get the lock, and notify.
        question = wire.Acquire(0, m.name, wire.CONDITION, m.wait, m.process, m.thread, m.who)
        self._synchronise(connection, question, [])
        del connection.locks[m.lock]
        self._released(m.lock, died=False)

    def _enroll(self, connection: _Connection, m: wire.Enroll, _: list[int]) -> None:
        if m.kind == wire.BARRIER:
            self._take_part(connection, m.process)
        self._synchronise(connection, m, [])

    def _arrive(self, connection: _Connection, m: wire.Arrive, _: list[int]) -> None:
        self._take_part(connection, m.process)
        self._synchronise(connection, m, [])

    def _inspect(self, connection: _Connection, m: wire.Inspect, _: list[int]) -> None:
        held = self._locks.is_held(m.name, m.kind)
        if held is None:
            self._synchronise(connection, m, [])
        else:
            self._reply(connection, wire.Answer(0, {"locked": held}))

    def _synchronise(self, connection: _Connection, m: Any, _: list[int]) -> None:
        self._ask(connection, m, self._synchronised)

    def _synchronised(self, connection: _Connection, answer: Any) -> None:
        self._reply(connection, answer._replace(ticket=0))

    def _cancel(self, connection: _Connection, _: wire.Cancel, __: list[int]) -> None:
        ticket = connection.ticket
        if connection.postponed:
            self._postponed = [other for other in self._postponed if other[0] is not connection]
            connection.postponed = False
            self._reply(connection, wire.Cancelled(0))
        elif ticket:  # else the answer has overtaken it, and stands
            self._to_directory(wire.Cancel(ticket, False))
            self._tickets[ticket] = (*self._tickets[ticket][:2], time.monotonic())

    def _take_part(self, connection: _Connection, process: int) -> None:
        """The process of this connection has to do with a barrier."""
        if connection.party is not None:
            if connection.party.number != process:
                raise errors.ProtocolError("a connection is that of one process")
            return
        # One of another container is known by its own number alone.
        key = connection.pid or -process
        party = self._parties.get(key)
        if party is not None and party.number != process:
            if party.connections:
                raise errors.ProtocolError("a process has one number")
            self._party_is_over(key, party)  # it has executed another program
            party = None
        if party is None:
            party = self._parties[key] = _Party(process, connection.pid)
        connection.party = party
        party.connections += 1

    def _gone(self, connection: _Connection, m: wire.Gone, _: list[int]) -> None:
        """A process is about to end, in good order."""
        party = self._parties.get(connection.pid or -m.process)
        if party is not None and party.number == m.process:
            party.died = m.died
        self._reply(connection, wire.Ready())

    def _look_for(self, key: int, party: _Party) -> None:
        """Tell the directory if this process has ended."""
        if party.ended:
            self._party_is_over(key, party)

    def _party_is_over(self, key: int, party: _Party) -> None:
        del self._parties[key]
        party.close()
        self._to_directory(wire.Gone(party.number, party.died))


def _spare() -> int:
    return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)


def _refuse(sock: socket.socket, error: errors.DsmError) -> None:
    """Say why, and close a connection that was never taken on."""
    with contextlib.suppress(OSError), sock:
        local.send(sock, wire.failure(0, error))


def _page_lost(region: RegionMemory, start: int, stop: int, node: str) -> wire.Failure:
    size = region.page_size
    text = (
        f"bytes {start * size} to {min(stop * size, region.size)} of region {region.name!r} are lost: node {node!r}, "
        f"which had their only copy, is gone; region.reset({start * size}, {min(stop * size, region.size)}) "
        "makes them zeros"
    )
    return wire.failure(0, errors.PageLost(text))


def _exhausted(error: OSError) -> errors.NodeExhausted:
    return errors.NodeExhausted(
        f"the node agent cannot serve one more application or region ({error.strerror}): raise its `ulimit -n`, "
        "or detach from regions that are no longer used"
    )
