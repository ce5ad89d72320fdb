"""What travelled: every rank leaves its node's statistics in a shared region, rank 0 prints them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

import dsm

_REGION: Final = "demo reports"
_BYTES: Final = 4096
"""The place of one rank: a page, so that nobody's writing disturbs anybody else's."""

_FAULTS: Final = ("read", "write", "upgrade", "local")
_CAPTION: Final = (
    "p50 / p99 in µs. read, write: the page was absent; upgrade: a shared page was written; "
    "local: settled without asking the directory"
)

_TRAFFIC: Final = {"bytes_in": "bytes received", "bytes_out": "bytes sent", "invalidations": "invalidations"}


def leave(stats: dict[str, Any]) -> None:
    """Put this node's statistics where rank 0 will look for them."""
    with dsm.attach(_REGION, size=_BYTES * dsm.world_size()) as region:
        text = json.dumps(stats).encode()
        place = _BYTES * dsm.rank()
        region.buf[place : place + len(text)] = text


def collect(ranks: int) -> dict[str, dict[str, Any]]:
    """The statistics by the name of the node; all ranks of a node told the same."""
    with dsm.attach(_REGION, create=False) as region:
        texts = [bytes(region.buf[_BYTES * rank : _BYTES * (rank + 1)]).rstrip(b"\0") for rank in range(ranks)]
    return {stats["node"]: stats for stats in map(json.loads, texts)}


def show(stats: dict[str, dict[str, Any]], paths: Iterable[Path], quality: tuple[float, float], same: bool) -> None:
    """The table of what travelled, the paths of the pictures, and the verdict, on standard output."""
    console = Console(highlight=False)
    console.print(_table(dict(sorted(stats.items()))))
    for path in paths:
        console.print(path, soft_wrap=True)
    console.print(f"signal to noise: {quality[0]:.1f} dB before, {quality[1]:.1f} dB after")
    if same:
        console.print("[bold green]identical, bit for bit[/], to one process on private memory")
    else:
        console.print("[bold red]DIFFERENT[/] from one process on private memory")


def _table(stats: dict[str, dict[str, Any]]) -> Table:
    table = Table(title="What travelled during the solution", caption=_CAPTION)
    table.add_column("")
    for node in stats:
        table.add_column(node, justify="right")
        table.add_column("p50 / p99", justify="right")
    for kind in _FAULTS:
        table.add_row(
            f"{kind} faults", *chain.from_iterable(_fault_cells(node["faults"][kind]) for node in stats.values())
        )
    for key, label in _TRAFFIC.items():
        table.add_row(label, *chain.from_iterable((f"{node[key]:,}", "") for node in stats.values()))
    return table


def _fault_cells(fault: dict[str, Any]) -> tuple[str, str]:
    latency = f"{fault['p50_us']:.0f} / {fault['p99_us']:.0f}" if fault["count"] else ""
    return f"{fault['count']:,}", latency
