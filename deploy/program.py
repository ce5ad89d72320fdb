"""What runs in the containers of the tests: ``python program.py NAME ARGUMENT...``. What it finds is its last line."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable

import numpy as np

import dsm
from dsm import errors


def write(value: int) -> float:
    """Fill a region, and say the sum of it."""
    array = dsm.attach("shared", shape=(64, 512), dtype="f8").array
    array[:] = np.arange(64 * 512).reshape(64, 512) + value
    return float(array.sum())


def read() -> float:
    """Its sum."""
    return float(dsm.attach("shared").array.sum())


def count(rank: int, seconds: float) -> list[float]:
    """Add to a number that all share, under a lock, and to one of its own; how often, and the longest time it took."""
    region = dsm.attach("counted", shape=(16, 512), dtype="i8")
    lock = dsm.Lock("counted")
    done, longest_s = 0, 0.0
    print("ready", flush=True)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        began_s = time.monotonic()
        try:
            lock.acquire()
        except errors.DirectoryUnreachable:
            continue
        except errors.OwnerDied:  # between the two additions, perhaps
            region.array[0, 1] = region.array[0, 0]
        region.array[0, 0] += 1
        region.array[0, 1] += 1
        lock.release()
        region.array[1 + rank, done % 512] += 1
        done += 1
        longest_s = max(longest_s, time.monotonic() - began_s)
    return [done, longest_s]


def counted(ranks: int) -> list[int]:
    """What has come of it: the shared number, its twin, and what each has added."""
    array = dsm.attach("counted").array
    return [*array[0, :2].tolist(), *array[1 : 1 + ranks].sum(axis=1).tolist()]


def forget() -> None:
    """Begin anew."""
    with contextlib.suppress(errors.RegionNotFound):
        dsm.attach("counted").unlink()


def reset_counted() -> list[int]:
    """Which pages are lost, which then begin anew."""
    region = dsm.attach("counted")
    lost = [start // region.page_size for start, _, _ in region.lost()]
    region.reset()
    return lost


PROGRAMS: dict[str, Callable[..., object]] = {
    each.__name__: each for each in (write, read, count, counted, forget, reset_counted)
}

if __name__ == "__main__":
    print(json.dumps(PROGRAMS[sys.argv[1]](*map(json.loads, sys.argv[2:]))), flush=True)
