"""Histories of real clusters, recorded and checked: ``python tests/history/record.py [--programs N] [--seed S]
[--json]``.

Random programs run on clusters of several shapes, one process to a node and several, and on a single node. Every
access is logged; every word's history is checked for linearizability and every small program for sequential
consistency. Exit code 1 with the accesses that show it if anything is wrong, 130 after Ctrl-C. Progress goes to
standard error.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any, Final, NamedTuple

import click
import numpy as np
from cluster import Cluster, running
from histories import Result, check
from interrupting import INTERRUPTED, listen, postponed
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
    logs, took_s = logged(cluster, settings, sharing, limit_s)
    return check(settings, logs), took_s


def logged(
    cluster: Cluster, settings: Settings, sharing: str = SOUND, limit_s: float = _LIMIT_S
) -> tuple[list[list[list[int]]], float]:
    """Run random programs on a cluster: the log of each process, and the seconds that they took."""
    nodes = len(cluster.nodes)
    name = f"history-{settings.ranks}-{settings.seed}"
    with postponed():
        children = [
            cluster.start(history, rank, settings, name, sharing, _HERE, node=rank % nodes, limit_s=limit_s)
            for rank in range(settings.ranks)
        ]
    took_s = max(child.result() for child in children)
    logs = [np.load(cluster.home / f"{name}-{rank}.npy").tolist() for rank in range(settings.ranks)]
    return logs, took_s


class Run(NamedTuple):
    """What was found in one place, and the seconds that the programs took."""

    nodes: int
    ranks: int
    result: Result
    took_s: float

    def __str__(self) -> str:
        return f"{self.ranks} processes on {self.nodes} nodes, {self.took_s:.1f} s: {self.result}"

    @property
    def figures(self) -> dict[str, Any]:
        """As JSON has it."""
        result = self.result
        return {
            "nodes": self.nodes,
            "processes": self.ranks,
            "seconds": round(self.took_s, 3),
            "accesses": result.accesses,
            "words": result.words,
            "overlapping": result.overlapping,
            "programs": result.programs,
            "mixed": result.mixed,
            "not_linearizable": len(result.linearizability),
            "not_sequentially_consistent": len(result.sequential),
            "shown": self.shown,
        }

    @property
    def shown(self) -> list[str]:
        """Some of what is wrong, with the accesses that show it."""
        return [*map(str, self.result.linearizability[:_SHOWN_MAX]), *self.result.sequential[:_SHOWN_MAX]]


class Recording:
    """All runs, what has been found so far, and how it is told."""

    def __init__(self, programs: int, seed: int, as_json: bool) -> None:
        self.programs = programs
        self.seed = seed
        self.as_json = as_json
        self.runs: list[Run] = []
        self.started_s = time.monotonic()

    @property
    def sound(self) -> bool:
        """Was nothing found?"""
        return all(run.result.sound for run in self.runs)

    def run(self) -> None:
        """Run the programs in every place."""
        self._tell(f"seed {self.seed}")
        for nodes, ranks in PLACES:
            print(
                f"{len(self.runs) + 1} of {len(PLACES)}: {ranks} processes on {nodes} nodes",
                file=sys.stderr,
                flush=True,
            )
            with contextlib.ExitStack() as stack:
                with postponed():
                    cluster = stack.enter_context(running(nodes))
                found = Run(nodes, ranks, *run(cluster, Settings(self.programs, self.seed, ranks)))
                self.runs.append(found)
            self._tell("\n".join([str(found), *found.shown]))

    def end(self, interrupted: bool) -> None:
        """Tell what was done."""
        took_s = time.monotonic() - self.started_s
        verdict = ("all sound" if self.runs else "nothing checked") if self.sound else "NOT SOUND"
        done = (
            f"{len(self.runs)} of {len(PLACES)} runs, {sum(run.result.programs for run in self.runs)} programs, "
            f"{sum(run.result.accesses for run in self.runs)} accesses: {verdict}, {took_s:.0f} s"
        )
        if self.as_json:
            figures = {
                "seed": self.seed,
                "programs_each": self.programs,
                "runs_wanted": len(PLACES),
                "sound": self.sound,
                "seconds": round(took_s, 3),
                "interrupted": interrupted,
                "runs": [run.figures for run in self.runs],
            }
            print(json.dumps(figures, indent=2), flush=True)
        if interrupted:
            print(f"interrupted: {done}", file=sys.stderr, flush=True)
        else:
            self._tell(done)

    def _tell(self, text: str) -> None:
        if not self.as_json:
            print(text, flush=True)


@click.command()
@click.option(
    "--programs", type=click.IntRange(1), default=10_000, show_default=True, help="Small programs on each cluster."
)
@click.option("--seed", default=None, type=int, help="Of all that is drawn; else the time.")
@click.option("--json", "as_json", is_flag=True, help="Print every figure as one JSON object, at the end.")
def main(programs: int, seed: int | None, as_json: bool) -> None:
    """Record histories of real clusters and check them."""
    listen()
    recording = Recording(programs, int(time.time()) if seed is None else seed, as_json)
    try:
        recording.run()
    except KeyboardInterrupt:
        recording.end(interrupted=True)
        sys.exit(INTERRUPTED)
    recording.end(interrupted=False)
    sys.exit(not recording.sound)


if __name__ == "__main__":
    main()
