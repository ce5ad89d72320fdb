"""The production machines, one directory and n nodes, on a simulated network and kernel: all in one thread, in memory.

What the shells do is done here to plain dicts, with the same meaning:

- *Memory.* A page is in ``Node.memory`` (then all local applications see it) or a hole. An application may store to a
  page that is there if it is in its ``Application.unprotected``: it then does so **without telling anybody**, as the
  hardware would. A hole keeps the protection that it had (markers survive the punch), and so does a page that is
  filled by ``pwrite``.
- *Network.* Every pair has ordered channels: one between a node and the directory, two from node to node (urgent and
  bulk, as nodes/links.py has them). Between channels there is no order.
- *Time.* A hold is over when somebody says so.

A page's contents are one integer, different for every store: a stale copy can be told from the right one.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from directory.machine import PageMachine
from dsm.constants import PAGE_BYTES
from dsm.wire import DIRECTORY, Data, Fetch, MemberLeft, Message
from nodes import effects
from nodes.bulk import Bulk
from nodes.machine import NodeMachine
from nodes.pages import ABSENT, EXCLUSIVE, HELD, LOST, PENDING, SHARED

REGION: Final = 1


class Packet(NamedTuple):
    """A message and, for Data, the contents of its pages."""

    message: Message
    contents: list[int]


class Channel(NamedTuple):
    """One ordered connection. ``bulk``: the one for pages that nobody waits for."""

    source: int
    to: int
    bulk: bool


class Left(NamedTuple):
    """The last thing on a node's channel to the directory: its connection is gone."""


class Thread:
    """A thread of an application, and the access that it is stuck in, if any."""

    def __init__(self, application: Application) -> None:
        self.application = application
        self.access: tuple[int, bool] | None = None  # page, write
        self.asleep = False  # in the page fault; otherwise it may retry
        self.reported = False  # the agent has read the fault

    def __repr__(self) -> str:
        return f"<thread of {self.application} at {self.access}>"


class Application:
    """One process that maps the region: the waiter of the node's machine."""

    def __init__(self, node: Node, name: str, threads: int) -> None:
        self.node = node
        self.name = name
        self.threads = [Thread(self) for _ in range(threads)]
        self.unprotected: set[int] = set()
        self.poisoned: set[int] = set()
        self.prefetches = 0  # in flight

    def __repr__(self) -> str:
        return self.name

    def wake(self, pages: range) -> None:
        for thread in self.threads:
            if thread.access is not None and thread.access[0] in pages:
                thread.asleep = thread.reported = False


class Node:
    """A node's machine in a simulated shell."""

    def __init__(self, cluster: Cluster, number: int, applications: int, threads: int) -> None:
        self.cluster = cluster
        self.number = number
        self.machine = NodeMachine(number)
        self.machine.add_region(REGION, cluster.pages, cluster.page_size)
        self.memory: dict[int, int] = {}
        names = [f"n{number}{letter}" for letter in "abcdefgh"[:applications]]
        self.applications = [Application(self, name, threads) for name in names]
        self.holds: deque[int] = deque()
        self.bulk = Bulk()
        self._effects: dict[type[Any], Callable[[Any], None]] = {
            effects.Install: self._install,
            effects.Resume: self._resume,
            effects.Unprotect: self._unprotect,
            effects.Supply: self._supply,
            effects.Expedite: self._expedite,
            effects.Drop: lambda e: self._punch(e.start, e.count),
            effects.Send: lambda e: cluster.send(number, e.to, e.message),
            effects.Hold: lambda e: self.holds.append(e.page),
            effects.Finished: self._finished,
            effects.Poison: self._poison,
            effects.Renew: self._renew,
        }

    def state(self, page: int) -> int:
        """What the machine thinks of a page, without its open requests."""
        return self.machine._regions[REGION].table.get(page) & (HELD | LOST)

    def threads(self) -> list[Thread]:
        """Of all applications."""
        return [thread for application in self.applications for thread in application.threads]

    # -- what applications do ------------------------------------------------------------------------------

    def access(self, thread: Thread) -> bool:
        """Try what the thread wants to do: True if it is done, else the thread sleeps in a page fault."""
        assert thread.access is not None
        page, write = thread.access
        application = thread.application
        if page in application.poisoned:  # SIGBUS
            self.cluster.note(f"{application} p{page} SIGBUS")
        elif page in self.memory and (not write or page in application.unprotected):
            if write:
                self.cluster.store(self, page)
            else:
                self.cluster.check_value(self, page)
        else:
            thread.asleep = True
            return False
        thread.access = None
        return True

    def report(self, thread: Thread) -> None:
        """The agent reads the fault of a thread."""
        assert thread.access is not None
        thread.reported = True
        self.run(self.machine.fault(REGION, *thread.access, thread.application))

    def detach(self, application: Application) -> None:
        """The process has gone, with all its threads."""
        self.applications.remove(application)
        self.machine.forget_waiter(REGION, application)

    # -- what the agent does ---------------------------------------------------------------------------------

    def receive(self, packet: Packet) -> None:
        if isinstance(packet.message, Data):
            self.run(self.machine.data(packet.message, packet.contents))
        elif isinstance(packet.message, MemberLeft):
            self._member_left(packet.message.node)
        else:
            self.run(self.machine.step(packet.message))

    def _member_left(self, gone: int) -> None:
        """What is still to be sent to a node that has gone goes nowhere; what was to be dropped is dropped."""
        self.run(self.machine.step(MemberLeft(gone, "it left")))
        for fetch, start, count in self.bulk.cancel(requester=gone):
            if not fetch.keep:
                self._punch(start, count)

    def expire_hold(self) -> None:
        self.run(self.machine.hold_expired(REGION, self.holds.popleft()))

    def send_frame(self) -> None:
        """One frame of the first bulk transfer."""
        frame = self.bulk.next(lambda requester: True)
        assert frame is not None
        self._send_pages(*frame, True)

    def run(self, decided: list[effects.Effect]) -> None:
        for effect in decided:
            self.cluster.effect(self, effect)
            self._effects[type(effect)](effect)

    def _install(self, e: effects.Install) -> None:
        here = any(page in self.memory for page in range(e.start, e.start + e.count))
        for offset in range(e.count):
            page = e.start + offset
            self.memory[page] = e.payload[offset] if e.payload is not None else 0
            if e.target in self.applications and not here:  # UFFDIO_COPY; where a page is present it fails: pwrite
                (e.target.unprotected.add if e.write else e.target.unprotected.discard)(page)
        if e.target in self.applications and not here:
            e.target.wake(range(e.start, e.start + e.count))

    def _resume(self, e: effects.Resume) -> None:
        for application in e.waiters:
            if e.write:
                application.unprotected.add(e.page)
            application.wake(range(e.page, e.page + 1))

    def _unprotect(self, e: effects.Unprotect) -> None:
        e.waiter.unprotected.update(range(e.start, e.start + e.count))
        e.waiter.wake(range(e.start, e.start + e.count))

    def _supply(self, e: effects.Supply) -> None:
        fetch = e.fetch
        if e.protect:
            self._protect(fetch.start, fetch.count)
        if fetch.ahead:
            self.bulk.add(fetch, self.cluster.frame_pages)
        else:
            self._send_pages(fetch, fetch.start, fetch.count, False)

    def _expedite(self, e: effects.Expedite) -> None:
        frame = self.bulk.expedite(e.hurry)
        if frame is not None:
            self._send_pages(*frame, False)

    def _send_pages(self, fetch: Fetch, start: int, count: int, bulk: bool) -> None:
        data, contents = self._read(fetch, start, count)
        if not fetch.keep:
            self._punch(start, count)
        self.cluster.send(self.number, fetch.requester, data, contents, bulk)

    def _read(self, fetch: Fetch, start: int, count: int) -> tuple[Data, list[int]]:
        contents = [self.memory.get(page, 0) for page in range(start, start + count)]  # pread of a hole: zeros
        return Data(fetch.region, fetch.generation, fetch.start, fetch.count, start, count, fetch.acks), contents

    def _protect(self, start: int, count: int) -> None:
        for application in self.applications:
            application.unprotected.difference_update(range(start, start + count))

    def _punch(self, start: int, count: int) -> None:
        for page in range(start, start + count):
            self.memory.pop(page, None)

    def _finished(self, e: effects.Finished) -> None:
        e.waiter.prefetches -= 1
        assert e.waiter.prefetches >= 0, f"{e.waiter}: a prefetch has finished twice"

    def _poison(self, e: effects.Poison) -> None:
        assert e.page not in self.memory, f"n{self.number}: p{e.page} is here and cannot be poisoned"
        for application in e.waiters:
            application.unprotected.discard(e.page)
            application.poisoned.add(e.page)
            application.wake(range(e.page, e.page + 1))

    def _renew(self, e: effects.Renew) -> None:
        """Nobody can store to them before all who knew them as lost have come by here."""
        for page in range(e.start, e.start + e.count):
            self.cluster.latest[page] = 0
        for application in self.applications:
            application.poisoned.difference_update(range(e.start, e.start + e.count))


class Cluster:
    """A directory and ``nodes`` nodes that have one region of ``pages`` pages open."""

    def __init__(
        self,
        nodes: int,
        pages: int,
        *,
        page_size: int = PAGE_BYTES,
        frame_pages: int = 16,
        applications: int = 1,
        threads: int = 1,
    ) -> None:
        self.pages = pages
        self.page_size = page_size
        self.frame_pages = frame_pages
        self.directory = PageMachine()
        self.directory.add_region(REGION, pages * page_size, page_size)
        self.channels: dict[Channel, deque[Packet]] = {}
        self.members = set(range(1, nodes + 1))  # as the directory sees it
        self.nodes = {number: Node(self, number, applications, threads) for number in sorted(self.members)}  # alive
        self.latest: Counter[int] = Counter()  # the last value that was stored, by page
        self.stores = 0

    # -- for those who write the conversation down -----------------------------------------------------------

    def note(self, text: str) -> None:
        """Something happened that is no effect of a machine."""

    def effect(self, node: Node, effect: effects.Effect) -> None:
        """A node is about to carry out an effect."""

    # -- memory ------------------------------------------------------------------------------------------------

    def store(self, node: Node, page: int) -> None:
        """A store has hit the memory of ``node``: nobody else may see this page at this moment."""
        others = [other.number for other in self.nodes.values() if other is not node and page in other.memory]
        assert not others, f"n{node.number} stores to p{page}, which nodes {others} can read"
        self.stores += 1
        self.latest[page] = node.memory[page] = self.stores

    def check_value(self, node: Node, page: int) -> None:
        value, last = node.memory[page], self.latest[page]
        assert value == last, f"n{node.number} reads {value} from p{page}, but {last} was stored last"

    # -- network -----------------------------------------------------------------------------------------------

    def send(
        self, source: int, to: int, message: Message, contents: list[int] | None = None, bulk: bool = False
    ) -> None:
        if to in self.nodes or to == DIRECTORY:
            self.channels.setdefault(Channel(source, to, bulk), deque()).append(Packet(message, contents or []))

    def pending(self) -> list[Channel]:
        """The channels that have something to deliver, in a fixed order."""
        return sorted(channel for channel, packets in self.channels.items() if packets)

    def deliver(self, channel: Channel) -> Packet:
        """Deliver the first message of a channel."""
        packet = self.channels[channel].popleft()
        if channel.to:
            self.nodes[channel.to].receive(packet)
        elif isinstance(packet.message, Left):
            self.members.discard(channel.source)
            for number in sorted(self.members):
                self.send(DIRECTORY, number, MemberLeft(channel.source, "it left"))
            self._from_directory(self.directory.forget_node(channel.source, f"n{channel.source}"))
        else:
            self._from_directory(self.directory.step(channel.source, packet.message))
        return packet

    def _from_directory(self, outgoing: list[tuple[int, Message]]) -> None:
        for to, message in outgoing:
            if to in self.members:
                self.send(DIRECTORY, to, message)

    def leave(self, number: int, lost: Callable[[int], int] = lambda sent: 0) -> None:
        """A node dies. What it has sent still arrives, but for the last ``lost(how many)`` messages of each channel."""
        del self.nodes[number]
        for channel, packets in self.channels.items():
            if channel.to == number:
                packets.clear()
            elif channel.source == number:
                for _ in range(lost(len(packets))):
                    packets.pop()
        self.channels.setdefault(Channel(number, DIRECTORY, False), deque()).append(Packet(Left(), []))

    # -- what must hold ----------------------------------------------------------------------------------------

    def check(self) -> None:
        """What must hold after every step, whatever is on its way."""
        for page in range(self.pages):
            states = {node.number: node.state(page) for node in self.nodes.values()}
            held = [number for number, state in states.items() if state & HELD]
            if any(state & EXCLUSIVE for state in states.values()):
                assert len(held) == 1, f"p{page} is exclusive on one node and held on others: {states}"
        for node in self.nodes.values():
            self._check_node(node)

    def _check_node(self, node: Node) -> None:
        leaving = {page for f in node.bulk if not f.fetch.keep for page in range(f.start, f.start + f.count)}
        for page in range(self.pages):
            state = node.state(page)
            where = f"p{page} on n{node.number}"
            assert state in (ABSENT, SHARED, EXCLUSIVE, LOST), f"{where}: state {state}"
            if state & HELD:
                assert page in node.memory, f"{where} is a hole, but held"
                self.check_value(node, page)
            else:
                assert page not in node.memory or page in leaving, f"{where} can be read, but is not held"
            for application in node.applications:
                unseen = page in application.unprotected and state != EXCLUSIVE
                assert not unseen, f"{where} is not exclusive, but {application} may store to it"

    def check_quiet(self) -> None:
        """What must hold when nothing is on its way and nobody waits: all sides agree."""
        for node in self.nodes.values():
            region = node.machine._regions[REGION]
            stuck = [thread for application in node.applications for thread in application.threads if thread.access]
            assert not stuck, f"{stuck} wait for ever"
            asked = [(a, b, state) for a, b, state in region.table.touched_runs() if state & PENDING]
            assert not asked and not region.asks, f"n{node.number} has requests open: {asked} {list(region.asks)}"
            assert not region.waiters and not region.held and not region.deferred and not region.prefetches
            assert node.machine.deferred == 0
            assert not any(application.prefetches for application in node.applications), "a prefetch never finished"
        extents = self.directory._regions[REGION].extents
        assert not extents, f"the directory still has transactions in extents {list(extents)}"
        self._check_agreement()

    def _check_agreement(self) -> None:
        region = self.directory._regions[REGION]
        counts = [0, 0, 0, 0]
        for page in range(self.pages):
            holding = self.directory.holdings[region.table.get(page)]
            counts[holding.state] += 1
            said = {number for number in self.nodes if holding.copies >> number & 1}
            held = {node.number for node in self.nodes.values() if node.state(page) & HELD}
            exclusive = {node.number for node in self.nodes.values() if node.state(page) & EXCLUSIVE}
            assert said == held, f"p{page}: the directory thinks that {said} have it, but {held} do"
            thought = {node.number for node in self.nodes.values() if node.state(page) & LOST}
            poisoned = {node.number for node in self.nodes.values() for a in node.applications if page in a.poisoned}
            assert holding.state == 3 or not thought | poisoned, f"p{page}: {holding}, lost to {thought}, {poisoned}"
            assert exclusive == (held if holding.state == 2 else set()), f"p{page}: {holding}, exclusive on {exclusive}"
            assert not holding.copies or holding.copies >> holding.owner & 1, (
                f"p{page}: its owner has no copy: {holding}"
            )
        assert region.counts[1:] == counts[1:], f"the directory counts {region.counts}, there are {counts}"
