"""Run the benchmarks: ``python -m benchmarks [NAMES...] [--quick] [--json FILE] [--report DIR]``."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import traceback
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks import machine, rows
from benchmarks.measurements import Section

SUITES: Final = tuple(
    name
    for name in ("latency", "bandwidth", "peers", "scale", "apps", "faultpath")
    if importlib.util.find_spec(f"benchmarks.{name}")
)
"""Each is a module with a function ``measure(quick, progress)``."""


def run(names: tuple[str, ...], quick: bool, console: Console) -> tuple[list[Section], dict[str, str]]:
    """What the suites have measured, and the error of each that failed. One that fails does not keep the others."""
    sections, failed = [], {}
    # Drawn only when there is something to say: a thread that draws would be measured, too.
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as bar:
        for name in names:
            task = bar.add_task(name)
            try:
                section = importlib.import_module(f"benchmarks.{name}").measure(quick, _teller(bar, task, name))
            except Exception as error:
                traceback.print_exception(error)
                failed[name] = f"{type(error).__name__}: {error}"
                console.print(f"{name} failed", style="red")
            else:
                sections.append(_without_empty(section))
                show(section, console)
            bar.remove_task(task)
    return sections, failed


def _without_empty(section: Section) -> Section:
    """A figure of which there is no sample is reported as absent."""
    for figure in section.figures:
        if not figure.samples:
            section.absent.setdefault(figure.name, figure.note or "nothing was measured")
    section.figures = [figure for figure in section.figures if figure.samples]
    return section


def _teller(bar: Progress, task: Any, name: str) -> Any:
    return lambda what: bar.update(task, description=escape(f"{name}: {what}"), refresh=True)


def show(section: Section, console: Console) -> None:
    """A section as tables."""
    console.print(f"\n{section.title}", style="bold", markup=False)
    table = Table(*rows.HEADINGS)
    for row in rows.figures(section):
        table.add_row(*map(escape, row), style="red" if "MISSED" in row[-1] else None)
    console.print(table)
    for figure in section.figures:
        if figure.note:
            console.print(f"{figure.name}: {figure.note}", markup=False)
    if facts := rows.facts(section):
        table = Table(*facts[0])
        for row in facts[1:]:
            table.add_row(*map(escape, row))
        console.print(table)
    for name, install in section.absent.items():
        console.print(f"absent: {name} ({install})", style="yellow", markup=False)


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(SUITES))
@click.option("--quick", is_flag=True, help="Seconds instead of minutes; the figures are worth as much less.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write all figures there.")
@click.option("--report", type=click.Path(file_okay=False, path_type=Path), help="Write benchmarks.md and plots there.")
def main(names: tuple[str, ...], quick: bool, json_file: Path | None, report: Path | None) -> None:
    """Measure dsm beside floors and peers, in one run. Without NAMES: everything."""
    facts = machine.facts()
    console = Console(width=None if sys.stdout.isatty() else 200)
    try:
        sections, failed = run(names or SUITES, quick, console)
    except KeyboardInterrupt:
        console.print("interrupted: nothing is written")
        sys.exit(130)
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        measured = [section.to_json() for section in sections]
        results = {"machine": facts, "quick": quick, "sections": measured, "failed": failed}
        json_file.write_text(json.dumps(results, indent=1) + "\n")
    if report is not None:
        from benchmarks.report import write  # it draws, and what draws is slow to import

        console.print(f"written: {write(report, facts, quick, sections, failed)}", markup=False)
    for name, error in failed.items():
        console.print(f"{name} failed: {error}", style="red", markup=False)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
