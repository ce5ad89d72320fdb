"""What is owed to applications, and what has been done and is to be noted, told and answered.

One connection carries one question at a time. What the directory has to answer gets a ticket, under which the
connection is found again.

What is done about one question, or one answer, is done as a whole (:meth:`Ledger.commit`): first it is noted, then told
to the directory and to the application, and only then the question is taken from its socket. So whoever takes the place
of an agent that was killed finds either all of it or nothing, and what was said may be said again: the directory knows
questions by their tickets and locks by their grants, the application knows answers by their numbers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dsm import asking, errors, local, wire
from dsm.constants import DIRECTORY_TIMEOUT_S
from nodes.connections import REPLY_BYTES_MAX, Connection, Party
from nodes.keeper import Shelf
from nodes.notes import Notes

if TYPE_CHECKING:
    from nodes.agent import Agent

Answered = Callable[[Connection, Any, Any], None]
"""What to do with the connection, its question, and the answer of the directory."""


class Ledger:
    """Of one agent. ``closed`` is called when it turns out that a connection has gone."""

    def __init__(self, agent: Agent, notes: Notes, shelf: Shelf, closed: Callable[[Connection], None]) -> None:
        self._agent = agent
        self._notes = notes
        self._shelf = shelf
        self._closed = closed
        # Dicts for their order: what is done to all of them is done in order of arrival.
        self.connections: dict[Connection, None] = {}
        # What is over, but has to be said again by another agent until the directory is known to have written it down:
        # how much was told to it then, -1 before anything was.
        self.left: dict[Connection, int] = {}
        self._over: dict[Party, int] = {}
        self._unsaid = False  # there are such that nothing was told of
        self._changed: dict[Connection, None] = {}
        self._tells: list[wire.Message] = []
        self._replies: list[tuple[Connection, Any]] = []
        # Who asked, what, and when it was asked (for ever, where a wait may last).
        self._tickets: dict[int, tuple[Connection, Any, float]] = {}
        self.answers: dict[type[Any], Answered] = {}
        """By the kind of the question; where there is nothing the application gets the answer as it is."""
        self.heard = 0  # answers of the directory that have come, in its conversation of now

    # -- what is to be done as a whole -------------------------------------------------------------------

    def tell(self, message: wire.Message) -> None:
        """Say something to the directory."""
        self._tells.append(message)

    @property
    def telling(self) -> int:
        """The number, in the conversation with the directory, of the next message to it."""
        return self._agent.links.said.told + len(self._tells) + 1

    def change(self, connection: Connection) -> None:
        """What is known of a connection is another thing than what was noted."""
        self._changed[connection] = None

    def reply(self, connection: Connection, message: wire.Message, fds: list[int] | None = None) -> None:
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

    def reply_again(self, connection: Connection) -> None:
        """As it was noted: perhaps it was not sent."""
        self._replies.append((connection, local.again(connection.reply)))

    def leave(self, connection: Connection) -> None:
        """It has closed, and the directory is to know what was on it."""
        self.connections.pop(connection, None)
        self.left[connection] = -1
        self._unsaid = True

    def end(self, party: Party) -> None:
        """It has ended, and the directory is to know."""
        self._over[party] = -1
        self._unsaid = True
        self.tell(wire.Gone(party.number, party.died))

    def commit(self) -> None:
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
                    self.note(connection)
            for message in tells:
                self._agent.links.tell(message)
            for connection, packet in replies:
                self._send(connection, packet)
            for connection in long:
                self.note(connection)
            if self._unsaid:
                self._unsaid = False
                told = self._agent.links.said.told
                self.left.update((connection, told) for connection, count in self.left.items() if count < 0)
                self._over.update((party, told) for party, count in self._over.items() if count < 0)

    def note(self, connection: Connection) -> None:
        """At once."""
        if connection not in self.connections and connection not in self.left:
            return
        known = self._agent.links.said.heard_of
        connection.died = [died for died in connection.died if died[0] > known]
        try:
            self._notes.put(connection.slot, connection.note())
        except ValueError:
            self.fail(connection, errors.NodeExhausted("too many locks are held on one connection"))

    def _send(self, connection: Connection, packet: Any) -> None:
        if connection.open:
            try:
                connection.sock.sendmsg(*packet)
            except OSError:
                self._closed(connection)

    def fail(self, connection: Connection, error: errors.DsmError) -> None:
        """Say why, and end a connection that does not keep to the rules."""
        self._agent.rejected += 1
        self._dismiss(connection, error)

    def _dismiss(self, connection: Connection, error: errors.DsmError) -> None:
        self._send(connection, local.packet(wire.failure(0, error)))
        self._closed(connection)

    # -- questions to the directory ----------------------------------------------------------------------

    def ask(self, connection: Connection, message: Any) -> None:
        """Send a message to the directory under a new ticket."""
        ticket = self._notes.ticket % 0xFFFFFFFF + 1
        self._notes.use(ticket)
        question = message._replace(ticket=ticket)
        self.expect(connection, question)
        self.tell(question)

    def expect(self, connection: Connection, question: Any) -> None:
        """The directory has to answer this question."""
        connection.ticket = question.ticket
        self.wait(connection, question)
        # It may wait for other applications as long as it takes.
        waits = type(question) in (wire.Arrive, wire.Mirror) or (
            type(question) is wire.Acquire and question.wait != wire.TRY
        )
        self._tickets[question.ticket] = (connection, question, math.inf if waits else time.monotonic())

    def wait(self, connection: Connection, question: wire.Message) -> None:
        """The answer to this question comes later."""
        connection.question = question
        self._changed[connection] = None

    def cancel(self, connection: Connection) -> None:
        """The answer is no longer wanted: soon there is another one."""
        ticket = connection.ticket
        self.tell(wire.Cancel(ticket, False))
        self._tickets[ticket] = (*self._tickets[ticket][:2], time.monotonic())
        connection.cancelled = True
        self._changed[connection] = None

    def abandon(self, connection: Connection) -> None:
        """Nobody waits for the answer any more."""
        self._tickets.pop(connection.ticket, None)
        connection.ticket, connection.question = 0, None

    def answered(self, message: Any) -> None:
        """The directory has answered a ticket."""
        self.heard += 1
        asked = self._tickets.pop(message.ticket, None)
        if asked is not None:
            connection, question, _ = asked
            connection.ticket, connection.question = 0, None
            self._changed[connection] = None
            self.answers.get(type(question), self.forward)(connection, question, message)
        elif type(message) is wire.Opened:  # too late: nobody waits for it any more
            self.tell(wire.Close(message.region, 1))
        self.commit()

    def forward(self, connection: Connection, _: Any, answer: Any) -> None:
        """Hand the directory's answer to the application as it is."""
        self.reply(connection, answer._replace(ticket=0))

    def succeeded(self, connection: Connection, _: Any, answer: Any) -> None:
        """As :meth:`forward`, but a bare success is told as Ready."""
        if type(answer) is wire.Granted:
            self.reply(connection, wire.Ready())
        else:
            self.forward(connection, _, answer)

    def open_questions(self) -> list[Any]:
        """What the directory has not answered yet."""
        return [question for _, question, _ in self._tickets.values()]

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

    def look_after(self, now: float) -> None:
        """Tell those who wait for a silent directory; forget what need not be said again."""
        for ticket, (connection, question, asked_s) in list(self._tickets.items()):
            if now - asked_s > DIRECTORY_TIMEOUT_S:
                text = asking.unreachable(self._agent.links.directory_address, DIRECTORY_TIMEOUT_S)
                # What it is granted all the same is given back, as for a connection that has gone.
                self._tickets[ticket] = (connection, question, math.inf)
                self._dismiss(connection, errors.DirectoryUnreachable(text))
        if not self._agent.links.anew:
            self._forget_what_is_over()
        self.commit()

    def _forget_what_is_over(self) -> None:
        """The directory has written it down."""
        known = self._agent.links.said.heard_of
        for connection in [c for c, told in self.left.items() if 0 <= told <= known and not c.ticket]:
            if connection.mapping is None:
                del self.left[connection]
                self._shelf.drop(f"connection {connection.slot}")
                self._notes.free(connection.slot)
        for party in [party for party, told in self._over.items() if 0 <= told <= known]:
            del self._over[party]
            self._shelf.drop(f"party {party.number}")

    def say_again(self) -> list[wire.Message]:
        """What is over and what is asked, for a directory that may have been told of it already."""
        said: list[wire.Message] = []
        for connection in self.connections | self.left:
            said += [wire.Return(grant, name, True) for _, grant, name in connection.died]
        for connection in self.left:
            said += [wire.Return(grant, name, True) for name, (grant, _) in connection.locks.items()]
            said += [wire.Cancel(connection.ticket, True)] if connection.ticket else []
        said += [wire.Gone(party.number, party.died) for party in self._over]
        for connection in self.connections:
            if connection.ticket and type(connection.question) in wire.REMEMBERED:
                said.append(connection.question)  # type: ignore[arg-type]
                said += [wire.Cancel(connection.ticket, False)] if connection.cancelled else []
        self.left = dict.fromkeys(self.left, 0)
        self._over = dict.fromkeys(self._over, 0)
        return said
