"""The one place that looks into the private parts of production machines, to compare them with each other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from directory.barriers import Barrier
from directory.cluster import Cluster
from directory.holdings import EXCLUSIVE, LOST, SHARED, UNTOUCHED
from directory.machine import PageMachine
from nodes import pages
from nodes.pager import Pager

__all__ = ["EXCLUSIVE", "LOST", "SHARED", "UNTOUCHED"]


def _pages(directory: Cluster) -> PageMachine:
    return directory._pages


def regions(directory: Cluster) -> list[int]:
    """The numbers of all regions."""
    return sorted(directory._registry.regions)


def sizes(directory: Cluster) -> dict[int, int]:
    """How many pages each region has."""
    return {number: region.pages for number, region in _pages(directory)._regions.items()}


def is_beginning_again(directory: Cluster) -> bool:
    """Does it wait for nodes to tell what they have?"""
    return directory._recovery is not None


def holding(directory: Cluster, region: int, page: int) -> tuple[int, int, int]:
    """State, owner and copyset of a page, as the directory has them."""
    known = _pages(directory)
    return known.holdings[known._regions[region].table.get(page)][:3]


def busy_in_directory(directory: Cluster) -> list[str]:
    """What is under way or waits in the directory: nothing, when all is quiet."""
    found = [
        f"region {number}, extent {index}: active {extent.active}, queue {extent.queue}"
        for number, region in _pages(directory)._regions.items()
        for index, extent in region.extents.items()
    ]
    primitives = directory._sync._named.values()
    found += [f"{one.title} is waited for by {one.calls}" for one in primitives if one.calls]
    return found + [
        f"{one.title} is {one.state()}" for one in primitives if isinstance(one, Barrier) and not one.broken
    ]


def held(pager: Pager, region: int, page: int) -> int:
    """The directory's word for the state that a node thinks a page has."""
    if region not in pager.machine._regions:
        return UNTOUCHED
    state = pager.machine._regions[region].table.get(page)
    if state & pages.LOST:
        return LOST
    return {pages.ABSENT: UNTOUCHED, pages.SHARED: SHARED, pages.EXCLUSIVE: EXCLUSIVE}[state & pages.HELD]


def open_requests(pager: Pager) -> Iterator[tuple[int, int]]:
    """Region and page of everything that a node has asked for."""
    for number, region in pager.machine._regions.items():
        for ask in region.asks.values():
            for page in range(ask.start, ask.stop):
                yield number, page


def busy_on_node(pager: Pager, applications: Any) -> list[str]:
    """What is under way or waits on a node: nothing, when all is quiet."""
    found = [f"{len({frame.fetch.requester for frame in pager.bulk})} bulk transfers"] if pager.bulk else []
    if pager.machine.deferred:
        found.append(f"{pager.machine.deferred} deferred messages")
    for number, region in pager.machine._regions.items():
        for what in ("asks", "waiters", "held", "deferred", "prefetches"):
            if getattr(region, what):
                found.append(f"region {number}: {what} {getattr(region, what)}")
    found += [f"lock {name!r} is held" for name, lock in applications.primitives._locks._locks.items() if lock.held]
    if applications.ledger._tickets:
        found.append(f"tickets {sorted(applications.ledger._tickets)}")
    if applications._connections or applications._silent:
        found.append(f"{len(applications._connections)} connections, {len(applications._silent)} silent ones")
    return found
