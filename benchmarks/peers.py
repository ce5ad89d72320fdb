"""Alternatives: what one would use instead of dsm, run on this host over TCP loopback beside it, interleaved.

``make peers`` installs all of them. One that is not there is reported absent, with what to install.
"""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from benchmarks.alternatives import managed_dict, mpi_windows, ray_objects, redis_values, shared_memory
from benchmarks.alternatives.alternative import (
    LOCAL_READ,
    LOCAL_SCAN,
    LOCAL_STORE,
    OVERWRITE,
    READ_AGAIN,
    REMOTE_READ,
    SCAN,
    UPGRADE,
    Alternative,
)  # fmt: skip
from benchmarks.alternatives.client import Absent, Client
from benchmarks.alternatives.pages import Pages
from benchmarks.floors import Floors
from benchmarks.measurements import Bound, Figure, Progress, Section, interleave

ALTERNATIVES: Final = tuple(
    module.ALTERNATIVE for module in (redis_values, ray_objects, mpi_windows, managed_dict, shared_memory)
)

ROUND_TRIP: Final = "pyzmq: 4 KiB there and back"
"""The floor of everything that goes to another process over TCP."""

MEASURED: Final = {True: (3, 30), False: (25, 100)}
"""Rounds, and operations of each kind in a round, quickly and in full."""

Part = tuple[Figure, Callable[[], list[float]]]


def measure(quick: bool, progress: Progress) -> Section:
    """dsm and every alternative that is here."""
    rounds, batch = MEASURED[quick]
    section = Section("peers", "Beside what one would use instead", _about())
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dsm-peers-", dir="/tmp")))
        children = {}
        for number, alternative in enumerate(ALTERNATIVES):
            progress(f"starting {alternative.name}")
            own = folder / str(number)  # a short name: there will be sockets in it
            own.mkdir()
            with told(section, alternative):
                children[alternative] = alternative.start(own)
                stack.callback(children[alternative].end)
        pages = Pages(stack, folder, batch)
        floors = Floors()
        stack.callback(floors.close)
        parts = [
            *dsm(pages),
            (Figure(ROUND_TRIP, "µs"), lambda: [took / 1000 for took in floors.round_trips(batch)]),
        ]
        for alternative, child in children.items():
            stack.callback(child.leave)  # all at once, before the first is waited for
            progress(f"waiting for {alternative.name}")
            with told(section, alternative):
                child.ready()
                parts += _parts(alternative, child, batch)
        section.figures = [figure for figure, _ in parts]
        interleave(rounds, progress, parts)
    return section


@contextlib.contextmanager
def told(section: Section, alternative: Alternative) -> Iterator[None]:
    """If the alternative cannot run here, the section tells it, with the reason."""
    try:
        yield
    except Absent as absent:
        section.absent[alternative.name] = f"{absent}. To install it: {alternative.install} (make peers installs all)"
    except RuntimeError as error:
        section.absent[alternative.name] = f"is installed, but does not run here. {error}"


def _about() -> str:
    return "\n\n".join(
        [
            "Everything runs on one host over TCP loopback, in turns; who reads an array adds it up. Overwriting an "
            "array that another node has read (`prefetch(write=True)`, then stores) moves no data in dsm: copies are "
            "given up, and the next scan fetches. SET and Put move the data at once: add the scan to compare.",
            *(alternative.about for alternative in ALTERNATIVES),
        ]
    )


def dsm(pages: Pages) -> Iterator[Part]:
    """What is measured of dsm, in the order of a round."""
    yield _beside(REMOTE_READ, "µs"), pages.remote_read
    yield _beside(READ_AGAIN, "µs"), pages.read_again
    yield _beside(UPGRADE, "µs"), pages.upgrade
    yield _beside(LOCAL_READ, "µs"), pages.neighbour_reads
    yield _beside(LOCAL_STORE, "µs"), pages.neighbour_stores
    yield _beside(LOCAL_SCAN, "GB/s"), pages.neighbour_adds_up
    yield _beside(SCAN, "GB/s", Bound("at least", 1.5, redis_values.STREAM)), pages.scan
    yield _beside(OVERWRITE, "GB/s"), pages.overwrite


def _beside(name: str, unit: str, *bounds: Bound) -> Figure:
    """A figure of dsm beside all that one would have instead of it, and beside the floor if it goes to another node."""
    floor = (ROUND_TRIP,) if name in (REMOTE_READ, UPGRADE) else ()
    alternatives = (
        measured.figure for alternative in ALTERNATIVES for measured in alternative.measured if name in measured.instead
    )
    return Figure(name, unit, beside=(*floor, *alternatives), bounds=bounds)


def _parts(alternative: Alternative, child: Client, batch: int) -> Iterator[Part]:
    """What is measured of an alternative."""
    for measured in alternative.measured:
        floor = (ROUND_TRIP,) if {REMOTE_READ, UPGRADE} & set(measured.instead) else ()
        figure = Figure(measured.figure, measured.unit, beside=floor, note=child.version)
        yield figure, functools.partial(measured.measure, child, batch)
