"""One process of an example that is being measured: ``python -m benchmarks.apps.rank dsm|private``.

The example is the file that a user would copy, unchanged. What it finds in ``dsm`` is the real one, or what stands in
for it on private memory, with a watch around barriers and locks. An order is a line of JSON, and so is the answer.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Final

import numpy as np

COUNTED: Final = ("bytes_in", "invalidations")


class Watch:
    """Where the time of this thread goes, in nanoseconds, by the kernel's own account of it.

    While it does not wait for a barrier or a lock, a thread computes, or could compute and waits for a processor, or
    sleeps: then it waits for a page. The watch runs from one barrier (the data are there) to another (the result is).
    """

    def __init__(self) -> None:
        self._account = os.open("/proc/thread-self/schedstat", os.O_RDONLY)
        self.start_after(0)

    def start_after(self, barriers: int) -> None:
        """Begin anew, when so many barriers have been passed."""
        self.barriers_before = barriers
        self._waits = {"barrier": 0, "lock": 0}
        self._inside = (0, 0, 0)
        self.took: dict[str, int] = {}

    def _now(self) -> tuple[int, int, int]:
        """Time; that spent on a processor (in schedstat it lags by a tick); that spent waiting for one."""
        waited = os.pread(self._account, 100, 0).split()[1]
        return time.perf_counter_ns(), time.thread_time_ns(), int(waited)

    @contextmanager
    def waiting(self, kind: str) -> Iterator[None]:
        """For a barrier or a lock."""
        before = self._now()
        yield
        now = self._now()
        if self.barriers_before:
            if kind == "barrier":
                self.barriers_before -= 1
                self._begin = now
            return
        here = (now[0] - before[0], now[1] - before[1], now[2] - before[2])
        self._inside = (self._inside[0] + here[0], self._inside[1] + here[1], self._inside[2] + here[2])
        self._waits[kind] += here[0]
        if kind == "barrier":  # perhaps the last
            self._read_off(now)

    def _read_off(self, now: tuple[int, int, int]) -> None:
        outside, computed, queued = (n - b - i for n, b, i in zip(now, self._begin, self._inside, strict=True))
        asleep_or_queued = max(outside - computed, 0)
        queued = min(queued, asleep_or_queued)  # this clock lags by a tick of the kernel, the others do not
        fault = asleep_or_queued - queued
        self.took = {
            "all": now[0] - self._begin[0], "compute": computed, "fault": fault, "processor": queued, **self._waits
        }  # fmt: skip


class Regions:
    """What the example has attached, and what this node has counted of it."""

    def __init__(self) -> None:
        self.by_name: dict[str, Any] = {}
        self._before: dict[str, int] = {}

    def _counts(self) -> dict[str, int]:
        counts = dict.fromkeys((*COUNTED, "faults"), 0)
        for region in self.by_name.values():
            stats = region.stats()
            for key in COUNTED:
                counts[key] += stats[key]
            counts["faults"] += sum(fault["count"] for fault in stats["faults"].values())
        return counts

    def begin(self) -> None:
        """Count from here."""
        self._before = self._counts()

    def counted(self) -> dict[str, int]:
        """Since ``begin``."""
        return {key: count - self._before[key] for key, count in self._counts().items()}

    def end(self, unlink: bool) -> None:
        """Let go of them; ``unlink``: for everyone."""
        for region in self.by_name.values():
            if unlink:
                region.unlink()
        self.by_name.clear()
        gc.collect()


def watched(memory: Any) -> tuple[Watch, Regions]:
    """Put a watch around the barriers and locks of ``memory``, and write down what is attached."""
    watch, regions = Watch(), Regions()
    attach, barrier, lock = memory.attach, memory.Barrier, memory.Lock

    def watched_attach(name: str, **options: Any) -> Any:
        return regions.by_name.setdefault(name, attach(name, **options))

    class WatchedBarrier(barrier):  # type: ignore[misc, valid-type]  # either of two
        def wait(self) -> int:
            if watch.barriers_before == 1:
                regions.begin()
            with watch.waiting("barrier"):
                return int(super().wait())

    class WatchedLock(lock):  # type: ignore[misc, valid-type]  # either of two
        def __enter__(self) -> Any:
            with watch.waiting("lock"):
                return super().__enter__()

        def __exit__(self, *raised: Any) -> None:
            with watch.waiting("lock"):
                super().__exit__(*raised)

    memory.attach, memory.Barrier, memory.Lock = watched_attach, WatchedBarrier, WatchedLock
    return watch, regions


def main() -> None:
    """Obey."""
    if sys.argv[1] == "private":
        sys.modules["dsm"] = import_module("benchmarks.apps.private")
    watch, regions = watched(import_module("dsm"))
    print("{}", flush=True)
    for line in sys.stdin:
        (order,) = json.loads(line)
        os.environ |= {"DSM_RANK": str(order["rank"]), "DSM_WORLD_SIZE": str(order["ranks"])}
        watch.start_after(order["barriers_before"])
        program = getattr(import_module(f"examples.{order['module']}"), order["function"])
        result = program(**order["sizes"])
        counted = regions.counted()
        if order["rank"] == 0:
            np.save(order["result"], result)
        print(json.dumps({"took": watch.took, "counted": counted}), flush=True)
        del result
        sys.stdin.readline()  # everybody has answered
        regions.end(unlink=order["rank"] == 0)
        print("{}", flush=True)


if __name__ == "__main__":
    main()
