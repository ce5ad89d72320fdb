"""``make model``: explore every configuration and tell what was found."""

from __future__ import annotations

import contextlib
import gc
import json
import multiprocessing
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from queue import Empty

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table

from .configurations import FULL, QUICK
from .sides import Configuration
from .verdict import Sight, Verdict, run


def run_all(chosen: dict[str, Configuration], jobs: int) -> Iterator[Sight | Verdict]:
    """All of them, ``jobs`` at a time, the small ones first; verdicts, and sights in between."""
    context = multiprocessing.get_context("spawn")  # the live table has a thread, which no fork should copy
    # No garbage is made of cycles here, and there are millions of tuples to look through for it.
    with context.Manager() as shared, ProcessPoolExecutor(jobs, context, gc.disable, max_tasks_per_child=1) as pool:
        seen = shared.Queue()
        left: set[Future[Verdict]] = {pool.submit(run, name, how, seen) for name, how in chosen.items()}
        while left:
            with contextlib.suppress(Empty):
                yield seen.get(timeout=0.2)
            done = {future for future in left if future.done()}
            left -= done
            yield from (future.result() for future in as_completed(done))


def table(chosen: dict[str, Configuration], known: dict[str, Sight | Verdict]) -> Table:
    grid = Table(title="every interleaving of the production machines")
    for column in ("configuration", "operations", "states", "transitions", "depth", "CPU s", "verdict"):
        grid.add_column(column, justify="left" if column in ("configuration", "verdict") else "right")
    for name, how in chosen.items():
        at = known.get(name)
        operations = "+".join(map(str, how.budgets))
        if isinstance(at, Verdict):
            verdict = f"[red]{at.wrong}" if at.wrong else "[green]holds"
            row = f"{at.states:,}", f"{at.transitions:,}", str(at.depth), f"{at.seconds:.1f}", verdict
        elif at is not None:
            row = f"{at[1]:,}", "", str(at[3]), "", f"[dim]{at[2]:,} to go, so far"
        else:
            row = "", "", "", "", "[dim]waits"
        grid.add_row(name, operations, *row)
    return grid


@click.command()
@click.option("--quick", is_flag=True, help="Only what every test run explores.")
@click.option("--only", help="Only configurations with this in their name.", default="")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a configuration, instead of a table.")
@click.option("--jobs", default=2, show_default=True, help="Explorations at a time; each may take 4 GB.")
def main(quick: bool, only: str, as_json: bool, jobs: int) -> None:
    """Explore every interleaving of the production machines."""
    chosen = {name: how for name, how in (QUICK if quick else FULL).items() if only in name}
    if not chosen:
        raise click.UsageError(f"no configuration has {only!r} in its name; they are: {', '.join(FULL)}")
    known: dict[str, Sight | Verdict] = {}
    console = Console(quiet=as_json)
    with Live(table(chosen, known), console=console, refresh_per_second=4, transient=not console.is_terminal) as live:
        for each in run_all(chosen, jobs):
            if isinstance(known.get(each[0]), Verdict):  # a sight that comes late
                continue
            known[each[0]] = each
            if isinstance(each, Verdict) and as_json:
                click.echo(json.dumps(each._asdict()))
            live.update(table(chosen, known))
    if not console.is_terminal:
        console.print(table(chosen, known))
    wrong = [each for each in known.values() if isinstance(each, Verdict) and each.wrong]
    for verdict in wrong:
        console.print(f"\n{verdict.name}: {verdict.wrong}\n\n{verdict.conversation}", markup=False, highlight=False)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
