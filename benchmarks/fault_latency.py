"""Fault latencies beside their floor, in one run and interleaved: ``python -m benchmarks.fault_latency [--json]``.

Everything runs on this host over TCP loopback: a directory, two nodes, one application on each, and one more on the
second node. The floors are bare pyzmq, both ends in a blocking ``recv`` (benchmarks/floors.py). Pages are touched in
random order, so that nothing is read ahead.

============  =====================================================================================================
round trip    4 KiB to another process and back
three hops    a request through a second process to a third, which answers with 4 KiB: the way of a remote fault; also
              over bare TCP sockets
local fault   a store to a page that a neighbour on the same node has written: the agent alone settles it
first touch   a store to a page that nobody ever touched: one round trip to the directory
remote read   a load from a page that is exclusive on the other node: three hops and 4 KiB
upgrade       a store to a page of which the other node has a read-only copy: three hops
============  =====================================================================================================
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from benchmarks.floors import PAGE, Floors

ROUNDS: Final = 20
BATCH: Final = 100  # operations of each kind in a round
KINDS: Final = ("round trip", "three hops", "three hops, TCP", "local fault", "first touch", "remote read", "upgrade")
REGION: Final = "benchmark.fault_latency"


# --- children ------------------------------------------------------------------------------------------


def _application() -> None:
    """Obey ``{"op": "read" | "write", "pages": [...]}`` lines; answer with a list of nanoseconds."""
    import dsm

    with dsm.attach(REGION, size=_pages() * PAGE) as region:
        memory = region.buf
        now = time.perf_counter_ns
        print("[]", flush=True)
        for line in sys.stdin:
            command = json.loads(line)
            took = []
            write = command["op"] == "write"
            for page in command["pages"]:
                at = page * PAGE
                start = now()
                if write:
                    memory[at] = 1
                else:
                    memory[at]
                took.append(now() - start)
            print(json.dumps(took), flush=True)


def _pages() -> int:
    return ROUNDS * BATCH * 4


class _Child:
    """A child of this program that answers a line of JSON with a line of JSON."""

    def __init__(self, node: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.fault_latency", "application"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=dict(os.environ) | {"DSM_NODE": str(node)},
            text=True,
        )
        self._answer()  # attached

    def ask(self, op: str, pages: list[int]) -> list[int]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"op": op, "pages": pages}) + "\n")
        self.process.stdin.flush()
        answer: list[int] = self._answer()
        return answer

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


# --- the measurement -----------------------------------------------------------------------------------


def measure(progress: Callable[[], None]) -> dict[str, list[int]]:
    """Nanoseconds of every operation, by kind."""
    from dsm import launch

    took: dict[str, list[int]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as folder:
        directory = launch.start_directory()
        sockets = [Path(folder, name) for name in ("a", "b")]
        nodes = [launch.start_node(directory.address, socket=path, name=path.name) for path in sockets]
        floors = Floors()
        reader, writer, neighbour = children = [
            _Child(sockets[0]),
            _Child(sockets[1]),
            _Child(sockets[1]),
        ]
        try:
            pages = list(range(1, _pages(), 2))
            random.Random(1).shuffle(pages)
            for start in range(0, ROUNDS * BATCH, BATCH):
                batch = pages[start : start + BATCH]
                took["round trip"] += floors.round_trips(BATCH)
                took["three hops"] += floors.three_hops(BATCH)
                took["three hops, TCP"] += floors.three_hops_tcp(BATCH)
                took["first touch"] += writer.ask("write", batch)
                took["remote read"] += reader.ask("read", batch)
                took["upgrade"] += writer.ask("write", batch)
                took["local fault"] += neighbour.ask("write", batch)
                progress()
        finally:
            floors.close()
            for child in children:
                child.end()
            for service in (*nodes, directory):
                service.stop()
    return took


def summarize(took: dict[str, list[int]]) -> dict[str, dict[str, float]]:
    """p50 and p99 in microseconds, and the ratio of the medians to the round trip, by kind."""

    def quantile(values: list[int], q: float) -> float:
        return sorted(values)[int(q * (len(values) - 1))] / 1000

    floor = quantile(took["round trip"], 0.5)
    return {
        kind: {
            "p50_us": round(quantile(values, 0.5), 1),
            "p99_us": round(quantile(values, 0.99), 1),
            "ratio": round(quantile(values, 0.5) / floor, 2),
        }
        for kind, values in took.items()
    }


@click.command()
@click.argument("role", required=False, type=click.Choice(["application"]), metavar="")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def main(role: str | None, as_json: bool) -> None:
    """Measure fault latencies against a bare pyzmq round trip."""
    if role is not None:
        _application()
        return
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("measuring", total=ROUNDS)
        figures = summarize(measure(lambda: progress.advance(task)))
    if as_json:
        print(json.dumps(figures, indent=2))
        return
    table = Table("", "p50 µs", "p99 µs", "× round trip", title=f"{ROUNDS * BATCH} of each, interleaved")
    for kind, row in figures.items():
        table.add_row(kind, f"{row['p50_us']:.1f}", f"{row['p99_us']:.1f}", f"{row['ratio']:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
