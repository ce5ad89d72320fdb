"""Litmus tests on real clusters: ``python tests/litmus/campaign.py [--rounds N] [--seed S] [NAME...]``.

Every test runs with its variables on one page and on different pages, one process to a node: on as many nodes as it
has threads, and on four, where those that have no part at the moment disturb. IRIW also runs on fewer nodes than
threads. Within one node, where x86-TSO is promised and no more, store buffering and message passing run for
comparison. Printed for each: how often each outcome came. Exit code 1 if one came that the model forbids.
"""

from __future__ import annotations

import itertools
import platform
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import click
import numpy as np
from batches import Settings
from cluster import Cluster, running
from judging import judge
from litmus_program import SOUND
from outcomes import SC, TSO, Histogram
from shapes import SHAPES

_HERE: Final = str(Path(__file__).resolve().parent)
_LIMIT_S: Final = 3600.0
"""Of one group of runs: only there so that nothing hangs for ever."""

_SHOWN_MAX: Final = 4
_LEGEND: Final = """\
sequential: as if the threads had run one after the other; interleaved: only threads that overlap end like this;
forbidden: no interleaving explains it. 1:y=0 is what thread 1 loaded, [x=2] the last value; ? is a value that is stale
or that nobody stored.\
"""

DEFAULT: Final = ("MP", "SB", "LB", "2+2W", "WRC", "IRIW", "CoRR", "CoRR2", "CoWW", "CoRW", "CoWR")


class Variant(NamedTuple):
    """How a litmus test is run."""

    nodes: int
    ranks: int
    shape: str
    apart: bool

    @property
    def model(self) -> str:
        """What is promised."""
        return TSO if self.nodes == 1 else SC

    def settings(self, rounds: int, seed: int) -> Settings:
        """The run."""
        return Settings(self.shape, self.apart, self.nodes == 1, rounds, seed, self.ranks)

    def __str__(self) -> str:
        shape = SHAPES[self.shape]
        where = "" if len(shape.variables) == 1 else ", different pages" if self.apart else ", one page"
        nodes = "one node" if self.nodes == 1 else f"{self.nodes} nodes"
        return f"{self.shape} ({shape.text}), {self.ranks} processes on {nodes}{where}"


class Run(NamedTuple):
    """A variant that was run."""

    variant: Variant
    histogram: Histogram
    took_s: float

    @property
    def forbidden(self) -> int:
        """Rounds whose outcome the model forbids."""
        return self.histogram.total("forbidden")

    def report(self) -> list[str]:
        """What is printed."""
        histogram, model = self.histogram, self.variant.model
        total, mixed = histogram.total(), histogram.total("interleaved")
        lines = [
            str(self.variant),
            f"  {total} rounds in {self.took_s:.1f} s, {mixed} interleaved, {self.forbidden} forbidden by {model}",
            *histogram.table(),
        ]
        if histogram.powerless:
            lines.append("  WARNING: no power: no round shows that its threads overlapped")
        if missing := histogram.missing:
            some = ", ".join(histogram.text(each) for each in missing[:_SHOWN_MAX])
            lines.append(f"  warning: {len(missing)} interleaved outcomes never came: {some}")
        return lines


def variants(names: Iterable[str]) -> list[Variant]:
    """All ways in which the named tests are run, those on the same processes together."""
    found: set[Variant] = set()
    for name in names:
        shape = SHAPES[name]
        threads = len(shape.threads)
        places = {(threads, threads), (4, 4)}
        if name == "IRIW":
            places |= {(2, 4), (3, 4)}
        if name in ("SB", "MP") and platform.machine() in ("x86_64", "AMD64"):
            places.add((1, 2))
        for nodes, ranks in places:
            found |= {Variant(nodes, ranks, name, apart) for apart in {False, len(shape.variables) > 1}}
    order = list(SHAPES)
    return sorted(found, key=lambda each: (*each[:2], order.index(each.shape), each.apart))


def litmus(rank: int, runs: list[Any], name: str, sharing: str, folder: str) -> list[float]:
    """What an application does."""
    sys.path.insert(0, folder)
    from litmus_program import run

    return run(rank, runs, name, sharing)


def run_all(
    cluster: Cluster,
    group: Sequence[Variant],
    rounds: int,
    seed: int,
    sharing: str = SOUND,
    limit_s: float = _LIMIT_S,
) -> list[Run]:
    """Run litmus tests one after the other on the same processes of a cluster."""
    ranks, nodes = group[0].ranks, len(cluster.nodes)
    runs = [variant.settings(rounds, seed) for variant in group]
    name = f"{group[0].shape}-{ranks}-{seed}"
    children = [
        cluster.start(litmus, rank, runs, name, sharing, _HERE, node=rank % nodes, limit_s=limit_s)
        for rank in range(ranks)
    ]
    took_s = [child.result() for child in children]
    found = []
    for number, (variant, settings) in enumerate(zip(group, runs, strict=True)):
        seen, last = (
            [np.load(cluster.home / f"{name}-{number}-{rank}-{what}.npy").tolist() for rank in range(ranks)]
            for what in ("seen", "last")
        )
        histogram = judge(settings, seen, last, variant.model)
        found.append(Run(variant, histogram, max(each[number] for each in took_s)))
    return found


@click.command()
@click.option("--rounds", default=100_000, show_default=True, help="Of each test, in each way in which it is run.")
@click.option("--seed", default=None, type=int, help="Of all that is drawn; else the time.")
@click.argument("names", nargs=-1, type=click.Choice(list(SHAPES)))
def main(rounds: int, seed: int | None, names: tuple[str, ...]) -> None:
    """Run the litmus tests and print how often each outcome came."""
    seed = int(time.time()) if seed is None else seed
    print(f"seed {seed}\n{_LEGEND}", flush=True)
    started_s = time.monotonic()
    runs: list[Run] = []
    for nodes, group in itertools.groupby(variants(names or DEFAULT), key=lambda each: each.nodes):
        with running(nodes) as cluster:
            for variant in group:
                runs += run_all(cluster, [variant], rounds, seed)
                print("\n".join(runs[-1].report()), flush=True)
    weak = [str(run.variant) for run in runs if run.histogram.powerless]
    forbidden = sum(run.forbidden for run in runs)
    print(
        f"{len(runs)} runs, {sum(run.histogram.total() for run in runs)} rounds, "
        f"{sum(run.histogram.total('interleaved') for run in runs)} interleaved, "
        f"{forbidden} forbidden, {time.monotonic() - started_s:.0f} s" + "".join(f"\nno power: {each}" for each in weak)
    )
    sys.exit(forbidden > 0)


if __name__ == "__main__":
    main()
