"""``dsm rm``: remove regions and named primitives of the cluster."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from dsm import local, wire
from dsm.cli.question import cluster_status, tell_node
from dsm.errors import DsmError

_REMOVABLE = {
    wire.KIND_NAMES[kind]: kind for kind in range(len(wire.KIND_NAMES)) if kind not in (wire.LOCK, wire.RLOCK)
}
"""A lock is given back by its holder, and is nothing without one."""


@click.command("rm")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--node", type=click.Path(path_type=Path), metavar="SOCKET", help="Socket of the agent to ask.")
def command(names: tuple[str, ...], node: Path | None) -> None:
    """Remove the regions and the named primitives called NAME, or that match it ('tmp-*').

    A region's name is free at once; processes that use it go on, and its memory ends with the last of them. A primitive
    that somebody waits for is not removed, nor is a lock: its holder gives it back.
    """
    path = node or local.socket_path()
    there = list(_removable(cluster_status(path)))
    failed = 0
    for pattern in names:
        matching = [one for one in there if fnmatch.fnmatchcase(one[1], pattern)]
        if not matching:
            failed += 1
            click.echo(f"dsm: nothing that can be removed is called {pattern!r}: see `dsm ls`", err=True)
        for one in matching:
            there.remove(one)
            kind, name, message = one
            try:
                tell_node(path, message, wire.Ready if kind == "region" else wire.Granted)
                click.echo(f"removed {kind} {name}")
            except DsmError as error:
                failed += 1
                click.echo(f"dsm: {error}", err=True)
    if failed:
        raise click.exceptions.Exit(1)


def _removable(cluster: dict[str, Any]) -> Iterator[tuple[str, str, wire.Message]]:
    """What it is, its name, and the message that removes it."""
    for row in cluster.get("regions", []):
        if not row["unlinked"]:
            yield "region", row["name"], wire.Unlink(0, row["name"])
    for row in cluster.get("primitives", []):
        if row["kind"] in _REMOVABLE:
            yield row["kind"], row["name"], wire.Forget(0, row["name"], _REMOVABLE[row["kind"]])
