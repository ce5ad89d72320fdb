"""``dsm ls``: the regions and the named primitives of the cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from dsm import local
from dsm.cli.question import cluster_status
from dsm.cli.status import console, human, table


@click.command("ls")
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON.")
@click.option("--node", type=click.Path(path_type=Path), metavar="SOCKET", help="Socket of the agent to ask.")
def command(as_json: bool, node: Path | None) -> None:
    """List regions and named primitives: what there is, who uses it, and how long it lives."""
    cluster = cluster_status(node or local.socket_path())
    regions = [_region(row) for row in cluster.get("regions", [])]
    primitives = [_primitive(row) for row in cluster.get("primitives", [])]
    if as_json:
        click.echo(json.dumps({"regions": regions, "primitives": primitives}, indent=2))
        return
    out = console()
    if regions:
        columns = ("name", "size", "shape", "dtype", "page size", "used on", "lives")
        out.print(table("regions", columns, map(_region_row, regions), numbers={1, 4}))
    if primitives:
        out.print(
            table("primitives", ("name", "kind", "waiting", "state"), map(_primitive_row, primitives), numbers={2})
        )
    if not regions and not primitives:
        out.print("nothing: no region and no primitive has a name here")


def _region(row: dict[str, Any]) -> dict[str, Any]:
    options = row.get("options", {})
    return {
        "name": row["name"],
        "size": int(row["size"]),
        "shape": options.get("shape"),
        "dtype": options.get("dtype"),
        "page_size": int(row["page_size"]),
        "used_on": list(row.get("attached", [])),
        "persist": options.get("persist", True),
        "unlinked": bool(row.get("unlinked")),
    }


def _primitive(row: dict[str, Any]) -> dict[str, Any]:
    state = {key: value for key, value in row.items() if key not in ("name", "kind", "calls")}
    return {"name": row["name"], "kind": row["kind"], "waiting": row["calls"], "state": state}


def _region_row(region: dict[str, Any]) -> list[Any]:
    shape, dtype = region["shape"], region["dtype"]
    layout = ("", "") if shape is None else (" × ".join(map(str, shape)) or "()", dtype)
    if region["unlinked"]:
        lives = "while it is used: it was unlinked"
    else:
        lives = "until it is unlinked" if region["persist"] else "while it is used"
    used_on = ", ".join(map(str, region["used_on"])) or "-"
    return [region["name"], human(region["size"]), *layout, human(region["page_size"]), used_on, lives]


def _primitive_row(primitive: dict[str, Any]) -> list[Any]:
    state = ", ".join(f"{key} {value}" for key, value in primitive["state"].items() if value != "")
    return [primitive["name"], primitive["kind"], primitive["waiting"], state]
