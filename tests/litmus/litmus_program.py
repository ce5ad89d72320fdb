"""What a process of a litmus test runs: its part of every batch, by single accesses whose order nothing changes.

**Python.** An access is ``words[i]`` or ``words[i] = value`` on ``memoryview.cast("Q")``. Each is one bytecode that
calls one C function (``memory_item`` / ``memory_ass_sub`` in Objects/memoryobject.c), which copies 8 aligned bytes
with a memcpy of constant length: one ``mov`` (in the disassembly of CPython 3.11.7 ``mov (%rdi),%rdi`` and
``mov %r14,(%r12)``). CPython has no optimisation that reorders, merges, repeats or drops two
subscript operations of a memoryview: its compiler works on constants, the specialising interpreter (3.11) and the JIT
(3.13) specialise subscripts of lists, tuples, strings and dicts only, and each operation is an opaque call, which a C
compiler cannot move another one across. The address, the value and the room for the result are computed before and
kept after. Not used: ``struct.pack_into("<Q")``, which stores byte by byte (it is native ``"Q"`` that does not);
slices, whose memcpy has a length that is known at run time only; items of ndarrays, which are one ``mov`` too if they
are aligned and of native order, but go through scalar objects and, for everything else, through ``copyswap``.
``test_a_word_is_never_half_written`` looks at it.

A thread that waits for a page holds the GIL, so threads of one process cannot overlap: each litmus thread is a process,
and no process plays two threads of a round. The collector and the operating system may stop a process between two
accesses for any time. That delays; it reorders nothing.

**The processor.** x86 lets a load overtake an older store to another address (store buffering), no more. Between
processes of one node this can be seen, and only TSO is promised there. Between nodes it cannot: a page leaves a node
after it was protected or unmapped on every core, and that interrupt empties the store buffer.
"""

from __future__ import annotations

import mmap
import os
import time
from typing import Any, Final

import numpy as np
from batches import PAGE_WORDS, PAGES, Batch, Call, Settings, batches, script
from broken_sharing import Stale

import dsm

PAGE_BYTES: Final = PAGE_WORDS * 8

_LEAD_NS: Final = 200_000
"""From when the last process is ready to when all begin: longer than it takes all of them to see that."""

SOUND: Final = "sound"
PRIVATE: Final = "private"
"""Broken on purpose: every process has a region of its own."""
STALE: Final = "stale"
"""Broken on purpose: half of the pages are read from a copy, renewed now and then."""


class SharedStart:
    """One moment at which the processes begin a batch, which a barrier alone does not give: they leave it up to
    milliseconds apart.

    It is agreed on by spinning on words of ordinary memory of this host, a word for each process, that dsm knows
    nothing of: each proposes a moment a little later than now, and all take the latest. All this is over before the
    first access of the batch; like the barrier before it, it may order a batch after the one before, and nothing within
    it.
    """

    def __init__(self, path: str, rank: int, ranks: int) -> None:
        with open(path, "a+b") as file:
            file.truncate(8 * ranks)
            self._words = memoryview(mmap.mmap(file.fileno(), 8 * ranks)).cast("Q")
        self._rank = rank
        self._last_ns = 0

    def wait(self) -> int:
        """Wait for the moment; when it was. All processes have to be through the last batch, by a barrier."""
        self._words[self._rank] = time.monotonic_ns() + _LEAD_NS
        while min(self._words) <= self._last_ns:
            os.sched_yield()
        self._last_ns = max(self._words)
        while time.monotonic_ns() < self._last_ns:
            os.sched_yield()
        return self._last_ns


def play(stores: memoryview, loads: memoryview | Stale, calls: list[Call], start_ns: int) -> list[int]:
    """Make the accesses in order, none of them before its time; what the loads saw."""
    seen = []
    for word, value, when_us in calls:
        if when_us:
            wait_ns = start_ns + when_us * 1000 - time.monotonic_ns()
            if wait_ns > 0:
                time.sleep(wait_ns * 1e-9)
        if value:
            stores[word] = value
        else:
            seen.append(loads[word])
    return seen


def play_near(stores: memoryview, loads: memoryview | Stale, calls: list[Call], start_ns: int) -> list[int]:
    """The same within one node: nobody else needs the processor, so waits are by spinning, a few nanoseconds exact."""
    seen = []
    now = time.monotonic_ns
    for word, value, when_us in calls:
        if when_us:
            when_ns = start_ns + when_us * 1000
            while now() < when_ns:
                pass
        if value:
            stores[word] = value
        else:
            seen.append(loads[word])
    return seen


def run(rank: int, runs: list[list[Any]], name: str, sharing: str) -> list[float]:
    """Play ``rank`` in one litmus test after the other. Returns the seconds that each took."""
    return [_run(rank, Settings(*values), f"{name}-{number}", sharing) for number, values in enumerate(runs)]


def _run(rank: int, settings: Settings, name: str, sharing: str) -> float:
    """Play ``rank`` in every batch and save what its loads saw and the last values it read."""
    barrier = dsm.Barrier(name, settings.ranks)
    start = SharedStart(f"{name}-start", rank, settings.ranks)
    seen: list[int] = []
    last: list[int] = []
    mine: dict[int, int] = {}
    with dsm.attach(name if sharing != PRIVATE else f"{name} {rank}", PAGES * PAGE_BYTES) as region:
        words = region.buf.cast("Q")
        loads = Stale(words, PAGE_WORDS, 50) if sharing == STALE else words
        barrier.wait()
        started_s = time.monotonic()
        for batch in batches(settings):
            calls = script(settings, batch, rank)
            barrier.wait()
            start_ns = start.wait()
            got = (play_near if settings.near else play)(words, loads, calls, start_ns)
            if rank in batch.players:
                seen += got
            else:
                _check_noise(calls, got, mine)
            barrier.wait()
            if batch.reader == rank:
                last += _last(region, words, batch)
        barrier.wait()
        took_s = time.monotonic() - started_s
        if rank == 0 or sharing == PRIVATE:
            region.unlink()
        del words, loads
    np.save(f"{name}-{rank}-seen.npy", np.array(seen, "u8"))
    np.save(f"{name}-{rank}-last.npy", np.array(last, "u8"))
    return took_s


def _last(region: dsm.Region, words: memoryview, batch: Batch) -> list[int]:
    if batch.ahead:
        region.prefetch()
    return [words[word] for place in batch.places for word in place]


def _check_noise(calls: list[Call], got: list[int], mine: dict[int, int]) -> None:
    """A word that nobody else stores to holds what this process stored last."""
    seen = iter(got)
    for word, value, _ in calls:
        if value:
            mine[word] = value
        else:
            assert next(seen) == mine.get(word, 0), f"word {word} lost a store"
