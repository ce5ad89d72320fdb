"""The production machines and the directory's service in one process: honest traffic, and a liar among it.

The liar sends arbitrary valid messages. Nothing may raise; what is refused is counted exactly once and changes nothing;
what is kept for the liar is bounded; and the honest nodes read right values all the time and come to rest at the end.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import inside
from mutation import Mutator
from report import Outcome, measured, rss_kib
from simulated_cluster import REGION, Cluster, Node, Packet

import directory.cluster
from dsm import wire
from dsm.constants import EXTENT_BYTES
from dsm.errors import ProtocolError
from dsm.wire import DIRECTORY

NODES = 3
LIAR = 4
EXTENT_PAGES = 4
"""Pages are large to make extents small."""
HONEST_PAGES = 8
PAGES = HONEST_PAGES + EXTENT_PAGES
"""The last extent is left to the liar: honest nodes never touch it."""
ROUND = 500
"""Lies in the life of one simulated cluster."""
_SETTLE_STEPS_MAX = 5000
_LOOK_EVERY = 8
"""Steps between two looks at everything, which cost far more than a step."""


class Traffic:
    """Honest accesses of the nodes of a simulated cluster, in an order drawn from ``seed``."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.cluster = Cluster(
            NODES, PAGES, page_size=EXTENT_BYTES // EXTENT_PAGES, frame_pages=2, applications=2, threads=1
        )
        self.accesses = 0

    def step(self, new: bool = True) -> bool:
        """Let one thing happen; False if nothing can."""
        chance, cluster = self.chance, self.cluster
        actions: list[Callable[[], object]] = [
            lambda channel=channel: cluster.deliver(channel)  # type: ignore[misc]
            for channel in cluster.pending()
        ]
        for node in cluster.nodes.values():
            actions += self._of(node)
            if new and chance.random() < 0.4:
                actions.append(lambda node=node: self._begin(node))  # type: ignore[misc]
        if actions:
            chance.choice(actions)()
        return bool(actions)

    def _of(self, node: Node) -> list[Callable[[], object]]:
        actions: list[Callable[[], object]] = []
        if node.holds:
            actions.append(node.expire_hold)
        if node.bulk:
            actions.append(node.send_frame)
        for thread in node.threads():
            if thread.access is not None and not thread.asleep:
                actions.append(lambda thread=thread: node.access(thread))  # type: ignore[misc]
            elif thread.access is not None and not thread.reported:
                actions.append(lambda thread=thread: node.report(thread))  # type: ignore[misc]
        return actions

    def _begin(self, node: Node) -> None:
        chance = self.chance
        start = chance.randrange(HONEST_PAGES)
        stop = chance.randint(start + 1, (start // EXTENT_PAGES + 1) * EXTENT_PAGES)
        application = chance.choice(node.applications)
        kind = chance.randrange(8)
        if kind == 0:
            node.run(node.machine.evict(REGION, start, stop))
        elif kind == 1:
            node.run(node.machine.read_ahead(REGION, start, stop, chance.random() < 0.5, application))
        elif kind == 2:
            application.prefetches += 1
            node.run(node.machine.prefetch(REGION, start, stop, chance.random() < 0.5, application))
        else:
            (thread,) = application.threads
            if thread.access is None:
                thread.access = start, chance.random() < 0.5
                self.accesses += 1
                node.access(thread)

    def settle(self) -> None:
        """No new accesses, until nothing is on its way."""
        for _ in range(_SETTLE_STEPS_MAX):
            if not self.step(new=False):
                break
        else:
            raise AssertionError("no end: somebody makes no progress")
        self.cluster.check()
        self.cluster.check_quiet()


def _rounds(seed: int, count: int, play: Callable[[int, int, Outcome], None], outcome: Outcome) -> None:
    """Play rounds until ``count`` lies have been told; a failure names the seed of its round."""
    number = 0
    while outcome.messages < count:
        try:
            play(seed * 1_000_000 + number, min(ROUND, count - outcome.messages), outcome)
        except Exception as error:
            error.add_note(f"{outcome.target}: round seed {seed * 1_000_000 + number}")
            raise
        number += 1


# --- the page machine of the directory ------------------------------------------------------------------------------

_TO_PAGES = (wire.Request, wire.Request, wire.Done, wire.GaveUp, wire.Hurry)


def _small(mutator: Mutator, message: wire.Message, **fields: int) -> wire.Message:
    """The same message, most often with numbers of this small world."""
    plan = mutator.plan
    changed = {name: plan.randrange(high) for name, high in fields.items() if plan.random() < 0.9}
    known = {name: value for name, value in changed.items() if name in message._fields}  # type: ignore[attr-defined]
    return message._replace(**known)  # type: ignore[attr-defined,no-any-return]


class _Liar:
    """A member of a simulated cluster that remembers what it was granted the right to ask for."""

    def __init__(self, traffic: Traffic, mutator: Mutator, outcome: Outcome) -> None:
        self.cluster = traffic.cluster
        self.cluster.members.add(LIAR)
        self.mutator = mutator
        self.outcome = outcome
        self._asked: list[wire.Request] = []

    def _message(self) -> wire.Message:
        plan = self.mutator.plan
        kind: type[Any] = plan.choice(_TO_PAGES)
        if self._asked and kind is not wire.Request and plan.random() < 0.7:  # about what it asked for, more or less
            r = plan.choice(self._asked)
            start, count = r.start + plan.choice((0, 0, 0, 1)), r.count + plan.choice((0, 0, 0, -1, 1))
            if kind is wire.Hurry:
                return wire.Hurry(r.region, r.generation, start, plan.choice((LIAR, LIAR, 1)))
            message: wire.Message = kind(r.region, r.generation, start, max(count, 0))
            return message
        message = self.mutator.message((kind,))
        limits = {"region": 3, "generation": 40, "start": PAGES + 2, "count": 6, "page": PAGES + 2, "op": 4}
        return _small(self.mutator, message, requester=6, **limits)

    def lie(self, thorough: bool, anything: bool) -> None:
        """Say one thing; what is refused is counted once and changes nothing."""
        pages = self.cluster.directory
        message = self._message()
        if not anything and _is_a_right_of_any_member(message):
            message = message._replace(op=wire.EVICT)  # type: ignore[attr-defined]
        refused = pages.rejected
        before = inside.pages_state(pages) if thorough else b""
        out = pages.step(LIAR, message)
        refused = pages.rejected - refused
        assert refused in (0, 1), message
        if refused:
            assert out == [], message
            assert not thorough or inside.pages_state(pages) == before, message
        elif isinstance(message, wire.Request):
            self._asked = [*self._asked[-9:], message]
        self.outcome.messages += 1
        self.outcome.refused += refused
        self.outcome.accepted += not refused
        self.cluster._from_directory(out)

    def leave(self) -> None:
        """Its connection ends."""
        self.cluster.members.discard(LIAR)
        for node in sorted(self.cluster.members):
            self.cluster.send(DIRECTORY, node, wire.MemberLeft(LIAR, "it left"))
        self.cluster._from_directory(self.cluster.directory.forget_node(LIAR, "liar"))


def _is_a_right_of_any_member(message: wire.Message) -> bool:
    """Would it be granted pages of the honest, as any member that asks is?"""
    if not isinstance(message, wire.Request) or message.op == wire.EVICT:
        return False
    return message.region == REGION and message.start < HONEST_PAGES


def pages_of_the_directory(seed: int, count: int) -> Outcome:
    """A member says anything but asks for no page that the honest use: they do not notice."""

    def play(seed: int, lies: int, outcome: Outcome) -> None:
        traffic = Traffic(seed)
        liar = _Liar(traffic, Mutator(seed), outcome)
        for number in range(lies):
            liar.lie(number % 50 == 0, anything=False)
            traffic.step()
            if number % _LOOK_EVERY == 0:
                traffic.cluster.check()
                assert inside.entries_of(traffic.cluster.directory, LIAR) <= PAGES
        traffic.settle()

    with measured("directory.machine, a liar", rss_kib) as outcome:
        _rounds(seed, count, play, outcome)
    return outcome


def pages_of_the_directory_and_departure(seed: int, count: int) -> Outcome:
    """A member takes any page, says anything, answers nothing, and leaves: then the honest come to rest, no value is
    wrong, and what only the liar had is lost."""

    def play(seed: int, lies: int, outcome: Outcome) -> None:
        traffic = Traffic(seed)
        cluster = traffic.cluster
        liar = _Liar(traffic, Mutator(seed), outcome)
        lies = min(lies, traffic.chance.choice([5, 20, 100]))
        for number in range(lies):
            liar.lie(number % 50 == 0, anything=True)
            for _ in range(4):
                traffic.step()
            if number % _LOOK_EVERY == 0:
                cluster.check()
                assert inside.entries_of(cluster.directory, LIAR) <= PAGES
        liar.leave()
        traffic.settle()

    with measured("directory.machine, one that leaves", rss_kib) as outcome:
        _rounds(seed, count, play, outcome)
    return outcome


# --- the machine of a node ------------------------------------------------------------------------------------------


def _to_node(mutator: Mutator) -> wire.Message:
    return _small(
        mutator,
        mutator.message((wire.Data, wire.Ack)),
        region=3,
        generation=60,
        first=PAGES + 2,
        total=6,
        start=PAGES + 2,
        count=6,
        acks=4,
        sender=6,
    )


def nodes_and_a_peer(seed: int, count: int) -> Outcome:
    """A peer sends page data and acknowledgements for requests that it was not told of: all is dropped and counted."""

    def play(seed: int, lies: int, outcome: Outcome) -> None:
        traffic, mutator = Traffic(seed), Mutator(seed)
        nodes = list(traffic.cluster.nodes.values())
        for number in range(lies):
            node = mutator.plan.choice(nodes)
            message = _to_node(mutator)
            while message[1] in inside.open_generations(node.machine):
                message = _to_node(mutator)
            before = inside.node_state(node.machine), node.machine.late
            node.receive(Packet(message, [-1] * min(message[5], 8) if isinstance(message, wire.Data) else []))
            assert (inside.node_state(node.machine), node.machine.late) == (before[0], before[1] + 1), message
            outcome.messages += 1
            outcome.refused += 1
            for _ in range(2):
                traffic.step()
            if number % _LOOK_EVERY == 0:
                traffic.cluster.check()
        traffic.settle()
        assert traffic.accesses
        assert sum(node.machine.late for node in nodes) == lies

    with measured("nodes.machine, a peer", rss_kib) as outcome:
        _rounds(seed, count, play, outcome)
    return outcome


# --- the directory's service, all of its doors ----------------------------------------------------------------------

_HONEST = (b"h1", b"h2")
_LIARS = (b"l1", b"l2", b"stranger")
_ADDRESSES = {b"l1": "tcp://127.0.0.1:8", b"l2": "tcp://127.0.0.1:9"}
_HONEST_PAGES = 64


class _Service:
    """A directory's cluster, with two honest members and some liars, and what it has sent to the honest."""

    def __init__(self) -> None:
        self.directory = directory.cluster.Cluster("tcp://127.0.0.1:1", 0.0)
        self.now = 0.0
        self.tickets = 0
        self._came: dict[bytes, list[wire.Message]] = {identity: [] for identity in _HONEST}
        for number, identity in enumerate(_HONEST):
            self.tell(identity, wire.Join(f"honest{number}", f"tcp://127.0.0.1:{7000 + number}"))
            assert self.take(identity) == [wire.Welcome(number + 1)]
        opened = [self.ask(identity, wire.Open, "grid", _HONEST_PAGES * 4096, 4096, 0, {}) for identity in _HONEST]
        self.region = opened[0][1]
        assert opened[1][1] == self.region
        self.tell(_HONEST[0], wire.Keep(self.region))

    def tell(self, identity: bytes, message: wire.Message) -> None:
        self.now += 0.001
        self._keep(self.directory.step(identity, message, self.now))
        if self.now >= self.directory.due_s:
            self._keep(self.directory.tick(self.now))
            self.directory.news.clear()

    def malformed(self, identity: bytes) -> None:
        self._keep(self.directory.malformed(identity, ProtocolError("no message")))

    def _keep(self, outgoing: directory.cluster.Outgoing) -> None:
        for identity, message in outgoing:
            assert wire.decode(wire.encode(message)) == message
            if identity in _HONEST:
                self._came[identity].append(message)

    def take(self, identity: bytes) -> list[wire.Message]:
        """What came for a connection, without the news of who joins and leaves."""
        came, self._came[identity] = self._came[identity], []
        return [m for m in came if not isinstance(m, wire.Member | wire.MemberLeft)]

    def ask(self, identity: bytes, kind: type, *fields: object) -> wire.Message:
        self.tickets += 1
        self.tell(identity, kind(self.tickets, *fields))
        (answer,) = self.take(identity)
        return answer

    def honest(self, turn: int) -> None:
        """One small program of two honest nodes: a lock, a barrier, a page written here and read there."""
        first, second = _HONEST
        one, two = (1, 1, "the first"), (2, 1, "the second")
        lock = ("lock", wire.LOCK, wire.FOREVER)
        assert self.ask(first, wire.Acquire, *lock, *one) == wire.Granted(self.tickets, 0)
        grant = self.tickets
        self.tell(second, wire.Acquire(9, *lock, *two))
        assert (self.take(first), self.take(second)) == ([wire.Recall("lock")], [])
        self.tell(first, wire.Return(grant, "lock", False))
        assert self.take(second) == [wire.Granted(9, 0)]
        self.tell(second, wire.Return(9, "lock", False))
        self.tell(first, wire.Arrive(3, "barrier", 2, wire.FOREVER, False, *one))
        self.tell(second, wire.Arrive(4, "barrier", 2, wire.FOREVER, False, *two))
        assert (self.take(first), self.take(second)) == ([wire.Granted(3, 0)], [wire.Granted(4, 1)])
        self._page(turn, turn % _HONEST_PAGES, first, second)

    def _page(self, turn: int, page: int, first: bytes, second: bytes) -> None:
        generation = turn + 1
        two = inside.node_number(self.directory, second)
        self.tell(first, wire.Request(self.region, generation, page, 1, wire.WRITE, wire.FAULT))
        self.take(first), self.take(second)
        if turn >= _HONEST_PAGES:  # others had it, and it was fetched or invalidated
            self.tell(first, wire.Done(self.region, generation, page, 1))
        self.tell(second, wire.Request(self.region, generation, page, 1, wire.READ, wire.FAULT))
        assert self.take(first) == [wire.Fetch(self.region, generation, page, 1, two, 0, True, False)]
        self.tell(second, wire.Done(self.region, generation, page, 1))
        assert self.take(second) == []


_ABOUT_LOCKS = (
    wire.Acquire, wire.Post, wire.Enroll, wire.Arrive, wire.BarrierReset, wire.Inspect, wire.Forget, wire.Cancel,
    wire.Holds, wire.Return, wire.Gone,
)  # fmt: skip


def _to_service(mutator: Mutator, service: _Service) -> None:
    plan = mutator.plan
    identity = plan.choice(_LIARS)
    if plan.random() < 0.1:
        service.malformed(identity)
        return
    message = mutator.message(_ABOUT_LOCKS) if plan.random() < 0.4 else mutator.message()
    message = _small(
        mutator, message, region=4, generation=9, start=70, count=3, page=70, op=3, ticket=6, process=4, thread=4
    )
    if "name" in message._fields:  # type: ignore[attr-defined]
        message = message._replace(name=plan.choice(("evil0", "evil1")))  # type: ignore[attr-defined]
    message = _small(mutator, message, parties=4)
    if isinstance(message, wire.Join) and (identity == b"stranger" or plan.random() < 0.9):
        message = message._replace(address=plan.choice(["nonsense", "tcp://a:1", "tcp://127.0.0.1:0", "tcp://[::1:5"]))
    elif isinstance(message, wire.Join):
        message = wire.Join(f"liar{identity!r}", _ADDRESSES[identity])
    elif isinstance(message, wire.Request) and message.region == service.region:
        message = message._replace(count=0)  # any member may ask for any page: not a lie
    elif isinstance(message, wire.Close | wire.Keep | wire.Hold) and plan.random() < 0.5:
        message = message._replace(region=service.region)
    service.tell(identity, message)


def all_doors_of_the_directory(seed: int, count: int) -> Outcome:
    """Strangers and members send anything there is: two honest members go on, all that is refused is counted once."""

    def play(seed: int, lies: int, outcome: Outcome) -> None:
        mutator, service = Mutator(seed), _Service()
        for identity in _LIARS[:2]:
            service.tell(identity, wire.Join(f"liar{identity!r}", _ADDRESSES[identity]))
        for number in range(lies):
            before = inside.rejected(service.directory)
            _to_service(mutator, service)
            refused = inside.rejected(service.directory) - before
            assert refused in (0, 1)
            outcome.messages += 1
            outcome.refused += refused
            outcome.accepted += not refused
            for identity in _HONEST:
                assert service.take(identity) == []
            if number % _LOOK_EVERY == 0:
                service.honest(number // _LOOK_EVERY)
        for identity in _LIARS[:2]:
            node = inside.node_number(service.directory, identity)
            assert not node or inside.sync_entries(service.directory, node) <= lies
            service.tell(identity, wire.Leave())
            assert not node or inside.sync_entries(service.directory, node) == 0

    with measured("directory.cluster, everybody", rss_kib) as outcome:
        _rounds(seed, count, play, outcome)
    return outcome


TARGETS = (
    pages_of_the_directory,
    pages_of_the_directory_and_departure,
    nodes_and_a_peer,
    all_doors_of_the_directory,
)
