"""``dsm doctor``: what this host has and lacks for dsm, with the command that mends each failure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from dsm.doctor import Check


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print the checks as JSON.")
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """Check that this host has what dsm needs.

    Prints the command that mends each failure; the exit code is then 1.
    """
    from dsm import doctor

    checks = doctor.examine()
    if as_json:
        click.echo(json.dumps([check._asdict() for check in checks], indent=2))
    else:
        _print(checks)
    context.exit(0 if all(check.ok for check in checks) else 1)


def _print(checks: list[Check]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for check in checks:
        mark = "[green]✓[/]" if check.ok else "[red]✗[/]"
        table.add_row(mark, _plain(check.name), _plain(check.detail))
    Console(highlight=False).print(table)
    for check in checks:
        if not check.ok and check.fix:
            click.echo(f"\n{check.name}:")
            click.echo(f"    {check.fix}")  # not through rich: it would wrap a line that is meant to be copied


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)
