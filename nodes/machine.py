"""The page protocol as one node sees it: a pure function of (state, event) that returns effects.

What a page can be, and what may happen to it, is the table in :mod:`nodes.pages`; every change of a page goes through
:meth:`NodeMachine._move`, which holds it to that table and adds it to the story. Effects (:mod:`nodes.effects`) say
what the shell has to do with memory and sockets, in order. Threads that wait appear as opaque *waiters*; page data as
an opaque *payload*.

Two rules carry the protocol:

- **Generation.** Every request has a number of its own and every answer repeats it. An answer whose number is not that
  of a request still open here is late: it is dropped and counted.
- **Hold** (Mirage's delta: Fleisch, Popek, SOSP 1989). A page that came for a waiting thread stays until the shell says
  that the thread has had its time (:meth:`NodeMachine.hold_expired`); what would take it away waits until then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dsm import wire
from dsm.errors import Violation
from dsm.geometry import joined, pages_per_extent, split
from dsm.pagetable import PageTable
from dsm.story import Story
from dsm.wire import (
    DIRECTORY,
    EVICT,
    FAULT,
    GUESS,
    PREFETCH,
    READ,
    RESET,
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
    Restore,
)
from nodes import pages
from nodes.effects import (
    Drop,
    Effect,
    Expedite,
    Finished,
    Hold,
    Install,
    Poison,
    Renew,
    Resume,
    Revive,
    Send,
    Supply,
    Unprotect,
    Waiter,
)
from nodes.pages import ABSENT, ASKED, EXCLUSIVE, HELD, LOST, PENDING, SHARED, Rule
from nodes.requests import Ask, Part, Prefetch


class _Region:
    __slots__ = ("asks", "deferred", "held", "lost", "number", "pages", "per_extent", "prefetches", "table", "waiters")

    def __init__(self, number: int, pages: int, per_extent: int) -> None:
        self.number = number
        self.pages = pages
        self.per_extent = per_extent
        self.table = PageTable("B")
        self.asks: dict[int, Ask] = {}  # by generation
        self.waiters: dict[int, list[Waiter]] = {}  # by page
        self.held: dict[int, int] = {}  # how many holds run, by page
        self.deferred: list[Fetch | Invalidate | Hurry] = []
        self.prefetches: list[Prefetch] = []
        self.lost: list[tuple[int, int, str]] = []  # runs of pages, and the name of the node that had them


class NodeMachine:
    """The pages of all regions on this node, ``me``.

    Its doors are :meth:`step` for messages and one method for each local event; each returns the effects in the order
    in which they must happen.

    ``number`` gives a request its generation, from that of the one before. Where nobody can guess it, only who is told
    of a request can answer it: the directory, who supplies its pages, and who drops them for it.
    """

    def __init__(self, me: int, story: Story | None = None, number: Callable[[int], int] | None = None) -> None:
        self.me = me
        self._number = number or _count
        self.story = story or Story()
        self._tell, self._now = self.story.add, self.story.now
        self.deferred = 0  # messages that wait for a hold to expire
        self.late = 0  # answers to requests that are over, and messages about regions that are gone
        self._cause: Any = "start"  # the event that is being handled, for the story
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
            Restore: self._restore,
            wire.Revive: self._revive,
        }
        self.messages = frozenset((*self._handlers, MemberLeft))
        """The kinds of message that :meth:`step` takes; asked for each message of the directory."""

    def add_region(self, region: int, count: int, page_size: int) -> None:
        """Begin to keep the ``count`` pages of a region; it costs nothing until they are touched."""
        self._regions[region] = _Region(region, count, pages_per_extent(page_size))

    def take_over(self, region: int, start: int, stop: int) -> None:
        """Pages are here that another agent has left."""
        self._cause = "another agent was killed"
        self._move(self._regions[region], start, stop, pages.TAKE_OVER)

    def remove_region(self, region: int) -> None:
        """Forget a region; what still arrives for it is late."""
        gone = self._regions.pop(region, None)
        if gone is not None:
            self.deferred -= len(gone.deferred)

    def counts(self, region: int) -> dict[str, int]:
        """Pages of a region that are here, by state."""
        found = {"shared": 0, "exclusive": 0}
        for start, stop, state in self._regions[region].table.touched_runs():
            if state & HELD:
                found["exclusive" if state & EXCLUSIVE else "shared"] += stop - start
        return found

    def holds(self, region: int, start: int, stop: int) -> bool:
        """Is any of these pages here?"""
        return any(state & HELD for _, _, state in self._regions[region].table.runs(start, stop))

    def story_of(self, region: int, page: int) -> dict[str, Any]:
        """What a page is, which requests are open for it, and its last transitions; for people."""
        known = self._regions[region]
        asks = [f"request {ask.generation}" for ask in known.asks.values() if ask.start <= page < ask.stop]
        held = ["held for a thread that it came for"] if page in known.held else []
        return {
            "state": pages.name(known.table.get(page)),
            "under way": asks + held,
            "story": self.story.of(region, page, pages.name),
        }

    def _move(self, region: _Region, start: int, stop: int, rule: Rule) -> None:
        """Something happens to pages ``[start, stop)``: the only place where their states change."""
        table, after = region.table, rule.next.get
        if stop - start == 1:
            before = table.get(start)
            state = after(before, -1)
            if state < 0:
                raise self._violated(region, start, before, rule)
            if state != before:
                table.set(start, state)
            self._tell((self._now(), region.number, start, stop, rule.name, before, state, self._cause))
            return
        for a, b, before in table.runs(start, stop):
            state = after(before, -1)
            if state < 0:
                raise self._violated(region, a, before, rule)
            table.set_run(a, b, state)
            self._tell((self._now(), region.number, a, b, rule.name, before, state, self._cause))

    def _violated(self, region: _Region, page: int, state: int, rule: Rule) -> Violation:
        text = f"page {page} of region {region.number} is {pages.name(state)}, and cannot be {rule.name!r}"
        return Violation(text, region.number, page)

    # -- local events ------------------------------------------------------------------------------------

    def fault(self, number: int, page: int, write: bool, waiter: Waiter) -> list[Effect]:
        """A thread of a local application touched a page that it may not touch yet."""
        region = self._regions[number]
        state = region.table.get(page)
        if state & EXCLUSIVE or (state & SHARED and not write):  # it came while the event waited, or a neighbour has it
            return [Resume(number, page, write, [waiter])]
        if state & LOST:
            node = next(node for start, stop, node in region.lost if start <= page < stop)
            return [Poison(number, page, node, [waiter])]
        self._cause = "a store" if write else "a load"
        effects: list[Effect] = []
        if state == SHARED | pages.READING:
            effects = self._close_early(region, page)
            state = region.table.get(page)  # a prefetch that waited may have asked for it at once
        waiters = region.waiters.get(page)
        if waiters is None:
            region.waiters[page] = [waiter]
        elif not any(waiter is other for other in waiters):
            waiters.append(waiter)
        if state & PENDING:
            return effects if waiters or state & HELD else self._hurry(region, page)
        return [*effects, self._ask(region, page, page + 1, WRITE if write else READ, FAULT, waiter)]

    def _hurry(self, region: _Region, page: int) -> list[Effect]:
        """A thread begins to wait for a page that is on its way among others: it must not wait for those, unless it is
        next anyway."""
        ask = self._open_ask(region, page)
        if ask.need == FAULT or any(part.next <= page < part.soon for part in ask.parts.values()):
            return []
        return [Send(DIRECTORY, Hurry(region.number, ask.generation, page, self.me))]

    def _open_ask(self, region: _Region, page: int) -> Ask:
        """The open request for a page that is asked for: of those with the page in them the last."""
        return next(ask for ask in reversed(region.asks.values()) if ask.start <= page < ask.stop)

    def read_ahead(
        self, number: int, start: int, stop: int, write: bool, target: Waiter, sure: bool = False
    ) -> list[Effect]:
        """Ask for pages that nobody waits for yet; those here or asked for already are left out.

        ``sure``: the guess has been right again and again, so others may lose pages to a writer. Until then a copy that
        is here already stays as it is: to write ahead would be to take the others away from whoever reads them.
        """
        region = self._regions[number]
        self._cause = "read-ahead"
        op = WRITE if write else READ
        lacking = (ABSENT, SHARED) if write and sure else (ABSENT,)
        return [
            self._ask(region, a, b, op, PREFETCH if write and sure else GUESS, target)
            for first, last in split(start, min(stop, region.pages), region.per_extent)
            for a, b, state in region.table.runs(first, last)
            if state in lacking
        ]

    def prefetch(
        self, number: int, start: int, stop: int, write: bool, waiter: Waiter, *, mapped: bool = True
    ) -> list[Effect]:
        """Bring ``[start, stop)``, pages of one extent, here; Finished comes when all of them have been here.
        ``mapped``: the waiter has an address space into which they should be mapped."""
        region = self._regions[number]
        self._cause = "a prefetch"
        prefetch = Prefetch(set(range(start, stop)), WRITE if write else READ, waiter, waiter if mapped else None)
        effects: list[Effect] = []
        self._go_on(region, prefetch, start, stop, effects)
        if prefetch.owed:
            region.prefetches.append(prefetch)
        return effects

    def _go_on(self, region: _Region, prefetch: Prefetch, start: int, stop: int, effects: list[Effect]) -> None:
        """Take note of what a prefetch has got of ``[start, stop)``, ask for what nobody asks for, and tell the end."""
        op = prefetch.op
        wanted = EXCLUSIVE if op == WRITE else SHARED
        for a, b, state in region.table.runs(start, stop):
            if state & LOST or state & HELD >= wanted:
                prefetch.owed.difference_update(range(a, b))
            elif not state & PENDING:
                effects += [
                    self._ask(region, x, y, op, PREFETCH, prefetch.target) for x, y in _runs(prefetch.owed, a, b)
                ]
        if not prefetch.owed:
            effects.append(Finished(prefetch.waiter))

    def reset(self, number: int, start: int, stop: int, waiter: Waiter) -> list[Effect]:
        """Let pages that are lost begin anew, as zeros; those of ``[start, stop)``, which is in one extent, that are
        not lost stay as they are. Finished comes when that is done."""
        region = self._regions[number]
        self._cause = "a reset"
        prefetch = Prefetch(set(range(start, stop)), RESET, waiter, None)
        effects = self._reset(region, start, stop, prefetch)
        if prefetch.owed:
            region.prefetches.append(prefetch)
        return effects

    def _reset(self, region: _Region, start: int, stop: int, reset: Prefetch) -> list[Effect]:
        """Ask for what is owed of ``[start, stop)`` and may be lost; the rest is not."""
        runs = [(a, b) for a, b, state in region.table.runs(start, stop) if state in (ABSENT, LOST)]
        asks = [run for a, b in runs for run in _runs(reset.owed, a, b)]
        reset.owed = {page for a, b in asks for page in range(a, b)}
        effects: list[Effect] = [self._ask(region, a, b, RESET, FAULT, None) for a, b in asks]
        return effects or [Finished(reset.waiter)]

    def lost(self, number: int, start: int, stop: int) -> tuple[int, int, str] | None:
        """The first run of pages in ``[start, stop)`` that this node knows to be lost, and with which node."""
        known = [(max(a, start), min(b, stop), node) for a, b, node in self._regions[number].lost]
        return next(iter(joined(run for run in known if run[0] < run[1])), None)

    def evict(self, number: int, start: int, stop: int) -> list[Effect]:
        """Give clean copies back. A page stays if it is exclusive, asked for, or the last copy."""
        region = self._regions[number]
        self._cause = "an eviction"
        return [
            self._ask(region, a, b, EVICT, FAULT, None)
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

    def _ask(self, region: _Region, start: int, stop: int, op: int, need: int, target: Waiter) -> Send:
        generation = self._number(self._generation)
        while generation in region.asks:
            generation = self._number(generation)
        self._generation = generation
        region.asks[generation] = Ask(generation, start, stop, op, need, target)
        self._move(region, start, stop, pages.ASK[op])
        return Send(DIRECTORY, Request(region.number, generation, start, stop - start, op, need))

    # -- a directory that begins again --------------------------------------------------------------------

    def put_nothing_off(self) -> None:
        """Forget what waits for a hold: who wanted it will ask again, and the page is still here."""
        for region in self._regions.values():
            region.deferred = []
        self.deferred = 0

    def report(self) -> list[tuple[int, bool, list[tuple[int, int]]]]:
        """Everything that is here: region, whether exclusive, and ``(first page, count)`` of each run. Of every region
        one entry at least. What was asked for is so no longer: it may come from an agent that was killed, and late."""
        self._forget_requests()
        told: list[tuple[int, bool, list[tuple[int, int]]]] = []
        for number, region in self._regions.items():
            runs: dict[bool, list[tuple[int, int]]] = {False: [], True: []}
            for start, stop, state in region.table.touched_runs():
                if state & HELD:
                    runs[state & EXCLUSIVE != 0].append((start, stop - start))
            told += [(number, exclusive, some) for exclusive, some in runs.items() if some or not exclusive]
        return told

    def _forget_requests(self) -> None:
        self._cause = "the directory begins again"
        for region in self._regions.values():
            for start, stop, state in list(region.table.touched_runs()):
                if state & PENDING:
                    self._move(region, start, stop, pages.FORGET)
            region.asks.clear()

    def ask_again(self) -> list[Effect]:
        """The directory knows of no request any more: forget them all, let who waits retry, and go on with explicit
        prefetches and resets."""
        effects: list[Effect] = []
        self._forget_requests()
        for region in self._regions.values():
            waiting, region.waiters = region.waiters, {}
            for page, waiters in waiting.items():
                write = region.table.get(page) & EXCLUSIVE != 0
                effects.append(Resume(region.number, page, write, waiters))
            prefetches, region.prefetches = region.prefetches, []
            for prefetch in prefetches:
                owed = prefetch.owed
                if prefetch.op == RESET:
                    effects += self._reset(region, min(owed), max(owed) + 1, prefetch)
                else:
                    self._go_on(region, prefetch, min(owed), max(owed) + 1, effects)
            region.prefetches += [prefetch for prefetch in prefetches if prefetch.owed]
        return effects

    # -- messages ----------------------------------------------------------------------------------------

    def step(self, message: Message) -> list[Effect]:
        """What to do after a message of the directory or an acknowledgement of a peer.

        Raises :class:`~dsm.errors.Violation` for what the directory should never have said.
        """
        self._cause = message
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
        if region is None or ask is None or not self._fits(region, ask, m):
            self.late += 1
            return []
        self._cause = m
        stop = m.start + m.count
        if m.count == m.total and not m.acks:  # the common case: this one message is the whole transaction
            effects: list[Effect] = [Install(m.region, m.start, m.count, payload, ask.op == WRITE, ask.target)]
            ask.close(m.first)
            return self._complete(region, ask, m.start, stop, pages.COMPLETE, effects, True)
        part = ask.part(m.first)
        if part.owed is None:
            part.count, part.owed, part.acks = m.total, m.total, m.acks
        elif (part.count, part.acks) != (m.total, m.acks):  # not what this supplier said before
            self.late += 1
            return []
        part.owed -= m.count
        if m.start == (part.next if part.next >= 0 else m.first):
            part.next, part.soon = stop, stop + m.count
        write = ask.op == WRITE and part.alone
        effects = [Install(m.region, m.start, m.count, payload, write, ask.target)]
        # Who only waits for these pages goes on, whatever the others wait for; but all of them are closed by one Done.
        self._move(region, m.start, stop, pages.ARRIVE_ALONE if write else pages.ARRIVE)
        self._resume(region, m.start, stop, write, effects)
        if part.settled:
            self._close_part(region, ask, m.first, part, effects)
        return effects

    def _fits(self, region: _Region, ask: Ask, m: Data) -> bool:
        """Is this data for pages that this request still waits for?"""
        stop = m.start + m.count
        if ask.op == EVICT or not m.count or m.first in ask.over:
            return False
        if m.first < ask.start or m.first + m.total > ask.stop:
            return False
        if m.start < m.first or stop > m.first + m.total:
            return False
        part = ask.parts.get(m.first)
        if part is not None and part.closed and not part.closed.isdisjoint(range(m.start, stop)):
            return False  # given up: if such a page is asked for, then by a later request
        if m.count == 1:
            return region.table.get(m.start) == ASKED[ask.op]
        return all(state == ASKED[ask.op] for _, _, state in region.table.runs(m.start, stop))

    def _grant(self, region: _Region, m: Grant) -> list[Effect]:
        ask = self._asked(region, m)
        if ask is None:
            return []
        stop = m.start + m.count
        if m.acks:
            part = ask.part(m.start)
            part.count, part.owed, part.acks = m.count, 0, m.acks
            if ask.op == WRITE:
                self._move(region, m.start, stop, pages.AWAIT)
            return self._settle(region, ask, m.start, part)
        ask.close(m.start)
        if ask.op == EVICT:
            return self._complete(region, ask, m.start, stop, pages.DROP, [Drop(m.region, m.start, m.count)], True)
        if ask.op == RESET:
            effects = self._begin(region, m.start, stop)
            return self._complete(region, ask, m.start, stop, pages.BEGIN, effects, False)
        if m.zero:
            effects = [Install(m.region, m.start, m.count, None, ask.op == WRITE, ask.target)]
            return self._complete(region, ask, m.start, stop, pages.COMPLETE, effects, False)
        effects = _unprotect(ask, m.region, m.start, stop)
        return self._complete(region, ask, m.start, stop, pages.UPGRADE, effects, False)

    def _begin(self, region: _Region, start: int, stop: int) -> list[Effect]:
        """Lost pages begin anew, here."""
        self._forget_lost(region, start, stop)
        count = stop - start
        return [Renew(region.number, start, count), Install(region.number, start, count, None, False, None)]

    def _ack(self, region: _Region, m: Ack) -> list[Effect]:
        ask = self._asked(region, m)
        if ask is None:
            return []
        part = ask.part(m.start) if ask.op in (WRITE, RESET) and ask.start <= m.start < ask.stop else None
        if part is None or part.acked >> m.sender & 1:  # nobody owes us this one
            self.late += 1
            return []
        # It may come before the grant that says how many to expect.
        part.acked |= 1 << m.sender
        return self._settle(region, ask, m.start, part)

    def _asked(self, region: _Region, m: Grant | Ack | Refuse | Lost) -> Ask | None:
        """The open request, and the open part of it, that a message answers: the rule of the generation."""
        ask = region.asks.get(m.generation)
        if ask is None or m.start in ask.over:
            self.late += 1
            return None
        return ask

    def _settle(self, region: _Region, ask: Ask, first: int, part: Part) -> list[Effect]:
        """If the last acknowledgement has come: the pages of a write that are here are ours alone."""
        effects: list[Effect] = []
        if part.owed is None or not part.alone:
            return effects
        for start, stop, state in region.table.runs(first, first + part.count):
            if ask.op == RESET:
                effects += self._begin(region, start, stop)
                self._move(region, start, stop, pages.BEGIN_ALONE)
                self._resume(region, start, stop, True, effects)
            elif state == SHARED | pages.WRITING:
                self._move(region, start, stop, pages.ALONE)
                effects += _unprotect(ask, region.number, start, stop)
                self._resume(region, start, stop, True, effects)
        if part.settled:
            self._close_part(region, ask, first, part, effects)
        return effects

    def _close_part(self, region: _Region, ask: Ask, first: int, part: Part, effects: list[Effect]) -> None:
        """Everything has come that was not given up."""
        ask.close(first)
        self._close_arrived(region, ask, first, part, effects)

    def _close_arrived(self, region: _Region, ask: Ask, first: int, part: Part, effects: list[Effect]) -> None:
        """Tell the directory of the pages of a part that are here."""
        arrived = ASKED[ask.op] | (SHARED if ask.op == READ else EXCLUSIVE)
        for start, stop, state in region.table.runs(first, first + part.count):
            if state == arrived:
                again = part.closed  # closed before: if such a page is asked for, then by a later request
                for a, b in _runs(set(range(start, stop)) - again, start, stop) if again else ((start, stop),):
                    self._move(region, a, b, pages.CLOSE)
                    self._finish(region, ask, a, b, effects, True)

    def _close_early(self, region: _Region, page: int) -> list[Effect]:
        """A thread stores to a page that has come, and could ask for it anew if it were not for others on their way."""
        effects: list[Effect] = []
        ask = self._open_ask(region, page)
        first, part = ask.part_with(page)
        arrived = [run for run in region.table.runs(first, first + part.count) if run[2] == SHARED | pages.READING]
        self._close_arrived(region, ask, first, part, effects)
        part.closed.update(page for start, stop, _ in arrived for page in range(start, stop))
        return effects

    def _complete(
        self, region: _Region, ask: Ask, start: int, stop: int, rule: Rule, effects: list[Effect], owes_done: bool
    ) -> list[Effect]:
        """All that was asked of the pages ``[start, stop)`` has happened at once."""
        self._move(region, start, stop, rule)
        self._resume(region, start, stop, ask.op in (WRITE, RESET), effects)
        return self._finish(region, ask, start, stop, effects, owes_done)

    def _finish(
        self, region: _Region, ask: Ask, start: int, stop: int, effects: list[Effect], owes_done: bool
    ) -> list[Effect]:
        """Some pages of a request are over, one way or the other."""
        if owes_done:
            effects.append(Send(DIRECTORY, Done(region.number, ask.generation, start, stop - start)))
        ask.left -= stop - start
        if ask.left < 0:
            raise Violation(f"more has come than was asked for in request {ask.generation}", region.number, start)
        if not ask.left:
            del region.asks[ask.generation]
        if region.prefetches:
            self._count_prefetched(region, start, stop, effects)
        return effects

    def _resume(self, region: _Region, start: int, stop: int, write: bool, effects: list[Effect]) -> None:
        """Wake who waits for these pages, and hold the pages for them."""
        if not region.waiters:
            return
        if stop - start == 1:
            found = [start] if start in region.waiters else []
        else:
            found = sorted(page for page in region.waiters if start <= page < stop)
        for page in found:
            effects.append(Resume(region.number, page, write, region.waiters.pop(page)))
            effects.append(Hold(region.number, page))
            region.held[page] = region.held.get(page, 0) + 1

    def _count_prefetched(self, region: _Region, start: int, stop: int, effects: list[Effect]) -> None:
        for prefetch in region.prefetches:
            if prefetch.owed.isdisjoint(range(start, stop)):
                continue
            if prefetch.op == RESET:  # whatever became of them
                prefetch.owed.difference_update(range(start, stop))
                if not prefetch.owed:
                    effects.append(Finished(prefetch.waiter))
            else:
                self._go_on(region, prefetch, start, stop, effects)
        region.prefetches = [prefetch for prefetch in region.prefetches if prefetch.owed]

    def _refuse(self, region: _Region, m: Refuse) -> list[Effect]:
        ask = self._asked(region, m)
        if ask is None:
            return []
        ask.close(m.start)
        stop = m.start + m.count
        effects: list[Effect] = []
        self._move(region, m.start, stop, pages.REFUSE)
        self._resume(region, m.start, stop, False, effects)
        return self._finish(region, ask, m.start, stop, effects, False)

    def _orphan(self, region: _Region, m: Orphan) -> list[Effect]:
        """The supplier has gone: give up the pages that have not come. Those that have are ours, or will be."""
        ask = region.asks.get(m.generation)
        if ask is None:  # all had come: Done is on its way
            self.late += 1
            return []
        effects: list[Effect] = []
        first, part = ask.part_with(m.start)
        missing = [run for run in region.table.runs(m.start, m.start + m.count) if run[2] == ASKED[ask.op]]
        if part.owed is not None:
            part.owed -= sum(stop - start for start, stop, _ in missing)
        if part.owed is None or part.settled:
            self._close_part(region, ask, first, part, effects)
        for start, stop, _ in missing:
            part.closed.update(range(start, stop))
            self._move(region, start, stop, pages.GIVE_UP)
            effects.append(Send(DIRECTORY, GaveUp(m.region, m.generation, start, stop - start)))  # before asking again
            self._resume(region, start, stop, False, effects)
            self._finish(region, ask, start, stop, effects, False)
        return effects

    def _lost(self, region: _Region, m: Lost) -> list[Effect]:
        ask = self._asked(region, m)
        if ask is None:
            return []
        ask.close(m.start)
        stop = m.start + m.count
        effects: list[Effect] = [Drop(m.region, m.start, m.count)]  # POISON wants holes; there should be no other
        self._move(region, m.start, stop, pages.LOSE)
        region.lost.append((m.start, stop, m.node))
        for page in sorted(page for page in region.waiters if m.start <= page < stop):
            effects.append(Poison(m.region, page, m.node, region.waiters.pop(page)))
        return self._finish(region, ask, m.start, stop, effects, False)

    def _restore(self, region: _Region, m: Restore) -> list[Effect]:
        """Pages that may be known here as lost begin anew on another node."""
        stop = m.start + m.count
        effects: list[Effect] = []
        for a, b, state in region.table.runs(m.start, stop):
            if state & LOST:
                self._move(region, a, b, pages.RESTORE)
                effects.append(Renew(m.region, a, b - a))
        self._forget_lost(region, m.start, stop)
        return [*effects, Send(m.requester, Ack(m.region, m.generation, m.start, self.me))]

    def _revive(self, region: _Region, m: wire.Revive) -> list[Effect]:
        """Who had taken these pages from here is lost."""
        effects: list[Effect] = []
        for a, b, state in region.table.runs(m.start, m.start + m.count):
            if not state & HELD:
                self._move(region, a, b, pages.REVIVE)
                effects.append(Revive(m.region, a, b - a))
        return effects

    @staticmethod
    def _forget_lost(region: _Region, start: int, stop: int) -> None:
        left = [((a, min(b, start), node), (max(a, stop), b, node)) for a, b, node in region.lost]
        region.lost = [run for pair in left for run in pair if run[0] < run[1]]

    # -- what others want of us ----------------------------------------------------------------------------

    def _expedite(self, region: _Region, m: Hurry) -> list[Effect]:
        whose = m.generation, m.requester
        if m not in region.deferred and any(
            type(d) is Fetch and (d.generation, d.requester) == whose for d in region.deferred
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
                self._cause = m
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
        stop = m.start + m.count
        if m.count == 1:
            writable = bool(region.table.get(m.start) & EXCLUSIVE)
        else:
            writable = any(state & EXCLUSIVE for _, _, state in region.table.runs(m.start, stop))
        self._move(region, m.start, stop, pages.SUPPLY if m.keep else pages.HAND_OVER)
        return [Supply(m, writable)]

    def _give_up(self, region: _Region, m: Invalidate) -> list[Effect]:
        self._move(region, m.start, m.start + m.count, pages.INVALIDATE)
        return [
            Drop(m.region, m.start, m.count),
            Send(m.requester, Ack(m.region, m.generation, m.start, self.me)),
        ]


def _count(generation: int) -> int:
    return (generation + 1) & 0xFFFFFFFF


def _runs(members: set[int], start: int, stop: int) -> list[tuple[int, int]]:
    """The members of a set of pages in ``[start, stop)`` as runs."""
    runs: list[tuple[int, int]] = []
    for page in sorted(members.intersection(range(start, stop))):
        if runs and runs[-1][1] == page:
            runs[-1] = (runs[-1][0], page + 1)
        else:
            runs.append((page, page + 1))
    return runs


def _unprotect(ask: Ask, region: int, start: int, stop: int) -> list[Effect]:
    """Spare whoever asked for a run of pages, which are here read-only, a fault for each."""
    if ask.op != WRITE or ask.target is None or stop - start == 1:
        return []
    return [Unprotect(region, start, stop - start, ask.target)]
