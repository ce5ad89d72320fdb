"""From what the processes of a run saw to a histogram of outcomes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from batches import PAGE_WORDS, PAGES, Batch, Settings, batches
from outcomes import SC, Histogram, decode
from shapes import SHAPES, Shape


def judge(
    settings: Settings, seen: Sequence[Sequence[int]], last: Sequence[Sequence[int]], model: str = SC
) -> Histogram:
    """The histogram of a run. ``seen``, ``last``: by process, what its loads saw and the last values it read.

    What a word held before a batch is what was last read of it. So an older value, which is neither that nor of this
    batch, is found out as foreign.
    """
    shape = SHAPES[settings.shape]
    histogram = Histogram(shape, model)
    memory = [0] * (PAGES * PAGE_WORDS)
    seen_by, last_by = [iter(each) for each in seen], [iter(each) for each in last]
    for batch in batches(settings):
        loads = _loads(shape, batch, seen_by)
        for number, place in enumerate(batch.places):
            final = [next(last_by[batch.reader]) for _ in place]
            before = [memory[word] for word in place]
            got = [(variable, next(loads[thread][number])) for thread, variable in shape.loads]
            got += enumerate(final)
            histogram.add([decode(raw, before[variable], batch.base) for variable, raw in got])
            for word, raw in zip(place, final, strict=True):
                memory[word] = raw
    over = object()
    assert all(next(each, over) is over for each in (*seen_by, *last_by)), "the processes told more than they played"
    return histogram


def _loads(shape: Shape, batch: Batch, seen_by: list[Iterator[int]]) -> list[list[Iterator[int]]]:
    """By thread and round, what the loads saw; the processes told it in the order of their accesses."""
    found = []
    for thread, program in enumerate(shape.threads):
        steps = [iter(program) for _ in batch.places]
        saw: list[list[int]] = [[] for _ in batch.places]
        for number in itertools.chain.from_iterable(batch.order[thread]):
            if not next(steps[number]).value:
                saw[number].append(next(seen_by[batch.players[thread]]))
        found.append([iter(each) for each in saw])
    return found
