"""One simulated host: its node agent, as nodes/agent.py runs it, and its processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

from dsm import constants, errors, wire
from dsm.codec import pack, unpack
from nodes.agent import Agent
from nodes.applications import Applications
from nodes.memory import Mapping, RegionMemory
from nodes.pager import Pager
from nodes.rebuild import Rebuild
from nodes.taking import Taking
from nodes.tenure import Tenure

from . import inside
from .kernel import Pipe
from .network import Channel, Links, Packet
from .programs import Process, Thread
from .stand_ins import Notes, Retained, Shelf
from .world import MS, US, S, SimulationError

if TYPE_CHECKING:
    from .cluster import SimulatedCluster

_LISTENER_FD: Final = 3


class _Pager(Pager):
    """Tells the kernel which region a memory file is."""

    host: Host

    def add_region(self, region: RegionMemory) -> None:
        self.host.cluster.kernel.files[region.memfd].region = region.number
        super().add_region(region)


class AgentKilled(BaseException):
    """It does nothing any more."""


class Listener:
    """The agent's Unix socket: processes that connect wait in its backlog."""

    def __init__(self) -> None:
        self.backlog: deque[Pipe] = deque()
        self.accepted: list[Pipe] = []  # lately

    def fileno(self) -> int:
        return _LISTENER_FD

    def accept(self) -> tuple[Pipe, None]:
        if not self.backlog:
            raise BlockingIOError
        pipe = self.backlog.popleft()
        self.accepted = [*self.accepted[-8:], pipe]  # who finds it closed and unanswered connects once more
        return pipe, None

    def close(self) -> None:
        for pipe in self.backlog:
            pipe.close()


class Host:
    """What nodes/agent.py is to its pager and its applications, with a loop on the simulated clock.

    ``trusted``: the directory counts it as a member, so that whatever it reads must be right. ``serving``: its agent
    runs. ``alive``: so do its processes.
    """

    def __init__(self, cluster: SimulatedCluster, number: int) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.number = number
        self.name = f"n{number}"
        self.started_s = self.world.now / 1e9
        self.alive = self.serving = self.trusted = True
        self.end_applications = False
        self.busy = False  # its agent is in the middle of something
        self.rejected = 0
        self.leaves = ""  # it waits for others to take what only it has; then what becomes of its applications
        self.processes: dict[int, Process] = {}
        self.runnable: dict[Thread, None] = {}
        self.stopped_until = 0
        self.calls_left = 0  # of its agent, before that is killed; 0: it is not
        self._killed_keeping = False
        self.asked: set[tuple[int, int]] = set()  # by agents that were killed: pages, by region
        self.listener = Listener()
        self.notes, self.retained = Notes(self.called), Retained(self.called)
        self.shelf = Shelf(self.keeps, self.listener)
        self.links = Links(cluster.network, number, cluster.peer, cluster.directory.receive)
        self.links.called = self.called
        self._begin()
        self.world.periodically(self.world.spread(1000 * US, S), self._heartbeat)

    def _begin(self) -> None:
        """An agent begins."""
        self.pager = _Pager(
            self.number,
            self.links,
            lambda: self.world.now,
            finished=self._finished,
            blame=self.blame,
            tell=lambda pid, line: self.world.note("tell pid %d: %s", pid, line),
            retained=self.retained,
        )
        self.pager.host = self
        self._on: dict[int, Callable[[int], None]] = {}
        self._ready: dict[int, None] = {}
        self._inbox: dict[int, deque[Packet]] = {}
        self._control: deque[Packet] = deque()
        self._turn_at = 0  # when the next turn is, 0 if none is due
        self.applications = Applications(cast(Agent, self), False, self.notes, self.shelf)
        self.tenure = Tenure(1, self.world.now / 1e9, self.pager, self.applications, self.world.note, self.notes)
        self._rebuild = Rebuild(self.links, self.pager, self.applications, self._fence, self.world.note)
        self._messages: dict[type[Any], Callable[[Any], None]] = {
            wire.Member: lambda m: self.links.member(m.node, m.address),
            wire.MemberLeft: self._member_left,
            wire.Fenced: lambda m: self._fence(m.reason),
            wire.Rejoined: self._rebuild.rejoined,
            wire.Flush: self._rebuild.flush,
            wire.GoOn: self._go_on,
            wire.Take: self._take,
            wire.Revive: self._revive,
            wire.Drained: lambda _: self._drained(),
            wire.Destroy: self._destroy,
            wire.Recall: lambda m: self.applications.primitives.recall(m),
        }

    # -- as the agent --------------------------------------------------------------------------------------

    def watch(self, fd: int, handler: Callable[[int], None]) -> None:
        self._on[fd] = handler
        self.readable(fd)  # perhaps it is already: whoever finds nothing there goes on

    def unwatch(self, fd: int) -> None:
        self._on.pop(fd, None)

    def remove_socket(self) -> None:
        self.listener.close()

    def take_in(self, mapping: Mapping) -> bool:
        if not mapping.region.take_in(mapping):
            return False
        self.watch(mapping.uffd.fileno(), lambda _: self.pager.faults(mapping))
        return True

    def new_region(self, number: int, name: str, size: int, page_size: int, options: dict[str, Any]) -> RegionMemory:
        region = RegionMemory(number, name, size, page_size, options, self.blame)
        self.shelf.put(f"region {number}", pack(number, name, size, page_size, options), region.descriptors)
        self.pager.add_region(region)
        return region

    def step_aside(self) -> None:
        raise AssertionError("nobody asks for that here")

    # -- another agent in the place of one that was killed ---------------------------------------------------

    def kill_agent(self, calls: int, keeping: bool = False) -> None:
        """The agent will be killed when it has done so many things that others can see; ``keeping``: or as soon as it
        says something to its keeper."""
        self.calls_left = calls if self.serving else 0
        self._killed_keeping = keeping

    def called(self) -> None:
        """The agent does something that others can see. Raises if it is killed before that."""
        if self.calls_left:
            self.calls_left -= 1
            if not self.calls_left:
                raise AgentKilled

    def keeps(self) -> None:
        """The agent says something to its keeper."""
        if self.calls_left and self._killed_keeping:
            self.calls_left = 1
        self.called()

    def replace_agent(self) -> None:
        """The agent was killed: another one is forked, and goes on with what the keeper has."""
        self.world.note("n%d: its agent was killed", self.number)
        self.calls_left = 0
        if self.notes.lease <= self.world.now / 1e9:  # there is nothing to be taken over any more
            self.cluster.oracle.departed(self)
            self.die()
            return
        self._on.clear()
        self._ready.clear()
        self._inbox.clear()
        self._control.clear()
        self._turn_at = 0
        if inside.is_beginning_again(self.cluster.directory.machine):
            self.cluster.oracle.both_were_killed()
        self.asked.update(inside.open_requests(self.pager))
        self.links = self.cluster.network.anew(self.links)
        self.shelf.found = found = dict(self.shelf.things)
        self.stopped_until = max(self.stopped_until, self.world.now + self.world.spread(MS, 20 * MS))
        kept = {thing.fds[0] for name, thing in found.items() if name.startswith("connection ")}
        self.listener.backlog.extend(pipe for pipe in self.listener.accepted if pipe.fileno() not in {-1, *kept})
        self.listener.accepted = []
        self._begin()
        with self.cluster.running(self):
            self.links.rejoin()
            self.pager.freeze()
            for name, thing in found.items():
                if name.startswith("region "):
                    number, label, size, page_size, options = unpack(thing.note)
                    self.pager.take_over(RegionMemory(number, label, size, page_size, options, self.blame, thing.fds))
            self.applications.take_over(found)
            self.links.send_to_shards(self.tenure.heartbeat(self.world.now / 1e9))

    def peer_broken(self, node: int, bulk: bool) -> None:
        """A peer does not know a conversation any more."""
        if self.busy or self.world.now < self.stopped_until:
            self.world.after(MS, self.peer_broken, node, bulk)
        elif self.serving:
            with self.cluster.running(self):
                self._rebuild.broken(node, bulk)

    def drop_mapping(self, mapping: Mapping) -> None:
        self.unwatch(mapping.uffd.fileno())
        self.pager.drop_mapping(mapping)

    def blame(self, mapping: Mapping, error: OSError) -> None:
        raise AssertionError(f"{self.name}: nobody meddles with a userfaultfd here: {error}") from error

    # -- the loop ------------------------------------------------------------------------------------------

    def from_peer(self, channel: Channel, packet: Packet) -> None:
        if self.serving:
            self._inbox.setdefault(channel.source * 2 + channel.bulk, deque()).append(packet)
            self._soon()
        if channel.bulk:
            self.cluster.sender_may_go_on(channel.source)

    def from_directory(self, _: Channel, packet: Packet) -> None:
        if self.serving:
            self._control.append(packet)
            self._soon()

    def forgotten(self) -> None:
        """A connection to the directory is made again, and that has forgotten the conversation."""
        if not self.serving or not self.links.dead:
            return
        if self.world.now < self.stopped_until or self.busy or self._control:
            self.world.at(max(self.world.now + MS, self.stopped_until), self.forgotten)
            return
        if self.cluster.directory.stopped_until > self.world.now:  # it was killed once more
            self.world.at(self.cluster.directory.stopped_until + MS, self.forgotten)
            return
        self.links.hang_up()
        with self.cluster.running(self):
            self._rebuild.begin()
            self.links.send_to_shards(self.tenure.heartbeat(self.world.now / 1e9))

    def readable(self, fd: int) -> None:
        """Something has come on a descriptor."""
        if self.serving:
            self._ready[fd] = None
            self._soon()

    def bulk_may_go_on(self) -> None:
        if self.serving and self.pager.bulk_waits:
            self._soon()

    def _soon(self) -> None:
        self._turn_by(self.world.now + self.world.spread(2 * US, 30 * US))

    def _turn_by(self, when: int) -> None:
        when = max(when, self.stopped_until)
        if not self._turn_at or when < self._turn_at:
            self._turn_at = when
            self.world.at(when, self._turn, when)

    def _turn(self, due: int) -> None:
        if due != self._turn_at or not self.serving:
            return
        if self.busy:  # preempted in the middle of its last turn
            self._turn_at = 0
            self._soon()
            return
        self._turn_at = 0
        if self.world.now < self.stopped_until:
            self._turn_by(self.stopped_until)
            return
        before = self.pager
        wait_us = 0
        with self.cluster.running(self):
            self._take_messages()
            if not self.serving:
                return
            if self.tenure.suspended:
                wait_us = 0
            else:
                wait_us = self.pager.expire_holds() if self.pager.holds else 0
            if self.pager.bulk and not self.tenure.suspended:
                self.pager.send_frame()
        if before is not self.pager:  # the agent was killed
            return
        if wait_us:
            self._turn_by(self.world.now + wait_us * US)
        at_once = self.pager.bulk and not self.pager.bulk_waits and not self.tenure.suspended
        if self._inbox or self._control or self._ready or at_once:
            self._soon()

    def _take_messages(self) -> None:
        if self._inbox:
            source = self.world.chance.choice(list(self._inbox))
            packet = self._inbox[source].popleft()
            if not self._inbox[source]:
                del self._inbox[source]
            self._from_peer(packet)
        if self._control and self.serving:
            self._from_directory(wire.decode(self._control.popleft().data))
        ready, self._ready = self._ready, {}
        for fd in ready:
            handler = self._on.get(fd)
            if handler is not None and self.serving:
                handler(0)
        if self.listener.backlog and self.serving:
            self._ready[_LISTENER_FD] = None

    def _from_peer(self, packet: Packet) -> None:
        if not self.serving:
            return
        if self.tenure.suspended:
            self.tenure.hold_back(partial(self._from_peer, packet))
            return
        message = wire.decode(packet.data)
        if type(message) is wire.Data:
            assert packet.payload is not None
            if not self.pager.data(message, memoryview(bytearray(packet.payload))):
                self.rejected += 1
        elif type(message) is wire.Flushed:
            self._rebuild.flushed(message)
        else:
            self.pager.step(message)

    def _from_directory(self, message: wire.Message) -> None:
        if not self.serving:
            return
        kind = type(message)
        if kind is wire.Lease:
            self.tenure.renewed(cast(wire.Lease, message), self.world.now / 1e9)
            self.links.said.heard(cast(wire.Lease, message).heard)
        elif self.tenure.suspended and kind is not wire.Fenced:
            self.tenure.hold_back(partial(self._from_directory, message))
        elif kind in self._messages:
            self._messages[kind](message)
        elif kind in wire.ANSWERS:
            self.applications.ledger.answered(message)
        else:
            self.pager.step(message)

    def _heartbeat(self) -> None:
        if not self.serving:
            return
        if self.world.now >= self.stopped_until and not self.busy:
            with self.cluster.running(self):
                self.links.send_to_shards(self.tenure.heartbeat(self.world.now / 1e9))
                self.tenure.look(self.world.now / 1e9)
                self.applications.look_after(self.world.now / 1e9)
            self._soon()  # the loop goes round
        self.world.periodically(int(constants.HEARTBEAT_S * S), self._heartbeat)

    # -- the end -------------------------------------------------------------------------------------------

    def _member_left(self, m: wire.MemberLeft) -> None:
        self.pager.member_left(m)
        self._rebuild.member_left(m.node)

    def _destroy(self, m: wire.Destroy) -> None:
        self.shelf.drop(f"region {m.region}")
        self.pager.destroy(m.region)

    def _revive(self, m: wire.Revive) -> None:
        self.pager.step(m)
        self._rebuild.revived()

    def _fence(self, _: str) -> None:
        self.world.note("n%d is fenced", self.number)
        self.end_applications = True
        self._leave()

    def _finished(self, waiter: Any) -> None:
        if type(waiter) is Taking:
            waiter.came()
        else:
            self.applications.attachments.prefetched(waiter)

    def _take(self, m: wire.Take) -> None:
        if m.region not in self.pager.regions:
            self.new_region(m.region, m.name, m.size, m.page_size, m.options)
        Taking(self.pager, m, self.links).go_on()

    def _go_on(self, m: wire.GoOn) -> None:
        self._rebuild.go_on(m)
        self.asked.clear()
        if self.leaves:
            self.links.send(wire.DIRECTORY, wire.Drain())

    def drain(self, end_applications: bool) -> None:
        """As on SIGTERM, where there is a directory that can be asked."""
        self.calls_left = 0
        self.leaves = "end" if end_applications else "keep"
        self.links.send(wire.DIRECTORY, wire.Drain())

    def _drained(self) -> None:
        self.end_applications = self.leaves == "end"
        self.cluster.oracle.departed(self)
        self._leave()

    def leave(self, end_applications: bool) -> None:
        """As on SIGTERM."""
        self.end_applications = end_applications
        self.cluster.oracle.departed(self)
        with self.cluster.running(self):
            self._leave()
        here = self.cluster.kernel.pages_of(self)
        if here:
            raise SimulationError(f"{self.name} has left, but its applications can still read {here}")

    def _leave(self) -> None:
        if not self.serving:
            return
        self.calls_left = 0
        if self.end_applications:
            self.applications.end_all()
        self.pager.withdraw()
        self.applications.close()
        self.links.send(wire.DIRECTORY, wire.Leave())
        self.serving = False
        self.cluster.network.gone.add(self.number)
        for region in self.pager.regions.values():
            region.close()
        for channel in self.cluster.network.channels_of(self.number):
            if channel.to:  # linger is 0: what has not left yet may never leave
                channel.lose(self.world.chance.randint(0, len(channel.packets)))

    def die(self) -> None:
        """The host loses its power."""
        self.alive = self.serving = self.trusted = False
        self.cluster.network.gone.add(self.number)
        for channel in self.cluster.network.channels_of(self.number):
            channel.lose(self.world.chance.randint(0, len(channel.packets)))
        for process in list(self.processes.values()):
            process.vanish()
        self.cluster.kernel.forget_host(self)

    # -- processes -----------------------------------------------------------------------------------------

    def run_some_thread(self) -> None:
        """While the agent works, one of the threads runs on another core."""
        if self.runnable:
            self.world.chance.choice(list(self.runnable)).run()

    def connect(self, pipe: Pipe) -> None:
        """A process connects to the agent."""
        if not self.serving:
            raise errors.NodeUnreachable("the agent has gone")
        self.listener.backlog.append(pipe)
        self.readable(_LISTENER_FD)
