"""What a campaign tells of each target."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

RSS_GROWTH_KIB_MAX = 64 << 10
"""How much a process may grow under fire, whatever the volume: far above what buffers and allocators keep."""


@dataclass
class Outcome:
    """Of one target: what it was sent, what it did with it, and how large its process was before and after."""

    target: str
    messages: int = 0
    accepted: int = 0
    refused: int = 0
    seconds: float = 0.0
    rss_before_kib: int = 0
    rss_after_kib: int = 0


def rss_kib(pid: int | str = "self") -> int:
    """The resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1])
    raise AssertionError(f"process {pid} has no memory")


@contextlib.contextmanager
def measured(target: str, rss: Callable[[], int]) -> Iterator[Outcome]:
    """Time and memory of what is done inside, and that the memory is bounded."""
    outcome = Outcome(target, rss_before_kib=rss())
    began = time.monotonic()
    yield outcome
    outcome.seconds = round(time.monotonic() - began, 1)
    outcome.messages = outcome.messages or outcome.accepted + outcome.refused
    outcome.rss_after_kib = rss()
    grown = outcome.rss_after_kib - outcome.rss_before_kib
    assert grown < RSS_GROWTH_KIB_MAX, f"{target} grew by {grown} KiB"


def show(outcomes: list[Outcome], seed: int, as_json: bool) -> None:
    """Print what came out, for people or as JSON."""
    if as_json:
        print(json.dumps({"seed": seed, "targets": [asdict(outcome) for outcome in outcomes]}, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"seed {seed}")
    table.add_column("target", no_wrap=True)
    for head in ("messages", "accepted", "refused", "s", "RSS MiB before", "after"):
        table.add_column(head, justify="right")
    for o in outcomes:
        numbers = [f"{n:,}" for n in (o.messages, o.accepted, o.refused)]
        memory = [f"{kib / 1024:.1f}" for kib in (o.rss_before_kib, o.rss_after_kib)]
        table.add_row(o.target, *numbers, f"{o.seconds:.1f}", *memory)
    Console(width=max(110, Console().width)).print(table)
