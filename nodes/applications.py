"""The local applications: their connections on the Unix socket, which carry one question at a time. A connection that
closes gives back everything it had: its mapping, its place in a queue, its locks.

What comes of a question is told by its kind: of regions (:mod:`nodes.attachments`), of locks and other primitives
(:mod:`nodes.primitives`), or of the node itself. All of them write down in :mod:`nodes.ledger` what is to be done.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dsm import errors, local, wire
from dsm.codec import pack, unpack
from nodes.attachments import Attachments
from nodes.connections import Connection, exhausted
from nodes.keeper import MAPPED, Shelf, Thing, end_applications
from nodes.ledger import Ledger
from nodes.memory import Mapping
from nodes.notes import Notes
from nodes.primitives import Primitives

if TYPE_CHECKING:
    from nodes.agent import Agent


class Applications:
    """All connections of one agent. ``any_user``: whoever may open the socket may use it, else its owner and root.
    What another agent will need is in ``notes``, and its descriptors on the ``shelf``."""

    def __init__(self, agent: Agent, any_user: bool, notes: Notes, shelf: Shelf) -> None:
        self._agent = agent
        self._listener = shelf.listener
        self._any_user = any_user
        self._notes = notes
        self._shelf = shelf
        self._spare = _spare()
        self.ledger = Ledger(agent, notes, shelf, self._closed)
        self.attachments = Attachments(agent, self.ledger, shelf)
        self.primitives = Primitives(self.ledger, shelf)
        self._connections = self.ledger.connections
        # Closed, but the process has its region mapped still. A dict for its order.
        self._silent: dict[Connection, None] = {}
        self._interrupted: list[Connection] = []  # whose questions are to be asked once pages may be
        self._served_any = False
        self._handlers: dict[type[Any], Callable[[Connection, Any, list[int]], None]] = {
            **self.attachments.handlers,
            **self.primitives.handlers,
            wire.Query: self._query,
        }
        self.ledger.answers[wire.Query] = self._queried
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
        self.primitives.give_up()
        self.ledger.commit()
        self._agent.remove_socket()
        for connection in self._connections | self._silent | self.ledger.left:
            connection.close()
        self.primitives.close()
        self.attachments.close()
        os.close(self._spare)

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
            _refuse(sock, exhausted(error))
            return
        self._served_any = True
        self._connections[connection] = None
        self.ledger.note(connection)
        self._shelf.put(f"connection {connection.slot}", pack(pid), [sock.fileno(), *([pidfd] if pid else [])])
        if not self._any_user and uid not in (0, os.getuid()):
            text = f"this node belongs to user {os.getuid()}, you are user {uid}: start a node of your own"
            self.ledger.fail(connection, errors.PermissionDenied(text))
            self.ledger.commit()
            return
        self._watch(connection)

    def _turn_away(self, error: OSError) -> None:
        """Out of descriptors: a connection that is left in the queue would wake us for ever. One was kept for this."""
        os.close(self._spare)
        try:
            sock, _ = self._listener.accept()
            _refuse(sock, exhausted(error))
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
            self.ledger.fail(connection, error)
        except OSError:  # the application reset the connection
            self._closed(connection)
        finally:
            for fd in fds:
                with contextlib.suppress(OSError):
                    os.close(fd)
        self.ledger.commit()
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
                self.ledger.abandon(connection)
            if connection.waits:
                raise errors.ProtocolError(f"{kind.__name__} was not expected now")
            connection.number, connection.reply = number, b""
        handler(connection, message, fds)

    def _answer_again(self, connection: Connection, message: wire.Message, fds: list[int]) -> None:
        """The answer to a question may not have been sent, or not been noted."""
        if connection.waits:
            return
        if connection.reply:
            self.ledger.reply_again(connection)
        elif connection.region is not None and type(message) is wire.Attach:
            self.attachments.tell_attached(connection, connection.region)
        else:
            self._handlers[type(message)](connection, message, fds)

    def _closed(self, connection: Connection) -> None:
        if connection not in self._connections:
            return
        self.ledger.leave(connection)
        self._agent.unwatch(connection.sock.fileno())
        connection.hang_up()
        if connection.ticket:
            self.ledger.tell(wire.Cancel(connection.ticket, True))
        self.primitives.closed(connection)
        self.attachments.closed(connection)
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
            self.ledger.note(connection)  # before its userfaultfd is gone
            self.attachments.drop_mapping(connection, mapping)
        self.attachments.detach(connection)

    def look_after(self, now: float) -> None:
        """Let go who has left without a word; tell those who wait for a silent directory."""
        for connection in list(self._silent):
            self._let_go(connection)
        self.primitives.look_after()
        self.ledger.look_after(now)

    # -- in the place of an agent that was killed --------------------------------------------------------

    def take_over(self, found: dict[str, Thing]) -> None:
        """Go on where that one has stopped. The regions are here again, and nothing is served yet."""
        self._served_any = True
        self.primitives.take_over(found)
        for name, thing in found.items():
            if name.startswith("connection "):
                slot = int(name.split()[1])
                self._recall(slot, thing, found.get(f"{MAPPED}{slot}"))
        connections = {f"{MAPPED}{connection.slot}": connection for connection in self._connections}
        # A mapping without its connection: the keeper had no descriptor left for that.
        end_applications({name: found[name] for name in found if name not in connections})
        for name, thing in found.items():
            if name.startswith(MAPPED):
                mapping = connections[name].mapping if name in connections else None
                local.close_all([fd for fd in thing.fds if mapping is None or fd != mapping.uffd.fileno()])
                if mapping is None:  # it was about to be dropped, or is to be put there once more
                    self._shelf.drop(name)
        for connection in list(self._connections):
            self._watch(connection)
        self.ledger.commit()

    def _watch(self, connection: Connection) -> None:
        self._agent.watch(connection.sock.fileno(), lambda _: self._readable(connection))

    def _recall(self, slot: int, thing: Thing, mapped: Thing | None) -> None:
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
        self.primitives.recall_connection(connection, noted.party)
        self.attachments.recall_connection(connection, noted, mapped)
        if connection.ticket:
            self.ledger.expect(connection, connection.question)
        elif connection.question is not None:
            self._interrupted.append(connection)
        elif connection.reply:
            self.ledger.reply_again(connection)
        elif connection.region is not None and connection.mapping is None and connection.number:
            self.attachments.tell_attached(connection, connection.region)

    def restate(self) -> list[wire.Message]:
        """What is so here, and what was asked, for a directory that may have been told some of it already."""
        return self.primitives.restate() + self.attachments.restate() + self.ledger.say_again()

    def go_on(self) -> None:
        """Pages may be asked for again, and what the directory does not write down."""
        for question in self.ledger.open_questions():
            if type(question) not in wire.REMEMBERED:
                self.ledger.tell(question)
        interrupted, self._interrupted = self._interrupted, []
        for connection in interrupted:
            question, connection.question = connection.question, None
            self._handlers[type(question)](connection, question, [])
        self.ledger.commit()

    # -- questions ---------------------------------------------------------------------------------------

    def _query(self, connection: Connection, m: wire.Query, _: list[int]) -> None:
        if m.what in ("here", "upgrade"):
            self.ledger.reply(connection, wire.Answer(0, {"pid": os.getpid(), "name": self._agent.name}))
            if m.what == "upgrade":
                self._agent.step_aside()
        elif m.what == "drain":
            self._drain(connection)
        else:
            self.ledger.ask(connection, m)

    def _queried(self, connection: Connection, question: wire.Query, answer: Any) -> None:
        if question.what == "story":
            self._story(connection, question, answer)
        elif question.what == "status":
            self._status(connection, question, answer)
        else:
            self.ledger.forward(connection, question, answer)

    def _drain(self, connection: Connection) -> None:
        """Leave, if nobody needs this node any more; whoever asked waits for the end of the connection."""
        attached = [other for other in self._connections | self._silent if other.mapping is not None]
        if attached:
            who = ", ".join(sorted({f"process {o.pid}" if o.pid else "one in another container" for o in attached}))
            text = f"node {self._agent.name!r} has applications, which would wait for ever: end them first ({who})"
            self.ledger.reply(connection, wire.failure(0, errors.InUse(text)))
            return
        self.ledger.reply(connection, wire.Answer(0, {"name": self._agent.name}))
        self._agent.stop()

    def _story(self, connection: Connection, m: wire.Query, answer: Any) -> None:
        if type(answer) is wire.Answer and m.region in self._agent.pager.regions:
            story = {"name": self._agent.name, **self._agent.pager.machine.story_of(m.region, m.start)}
            answer = wire.Answer(0, {**answer.value, "node": story})
        self.ledger.forward(connection, m, answer)

    def _status(self, connection: Connection, question: wire.Query, m: Any) -> None:
        if type(m) is not wire.Answer:
            self.ledger.forward(connection, question, m)
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
        self.ledger.reply(connection, wire.Answer(0, status))


def _spare() -> int:
    return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)


def _refuse(sock: socket.socket, error: errors.DsmError) -> None:
    """Say why, and close a connection that was never taken on."""
    with contextlib.suppress(OSError), sock:
        local.send(sock, wire.failure(0, error))
