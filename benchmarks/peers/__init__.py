"""Peers: what somebody who does not use dsm would use, run on this host over TCP loopback beside dsm, interleaved.

``make peers`` installs all of them. One that is not there is reported absent, with what to install.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from benchmarks.floors import Floors
from benchmarks.measurements import Bound, Figure, Progress, Section, interleave
from benchmarks.peers import managed_dict, mpi_windows, ray_objects, redis_values, shared_memory
from benchmarks.peers.child import Absent, Child
from benchmarks.peers.pages import Pages
from benchmarks.peers.peer import (
    LOCAL_READ,
    LOCAL_SCAN,
    LOCAL_STORE,
    OVERWRITE,
    READ_AGAIN,
    REMOTE_READ,
    SCAN,
    UPGRADE,
    Peer,
)  # fmt: skip

PEERS: Final = (redis_values.PEER, ray_objects.PEER, mpi_windows.PEER, managed_dict.PEER, shared_memory.PEER)

ROUND_TRIP: Final = "pyzmq: 4 KiB there and back"
"""The floor of everything that goes to another process over TCP."""

Part = tuple[Figure, Callable[[], list[float]]]


def measure(quick: bool, progress: Progress) -> Section:
    """dsm and every peer that is here."""
    rounds, batch = (3, 30) if quick else (25, 100)
    section = Section("peers", "Beside what one would use instead", _about())
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dsm-peers-", dir="/tmp")))
        started = []
        for peer in PEERS:
            progress(f"starting {peer.name}")
            if (child := start(peer, folder, section)) is not None:
                stack.callback(child.end)
                started.append((peer, child))
        progress("starting two nodes")
        floors = Floors()
        stack.callback(floors.close)
        parts = [
            *_dsm(Pages(stack, folder, batch)),
            (Figure(ROUND_TRIP, "µs"), lambda: [took / 1000 for took in floors.round_trips(batch)]),
            *(part for peer, child in started for part in _parts(peer, child, batch)),
        ]
        section.figures = [figure for figure, _ in parts]
        interleave(rounds, progress, parts)
    return section


def start(peer: Peer, folder: Path, section: Section) -> Child | None:
    """The peer's child; None if it cannot run here, which the section then tells with the reason."""
    own = folder / str(PEERS.index(peer))  # a short name: there will be sockets in it
    own.mkdir()
    try:
        return peer.start(own)
    except Absent as absent:
        section.absent[peer.name] = f"{absent}. To install it: {peer.install} (make peers installs all)"
    except RuntimeError as error:
        section.absent[peer.name] = f"is installed, but does not run here. {error}"
    return None


def _about() -> str:
    return "\n\n".join(
        [
            "Everything runs on one host over TCP loopback, in turns; who reads an array adds it up.",
            *(peer.about for peer in PEERS),
        ]
    )


def _dsm(pages: Pages) -> Iterator[Part]:
    """What is measured of dsm, in the order of a round."""
    yield _beside_peers(REMOTE_READ, "µs"), pages.remote_read
    yield _beside_peers(READ_AGAIN, "µs"), pages.read_again
    yield _beside_peers(UPGRADE, "µs"), pages.upgrade
    yield _beside_peers(LOCAL_READ, "µs"), pages.neighbour_reads
    yield _beside_peers(LOCAL_STORE, "µs"), pages.neighbour_stores
    yield _beside_peers(LOCAL_SCAN, "GB/s"), pages.neighbour_adds_up
    yield _beside_peers(SCAN, "GB/s", Bound("at least", 1.5, redis_values.STREAM)), pages.scan
    yield _beside_peers(OVERWRITE, "GB/s"), pages.overwrite


def _beside_peers(name: str, unit: str, *bounds: Bound) -> Figure:
    """A figure of dsm beside all that one would have instead of it, and beside the floor if it goes to another node."""
    floor = (ROUND_TRIP,) if name in (REMOTE_READ, UPGRADE) else ()
    peers = (measured.figure for peer in PEERS for measured in peer.measured if name in measured.instead)
    return Figure(name, unit, beside=(*floor, *peers), bounds=bounds)


def _parts(peer: Peer, child: Child, batch: int) -> Iterator[Part]:
    """What is measured of a peer."""
    for measured in peer.measured:
        floor = (ROUND_TRIP,) if measured.unit == "µs" else ()
        figure = Figure(measured.figure, measured.unit, beside=floor, note=child.version)
        yield figure, functools.partial(measured.measure, child, batch)
