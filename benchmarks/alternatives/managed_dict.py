"""A dict of multiprocessing.Manager as an alternative, over TCP. ``python -m benchmarks.alternatives.managed_dict``."""

from __future__ import annotations

import multiprocessing
import os
import platform
from contextlib import ExitStack
from multiprocessing.managers import SyncManager
from pathlib import Path
from typing import Final

from benchmarks.alternatives.alternative import READ_AGAIN, REMOTE_READ, UPGRADE, VALUE, VALUES, Alternative, Latency
from benchmarks.alternatives.client import Client, Operations, each_us, obey
from benchmarks.child import python


def start(folder: Path) -> Client:
    """A client, which starts a manager."""
    return Client(python(__name__))


def _begin(stack: ExitStack) -> tuple[str, Operations]:
    manager = SyncManager(("127.0.0.1", 0), ctx=multiprocessing.get_context("spawn"))
    manager.start()
    stack.callback(manager.shutdown)
    value = os.urandom(VALUE)
    values = manager.dict(dict.fromkeys(range(VALUES), value))

    def get(count: int) -> list[float]:
        took = each_us(count, lambda number: values[number % VALUES])
        assert values[0] == value
        return took

    def put(count: int) -> list[float]:
        return each_us(count, lambda number: values.__setitem__(number % VALUES, value))

    return f"Python {platform.python_version()}", {"get": get, "set": put}


ALTERNATIVE: Final = Alternative(
    name="multiprocessing.Manager",
    install="nothing: it comes with Python",
    about="""\
**multiprocessing.Manager** (a dict, over TCP as between hosts; by default it listens on a Unix socket). Getting a
value of 4 KiB stands beside a remote read and beside reading that page again, setting one beside an upgrade. One
process keeps everything and answers every access by pickle: one plain round trip, no directory and no copies to be
kept coherent, and so faster than a remote fault. Any picklable object can be in it. It does not get faster for who
reads the same again, and the one process serves all.""",
    measured=(
        Latency("get", "Manager: dict get 4 KiB", (REMOTE_READ, READ_AGAIN)),
        Latency("set", "Manager: dict set 4 KiB", (UPGRADE,)),
    ),
    start=start,
)

if __name__ == "__main__":
    obey(_begin)
