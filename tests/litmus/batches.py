"""Which words, which processes, in which order and when: the rounds of a litmus test in batches, drawn from one seed.

A transfer of a page costs hundreds of microseconds, an access to a page that is here a tenth of one, and a page that
has come stays for a moment. A round alone on its page would cost several transfers; many rounds on one page, run one
after the other, are through without an overlap. So a batch is a few rounds on each of some groups of pages, and
overlaps are provoked as by the time base of litmus7 (Alglave, Maranget et al., "Litmus: running tests against
hardware", TACAS 2011): all processes begin at one moment, each group has a time slot after it, and accesses have random
times within the slot. A thread that is late waits for nothing. This orders nothing: it is no access, and nobody learns
whether the others were in time. The rounds of a group are run in one of two ways:

- **mixed**: each thread makes its accesses to all rounds of the group in a random order, but those of one round in the
  order of its program; and it pauses at random times between. A page that goes from thread to thread meanwhile finds
  many rounds begun and not ended. That an order explains all rounds together is more than that one explains each, so an
  outcome that is forbidden stays so, and no access is made for another.
- **one by one**: nothing is between the accesses of a round, but in one of each group, the meeting, whose every access
  has a random time. To sleep or to wait for a page empties the processor's store buffer; here nothing need.

Rounds cannot leak into each other: the words of a batch are used by one round each, all processes meet at a barrier
between batches, and what is stored grows from batch to batch, so that each value tells its batch. Nothing is ever
reset.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Final, NamedTuple, TypeAlias

from shapes import SHAPES, Shape

PAGE_WORDS: Final = 512
"""8 bytes each."""
PAGES: Final = 32
"""Of the region. Few, so that they are seldom without a history."""
NOISE_WORDS: Final = 16
"""At the end of each page, one for each process that may disturb: no round uses them."""
VALUES: Final = 8
"""What is stored in batch n lies in (8n, 8n + 8)."""
ROUNDS_EACH: Final = (1, 2, 4, 8, 16, 32)
"""On one group of pages."""
_MIXED_SHARE: Final = 0.75
"""Of the batches."""
_MIXED_SIZES: Final = 3
"""The largest ROUNDS_EACH, if mixed: they share the time of a slot."""
_BATCHES_MIN: Final = 4
"""A short run is not to be one batch of many rounds on each page, with few meetings."""
SLOTS_US: Final = (700, 1200, 2000)
"""Of a group: less than, about and more than what it takes for all to have their turn."""
MIXED_SLOTS_US: Final = (1500, 3000, 5000)
"""Of a group that is mixed: in each a page is to change hands several times."""
PAUSES: Final = (2, 4, 8)
"""Of a thread in a group that is mixed: each is a chance for the page to go to another thread."""
NEAR_SLOT_US: Final = 20
"""Within one node nothing is transferred and accesses take nanoseconds: every round is met for by spinning, this far
apart."""

Call: TypeAlias = tuple[int, int, int]
"""Word, value (0: a load), and when: not before so many µs after the beginning of the batch (0: at once)."""


class Settings(NamedTuple):
    """A run of one litmus test. ``apart``: its variables lie on different pages. ``near``: all processes are on one
    node."""

    shape: str
    apart: bool
    near: bool
    rounds: int
    seed: int
    ranks: int


class Batch(NamedTuple):
    """``groups``: the rounds of each group of pages, by number. ``places``: for each round, the word of each
    variable. ``players``: for each thread, the process that plays it. ``order``: for each thread and group, the round
    of each access; the n-th access of a thread to a round is the n-th step of its program. ``meetings``: one round of
    each group that is run one by one. ``pauses``: of each thread in each group that is mixed. ``slot_us``: from one
    group to the next. ``reader``: the process that reads the last values, after a prefetch if ``ahead``. ``noisy``:
    those that do not play disturb."""

    number: int
    groups: list[range]
    places: list[list[int]]
    players: list[int]
    order: list[list[list[int]]]
    meetings: set[int]
    pauses: int
    slot_us: int
    reader: int
    ahead: bool
    noisy: bool

    @property
    def base(self) -> int:
        """What is added to every value that is stored."""
        return self.number * VALUES


def batches(settings: Settings) -> Iterator[Batch]:
    """The batches of a run; the same wherever they are drawn."""
    shape, left, number = SHAPES[settings.shape], settings.rounds, 0
    while left > 0:
        batch = _batch(shape, settings, number, left)
        left -= len(batch.places)
        number += 1
        yield batch


def _batch(shape: Shape, settings: Settings, number: int, rounds_max: int) -> Batch:
    chance = Random(f"{settings.seed} {number}")
    pages = _pages(shape, settings.apart, chance)
    mixed = not settings.near and chance.random() < _MIXED_SHARE
    fits = [each for each in ROUNDS_EACH if each * PAGES * _BATCHES_MIN <= settings.rounds] or [1]
    each = chance.choice(fits[-_MIXED_SIZES:] if mixed else fits)
    slot_us = chance.choice(MIXED_SLOTS_US if mixed else SLOTS_US)
    places = [place for group in pages for place in _places(group, each, chance)][:rounds_max]
    if settings.near:
        each, slot_us = 1, NEAR_SLOT_US
    groups = [range(start, min(start + each, len(places))) for start in range(0, len(places), each)]
    shuffled = chance.random() < 0.5
    return Batch(
        number,
        groups,
        places,
        chance.sample(range(settings.ranks), len(shape.threads)),
        [[_order(group, len(steps), mixed, shuffled, chance) for group in groups] for steps in shape.threads],
        set() if mixed or settings.near else {chance.choice(group) for group in groups},
        chance.choice(PAUSES) if mixed else 0,
        slot_us,
        chance.randrange(settings.ranks),
        chance.random() < 0.5,
        chance.random() < 0.5,
    )


def _pages(shape: Shape, apart: bool, chance: Random) -> list[list[int]]:
    """For each group of rounds, the page of each variable."""
    pages = list(range(PAGES))
    if chance.random() < 0.8:  # else in order: then pages are read ahead
        chance.shuffle(pages)
    variables = len(shape.variables)
    if not apart:
        return [[page] * variables for page in pages]
    return [pages[at : at + variables] for at in range(0, PAGES - variables + 1, variables)]


def _places(group: list[int], each: int, chance: Random) -> list[list[int]]:
    words = iter(chance.sample(range(PAGE_WORDS - NOISE_WORDS), each * len(group)))
    return [[page * PAGE_WORDS + next(words) for page in group] for _ in range(each)]


def _order(group: range, steps: int, mixed: bool, shuffled: bool, chance: Random) -> list[int]:
    if mixed:
        accesses = [number for number in group for _ in range(steps)]
        chance.shuffle(accesses)
        return accesses
    rounds = chance.sample(group, len(group)) if shuffled else group
    return [number for number in rounds for _ in range(steps)]


def script(settings: Settings, batch: Batch, rank: int) -> list[Call]:
    """What a process does in a batch."""
    chance = Random(f"{settings.seed} {batch.number} {rank}")
    if rank not in batch.players:
        return list(_noise(batch, rank, chance)) if batch.noisy else []
    thread = batch.players.index(rank)
    calls: list[Call] = []
    for at, accesses in enumerate(batch.order[thread]):
        steps = {number: iter(SHAPES[settings.shape].threads[thread]) for number in batch.groups[at]}
        times = _times(batch, accesses, at * batch.slot_us, chance)
        for number, when_us in zip(accesses, times, strict=True):
            step = next(steps[number])
            value = batch.base + step.value if step.value else 0
            calls.append((batch.places[number][step.variable], value, when_us))
    return calls


def _times(batch: Batch, accesses: list[int], start_us: int, chance: Random) -> list[int]:
    """When a thread makes each access to a group: not before its time, and one without a time right after the last."""
    timed = {at for at, number in enumerate(accesses) if number in batch.meetings}
    timed |= set(chance.sample(range(len(accesses)), min(batch.pauses, len(accesses))))
    times = [start_us] + [0] * (len(accesses) - 1)
    random_us = sorted(start_us + chance.randrange(batch.slot_us) for _ in timed)
    for at, when_us in zip(sorted(timed), random_us, strict=True):
        times[at] = when_us
    return times


def _noise(batch: Batch, rank: int, chance: Random) -> Iterator[Call]:
    """Loads and stores of a word of its own on some of the pages."""
    for number, group in enumerate(batch.groups):
        if chance.random() < 0.3:
            page = batch.places[group[0]][0] // PAGE_WORDS
            at_us = number * batch.slot_us + chance.randrange(batch.slot_us)
            yield (page + 1) * PAGE_WORDS - 1 - rank, chance.choice([0, batch.base + 1]), at_us
