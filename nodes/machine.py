"""The page protocol as one node sees it: a pure function of (state, event) that returns effects.

A page is ABSENT, SHARED (readable) or EXCLUSIVE (writable) here, and perhaps asked for. Effects say what the shell has
to do with memory and sockets, in order. Threads that wait appear as opaque *waiters*; page data as an opaque *payload*.

Two rules carry the protocol:

- **Generation.** Every request has a number of its own and every answer repeats it. An answer whose number is not that
  of a request still open here is late: it is dropped and counted.
- **Hold** (Mirage's delta: Fleisch, Popek, SOSP 1989). A page that came for a waiting thread stays until the shell says
  that the thread has had its time (:meth:`NodeMachine.hold_expired`); what would take it away waits until then.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from dsm.errors import ProtocolError
from dsm.geometry import pages_per_extent, split
from dsm.pagetable import PageTable
from dsm.wire import (
    DIRECTORY,
    EVICT,
    READ,
    WRITE,
    Ack,
    Data,
    Done,
    Fetch,
    GaveUp,
    Grant,
    Hurry,
    Invalidate,
    Lost,
    MemberLeft,
    Message,
    Orphan,
    Refuse,
    Request,
)

ABSENT: Final = 0
SHARED: Final = 1
EXCLUSIVE: Final = 2
_HELD: Final = 3  # mask of the three above
_ASKED: Final = (4, 8, 16)  # by operation: READ, WRITE, EVICT
_PENDING: Final = 4 | 8 | 16
LOST: Final = 32

Waiter = Any
"""Whoever waits for a page, one for all threads of an application: the shell's business. Compared by identity only."""


class Install(NamedTuple):
    """Make pages present here: ``payload``, or zeros if it is None; writable (``write``) or read-only. ``target`` is
    the waiter into whose address space they should be mapped, if any."""

    region: int
    start: int
    count: int
    payload: Any
    write: bool
    target: Waiter


class Resume(NamedTuple):
    """Let waiters of a page retry; ``write``: the page is writable here, so lift its protection for them."""

    region: int
    page: int
    write: bool
    waiters: list[Waiter]


class Unprotect(NamedTuple):
    """Lift the protection of writable pages for a waiter that asked for all of them."""

    region: int
    start: int
    count: int
    waiter: Waiter


class Supply(NamedTuple):
    """Send pages to another node, as Data with these fields. ``protect``: they are writable here and must be
    protected first; ``keep``: they stay, read-only, else they are dropped; ``ahead``: nobody waits for them."""

    fetch: Fetch
    protect: bool


class Expedite(NamedTuple):
    """Send this page before what else is to be sent, if it is still to be sent."""

    hurry: Hurry


class Drop(NamedTuple):
    """Take read-only pages out of every local application."""

    region: int
    start: int
    count: int


class Send(NamedTuple):
    """Send a message: to the directory (``to`` 0) or to a node."""

    to: int
    message: Message


class Hold(NamedTuple):
    """Tell :meth:`NodeMachine.hold_expired` after the hold time."""

    region: int
    page: int


class Finished(NamedTuple):
    """All pages of an explicit prefetch have been here."""

    waiter: Waiter


class Poison(NamedTuple):
    """The data of a page is gone for good: whoever touches it must be told so, and never sees a value."""

    region: int
    page: int
    node: str
    waiters: list[Waiter]


Effect = Install | Resume | Unprotect | Supply | Expedite | Drop | Send | Hold | Finished | Poison


class _Part:
    """What is owed to one transaction of a request: the directory cuts a request into runs of pages held alike."""

    __slots__ = ("acked", "acks", "closed", "count", "owed")

    def __init__(self) -> None:
        self.count = 0
        self.owed: int | None = None  # pages still to come as data; None until a Grant or Data tells
        self.acks = 0  # acknowledgements owed, known when ``owed`` is
        self.acked = 0  # bit mask of the nodes that have acknowledged: one counts once
        self.closed: set[int] = set()  # pages that were closed before the others had come

    @property
    def alone(self) -> bool:
        """Has nobody else a copy of these pages any more?"""
        return self.acked.bit_count() >= self.acks

    @property
    def settled(self) -> bool:
        return self.owed == 0 and self.alone


class _Ask:
    """An open request; ``left`` of its pages are not settled; ``target`` asked for them, or will touch them next."""

    __slots__ = ("ahead", "left", "op", "over", "parts", "start", "stop", "target")

    def __init__(self, start: int, stop: int, op: int, ahead: bool, target: Waiter) -> None:
        self.start = start
        self.stop = stop
        self.op = op
        self.ahead = ahead
        self.left = stop - start
        self.target = target
        self.parts: dict[int, _Part] = {}  # by first page
        self.over: set[int] = set()  # first pages of the parts that are over

    def part(self, first: int) -> _Part:
        part = self.parts.get(first)
        if part is None:
            part = self.parts[first] = _Part()
        return part

    def part_with(self, page: int) -> tuple[int, _Part]:
        """The part, and its first page, that a page lies in; a new one that begins there if nothing has come of it."""
        for first, part in self.parts.items():
            if first <= page < first + part.count:
                return first, part
        return page, self.part(page)

    def close(self, first: int) -> None:
        """Nothing is owed to this part any more."""
        self.parts.pop(first, None)
        self.over.add(first)


class _Prefetch:
    """An explicit prefetch; the pages ``owed`` have not been here yet."""

    __slots__ = ("owed", "waiter", "write")

    def __init__(self, owed: set[int], write: bool, waiter: Waiter) -> None:
        self.owed = owed
        self.write = write
        self.waiter = waiter


class _Region:
    __slots__ = ("asks", "deferred", "held", "lost", "number", "pages", "per_extent", "prefetches", "table", "waiters")

    def __init__(self, number: int, pages: int, per_extent: int) -> None:
        self.number = number
        self.pages = pages
        self.per_extent = per_extent
        self.table = PageTable("B")
        self.asks: dict[int, _Ask] = {}  # by generation
        self.waiters: dict[int, list[Waiter]] = {}  # by page
        self.held: dict[int, int] = {}  # how many holds run, by page
        self.deferred: list[Fetch | Invalidate | Hurry] = []
        self.prefetches: list[_Prefetch] = []
        self.lost: dict[int, str] = {}  # name of the lost node, by page


class NodeMachine:
    """The pages of all regions on this node, ``me``.

    Its doors are :meth:`step` for messages and one method for each local event; each returns the effects in the order
    in which they must happen.
    """

    def __init__(self, me: int) -> None:
        self.me = me
        self.deferred = 0  # messages that wait for a hold to expire
        self.late = 0  # answers to requests that are over, and messages about regions that are gone
        self._regions: dict[int, _Region] = {}
        self._generation = 0
        self._handlers: dict[type[Any], Any] = {
            Grant: self._grant,
            Ack: self._ack,
            Fetch: self._fetch,
            Invalidate: self._invalidate,
            Hurry: self._expedite,
            Refuse: self._refuse,
            Orphan: self._orphan,
            Lost: self._lost,
        }

    def add_region(self, region: int, pages: int, page_size: int) -> None:
        """Begin to keep pages of a region; it costs nothing until they are touched."""
        self._regions[region] = _Region(region, pages, pages_per_extent(page_size))

    def remove_region(self, region: int) -> None:
        """Forget a region; what still arrives for it is late."""
        gone = self._regions.pop(region, None)
        if gone is not None:
            self.deferred -= len(gone.deferred)

    def counts(self, region: int) -> dict[str, int]:
        """Pages of a region that are here, by state."""
        found = {"shared": 0, "exclusive": 0}
        for start, stop, state in self._regions[region].table.touched_runs():
            if state & _HELD:
                found["exclusive" if state & EXCLUSIVE else "shared"] += stop - start
        return found

    # -- local events ------------------------------------------------------------------------------------

    def fault(self, number: int, page: int, write: bool, waiter: Waiter) -> list[Effect]:
        """A thread of a local application touched a page that it may not touch yet."""
        region = self._regions[number]
        state = region.table.get(page)
        if state & EXCLUSIVE or (state & SHARED and not write):  # it came while the event waited, or a neighbour has it
            return [Resume(number, page, write, [waiter])]
        if state & LOST:
            return [Poison(number, page, region.lost[page], [waiter])]
        effects: list[Effect] = []
        if state == SHARED | _ASKED[READ]:
            effects = self._close_early(region, page)
            state = region.table.get(page)  # a prefetch that waited may have asked for it at once
        waiters = region.waiters.get(page)
        if waiters is None:
            region.waiters[page] = [waiter]
        elif not any(waiter is other for other in waiters):
            waiters.append(waiter)
        if state & _PENDING:
            return effects if waiters or state & _HELD else self._hurry(region, page)
        return [*effects, self._ask(region, page, page + 1, state, WRITE if write else READ, False, waiter)]

    def _hurry(self, region: _Region, page: int) -> list[Effect]:
        """A thread begins to wait for a page that is on its way among others: it must not wait for those."""
        generation, ask = self._open_ask(region, page)
        if ask.ahead or ask.stop - ask.start > 1:
            return [Send(DIRECTORY, Hurry(region.number, generation, page, self.me))]
        return []

    def _open_ask(self, region: _Region, page: int) -> tuple[int, _Ask]:
        """The open request for a page that is asked for: of those with the page in them the last."""
        return next((g, ask) for g, ask in reversed(region.asks.items()) if ask.start <= page < ask.stop)

    def read_ahead(self, number: int, start: int, stop: int, write: bool, target: Waiter) -> list[Effect]:
        """Ask for pages that nobody waits for yet; those here or asked for already are left out."""
        region = self._regions[number]
        return [
            self._ask(region, a, b, state, WRITE if write else READ, True, target)
            for first, last in split(start, min(stop, region.pages), region.per_extent)
            for a, b, state in region.table.runs(first, last)
            if state == ABSENT
        ]

    def prefetch(self, number: int, start: int, stop: int, write: bool, waiter: Waiter) -> list[Effect]:
        """Bring ``[start, stop)``, pages of one extent, here; Finished comes when all of them have been here."""
        region = self._regions[number]
        prefetch = _Prefetch(set(range(start, stop)), write, waiter)
        effects: list[Effect] = []
        self._go_on(region, prefetch, start, stop, effects)
        if prefetch.owed:
            region.prefetches.append(prefetch)
        return effects

    def _go_on(self, region: _Region, prefetch: _Prefetch, start: int, stop: int, effects: list[Effect]) -> None:
        """Take note of what a prefetch has got of ``[start, stop)``, ask for what nobody asks for, and tell the end."""
        op, wanted = (WRITE, EXCLUSIVE) if prefetch.write else (READ, SHARED)
        for a, b, state in region.table.runs(start, stop):
            if state & LOST or state & _HELD >= wanted:
                prefetch.owed.difference_update(range(a, b))
            elif not state & _PENDING:
                effects += [
                    self._ask(region, x, y, state, op, False, prefetch.waiter) for x, y in _runs(prefetch.owed, a, b)
                ]
        if not prefetch.owed:
            effects.append(Finished(prefetch.waiter))

    def evict(self, number: int, start: int, stop: int) -> list[Effect]:
        """Give clean copies back. A page stays if it is exclusive, asked for, or the last copy."""
        region = self._regions[number]
        return [
            self._ask(region, a, b, state, EVICT, False, None)
            for first, last in split(start, stop, region.per_extent)
            for a, b, state in region.table.runs(first, last)
            if state == SHARED
        ]

    def hold_expired(self, number: int, page: int) -> list[Effect]:
        """The thread for which a page came has had its time: do what was put off."""
        region = self._regions.get(number)
        if region is None or page not in region.held:
            return []
        region.held[page] -= 1
        if region.held[page]:
            return []
        del region.held[page]
        if not region.deferred:
            return []
        deferred, region.deferred = region.deferred, []
        self.deferred -= len(deferred)
        return [effect for message in deferred for effect in self.step(message)]

    def forget_waiter(self, number: int, waiter: Waiter) -> None:
        """An application has detached: it waits for nothing any more."""
        region = self._regions.get(number)
        if region is None:
            return
        for page, waiters in list(region.waiters.items()):
            left = [other for other in waiters if other is not waiter]
            if left:
                region.waiters[page] = left
            else:
                del region.waiters[page]
        region.prefetches = [prefetch for prefetch in region.prefetches if prefetch.waiter is not waiter]
        for ask in region.asks.values():
            if ask.target is waiter:
                ask.target = None

    def _ask(self, region: _Region, start: int, stop: int, state: int, op: int, ahead: bool, target: Waiter) -> Send:
        self._generation = generation = (self._generation + 1) & 0xFFFFFFFF
        region.asks[generation] = _Ask(start, stop, op, ahead, target)
        _set(region, start, stop, state | _ASKED[op])
        return Send(DIRECTORY, Request(region.number, generation, start, stop - start, op, ahead))

    # -- messages ----------------------------------------------------------------------------------------

    def step(self, message: Message) -> list[Effect]:
        """What to do after a message of the directory or an acknowledgement of a peer."""
        if isinstance(message, MemberLeft):
            return self._member_left()
        region = self._regions.get(message[0])
        if region is None:
            self.late += 1
            return []
        effects: list[Effect] = self._handlers[type(message)](region, message)
        return effects

    def data(self, m: Data, payload: Any) -> list[Effect]:
        """Page data has come from a peer."""
        region = self._regions.get(m.region)
        ask = region.asks.get(m.generation) if region is not None else None
        stop = m.start + m.count
        if region is None or ask is None or not self._fits(region, ask, m):
            self.late += 1
            return []
        if m.count == m.total and not m.acks:  # the common case: this one message is the whole transaction
            write = ask.op == WRITE
            effects: list[Effect] = [Install(m.region, m.start, m.count, payload, write, ask.target)]
            return self._complete(region, ask, m.generation, m.start, stop, effects, True)
        part = ask.part(m.first)
        if part.owed is None:
            part.count, part.owed, part.acks = m.total, m.total, m.acks
        part.owed -= m.count
        write = ask.op == WRITE and part.alone
        effects = [Install(m.region, m.start, m.count, payload, write, ask.target)]
        # Who only waits for these pages goes on, whatever the others wait for; but all of them are closed by one Done.
        _set(region, m.start, stop, (EXCLUSIVE if write else SHARED) | _ASKED[ask.op])
        self._resume(region, m.start, stop, write, effects)
        if part.settled:
            self._close_part(region, ask, m.generation, m.first, part, effects)
        return effects

    def _fits(self, region: _Region, ask: _Ask, m: Data) -> bool:
        """Is this data for pages that this request still waits for?"""
        stop = m.start + m.count
        if ask.op == EVICT or not m.count or m.first in ask.over:
            return False
        if m.first < ask.start or m.first + m.total > ask.stop:
            return False
        if m.start < m.first or stop > m.first + m.total:
            return False
        if m.count == 1:
            return region.table.get(m.start) == _ASKED[ask.op]
        return all(state == _ASKED[ask.op] for _, _, state in region.table.runs(m.start, stop))

    def _grant(self, region: _Region, m: Grant) -> list[Effect]:
        ask = self._asked(region, m)
        if ask is None:
            return []
        stop = m.start + m.count
        if ask.op == EVICT:
            effects: list[Effect] = [Drop(m.region, m.start, m.count)]
            _set(region, m.start, stop, ABSENT)
            self._resume(region, m.start, stop, False, effects)
            ask.close(m.start)
            return self._over(region, ask, m.generation, m.start, stop, effects, True)
        if m.zero:
            effects = [Install(m.region, m.start, m.count, None, ask.op == WRITE, ask.target)]
            ask.close(m.start)
            return self._complete(region, ask, m.generation, m.start, stop, effects, False)
        if any(not state & _HELD for _, _, state in region.table.runs(m.start, stop)):
            raise ProtocolError(f"granted without data what is not here: {m}")
        if not m.acks:
            effects = _unprotect(ask, m.region, m.start, stop)
            ask.close(m.start)
            return self._complete(region, ask, m.generation, m.start, stop, effects, False)
        part = ask.part(m.start)
        part.count, part.owed, part.acks = m.count, 0, m.acks
        return self._settle(region, ask, m.generation, m.start, part)

    def _ack(self, region: _Region, m: Ack) -> list[Effect]:
        ask = self._asked(region, m)
        if ask is None or ask.op != WRITE or not ask.start <= m.start < ask.stop:
            return []
        part = ask.part(m.start)  # it may come before the grant that says how many to expect
        part.acked |= 1 << m.sender
        return self._settle(region, ask, m.generation, m.start, part)

    def _asked(self, region: _Region, m: Grant | Ack | Refuse | Lost) -> _Ask | None:
        """The open request, and the open part of it, that a message answers: the rule of the generation."""
        ask = region.asks.get(m.generation)
        if ask is None or m.start in ask.over:
            self.late += 1
            return None
        return ask

    def _settle(self, region: _Region, ask: _Ask, generation: int, first: int, part: _Part) -> list[Effect]:
        """If the last acknowledgement has come: the pages of a write that are here are ours alone."""
        effects: list[Effect] = []
        if part.owed is None or not part.alone:
            return effects
        for start, stop, state in region.table.runs(first, first + part.count):
            if state == SHARED | _ASKED[WRITE]:
                _set(region, start, stop, EXCLUSIVE | _ASKED[WRITE])
                effects += _unprotect(ask, region.number, start, stop)
                self._resume(region, start, stop, True, effects)
        if part.settled:
            self._close_part(region, ask, generation, first, part, effects)
        return effects

    def _close_part(
        self, region: _Region, ask: _Ask, generation: int, first: int, part: _Part, effects: list[Effect]
    ) -> None:
        """Everything has come that was not given up."""
        ask.close(first)
        self._close_arrived(region, ask, generation, first, part, effects)

    def _close_arrived(
        self, region: _Region, ask: _Ask, generation: int, first: int, part: _Part, effects: list[Effect]
    ) -> None:
        """Tell the directory of the pages of a part that are here."""
        held = SHARED if ask.op == READ else EXCLUSIVE
        for start, stop, state in region.table.runs(first, first + part.count):
            if state == held | _ASKED[ask.op]:
                for a, b in (
                    _runs(set(range(start, stop)) - part.closed, start, stop) if part.closed else [(start, stop)]
                ):
                    _set(region, a, b, held)
                    self._over(region, ask, generation, a, b, effects, True)

    def _close_early(self, region: _Region, page: int) -> list[Effect]:
        """A thread stores to a page that has come, and could ask for it anew if it were not for others on their way."""
        effects: list[Effect] = []
        generation, ask = self._open_ask(region, page)
        first, part = ask.part_with(page)
        arrived = [run for run in region.table.runs(first, first + part.count) if run[2] == SHARED | _ASKED[READ]]
        self._close_arrived(region, ask, generation, first, part, effects)
        part.closed.update(page for start, stop, _ in arrived for page in range(start, stop))
        return effects

    def _complete(
        self, region: _Region, ask: _Ask, generation: int, start: int, stop: int, effects: list[Effect], owes_done: bool
    ) -> list[Effect]:
        """Pages ``[start, stop)`` are ours in the way that was asked for."""
        write = ask.op == WRITE
        _set(region, start, stop, EXCLUSIVE if write else SHARED)
        self._resume(region, start, stop, write, effects)
        return self._over(region, ask, generation, start, stop, effects, owes_done)

    def _over(
        self, region: _Region, ask: _Ask, generation: int, start: int, stop: int, effects: list[Effect], owes_done: bool
    ) -> list[Effect]:
        """Some pages of a request are over, one way or the other."""
        if owes_done:
            effects.append(Send(DIRECTORY, Done(region.number, generation, start, stop - start)))
        ask.left -= stop - start
        if not ask.left:
            del region.asks[generation]
        if region.prefetches:
            self._count_prefetched(region, start, stop, effects)
        return effects

    def _resume(self, region: _Region, start: int, stop: int, write: bool, effects: list[Effect]) -> None:
        """Wake who waits for these pages, and hold the pages for them."""
        if not region.waiters:
            return
        if stop - start == 1:
            pages = [start] if start in region.waiters else []
        else:
            pages = sorted(page for page in region.waiters if start <= page < stop)
        for page in pages:
            effects.append(Resume(region.number, page, write, region.waiters.pop(page)))
            effects.append(Hold(region.number, page))
            region.held[page] = region.held.get(page, 0) + 1

    def _count_prefetched(self, region: _Region, start: int, stop: int, effects: list[Effect]) -> None:
        for prefetch in region.prefetches:
            if not prefetch.owed.isdisjoint(range(start, stop)):
                self._go_on(region, prefetch, start, stop, effects)
        region.prefetches = [prefetch for prefetch in region.prefetches if prefetch.owed]

    def _refuse(self, region: _Region, m: Refuse) -> list[Effect]:
        ask = self._asked(region, m)
        if ask is None:
            return []
        stop = m.start + m.count
        effects: list[Effect] = []
        ask.close(m.start)
        for a, b, state in region.table.runs(m.start, stop):
            _set(region, a, b, state & ~_PENDING)
        self._resume(region, m.start, stop, False, effects)
        return self._over(region, ask, m.generation, m.start, stop, effects, False)

    def _orphan(self, region: _Region, m: Orphan) -> list[Effect]:
        """The supplier has gone: give up the pages that have not come. Those that have are ours, or will be."""
        ask = region.asks.get(m.generation)
        if ask is None:  # all had come: Done is on its way
            self.late += 1
            return []
        effects: list[Effect] = []
        first, part = ask.part_with(m.start)
        missing = [run for run in region.table.runs(m.start, m.start + m.count) if run[2] == _ASKED[ask.op]]
        if part.owed is not None:
            part.owed -= sum(stop - start for start, stop, _ in missing)
        if part.owed is None or part.settled:
            self._close_part(region, ask, m.generation, first, part, effects)
        for start, stop, _ in missing:
            _set(region, start, stop, ABSENT)
            effects.append(Send(DIRECTORY, GaveUp(m.region, m.generation, start, stop - start)))  # before asking again
            self._resume(region, start, stop, False, effects)
            self._over(region, ask, m.generation, start, stop, effects, False)
        return effects

    def _lost(self, region: _Region, m: Lost) -> list[Effect]:
        ask = self._asked(region, m)
        if ask is None:
            return []
        stop = m.start + m.count
        effects: list[Effect] = [Drop(m.region, m.start, m.count)]  # POISON wants holes; there should be no other
        _set(region, m.start, stop, LOST)
        for page in range(m.start, stop):
            region.lost[page] = m.node
            if page in region.waiters:
                effects.append(Poison(m.region, page, m.node, region.waiters.pop(page)))
        ask.close(m.start)
        return self._over(region, ask, m.generation, m.start, stop, effects, False)

    # -- what others want of us ----------------------------------------------------------------------------

    def _expedite(self, region: _Region, m: Hurry) -> list[Effect]:
        if any(
            type(d) is Fetch and d.generation == m.generation and d.requester == m.requester for d in region.deferred
        ):
            region.deferred.append(m)  # what it is about waits for a hold
            self.deferred += 1
            return []
        return [Expedite(m)]

    def _is_held(self, region: _Region, m: Fetch | Invalidate) -> bool:
        """Did one of these pages come for a thread that may not have retried yet? Then the message waits."""
        if not region.held:
            return False
        if m.count == 1:
            held = m.start in region.held
        else:
            held = any(m.start <= page < m.start + m.count for page in region.held)
        if held:
            region.deferred.append(m)
            self.deferred += 1
        return held

    def _member_left(self) -> list[Effect]:
        """Do at once whatever was put off: the directory goes on without the node that has gone, and what that changes
        may be about the same pages."""
        effects: list[Effect] = []
        for region in self._regions.values():
            due, region.deferred = region.deferred, []
            for m in due:
                if isinstance(m, Hurry):
                    effects.append(Expedite(m))
                else:
                    effects += self._supply(region, m) if isinstance(m, Fetch) else self._give_up(region, m)
        self.deferred = 0
        return effects

    def _fetch(self, region: _Region, m: Fetch) -> list[Effect]:
        return [] if self._is_held(region, m) else self._supply(region, m)

    def _invalidate(self, region: _Region, m: Invalidate) -> list[Effect]:
        return [] if self._is_held(region, m) else self._give_up(region, m)

    def _supply(self, region: _Region, m: Fetch) -> list[Effect]:
        protect = False
        for a, b, state in region.table.runs(m.start, m.start + m.count):
            if not state & _HELD:
                raise ProtocolError(f"asked to send pages that are not here: {m}, state {state} in [{a}, {b})")
            protect |= bool(state & EXCLUSIVE)
            _set(region, a, b, state & ~_HELD | (SHARED if m.keep else ABSENT))
        return [Supply(m, protect)]

    def _give_up(self, region: _Region, m: Invalidate) -> list[Effect]:
        for a, b, state in region.table.runs(m.start, m.start + m.count):
            if state & _HELD != SHARED:
                raise ProtocolError(f"asked to drop pages that are not shared here: {m}, state {state} in [{a}, {b})")
            _set(region, a, b, state & ~_HELD)
        return [
            Drop(m.region, m.start, m.count),
            Send(m.requester, Ack(m.region, m.generation, m.start, self.me)),
        ]


def _set(region: _Region, start: int, stop: int, state: int) -> None:
    if stop - start == 1:
        region.table.set(start, state)
    else:
        region.table.set_run(start, stop, state)


def _runs(pages: set[int], start: int, stop: int) -> list[tuple[int, int]]:
    """The members of ``pages`` in ``[start, stop)`` as runs."""
    runs: list[tuple[int, int]] = []
    for page in sorted(pages.intersection(range(start, stop))):
        if runs and runs[-1][1] == page:
            runs[-1] = (runs[-1][0], page + 1)
        else:
            runs.append((page, page + 1))
    return runs


def _unprotect(ask: _Ask, region: int, start: int, stop: int) -> list[Effect]:
    """Spare whoever asked for a run of pages, which are here read-only, a fault for each."""
    if ask.op != WRITE or ask.target is None or stop - start == 1:
        return []
    return [Unprotect(region, start, stop - start, ask.target)]
