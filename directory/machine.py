"""The page protocol as the directory sees it: a pure function of (state, message) that returns messages.

::

    state       READ by R                        WRITE by R                          EVICT by R
    ---------   ------------------------------   ---------------------------------   ------------------
    untouched   grant zeros -> shared{R}         grant zeros -> exclusive(R)         refuse
    shared      owner sends, keeps               R holds: others invalidated         R drops, unless it
                -> shared + R                    else: owner sends and drops,        is the last holder
                                                 others invalidated -> exclusive(R)
    exclusive   owner sends, keeps               owner sends and drops               refuse
                -> shared{owner, R}              -> exclusive(R)
    lost        lost                             lost                                refuse

One transaction at a time on a page; whatever conflicts waits its turn in order of arrival. A transaction ends when the
requester says Done: it then has all data and all acknowledgements, so no message of it is left in the network. Of a run
of pages each part is closed by itself, as soon as it has come. A grant of zeros, or of what the requester has already,
ends at once: nothing but the directory's own ordered channel carries it. (Blocking directory: Sorin, Hill, Wood, "A
Primer on Memory Consistency and Cache Coherence", ch. 8.)
"""

from __future__ import annotations

from typing import Final, NamedTuple

from directory.holdings import EXCLUSIVE, LOST, SHARED, STATE_NAMES, UNTOUCHED, Holding, Holdings, nodes_in, without
from dsm.geometry import pages_in, pages_per_extent
from dsm.pagetable import PageTable
from dsm.wire import (
    EVICT,
    READ,
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
)

Outgoing = list[tuple[int, Message]]
"""Messages with the node that each is for."""

_SWEEP_AT: Final = 1 << 16
"""Interned holdings (about 250 bytes each) before unused ones are looked for."""


class _Waiting(NamedTuple):
    node: int
    generation: int
    start: int
    stop: int
    op: int
    ahead: bool


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


class _Extent:
    """The transactions and the queue of one extent; exists only while there are any."""

    __slots__ = ("active", "queue")

    def __init__(self) -> None:
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

    def free_and_blocked(self, start: int, stop: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """``[start, stop)`` cut into what nothing is under way on, and what has to wait."""
        taken = sorted(
            (max(t.start, start), min(t.stop, stop))
            for some in (self.active, self.queue)
            for t in some
            if t.start < stop and start < t.stop
        )
        free, blocked, at = [], [], start
        for a, b in taken:
            if a > at:
                free.append((at, a))
            if b > at:
                blocked.append((max(a, at), b))
                at = b
        if at < stop:
            free.append((at, stop))
        return free, blocked


class _Region:
    __slots__ = ("counts", "extents", "pages", "per_extent", "table")

    def __init__(self, pages: int, per_extent: int) -> None:
        self.pages = pages
        self.per_extent = per_extent
        self.table = PageTable("I")
        self.extents: dict[int, _Extent] = {}
        self.counts = [0, 0, 0, 0]  # pages by state; what is untouched is not counted to the end


class PageMachine:
    """All pages of all regions. One door: :meth:`step` for messages; the rest is called by the services around it."""

    def __init__(self) -> None:
        self.holdings = Holdings()
        self.transactions = 0
        self.rejected = 0
        self._regions: dict[int, _Region] = {}
        self._names: dict[int, str] = {}
        self._sweep_at = _SWEEP_AT

    # -- regions and nodes ---------------------------------------------------------------------------

    def add_region(self, region: int, size: int, page_size: int) -> None:
        """Begin to keep pages of a region; it costs nothing until they are touched."""
        self._regions[region] = _Region(pages_in(size, page_size), pages_per_extent(page_size))

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
            for extent in region.extents.values():
                extent.queue = [waiting for waiting in extent.queue if waiting.node != node]
                extent.active = [t for t in extent.active if not self._abort(number, region, t, node, out)]
        self.holdings.forget_node(node)
        for number, region in self._regions.items():
            region.counts = [0, 0, 0, 0]
            for start, stop, holding in region.table.touched_runs():
                region.counts[self.holdings[holding].state] += stop - start
            for index in list(region.extents):
                self._drain(number, region, index, out)
        return out

    def _abort(self, number: int, region: _Region, t: _Transaction, gone: int, out: Outgoing) -> bool:
        """Is this transaction over because a node has gone? Otherwise do for the node what it owed."""
        if t.node == gone:
            self._commit(region, t)
            return True
        if t.supplier == gone:  # its data may have arrived all the same: only the requester knows
            out.append((t.node, Orphan(number, t.generation, t.start, t.stop - t.start)))
        if t.sharers >> gone & 1:
            out.append((t.node, Ack(number, t.generation, t.first, gone)))
        return False

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
        if not m.count or m.op > EVICT or stop > region.pages or (stop - 1) // region.per_extent != index:
            self.rejected += 1
            return []
        out: Outgoing = []
        extent = region.extents.get(index)
        if extent is None:
            extent = region.extents[index] = _Extent()
            self._start(m.region, region, extent, _Waiting(node, m.generation, m.start, stop, m.op, m.ahead), out)
        elif extent.mine(node, m.start, stop):  # a node asks once for a page at a time: this also bounds the queue
            self.rejected += 1
            return []
        else:
            self._admit(m.region, region, extent, _Waiting(node, m.generation, m.start, stop, m.op, m.ahead), out)
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
        if type(m) is Done:
            self._commit(region, closed)
        elif t.op == WRITE:  # the other copies were dropped for it, and the owner's is gone
            self._commit(region, closed._replace(after=self.holdings.number(Holding(LOST, t.supplier, 0))))
        out: Outgoing = []
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
                parts = (w.start, m.page, w.ahead), (m.page, m.page + 1, False), (m.page + 1, w.stop, w.ahead)
                extent.queue[index : index + 1] = [
                    w._replace(start=start, stop=stop, ahead=ahead) for start, stop, ahead in parts if start < stop
                ]
                break
        return []

    # -- transactions ------------------------------------------------------------------------------------

    def _commit(self, region: _Region, t: _Transaction) -> None:
        if t.before != t.after:
            self._set(region, t.start, t.stop, t.before, t.after)

    def _set(self, region: _Region, start: int, stop: int, before: int, after: int) -> None:
        """Pages that were held as ``before`` are now held as ``after``."""
        if stop - start == 1:
            region.table.set(start, after)
        else:
            region.table.set_run(start, stop, after)
        old, new = self.holdings[before].state, self.holdings[after].state
        if old != new:
            region.counts[old] -= stop - start
            region.counts[new] += stop - start

    def _drain(self, number: int, region: _Region, index: int, out: Outgoing) -> None:
        """Start whatever of the queue nothing stands in the way of, in order of arrival."""
        extent = region.extents[index]
        if extent.queue:
            queue, extent.queue = extent.queue, []
            for waiting in queue:
                self._admit(number, region, extent, waiting, out)
        if not extent.active and not extent.queue:
            del region.extents[index]

    def _admit(self, number: int, region: _Region, extent: _Extent, waiting: _Waiting, out: Outgoing) -> None:
        free, blocked = extent.free_and_blocked(waiting.start, waiting.stop)
        for start, stop in free:
            self._start(number, region, extent, waiting._replace(start=start, stop=stop), out)
        extent.queue += [waiting._replace(start=start, stop=stop) for start, stop in blocked]

    def _start(self, number: int, region: _Region, extent: _Extent, w: _Waiting, out: Outgoing) -> None:
        """Begin one transaction for each run of pages held alike."""
        if w.stop - w.start == 1:
            self._begin(number, region, extent, w, region.table.get(w.start), out)
            return
        for start, stop, holding in region.table.runs(w.start, w.stop):
            self._begin(number, region, extent, w._replace(start=start, stop=stop), holding, out)

    def _begin(self, number: int, region: _Region, extent: _Extent, w: _Waiting, before: int, out: Outgoing) -> None:
        node, generation, start, stop, op, ahead = w
        count = stop - start
        state, owner, copies = self.holdings[before]
        self.transactions += 1
        if state == LOST and op != EVICT:
            out.append((node, Lost(number, generation, start, count, self._names[owner])))
        elif state == UNTOUCHED and op != EVICT:
            after = self.holdings.number(Holding(SHARED if op == READ else EXCLUSIVE, node, 1 << node))
            self._set(region, start, stop, before, after)
            out.append((node, Grant(number, generation, start, count, 0, True)))
        elif op == EVICT:
            self._evict(number, extent, w, before, out)
        elif copies >> node & 1 and (op == READ or state == EXCLUSIVE):
            out.append((node, Grant(number, generation, start, count, 0, False)))
        elif op == READ:
            after = self.holdings.number(Holding(SHARED, owner, copies | 1 << node))
            extent.active.append(_Transaction(node, generation, start, start, stop, op, before, after, owner, 0))
            out.append((owner, Fetch(number, generation, start, count, node, 0, True, ahead)))
        elif ahead:
            out.append((node, Refuse(number, generation, start, count)))
        else:
            self._write(number, region, extent, w, before, out)
        if len(self.holdings) > self._sweep_at:
            self._sweep()

    def _write(self, number: int, region: _Region, extent: _Extent, w: _Waiting, before: int, out: Outgoing) -> None:
        """Invalidate every other copy; where the writer has none, the owner hands its copy over."""
        node, generation, start, stop, op, ahead = w
        _, owner, copies = self.holdings[before]
        supplier = 0 if copies >> node & 1 else owner
        sharers = copies & ~(1 << node) & ~(1 << supplier if supplier else 0)
        count, acks = stop - start, sharers.bit_count()
        after = self.holdings.number(Holding(EXCLUSIVE, node, 1 << node))
        transaction = _Transaction(node, generation, start, start, stop, op, before, after, supplier, sharers)
        if supplier or sharers:
            extent.active.append(transaction)
        else:  # the only sharer: nobody else has to do anything
            self._commit(region, transaction)
        if supplier:
            out.append((supplier, Fetch(number, generation, start, count, node, acks, False, ahead)))
        else:
            out.append((node, Grant(number, generation, start, count, acks, False)))
        for sharer in nodes_in(sharers):
            out.append((sharer, Invalidate(number, generation, start, count, node)))

    def _evict(self, number: int, extent: _Extent, w: _Waiting, before: int, out: Outgoing) -> None:
        """A copy may go while another stays. The requester drops it and says Done: only then may a write begin."""
        holding = self.holdings[before]
        count = w.stop - w.start
        if holding.state == SHARED and holding.copies >> w.node & 1 and holding.copies != 1 << w.node:
            after = self.holdings.number(without(holding, w.node))
            extent.active.append(
                _Transaction(w.node, w.generation, w.start, w.start, w.stop, w.op, before, after, 0, 0)
            )
            out.append((w.node, Grant(number, w.generation, w.start, count, 0, False)))
        else:
            out.append((w.node, Refuse(number, w.generation, w.start, count)))

    def _sweep(self) -> None:
        live = {t.before for t in self._active()} | {t.after for t in self._active()}
        for region in self._regions.values():
            live.update(holding for _, _, holding in region.table.touched_runs())
        self.holdings.sweep(live)
        self._sweep_at = max(_SWEEP_AT, 2 * len(self.holdings))

    def _active(self) -> list[_Transaction]:
        return [t for region in self._regions.values() for extent in region.extents.values() for t in extent.active]

    # -- questions ---------------------------------------------------------------------------------------

    def counts(self, region: int) -> dict[str, int]:
        """Touched pages of a region by state."""
        counts = self._regions[region].counts
        return {STATE_NAMES[state]: counts[state] for state in (SHARED, EXCLUSIVE, LOST)}

    def owners(self, region: int, start: int, stop: int) -> list[tuple[int, int, int]]:
        """``(start, stop, owner)`` for runs of pages; owner 0 where nobody has a copy."""
        runs = []
        for a, b, number in self._regions[region].table.runs(start, stop):
            holding = self.holdings[number]
            runs.append((a, b, holding.owner if holding.copies else 0))
        return runs
