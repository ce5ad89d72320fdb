"""Histories of real clusters, recorded and checked: ``python tests/history/record.py [--programs N] [--seed S]``.

Random programs run on clusters of several shapes, one process to a node and several, and on a single node. Every
access is logged; every word's history is checked for linearizability and every small program for sequential
consistency. Exit code 1 with the accesses that show it if anything is wrong.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
from cluster import Cluster, running
from histories import Result, check
from programs import Settings
from recorder import SOUND

_HERE: Final = str(Path(__file__).resolve().parent)
_LIMIT_S: Final = 3600.0
"""Of one run: only there so that nothing hangs for ever."""

PLACES: Final = ((2, 2), (2, 4), (3, 3), (4, 4), (3, 6), (1, 3))
"""Nodes, and processes on them."""

_SHOWN_MAX: Final = 3


def history(rank: int, settings: list[Any], name: str, sharing: str, folder: str) -> float:
    """What an application does."""
    sys.path.insert(0, folder)
    from recorder import record

    return record(rank, settings, name, sharing)


def run(cluster: Cluster, settings: Settings, sharing: str = SOUND, limit_s: float = _LIMIT_S) -> tuple[Result, float]:
    """Run random programs on a cluster: what was found, and the seconds that the programs took."""
    nodes = len(cluster.nodes)
    name = f"history-{settings.ranks}-{settings.seed}"
    children = [
        cluster.start(history, rank, settings, name, sharing, _HERE, node=rank % nodes, limit_s=limit_s)
        for rank in range(settings.ranks)
    ]
    took_s = max(child.result() for child in children)
    logs = [np.load(cluster.home / f"{name}-{rank}.npy").tolist() for rank in range(settings.ranks)]
    return check(settings, logs), took_s


@click.command()
@click.option("--programs", default=10_000, show_default=True, help="Small programs on each cluster.")
@click.option("--seed", default=None, type=int, help="Of all that is drawn; else the time.")
def main(programs: int, seed: int | None) -> None:
    """Record histories of real clusters and check them."""
    seed = int(time.time()) if seed is None else seed
    print(f"seed {seed}", flush=True)
    started_s, sound = time.monotonic(), True
    for nodes, ranks in PLACES:
        with running(nodes) as cluster:
            result, took_s = run(cluster, Settings(programs, seed, ranks))
        print(f"{ranks} processes on {nodes} nodes, {took_s:.1f} s: {result}", flush=True)
        for found in (*result.linearizability[:_SHOWN_MAX], *result.sequential[:_SHOWN_MAX]):
            print(found, flush=True)
        sound = sound and result.sound
    print(f"{'all sound' if sound else 'NOT SOUND'}, {time.monotonic() - started_s:.0f} s")
    sys.exit(not sound)


if __name__ == "__main__":
    main()
