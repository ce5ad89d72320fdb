"""What a process of a random program runs: it makes its accesses and logs each.

An access is one bytecode and one ``mov`` (tests/litmus/litmus_program.py says why), between two readings of
CLOCK_MONOTONIC, which the kernel keeps monotonic across all processors and so across all processes of this host. On
x86 a store may stay in the processor's store buffer for a moment, invisible to other processes of the *same* node: by
then its response would be logged too early. So a lock of the process is taken and given back after each store: the
atomic instructions that this takes (a ``lock cmpxchg`` in sem_trywait, as in every mutex) wait until the buffer is
empty. Loads need no such thing: x86 lets no load see a value older than the moment at which it retires.
"""

from __future__ import annotations

import threading
import time
from typing import Any, Final

import numpy as np
from broken_sharing import Stale
from programs import PAGE_WORDS, PAGES, PREFETCH, PREFETCH_TO_WRITE, STORE, Batch, Call, Settings, batches

import dsm

PAGE_BYTES: Final = PAGE_WORDS * 8

SOUND: Final = "sound"
STALE: Final = "stale"
"""Broken on purpose: every second page is read from a copy, renewed now and then."""


class Recorder:
    """Accesses, and what is logged of each load and store: page, word within it, value, invocation and response."""

    def __init__(self, region: dsm.Region, sharing: str) -> None:
        self._region = region
        self._words = region.buf.cast("Q")
        self._loads = Stale(self._words, PAGE_WORDS, 20) if sharing == STALE else self._words
        self._fence = threading.Lock()
        self.log: list[tuple[int, int, int, int, int]] = []

    def play(self, calls: list[Call]) -> None:
        """Make the calls in order, none of them before its time."""
        now = time.monotonic_ns
        start_ns = now()
        for call in calls:
            wait_ns = start_ns + call.when_us * 1000 - now()
            if wait_ns > 0:
                time.sleep(wait_ns * 1e-9)
            if call.kind == STORE:
                self._store(call.word, call.value)
            elif call.kind in (PREFETCH, PREFETCH_TO_WRITE):
                self._region.prefetch(call.word * 8, call.word * 8 + 8, write=call.kind == PREFETCH_TO_WRITE)
            else:
                self.load(call.word)

    def _store(self, word: int, value: int) -> None:
        words, fence, now = self._words, self._fence, time.monotonic_ns
        invoked_ns = now()
        words[word] = value
        with fence:
            pass
        responded_ns = now()
        self.log.append((*divmod(word, PAGE_WORDS), value, invoked_ns, responded_ns))

    def load(self, word: int) -> None:
        """Load a word and log it."""
        words, now = self._loads, time.monotonic_ns
        invoked_ns = now()
        value = words[word]
        responded_ns = now()
        self.log.append((*divmod(word, PAGE_WORDS), value, invoked_ns, responded_ns))

    def look(self, batch: Batch) -> None:
        """Load every word of a batch."""
        if batch.ahead:
            self._region.prefetch()
        for words in batch.words:
            for word in words:
                self.load(word)


def record(rank: int, values: list[Any], name: str, sharing: str) -> float:
    """Play ``rank`` in every batch and save its log. Returns the seconds taken."""
    settings = Settings(*values)
    barrier = dsm.Barrier(name, settings.ranks)
    with dsm.attach(name, PAGES * PAGE_BYTES) as region:
        recorder = Recorder(region, sharing)
        barrier.wait()
        started_s = time.monotonic()
        for batch in batches(settings):
            barrier.wait()
            recorder.play(batch.calls[rank])
            barrier.wait()
            if batch.reader == rank:
                recorder.look(batch)
        barrier.wait()
        took_s = time.monotonic() - started_s
        if rank == 0:
            region.unlink()
        np.save(f"{name}-{rank}.npy", np.array(recorder.log, "i8").reshape(-1, 5))
        del recorder
    return took_s
