"""``make model``: explore every configuration and tell what was found."""

from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Until there is something to tell, Ctrl-C ends this quietly.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import json
import multiprocessing
import sys
from collections.abc import Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Final

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table

from .configurations import FULL, QUICK
from .sides import Configuration
from .verdict import Sight, Verdict, run_apart

_INTERRUPTED: Final = 130
"""What a shell makes of a process that SIGINT has ended."""


def run_all(chosen: dict[str, Configuration], jobs: int) -> Iterator[Sight | Verdict]:
    """All of them, ``jobs`` at a time, each in a process of its own; verdicts, and sights in between."""
    waiting = list(chosen.items())
    running: dict[Connection, tuple[str, BaseProcess]] = {}
    interrupted, interrupt = multiprocessing.Pipe(duplex=False)  # not in the middle of anything else
    before = signal.signal(signal.SIGINT, lambda *_: interrupt.send(None))
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                name, how = waiting.pop(0)
                there, process = _start(name, how)
                running[there] = name, process
            heard = wait([interrupted, *running])
            if interrupted in heard:
                raise KeyboardInterrupt
            for there in [there for there in running if there in heard]:
                try:
                    yield there.recv()
                except EOFError:
                    name, process = running.pop(there)
                    process.join()
                    if process.exitcode:  # what was wrong it has said itself, if it could
                        raise click.ClickException(f"{name}: its process has ended with {process.exitcode}") from None
    finally:
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.join()
        signal.signal(signal.SIGINT, before)


def _start(name: str, how: Configuration) -> tuple[Connection, BaseProcess]:
    context = multiprocessing.get_context("spawn")  # the live table has a thread, which no fork should copy
    there, here = context.Pipe(duplex=False)
    process = context.Process(target=run_apart, args=(name, how, here), daemon=True)
    # Ctrl-C is for this process, which ends the others: they inherit the mask, which multiprocessing's tracker of
    # resources lifts when it is started.
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    process.start()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    here.close()
    return there, process


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
    try:
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        wrong = _explore_all(chosen, jobs, known, as_json)
    except KeyboardInterrupt:
        click.echo(f"interrupted: {_so_far(chosen, known)}", err=True)
        sys.exit(_INTERRUPTED)
    sys.exit(wrong)


def _so_far(chosen: dict[str, Configuration], known: dict[str, Sight | Verdict]) -> str:
    verdicts = [each for each in known.values() if isinstance(each, Verdict)]
    wrong = sum(bool(verdict.wrong) for verdict in verdicts)
    states = sum(each.states if isinstance(each, Verdict) else each[1] for each in known.values())
    return f"{len(verdicts)} of {len(chosen)} configurations explored, {wrong} of them wrong; {states:,} states so far"


def _explore_all(chosen: dict[str, Configuration], jobs: int, known: dict[str, Sight | Verdict], as_json: bool) -> bool:
    """Explore and tell; ``known`` grows. Is anything wrong?"""
    console = Console(quiet=as_json)
    with Live(table(chosen, known), console=console, refresh_per_second=4, transient=not console.is_terminal) as live:
        for each in run_all(chosen, jobs):
            known[each[0]] = each
            if isinstance(each, Verdict) and as_json:
                click.echo(json.dumps(each._asdict()))
            live.update(table(chosen, known))
    if not console.is_terminal:
        console.print(table(chosen, known))
    wrong = [each for each in known.values() if isinstance(each, Verdict) and each.wrong]
    for verdict in wrong:
        console.print(f"\n{verdict.name}: {verdict.wrong}\n\n{verdict.conversation}", markup=False, highlight=False)
    return bool(wrong)


if __name__ == "__main__":
    main()
