"""Simulate many seeds: ``python -m tests.sim --seeds 1000``, or one of them again: ``python -m tests.sim --seed 7``."""

from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Until there is something to tell, Ctrl-C ends this quietly.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import json
import multiprocessing
import os
import secrets
import sys
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, Final

import click

from . import regressions
from .run import Outcome, simulate

_PROGRESS_S: Final = 5.0
_LARGE_NODES: Final = 1000
_FRESH_SEEDS: Final = 1 << 32
_INTERRUPTED: Final = 130
"""What a shell makes of a process that SIGINT has ended."""


class _Tally:
    """Adds up what the seeds came to, and shows it."""

    def __init__(self, wanted: int, quiet: bool, file: Path) -> None:
        self.wanted = wanted
        self.quiet = quiet
        self.file = file
        self.started = time.monotonic()
        self.counts: Counter[str] = Counter()
        self.done = self.events = 0
        self.simulated_s = 0.0
        self.failures: list[Outcome] = []
        self._next_line = self.started + _PROGRESS_S

    def add(self, outcome: Outcome) -> None:
        self.done += 1
        self.events += outcome.events
        self.simulated_s += outcome.simulated_s
        self.counts.update(outcome.counts)
        if outcome.failure:
            self.failures.append(outcome)
            print(f"{outcome.failure}replay: {outcome.replay_command}", file=sys.stderr)
            print(f"{self._remember(outcome)}\n", file=sys.stderr, flush=True)
        if not self.quiet and time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _PROGRESS_S
            print(self.progress, flush=True)

    def _remember(self, outcome: Outcome) -> str:
        try:
            added = regressions.add(outcome, self.file)
        except OSError as error:
            return f"seed {outcome.seed} could not be added to {self.file}: {error.strerror}"
        there = "now a line of" if added else "a line of already:"
        return f"seed {outcome.seed} is {there} {self.file}, which `make test` replays"

    @property
    def progress(self) -> str:
        return f"{self.done} of {self.wanted} seeds, {self.rate:.1f} seeds/s, {len(self.failures)} failed"

    @property
    def rate(self) -> float:
        return self.done / max(time.monotonic() - self.started, 1e-9)

    def report(self) -> dict[str, Any]:
        return {
            "seeds": self.done,
            "failed": [outcome.replay_command for outcome in self.failures],
            "seconds": round(time.monotonic() - self.started, 1),
            "seeds_per_s": round(self.rate, 1),
            "events": self.events,
            "simulated_s": round(self.simulated_s),
            "counts": dict(sorted(self.counts.items())),
        }

    def show(self) -> None:
        report = self.report()
        print(
            f"{self.done} seeds, {len(self.failures)} failed, "
            f"in {report['seconds']} s ({report['seeds_per_s']} seeds/s); "
            f"{self.events} events, {report['simulated_s']} s simulated"
        )
        for name, count in report["counts"].items():
            print(f"  {count:>9}  {name}")
        for command in report["failed"]:
            print(f"FAILED: {command}")


def _outcomes(tasks: list[tuple[int, int | None, int]], workers: int) -> Iterator[Outcome]:
    if workers == 1:
        yield from map(simulate, tasks)
        return
    # Ctrl-C is for this process, which ends the others: they inherit the mask, which multiprocessing's tracker of
    # resources lifts when it is started.
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        yield from pool.imap_unordered(simulate, tasks, chunksize=1)


@click.command()
@click.option("--seeds", type=click.IntRange(1), default=1000, show_default=True, help="How many seeds to run.")
@click.option("--first", type=int, help="The first of them.  [default: fresh ones]")
@click.option("--seed", type=int, help="Run this one only, and print its trace if it fails.")
@click.option("--nodes", type=click.IntRange(2), help="Nodes of each cluster.  [default: drawn, 2 to 16]")
@click.option("--large", default=1, show_default=True, help=f"How many runs of {_LARGE_NODES} nodes to add.")
@click.option("--jobs", type=click.IntRange(1), help="Processes to run them in.  [default: one a core]")
@click.option("--lines", default=60, show_default=True, help="Lines of the trace of a failing seed to print.")
@click.option(
    "--regressions",
    "file",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    default=regressions.FILE,
    help="Where a seed that fails is added.  [default: regressions.txt beside this program]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def main(
    seeds: int,
    first: int | None,
    seed: int | None,
    nodes: int | None,
    large: int,
    jobs: int | None,
    lines: int,
    file: Path,
    as_json: bool,
) -> None:
    """Simulate whole clusters with faults, everything drawn from one seed each."""
    if seed is not None:
        first, seeds, large = seed, 1, 0
    elif first is None:
        first = secrets.randbelow(_FRESH_SEEDS)
    tasks = [(number, nodes, lines) for number in range(first, first + seeds)]
    tasks[:0] = [(first + number, _LARGE_NODES, lines) for number in range(large)]
    tally = _Tally(len(tasks), as_json, file)
    try:
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if not as_json:
            added = f" and {large} of {_LARGE_NODES} nodes" if large else ""
            print(f"seeds {first} to {first + seeds - 1}{added}", flush=True)
        for outcome in _outcomes(tasks, min(jobs or os.cpu_count() or 1, len(tasks))):
            tally.add(outcome)
    except KeyboardInterrupt:
        print(f"interrupted: {tally.progress}", file=sys.stderr)
        raise SystemExit(_INTERRUPTED) from None
    if as_json:
        print(json.dumps(tally.report(), indent=2))
    else:
        tally.show()
    raise SystemExit(bool(tally.failures))


if __name__ == "__main__":
    main(prog_name="python -m tests.sim")
