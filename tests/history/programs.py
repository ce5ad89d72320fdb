"""Random programs for the processes of a cluster, drawn from one seed: loads and stores of a few words, and
prefetching.

Processes meet at a barrier between batches. A batch is many small programs side by side, each of two to four
processes with up to six accesses each to one to three words on one or two pages. The programs of a batch have no word
in common but share pages. Each has a time slot within its batch, in which many accesses have a random time: they
overlap, or the history would tell little. After the barrier one process loads every word that was used. What is
stored is different each time.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from random import Random
from typing import Final, NamedTuple

PAGES: Final = 8
PAGE_WORDS: Final = 512
"""8 bytes each."""
WORDS: Final = 8
"""That are used of a page: few, so that each has a long history."""
SLOTS_US: Final = (700, 1500, 3000)
ACCESSES_MAX: Final = 6
"""Of one process in one program, and four processes: what the exhaustive search can do in milliseconds."""

LOAD: Final = 0
STORE: Final = 1
PREFETCH: Final = 2
PREFETCH_TO_WRITE: Final = 3


class Settings(NamedTuple):
    """A run: how many programs, and for how many processes."""

    programs: int
    seed: int
    ranks: int


class Call(NamedTuple):
    """What a process does: ``kind``, on ``word`` (its number within the region), not before ``when_us`` after the
    beginning of the batch. ``program``: within the batch."""

    kind: int
    word: int
    value: int
    when_us: int
    program: int


class Batch(NamedTuple):
    """``words``: of each program. ``calls``: of each process. ``reader``: the process that loads every word at the end,
    after a prefetch if ``ahead``."""

    words: list[list[int]]
    calls: list[list[Call]]
    reader: int
    ahead: bool


def batches(settings: Settings) -> Iterator[Batch]:
    """The batches of a run; the same wherever they are drawn."""
    chance = Random(f"{settings.seed}")
    fresh = itertools.count(1)
    left = settings.programs
    while left > 0:
        batch = _batch(settings, chance, fresh, left)
        left -= len(batch.words)
        yield batch


def _batch(settings: Settings, chance: Random, fresh: Iterator[int], programs_max: int) -> Batch:
    words = _words(chance)[:programs_max]
    calls: list[list[Call]] = [[] for _ in range(settings.ranks)]
    slot_us = chance.choice(SLOTS_US)
    for number, mine in enumerate(words):
        playing = chance.sample(range(settings.ranks), chance.randint(2, min(4, settings.ranks)))
        for rank in playing:
            calls[rank] += _program(number, mine, chance, fresh, number * slot_us, slot_us)
    return Batch(words, calls, chance.randrange(settings.ranks), chance.random() < 0.5)


def _words(chance: Random) -> list[list[int]]:
    """The words of each program of a batch."""
    found = []
    pages = chance.sample(range(PAGES), PAGES)
    for pair in zip(pages[::2], pages[1::2], strict=True):
        free = [page * PAGE_WORDS + word * (PAGE_WORDS // WORDS) for page in pair for word in range(WORDS)]
        chance.shuffle(free)
        for _ in range(chance.choice([1, 2, 4])):
            found.append([free.pop() for _ in range(chance.randint(1, 3))])
    return found


def _program(
    number: int, words: list[int], chance: Random, fresh: Iterator[int], start_us: int, slot_us: int
) -> list[Call]:
    """What one process does in one program."""
    count = chance.randint(1, ACCESSES_MAX)
    timed = chance.random() < 0.7
    times = sorted(start_us + chance.randrange(slot_us) * timed for _ in range(count))
    stores = chance.choice([0.2, 0.5, 0.8])
    calls = []
    for when_us in times:
        if chance.random() < 0.05:
            calls.append(Call(chance.choice([PREFETCH, PREFETCH_TO_WRITE]), chance.choice(words), 0, when_us, number))
        store = chance.random() < stores
        calls.append(Call(STORE if store else LOAD, chance.choice(words), next(fresh) if store else 0, when_us, number))
    return calls
