"""``python -m directory``: the directory as a program."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import click

from directory.figures import figures
from directory.journal import Journal
from directory.service import Directory
from directory.shard_service import DirectoryShard
from dsm import daemon
from dsm.constants import SHARDS_MAX
from dsm.errors import DsmError
from dsm.trace import HELP, Trace

_STATE = "Keep there what another directory needs to go on if this one is killed: start it with the same file."


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--listen", default="tcp://127.0.0.1:7400", show_default=True, help="tcp://IP:PORT; port * is any free one."
)
@click.option("--shards", type=click.IntRange(1, SHARDS_MAX), help="Processes that share the pages.  [default: 1]")
@click.option("--shard-of", metavar="ADDRESS", help="Be one more shard of the directory that listens there.")
@daemon.key_options
@daemon.metrics_option
@click.option("--state", "state_path", metavar="FILE", type=click.Path(path_type=Path), help=_STATE)
@click.option("--trace", "trace_path", type=click.Path(path_type=Path), help=HELP)
@click.option("--ready-fd", type=int, hidden=True, help="Descriptor on which the address is told once it is bound.")
@click.option("--with-parent", is_flag=True, help="End when the process that started this one ends.")
def main(
    listen: str,
    shards: int | None,
    shard_of: str | None,
    key: Path | None,
    insecure: bool,
    metrics: str | None,
    state_path: Path | None,
    trace_path: Path | None,
    ready_fd: int | None,
    with_parent: bool,
) -> None:
    """Keep the ownership of pages, the registry of regions, locks and the membership of one cluster.

    With --shards N, N - 1 more directories have to be started with --shard-of before any node can join. Each keeps
    every Nth 2 MiB of each region; the first keeps all the rest, and is the one that nodes and questions are for.
    """
    if shards and shard_of:
        raise click.UsageError("--shards and --shard-of exclude each other: the first shard says how many there are")
    if state_path and (shard_of or (shards or 1) > 1):
        raise click.UsageError("--state is for a directory of one shard: what several know, no file brings together")
    with daemon.starting("dsm directory", ready_fd, with_parent) as ready:
        seal = daemon.seal_for(listen, key, insecure)
        trace = Trace(trace_path, "directory") if trace_path else None
        directory = (
            Directory(listen, shards or 1, trace, Journal(state_path) if state_path else None, seal)
            if shard_of is None
            else DirectoryShard(listen, shard_of, trace, seal)
        )
        if metrics:
            daemon.serve_metrics(metrics, lambda: figures(directory.status()))
        daemon.on_stop(directory.stop)
        ready(directory.address)
    # As in a node: the loop makes no reference cycles on its way, and a full collection would be a pause for everybody.
    gc.freeze()
    gc.disable()
    try:
        directory.serve()
    except DsmError as error:
        print(f"dsm directory: error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    finally:
        if trace:
            trace.write()


main(prog_name="dsm directory")
