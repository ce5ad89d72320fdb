"""What goes wrong in a run: faults of all kinds, at random moments and for random times, several at once; then none."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from dsm.constants import LEASE_S

from . import inside
from .cluster import SimulatedCluster
from .host import Host
from .network import DIRECTORY, Channel
from .world import MS, US, S

_LEASE: Final = int(LEASE_S * S)
_REBUILT_MAX: Final = 64
"""Nodes of a cluster whose directory may begin again: each tells each other that it has."""


class Faults:
    """Injects ``count`` faults of the given ``kinds`` within ``span`` nanoseconds. ``over`` once all are healed."""

    def __init__(self, cluster: SimulatedCluster, kinds: list[str], count: int, span: int) -> None:
        self._cluster = cluster
        self._world = cluster.world
        self._chance = cluster.world.chance
        self._open = 0
        self._scheduled = count if kinds else 0
        for _ in range(self._scheduled):
            self._world.after(self._chance.randint(0, span), self._inject, self._chance.choice(kinds or [""]))

    @property
    def over(self) -> bool:
        return not self._scheduled and not self._open

    def _inject(self, kind: str) -> None:
        self._scheduled -= 1
        hosts = [host for host in self._cluster.hosts.values() if host.serving and host.trusted]
        hosts = [host for host in hosts if not host.busy]
        if hosts:
            KINDS[kind](self, self._chance.choice(hosts), hosts)

    def _count(self, kind: str, host: Host) -> None:
        self._world.counts[kind] += 1
        self._world.note("fault: %s, node %d", kind, host.number)

    def _heal_after(self, duration: int, heal: Callable[[], None]) -> None:
        self._open += 1
        self._world.after(duration, self._heal, heal)

    def _heal(self, heal: Callable[[], None]) -> None:
        self._open -= 1
        heal()

    def _short(self) -> int:
        """A time that no lease notices: from a hiccup to a third of the lease."""
        return self._world.spread(50 * US, _LEASE // 3)

    # -- kinds ---------------------------------------------------------------------------------------------

    def _cut_connection(self, host: Host, hosts: list[Host]) -> None:
        """A connection stops and goes on later, in one direction or both."""
        other = self._chance.choice([DIRECTORY, *(o.number for o in hosts if o is not host)])
        one_way = self._chance.random() < 0.3
        me = host.number
        self._count("cut connection", host)
        self._cut(lambda a, b: (a, b) == (me, other) or (not one_way and (b, a) == (me, other)), self._short())

    def _broken_connection(self, host: Host, hosts: list[Host]) -> None:
        """Connections break while both ends live: what was under way is lost, and they are made again after a while."""
        other = self._chance.choice([DIRECTORY, *(o.number for o in hosts if o is not host)])
        channels = self._cluster.network.channels_between(host.number, other)
        if channels:
            self._count("broken connection", host)
        for channel in channels:
            channel.break_off()
            self._heal_after(self._short(), partial(self._connect_again, channel))

    def _connect_again(self, channel: Channel) -> None:
        channel.connect_again()
        if channel.bulk:
            self._cluster.sender_may_go_on(channel.source)

    def _partition(self, host: Host, hosts: list[Host]) -> None:
        """Two groups of nodes, and the directory with one of them, do not hear each other for a while."""
        side = {host.number} | {o.number for o in hosts if self._chance.random() < 0.5}
        if self._chance.random() < 0.5:
            side.add(DIRECTORY)
        self._count("partition", host)
        self._cut(lambda a, b: (a in side) != (b in side), self._short())

    def _cut(self, cuts: Callable[[int, int], bool], duration: int) -> None:
        number = self._cluster.network.cut(cuts)
        self._heal_after(duration, lambda: self._cluster.network.mend(number))

    def _slow_link(self, host: Host, hosts: list[Host]) -> None:
        other = self._chance.choice([DIRECTORY, *(o.number for o in hosts)])
        pair = frozenset((host.number, other))
        self._count("slow link", host)
        self._cluster.network.slow_down(pair, self._world.spread(3, 300))
        self._heal_after(self._short(), lambda: self._cluster.network.slow_down(pair, 1))

    def _stopped_agent(self, host: Host, _: list[Host]) -> None:
        """SIGSTOP, or a host without time for it."""
        self._count("stopped agent", host)
        duration = self._short()
        host.stopped_until = max(host.stopped_until, self._world.now + duration)
        self._heal_after(duration, lambda: None)

    def _stopped_directory(self, host: Host, _: list[Host]) -> None:
        """Even for longer than a lease: it must not take its own sleep for the silence of the nodes."""
        self._count("stopped directory", host)
        duration = self._world.spread(50 * US, 2 * _LEASE)
        directory = self._cluster.directory
        directory.stopped_until = max(directory.stopped_until, self._world.now + duration)
        self._heal_after(duration, lambda: None)

    def _restarted_directory(self, host: Host, _: list[Host]) -> None:
        """It is killed, and begins again: nobody may notice anything but a pause, unless a node is away for long."""
        if len(self._cluster.hosts) > _REBUILT_MAX:
            return
        self._count("restarted directory", host)
        downtime = self._world.spread(20 * US, 2 * _LEASE)
        self._cluster.restart_directory(downtime)
        self._heal_after(downtime, lambda: None)
        if self._chance.random() < 0.5:  # perhaps before it has found all pages again
            self._heal_after(self._world.spread(MS, 3 * _LEASE), lambda: self._cluster.restart_directory(MS))

    def _killed_agent(self, host: Host, _: list[Host]) -> None:
        """At any moment, also in the middle of something; perhaps the next one, too, before it has taken over."""
        if len(self._cluster.hosts) > _REBUILT_MAX or host.leaves:
            return
        self._count("killed agent", host)
        host.kill_agent(self._chance.randint(1, 100), self._chance.random() < 0.3)
        self._open += 1
        self._wait_for_an_agent(host)
        if self._chance.random() < 0.3:
            self._heal_after(
                self._world.spread(10 * US, 100 * MS), lambda: host.kill_agent(self._chance.randint(1, 30))
            )

    def _wait_for_an_agent(self, host: Host) -> None:
        """There is none if the lease was over by then."""
        if (host.serving and host.calls_left) or (not host.serving and self._cluster.is_member(host)):
            self._world.after(S, self._wait_for_an_agent, host)
        else:
            self._open -= 1

    def _killed_process(self, host: Host, _: list[Host]) -> None:
        processes = [process for process in host.processes.values() if process.alive]
        if processes:
            self._count("killed process", host)
            self._chance.choice(processes).kill("chance")

    def _evicted(self, host: Host, _: list[Host]) -> None:
        """Memory is short: clean copies are given back."""
        regions = list(host.pager.regions.values())
        if regions:
            self._count("eviction", host)
            region = self._chance.choice(regions)
            start = self._chance.randrange(region.pages)
            stop = self._chance.randint(start, min(region.pages, start + 8))
            with self._cluster.running(host):
                host.pager.run(host.pager.machine.evict(region.number, start, stop))

    def _joined(self, host: Host, _: list[Host]) -> None:
        if inside.is_beginning_again(self._cluster.directory.machine):  # who comes then has to wait
            return
        new = self._cluster.join()
        self._count("late node", new)
        if self._cluster.workloads:
            self._chance.choice(self._cluster.workloads).join(new)

    def _left(self, host: Host, hosts: list[Host]) -> None:
        if len(hosts) > 1:
            self._count("node that leaves", host)
            if self._chance.random() < 0.7:
                host.drain(end_applications=self._chance.random() < 0.5)
            else:
                host.leave(end_applications=self._chance.random() < 0.5)
            self._open += 1
            self._wait_until_out(host)

    def _died(self, host: Host, hosts: list[Host]) -> None:
        if len(hosts) > 1:
            self._count("node that dies", host)
            self._cluster.oracle.departed(host)
            host.die()
            self._open += 1
            self._wait_until_out(host)

    def _wait_until_out(self, host: Host) -> None:
        if self._cluster.is_member(host):
            self._world.after(S, self._wait_until_out, host)
        else:
            self._open -= 1

    def _fenced(self, host: Host, hosts: list[Host]) -> None:
        """A node is cut off from the directory, and perhaps from the others, for longer than its lease."""
        if len(hosts) > 1:
            self._count("node that is fenced", host)
            me = host.number
            from_all = self._chance.random() < 0.5
            far = (lambda a, b: me in (a, b)) if from_all else (lambda a, b: {a, b} == {me, DIRECTORY})
            self._cut(far, _LEASE + self._world.spread(S, 10 * S))


MILD: Final[dict[str, Callable[[Faults, Host, list[Host]], None]]] = {
    "cut connection": Faults._cut_connection,
    "broken connection": Faults._broken_connection,
    "partition": Faults._partition,
    "slow link": Faults._slow_link,
    "stopped agent": Faults._stopped_agent,
    "stopped directory": Faults._stopped_directory,
    "restarted directory": Faults._restarted_directory,
    "killed agent": Faults._killed_agent,
    "eviction": Faults._evicted,
    "late node": Faults._joined,
}
"""Nobody may notice anything but a pause."""

DEADLY: Final[dict[str, Callable[[Faults, Host, list[Host]], None]]] = {
    "killed process": Faults._killed_process,
    "node that leaves": Faults._left,
    "node that dies": Faults._died,
    "node that is fenced": Faults._fenced,
}
"""Some processes end, and the pages that only a node had are lost with it."""

KINDS: Final = MILD | DEADLY
EVERY_MS: Final = (MS // 2, 40 * MS)
"""The span in which the faults of a run are injected."""
