"""The regions that applications have attached: their mappings, and what they explicitly ask of pages."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dsm import errors, wire
from dsm.constants import PREFETCH_BYTES, PREFETCHES_MAX
from dsm.geometry import pages_in
from dsm.uffd import Userfaultfd, open_device
from nodes.connections import Connection, Noted, exhausted
from nodes.keeper import MAPPED, Shelf, Thing
from nodes.ledger import Ledger
from nodes.memory import Mapping, RegionMemory
from nodes.pieces import Pieces

if TYPE_CHECKING:
    from nodes.agent import Agent


_OPTIONS_BYTES_MAX = 16 << 10
"""Of a region: they travel in every answer about it."""


class _Prefetch:
    """An explicit prefetch, or a reset (``op``: READ, WRITE or RESET), of pages ``[start, stop)`` that is under way."""

    __slots__ = ("asking", "connection", "op", "pieces", "start", "stop")

    def __init__(self, connection: Connection, start: int, stop: int, page_size: int, op: int) -> None:
        self.connection = connection
        self.start = start
        self.stop = stop
        self.pieces = Pieces(start, stop, max(1, PREFETCH_BYTES // page_size), PREFETCHES_MAX)
        self.op = op
        self.asking = False  # what is here already is over while it is asked for


class Attachments:
    """Of all applications of one agent."""

    def __init__(self, agent: Agent, ledger: Ledger, shelf: Shelf) -> None:
        self._agent = agent
        self._ledger = ledger
        self._shelf = shelf
        self._device = open_device()
        self.handlers: dict[type[Any], Callable[[Connection, Any, list[int]], None]] = {
            wire.Attach: self._attach,
            wire.Mapped: self._mapped,
            wire.Detach: self._detached,
            wire.Hold: self._hold,
            wire.Prefetch: lambda c, m, _: self._fetch(c, m, wire.WRITE if m.write else wire.READ),
            wire.Reset: lambda c, m, _: self._fetch(c, m, wire.RESET),
            wire.Mirror: self._mirror,
            wire.StatsQuery: self._stats,
            wire.Unlink: lambda c, m, _: ledger.ask(c, m),
        }
        ledger.answers |= {
            wire.Open: self._opened,
            wire.Unlink: ledger.succeeded,
            wire.Mirror: ledger.succeeded,
        }

    def close(self) -> None:
        if self._device is not None:
            os.close(self._device)

    def _attach(self, connection: Connection, m: wire.Attach, _: list[int]) -> None:
        if connection.region is not None:
            raise errors.ProtocolError("this connection is attached to a region already")
        if len(wire.encode(m)) > _OPTIONS_BYTES_MAX:
            raise errors.InvalidArgument(f"shape and dtype of a region take {_OPTIONS_BYTES_MAX} bytes at most")
        number = m.options.get("region")
        if number is None:
            question = wire.Open(0, m.name, m.size, m.page_size, m.create, m.options)
            self._ledger.ask(connection, question)
            return
        # A forked child of an attached process: it names the region by number, for the name may be unlinked.
        region = self._agent.pager.regions.get(number) if type(number) is int else None
        if region is None or not region.users:
            raise errors.RegionNotFound(f"region {m.name!r} is attached by nobody on this node any more")
        self._attached(connection, region)

    def _opened(self, connection: Connection, question: wire.Open, m: Any) -> None:
        if type(m) is not wire.Opened:
            self._ledger.succeeded(connection, question, m)
            return
        region = self._agent.pager.regions.get(m.region)
        try:
            if region is None:
                region = self._agent.new_region(m.region, question.name, m.size, m.page_size, m.options)
        except (errors.DsmError, OSError) as error:
            self._ledger.tell(wire.Close(m.region, 1))
            self._ledger.fail(connection, error if isinstance(error, errors.DsmError) else exhausted(error))
            return
        region.opens += 1
        self._attached(connection, region)

    def _attached(self, connection: Connection, region: RegionMemory) -> None:
        connection.region = region
        region.users += 1
        if not connection.open:  # it left while the directory was asked
            self.detach(connection)
            return
        self.tell_attached(connection, region)

    def tell_attached(self, connection: Connection, region: RegionMemory) -> None:
        answer = wire.Attached(region.number, region.size, region.page_size, region.options, self._agent.name)
        self._ledger.reply(connection, answer, [region.memfd, *([] if self._device is None else [self._device])])

    def _mapped(self, connection: Connection, m: wire.Mapped, fds: list[int]) -> None:
        region = connection.region
        if region is None or connection.mapping is not None or len(fds) != 1:
            raise errors.ProtocolError("Mapped comes once, after Attached, with one userfaultfd")
        uffd = Userfaultfd.adopt(fds[0])  # where it refuses, the descriptor is still ours
        fds.clear()
        mapping = Mapping(region, uffd, m.address, connection.pid)
        if not self._agent.take_in(mapping):
            mapping.uffd.close()
            raise errors.ProtocolError("the region is not registered with the userfaultfd that came with Mapped")
        self._shelf.put(
            f"{MAPPED}{connection.slot}", b"", [*([connection.pidfd] if connection.pid else []), uffd.fileno()]
        )
        connection.mapping = mapping
        if not region.kept:
            region.kept = True
            self._ledger.tell(wire.Keep(region.number))
        self._ledger.reply(connection, wire.Ready())

    def _detached(self, connection: Connection, _: wire.Detach, __: list[int]) -> None:
        mapping, connection.mapping = connection.mapping, None
        self.detach(connection)
        self._ledger.reply(connection, wire.Ready())
        if mapping is not None:
            self._ledger.note(connection)  # before its userfaultfd is gone
            self.drop_mapping(connection, mapping)

    def detach(self, connection: Connection) -> None:
        region, connection.region = connection.region, None
        if region is not None:
            region.users -= 1
            if not region.users:
                self._ledger.tell(wire.Close(region.number, region.opens))
                region.opens = 0

    def drop_mapping(self, connection: Connection, mapping: Mapping) -> None:
        self._agent.drop_mapping(mapping)
        self._shelf.drop(f"{MAPPED}{connection.slot}")

    def recall_connection(self, connection: Connection, noted: Noted, mapped: Thing | None) -> None:
        regions = self._agent.pager.regions
        for number in noted.holds:
            if number in regions:
                connection.holds[number] = None
                regions[number].holds += 1
        region = regions.get(noted.region)
        if region is None:  # it is over, or was never noted
            return
        connection.region = region
        region.users += 1
        region.opens += 1
        if noted.address and (mapped is None or len(mapped.fds) != 1 + bool(connection.pid)):
            connection.kill()  # the keeper had no descriptor left for it
        elif noted.address and mapped is not None:
            mapping = Mapping(region, Userfaultfd(mapped.fds[-1]), noted.address, connection.pid)
            mapping.recalled = True
            if self._agent.take_in(mapping):
                connection.mapping = mapping
                region.kept = True
                mapping.uffd.wake(mapping.address, region.pages * region.page_size)

    def restate(self) -> list[wire.Message]:
        """Which regions are open here, which are used, and which are held."""
        regions = self._agent.pager.regions
        said: list[wire.Message] = [
            wire.Opens(number, region.users) for number, region in regions.items() if region.users
        ]
        for number, region in regions.items():
            said += [wire.Keep(number)] if region.kept and region.users else []
            said.append(wire.Hold(number, region.holds > 0))
        return said

    def _hold(self, connection: Connection, m: wire.Hold, _: list[int]) -> None:
        region = self._agent.pager.regions.get(m.region)
        if m.on and (region is None or not region.users):
            raise errors.RegionNotFound(f"region number {m.region} is attached by nobody on this node any more")
        if m.on and region is not None and m.region not in connection.holds:
            connection.holds[m.region] = None
            region.holds += 1
            if region.holds == 1:
                self._ledger.tell(m)
        elif not m.on and m.region in connection.holds:
            del connection.holds[m.region]
            self._let_go_of(m.region)
        self._ledger.reply(connection, wire.Ready())

    def closed(self, connection: Connection) -> None:
        """It holds no regions any more."""
        for number in connection.holds:
            self._let_go_of(number)

    def _let_go_of(self, number: int) -> None:
        region = self._agent.pager.regions.get(number)
        if region is not None:  # else it is over: it was unlinked
            region.holds -= 1
            if not region.holds:
                self._ledger.tell(wire.Hold(number, False))

    def _fetch(self, connection: Connection, m: wire.Prefetch | wire.Reset, op: int) -> None:
        mapping = connection.mapping
        if mapping is None or mapping.prefetch is not None or not m.start <= m.stop <= mapping.region.size:
            raise errors.ProtocolError(f"{type(m).__name__} needs a range of the region attached on this connection")
        size = mapping.region.page_size
        stop = pages_in(m.stop, size) if m.start < m.stop else 0
        self._ledger.wait(connection, m)
        mapping.prefetch = _Prefetch(connection, m.start // size, stop, size, op)
        self._prefetch_more(mapping)

    def prefetched(self, mapping: Mapping) -> None:
        """A piece of an explicit prefetch has come."""
        if mapping.prefetch is not None:
            mapping.prefetch.pieces.came()
            if not mapping.prefetch.asking:
                self._prefetch_more(mapping)
                self._ledger.commit()

    def _prefetch_more(self, mapping: Mapping) -> None:
        job: _Prefetch = mapping.prefetch
        pager, number = self._agent.pager, mapping.region.number
        job.asking = True
        while (piece := job.pieces.take()) is not None:
            if job.op == wire.RESET:
                pager.run(pager.machine.reset(number, *piece, mapping))
            else:
                pager.run(pager.machine.prefetch(number, *piece, job.op == wire.WRITE, mapping))
        job.asking = False
        if job.pieces.over:
            mapping.prefetch = None
            lost = pager.machine.lost(number, job.start, job.stop) if job.op != wire.RESET else None
            self._ledger.reply(job.connection, wire.Ready() if lost is None else _page_lost(mapping.region, *lost))

    def _mirror(self, connection: Connection, m: wire.Mirror, _: list[int]) -> None:
        if connection.mapping is None:
            raise errors.ProtocolError("Mirror is for the region attached on this connection: there is none")
        self._ledger.ask(connection, m._replace(region=connection.mapping.region.number))

    def _stats(self, connection: Connection, _: wire.StatsQuery, __: list[int]) -> None:
        if connection.mapping is None:
            raise errors.ProtocolError("statistics are those of the region attached on this connection: there is none")
        region = connection.mapping.region
        report = region.stats.report(region.page_size)
        report["pages"] = self._agent.pager.machine.counts(region.number)
        report["node"] = self._agent.name
        self._ledger.reply(connection, wire.Answer(0, report))


def _page_lost(region: RegionMemory, start: int, stop: int, node: str) -> wire.Failure:
    size = region.page_size
    text = (
        f"bytes {start * size} to {min(stop * size, region.size)} of region {region.name!r} are lost: node {node!r}, "
        f"which had their only copy, is gone; region.reset({start * size}, {min(stop * size, region.size)}) "
        "makes them zeros"
    )
    return wire.failure(0, errors.PageLost(text))
