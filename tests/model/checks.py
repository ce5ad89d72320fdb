"""What must hold in every state: of each side alone, of all nodes together, and once nothing is under way.

Each returns what is wrong, in words, or "".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from simulated_cluster import REGION, Node

from directory.machine import PageMachine
from dsm.wire import DIRECTORY
from nodes.pages import EXCLUSIVE, HELD, LOST, SHARED

from .network import Network
from .sides import Configuration
from .state import LATEST, OUTDATED
from .stepwise import StepwiseNode


class View(NamedTuple):
    """What the others have to know of a node. Bit masks of pages, but for ``contents`` (by page, -1 for a hole)."""

    held: int
    exclusive: int
    readable: int  # in memory; not those that are only still to be sent
    writable: int  # and some application may store to them without a fault
    contents: tuple[int, ...]
    busy: str  # what keeps it from being quiet


NOBODY: Final = View(0, 0, 0, 0, (), "")


def view(node: Node, pages: int) -> View:
    states = [node.state(page) for page in range(pages)]
    leaving = _leaving(node)
    unprotected = set().union(*(application.unprotected for application in node.applications))
    return View(
        _mask(page for page in range(pages) if states[page] & HELD),
        _mask(page for page in range(pages) if states[page] & EXCLUSIVE),
        _mask(page for page in node.memory if page not in leaving),
        _mask(page for page in node.memory if page in unprotected),
        tuple(node.memory.get(page, -1) for page in range(pages)),
        ", ".join(_busy(node)),
    )


def _mask(pages: Iterator[int]) -> int:
    return sum(1 << page for page in pages)


def _leaving(node: Node) -> set[int]:
    """Pages that are here only until they are sent."""
    return {page for f in node.bulk if not f.fetch.keep for page in range(f.start, f.start + f.count)}


def _busy(node: Node) -> Iterator[str]:
    region = node.machine._regions[REGION]
    if any(thread.access for application in node.applications for thread in application.threads):
        yield "a thread waits"
    if any(application.prefetches for application in node.applications):
        yield "a prefetch waits"
    for name in ("asks", "waiters", "held", "deferred", "prefetches"):
        if getattr(region, name):
            yield f"machine.{name}"
    if node.holds:
        yield "a hold runs"
    if node.bulk:
        yield "pages are to be sent"
    if in_between(node):
        yield "effects are to happen"


def in_between(node: Node) -> bool:
    """Is it in the middle of a step? Then its memory is not yet as its machine says."""
    return isinstance(node, StepwiseNode) and bool(node.todo)


def node_alone(node: Node, how: Configuration) -> str:
    """A node's machine and its memory say the same, and nothing grows without bound."""
    leaving = _leaving(node)
    for page in range(how.pages):
        state = node.state(page)
        where = f"p{page} on n{node.number}"
        if state not in (0, SHARED, EXCLUSIVE, LOST):
            return f"memory: {where} is in state {state}, which is none"
        if in_between(node):
            continue
        if state & HELD and page not in node.memory:
            return f"memory: {where} is a hole, but held"
        if not state & HELD and page in node.memory and page not in leaving:
            return f"memory: {where} can be read, but is not held"
        for application in node.applications:
            if page in application.unprotected and state != EXCLUSIVE:
                return f"memory: {where} is not exclusive, but {application} may store to it"
    for ask in node.machine._regions[REGION].asks.values():
        if not ask.over.isdisjoint(ask.parts):
            return f"bounds: n{node.number} begins a part of request {ask.generation} anew that is over"
    deferred = node.machine._regions[REGION].deferred
    if node.machine.deferred != len(deferred):
        return f"bounds: n{node.number} counts {node.machine.deferred} deferred messages, there are {len(deferred)}"
    if len(deferred) > how.pages * how.nodes:
        return f"bounds: n{node.number} has {len(deferred)} messages deferred"
    return ""


def directory_alone(machine: PageMachine, how: Configuration) -> str:
    """One transaction at a time on a page; and a node waits once for a page, which bounds the queue."""
    extents = machine._regions[REGION].extents.values()
    for page in range(how.pages):
        active = [t for extent in extents for t in extent.active if t.start <= page < t.stop]
        if len(active) > 1:
            return f"bounds: two transactions at once on p{page}: {active}"
        waiting = [w.node for extent in extents for w in extent.queue if w.start <= page < w.stop]
        waiting += [t.node for t in active]
        if len(waiting) != len(set(waiting)):
            return f"bounds: a node waits twice for p{page}: {waiting}"
    if not all(extent.active or extent.queue for extent in extents):
        return "bounds: an extent is kept for nothing"
    return ""


def network_alone(network: Network, how: Configuration) -> str:
    """A channel carries, for each page, a few messages at most, however long the cluster runs.

    To the directory: the Done of a request, the next Request and its Hurry. From it: what answers the node's own
    request, what somebody else's transaction wants of it, and a Hurry. From node to node: one Data or Ack, as a page
    is in one transaction at a time. A departure adds what it cuts short, once for each node that leaves.
    """
    spare = 1 + how.departures
    for channel, packets in network.channels:
        per_page = 3 if DIRECTORY in (channel.source, channel.to) else 1
        most = per_page * how.pages * spare + how.departures
        if len(packets) > most:
            return f"bounds: {len(packets)} messages on the channel {channel}, more than {most}"
    return ""


def together(views: tuple[View, ...], stored: int, pages: int) -> str:
    """A single writer or many readers, by states, by memory and by what applications may do; nobody reads old data."""
    for page in range(pages):
        bit = 1 << page
        latest = LATEST if stored & bit else 0
        held = [n for n, v in enumerate(views, 1) if v.held & bit]
        if len(held) > 1 and any(v.exclusive & bit for v in views):
            return f"single writer: p{page} is exclusive on a node and held by n{held}"
        for number, v in enumerate(views, 1):
            others = [n for n, other in enumerate(views, 1) if n != number and other.readable & bit]
            if v.writable & bit and others:
                return f"single writer: n{number} may store to p{page}, which n{others} can read"
            if v.readable & bit and v.contents[page] != latest:
                what = "old data" if v.contents[page] == OUTDATED or stored & bit else "data that nobody stored"
                return f"values: n{number} can read {what} in p{page}"
    return ""


def quiet(views: tuple[View, ...], said: tuple[Said, ...], open_extents: bool) -> str:
    """Nothing is under way: then nobody waits, and the directory and the nodes agree."""
    for number, v in enumerate(views, 1):
        if v.busy:
            return f"deadlock: nothing is on its way, but on n{number}: {v.busy}"
    if open_extents:
        return "deadlock: nothing is on its way, but the directory has a transaction open"
    for page, says in enumerate(said):
        bit = 1 << page
        held = sum(1 << n for n, v in enumerate(views, 1) if v.held & bit)
        exclusive = sum(1 << n for n, v in enumerate(views, 1) if v.exclusive & bit)
        alive = sum(1 << n for n, v in enumerate(views, 1) if v is not NOBODY)
        if says.copies & alive != held or says.exclusive != bool(exclusive):
            return f"agreement: of p{page} the directory says {says}, held by {held:b}, exclusively by {exclusive:b}"
    return ""


class Said(NamedTuple):
    """What the directory says of a page."""

    copies: int
    exclusive: bool


def statement(machine: PageMachine, how: Configuration) -> tuple[Said, ...]:
    """What the directory says of every page."""
    region = machine._regions[REGION]
    holdings = [machine.holdings[region.table.get(page)] for page in range(how.pages)]
    return tuple(Said(holding.copies, holding.state == 2) for holding in holdings)


def miscounted(machine: PageMachine, how: Configuration) -> str:
    """The directory's count of pages by state is what its table says."""
    region = machine._regions[REGION]
    found = [0, 0, 0, 0]
    for page in range(how.pages):
        found[machine.holdings[region.table.get(page)].state] += 1
    return "" if region.counts[1:] == found[1:] else f"agreement: counts {region.counts[1:]} of pages {found[1:]}"
