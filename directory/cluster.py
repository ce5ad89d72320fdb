"""Everything that a directory knows, as one pure machine: who is a member, the regions, and the pages, locks and
barriers that belong to them. Where it has several shards this is the first, which keeps all but the others' pages.

Its doors are :meth:`Cluster.step` for a message of a connection, :meth:`Cluster.tick` for the passing of time,
:meth:`Cluster.malformed` for what was no message, and :meth:`Cluster.unread` for who does not read. Each but the last
returns messages with the connection that each is for. Times are seconds of any clock that only goes forward.
"""

from __future__ import annotations

import struct
from itertools import islice
from typing import Any, Final

from directory.copies import Copies, Extent, extents_of
from directory.machine import Event, Kept, PageMachine
from directory.members import TICK_S, Members, Node, Outgoing
from directory.others import Others
from directory.recovery import Recovery
from directory.registry import Registry
from directory.sync import SyncMachine
from dsm import constants, errors, wire
from dsm.address import check_peer, is_loopback
from dsm.geometry import pages_in, shard_of
from dsm.logline import line
from dsm.story import Story

__all__ = ["TICK_S", "Cluster", "Outgoing"]

_OF_PAGES: Final = ("owners", "lost", "story")
"""Questions that cannot be answered before all pages are found again."""
_EARLY_MAX: Final = 1 << 10
"""Messages that may wait for that."""
_RESTARTED: Final = "the directory was restarted before it had answered: ask again"
_BEGINNING: Final = "the directory was restarted and waits for its nodes: ask again"
_UNCOUNTED: Final = b"anew"
"""In place of the conversation, where another agent of a node says what the one before it may have said already."""
_TOO_LATE: Final = "all shards of this directory were there: one that was lost took its pages' owners with it"


class _Standing:
    """What a node says of itself whose agent was killed: locks that are held there (how granted, and their names), and
    how often it has which regions open. After that, what it waits for: then the other locks are free."""

    def __init__(self) -> None:
        self.locks: set[tuple[int, str]] = set()
        self.opens: dict[int, int] = {}
        self.others_are_free = False


class Cluster(Members):
    """The cluster as its directory sees it; ``address``, for people to read, is where that listens. It has ``shards``
    shards, this one included; before all of them have come no node is taken in. ``name`` tells this cluster from all
    others."""

    def __init__(self, address: str, now: float, story: Story | None = None, shards: int = 1, name: str = "") -> None:
        super().__init__(address, now, PageMachine(story, 0, shards))
        self._name = name
        self._others = Others(shards)
        self._registry = Registry()
        self._sync = SyncMachine()
        self._copies = Copies(self._described)
        self._sync_messages = self._sync.messages
        self._last_node = 0
        self._recovery: Recovery | None = None
        self._early: list[tuple[bytes, wire.Message]] = []  # what has to wait for its end
        # Nodes that went before all pages were found again, and the regions of which they may have had any page.
        self._unaccounted: list[tuple[int, list[int]]] = []
        self._unheard: dict[int, dict[int, wire.Message]] = {}  # answers by ticket, of nodes that are about to ask
        self._standing: dict[int, _Standing] = {}  # of nodes that are about to tell
        self._handlers: dict[type[Any], Any] = {
            wire.Heartbeat: self._heartbeat,
            wire.Leave: self._leave,
            wire.Open: self._open,
            wire.Keep: self._keep,
            wire.Hold: self._hold,
            wire.Close: self._close,
            wire.Unlink: self._unlink,
            wire.Awaited: self._awaited,
            wire.Have: self._have,
            wire.Rebuilt: self._rebuilt,
            wire.Drain: self._drain,
            wire.Mirror: self._mirror,
            wire.Taken: lambda node, m: self._told_to_take(self._copies.taken(node.number, tuple(m))),
        }

    # -- doors -------------------------------------------------------------------------------------------

    def _stranger(self, identity: bytes, message: wire.Message, now: float) -> Outgoing:
        if isinstance(message, wire.Rejoin):
            return self._rejoin(identity, message, now)
        if isinstance(message, wire.Join):
            return self._join(identity, message, now) if self._recovery is None else self._later(identity, message)
        if isinstance(message, wire.Query):
            return self._question(identity, message, now)
        if isinstance(message, wire.Leave):
            return []
        if self._others.has(identity):
            return self._from_shard(identity, message, now)
        if isinstance(message, wire.JoinShard):
            return self._join_shard(identity, message)
        return self._refused(identity)

    def is_member(self, identity: bytes) -> bool:
        """Is whoever speaks on this connection part of the cluster?"""
        return identity in self._by_identity or self._others.has(identity)

    def unread(self, identity: bytes) -> None:
        """A message for this connection was dropped, because it reads none: who misses one is no member for long."""
        super().unread(identity)
        self._others.lose(identity)

    def tick(self, now: float) -> Outgoing:
        """Time has passed: whoever was silent for too long has left."""
        return super().tick(now) + self._others.tick(now)

    def _handle(self, node: Node, message: wire.Message, now: float) -> Outgoing:
        kind = type(message)
        if node.number in self._standing and kind is not wire.Heartbeat:
            return self._noted(self._stated(node, self._standing[node.number], message, now))
        if kind in wire.REMEMBERED:
            node.heard += 1
            self.events.append((node.number, b"", message))
        return self._apply(node, message, now)

    def _apply(self, node: Node, message: wire.Message, now: float) -> Outgoing:
        kind = type(message)
        if kind in self._sync_messages:
            return self._noted(self._to_members(self._sync.step(node.number, message)))
        if kind is wire.Query:
            return self._noted(self._question(node.identity, message, now))  # type: ignore[arg-type]
        if kind in self._handlers:
            return self._noted(self._handlers[kind](node, message))
        self._rejected += 1
        return []

    def malformed(self, identity: bytes, error: errors.DsmError) -> Outgoing:
        """What came is no message, or none that can be served: it changes nothing and is counted."""
        return self._noted(super().malformed(identity, error))

    def _noted(self, out: Outgoing) -> Outgoing:
        """Answers to nodes are kept until they are known to have come: they are all there is to tell it again from."""
        for identity, message in out:
            if type(message) in wire.ANSWERS and identity in self._by_identity:
                self._by_identity[identity].answers.append(message)
        return out

    # -- membership --------------------------------------------------------------------------------------

    def _join(self, identity: bytes, m: wire.Join, now: float) -> Outgoing:
        try:
            self._check_newcomer(m)
        except errors.DsmError as error:
            return self.malformed(identity, error)
        self._last_node += 1
        newcomer = Node(self._last_node, m.name, m.address, identity, now)
        self.events.append((0, identity, m))
        return [*self._others.introduce(newcomer), *self._welcome(newcomer)]

    def _check_newcomer(self, m: wire.Join) -> None:
        """Raise why somebody cannot become a member."""
        check_peer(m.address)
        if clash := self._clash(m):
            raise errors.NodeNameInUse(clash)
        if self._last_node >= constants.NODES_MAX:
            raise errors.InvalidArgument("this directory has run out of node numbers")
        if self._others.missing:
            raise errors.DirectoryUnreachable(
                f"this directory waits for {self._others.missing} more of its shards: start each with "
                f"`dsm directory --shard-of {self.address} --listen tcp://IP:PORT`"
            )

    def _clash(self, m: wire.Join) -> str:
        """Why a newcomer cannot be told from a node that is here, or not be reached from it; '' if it can."""
        for node in self._nodes.values():
            if node.name == m.name:
                return f"a node named {m.name!r} is here already: give this one another --name"
            if node.address == m.address:
                return (
                    f"node {node.name!r} is here already with the address {m.address}: give this one its own with "
                    f"--listen (one that was killed is forgotten after {constants.LEASE_S:g} s)"
                )
            if is_loopback(node.address) != is_loopback(m.address):
                return (
                    f"node {node.name!r} listens on {node.address}, this one on {m.address}: other hosts cannot reach "
                    "a loopback address; give both a --listen with the address of their host"
                )
        return ""

    def _leave(self, node: Node, _: wire.Leave) -> Outgoing:
        return self._remove(node, "it left")

    def _remove(self, node: Node, reason: str) -> Outgoing:
        left = wire.MemberLeft(node.number, reason)
        self.events.append((0 if self._recovery is None else node.number, b"", left))
        if self._recovery is not None:
            self._recovery.left(node.number)
            self._unheard.pop(node.number, None)
            self._standing.pop(node.number, None)
            self._unaccounted.append((node.number, self._registry.known_to(node.number)))
        out = self._take_out(node, reason) + self._others.tell(left)
        noted = len(self.events)
        for region, known in self._registry.forget_node(node.number).items():
            out += self._destroy(region, known)
        out += self._to_members(self._pages.forget_node(node.number, node.name))
        self._tell_lost(noted)
        out += self._noted(self._to_members(self._sync.forget_node(node.number)))
        return out + self._told_to_take(self._copies.forget_node(node.number)) + self._go_on()

    # -- second copies -----------------------------------------------------------------------------------

    def _drain(self, node: Node, _: wire.Drain) -> Outgoing:
        """Names of jobs: that of a Drain is 0, of a Mirror its ticket."""
        if self._recovery is not None:  # it will say so again
            return []

        def left() -> wire.Drained:
            runs = (run for region in self._registry.regions for run in self._pages.only_with(node.number, region))
            return wire.Drained(sum(stop - start for start, stop in runs))

        extents = [extent for region in self._registry.regions for extent in self._only_with(node, region)]
        takers = [other for other in self._nodes if other != node.number]
        return self._told_to_take(self._copies.begin(node.number, 0, extents, takers, left))

    def _mirror(self, node: Node, m: wire.Mirror) -> Outgoing:
        if self._recovery is not None:  # it will ask again
            return []
        if not self._is_attached(node, m.region) or not m.ticket:
            return [(node.identity, wire.failure(m.ticket, errors.RegionNotFound(f"there is no region {m.region}")))]
        attached = self._registry.regions[m.region].nodes  # who has it anyway, if anybody
        takers = [other for other in self._nodes if other != node.number]
        takers = [other for other in takers if other in attached] or takers
        extents = self._only_with(node, m.region)
        done = self._copies.begin(node.number, m.ticket, extents, takers, lambda: wire.Granted(m.ticket, 0))
        return self._told_to_take(done)

    def _only_with(self, node: Node, region: int) -> list[Extent]:
        runs = self._pages.only_with(node.number, region)
        return [(region, start, count) for start, count in extents_of(runs, self._pages.per_extent(region))]

    def _described(self, extent: Extent) -> wire.Take | None:
        number, start, count = extent
        region = self._registry.regions.get(number)
        if region is None:
            return None
        return wire.Take(number, region.size, region.page_size, region.name, region.options, start, count)

    def _told_to_take(self, outgoing: list[tuple[int, wire.Message]]) -> Outgoing:
        for node, message in outgoing:
            if isinstance(message, wire.Take) and node not in self._registry.regions[message.region].known:
                self._registry.regions[message.region].known.add(node)
                self.events.append((node, b"", message))
        return self._to_members(outgoing)

    # -- beginning again ---------------------------------------------------------------------------------

    def remembered(self) -> dict[str, Any]:
        """Everything that :meth:`recall` needs: what has become of all :attr:`events` so far."""
        names, lost = self._pages.remembered()
        return {
            "name": self._name,
            "last node": self._last_node,
            "nodes": [
                (
                    number,
                    node.name,
                    node.address,
                    node.session,
                    node.heard,
                    [*self._unheard.get(number, {}).values(), *node.answers],
                )
                for number, node in self._nodes.items()
            ],
            "registry": self._registry,
            "sync": self._sync,
            "gone": names | {node: self._pages.name_of(node) for node, _ in self._unaccounted},
            "lost": lost,
            "unaccounted": self._unaccounted,
        }

    def recall(self, remembered: dict[str, Any], now: float) -> None:
        """Know what another directory knew, which is no more."""
        self._name = remembered["name"]
        self._last_node = remembered["last node"]
        for number, name, address, session, heard, answers in remembered["nodes"]:
            node = Node(number, name, address, session, now)
            node.heard = heard
            node.answers.extend(answers)
            self._nodes[number] = self._by_identity[session] = node  # nobody speaks in that conversation any more
        self._registry = remembered["registry"]
        self._sync = remembered["sync"]
        regions = [(r.number, r.size, r.page_size, r.replicas) for r in self._registry.regions.values()]
        self._pages.recall(remembered["gone"], regions, remembered["lost"], self._nodes)
        self._unaccounted = remembered["unaccounted"]

    def again(self, event: Event, now: float) -> None:
        """Something that the other one had noted has happened."""
        number, session, message = event
        if isinstance(message, wire.Join):
            self._join(session, message, now)
        elif isinstance(message, wire.MemberLeft):
            if number:  # while that other one had not found all pages
                self._unaccounted.append((number, self._registry.known_to(number)))
            self._remove(self._nodes[message.node], message.reason)
        elif isinstance(message, wire.GoOn):
            self._unaccounted.clear()
        elif isinstance(message, wire.Take):
            self._registry.regions[message.region].known.add(number)
        elif isinstance(message, wire.Lost | wire.Restore):
            self._pages.again(message, {node.name: node.number for node in self._nodes.values()})
        elif session == _UNCOUNTED:
            self._apply(self._nodes[number], message, now)
        else:
            self._handle(self._nodes[number], message, now)

    def begin_again(self, epoch: int, now: float) -> None:
        """All of that is known: wait for the nodes. ``epoch`` is a number that nobody else can guess."""
        self.news.clear()
        if not self._nodes:
            self._lose_unaccounted()
            return
        for node in self._nodes.values():
            node.heard_s = now
        self._recovery = Recovery(epoch, self._nodes)
        self.news.append(line("restarted", waits_for=", ".join(node.name for node in self._nodes.values())))

    def _rejoin(self, identity: bytes, m: wire.Rejoin, now: float) -> Outgoing:
        node = self._nodes.get(m.node)
        if node is None or node.session != m.session or (m.anew and self._others.shards > 1):
            return self._refused(identity)
        if m.anew and (self._recovery is None or m.node not in self._recovery.away):
            self._begin_anew(m.anew, now)
        if self._recovery is None or not self._recovery.came(m.node):
            return self._refused(identity)
        if m.anew:
            self._standing[m.node] = _Standing()
        del self._by_identity[node.identity]
        node.identity = identity
        node.heard_s = now
        self._by_identity[identity] = node
        self._unheard[node.number] = {answer[0]: answer for answer in node.answers}
        node.answers.clear()
        node.answers_read = 0
        self.news.append(line("returned", node=node.number, name=node.name))
        return [(identity, wire.Rejoined(node.heard, self._recovery.epoch))]

    def _begin_anew(self, epoch: int, now: float) -> None:
        """Begin again without having been restarted: nobody is to act on what was said before, so all conversations are
        over."""
        before = self._recovery.in_transit if self._recovery is not None else []
        self._recovery = Recovery(epoch, self._nodes, [*before, *self._pages.begin_again()])
        self._copies = Copies(self._described)
        self._standing.clear()
        for node in self._nodes.values():
            node.heard_s = now
            node.answers.extendleft(reversed(self._unheard.pop(node.number, {}).values()))
            self.forgotten.append(node.identity)
        self.news.append(line("begins_again", reason="the agent of a node was killed"))

    def _stated(self, node: Node, standing: _Standing, m: wire.Message, now: float) -> Outgoing:
        """The new agent of a node tells what is so there; what the one before may have said, too, is not done twice."""
        if isinstance(m, wire.Stands):
            standing.locks.add((m.grant, m.name))
            return []
        if isinstance(m, wire.Opens):
            standing.opens[m.region] = m.opens
            return []
        out: Outgoing = []
        if not standing.others_are_free:  # first: nobody is to wait for a lock that is not held
            standing.others_are_free = True
            for message in self._sync.not_held(node.number, standing.locks):
                out += self._uncounted(node, message, now)
        if isinstance(m, wire.Awaited):
            del self._standing[node.number]
            out += self._restated(node, standing, m, now)
        elif type(m) in wire.REMEMBERED:
            if isinstance(m, wire.Hold):
                known = not self._registry.may_hold(node.number, m.region, m.on)  # the one before has let go of it
            else:
                known = not isinstance(m, wire.Cancel) and self._knows(node, getattr(m, "ticket", 0))
            if not known:
                out += self._uncounted(node, m, now)
        else:
            self._rejected += 1
        return out

    def _knows(self, node: Node, ticket: int) -> bool:
        """Was this asked before? Then it waits, or there is an answer."""
        if ticket in self._unheard[node.number] or self._has_answered(node, ticket):
            return True
        return self._sync.waits(node.number, ticket)

    def _has_answered(self, node: Node, ticket: int) -> bool:
        """In the conversation of now: what is said again first may have been what the question has waited for."""
        return any(answer[0] == ticket for answer in node.answers)

    def _uncounted(self, node: Node, m: wire.Message, now: float) -> Outgoing:
        self.events.append((node.number, _UNCOUNTED, m))
        return self._apply(node, m, now)

    def _restated(self, node: Node, standing: _Standing, m: wire.Awaited, now: float) -> Outgoing:
        """It has told everything: what it has not told of is over. What it has not heard it hears again."""
        recovery, number = self._recovery, node.number
        if recovery is None or not recovery.returned(number):
            self._rejected += 1
            return []
        # Who has ended may have asked for what was never heard of.
        nothing: list[wire.Message] = [wire.Cancelled(t) for t in _tickets(m) if not self._knows(node, t)]
        known = self._unheard.pop(number)
        unheard = [known[ticket] for ticket in _tickets(m) if ticket in known] + nothing
        out: Outgoing = [(node.identity, answer) for answer in unheard]
        opened = [answer.region for answer in (*unheard, *node.answers) if isinstance(answer, wire.Opened)]
        for region in list(self._registry.regions.values()):
            over = region.nodes.get(number, 0) - standing.opens.get(region.number, 0) - opened.count(region.number)
            if over > 0:
                out += self._uncounted(node, wire.Close(region.number, over), now)
        return out + self._to_members(self._sync.recall_again(number)) + self._go_on()

    def _awaited(self, node: Node, m: wire.Awaited) -> Outgoing:
        if self._recovery is None or not self._recovery.returned(node.number):
            self._rejected += 1
            return []
        known = self._unheard.pop(node.number)
        out: Outgoing = []
        for ticket in _tickets(m):
            if ticket in known:
                out.append((node.identity, known[ticket]))
            elif not self._has_answered(node, ticket) and not self._sync.waits(node.number, ticket):
                # A question that changes nothing.
                out.append((node.identity, wire.failure(ticket, errors.DirectoryUnreachable(_RESTARTED))))
        return out + self._to_members(self._sync.recall_again(node.number)) + self._go_on()

    def _have(self, node: Node, m: wire.Have) -> Outgoing:
        if self._recovery is None or not self._recovery.tells(node.number):
            self._rejected += 1
            return []
        if not self._pages.has_region(m.region):  # over, and it has not heard of that
            return [(node.identity, wire.Destroy(m.region))]
        for start, count in struct.iter_unpack("<QI", m.runs[: len(m.runs) // 12 * 12]):
            if m.how == wire.KEPT:
                self._recovery.kept.append(Kept(node.number, m.region, start, start + count))
            else:
                self._pages.found(node.number, m.region, start, start + count, m.how == wire.ONLY)
        return []

    def _rebuilt(self, node: Node, m: wire.Rebuilt) -> Outgoing:
        if self._recovery is None or self._recovery.epoch != m.epoch:
            self._rejected += 1
            return []
        self._recovery.told(node.number)
        return self._go_on()

    def _go_on(self) -> Outgoing:
        """The next step of beginning again, if it is due."""
        recovery = self._recovery
        if recovery is None:
            return []
        if recovery.to_flush():
            members = [node.told() for node in self._nodes.values()]
            flush = wire.Flush(recovery.epoch, b"".join(node.to_bytes(2, "little") for node in self._nodes))
            told = [[*(m for m in members if m.node != node.number), flush] for node in self._nodes.values()]
            out = [(node.identity, m) for node, each in zip(self._nodes.values(), told, strict=True) for m in each]
            return out + self._go_on()  # there may be nobody left
        if not recovery.over:
            return []
        if not recovery.settled:
            noted = len(self.events)
            names = {node.number: node.name for node in self._nodes.values()}
            revived = self._pages.settle(recovery.in_transit, recovery.kept, names)
            self._tell_lost(noted)
            recovery.revive(node for node, _ in revived)
            return self._to_members(revived) + self._go_on()
        self._recovery = None
        self._lose_unaccounted()
        for known in self._registry.regions.values():
            self._pages.used_by(known.number, known.known)
        self.news.append(line("rebuilt"))
        out = [(node.identity, wire.GoOn(recovery.epoch)) for node in self._nodes.values()]
        early, self._early = self._early, []
        return out + [told for identity, message in early for told in self.step(identity, message, self.due_s)]

    def _tell_lost(self, noted: int) -> None:
        """Of the events since there were ``noted``, those about lost pages are news, too."""
        pages: dict[tuple[int, str], int] = {}
        for _, _, m in self.events[noted:]:
            if isinstance(m, wire.Lost):
                pages[m.region, m.node] = pages.get((m.region, m.node), 0) + m.count
        for (number, node), count in pages.items():
            region = self._registry.regions.get(number)
            self.news.append(line("lost", region=region.name if region else number, pages=count, node=node))

    def _lose_unaccounted(self) -> None:
        noted = len(self.events)
        for number, regions in self._unaccounted:
            for region in regions:
                if self._pages.has_region(region):
                    self._pages.lose_the_rest(region, number)
        self._unaccounted.clear()
        self._tell_lost(noted)
        self.events.append((0, b"", wire.GoOn(0)))  # one that begins again has not to do it again

    def _later(self, identity: bytes, message: wire.Message) -> Outgoing:
        """What can only be answered when all pages are found again."""
        if len(self._early) == _EARLY_MAX:
            return [(identity, wire.failure(0, errors.DirectoryUnreachable(_BEGINNING)))]
        self._early.append((identity, message))
        return []

    # -- other shards ------------------------------------------------------------------------------------

    def _join_shard(self, identity: bytes, m: wire.JoinShard) -> Outgoing:
        try:
            check_peer(m.address)
            if not self._others.missing:
                raise errors.InvalidArgument(f"this directory waits for no more shards: {_TOO_LATE}")
        except errors.DsmError as error:
            return self.malformed(identity, error)
        number, out = self._others.join(identity, m.address)
        self.news.append(line("shard_joined", shard=number, address=m.address))
        return out

    def _from_shard(self, identity: bytes, m: wire.Message, now: float) -> Outgoing:
        if isinstance(m, wire.MemberLeft):
            node = self._nodes.get(m.node)  # it may be known here already
            return self._remove(node, m.reason) if node is not None else []
        if isinstance(m, wire.Granted | wire.Answer | wire.Failure):
            return self._others.answered(identity, m)
        self._rejected += 1
        return []

    # -- regions -----------------------------------------------------------------------------------------

    def _open(self, node: Node, m: wire.Open) -> Outgoing:
        try:
            if m.options.get("replicas") and self._others.shards > 1:
                raise errors.InvalidArgument("replicas need a directory of one shard")
            region, new = self._registry.open(node.number, m)
        except errors.DsmError as error:
            return [(node.identity, wire.failure(m.ticket, error))]
        if new:
            self._pages.add_region(region.number, region.size, region.page_size, region.replicas)
        answer = wire.Opened(m.ticket, region.number, region.size, region.page_size, region.options)
        return self._others.opened(answer, new, (node.identity, answer))

    def _keep(self, node: Node, m: wire.Keep) -> Outgoing:
        if self._is_attached(node, m.region):
            self._registry.keep(node.number, m.region)
        return []

    def _hold(self, node: Node, m: wire.Hold) -> Outgoing:
        if not self._registry.may_hold(node.number, m.region, m.on):
            self._rejected += 1
            return []
        told = self._registry.hold(node.number, m.region, m.on)
        return self._destroy(m.region, told) if m.region not in self._registry.regions else []

    def _is_attached(self, node: Node, region: int) -> bool:
        attached = self._registry.is_attached(node.number, region)
        self._rejected += not attached
        return attached

    def _close(self, node: Node, m: wire.Close) -> Outgoing:
        if not self._is_attached(node, m.region):
            return []
        told = self._registry.close(node.number, m.region, m.opens)
        return self._destroy(m.region, told) if m.region not in self._registry.regions else []

    def _unlink(self, node: Node, m: wire.Unlink) -> Outgoing:
        try:
            region, told = self._registry.unlink(m.name)
        except errors.DsmError as error:
            return [(node.identity, wire.failure(m.ticket, error))]
        out = self._destroy(region, told) if region not in self._registry.regions else []
        return [*out, (node.identity, wire.Granted(m.ticket, 0))]

    def _destroy(self, region: int, told: set[int]) -> Outgoing:
        if not self._pages.has_region(region):
            return []
        self._pages.remove_region(region)
        out = self._others.destroyed(region) + self._told_to_take(self._copies.forget_region(region))
        return out + self._to_members([(node, wire.Destroy(region)) for node in sorted(told)])

    # -- questions ---------------------------------------------------------------------------------------

    def _question(self, identity: bytes, m: wire.Query, now: float) -> Outgoing:
        """What the other shards know of it is added to the answer."""
        if self._recovery is not None and m.what in _OF_PAGES:
            return self._later(identity, m)
        answer = self._query(m, now)
        if not self._others.there or not isinstance(answer, wire.Answer):
            return [(identity, answer)]
        if m.what == "story":
            region = self._registry.regions[m.region]
            shard = shard_of(m.region, m.start, region.page_size, self._others.shards)
            return self._others.ask_one(shard, identity, m, answer, now) if shard else [(identity, answer)]
        return self._others.ask_all(identity, m, answer, now)

    def _query(self, m: wire.Query, now: float) -> wire.Message:
        if m.what == "status":
            return wire.Answer(m.ticket, self.status(now))
        if m.what == "owners" and self._pages.has_region(m.region):
            return wire.Answer(m.ticket, {"owners": self._pages.owner_numbers(m.region, m.start, m.count)})
        if m.what == "lost" and self._pages.has_region(m.region):
            return wire.Answer(m.ticket, self._pages.lost(m.region, m.start, m.count))
        if m.what == "story":
            return self._story(m)
        if m.what == "cluster":
            return wire.Answer(m.ticket, {"cluster": self._name})
        return wire.Failure(m.ticket, "InvalidArgument", f"cannot answer {m.what!r} of region {m.region}")

    def _story(self, m: wire.Query) -> wire.Message:
        region = self._registry.regions.get(m.region)
        if region is None:
            return wire.Failure(m.ticket, "RegionNotFound", f"there is no region number {m.region} (any more)")
        last = pages_in(region.size, region.page_size) - 1
        if m.start > last:
            why = f"region {region.name!r} has no page {m.start}: its pages are 0 to {last}"
            return wire.Failure(m.ticket, "InvalidArgument", why)
        nodes = {str(node.number): node.name for node in islice(self._nodes.values(), constants.STORY_TOLD_MAX)}
        return wire.Answer(m.ticket, {"nodes": nodes, "directory": self._pages.story_of(m.region, m.start)})

    def status(self, now: float) -> dict[str, Any]:
        """For people and for metrics. Another thread may ask, while this one goes on: hence the copies."""
        members = list(self._nodes.values())
        names = {node.number: node.name for node in members}
        nodes = [
            {
                "id": node.number,
                "name": node.name,
                "address": node.address,
                "applications": node.applications,
                "silent_s": round(now - node.heard_s, 3),
                "lease_s": round(max(0.0, constants.LEASE_S - (now - node.heard_s)), 3),
            }
            for node in members
        ]
        regions = [
            {
                "id": region.number,
                "name": region.name,
                "size": region.size,
                "page_size": region.page_size,
                "options": region.options,
                "unlinked": region.unlinked,
                "attached": sorted(names[node] for node in list(region.nodes) if node in names),
                "pages": self._pages.counts(region.number),
            }
            for region in list(self._registry.regions.values())
            if self._pages.has_region(region.number)
        ]
        counters = self._counters()
        counters["rejected"] += self._sync.rejected
        recovery = self._recovery
        away = sorted(recovery.away) if recovery is not None else []
        return {
            "directory": self.address,
            "away": [names[node] for node in away if node in names],
            "nodes": nodes,
            "regions": regions,
            "counters": counters,
            **self._sync.status(),
        }


def _tickets(m: wire.Awaited) -> list[int]:
    return [ticket for (ticket,) in struct.iter_unpack("<I", m.tickets[: len(m.tickets) // 4 * 4])]
