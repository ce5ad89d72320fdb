"""What is explored: the full list, and the part of it that is small enough for every test run.

Departures multiply the states (any node, at any point, with any last part of what it sent on each channel, and no
exchange of nodes), so those configurations have smaller budgets or fewer kinds of operations.
"""

from __future__ import annotations

from typing import Final

from .sides import Configuration

_ACCESS: Final = ("load", "store")

QUICK: Final[dict[str, Configuration]] = {
    "2 nodes, 1 page": Configuration((2, 2)),
    "2 nodes, 1 page, hasty": Configuration((2, 2), patient=False),
    "2 nodes, 1 page, departure": Configuration((2, 1), departures=1),
    "3 nodes, 1 page": Configuration((1, 1, 1)),
    "3 nodes, 1 page, departures": Configuration((1, 1, 1), operations=("load", "store", "evict"), departures=2),
    "3 nodes, 1 page, accesses": Configuration((2, 2, 1), operations=_ACCESS),
    "2 nodes, 2 pages": Configuration((1, 1), pages=2),
    "2 nodes, 2 pages, departure": Configuration((1, 1), pages=2, departures=1),
    "2 nodes, 2 pages, runs": Configuration((2, 1), pages=2, operations=("store", "load", "prefetch")),
    "2 applications": Configuration((1, 1), applications=2),
    "2 threads": Configuration((2, 1), threads=2),
}

FULL: Final[dict[str, Configuration]] = {
    **QUICK,
    "3 nodes, 1 page, 2 operations": Configuration((2, 2, 2)),
    "3 nodes, 1 page, departure, 1 operation": Configuration((1, 1, 1), departures=1),
    "3 nodes, 1 page, departures, 1 operation": Configuration((1, 1, 1), departures=2),
    "3 nodes, 1 page, departure, 2 accesses": Configuration((2, 2, 2), operations=_ACCESS, departures=1),
    "2 nodes, 1 page, departure, 2 operations": Configuration((2, 2), departures=1),
    "2 nodes, 2 pages, 2 operations": Configuration((2, 2), pages=2),
    "2 nodes, 2 pages, departure, 2+1 operations": Configuration((2, 1), pages=2, departures=1),
    "2 applications, 2 operations": Configuration((2, 2), applications=2),
    "2 threads, 2 operations": Configuration((2, 2), threads=2),
}
