"""``dsm story``: what a page of a region is at this moment, and what happened to it lately, with the causes."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from dsm import errors, local, wire
from dsm.cli.question import ask_node


@click.command("story")
@click.argument("region")
@click.argument("page", type=click.IntRange(0))
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option("--node", type=click.Path(path_type=Path), metavar="SOCKET", help="Socket of the agent to ask.")
def command(region: str, page: int, as_json: bool, node: Path | None) -> None:
    """Tell what happened to PAGE (counted from 0) of REGION lately, as this node and the directory saw it.

    Both remember a few thousand transitions of all pages together; --node asks another node of this host.
    """
    path = node or local.socket_path()
    story = ask_node(path, wire.Query(0, "story", _number(path, region), page, 1))
    if as_json:
        click.echo(json.dumps(story, indent=2))
    else:
        _print(f"page {page} of {region}", story)


def _number(path: Path, name: str) -> int:
    status = ask_node(path, wire.Query(0, "status", 0, 0, 0))
    regions = {region["name"]: region["id"] for region in status["cluster"]["regions"] if not region["unlinked"]}
    if name not in regions:
        known = ", ".join(sorted(regions)) or "none"
        raise errors.RegionNotFound(f"there is no region {name!r}; the regions are: {known}")
    return int(regions[name])


def _print(title: str, story: dict[str, Any]) -> None:
    from rich.console import Console

    from dsm.cli.status import table

    console = Console(highlight=False, soft_wrap=True)
    members = ", ".join(f"{number} {name}" for number, name in story["nodes"].items())
    console.print(f"{title}; nodes: {members}", markup=False)
    rows: list[tuple[float, str, dict[str, Any]]] = []
    for who, side in (("directory", story["directory"]), (story.get("node", {}).get("name", ""), story.get("node"))):
        if side:
            console.print(
                f"{who}: {side['state']}; under way: {', '.join(side['under way']) or 'nothing'}", markup=False
            )
            rows += [(entry["time"], who, entry) for entry in side["story"]]
    rows.sort(key=lambda row: row[0])
    columns = ("time", "who", "what happened", "before", "after", "because of")
    shown = [
        (_clock(when), who, *(entry[key] for key in ("what", "before", "after", "cause"))) for when, who, entry in rows
    ]
    console.print(table("", columns, shown) if shown else "nothing is remembered of it", markup=False)


def _clock(when: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(when)) + f".{when % 1:.6f}"[1:].replace("0.", ".", 1)
