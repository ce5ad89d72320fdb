"""The pager of a node: faults of the local applications and messages about pages go in, the effects that the pure
machine decides on are carried out on memory and on links.

It knows no socket and no clock of its own: the loop around it (``agent.py``) passes these in, and a simulator passes
others. Order matters in one place only: effects are carried out in the order in which the machine returned them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

from dsm import constants, wire
from dsm.errors import Violation
from dsm.geometry import pages_per_frame, shard_of
from dsm.memory import Source
from dsm.story import Story
from dsm.uffd import FLAG_WP, FLAG_WRITE
from nodes import effects
from nodes.bulk import Bulk, Frame
from nodes.machine import NodeMachine
from nodes.memory import Blame, Mapping, RegionMemory
from nodes.retained import Retained


class Outlets(Protocol):
    """What the pager needs of :class:`nodes.links.Links`."""

    def send(self, to: int, message: wire.Message) -> None: ...
    def send_pages(self, to: int, message: wire.Message, payload: bytes, bulk: bool) -> None: ...
    def takes_bulk(self, node: int) -> bool: ...
    def member_left(self, node: int) -> None: ...
    def sent(self, node: int, bulk: bool) -> int: ...


class Pager:
    """The pages of all regions on node ``me``. ``now_ns`` is a clock that only goes forward.

    ``finished``: an explicit prefetch has got all pages it asked for. ``blame``: see :class:`RegionMemory`. ``tell``:
    say a line where the process of that number writes its errors. ``number``: see :class:`NodeMachine`. ``shards``: how
    many the directory has.

    ``holds`` and ``bulk`` are what is still to be done: :meth:`expire_holds` and :meth:`send_frame` do it.
    """

    def __init__(
        self,
        me: int,
        links: Outlets,
        now_ns: Callable[[], int],
        *,
        finished: Callable[[Mapping], None],
        blame: Blame,
        tell: Callable[[int, str], None],
        retained: Retained,
        story: Story | None = None,
        number: Callable[[int], int] | None = None,
        shards: int = 1,
    ) -> None:
        self.machine: Final = NodeMachine(me, story, number)
        self.regions: Final[dict[int, RegionMemory]] = {}
        self.holds: Final[deque[tuple[int, int, int]]] = deque()  # when over (ns), region, page
        self.bulk: Final = Bulk()
        self.bulk_waits = False  # for a peer to take more
        self._retained: Final = retained
        self._links = links
        self._shards = shards
        self._now_ns = now_ns
        self._blame = blame
        self._tell = tell
        self._finished = finished
        self._over: list[Any] = []  # waiters whose prefetch has just come
        self._put_off = False  # faults are not to be served now
        self._frozen: list[tuple[Mapping, list[tuple[int, int]]]] | None = None  # they are to be served later
        self._served: Mapping | None = None  # whose threads the last Install has woken
        self._effects: dict[type[Any], Callable[[Any], None]] = {
            effects.Install: self._install,
            effects.Resume: self._resume,
            effects.Unprotect: self._unprotect,
            effects.Supply: self._supply,
            effects.Expedite: self._expedite,
            effects.Drop: self._drop,
            effects.Send: self._send,
            effects.Hold: self._hold,
            effects.Finished: lambda e: self._over.append(e.waiter),
            effects.Poison: self._poison,
            effects.Revive: self._revive,
            effects.Renew: lambda e: self.regions[e.region].renew(e.start, e.count),
        }

    # -- regions and members -----------------------------------------------------------------------------

    def add_region(self, region: RegionMemory) -> None:
        """A region is attached on this node for the first time."""
        self.regions[region.number] = region
        self.machine.add_region(region.number, region.pages, region.page_size)

    def take_over(self, region: RegionMemory) -> None:
        """A region with what is in it, of an agent that was killed."""
        self.add_region(region)
        for start, stop in region.take_over():
            self.machine.take_over(region.number, start, stop)

    def destroy(self, number: int) -> None:
        """A region is gone for everybody."""
        region = self.regions.pop(number, None)
        self.machine.remove_region(number)
        self.bulk.cancel(region=number)
        if region is not None:
            region.close()

    def drop_mapping(self, mapping: Mapping) -> None:
        """An application has detached."""
        region = mapping.region
        region.mappings.remove(mapping)
        mapping.prefetch = None  # it knows its connection, which knows the mapping: nobody collects cycles here
        mapping.uffd.close()
        self.machine.forget_waiter(region.number, mapping)

    def member_left(self, m: wire.MemberLeft) -> None:
        """What was on its way to a node that has gone goes nowhere; what it was to take away is taken away."""
        self._links.member_left(m.node)
        self.run(self.machine.step(m))
        for frame in self.bulk.cancel(requester=m.node):
            if not frame.fetch.keep and not self._is_void(frame):
                self.regions[frame.fetch.region].give_up(frame.start, frame.count)

    def suspend(self) -> None:
        """No page may be read or written here until :meth:`resume`; nor may the caller have anything done with one."""
        self._put_off = True
        for region in self.regions.values():
            region.withhold()

    def resume(self) -> None:
        """Go on where :meth:`suspend` has stopped."""
        self._put_off = self._frozen is not None
        for region in self.regions.values():
            region.give_back()

    def freeze(self) -> None:
        """There is no directory to ask: faults are served at :meth:`thaw`."""
        self._put_off = True
        self._frozen = self._frozen or []
        self._retained.hold()

    @property
    def frozen(self) -> bool:
        """Are faults to be served later?"""
        return self._frozen is not None

    def bring_out(self) -> None:
        """Send everything that others were to get from here by word of the directory as it was."""
        self.machine.put_nothing_off()
        while (frame := self.bulk.next(lambda _: True)) is not None:
            if not self._is_void(frame):
                self._send_pages(self.regions[frame.fetch.region], *frame, True)

    def report(self) -> list[tuple[int, int, list[tuple[int, int]]]]:
        """Everything that is here, or was handed over and is perhaps nowhere: region, how (COPY, ONLY or KEPT), and
        ``(first page, count)`` of each run."""
        told = [(region, wire.ONLY if alone else wire.COPY, runs) for region, alone, runs in self.machine.report()]
        kept = self._retained.look()
        return told + [(region, wire.KEPT, runs) for region, runs in kept.items() if region in self.regions]

    def thaw(self) -> None:
        """There is a directory, and it knows of everything that is here, but of no request."""
        self._retained.clear()
        frozen, self._frozen = self._frozen or [], None
        self._put_off = False
        self.run(self.machine.ask_again())
        for mapping, faults in frozen:
            if mapping in mapping.region.mappings:
                self._serve(mapping, faults)

    def withdraw(self) -> None:
        """This node leaves: nothing here may be read or written any more."""
        for region in self.regions.values():
            region.withdraw()

    # -- messages ----------------------------------------------------------------------------------------

    def data(self, m: wire.Data, payload: memoryview) -> bool:
        """Page data has come. False if it is not what ``m`` says."""
        region = self.regions.get(m[0])
        if region is None or not payload or len(payload) != m[5] * region.page_size:
            return False
        effects = self.machine.data(m, Source(payload))
        if effects:  # else nobody waits for it, and the machine has counted it
            region.stats.pages_in += m[5]
            self.run(effects)
        return True

    def step(self, message: wire.Message) -> None:
        """A message about pages has come from the directory, or an acknowledgement from a peer."""
        self.run(self.machine.step(message))

    # -- faults ------------------------------------------------------------------------------------------

    def faults(self, mapping: Mapping) -> None:
        """Serve whatever faults an application has now."""
        faults = self._read_faults(mapping)
        if not self._put_off:
            self._serve(mapping, faults)
        elif self._frozen is not None:
            self._frozen.append((mapping, faults))
        # else they will be told again

    def _serve(self, mapping: Mapping, faults: list[tuple[int, int]]) -> None:
        region = mapping.region
        now = self._now_ns()
        for flags, address in faults:
            page = (address - mapping.address) // region.page_size
            if not 0 <= page < region.pages:  # of a range that is none of ours; nobody will serve it
                continue
            write = flags & (FLAG_WRITE | FLAG_WP) != 0
            decided = self.machine.fault(region.number, page, write, mapping)
            local_only = bool(decided) and type(decided[0]) is effects.Resume
            if page not in mapping.since:
                kind = "local" if local_only else "upgrade" if flags & FLAG_WP else "write" if write else "read"
                mapping.since[page] = (now, kind)
            self.run(decided)
            if not local_only:
                self._ahead(mapping, page, write)

    def _read_faults(self, mapping: Mapping) -> list[tuple[int, int]]:
        try:
            return mapping.uffd.faults()
        except OSError as error:
            self._blame(mapping, error)
            return []

    def _ahead(self, mapping: Mapping, page: int, write: bool) -> None:
        policy = mapping.writes if write else mapping.reads
        runs = policy.fault(page)
        if runs is None:
            return
        region = mapping.region
        for start, stop in runs:
            region.stats.pages_ahead += stop - start
            self.run(self.machine.read_ahead(region.number, start, stop, write, mapping, policy.sure))

    # -- effects -----------------------------------------------------------------------------------------

    def run(self, decided: list[effects.Effect]) -> None:
        """Carry out what the machine decided, in order. Who is told that a prefetch has come asks for its next piece
        after all of this: or that Request would overtake a GaveUp for some of these pages, and be refused."""
        for effect in decided:
            self._effects[type(effect)](effect)
        self._served = None
        while self._over:
            self._finished(self._over.pop())

    def _install(self, e: effects.Install) -> None:
        region = self.regions[e.region]
        woken = region.install(e.start, e.count, e.payload, e.write, e.target)
        if woken and e.count == 1:
            self._served = e.target

    def _resume(self, e: effects.Resume) -> None:
        region = self.regions[e.region]
        for mapping in e.waiters:
            if mapping is not self._served:
                region.resume(mapping, e.page, e.write)
            since = mapping.since.pop(e.page, None)
            if since is not None:
                region.stats.faults[since[1]].add(self._now_ns() - since[0])

    def _unprotect(self, e: effects.Unprotect) -> None:
        self.regions[e.region].unprotect(e.waiter, e.start, e.count)

    def _drop(self, e: effects.Drop) -> None:
        region = self.regions[e.region]
        region.give_up(e.start, e.count)
        region.stats.invalidations += e.count

    def _send(self, e: effects.Send) -> None:
        to = e.to
        if not to and self._shards > 1:  # what is for the directory is about a page: m[2], of region m[0]
            m = e.message
            to = -shard_of(m[0], m[2], self.regions[m[0]].page_size, self._shards)
        self._links.send(to, e.message)

    def _hold(self, e: effects.Hold) -> None:
        self.holds.append((self._now_ns() + constants.HOLD_US * 1000, e.region, e.page))

    def _poison(self, e: effects.Poison) -> None:
        region = self.regions[e.region]
        for mapping in e.waiters:
            mapping.since.pop(e.page, None)
            self._tell(
                mapping.pid,
                f"dsm: page {e.page} of region {region.name!r} is lost: node {e.node!r}, which had its only copy, "
                "is gone; touching it is a bus error",
            )
            region.poison(mapping, e.page)

    def _supply(self, e: effects.Supply) -> None:
        fetch = e.fetch
        region = self.regions[fetch.region]
        if e.protect:
            region.protect(fetch.start, fetch.count)
        if fetch.ahead:
            self.bulk.add(fetch, pages_per_frame(region.page_size))
        else:
            self._send_pages(region, fetch, fetch.start, fetch.count, False)

    def _expedite(self, e: effects.Expedite) -> None:
        frame = self.bulk.expedite(e.hurry)
        if frame is not None and not self._is_void(frame):
            self._send_pages(self.regions[frame.fetch.region], *frame, False)

    def _send_pages(self, region: RegionMemory, fetch: wire.Fetch, start: int, count: int, bulk: bool) -> None:
        payload = region.read(start, count)
        data = wire.Data(fetch.region, fetch.generation, fetch.start, fetch.count, start, count, fetch.acks)
        if fetch.keep:
            self._links.send_pages(fetch.requester, data, payload, bulk)
        else:  # it is dropped before it is sent: the requester may write as soon as it has arrived
            self._retained.add(fetch.region, start, count, payload)
            region.give_up(start, count)
            region.stats.invalidations += count
            self._links.send_pages(fetch.requester, data, payload, bulk)
            self._retained.sent(fetch.requester, bulk, self._links.sent(fetch.requester, bulk))
        region.stats.pages_out += count

    def _revive(self, e: effects.Revive) -> None:
        region = self.regions[e.region]
        if region.keeps_shadows:
            region.revive(e.start, e.count)
            return
        for page in range(e.start, e.start + e.count):
            content = self._retained.page(e.region, page)
            if content is None:
                raise Violation(f"page {page} of region {e.region} was not kept", e.region, page)
            region.fill(page, content)

    # -- what is still to be done ------------------------------------------------------------------------

    def send_frame(self) -> None:
        """Send one frame of what nobody waits for, if a peer takes it."""
        frame = self.bulk.next(self._links.takes_bulk)
        self.bulk_waits = frame is None
        if frame is not None and not self._is_void(frame):
            self._send_pages(self.regions[frame.fetch.region], *frame, True)

    def _is_void(self, frame: Frame) -> bool:
        """Have pages that were to be handed over come back before they were sent? A requester that said Done without
        having got them has lied; that must not cost this node what it has written since."""
        fetch, start, count = frame
        return not fetch.keep and self.machine.holds(fetch.region, start, start + count)

    def expire_holds(self) -> int:
        """End the holds that are over. In how many microseconds somebody waits for the next one, 0 if nobody does."""
        now = self._now_ns()
        holds = self.holds
        while holds and holds[0][0] <= now:
            _, region, page = holds.popleft()
            self.run(self.machine.hold_expired(region, page))
        return max(1, (holds[0][0] - now) // 1000) if holds and self.machine.deferred else 0
