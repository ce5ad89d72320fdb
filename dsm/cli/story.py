"""``dsm story``: what a page of a region is at this moment, and what happened to it lately, with the causes."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from dsm import errors, local, wire
from dsm.cli.question import ask_node


@click.command("story")
@click.argument("region")
@click.argument("page", type=click.IntRange(0, (1 << 63) - 1))
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
    members = ", ".join(f"n{number} {name}" for number, name in story["nodes"].items())
    click.echo(f"{title}; nodes: {members}")
    rows: list[tuple[float, str, dict[str, Any]]] = []
    for who, side in (("directory", story["directory"]), (story.get("node", {}).get("name", ""), story.get("node"))):
        if side:
            click.echo(f"{who}: {side['state']}; under way: {', '.join(side['under way']) or 'nothing'}")
            rows += [(entry["time"], who, entry) for entry in side["story"]]
    width = max((len(who) for _, who, _ in rows), default=0)
    for when, who, entry in sorted(rows, key=lambda row: row[0]):  # lines: people search them
        happened = f"{entry['what']}: {entry['before']} -> {entry['after']}"
        click.echo(f"{_clock(when)}  {who:{width}}  {happened}  ({entry['cause']})")


def _clock(when: float) -> str:
    return datetime.fromtimestamp(when).strftime("%H:%M:%S.%f")
