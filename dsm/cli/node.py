"""``dsm node``: become the node agent of this host, which owns its options."""

from __future__ import annotations

import click

from dsm.cli.directory import PASSED_ON, become


@click.command("node", context_settings=PASSED_ON, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(arguments: tuple[str, ...]) -> None:
    """Run the node agent that serves this host's applications."""
    become("nodes", arguments)
