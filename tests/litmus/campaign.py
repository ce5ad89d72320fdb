"""Litmus tests on real clusters: ``python tests/litmus/campaign.py [--rounds N] [--seed S] [--json] [NAME...]``.

Every test runs with its variables on one page and on different pages, on 2, 3 and 4 nodes. There are as many processes
as nodes, and at least as many as the test has threads: those that have no part at the moment disturb, and of a test
with more threads than nodes some threads are on one node. Within one node, where x86-TSO is promised and no more, store
buffering and message passing run for comparison. Told for each: how often each outcome came. Exit code 1 if one
came that the model forbids, 130 after Ctrl-C. Progress goes to standard error.
"""

from __future__ import annotations

import contextlib
import itertools
import json
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
from interrupting import INTERRUPTED, listen, postponed
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

NODES: Final = (2, 3, 4)


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

    @property
    def interleaved(self) -> int:
        """Rounds that show that their threads overlapped."""
        return self.histogram.total("interleaved")

    @property
    def summary(self) -> str:
        """One line."""
        total = self.histogram.total()
        return (
            f"  {total} rounds in {self.took_s:.1f} s, {self.interleaved} interleaved, "
            f"{self.forbidden} forbidden by {self.variant.model}"
        )

    def report(self) -> list[str]:
        """What is printed."""
        histogram = self.histogram
        lines = [str(self.variant), self.summary, *histogram.table()]
        if histogram.powerless:
            lines.append("  WARNING: no power: no round shows that its threads overlapped; ask for more rounds")
        if missing := histogram.missing:
            some = ", ".join(histogram.text(each) for each in missing[:_SHOWN_MAX])
            lines.append(f"  warning: {len(missing)} interleaved outcomes never came: {some}")
        return lines


def _figures(run: Run) -> dict[str, Any]:
    """All of a run, as JSON has it."""
    variant, histogram = run.variant, run.histogram
    return {
        "test": variant.shape,
        "threads": histogram.shape.text,
        "nodes": variant.nodes,
        "processes": variant.ranks,
        "pages": "different" if variant.apart else "one",
        "model": variant.model,
        "rounds": histogram.total(),
        "seconds": round(run.took_s, 3),
        "sequential": histogram.total("sequential"),
        "interleaved": run.interleaved,
        "forbidden": run.forbidden,
        "power": not histogram.powerless,
        "outcomes": [
            {"outcome": histogram.text(each), "kind": histogram.kind(each), "rounds": histogram.counts[each]}
            for each in histogram.ordered
        ],
        "never_came": [histogram.text(each) for each in histogram.missing],
    }


def variants(names: Iterable[str]) -> list[Variant]:
    """All ways in which the named tests are run, those on the same processes together."""
    found: set[Variant] = set()
    for name in names:
        shape = SHAPES[name]
        places = {(nodes, max(nodes, len(shape.threads))) for nodes in NODES}
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
    with postponed():
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


class Campaign:
    """All runs, what has been found so far, and how it is told."""

    def __init__(self, names: Iterable[str], rounds: int, seed: int, as_json: bool) -> None:
        self.wanted = variants(names)
        self.rounds = rounds
        self.seed = seed
        self.as_json = as_json
        self.runs: list[Run] = []
        self.started_s = time.monotonic()

    @property
    def forbidden(self) -> int:
        """Of all rounds."""
        return sum(run.forbidden for run in self.runs)

    def run(self) -> None:
        """Run all of them."""
        self._tell(f"seed {self.seed}\n{_LEGEND}")
        for nodes, group in itertools.groupby(self.wanted, key=lambda each: each.nodes):
            with contextlib.ExitStack() as stack:
                with postponed():
                    cluster = stack.enter_context(running(nodes))
                for variant in group:
                    self._progress(f"{len(self.runs) + 1} of {len(self.wanted)}: {variant}")
                    self.runs += run_all(cluster, [variant], self.rounds, self.seed)
                    self._progress(self.runs[-1].summary)
                    self._tell("\n".join(self.runs[-1].report()))

    def summary(self) -> str:
        """What was done, in a line."""
        return (
            f"{len(self.runs)} of {len(self.wanted)} runs, {sum(run.histogram.total() for run in self.runs)} rounds, "
            f"{sum(run.interleaved for run in self.runs)} interleaved, "
            f"{self.forbidden} forbidden, {time.monotonic() - self.started_s:.0f} s"
        )

    def end(self, interrupted: bool) -> None:
        """Tell what was done."""
        if self.as_json:
            print(json.dumps(self._figures(interrupted), indent=2), flush=True)
        if interrupted:
            print(f"interrupted: {self.summary()}", file=sys.stderr, flush=True)
        else:
            weak = [f"\nno power, try more rounds: {run.variant}" for run in self.runs if run.histogram.powerless]
            self._tell(self.summary() + "".join(weak))

    def _figures(self, interrupted: bool) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "rounds_each": self.rounds,
            "runs_wanted": len(self.wanted),
            "rounds": sum(run.histogram.total() for run in self.runs),
            "interleaved": sum(run.interleaved for run in self.runs),
            "forbidden": self.forbidden,
            "seconds": round(time.monotonic() - self.started_s, 3),
            "interrupted": interrupted,
            "runs": [_figures(run) for run in self.runs],
        }

    def _tell(self, text: str) -> None:
        if not self.as_json:
            print(text, flush=True)

    def _progress(self, text: str) -> None:
        """Where the results themselves do not show it: a terminal shows both."""
        if self.as_json or not (sys.stdout.isatty() and sys.stderr.isatty()):
            print(text, file=sys.stderr, flush=True)


@click.command()
@click.option("--rounds", type=click.IntRange(1), default=100_000, show_default=True, help="Of each test, in each way.")
@click.option("--seed", default=None, type=int, help="Of all that is drawn; else the time.")
@click.option("--json", "as_json", is_flag=True, help="Print every figure as one JSON object, at the end.")
@click.argument("names", nargs=-1, type=click.Choice(list(SHAPES)))
def main(rounds: int, seed: int | None, as_json: bool, names: tuple[str, ...]) -> None:
    """Run the litmus tests and print how often each outcome came."""
    listen()
    campaign = Campaign(names or DEFAULT, rounds, int(time.time()) if seed is None else seed, as_json)
    try:
        campaign.run()
    except KeyboardInterrupt:
        campaign.end(interrupted=True)
        sys.exit(INTERRUPTED)
    campaign.end(interrupted=False)
    sys.exit(campaign.forbidden > 0)


if __name__ == "__main__":
    main()
