"""Memory that nobody shares: the floor of what is done with pages that are here already, and of filling new ones."""

from __future__ import annotations

import mmap
import time
from typing import Final

import numpy as np

PAGE: Final = 4096


def first_touches(count: int) -> list[int]:
    """Nanoseconds of a first store to each of ``count`` pages: the kernel clears a page and maps it."""
    with mmap.mmap(-1, count * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_NOHUGEPAGE)
        now = time.perf_counter_ns
        took = []
        for at in range(0, count * PAGE, PAGE):
            start = now()
            memory[at] = 1
            took.append(now() - start)
        return took


def fill(size: int) -> float:
    """Seconds that it takes to store to every byte of new memory."""
    with mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        array = np.frombuffer(memory, np.uint8)
        start = time.perf_counter()
        array[:] = 1
        took = time.perf_counter() - start
        del array  # it exports the buffer, which could not be closed
    return took
