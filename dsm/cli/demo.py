"""``dsm demo``: the main job on a real photograph."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("demo")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("demo-output"),
    show_default=True,
    help="Where the pictures go; made if it is missing.",
)
def command(output: Path) -> None:
    """Denoise a photograph with 4 processes on 2 nodes.

    The result is compared bit for bit with that of one process on private memory.
    """
    from dsm import demo

    demo.main(output)
