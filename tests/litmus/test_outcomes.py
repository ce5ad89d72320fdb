"""What the memory models allow, and that outcomes are judged by it: made-up rounds, good and bad, without any
process.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from random import Random

import pytest
from batches import NOISE_WORDS, PAGE_WORDS, PAGES, PAUSES, Batch, Settings, batches, script
from judging import judge
from outcomes import FOREIGN, SC, TSO, Histogram, Outcome, allowed, decode, sequential
from shapes import SHAPES, shape

# As the literature has them: loads thread by thread, then the last value of each variable.
FORBIDDEN: dict[str, list[Outcome]] = {
    "MP": [(1, 0, 1, 1)],
    "SB": [(0, 0, 1, 1)],
    "LB": [(1, 1, 1, 1)],
    "R": [(0, 1, 2)],
    "S": [(1, 2, 1)],
    "2+2W": [(1, 1)],
    "WRC": [(1, 1, 0, 1, 1)],
    "IRIW": [(1, 0, 1, 0, 1, 1)],
    "CoRR": [(1, 0, 1)],
    "CoRR2": [(1, 2, 2, 1, 1), (1, 2, 2, 1, 2), (0, 1, 2, 0, 1)],
    "CoWW": [(0, 1), (1, 1), (2, 1)],
    "CoRW": [(1, 1), (1, 2), (2, 2)],
    "CoWR": [(2, 1), (0, 1), (0, 2)],
}

# What takes an overlap, and is allowed: without these a run shows nothing.
INTERLEAVED: dict[str, list[Outcome]] = {
    "MP": [(0, 1, 1, 1)],
    "SB": [(1, 1, 1, 1)],
    "LB": [(0, 0, 1, 1)],
    "2+2W": [(2, 2)],
    "IRIW": [(0, 1, 0, 1, 1, 1)],
    "CoRR": [(0, 1, 1)],
    "CoWW": [(1, 2)],
}


def test_every_litmus_test_has_its_forbidden_outcomes_here() -> None:
    assert set(FORBIDDEN) == set(SHAPES)


@pytest.mark.parametrize("name", SHAPES)
def test_sequential_consistency_forbids_what_the_literature_says(name: str) -> None:
    assert [outcome for outcome in FORBIDDEN[name] if outcome in allowed(SHAPES[name])] == []


@pytest.mark.parametrize("name", INTERLEAVED)
def test_outcomes_that_take_an_overlap(name: str) -> None:
    found = allowed(SHAPES[name]) - sequential(SHAPES[name])
    assert found == set(INTERLEAVED[name])


@pytest.mark.parametrize("name", SHAPES)
def test_all_interleavings_are_enumerated(name: str) -> None:
    """Against the plainest enumeration: every order of the accesses that keeps the order of each thread."""
    threads = SHAPES[name].threads
    tickets = [number for number, steps in enumerate(threads) for _ in steps]
    found = set()
    for order in set(itertools.permutations(tickets)):
        memory, seen, at = [0] * len(SHAPES[name].variables), [[] for _ in threads], [0] * len(threads)  # type: ignore[var-annotated]
        for thread in order:
            variable, value = threads[thread][at[thread]]
            at[thread] += 1
            if value:
                memory[variable] = value
            else:
                seen[thread].append(memory[variable])
        found.add((*itertools.chain(*seen), *memory))
    assert allowed(SHAPES[name]) == found


def test_tso_differs_where_a_load_overtakes_a_store() -> None:
    more = {name: allowed(each, TSO) - allowed(each, SC) for name, each in SHAPES.items()}
    assert {name: outcomes for name, outcomes in more.items() if outcomes} == {
        "SB": {(0, 0, 1, 1)},
        "R": {(0, 1, 2)},
    }


def test_tso_sees_its_own_stores() -> None:
    own = shape("SB+rfi", "x=1 x y | y=1 y x")  # intra-processor forwarding, iwp2.4 of the x86-TSO paper
    assert (1, 0, 1, 0, 1, 1) in allowed(own, TSO) - allowed(own, SC)
    assert not any(outcome[0] != 1 or outcome[2] != 1 for outcome in allowed(own, TSO))


def test_what_a_word_holds_is_told_by_batch() -> None:
    assert decode(17, initial=17, base=24) == 0
    assert decode(25, initial=17, base=24) == 1
    assert decode(31, initial=17, base=24) == 7
    assert [decode(raw, initial=17, base=24) for raw in (0, 16, 18, 24, 32, 1 << 63)] == [FOREIGN] * 6


def test_outcomes_are_counted_by_kind() -> None:
    histogram = Histogram(SHAPES["MP"])
    for outcome, times in {
        (0, 0, 1, 1): 5,
        (1, 1, 1, 1): 4,
        (0, 1, 1, 1): 3,
        (1, 0, 1, 1): 2,
        (1, FOREIGN, 1, 1): 1,
    }.items():
        for _ in range(times):
            histogram.add(outcome)
    assert [histogram.total(kind) for kind in ("sequential", "interleaved", "forbidden", None)] == [9, 3, 3, 15]
    assert histogram.missing == [] and not histogram.powerless
    assert histogram.table() == [
        "         5  sequential   1:y=0 1:x=0",
        "         4  sequential   1:y=1 1:x=1",
        "         3  interleaved  1:y=0 1:x=1",
        "         2  forbidden    1:y=1 1:x=0",
        "         1  forbidden    1:y=1 1:x=?",
    ]


def test_a_lost_store_is_forbidden_and_shown() -> None:
    histogram = Histogram(SHAPES["MP"])
    assert histogram.kind((0, 0, 1, 0)) == "forbidden"
    assert histogram.text((0, 0, 1, 0)) == "1:y=0 1:x=0 [y=0]"
    assert Histogram(SHAPES["2+2W"]).text((2, 1)) == "[x=2 y=1]"


def test_a_run_without_an_overlap_has_no_power() -> None:
    histogram = Histogram(SHAPES["SB"])
    histogram.add((0, 1, 1, 1))
    assert histogram.powerless and histogram.missing == [(1, 1, 1, 1)]
    assert Histogram(SHAPES["SB"], TSO).missing == [(0, 0, 1, 1), (1, 1, 1, 1)]


# -- batches -------------------------------------------------------------------------------------------


def settings_of(name: str, seed: int, apart: bool = True, ranks: int = 4, rounds: int = 700) -> Settings:
    return Settings(name, apart, False, rounds, seed, ranks)


@pytest.mark.parametrize("apart", [False, True])
def test_rounds_of_a_batch_have_words_of_their_own(apart: bool) -> None:
    rounds = 0
    for batch in batches(settings_of("IRIW", 3, apart)):
        words = [word for place in batch.places for word in place]
        assert len(set(words)) == len(words)
        assert all(word % PAGE_WORDS < PAGE_WORDS - NOISE_WORDS for word in words)
        assert all((x // PAGE_WORDS != y // PAGE_WORDS) == apart for x, y in batch.places)
        assert sorted(number for group in batch.groups for number in group) == list(range(len(batch.places)))
        for accesses, steps in zip(batch.order, SHAPES["IRIW"].threads, strict=True):
            assert [sorted(each) for each in accesses] == [sorted([*group] * len(steps)) for group in batch.groups]
        assert len(set(batch.players)) == 4  # no process plays two threads
        rounds += len(batch.places)
    assert rounds == 700


@pytest.mark.parametrize("name", ["2+2W", "IRIW", "CoWW"])
def test_each_round_is_made_in_the_order_of_its_program(name: str) -> None:
    """Whatever lies between: by the words that each process touches, which tell the round."""
    settings = settings_of(name, 5, rounds=2000)
    threads, between = SHAPES[name].threads, set()
    for batch in batches(settings):
        round_of = {word: number for number, place in enumerate(batch.places) for word in place}
        for thread, rank in enumerate(batch.players):
            calls = script(settings, batch, rank)
            made: dict[int, list[tuple[int, int]]] = {}
            for word, value, _ in calls:
                made.setdefault(round_of[word], []).append((word, value))
            assert made == {
                number: [(place[v], batch.base + value if value else 0) for v, value in threads[thread]]
                for number, place in enumerate(batch.places)
            }
            numbers = [round_of[word] for word, _, _ in calls]
            between.add(len(list(itertools.groupby(numbers))) > len(made))
    assert between == {False, True}  # both ways are taken: nothing between the accesses of a round, and other rounds


def test_accesses_are_timed_within_the_slot_of_their_group() -> None:
    settings = settings_of("SB", 6, ranks=2, rounds=2000)
    pauses = set()
    for batch in batches(settings):
        for thread, rank in enumerate(batch.players):
            calls = iter(script(settings, batch, rank))
            for at, accesses in enumerate(batch.order[thread]):
                times = [when_us for _, _, when_us in itertools.islice(calls, len(accesses)) if when_us]
                assert times == sorted(times)
                assert all(at * batch.slot_us <= when_us < (at + 1) * batch.slot_us for when_us in times)
                pauses.add(len(times))
    assert set(PAUSES) <= pauses


def test_disturbers_touch_words_that_no_round_uses() -> None:
    settings = settings_of("MP", 1, ranks=3)
    calls = [
        call
        for batch in batches(settings)
        for rank in range(3)
        if rank not in batch.players
        for call in script(settings, batch, rank)
    ]
    assert calls
    assert all(word % PAGE_WORDS >= PAGE_WORDS - NOISE_WORDS for word, _, _ in calls)


# -- judging -------------------------------------------------------------------------------------------

Seen = list[list[int]]


def simulated(settings: Settings, load: Callable[[list[int], list[int], int, Random], int]) -> tuple[Seen, Seen]:
    """A run on one memory, the accesses of a batch in a random order; ``load`` gets memory and what it was before."""
    chance = Random(settings.seed)
    memory = [0] * (PAGES * PAGE_WORDS)
    seen: Seen = [[] for _ in range(settings.ranks)]
    last: Seen = [[] for _ in range(settings.ranks)]
    for batch in batches(settings):
        before = list(memory)
        for rank, word, value in _mixed(settings, batch, chance):
            if value:
                memory[word] = value
            elif rank in batch.players:
                seen[rank].append(load(memory, before, word, chance))
        last[batch.reader] += [memory[word] for place in batch.places for word in place]
    return seen, last


def _mixed(settings: Settings, batch: Batch, chance: Random) -> list[tuple[int, int, int]]:
    """Nearly in step, so that rounds overlap."""
    left = {rank: calls for rank in range(settings.ranks) if (calls := script(settings, batch, rank))}
    lengths = {rank: len(calls) for rank, calls in left.items()}
    found = []
    while left:
        rank = max(left, key=lambda rank: len(left[rank]) / lengths[rank] + chance.uniform(0, 3 / lengths[rank]))
        word, value, _ = left[rank].pop(0)
        found.append((rank, word, value))
        if not left[rank]:
            del left[rank]
    return found


def sound(memory: list[int], _: list[int], word: int, __: Random) -> int:
    return memory[word]


def stale(memory: list[int], before: list[int], word: int, chance: Random) -> int:
    return (before if chance.random() < 0.5 else memory)[word]


def older(memory: list[int], _: list[int], word: int, chance: Random) -> int:
    return max(0, memory[word] - 9) if chance.random() < 0.1 else memory[word]


@pytest.mark.parametrize("name", SHAPES)
def test_a_run_on_one_memory_is_judged_sound(name: str) -> None:
    settings = settings_of(name, 11, rounds=2000)
    histogram = judge(settings, *simulated(settings, sound))
    assert histogram.total() == 2000
    assert histogram.total("forbidden") == 0
    assert not histogram.powerless


@pytest.mark.parametrize("name", ["MP", "SB", "WRC", "IRIW", "CoRR", "CoWR", "R"])
def test_a_run_with_stale_loads_is_not(name: str) -> None:
    settings = settings_of(name, 12)
    histogram = judge(settings, *simulated(settings, stale))
    assert {outcome[: len(SHAPES[name].loads)] for outcome in FORBIDDEN[name]} & {
        outcome[: len(SHAPES[name].loads)] for outcome in histogram.counts
    }
    assert histogram.total("forbidden") > 0


@pytest.mark.parametrize("name", ["LB", "S", "CoRW"])
def test_a_value_of_an_older_batch_is_foreign(name: str) -> None:
    settings = settings_of(name, 13)
    histogram = judge(settings, *simulated(settings, older))
    assert any(FOREIGN in outcome for outcome in histogram.counts)
    assert histogram.total("forbidden") == sum(n for outcome, n in histogram.counts.items() if FOREIGN in outcome)


def test_a_store_that_is_lost_after_the_batch_is_found_by_the_next() -> None:
    settings = settings_of("CoRR", 14, rounds=3000)
    seen, last = simulated(settings, sound)
    batch = next(iter(batches(settings)))
    last[batch.reader][0] = 0  # told as never stored, and seen by a later batch all the same
    assert judge(settings, seen, last).total("forbidden") >= 1


def test_a_process_that_tells_too_much_or_too_little_is_refused() -> None:
    settings = settings_of("MP", 15, rounds=50)
    seen, last = simulated(settings, sound)
    teller = next(rank for rank in range(4) if seen[rank])
    seen[teller].append(1)
    with pytest.raises(AssertionError, match="more than"):
        judge(settings, seen, last)
    del seen[teller][-2:]
    with pytest.raises(StopIteration):
        judge(settings, seen, last)
