"""Locks and other primitives, as applications use them: their questions to the directory, the locks that this node may
give by itself (:mod:`nodes.locks`), and the processes of which the directory is to know the end."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from dsm import errors, wire
from nodes.connections import Connection, Party, recall_party
from nodes.keeper import Shelf, Thing
from nodes.ledger import Ledger
from nodes.locks import Locks


class Primitives:
    """Of all applications of one agent."""

    def __init__(self, ledger: Ledger, shelf: Shelf) -> None:
        self._ledger = ledger
        self._shelf = shelf
        self._locks = Locks()
        self._parties: dict[int, Party] = {}  # by pid
        self._suspended = False
        self._postponed: list[tuple[Connection, wire.Acquire]] = []
        self.handlers: dict[type[Any], Callable[[Connection, Any, list[int]], None]] = {
            wire.Acquire: self._acquire,
            wire.Release: self._release,
            wire.WaitOn: self._wait_on,
            wire.Enroll: self._enroll,
            wire.Arrive: self._arrive,
            wire.Post: self._ask,
            wire.BarrierReset: self._ask,
            wire.Forget: self._ask,
            wire.Inspect: self._inspect,
            wire.Gone: self._gone,
            wire.Cancel: self._cancel,
        }
        ledger.answers[wire.Acquire] = self._acquired

    def _acquire(self, connection: Connection, m: wire.Acquire, _: list[int]) -> None:
        if m.kind not in (wire.LOCK, wire.RLOCK):
            self._ledger.ask(connection, m)
            return
        if m.name in connection.locks:
            raise errors.ProtocolError(f"lock {m.name!r} is held on this connection already")
        if self._suspended:  # the directory may have given it to others
            connection.postponed = True
            self._postponed.append((connection, m))
            self._ledger.wait(connection, m)
            return
        answer = self._locks.take(m)
        if answer is None:
            self._ledger.ask(connection, m)
            return
        if type(answer) is wire.Granted:
            connection.locks[m.name] = (self._locks.grant(m.name), wire.encode(m))
        self._ledger.reply(connection, answer)

    def _acquired(self, connection: Connection, m: wire.Acquire, answer: Any) -> None:
        if type(answer) is wire.Granted and m.kind in (wire.LOCK, wire.RLOCK):
            self._locks.granted(m, answer.value)
            if not connection.open:  # nobody has learnt how the lock was left
                connection.locks[m.name] = (m.ticket, b"")
                self._release_one(connection, m.name, died=answer.value & wire.OWNER_DIED != 0)
                self._ledger.leave(connection)
                return
            connection.locks[m.name] = (m.ticket, wire.encode(m))
        self._ledger.forward(connection, m, answer)

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
        self._ledger.commit()

    def _release(self, connection: Connection, m: wire.Release, _: list[int]) -> None:
        if m.name not in connection.locks:
            text = f"lock {m.name!r} is not held here: acquire it first"
            self._ledger.reply(connection, wire.Failure(0, "LockNotHeld", text))
            return
        self._release_one(connection, m.name, died=m.died)
        self._ledger.reply(connection, wire.Ready())

    def _release_one(self, connection: Connection, name: str, *, died: bool) -> None:
        grant, _ = connection.locks.pop(name)
        if died:
            connection.died.append((self._ledger.telling, grant, name))
        self._give_back(name, grant, died=died)

    def _give_back(self, name: str, grant: int, *, died: bool) -> None:
        for message in self._locks.released(name, grant, died):
            self._ledger.tell(message)

    def recall(self, m: wire.Recall) -> None:
        """Others want a lock of this node."""
        for message in self._locks.recalled(m.name):
            self._ledger.tell(message)
        self._ledger.commit()

    def _wait_on(self, connection: Connection, m: wire.WaitOn, _: list[int]) -> None:
        if m.lock not in connection.locks:
            raise errors.ProtocolError(f"lock {m.lock!r} is not held on this connection")
        # The wait is known to the directory before anybody can get the lock, and notify.
        question = wire.Acquire(0, m.name, wire.CONDITION, m.wait, m.process, m.thread, m.who)
        self._ledger.ask(connection, question)
        self._release_one(connection, m.lock, died=False)

    def _enroll(self, connection: Connection, m: wire.Enroll, _: list[int]) -> None:
        if m.kind == wire.BARRIER:
            self._take_part(connection, m.process)
        self._ledger.ask(connection, m)

    def _arrive(self, connection: Connection, m: wire.Arrive, _: list[int]) -> None:
        self._take_part(connection, m.process)
        self._ledger.ask(connection, m)

    def _inspect(self, connection: Connection, m: wire.Inspect, _: list[int]) -> None:
        held = self._locks.is_held(m.name, m.kind)
        if held is None:
            self._ledger.ask(connection, m)
        else:
            self._ledger.reply(connection, wire.Answer(0, {"locked": held}))

    def _ask(self, connection: Connection, m: Any, _: list[int]) -> None:
        self._ledger.ask(connection, m)

    def _cancel(self, connection: Connection, _: wire.Cancel, __: list[int]) -> None:
        if connection.postponed:
            self._postponed = [other for other in self._postponed if other[0] is not connection]
            connection.postponed = False
            self._ledger.reply(connection, wire.Cancelled(0))
        elif connection.ticket:  # else the answer has overtaken it, and stands
            self._ledger.cancel(connection)

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
        self._ledger.reply(connection, wire.Ready())

    def _look_for(self, key: int, party: Party) -> None:
        """Tell the directory if this process has ended."""
        if party.ended:
            self._party_is_over(key, party)

    def _party_is_over(self, key: int, party: Party) -> None:
        del self._parties[key]
        party.close()
        self._ledger.end(party)

    # -- connections that end, and agents ----------------------------------------------------------------

    def closed(self, connection: Connection) -> None:
        """Its locks are free, left as by one who has died."""
        for name, (grant, _) in connection.locks.items():
            self._give_back(name, grant, died=True)
        if connection.party is not None:
            connection.party.connections -= 1
            self._look_for(connection.pid or -connection.party.number, connection.party)

    def look_after(self) -> None:
        """Tell the directory which processes have ended."""
        for key, party in list(self._parties.items()):
            self._look_for(key, party)

    def give_up(self) -> None:
        """Give back the locks that nobody holds."""
        for message in self._locks.give_up():
            self._ledger.tell(message)

    def close(self) -> None:
        for party in self._parties.values():
            party.close()

    def take_over(self, found: dict[str, Thing]) -> None:
        """The processes that the agent before this one knew."""
        for name, thing in found.items():
            if name.startswith("party "):
                party = recall_party(*thing)
                self._parties[party.pid or -party.number] = party

    def recall_connection(self, connection: Connection, number: int) -> None:
        """The locks that are held on it, and the process with this number."""
        for name, (grant, acquired) in connection.locks.items():
            acquire = wire.decode(acquired)
            assert isinstance(acquire, wire.Acquire), name
            self._locks.restore(acquire, grant)
        party = self._parties.get(connection.pid or -number)
        if party is not None and party.number == number:
            connection.party = party
            party.connections += 1

    def restate(self) -> list[wire.Message]:
        """Which locks this node has. Those that nobody holds the directory takes back."""
        self._locks.give_up()
        said: list[wire.Message] = []
        for connection in self._ledger.connections | self._ledger.left:
            said += [wire.Stands(grant, name) for name, (grant, _) in connection.locks.items()]
            said += [wire.Stands(grant, name) for _, grant, name in connection.died]
        for question in self._ledger.open_questions():
            if type(question) is wire.Acquire and question.kind in (wire.LOCK, wire.RLOCK):
                said.append(wire.Stands(question.ticket, question.name))
        return said
