"""The local applications: their connections on the Unix socket, and what each of them waits for.

One connection carries one question at a time. What the directory has to answer gets a ticket, under which the
connection is found again. A connection that closes gives back everything it had: its mapping, its place in a queue,
its locks.

What is done about one question, or one answer, is done as a whole (:meth:`Applications._commit`): first it is noted,
then told to the directory and to the application, and only then the question is taken from its socket. So whoever
takes the place of an agent that was killed finds either all of it or nothing, and what was said may be said again
(:meth:`Applications.restate`): the directory knows questions by their tickets and locks by their grants, the
application knows answers by their numbers.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dsm import asking, errors, local, wire
from dsm.codec import pack, unpack
from dsm.constants import DIRECTORY_TIMEOUT_S, PREFETCH_BYTES, PREFETCHES_MAX
from dsm.geometry import pages_in
from dsm.uffd import Userfaultfd, open_device
from nodes.connections import REPLY_BYTES_MAX, Connection, Noted, Party, recall_party
from nodes.keeper import MAPPED, Shelf, Thing, end_applications
from nodes.locks import Locks
from nodes.memory import Mapping, RegionMemory
from nodes.notes import Notes
from nodes.pieces import Pieces

if TYPE_CHECKING:
    from nodes.agent import Agent


_OPTIONS_BYTES_MAX = 16 << 10
"""Of a region: they travel in every answer about it."""


class _Prefetch:
    """An explicit prefetch, or a reset (``op``: READ, WRITE or RESET), of pages ``[start, stop)`` that is under way."""

    __slots__ = ("asking", "connection", "op", "pieces", "start", "stop")

    def __init__(self, connection: Connection, start: int, stop: int, page_size: int, op: int) -> None:
        self.connection = connection
        self.start = start
        self.stop = stop
        self.pieces = Pieces(start, stop, max(1, PREFETCH_BYTES // page_size), PREFETCHES_MAX)
        self.op = op
        self.asking = False  # what is here already is over while it is asked for


class Applications:
    """All connections of one agent. ``any_user``: whoever may open the socket may use it, else its owner and root.
    What another agent will need is in ``notes``, and its descriptors on the ``shelf``."""

    def __init__(self, agent: Agent, any_user: bool, notes: Notes, shelf: Shelf) -> None:
        self._agent = agent
        self._listener = shelf.listener
        self._any_user = any_user
        self._notes = notes
        self._shelf = shelf
        self._device = open_device()
        self._spare = _spare()
        # Dicts for their order: what is done to all of them is done in order of arrival.
        self._connections: dict[Connection, None] = {}
        self._silent: dict[Connection, None] = {}  # closed, but the process has its region mapped still
        self._parties: dict[int, Party] = {}  # by pid
        # What has been done and is to be noted, told, answered: by :meth:`_commit`.
        self._changed: dict[Connection, None] = {}
        self._tells: list[Any] = []
        self._replies: list[tuple[Connection, Any]] = []
        # What is over, but has to be said again by another agent until the directory is known to have written it down:
        # how much was told to it then, -1 before anything was.
        self._left: dict[Connection, int] = {}
        self._over: dict[Party, int] = {}
        self._unsaid = False  # there are such that nothing was told of
        self._interrupted: list[Connection] = []  # whose questions are to be asked once pages may be
        self._locks = Locks()
        self._suspended = False
        self._postponed: list[tuple[Connection, wire.Acquire]] = []
        self._served_any = False
        self.heard = 0  # answers of the directory that have come, in its conversation of now
        # Who asked, what, and when it was asked (for ever, where a wait may last).
        self._tickets: dict[int, tuple[Connection, Any, float]] = {}
        self._answers: dict[type[Any], Callable[[Connection, Any, Any], None]] = {
            wire.Open: self._opened,
            wire.Acquire: self._acquired,
            wire.Query: self._queried,
            wire.Unlink: self._pass,
            wire.Mirror: self._pass,
        }
        self._handlers: dict[type[Any], Callable[[Connection, Any, list[int]], None]] = {
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
        agent.watch(self._listener.fileno(), lambda _: self._accept())

    @property
    def idle(self) -> bool:
        """Has everybody who came left again?"""
        return self._served_any and not self._connections and not self._silent

    @property
    def any_came(self) -> bool:
        """Did any application ever connect?"""
        return self._served_any

    def processes(self, besides: Connection | None = None) -> int:
        """How many processes are connected, not counting the connection ``besides``."""
        connections = self._connections | self._silent
        return len({connection.pid or connection for connection in connections if connection is not besides})

    def close(self) -> None:
        """Take no more connections, remove the socket, drop those that are there. Locks that nobody holds go back."""
        for message in self._locks.give_up():
            self._to_directory(message)
        self._commit()
        self._agent.remove_socket()
        for connection in self._connections | self._silent | self._left:
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
        pidfd = -1
        try:
            pid, uid, _ = local.peer(sock)
            pidfd = os.pidfd_open(pid) if pid else -1  # no number here: a process of another container
            connection = Connection(sock, pid, self._notes.take_slot(), pidfd)
        except OSError as error:
            if pidfd >= 0:
                os.close(pidfd)
            _refuse(sock, _exhausted(error))
            return
        self._served_any = True
        self._connections[connection] = None
        self._note(connection)
        self._shelf.put(f"connection {connection.slot}", pack(pid), [sock.fileno(), *([pidfd] if pid else [])])
        if not self._any_user and uid not in (0, os.getuid()):
            text = f"this node belongs to user {os.getuid()}, you are user {uid}: start a node of your own"
            self._fail(connection, errors.PermissionDenied(text))
            self._commit()
            return
        self._watch(connection)

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

    def _readable(self, connection: Connection) -> None:
        fds: list[int] = []
        try:
            received = local.look(connection.sock)
            message, fds = local.parse(received)
            if message is None:
                self._closed(connection)
            else:
                self._handle(connection, local.number_of(received), message, fds)
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
        self._commit()
        if connection.open:
            with contextlib.suppress(OSError):
                local.take(connection.sock)

    def _handle(self, connection: Connection, number: int, message: wire.Message, fds: list[int]) -> None:
        kind = type(message)
        handler = self._handlers.get(kind)
        if handler is None:
            raise errors.ProtocolError(f"{kind.__name__} was not expected now")
        if kind is not wire.Cancel:
            if number and number == connection.number:  # an agent was killed when it had noted it
                self._answer_again(connection, message, fds)
                return
            if type(connection.question) is wire.Query and number:  # who asks the next has got the answer to that
                self._tickets.pop(connection.ticket, None)
                connection.ticket, connection.question = 0, None
            if connection.waits:
                raise errors.ProtocolError(f"{kind.__name__} was not expected now")
            connection.number, connection.reply = number, b""
        handler(connection, message, fds)

    def _answer_again(self, connection: Connection, message: wire.Message, fds: list[int]) -> None:
        """The answer to a question may not have been sent, or not been noted."""
        if connection.waits:
            return
        if connection.reply:
            self._replies.append((connection, local.again(connection.reply)))
        elif connection.region is not None and type(message) is wire.Attach:
            self._tell_attached(connection, connection.region)
        else:
            self._handlers[type(message)](connection, message, fds)

    def _reply(self, connection: Connection, message: wire.Message, fds: list[int] | None = None) -> None:
        """Answer the question of a connection."""
        if not connection.open:
            return
        try:
            packet = local.packet(message, fds or [], connection.number)
        except errors.ProtocolError as error:  # too long for one packet
            packet = local.packet(wire.failure(0, error), (), connection.number)
        data = b"".join(packet[0])
        connection.reply = data if not fds and len(data) <= REPLY_BYTES_MAX else b""
        connection.question, connection.cancelled = None, False
        self._changed[connection] = None
        self._replies.append((connection, packet))

    # -- one thing after the other, as a whole -----------------------------------------------------------

    def _commit(self) -> None:
        """Note what has been done, tell the directory, and answer. An application that does not read its answer has
        gone, or will not be waited for."""
        while self._changed or self._tells or self._replies or self._unsaid:
            changed, self._changed = self._changed, {}
            tells, self._tells = self._tells, []
            replies, self._replies = self._replies, []
            # What is too long to be noted is sent first: if that does not come about, the question is asked again.
            long = [c for c, _ in replies if not c.reply and c.region is None]
            for connection in changed:
                if connection not in long:
                    self._note(connection)
            for message in tells:
                self._agent.links.tell(message)
            for connection, packet in replies:
                self._send(connection, packet)
            for connection in long:
                self._note(connection)
            if self._unsaid:
                self._unsaid = False
                told = self._agent.links.said.told
                self._left.update((connection, told) for connection, count in self._left.items() if count < 0)
                self._over.update((party, told) for party, count in self._over.items() if count < 0)

    def _note(self, connection: Connection) -> None:
        if connection not in self._connections and connection not in self._left:
            return
        known = self._agent.links.said.heard_of
        connection.died = [died for died in connection.died if died[0] > known]
        try:
            self._notes.put(connection.slot, connection.note())
        except ValueError:
            self._fail(connection, errors.NodeExhausted("too many locks are held on one connection"))

    def _send(self, connection: Connection, packet: Any) -> None:
        if connection.open:
            try:
                connection.sock.sendmsg(*packet)
            except OSError:
                self._closed(connection)

    def _fail(self, connection: Connection, error: errors.DsmError) -> None:
        """Say why, and end a connection that does not keep to the rules."""
        self._agent.rejected += 1
        self._dismiss(connection, error)

    def _dismiss(self, connection: Connection, error: errors.DsmError) -> None:
        self._send(connection, local.packet(wire.failure(0, error)))
        self._closed(connection)

    def _closed(self, connection: Connection) -> None:
        if connection not in self._connections:
            return
        del self._connections[connection]
        self._left[connection] = -1
        self._unsaid = True
        self._agent.unwatch(connection.sock.fileno())
        connection.hang_up()
        if connection.ticket:
            self._to_directory(wire.Cancel(connection.ticket, True))
        for name, (grant, _) in connection.locks.items():
            self._give_back(name, grant, died=True)
        for number in connection.holds:
            self._let_go_of(number)
        if connection.party is not None:
            connection.party.connections -= 1
            self._look_for(connection.pid or -connection.party.number, connection.party)
        if connection in self._interrupted:
            self._interrupted.remove(connection)
        self._silent[connection] = None
        self._let_go(connection)

    def _let_go(self, connection: Connection) -> None:
        """Forget a closed connection, unless its process has the region mapped still: that must stay coherent."""
        mapping = connection.mapping
        if mapping is not None and mapping.region.is_mapped(mapping):
            return
        self._silent.pop(connection, None)
        connection.close()
        if mapping is not None:
            connection.mapping = None
            self._note(connection)  # before its userfaultfd is gone
            self._drop_mapping(connection, mapping)
        self._detach(connection)

    def _drop_mapping(self, connection: Connection, mapping: Mapping) -> None:
        self._agent.drop_mapping(mapping)
        self._shelf.drop(f"{MAPPED}{connection.slot}")

    def look_after(self, now: float) -> None:
        """Let go who has left without a word; tell those who wait for a silent directory."""
        for connection in list(self._silent):
            self._let_go(connection)
        for key, party in list(self._parties.items()):
            self._look_for(key, party)
        for ticket, (connection, question, asked_s) in list(self._tickets.items()):
            if now - asked_s > DIRECTORY_TIMEOUT_S:
                text = asking.unreachable(self._agent.links.directory_address, DIRECTORY_TIMEOUT_S)
                # What it is granted all the same is given back, as for a connection that has gone.
                self._tickets[ticket] = (connection, question, math.inf)
                self._dismiss(connection, errors.DirectoryUnreachable(text))
        if not self._agent.links.anew:
            self._forget_what_is_over()
        self._commit()

    def _forget_what_is_over(self) -> None:
        """What the directory has written down is not to be said again."""
        known = self._agent.links.said.heard_of
        for connection in [c for c, told in self._left.items() if 0 <= told <= known and not c.ticket]:
            if connection not in self._silent:
                del self._left[connection]
                self._shelf.drop(f"connection {connection.slot}")
                self._notes.free(connection.slot)
        for party in [party for party, told in self._over.items() if 0 <= told <= known]:
            del self._over[party]
            self._shelf.drop(f"party {party.number}")

    def _detach(self, connection: Connection) -> None:
        region, connection.region = connection.region, None
        if region is not None:
            region.users -= 1
            if not region.users:
                self._to_directory(wire.Close(region.number, region.opens))
                region.opens = 0

    # -- tickets -----------------------------------------------------------------------------------------

    def _to_directory(self, message: wire.Message) -> None:
        self._tells.append(message)

    def _ask(self, connection: Connection, message: Any) -> None:
        """Send a message to the directory under a new ticket."""
        ticket = self._notes.ticket % 0xFFFFFFFF + 1
        self._notes.use(ticket)
        self._await(connection, message._replace(ticket=ticket))
        self._to_directory(connection.question)  # type: ignore[arg-type]

    def _await(self, connection: Connection, question: Any) -> None:
        """The answer to this question has to come."""
        connection.ticket = question.ticket
        self._wait(connection, question)
        # It may wait for other applications as long as it takes.
        waits = type(question) in (wire.Arrive, wire.Mirror) or (
            type(question) is wire.Acquire and question.wait != wire.TRY
        )
        self._tickets[question.ticket] = (connection, question, math.inf if waits else time.monotonic())

    def _wait(self, connection: Connection, question: wire.Message) -> None:
        connection.question = question
        self._changed[connection] = None

    def answered(self, message: Any) -> None:
        """The directory has answered a ticket."""
        self.heard += 1
        asked = self._tickets.pop(message.ticket, None)
        if asked is not None:
            connection, question, _ = asked
            connection.ticket, connection.question = 0, None
            self._changed[connection] = None
            self._answers.get(type(question), self._synchronised)(connection, question, message)
        elif type(message) is wire.Opened:  # too late: nobody waits for it any more
            self._to_directory(wire.Close(message.region, 1))
        self._commit()

    def awaited(self, again: list[Any]) -> list[int]:
        """Another conversation with the directory begins: the tickets that are still to be answered, but for those of
        messages that are said ``again``."""
        self.heard = 0
        said = {message.ticket for message in again if hasattr(message, "ticket") and type(message) is not wire.Cancel}
        return [
            ticket
            for ticket, (_, question, _) in self._tickets.items()
            if ticket not in said and type(question) in wire.REMEMBERED
        ]

    def _pass(self, connection: Connection, _: Any, answer: Any) -> None:
        """Hand the directory's answer to the application as it is; a bare success is told as Ready."""
        self._reply(connection, wire.Ready() if type(answer) is wire.Granted else answer._replace(ticket=0))

    # -- in the place of an agent that was killed --------------------------------------------------------

    def take_over(self, found: dict[str, Thing]) -> None:
        """Go on where that one has stopped. The regions are here again, and nothing is served yet."""
        self._served_any = True
        parties: dict[int, Party] = {}
        for name, thing in found.items():
            if name.startswith("party "):
                party = recall_party(*thing)
                parties[party.number] = self._parties[party.pid or -party.number] = party
        for name, thing in found.items():
            if name.startswith("connection "):
                slot = int(name.split()[1])
                self._recall(slot, thing, parties, found.get(f"{MAPPED}{slot}"))
        # A mapping without its connection: the keeper had no descriptor left for that.
        known = {f"{MAPPED}{connection.slot}" for connection in self._connections}
        end_applications({name: found[name] for name in found if name.startswith(MAPPED) and name not in known})
        used = {connection.mapping.uffd.fileno() for connection in self._connections if connection.mapping is not None}
        for name, thing in found.items():
            if name.startswith(MAPPED):
                local.close_all([fd for fd in thing.fds if fd not in used])
        for connection in list(self._connections):
            self._watch(connection)
        self._commit()

    def _watch(self, connection: Connection) -> None:
        self._agent.watch(connection.sock.fileno(), lambda _: self._readable(connection))

    def _recall(self, slot: int, thing: Thing, parties: dict[int, Party], mapped: Thing | None) -> None:
        (pid,), fds = unpack(thing.note), thing.fds
        if len(fds) != 1 + bool(pid):
            local.close_all(fds)
            return
        sock = socket.socket(fileno=fds[0])
        sock.setblocking(False)
        connection = Connection(sock, pid, slot, fds[1] if pid else -1)
        self._connections[connection] = None
        note = self._notes.get(slot)
        if not note:  # it was about to be forgotten
            connection.close()
            del self._connections[connection]
            self._shelf.drop(f"connection {slot}")
            return
        noted = connection.recall(note)
        for name, (grant, acquired) in connection.locks.items():
            acquire = wire.decode(acquired)
            assert isinstance(acquire, wire.Acquire), name
            self._locks.restore(acquire, grant)
        connection.party = parties.get(noted.party)
        if connection.party is not None:
            connection.party.connections += 1
        self._recall_region(connection, noted, mapped)
        if connection.ticket:
            self._await(connection, connection.question)
        elif connection.question is not None:
            self._interrupted.append(connection)
        elif connection.reply:
            self._replies.append((connection, local.again(connection.reply)))
        elif connection.region is not None and connection.mapping is None and connection.number:
            self._tell_attached(connection, connection.region)

    def _recall_region(self, connection: Connection, noted: Noted, mapped: Thing | None) -> None:
        regions = self._agent.pager.regions
        for number in noted.holds:
            if number in regions:
                connection.holds[number] = None
                regions[number].holds += 1
        region = regions.get(noted.region)
        if region is None:  # it is over, or was never noted
            return
        connection.region = region
        region.users += 1
        region.opens += 1
        if noted.address and (mapped is None or len(mapped.fds) != 1 + bool(connection.pid)):
            connection.kill()  # the keeper had no descriptor left for it
        elif noted.address and mapped is not None:
            mapping = Mapping(region, Userfaultfd(mapped.fds[-1]), noted.address, connection.pid)
            mapping.recalled = True
            if self._agent.take_in(mapping):
                connection.mapping = mapping
                region.kept = True
                mapping.uffd.wake(mapping.address, region.pages * region.page_size)

    def restate(self) -> list[wire.Message]:
        """What is so here, and what was asked, for a directory that may have been told some of it already."""
        said: list[wire.Message] = []
        self._locks.give_up()  # the directory takes back what nobody holds
        for connection in self._connections | self._left:
            said += [wire.Stands(grant, name) for name, (grant, _) in connection.locks.items()]
            said += [wire.Stands(grant, name) for _, grant, name in connection.died]
        for _, question, _ in self._tickets.values():
            if type(question) is wire.Acquire and question.kind in (wire.LOCK, wire.RLOCK):
                said.append(wire.Stands(question.ticket, question.name))
        for number, region in self._agent.pager.regions.items():
            said += [wire.Opens(number, region.users)] if region.users else []
        for number, region in self._agent.pager.regions.items():
            said += [wire.Keep(number)] if region.kept and region.users else []
            said.append(wire.Hold(number, region.holds > 0))
        for connection in self._connections | self._left:
            said += [wire.Return(grant, name, True) for _, grant, name in connection.died]
        for connection in self._left:
            said += [wire.Return(grant, name, True) for name, (grant, _) in connection.locks.items()]
            said += [wire.Cancel(connection.ticket, True)] if connection.ticket else []
        said += [wire.Gone(party.number, party.died) for party in self._over]
        for connection in self._connections:
            if connection.ticket and type(connection.question) in wire.REMEMBERED:
                said.append(connection.question)  # type: ignore[arg-type]
                said += [wire.Cancel(connection.ticket, False)] if connection.cancelled else []
        self._left = dict.fromkeys(self._left, 0)
        self._over = dict.fromkeys(self._over, 0)
        return said

    def go_on(self) -> None:
        """Pages may be asked for again, and what the directory does not write down."""
        for _, question, _ in list(self._tickets.values()):
            if type(question) not in wire.REMEMBERED:
                self._to_directory(question)
        interrupted, self._interrupted = self._interrupted, []
        for connection in interrupted:
            question, connection.question = connection.question, None
            self._handlers[type(question)](connection, question, [])
        self._commit()

    # -- regions -----------------------------------------------------------------------------------------

    def _attach(self, connection: Connection, m: wire.Attach, _: list[int]) -> None:
        if connection.region is not None:
            raise errors.ProtocolError("this connection is attached to a region already")
        if len(wire.encode(m)) > _OPTIONS_BYTES_MAX:
            raise errors.InvalidArgument(f"shape and dtype of a region take {_OPTIONS_BYTES_MAX} bytes at most")
        number = m.options.get("region")
        if number is None:
            question = wire.Open(0, m.name, m.size, m.page_size, m.create, m.options)
            self._ask(connection, question)
            return
        # A forked child of an attached process: it names the region by number, for the name may be unlinked.
        region = self._agent.pager.regions.get(number) if type(number) is int else None
        if region is None or not region.users:
            raise errors.RegionNotFound(f"region {m.name!r} is attached by nobody on this node any more")
        self._attached(connection, region)

    def _opened(self, connection: Connection, question: wire.Open, m: Any) -> None:
        if type(m) is not wire.Opened:
            self._pass(connection, question, m)
            return
        region = self._agent.pager.regions.get(m.region)
        try:
            if region is None:
                region = self._agent.new_region(m.region, question.name, m.size, m.page_size, m.options)
        except (errors.DsmError, OSError) as error:
            self._to_directory(wire.Close(m.region, 1))
            self._fail(connection, error if isinstance(error, errors.DsmError) else _exhausted(error))
            return
        region.opens += 1
        self._attached(connection, region)

    def _attached(self, connection: Connection, region: RegionMemory) -> None:
        connection.region = region
        region.users += 1
        if not connection.open:  # it left while the directory was asked
            self._detach(connection)
            return
        self._tell_attached(connection, region)

    def _tell_attached(self, connection: Connection, region: RegionMemory) -> None:
        answer = wire.Attached(region.number, region.size, region.page_size, region.options, self._agent.name)
        self._reply(connection, answer, [region.memfd, *([] if self._device is None else [self._device])])

    def _mapped(self, connection: Connection, m: wire.Mapped, fds: list[int]) -> None:
        region = connection.region
        if region is None or connection.mapping is not None or len(fds) != 1:
            raise errors.ProtocolError("Mapped comes once, after Attached, with one userfaultfd")
        uffd = Userfaultfd.adopt(fds[0])  # where it refuses, the descriptor is still ours
        fds.clear()
        mapping = Mapping(region, uffd, m.address, connection.pid)
        if not self._agent.take_in(mapping):
            mapping.uffd.close()
            raise errors.ProtocolError("the region is not registered with the userfaultfd that came with Mapped")
        self._shelf.put(
            f"{MAPPED}{connection.slot}", b"", [*([connection.pidfd] if connection.pid else []), uffd.fileno()]
        )
        connection.mapping = mapping
        if not region.kept:
            region.kept = True
            self._to_directory(wire.Keep(region.number))
        self._reply(connection, wire.Ready())

    def _detached(self, connection: Connection, _: wire.Detach, __: list[int]) -> None:
        mapping, connection.mapping = connection.mapping, None
        self._detach(connection)
        self._reply(connection, wire.Ready())
        if mapping is not None:
            self._note(connection)  # before its userfaultfd is gone
            self._drop_mapping(connection, mapping)

    def _hold(self, connection: Connection, m: wire.Hold, _: list[int]) -> None:
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

    def _fetch(self, connection: Connection, m: wire.Prefetch | wire.Reset, op: int) -> None:
        mapping = connection.mapping
        if mapping is None or mapping.prefetch is not None or not m.start <= m.stop <= mapping.region.size:
            raise errors.ProtocolError(f"{type(m).__name__} needs a range of the region attached on this connection")
        size = mapping.region.page_size
        stop = pages_in(m.stop, size) if m.start < m.stop else 0
        self._wait(connection, m)
        mapping.prefetch = _Prefetch(connection, m.start // size, stop, size, op)
        self._prefetch_more(mapping)

    def prefetched(self, mapping: Mapping) -> None:
        """A piece of an explicit prefetch has come."""
        if mapping.prefetch is not None:
            mapping.prefetch.pieces.came()
            if not mapping.prefetch.asking:
                self._prefetch_more(mapping)
                self._commit()

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

    def _mirror(self, connection: Connection, m: wire.Mirror, _: list[int]) -> None:
        if connection.mapping is None:
            raise errors.ProtocolError("Mirror is for the region attached on this connection: there is none")
        self._ask(connection, m._replace(region=connection.mapping.region.number))

    def _stats(self, connection: Connection, _: wire.StatsQuery, __: list[int]) -> None:
        if connection.mapping is None:
            raise errors.ProtocolError("statistics are those of the region attached on this connection: there is none")
        region = connection.mapping.region
        report = region.stats.report(region.page_size)
        report["pages"] = self._agent.pager.machine.counts(region.number)
        report["node"] = self._agent.name
        self._reply(connection, wire.Answer(0, report))

    def _unlink(self, connection: Connection, m: wire.Unlink, _: list[int]) -> None:
        self._ask(connection, m)

    # -- questions ---------------------------------------------------------------------------------------

    def _query(self, connection: Connection, m: wire.Query, _: list[int]) -> None:
        if m.what == "here":
            self._reply(connection, wire.Answer(0, {"pid": os.getpid(), "name": self._agent.name}))
        elif m.what == "drain":
            self._drain(connection)
        elif m.what == "upgrade":
            self._reply(connection, wire.Answer(0, {"pid": os.getpid(), "name": self._agent.name}))
            self._agent.step_aside()
        else:
            self._ask(connection, m)

    def _queried(self, connection: Connection, question: wire.Query, answer: Any) -> None:
        if question.what == "story":
            self._story(connection, question, answer)
        elif question.what == "status":
            self._status(connection, question, answer)
        else:
            self._pass(connection, question, answer)

    def _drain(self, connection: Connection) -> None:
        """Leave, if nobody needs this node any more; whoever asked waits for the end of the connection."""
        attached = [other for other in self._connections | self._silent if other.mapping is not None]
        if attached:
            who = ", ".join(sorted({f"process {o.pid}" if o.pid else "one in another container" for o in attached}))
            text = f"node {self._agent.name!r} has applications, which would wait for ever: end them first ({who})"
            self._reply(connection, wire.failure(0, errors.InUse(text)))
            return
        self._reply(connection, wire.Answer(0, {"name": self._agent.name}))
        self._agent.stop()

    def _story(self, connection: Connection, m: wire.Query, answer: Any) -> None:
        if type(answer) is wire.Answer and m.region in self._agent.pager.regions:
            story = {"name": self._agent.name, **self._agent.pager.machine.story_of(m.region, m.start)}
            answer = wire.Answer(0, {**answer.value, "node": story})
        self._pass(connection, m, answer)

    def _status(self, connection: Connection, question: wire.Query, m: Any) -> None:
        if type(m) is not wire.Answer:
            self._pass(connection, question, m)
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

    def _acquire(self, connection: Connection, m: wire.Acquire, _: list[int]) -> None:
        if m.kind not in (wire.LOCK, wire.RLOCK):
            self._synchronise(connection, m, [])
            return
        if m.name in connection.locks:
            raise errors.ProtocolError(f"lock {m.name!r} is held on this connection already")
        if self._suspended:  # the directory may have given it to others
            connection.postponed = True
            self._postponed.append((connection, m))
            self._wait(connection, m)
            return
        answer = self._locks.take(m)
        if answer is None:
            self._ask(connection, m)
            return
        if type(answer) is wire.Granted:
            connection.locks[m.name] = (self._locks.grant(m.name), wire.encode(m))
        self._reply(connection, answer)

    def _acquired(self, connection: Connection, m: wire.Acquire, answer: Any) -> None:
        if type(answer) is wire.Granted and m.kind in (wire.LOCK, wire.RLOCK):
            self._locks.granted(m, answer.value)
            if not connection.open:  # nobody has learnt how the lock was left
                connection.locks[m.name] = (m.ticket, b"")
                self._release_one(connection, m.name, died=answer.value & wire.OWNER_DIED != 0)
                self._left[connection] = -1
                self._unsaid = True
                return
            connection.locks[m.name] = (m.ticket, wire.encode(m))
        self._synchronised(connection, m, answer)

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
        self._commit()

    def _release(self, connection: Connection, m: wire.Release, _: list[int]) -> None:
        if m.name not in connection.locks:
            text = f"lock {m.name!r} is not held here: acquire it first"
            self._reply(connection, wire.Failure(0, "LockNotHeld", text))
            return
        self._release_one(connection, m.name, died=m.died)
        self._reply(connection, wire.Ready())

    def _release_one(self, connection: Connection, name: str, *, died: bool) -> None:
        grant, _ = connection.locks.pop(name)
        if died:
            said = self._agent.links.said
            connection.died.append((said.told + len(self._tells) + 1, grant, name))
        self._give_back(name, grant, died=died)

    def _give_back(self, name: str, grant: int, *, died: bool) -> None:
        for message in self._locks.released(name, grant, died):
            self._to_directory(message)

    def recall(self, m: wire.Recall) -> None:
        """Others want a lock of this node."""
        for message in self._locks.recalled(m.name):
            self._to_directory(message)
        self._commit()

    def _wait_on(self, connection: Connection, m: wire.WaitOn, _: list[int]) -> None:
        if m.lock not in connection.locks:
            raise errors.ProtocolError(f"lock {m.lock!r} is not held on this connection")
        # The wait is known to the directory before anybody can get the lock, and notify.
        question = wire.Acquire(0, m.name, wire.CONDITION, m.wait, m.process, m.thread, m.who)
        self._synchronise(connection, question, [])
        self._release_one(connection, m.lock, died=False)

    def _enroll(self, connection: Connection, m: wire.Enroll, _: list[int]) -> None:
        if m.kind == wire.BARRIER:
            self._take_part(connection, m.process)
        self._synchronise(connection, m, [])

    def _arrive(self, connection: Connection, m: wire.Arrive, _: list[int]) -> None:
        self._take_part(connection, m.process)
        self._synchronise(connection, m, [])

    def _inspect(self, connection: Connection, m: wire.Inspect, _: list[int]) -> None:
        held = self._locks.is_held(m.name, m.kind)
        if held is None:
            self._synchronise(connection, m, [])
        else:
            self._reply(connection, wire.Answer(0, {"locked": held}))

    def _synchronise(self, connection: Connection, m: Any, _: list[int]) -> None:
        self._ask(connection, m)

    def _synchronised(self, connection: Connection, _: Any, answer: Any) -> None:
        self._reply(connection, answer._replace(ticket=0))

    def _cancel(self, connection: Connection, _: wire.Cancel, __: list[int]) -> None:
        ticket = connection.ticket
        if connection.postponed:
            self._postponed = [other for other in self._postponed if other[0] is not connection]
            connection.postponed = False
            self._reply(connection, wire.Cancelled(0))
        elif ticket:  # else the answer has overtaken it, and stands
            self._to_directory(wire.Cancel(ticket, False))
            self._tickets[ticket] = (*self._tickets[ticket][:2], time.monotonic())
            connection.cancelled = True
            self._changed[connection] = None

    def _take_part(self, connection: Connection, process: int) -> None:
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
            pidfd = os.pidfd_open(connection.pid) if connection.pid else -1
            party = self._parties[key] = Party(process, connection.pid, pidfd)
            self._shelf.put(f"party {process}", party.note(), party.descriptors())
        connection.party = party
        party.connections += 1

    def _gone(self, connection: Connection, m: wire.Gone, _: list[int]) -> None:
        """A process is about to end, in good order."""
        party = self._parties.get(connection.pid or -m.process)
        if party is not None and party.number == m.process:
            party.died = m.died
            self._shelf.put(f"party {party.number}", party.note(), party.descriptors())
        self._reply(connection, wire.Ready())

    def _look_for(self, key: int, party: Party) -> None:
        """Tell the directory if this process has ended."""
        if party.ended:
            self._party_is_over(key, party)

    def _party_is_over(self, key: int, party: Party) -> None:
        del self._parties[key]
        self._over[party] = -1
        self._unsaid = True
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
