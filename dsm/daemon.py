"""What a service owes to whoever started it: one line when it is ready or cannot start, and to end when asked."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dsm import memory
from dsm.address import is_loopback
from dsm.errors import DsmError, InvalidArgument

if TYPE_CHECKING:
    from dsm.metrics import Figure
    from dsm.seal import Seal


@contextlib.contextmanager
def starting(program: str, ready_fd: int | None, with_parent: bool) -> Iterator[Callable[[str], None]]:
    """Yields the function that says ``ready <address>``.

    A :class:`DsmError` in the body becomes ``error <name> <text>`` on the same descriptor, one line on stderr and exit
    code 1. ``with_parent``: SIGTERM comes when the process that started this one ends.
    """
    # Every connection and every mapping costs a descriptor; systems still start programs with 1024.
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    if with_parent:
        memory.die_with_parent(signal.SIGTERM)
    level = logging.WARNING if with_parent else logging.INFO
    logging.basicConfig(level=level, format=f"%(asctime)s {program}: %(message)s")
    try:
        yield lambda address: _tell(ready_fd, f"ready {address}")
    except DsmError as error:
        _tell(ready_fd, f"error {type(error).__name__} {error}")
        print(f"{program}: error: {error}", file=sys.stderr)
        raise SystemExit(1) from None


def key_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options ``key`` and ``insecure`` of a service."""
    which = "Key of the cluster, made by `dsm keygen`; only who has it is heard."
    key = click.option("--key", type=click.Path(path_type=Path), envvar="DSM_KEY", show_envvar=True, help=which)
    insecure = click.option("--insecure", is_flag=True, help="Listen to everybody who reaches --listen, in plain text.")
    return key(insecure(command))


def metrics_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """The option ``metrics`` of a service."""
    return click.option("--metrics", metavar="HOST:PORT", help="Serve figures for Prometheus there.")(command)


def serve_metrics(address: str, collect: Callable[[], Iterable[Figure]]) -> None:
    """See :func:`dsm.metrics.serve`."""
    from dsm import metrics

    metrics.serve(address, collect)


def seal_for(listen: str, key: Path | None, insecure: bool) -> Seal | None:
    """How to protect what is said at the address ``listen``. Raises :class:`InvalidArgument` if nothing would, and
    others than this host's users can reach it."""
    if key is not None and not insecure:
        from dsm.seal import Seal

        return Seal(key)
    if insecure or is_loopback(listen):
        return None
    raise InvalidArgument(
        f"whoever reaches {listen} could read and change everything: make a key with `dsm keygen FILE`, copy it to "
        "each host, and give --key FILE (or DSM_KEY) to each service; or say --insecure, on a network that you trust"
    )


def on_stop(stop: Callable[[], None]) -> None:
    """Call ``stop`` at SIGTERM and SIGINT."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop())


def serve(turn: Callable[[], bool]) -> None:
    """Take turns until one says that it was the last.

    Not in a service's own module, which may be compiled: Python runs signal handlers between instructions of its own
    only, and so in this loop once a turn.
    """
    while turn():
        pass


def _tell(ready_fd: int | None, line: str) -> None:
    if ready_fd is None:
        return
    try:
        os.write(ready_fd, line.replace("\n", " ").encode() + b"\n")
    except BrokenPipeError:  # whoever started this service has gone meanwhile
        raise SystemExit(1) from None
    os.close(ready_fd)
