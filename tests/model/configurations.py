"""What is explored: the full list, and the part of it that is small enough for every test run.

Departures multiply the states (any node, at any point, with any last part of what it sent on each channel), so most of
those configurations have smaller budgets or fewer kinds of operations.
Out of reach: 3 nodes, 1 page, 2 operations of every kind and a departure. After 10 minutes and 3.5 GB it had 13 million
states, 1.3 million of them still to be expanded, a number that had just begun to fall.

Some begin where something has happened already (``before``): what comes then is reached with less.
"""

from __future__ import annotations

from typing import Final

from .sides import Configuration, Event, programmed

_ACCESS: Final = ("load", "store")
_RUNS: Final = ("load", "store", "prefetch")

_SHARED_RUN: Final = ((1, ("prefetch", 0, 0, 2, False)), (2, ("prefetch", 0, 0, 2, False)))
"""Nodes 1 and 2 have read both pages; node 1 owns them."""
_WRITTEN_RUN: Final = ((1, ("prefetch", 0, 0, 2, True)),)
"""Node 1 has both pages, writable."""


def _run(start: int, stop: int, write: bool = False) -> Event:
    """Who begins it asks for a run of pages."""
    return "prefetch", 0, start, stop, write


QUICK: Final[dict[str, Configuration]] = {
    "2 nodes, 1 page": Configuration((2, 2)),
    "2 nodes, 1 page, hasty": Configuration((2, 2), operations=(*_ACCESS, "evict"), patient=False),
    "2 nodes, 1 page, departure": Configuration((2, 1), departures=1),
    "3 nodes, 1 page": Configuration((1, 1, 1)),
    "3 nodes, 1 page, departures": Configuration((1, 1, 0), operations=(*_ACCESS, "evict"), departures=2),
    "3 nodes, 1 page, accesses": Configuration((2, 2, 1), operations=_ACCESS),
    "2 nodes, 2 pages": Configuration((1, 1), pages=2),
    "2 nodes, 2 pages, departure": Configuration((1, 1), pages=2, departures=1),
    "written run": Configuration((1, 1), pages=2, operations=_RUNS, before=_WRITTEN_RUN),
    "written run, departure": Configuration((0, 1), pages=2, operations=_RUNS, departures=1, before=_WRITTEN_RUN),
    "shared run, departure": Configuration((0, 0, 1), pages=2, departures=1, before=_SHARED_RUN),
    "2 applications": Configuration((1, 1), applications=2),
    "2 threads": Configuration((2, 1), threads=2),
    "2 nodes, 1 page, stepwise": Configuration((2, 2), operations=(*_ACCESS, "evict"), stepwise=True),
    "2 nodes, 1 page, stepwise, departure": Configuration((1, 1), stepwise=True, departures=1),
    "2 nodes, 2 pages, stepwise": Configuration((1, 1), pages=2, stepwise=True),
    # A request that is open still, of which some pages have been closed, or given up, and asked for again:
    "run of two owners, departure": programmed(
        (_run(0, 2),), (), (), pages=2, departures=1, before=((2, ("store", 0, 0)), (3, ("store", 0, 1)))
    ),
    "run of two owners that share, departure": programmed(
        (_run(0, 2, True),),
        (),
        (),
        pages=2,
        departures=1,
        before=((2, ("store", 0, 0)), (3, ("store", 0, 1)), (2, ("load", 0, 1)), (3, ("load", 0, 0))),
    ),
    "run given up before the acks": programmed(
        (_run(0, 2, True),), (), (), pages=2, departures=1, before=((2, _run(0, 2, True)), (3, _run(0, 2)))
    ),
    "run closed early": programmed(
        (("store", 0, 1),),
        (_run(1, 3), ("store", 0, 1), _run(0, 2), ("load", 0, 1)),
        pages=3,
        before=((1, _run(0, 3, True)),),
    ),
}

FULL: Final[dict[str, Configuration]] = {
    **QUICK,
    "written run, departure, 2 operations": Configuration(
        (0, 2), pages=2, operations=_RUNS, departures=1, before=_WRITTEN_RUN
    ),
    "written run, 2 operations": Configuration((1, 2), pages=2, operations=_RUNS, before=_WRITTEN_RUN),
    "2 nodes, 1 page, hasty, 2 operations": Configuration((2, 2), patient=False),
    "3 nodes, 1 page, 2 operations": Configuration((2, 2, 2)),
    "3 nodes, 1 page, departure, 1 operation": Configuration((1, 1, 1), departures=1),
    "3 nodes, 1 page, departures, 1 operation": Configuration((1, 1, 1), departures=2),
    "3 nodes, 1 page, departure, 2 accesses or evictions": Configuration(
        (2, 2, 2), operations=(*_ACCESS, "evict"), departures=1
    ),
    "3 nodes, 1 page, departure, 2+1+1 operations": Configuration((2, 1, 1), departures=1),
    "2 nodes, 1 page, departure, 2 operations": Configuration((2, 2), departures=1),
    "2 nodes, 2 pages, 2 operations": Configuration((2, 2), pages=2),
    "2 nodes, 2 pages, hasty": Configuration((2, 1), pages=2, patient=False),
    "2 nodes, 2 pages, departure, 2+1 operations": Configuration((2, 1), pages=2, departures=1),
    "2 nodes, 2 pages, departure, 2 operations": Configuration((2, 2), pages=2, departures=1),
    "3 nodes, 2 pages": Configuration((1, 1, 1), pages=2),
    "3 nodes, 2 pages, departure, prefetches": Configuration(
        (1, 1, 1), pages=2, operations=("prefetch",), departures=1
    ),
    "shared run, departure, 1+1 operations": Configuration(
        (0, 1, 1), pages=2, operations=_RUNS, departures=1, before=_SHARED_RUN
    ),
    "written run, 2 readers, departure": Configuration(
        (0, 1, 1), pages=2, operations=_RUNS, departures=1, before=_WRITTEN_RUN
    ),
    "2 applications, 2 operations": Configuration((2, 2), applications=2),
    "2 threads, 2 operations": Configuration((2, 2), threads=2),
    "2 nodes, 1 page, stepwise, 2 operations": Configuration((2, 2), stepwise=True),
    "3 nodes, 1 page, stepwise": Configuration((2, 1, 1), stepwise=True),
    "3 nodes, 1 page, stepwise, departure": Configuration((1, 1, 1), stepwise=True, departures=1),
    "2 nodes, 1 page, stepwise, hasty": Configuration((2, 2), stepwise=True, patient=False),
    "2 nodes, 2 pages, stepwise, 2 operations": Configuration((2, 1), pages=2, stepwise=True),
    "shared run, stepwise, departure": Configuration(
        (0, 1, 1), pages=2, operations=_RUNS, stepwise=True, departures=1, before=_SHARED_RUN
    ),
    "2 threads, stepwise": Configuration((2, 1), threads=2, stepwise=True),
    "run closed early, third node, departure": programmed(
        (),
        (_run(1, 3), ("store", 0, 1), _run(0, 2)),
        (_run(0, 2, True),),
        pages=3,
        departures=1,
        before=((1, _run(0, 3, True)),),
    ),
}
