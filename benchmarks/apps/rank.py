"""One process of an example that is being measured: ``python -m benchmarks.apps.rank dsm|private``.

It takes a line of JSON for each run, and answers with one. The example is the file that a user would copy, unchanged;
what it finds in ``dsm`` is the real one, or what stands in for it on private memory, with a watch around barriers and
locks. The time of a run goes from its first barrier (the data are there) to its last (the result is).
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

MODULE: Final = "benchmarks.apps.rank"
STATISTICS: Final = ("bytes_in", "invalidations")


class Watch:
    """Where the time of this thread goes, in nanoseconds, by the kernel's own account of it.

    While it does not wait for a barrier or a lock, a thread computes, or could compute and waits for a processor, or
    sleeps: then it waits for a page.
    """

    def __init__(self) -> None:
        self._account = os.open("/proc/thread-self/schedstat", os.O_RDONLY)
        self._waits: dict[str, int] = {}
        self._begin: tuple[int, int, int] | None = None
        self.took: dict[str, int] = {}

    def _now(self) -> tuple[int, int, int]:
        """Time; that spent on a processor (in schedstat it lags by a tick); that spent waiting for one."""
        waited = os.pread(self._account, 100, 0).split()[1]
        return time.perf_counter_ns(), time.thread_time_ns(), int(waited)

    def clear(self) -> None:
        self._begin = None

    @property
    def running(self) -> bool:
        """Has the first barrier been passed?"""
        return self._begin is not None

    @contextmanager
    def waiting(self, kind: str) -> Iterator[None]:
        """For everybody's barrier, or a lock. The first barrier starts the watch, each barrier may be the last."""
        before = self._now()
        yield
        now = self._now()
        if not self.running:
            if kind == "barrier":
                self._begin, self._asleep = now, [0, 0, 0]
                self._waits = {"barrier": 0, "lock": 0}
            return
        self._asleep = [a + n - b for a, n, b in zip(self._asleep, now, before, strict=True)]
        self._waits[kind] += now[0] - before[0]
        if kind == "barrier":
            self._stop(now)

    def _stop(self, now: tuple[int, int, int]) -> None:
        assert self._begin is not None
        all_of_it, ran, waited = (n - b for n, b in zip(now, self._begin, strict=True))
        outside = [all_of_it - self._asleep[0], ran - self._asleep[1], waited - self._asleep[2]]
        self.took = {
            "all": all_of_it,
            "compute": outside[1],
            "processor": outside[2],
            "fault": outside[0] - outside[1] - outside[2],
            **self._waits,
        }


def main() -> None:
    """Obey."""
    real = sys.argv[1] == "dsm"
    if not real:
        sys.modules["dsm"] = import_module("benchmarks.apps.private")
    memory: Any = import_module("dsm")
    watch, regions = Watch(), []
    attach, barrier, lock = memory.attach, memory.Barrier, memory.Lock

    class WatchedBarrier(barrier):  # type: ignore[misc, valid-type]
        def wait(self) -> None:
            if not watch.running:
                before.update(statistics())
            with watch.waiting("barrier"):
                super().wait()

    class WatchedLock(lock):  # type: ignore[misc, valid-type]
        def __enter__(self) -> None:
            with watch.waiting("lock"):
                self.acquire()

        def __exit__(self, *_: object) -> None:
            with watch.waiting("lock"):
                self.release()

    def watched_attach(*arguments: Any, **options: Any) -> Any:
        region = attach(*arguments, **options)
        regions.append(region)
        return region

    def statistics() -> dict[str, int]:
        counts = dict.fromkeys((*STATISTICS, "faults"), 0)
        for stats in [region.stats() for region in {region.name: region for region in regions}.values()] if real else []:
            for key in STATISTICS:
                counts[key] += stats[key]
            counts["faults"] += sum(fault["count"] for fault in stats["faults"].values())
        return counts

    memory.attach, memory.Barrier, memory.Lock = watched_attach, WatchedBarrier, WatchedLock
    before: dict[str, int] = {}
    print("{}", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        os.environ |= {"DSM_RANK": str(order["rank"]), "DSM_WORLD_SIZE": str(order["ranks"])}
        watch.clear()
        before.clear()
        result = getattr(import_module(f"examples.{order['module']}"), order["function"])(**order["sizes"])
        counts = {key: count - before.get(key, 0) for key, count in statistics().items()}
        if order["rank"] == 0:
            np.save(order["result"], result)
        print(json.dumps({"took": watch.took, "counts": counts}), flush=True)
        del result
        json.loads(sys.stdin.readline())  # all have answered
        if not real:
            memory.forget()
        elif order["rank"] == 0:
            for name in {region.name for region in regions}:
                next(region for region in regions if region.name == name).unlink()
        regions.clear()
        gc.collect()
        print("{}", flush=True)


if __name__ == "__main__":
    main()
