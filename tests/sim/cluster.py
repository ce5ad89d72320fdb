"""A whole simulated cluster: the directory, the hosts, and what joins them."""

from __future__ import annotations

import contextlib
import pickle
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from directory.cluster import TICK_S, Cluster
from dsm import constants, wire

from . import inside
from .host import AgentKilled, Host
from .kernel import Kernel, KernelNoise
from .network import DIRECTORY, Channel, Deliver, Network, Packet
from .oracle import Oracle
from .programs import Process
from .world import MS, US, S, SimulationError, World

if TYPE_CHECKING:
    from .workloads import Workload


class DirectoryHost:
    """The directory's shell on the simulated clock, as directory/service.py is on a real one, with what
    directory/journal.py keeps: a snapshot and the events since."""

    def __init__(self, cluster: SimulatedCluster) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.machine = Cluster("tcp://10.0.0.1:7400", 0.0)
        self.stopped_until = 0
        self.was_beginning = False  # when it last did something, it did not know yet where the pages are
        self.epoch = 1
        self._snapshot = pickle.dumps(self.machine.remembered())
        self._events: list[tuple[int, bytes, bytes]] = []
        self._queue: deque[tuple[bytes, bytes]] = deque()
        self._ended: set[bytes] = set()  # conversations
        self._scheduled = False
        self.world.periodically(int(TICK_S * S), self._tick)

    def receive(self, channel: Channel, packet: Packet) -> None:
        self._queue.append((identity(channel.source, channel.conversation), packet.data))
        self._schedule()

    def restart(self, downtime: int) -> None:
        """It is killed, and another begins in its place after a while."""
        self._queue.clear()
        self.epoch += 1
        self.stopped_until = max(self.stopped_until, self.world.now + downtime)
        self.machine = machine = Cluster("tcp://10.0.0.1:7400", 0.0)
        now = self.stopped_until / S
        machine.recall(pickle.loads(self._snapshot), now)
        for node, session, message in self._events:
            machine.again((node, session, wire.decode(message)), now)
        machine.events.clear()
        machine.begin_again(self.epoch, now)
        self.note_events()
        machine.due_s = now
        if self.world.chance.random() < 0.5:
            self._take_snapshot()

    def note_events(self) -> None:
        """Write down what has happened, before anybody is told."""
        self._events += [(node, session, wire.encode(message)) for node, session, message in self.machine.events]
        self.machine.events.clear()

    def _take_snapshot(self) -> None:
        self._snapshot = pickle.dumps(self.machine.remembered())
        self._events.clear()

    def _schedule(self) -> None:
        if self._queue and not self._scheduled:
            self._scheduled = True
            self.world.at(max(self.world.now + self.world.spread(2 * US, 30 * US), self.stopped_until), self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        if self.world.now < self.stopped_until:
            self._schedule()
            return
        if not self._queue:  # it was killed meanwhile
            return
        speaker, data = self._queue.popleft()
        if speaker in self._ended:
            self._schedule()
            return
        self.was_beginning = inside.is_beginning_again(self.machine)
        self.act(self.machine.step(speaker, wire.decode(data), self.world.now / S))
        self._schedule()

    def _tick(self) -> None:
        now = self.world.now
        if now >= self.stopped_until and now / S >= self.machine.due_s:
            self.was_beginning = inside.is_beginning_again(self.machine)
            self.act(self.machine.tick(now / S))
        self.world.periodically(int(TICK_S * S), self._tick)

    def act(self, outgoing: list[tuple[bytes, wire.Message]]) -> None:
        """Send what the machine wants to be sent, and take note of who is out."""
        self.note_events()
        for line in self.machine.news:
            self.world.note("directory: %s", line)
            if line.startswith("event=gone "):
                self.cluster.is_out(int(line.split()[1].removeprefix("node=")), "silent" in line)
        self.machine.news.clear()
        for conversation in self.machine.forgotten:
            self._end(self.cluster.hosts[number(conversation)], conversation)
        self.machine.forgotten.clear()
        for to, message in outgoing:
            host = self.cluster.hosts.get(number(to))
            if host is not None and to == identity(host.number, host.links.conversation):
                self.cluster.network.channel(DIRECTORY, host.number, False, host.from_directory).send(message)

    def _end(self, host: Host, conversation: bytes) -> None:
        """End a conversation."""
        self._ended.add(conversation)
        if conversation != identity(host.number, host.links.conversation):
            return
        network = self.cluster.network
        network.forget(host.number, DIRECTORY)
        host.links.directory_died()
        if host.serving:
            self.world.after(self.world.spread(20 * US, 100 * MS), host.forgotten)


def identity(host: int, conversation: int) -> bytes:
    """The name of a host's conversation with the directory: 16 bytes."""
    return f"speaks {host:4} {conversation:4}".encode()


def number(name: bytes) -> int:
    """The host that has that conversation."""
    return int(name.split()[1])


class SimulatedCluster:
    """``nodes`` hosts that have joined a directory."""

    def __init__(self, world: World, nodes: int, noise: KernelNoise, delays: tuple[int, int]) -> None:
        self.world = world
        self.kernel = Kernel(world, noise)
        self.network = Network(world, delays)
        self.network.peer_broken = lambda source, to, bulk: self.hosts[source].peer_broken(to, bulk)
        self.hosts: dict[int, Host] = {}
        self.oracle = Oracle(self)
        self.directory = DirectoryHost(self)
        self.workloads: list[Workload] = []
        self.alive = 0  # processes
        self._members: set[int] = set()
        self._last_pid = 100
        with self.kernel.installed():
            for _ in range(nodes):
                self._join(lambda outgoing: self.directory.machine.news.clear())
        for host in self.hosts.values():  # nodes that are there from the beginning know each other
            host.links.knows(self.hosts)

    def join(self) -> Host:
        """A node arrives."""
        return self._join(self.directory.act)

    def _join(self, tell: Callable[[list[tuple[bytes, wire.Message]]], None]) -> Host:
        new = len(self.hosts) + 1
        out = self.directory.machine.step(
            identity(new, 1), wire.Join(f"n{new}", f"tcp://10.0.0.1:{new}"), self.world.now / S
        )
        welcome = out.pop(0)[1]
        if welcome != wire.Welcome(new):
            raise SimulationError(f"a node that joins was answered with {welcome}")
        host = self.hosts[new] = Host(self, new)
        self._members.add(new)
        self.directory.note_events()
        tell(out)
        return host

    def restart_directory(self, downtime: int) -> None:
        """The directory is killed. What it had sent may arrive or not; what was sent to it does not."""
        if any(host.links.anew for host in self.hosts.values() if host.serving):
            self.oracle.both_were_killed()
        self.directory.restart(downtime)
        for host in self.hosts.values():
            self.network.forget(host.number, DIRECTORY)
            host.links.directory_died()
            if host.serving:
                self.world.at(self.directory.stopped_until + self.world.spread(20 * US, 2 * S), host.forgotten)

    def is_out(self, node: int, silent: bool) -> None:
        """The directory no longer counts a node as a member. If it does not know, what it reads may be old from now on;
        one that has left has taken every page away before it said so."""
        host = self.hosts[node]
        self.oracle.departed(host)
        if self.directory.was_beginning:
            self.oracle.took_the_rest(host)
        self._members.discard(node)
        if host.serving:
            host.trusted = False
            works = self.world.now > host.stopped_until + int(constants.LEASE_MARGIN_S * S)
            here = self.kernel.pages_of(host)
            if silent and works and here:
                raise SimulationError(f"{host.name} is out, but its applications can still read {here}")

    def is_member(self, host: Host) -> bool:
        """Does the directory count it among the nodes?"""
        return host.number in self._members

    def peer(self, to: int) -> Deliver:
        """Where a message to a host goes."""
        return self.hosts[to].from_peer

    def sender_may_go_on(self, source: int) -> None:
        """A frame of a bulk connection has been taken."""
        self.hosts[source].bulk_may_go_on()

    @contextlib.contextmanager
    def running(self, host: Host) -> Iterator[None]:
        """The agent of a host works: system calls are its."""
        before, self.kernel.host = self.kernel.host, host
        host.busy = True
        killed = False
        try:
            yield
        except AgentKilled:
            killed = True
        finally:
            self.kernel.host = before
            host.busy = False
        if killed:
            host.replace_agent()

    # -- processes -----------------------------------------------------------------------------------------

    def new_pid(self) -> int:
        self._last_pid += 1
        return self._last_pid

    def processes(self) -> list[Process]:
        """Those that are alive."""
        return [process for host in self.hosts.values() for process in host.processes.values() if process.alive]

    def process_was_killed(self, process: Process) -> None:
        for workload in self.workloads:
            workload.was_killed(process)

    def serving_hosts(self) -> list[Host]:
        return [host for host in self.hosts.values() if host.serving]
