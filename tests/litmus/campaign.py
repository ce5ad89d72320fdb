"""Litmus tests on real clusters: ``python tests/litmus/campaign.py [--rounds N] [--seconds S] [NAME...]``.

Every test runs with its variables on one page and on different pages, on 2 to 4 nodes, one process for each thread or
node. Printed for each: how often each outcome came. Exit code 1 if an outcome came that the model forbids.
"""

from __future__ import annotations

import contextlib
import platform
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import click
import numpy as np
from batches import Settings
from cluster import Cluster
from judging import judge
from litmus_program import SOUND, run
from outcomes import SC, TSO, Histogram
from shapes import SHAPES

_HERE: Final = Path(__file__).resolve().parent
_LIMIT_S: Final = 1800.0
"""Of one run: only there so that nothing hangs for ever."""


class Variant(NamedTuple):
    """How a litmus test is run."""

    shape: str
    apart: bool
    nodes: int

    @property
    def ranks(self) -> int:
        """A process for each thread, and at least one for each node: those that have no part disturb."""
        return max(len(SHAPES[self.shape].threads), self.nodes)

    @property
    def model(self) -> str:
        """What is promised."""
        return TSO if self.nodes == 1 else SC

    def __str__(self) -> str:
        where = "" if len(SHAPES[self.shape].variables) == 1 else ", variables " + (
            "on different pages" if self.apart else "on one page"
        )
        return f"{self.shape} ({SHAPES[self.shape].text}), {self.ranks} processes on {self.nodes} nodes{where}"


def play_rank(rank: int, values: list[Any], name: str, sharing: str, folder: str) -> float:
    """What an application does."""
    sys.path.insert(0, folder)
    from litmus_program import run

    return run(rank, values, name, sharing)


def run_variant(
    cluster: Cluster, variant: Variant, rounds: int, seed: int, sharing: str = SOUND
) -> tuple[Histogram, float]:
    """Run one litmus test on a cluster of as many nodes: the outcomes, and the seconds it took."""
    settings = Settings(variant.shape, variant.apart, rounds, seed, variant.ranks)
    name = f"{variant.shape}-{variant.apart}-{seed}"
    children = [
        cluster.start(
            play_rank, rank, settings, name, sharing, str(_HERE), node=rank % variant.nodes, limit_s=_LIMIT_S
        )
        for rank in range(variant.ranks)
    ]
    took_s = max(child.result() for child in children)
    seen, last = (
        [np.load(cluster.home / f"{name}-{rank}-{what}.npy").tolist() for rank in range(variant.ranks)]
        for what in ("seen", "last")
    )
    return judge(settings, seen, last, variant.model), took_s


@contextlib.contextmanager
def running(nodes: int) -> Iterator[Cluster]:
    """A cluster that leaves nothing behind."""
    cluster = Cluster(nodes)
    try:
        yield cluster
        cluster.check()
    finally:
        cluster.clean()


def variants(names: Iterable[str]) -> list[Variant]:
    """All ways in which the named tests are run, by number of nodes. Store buffering also within one node."""
    found = []
    for name in names:
        shape = SHAPES[name]
        for nodes in sorted({2, max(2, len(shape.threads)), 4}):
            found += [Variant(name, apart, nodes) for apart in ((False, True) if len(shape.variables) > 1 else (False,))]
    return sorted(found, key=lambda each: each.nodes)


def report(variant: Variant, histogram: Histogram, took_s: float) -> list[str]:
    """What is printed about a run."""
    total, overlapped = histogram.total(), histogram.total("interleaved")
    forbidden = histogram.total("forbidden")
    lines = [
        f"{variant}",
        f"  {total} rounds in {took_s:.1f} s, {overlapped} of them interleaved; forbidden by {variant.model}: {forbidden}",
        *histogram.table(),
    ]
    if histogram.powerless:
        lines.append("  WARNING: no power: the threads never overlapped")
    elif histogram.missing:
        lines.append("  warning: never came: " + ", ".join(histogram.text(each) for each in histogram.missing))
    return lines


assert run is not None and platform is not None and time is not None and click is not None
