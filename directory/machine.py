"""The page protocol as the directory sees it: a pure function of (state, message) that returns messages.

What is done with a request is the table in :mod:`directory.rules`.

One transaction at a time on a page; whatever conflicts waits its turn in order of arrival. A transaction ends when the
requester says Done: it then has all data and all acknowledgements, so no message of it is left in the network. Of a run
of pages each part is closed by itself, as soon as it has come. A grant of zeros, or of what the requester has already,
ends at once: nothing but the directory's own ordered channel carries it. (Blocking directory: Sorin, Hill, Wood, "A
Primer on Memory Consistency and Cache Coherence", ch. 8.)
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import Any, Final, NamedTuple

from directory.holdings import EXCLUSIVE, LOST, SHARED, STATE_NAMES, Holding, Holdings, nodes_in, without
from directory.rules import A_COPY, NOTHING, RULES, THE_ONLY, Action
from dsm.constants import LOCAL_BYTES_MAX, STORY_TOLD_MAX
from dsm.errors import Violation
from dsm.geometry import pages_in, pages_per_extent
from dsm.pagetable import PageTable
from dsm.story import NEEDS, OPERATIONS, Story
from dsm.wire import (
    FAULT,
    GUESS,
    PREFETCH,
    READ,
    RESET,
    WRITE,
    Ack,
    Done,
    Fetch,
    GaveUp,
    Grant,
    Hurry,
    Invalidate,
    Lost,
    Message,
    Orphan,
    Refuse,
    Request,
    Restore,
    Revive,
)

Outgoing = list[tuple[int, Message]]
"""Messages with the node that each is for."""

_SWEEP_AT: Final = 1 << 16
"""Interned holdings (about 250 bytes each) before unused ones are looked for."""


Event = tuple[int, bytes, Message]
"""Something that a directory has to remember to begin again: a message, of which node, and in which conversation where
that matters. Pages that are lost are Lost (of no request), those that are no longer are Restore."""

_LOST_TOLD_MAX: Final = 256
"""Runs of lost pages in an answer, each with the name of a node."""


class _Waiting(NamedTuple):
    node: int
    generation: int
    start: int
    stop: int
    op: int
    need: int

    def __str__(self) -> str:
        why = f", {NEEDS[self.need]}" if self.need else ""
        return f"request {self.generation} of n{self.node} to {OPERATIONS[self.op]}{why}"


class _Transaction(NamedTuple):
    node: int
    generation: int
    first: int  # where it began: its name in acknowledgements
    start: int  # ``[start, stop)`` is still under way
    stop: int
    op: int
    before: int  # holdings by number
    after: int
    supplier: int  # the node that was told to send its data, or 0
    sharers: int  # the nodes that were told to invalidate, as a bit mask

    def __str__(self) -> str:
        return (
            f"request {self.generation} of n{self.node} to {OPERATIONS[self.op]}, of pages {self.start} to {self.stop}"
        )


class InTransit(NamedTuple):
    """Pages ``[start, stop)`` that a node was told to send to one that is to write them."""

    region: int
    start: int
    stop: int
    supplier: int
    writer: int


class Kept(NamedTuple):
    """Pages that a node has given up, and has kept what was in them."""

    node: int
    region: int
    start: int
    stop: int


class _Extent:
    """The transactions and the queue of one extent; exists only while there are any."""

    __slots__ = ("active", "base", "queue")

    def __init__(self, base: int) -> None:
        self.base = base  # its first page
        self.active: list[_Transaction] = []
        self.queue: list[_Waiting] = []

    def mine(self, node: int, start: int, stop: int) -> bool:
        """Has the node something under way in this range already?"""
        return any(
            t.node == node and t.start < stop and start < t.stop for some in (self.active, self.queue) for t in some
        )

    def find(self, node: int, m: Done | GaveUp) -> _Transaction | None:
        """The transaction that a message closes, or a part of it; None if there is no such transaction."""
        for t in self.active:
            if t.node == node and t.generation == m.generation and t.start <= m.start < t.stop:
                return t if m.count and m.start + m.count <= t.stop else None
        return None

    def taken(self) -> int:
        """The pages of the extent that something is under way on, or waits for, as a bit mask."""
        mask = 0
        for some in (self.active, self.queue):
            for t in some:
                mask |= _mask(t.start, t.stop, self.base)
        return mask


def _mask(start: int, stop: int, base: int) -> int:
    """Pages ``[start, stop)`` of the extent that begins at ``base``, as a bit mask."""
    return ((1 << (stop - start)) - 1) << (start - base)


def _runs(mask: int, base: int) -> Iterator[tuple[int, int]]:
    """The pages of a bit mask as runs ``(start, stop)``."""
    while mask:
        low = (mask & -mask).bit_length() - 1
        length = (~(mask >> low) & ((mask >> low) + 1)).bit_length() - 1
        yield base + low, base + low + length
        mask &= ~(((1 << length) - 1) << low)


class _Region:
    __slots__ = ("counts", "extents", "pages", "per_extent", "replicas", "table", "users")

    def __init__(self, pages: int, per_extent: int, replicas: bool) -> None:
        self.pages = pages
        self.replicas = replicas  # who gives a page up for a writer keeps what was in it
        self.per_extent = per_extent
        self.table = PageTable("I")
        self.extents: dict[int, _Extent] = {}
        self.counts = [0, 0, 0, 0]  # pages by state; what is untouched is not counted to the end
        self.users = 0  # the nodes that have asked for pages, as a bit mask


class PageMachine:
    """All pages of all regions, or of their extents those of one of several shards. One door: :meth:`step` for
    messages; the rest is called by the services around it."""

    def __init__(self, story: Story | None = None, shard: int = 0, shards: int = 1) -> None:
        self._shard, self._shards = shard, shards
        self.story = story or Story()
        self._tell, self._now = self.story.add, self.story.now
        self.holdings = Holdings()
        self.transactions = 0
        self.rejected = 0
        self.events: list[Event] = []  # for whoever keeps them, and empties this
        self._regions: dict[int, _Region] = {}
        self._names: dict[int, str] = {}  # of nodes that have gone
        self._losers: dict[int, str] = {}  # of nodes that have lost pages, and are here
        self._sweep_at = _SWEEP_AT

    # -- regions and nodes ---------------------------------------------------------------------------

    def add_region(self, region: int, size: int, page_size: int, replicas: bool = False) -> None:
        """Begin to keep pages of a region; it costs nothing until they are touched."""
        self._regions[region] = _Region(pages_in(size, page_size), pages_per_extent(page_size), replicas)

    def remove_region(self, region: int) -> None:
        """Forget every page of a region, and who waits for them."""
        del self._regions[region]

    def has_region(self, region: int) -> bool:
        """Is a region of this number kept here?"""
        return region in self._regions

    def forget_node(self, node: int, name: str) -> Outgoing:
        """A node has left: take its copies away, end what it was part of, let the others go on."""
        self._names[node] = name
        out: Outgoing = []
        for number, region in self._regions.items():
            region.users &= ~(1 << node)
            for extent in region.extents.values():
                extent.queue = [waiting for waiting in extent.queue if waiting.node != node]
                extent.active = [t for t in extent.active if not self._abort(number, region, t, node, out)]
        before = list(self.holdings)
        self.holdings.forget_node(node)
        for number, region in self._regions.items():
            region.counts = [0, 0, 0, 0]
            for start, stop, holding in region.table.touched_runs():
                after = self.holdings[holding]
                region.counts[after.state] += stop - start
                if after != before[holding]:
                    self._tell((self._now(), number, start, stop, "a holder is gone", before[holding], after, name))
                    if after.state == LOST:
                        self._note_lost(number, start, stop, after)
                    elif before[holding].shadows and before[holding].copies == 1 << node:
                        self._revive(number, region, start, stop, after, out)
            for index in list(region.extents):
                self._drain(number, region, index, out)
        return out

    def _revive(self, number: int, region: _Region, start: int, stop: int, after: Holding, out: Outgoing) -> None:
        """Pages are lost, but not what was in them before: nodes have kept it. Not those that somebody has asked for
        already, and which may be with him: he will tell."""
        under_way = [t for extent in region.extents.values() for t in extent.active]
        for t in sorted(under_way, key=lambda t: t.start):
            if t.start < stop and start < t.stop:
                out += [
                    (keeper, Revive(number, start, t.start - start))
                    for keeper in nodes_in(after.copies)
                    if start < t.start
                ]
                start = max(start, t.stop)
        if start < stop:
            out += [(keeper, Revive(number, start, stop - start)) for keeper in nodes_in(after.copies)]

    def _abort(self, number: int, region: _Region, t: _Transaction, gone: int, out: Outgoing) -> bool:
        """Is this transaction over because a node has gone? Otherwise do for the node what it owed."""
        if t.node == gone:
            self._commit(number, region, t, "the requester is gone")
            return True
        if t.supplier == gone:  # its data may have arrived all the same: only the requester knows
            out.append((t.node, Orphan(number, t.generation, t.start, t.stop - t.start)))
        if t.sharers >> gone & 1:
            out.append((t.node, Ack(number, t.generation, t.first, gone)))
        return False

    # -- beginning again -------------------------------------------------------------------------------

    def recall(
        self,
        names: dict[int, str],
        regions: list[tuple[int, int, int, bool]],
        lost: list[Lost],
        living: Container[int],
    ) -> None:
        """Begin with the nodes that have lost pages, of which some are ``living``, the ``regions`` (number, size, page
        size, replicas), and what was noted of lost pages: of all others nobody has told yet."""
        self._names = {node: name for node, name in names.items() if node not in living}
        self._losers = {node: name for node, name in names.items() if node in living}
        for region in regions:
            self.add_region(*region)
        for message in lost:
            self.again(message, {})

    def again(self, m: Lost | Restore, living: dict[str, int]) -> None:
        """What was noted of lost pages once. ``living``: nodes that have not gone, by name."""
        region = self._regions.get(m.region)
        if region is None:
            return
        after = 0
        if isinstance(m, Lost):
            gone = [number for number, name in (self._names | self._losers).items() if name == m.node]
            node = gone[0] if gone else living[m.node]
            if not gone:
                self._losers[node] = m.node
            after = self.holdings.number(Holding(LOST, node, 0))
        for start, stop, before in region.table.runs(m.start, m.start + m.count):
            self._set(m.region, region, start, stop, before, after)

    def begin_again(self) -> list[InTransit]:
        """Forget who has which page, and every request: nodes are to tell. What was on its way to be written."""
        in_transit = [
            InTransit(number, t.start, t.stop, t.supplier, t.node)
            for number, region in self._regions.items()
            for extent in region.extents.values()
            for t in extent.active
            if t.supplier and t.op == WRITE
        ]
        _, lost = self.remembered()
        noted = len(self.events)
        self.holdings = Holdings()
        for number, region in self._regions.items():
            self._regions[number] = _Region(region.pages, region.per_extent, region.replicas)
        for message in lost:
            self.again(message, {})
        del self.events[noted:]  # they are known
        return in_transit

    def name_of(self, node: int) -> str:
        """The name of a node that has gone, or lost pages."""
        return self._names.get(node) or self._losers[node]

    def remembered(self) -> tuple[dict[int, str], list[Lost]]:
        """What :meth:`recall` is to get, beside the regions: the names of nodes, and what is lost."""
        names = {node for region in self._regions for *_, node in self._lost_runs(region)}
        lost = [
            Lost(region, 0, start, stop - start, self.name_of(node))
            for region in self._regions
            for start, stop, node in self._lost_runs(region)
        ]
        return {number: self.name_of(number) for number in names}, lost

    def _lost_runs(self, number: int) -> Iterator[tuple[int, int, int]]:
        for start, stop, holding in self._regions[number].table.touched_runs():
            if self.holdings[holding].state == LOST:
                yield start, stop, self.holdings[holding].owner

    def found(self, node: int, number: int, start: int, stop: int, exclusive: bool) -> None:
        """A node has these pages. Raises :class:`Violation` if that cannot be."""
        region = self._regions[number]
        if not start < stop <= region.pages:
            self.rejected += 1
            return
        mine = 1 << node
        for a, b, before in region.table.runs(start, stop):
            held = self.holdings[before]
            if held.copies and (exclusive or held.state != SHARED):
                raise Violation(f"n{node} has pages that are {held} as well", number, a)
            after = Holding(EXCLUSIVE, node, mine)
            if not exclusive:
                after = Holding(SHARED, held.owner if held.copies else node, held.copies | mine)
            self._tell((self._now(), number, a, b, "found again", held, after, f"n{node}"))
            self._set(number, region, a, b, before, self.holdings.number(after))

    def settle(self, in_transit: list[InTransit], kept: list[Kept], names: dict[int, str]) -> Outgoing:
        """All have told of what they have. What was on its way to one whose agent was killed may be nowhere: then it is
        again with who sent it and has kept it; or it was never brought anywhere, and is zeros. Of what others have kept
        nobody knows whether something was written later, as of what was on its way to one that has left: if it is
        nowhere else, it is lost. ``names`` are those of members."""
        out: Outgoing = []
        for number, start, stop, supplier, writer in in_transit:
            for node, region, first, last in kept:
                if (node, region) == (supplier, number) and writer in names:
                    for a, b in self._nowhere(number, max(start, first), min(stop, last)):
                        self.found(node, number, a, b, False)
                        out.append((node, Revive(number, a, b - a)))
        for node, number, start, stop in kept:
            for a, b in self._nowhere(number, start, stop) if node in names else ():
                self._losers[node] = names[node]
                self._set(number, self._regions[number], a, b, 0, self.holdings.number(Holding(LOST, node, 0)))
        return out

    def _nowhere(self, number: int, start: int, stop: int) -> list[tuple[int, int]]:
        """The runs of ``[start, stop)`` that nobody has told of."""
        region = self._regions.get(number)
        stop = min(stop, region.pages) if region is not None else 0
        if region is None or start >= stop:
            return []
        return [(a, b) for a, b, holding in region.table.runs(start, stop) if not holding]

    def lose_the_rest(self, number: int, node: int) -> None:
        """Of a region, ``node``, which has gone, may have had any page that nobody has told of."""
        region = self._regions[number]
        lost = self.holdings.number(Holding(LOST, node, 0))
        for start, stop, before in region.table.runs(0, region.pages):
            if not before:
                self._set(number, region, start, stop, before, lost)

    def used_by(self, number: int, nodes: set[int]) -> None:
        """These nodes may have asked for pages of a region."""
        self._regions[number].users = sum(1 << node for node in nodes)

    # -- messages --------------------------------------------------------------------------------------

    def step(self, node: int, message: Message) -> Outgoing:
        """What to send after a message of ``node``. One that the rules do not allow changes nothing and is counted."""
        if isinstance(message, Request):
            return self._request(node, message)
        if isinstance(message, Done | GaveUp):
            return self._done(node, message)
        if isinstance(message, Hurry) and message.requester == node:
            return self._hurry(node, message)
        self.rejected += 1
        return []

    def _request(self, node: int, m: Request) -> Outgoing:
        region = self._regions.get(m.region)
        stop = m.start + m.count
        if region is None:  # destroyed while the request was on its way
            self.rejected += 1
            return []
        index = m.start // region.per_extent
        if (
            not m.count
            or m.op > RESET
            or m.need > PREFETCH
            or stop > region.pages
            or (stop - 1) // region.per_extent != index
            or (self._shards > 1 and (m.region + index) % self._shards != self._shard)  # as geometry.shard_of has it
        ):
            self.rejected += 1
            return []
        region.users |= 1 << node
        out: Outgoing = []
        extent = region.extents.get(index)
        if extent is None:
            extent = region.extents[index] = _Extent(index * region.per_extent)
            self._start(m.region, region, extent, _Waiting(node, m.generation, m.start, stop, m.op, m.need), out)
        elif extent.mine(node, m.start, stop):  # a node asks once for a page at a time: this also bounds the queue
            self.rejected += 1
            return []
        else:
            waiting = _Waiting(node, m.generation, m.start, stop, m.op, m.need)
            self._admit(m.region, region, extent, waiting, extent.taken(), out)
        if not extent.active and not extent.queue:
            del region.extents[index]
        return out

    def _done(self, node: int, m: Done | GaveUp) -> Outgoing:
        region = self._regions.get(m.region)
        index = m.start // region.per_extent if region else 0
        extent = region.extents.get(index) if region else None
        t = extent.find(node, m) if extent else None
        orphaned = t is not None and t.supplier in self._names  # only then may it be given up
        if region is None or extent is None or t is None or not (type(m) is Done or orphaned):
            self.rejected += 1
            return []
        extent.active.remove(t)
        stop = m.start + m.count
        if t.start < m.start:
            extent.active.append(t._replace(stop=m.start))
        if stop < t.stop:
            extent.active.append(t._replace(start=stop))
        closed = t._replace(start=m.start, stop=stop)
        held = self.holdings[t.before]
        out: Outgoing = []
        if type(m) is Done:
            self._commit(m.region, region, closed, m)
        elif t.op == READ or (region.replicas and held.state == SHARED):
            self._tell((self._now(), m.region, m.start, stop, "given up by who asked", held, held, m))
            if region.replicas:  # what they have kept is in the page again; who has a copy goes on with that
                out += [(keeper, Revive(m.region, m.start, m.count)) for keeper in nodes_in(held.copies)]
        elif t.op == WRITE:  # the other copies were dropped for it, and the owner's is gone
            lost = self.holdings.number(Holding(LOST, t.supplier, 0))
            self._commit(m.region, region, closed._replace(after=lost), m)
        self._drain(m.region, region, index, out)
        return out

    def _hurry(self, node: int, m: Hurry) -> Outgoing:
        """Tell the supplier; or take the page out of a request that still waits here. Too late is no fault."""
        region = self._regions.get(m.region)
        extent = region.extents.get(m.page // region.per_extent) if region else None
        if extent is None:
            return []
        for t in extent.active:
            if t.node == node and t.generation == m.generation and t.start <= m.page < t.stop:
                return [(t.supplier, m)] if t.supplier else []
        for index, w in enumerate(extent.queue):
            if w.node == node and w.generation == m.generation and w.start <= m.page < w.stop:
                parts = (w.start, m.page, w.need), (m.page, m.page + 1, FAULT), (m.page + 1, w.stop, w.need)
                extent.queue[index : index + 1] = [
                    w._replace(start=start, stop=stop, need=need) for start, stop, need in parts if start < stop
                ]
                break
        return []

    # -- transactions ------------------------------------------------------------------------------------

    def _commit(self, number: int, region: _Region, t: _Transaction, cause: Message | str) -> None:
        before, after = self.holdings[t.before], self.holdings[t.after]
        self._tell((self._now(), number, t.start, t.stop, "over", before, after, cause))
        if t.before != t.after:
            self._set(number, region, t.start, t.stop, t.before, t.after)

    def _set(self, number: int, region: _Region, start: int, stop: int, before: int, after: int) -> None:
        """Pages that were held as ``before``, which nobody else may have changed, are now held as ``after``."""
        table, single = region.table, stop - start == 1
        if table.get(start) != before or not (single or table.runs(start, stop) == [(start, stop, before)]):
            found = self.holdings[table.get(start)]
            raise Violation(
                f"pages {start} to {stop} are no longer {self.holdings[before]}, but {found}", number, start
            )
        if single:
            table.set(start, after)
        else:
            table.set_run(start, stop, after)
        old, new = self.holdings[before].state, self.holdings[after].state
        if old != new:
            region.counts[old] -= stop - start
            region.counts[new] += stop - start
            if new == LOST:
                self._note_lost(number, start, stop, self.holdings[after])
            elif old == LOST:
                self.events.append((0, b"", Restore(number, 0, start, stop - start, 0)))

    def _note_lost(self, number: int, start: int, stop: int, holding: Holding) -> None:
        self.events.append((0, b"", Lost(number, 0, start, stop - start, self.name_of(holding.owner))))

    def _drain(self, number: int, region: _Region, index: int, out: Outgoing) -> None:
        """Start whatever of the queue nothing stands in the way of, in order of arrival."""
        extent = region.extents[index]
        if extent.queue:
            queue, extent.queue = extent.queue, []
            taken = extent.taken()
            for waiting in queue:
                taken = self._admit(number, region, extent, waiting, taken, out)
        if not extent.active and not extent.queue:
            del region.extents[index]

    def _admit(
        self, number: int, region: _Region, extent: _Extent, waiting: _Waiting, taken: int, out: Outgoing
    ) -> int:
        """Start it on what is not ``taken``, and let it wait for the rest. What is taken then."""
        wanted = _mask(waiting.start, waiting.stop, extent.base)
        blocked = wanted & taken
        for start, stop in _runs(wanted & ~taken, extent.base):
            before = len(extent.active)
            self._start(number, region, extent, waiting._replace(start=start, stop=stop), out)
            for t in extent.active[before:]:
                taken |= _mask(t.start, t.stop, extent.base)
        extent.queue += [waiting._replace(start=start, stop=stop) for start, stop in _runs(blocked, extent.base)]
        return taken

    def _start(self, number: int, region: _Region, extent: _Extent, w: _Waiting, out: Outgoing) -> None:
        """Begin one transaction for each run of pages held alike."""
        if w.stop - w.start == 1:
            self._begin(number, region, extent, w, region.table.get(w.start), out)
            return
        for start, stop, holding in region.table.runs(w.start, w.stop):
            self._begin(number, region, extent, w._replace(start=start, stop=stop), holding, out)

    def _begin(self, number: int, region: _Region, extent: _Extent, w: _Waiting, before: int, out: Outgoing) -> None:
        node, generation, start, stop, op, need = w
        count = stop - start
        holding = self.holdings[before]
        mine = 1 << node
        has = NOTHING if not holding.copies & mine else THE_ONLY if holding.copies == mine else A_COPY
        action, state = RULES[holding.state, op, has]
        if need == GUESS and op == WRITE and action is not Action.ZEROS and action is not Action.TELL_LOST:
            action = Action.REFUSE
        self.transactions += 1
        self._tell((self._now(), number, start, stop, action.value, holding, STATE_NAMES[state], w))
        if action is Action.COPY:
            after = self.holdings.number(Holding(SHARED, holding.owner, holding.copies | mine))
            self._open(
                number, extent, _Transaction(node, generation, start, start, stop, op, before, after, holding.owner, 0)
            )
            out.append((holding.owner, Fetch(number, generation, start, count, node, 0, True, need != FAULT)))
        elif action is Action.MOVE or action is Action.UPGRADE:
            self._write(number, region, extent, w, before, 0 if has else holding.owner, out)
        elif action is Action.ZEROS:
            after = self.holdings.number(Holding(state, node, mine))
            self._set(number, region, start, stop, before, after)
            out.append((node, Grant(number, generation, start, count, 0, True)))
        elif action is Action.GRANT:
            if state != holding.state:
                self._set(number, region, start, stop, before, self.holdings.number(Holding(state, node, mine)))
            out.append((node, Grant(number, generation, start, count, 0, False)))
        elif action is Action.DROP:  # it says Done when it has: only then may a write begin
            after = self.holdings.number(without(holding, node))
            self._open(number, extent, _Transaction(node, generation, start, start, stop, op, before, after, 0, 0))
            out.append((node, Grant(number, generation, start, count, 0, False)))
        elif action is Action.RESTORE:
            self._restore(number, region, extent, w, before, out)
        elif action is Action.TELL_LOST:
            out.append((node, Lost(number, generation, start, count, self.name_of(holding.owner))))
        else:
            out.append((node, Refuse(number, generation, start, count)))
        if len(self.holdings) > self._sweep_at:
            self._sweep()

    def _write(
        self, number: int, region: _Region, extent: _Extent, w: _Waiting, before: int, supplier: int, out: Outgoing
    ) -> None:
        """Invalidate every other copy; where the writer has none, the owner (``supplier``) hands its copy over."""
        node, generation, start, stop, op, need = w
        sharers = self.holdings[before].copies & ~(1 << node) & ~(1 << supplier if supplier else 0)
        count, acks = stop - start, sharers.bit_count()
        shadows = self.holdings[before].copies & ~(1 << node) if region.replicas else 0
        after = self.holdings.number(Holding(EXCLUSIVE, node, 1 << node, shadows))
        self._open(
            number, extent, _Transaction(node, generation, start, start, stop, op, before, after, supplier, sharers)
        )
        if supplier:
            out.append((supplier, Fetch(number, generation, start, count, node, acks, False, need != FAULT)))
        else:
            out.append((node, Grant(number, generation, start, count, acks, False)))
        for sharer in nodes_in(sharers):
            out.append((sharer, Invalidate(number, generation, start, count, node)))

    def _restore(self, number: int, region: _Region, extent: _Extent, w: _Waiting, before: int, out: Outgoing) -> None:
        """Lost pages begin anew with ``w.node``, once all others have forgotten that they were lost. Whoever had them
        before, and was to give them to a node that has gone, has then dropped them, too."""
        node, generation, start, stop, op, _ = w
        others, count = region.users & ~(1 << node), stop - start
        after = self.holdings.number(Holding(EXCLUSIVE, node, 1 << node))
        if others:
            self._open(number, extent, _Transaction(node, generation, start, start, stop, op, before, after, 0, others))
        else:
            self._set(number, region, start, stop, before, after)
        out.append((node, Grant(number, generation, start, count, others.bit_count(), True)))
        out += [(other, Restore(number, generation, start, count, node)) for other in nodes_in(others)]

    def _open(self, number: int, extent: _Extent, t: _Transaction) -> None:
        """A transaction begins. Two on one page would be the end of coherence."""
        for other in extent.active:
            if other.start < t.stop and t.start < other.stop:
                raise Violation(f"{t} would begin beside {other}", number, t.start)
        extent.active.append(t)

    def _sweep(self) -> None:
        live = {t.before for t in self._active()} | {t.after for t in self._active()}
        for region in self._regions.values():
            live.update(holding for _, _, holding in region.table.touched_runs())
        self.holdings.sweep(live)
        self._sweep_at = max(_SWEEP_AT, 2 * len(self.holdings))

    def _active(self) -> list[_Transaction]:
        return [t for region in self._regions.values() for extent in region.extents.values() for t in extent.active]

    def story_of(self, region: int, page: int) -> dict[str, Any]:
        """How a page is held, what is under way on it, and its last transitions; for people."""
        known = self._regions[region]
        extent = known.extents.get(page // known.per_extent) or _Extent(0)
        waiting = [f"{w}, in the queue" for w in extent.queue if w.start <= page < w.stop]
        here = [f"{t}" for t in extent.active if t.start <= page < t.stop]
        return {
            "state": str(self.holdings[known.table.get(page)]),
            "under way": (here + waiting)[:STORY_TOLD_MAX],
            "story": self.story.of(region, page, str),
        }

    # -- questions ---------------------------------------------------------------------------------------

    def counts(self, region: int) -> dict[str, int]:
        """Touched pages of a region by state."""
        counts = self._regions[region].counts
        return {STATE_NAMES[state]: counts[state] for state in (SHARED, EXCLUSIVE, LOST)}

    def lost(self, region: int, start: int, count: int) -> dict[str, Any]:
        """Of pages ``[start, start + count)`` the runs that are lost, with the node that took them, as far as they fit
        a message: up to page ``until``."""
        known = self._regions[region]
        stop = min(start + count, known.pages)
        runs: list[tuple[int, int, str]] = []
        for a, b, number in known.table.runs(start, stop) if start < stop else ():
            if self.holdings[number].state != LOST:
                continue
            if len(runs) == _LOST_TOLD_MAX:
                return {"lost": runs, "until": a}
            runs.append((a, b, self.name_of(self.holdings[number].owner)))
        return {"lost": runs, "until": start + count}

    def only_with(self, node: int, region: int) -> list[tuple[int, int]]:
        """The runs of pages ``(start, stop)`` of a region that nobody but ``node`` has."""
        mine = 1 << node
        touched = self._regions[region].table.touched_runs()
        return [(start, stop) for start, stop, holding in touched if self.holdings[holding].copies == mine]

    def per_extent(self, region: int) -> int:
        """How many pages of a region an extent has."""
        return self._regions[region].per_extent

    def owner_numbers(self, region: int, start: int, count: int) -> bytes:
        """Little-endian u16 node ids, one a page; what does not fit a message is cut off."""
        runs = self.owners(region, start, min(start + count, start + LOCAL_BYTES_MAX // 4))
        return b"".join(owner.to_bytes(2, "little") * (b - a) for a, b, owner in runs)

    def owners(self, region: int, start: int, stop: int) -> list[tuple[int, int, int]]:
        """``(start, stop, owner)`` for runs of pages; owner 0 where nobody has a copy."""
        runs = []
        for a, b, number in self._regions[region].table.runs(start, stop):
            holding = self.holdings[number]
            runs.append((a, b, holding.owner if holding.copies else 0))
        return runs
