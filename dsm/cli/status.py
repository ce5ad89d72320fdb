"""``dsm status``: the cluster as the local node agent, or a directory, sees it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from dsm import local, wire
from dsm.cli.question import ask_directory, ask_node
from dsm.constants import HEARTBEAT_S

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_QUESTION: Final = wire.Query(0, "status", 0, 0, 0)
_LATE_S: Final = 3 * HEARTBEAT_S
"""Silent for longer, a node is shown as late: one heartbeat may be lost or slow without a meaning."""
_PIPED_COLUMNS: Final = 10_000
"""For a file or a pipe nothing is wrapped or cut: rich pads no line to the width."""
_COUNTERS: Final = {
    "late": "answers to requests that were over already; dropped",
    "rejected": "messages and connections that broke the rules; refused",
}


@click.command("status")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option("--node", type=click.Path(path_type=Path), metavar="SOCKET", help="Socket of the agent to ask.")
@click.option("--directory", metavar="ADDRESS", help="Ask this directory instead of an agent: tcp://HOST:PORT.")
@click.option(
    "--key", type=click.Path(path_type=Path), envvar="DSM_KEY", show_envvar=True, help="Key of that directory."
)
def command(as_json: bool, node: Path | None, directory: str | None, key: Path | None) -> None:
    """Show nodes and regions, and of the node that is asked faults by region and kind, and traffic.

    Asks the agent at DSM_NODE or at this user's default socket unless told otherwise.
    """
    if node and directory:
        raise click.UsageError("--node and --directory exclude each other")
    if directory:
        status = {"directory": directory, "cluster": ask_directory(directory, _QUESTION, key)}
    else:
        status = ask_node(node or local.socket_path(), _QUESTION)
    if as_json:
        click.echo(json.dumps(status, indent=2, default=repr))
    else:
        _print(status)


# --- tables --------------------------------------------------------------------------------------------


def _print(status: dict[str, Any]) -> None:
    out = console()
    node, cluster = status.get("node", {}), status.get("cluster", {})
    out.print(f"directory  {status.get('directory', '?')}", markup=False)
    if node:
        up_s = float(node.get("uptime_s", 0))
        out.print(f"this node  {node.get('name', '?')} (pid {node.get('pid', '?')}, up {up_s:.0f} s)", markup=False)
    out.print(_nodes(cluster.get("nodes", []), cluster.get("away", [])))
    out.print(_regions(cluster.get("regions", [])))
    for title in ("shards", "primitives"):
        if cluster.get(title):
            out.print(_anything(title, cluster[title]))
    for made in _of_this_node(node.get("regions", {}), node.get("counters", {})):
        out.print(made)


def _of_this_node(regions: dict[str, dict[str, Any]], counters: dict[str, int]) -> Iterator[Table]:
    faults = [
        (name, kind, *_fields(row, "count", "p50_us", "p99_us"))
        for name, region in regions.items()
        for kind, row in region.get("faults", {}).items()
        if row.get("count")
    ]
    if faults:
        columns = ("region", "kind", "count", "p50 µs", "p99 µs")
        yield table("faults of this node", columns, faults, numbers={2, 3, 4})
    if regions:
        traffic = [
            (name, *(human(int(region.get(key, 0))) for key in ("bytes_in", "bytes_out")), region.get("invalidations"))
            for name, region in regions.items()
        ]
        headers = ("region", "received", "sent", "pages invalidated")
        yield table("traffic of this node", headers, traffic, numbers={1, 2, 3})
    if counters:
        rows = [(name, count, _COUNTERS.get(name, "")) for name, count in sorted(counters.items())]
        yield table("messages this node did not take", ("what", "count", "meaning"), rows, numbers={1})


def _nodes(nodes: list[dict[str, Any]], away: list[str]) -> Table:
    """A node's number is new each time that it becomes a member: its epoch. ``away``: they are to come back to a
    directory that begins again."""
    rows = []
    for node in nodes:
        silent = float(node.get("silent_s", 0))
        state = "late" if silent > _LATE_S else "up"
        state = "away" if node.get("name") in away else state
        lease = f"{float(node.get('lease_s', 0)):.0f} s"
        rows.append((*_fields(node, "id", "name", "address", "applications"), state, f"{silent:.1f} s ago", lease))
    columns = ("epoch", "name", "address", "applications", "state", "last heartbeat", "lease")
    return table("nodes", columns, rows, numbers={0, 3, 6})


def _regions(regions: list[dict[str, Any]]) -> Table:
    rows = []
    for region in regions:
        shared, exclusive, lost = (int(region.get("pages", {}).get(key, 0)) for key in ("shared", "exclusive", "lost"))
        sizes = (human(int(region.get("size", 0))), human(int(region.get("page_size", 0))))
        attached = ", ".join(map(str, region.get("attached", [])))
        rows.append((*_fields(region, "name"), *sizes, shared + exclusive + lost, shared, exclusive, lost, attached))
    columns = ("name", "size", "page size", "touched", "shared", "exclusive", "lost", "attached")
    return table("regions (pages)", columns, rows, numbers=set(range(1, 7)))


def _anything(title: str, rows: list[Any]) -> Table:
    """A table of maps whose keys are not known here."""
    maps = [row if isinstance(row, dict) else {"name": row} for row in rows]
    columns = list(dict.fromkeys(key for row in maps for key in row))
    return table(title, columns, [_fields(row, *columns) for row in maps])


def _fields(row: dict[str, Any], *keys: str) -> tuple[Any, ...]:
    return tuple(row.get(key, "") for key in keys)


def console() -> Console:
    """Where tables go."""
    from rich.console import Console

    made = Console(highlight=False)
    if not made.is_terminal:
        made.width = _PIPED_COLUMNS
    return made


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[Any]], numbers: Iterable[int] = ()) -> Table:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    right = set(numbers)
    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for index, column in enumerate(columns):
        made.add_column(column, justify="right" if index in right else "left")
    for row in rows:
        made.add_row(*(escape(str(value)) for value in row))
    return made


def human(count: int) -> str:
    """A number of bytes for people: ``"4 KiB"``, ``"1.5 GiB"``."""
    value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        del units[0]
    return f"{value:.1f}".removesuffix(".0") + f" {units[0]}"
