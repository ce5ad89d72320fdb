"""The policy of reading ahead: what it recognises, what it never does, what it costs where nothing can be guessed."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsm.constants import AHEAD_STREAMS, STRIDE_PAGES_MAX
from nodes.readahead import ReadAhead

Runs = list[tuple[int, int]] | None


def pages(runs: Runs) -> list[int]:
    return [page for start, stop in runs or [] for page in range(start, stop)]


def read(policy: ReadAhead, accesses: Iterable[int]) -> tuple[list[int], list[int]]:
    """The faults, and the pages asked for, of who touches pages that stay where they have come once."""
    here: set[int] = set()
    faults: list[int] = []
    asked: list[int] = []
    for page in accesses:
        if page not in here:
            faults.append(page)
            ahead = [other for other in pages(policy.fault(page)) if other not in here and other != page]
            asked += ahead
            here.update(ahead, [page])
    return faults, asked


def test_the_window_opens_at_the_second_fault_in_a_row_and_doubles() -> None:
    policy = ReadAhead(4, 16, 1000)
    asked: list[Runs] = []
    page = 0
    for _ in range(6):
        runs = policy.fault(page)
        asked.append(runs)
        page = runs[0][1] if runs else page + 1
    assert asked == [None, [(2, 6)], [(7, 15)], [(16, 32)], [(33, 49)], [(50, 66)]]


def test_a_wrong_guess_opens_nothing_elsewhere() -> None:
    policy = ReadAhead(4, 16, 1000)
    assert [policy.fault(page) for page in (0, 1, 100, 7, 300)] == [None, [(2, 6)], None, None, None]


def test_a_reader_that_runs_into_what_is_on_its_way_gets_the_next_window() -> None:
    policy = ReadAhead(4, 16, 1000)
    assert [policy.fault(page) for page in (0, 1, 2, 3)] == [None, [(2, 6)], [(6, 14)], None]


def test_a_second_thread_at_the_same_place_asks_for_nothing() -> None:
    policy = ReadAhead(4, 16, 1000)
    assert [policy.fault(page) for page in (0, 1, 1, 2, 2)] == [None, [(2, 6)], None, [(6, 14)], None]


def test_only_who_was_right_before_is_sure() -> None:
    policy = ReadAhead(4, 16, 1000)
    sure = []
    for page in (0, 1, 6):
        policy.fault(page)
        sure.append(policy.sure)
    policy.fault(500)
    policy.fault(501)
    assert [*sure, policy.sure] == [False, False, True, False]


def test_backwards_takes_three_faults() -> None:
    policy = ReadAhead(4, 16, 1000)
    assert [policy.fault(page) for page in (99, 98, 97, 92)] == [None, None, [(93, 97)], [(84, 92)]]


@pytest.mark.parametrize("step", [2, 7, STRIDE_PAGES_MAX, -3, -STRIDE_PAGES_MAX])
def test_a_constant_stride_is_recognised(step: int) -> None:
    start = 0 if step > 0 else 4999
    faults, asked = read(ReadAhead(4, 256, 5000), range(start, 5000 if step > 0 else -1, step))
    assert len(faults) < len(asked) / 3
    assert all((page - start) % step == 0 for page in asked)


@pytest.mark.parametrize("count", range(2, AHEAD_STREAMS + 1))
@pytest.mark.parametrize("distance", [20, 1000])
def test_streams_in_turn_are_told_apart(count: int, distance: int) -> None:
    length = min(distance, 200)
    accesses = [array * distance + page for page in range(length) for array in range(count)]
    faults, asked = read(ReadAhead(4, 16, 10_000), accesses)
    assert len(faults) < len(accesses) / 3
    assert len(set(asked) - set(accesses)) <= 2 * 16


def test_who_has_lost_the_credit_gets_it_back_by_a_longer_run() -> None:
    policy = ReadAhead(4, 16, 1 << 20)
    for page in range(0, 100_000, 1000):
        policy.fault(page)
        policy.fault(page + 1)
    asked = [bool(policy.fault(page)) for page in range(500_000, 500_005)]
    assert asked == [False, False, False, False, True]


# --- what it costs where nothing can be guessed -----------------------------------------------------------


def uniform(chance: random.Random, size: int) -> Iterable[int]:
    return (chance.randrange(size) for _ in range(4000))


def zipf(chance: random.Random, size: int) -> Iterable[int]:
    order = chance.sample(range(size), size)
    return chance.choices(order, [1 / (rank + 1) for rank in range(size)], k=4000)


def walk(chance: random.Random, size: int) -> Iterable[int]:
    page = chance.randrange(size)
    for _ in range(4000):
        page = (page + chance.randint(-100, 100)) % size
        yield page


def short_runs(chance: random.Random, size: int) -> Iterable[int]:
    for _ in range(1600):
        start = chance.randrange(size - 3)
        yield from range(start, start + chance.choice((2, 3)))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", [64, 1000, 100_000, 1 << 28])
@pytest.mark.parametrize("pattern", [uniform, zipf, walk, short_runs])
def test_random_access_costs_a_tenth_at_most(
    pattern: Callable[[random.Random, int], Iterable[int]], size: int, seed: int
) -> None:
    """What is asked for is there when it is touched next; then it is taken away again."""
    if pattern is zipf:
        size = min(size, 100_000)
    policy = ReadAhead(4, 256, size)
    accesses = list(pattern(random.Random(seed), size))
    ahead: set[int] = set()
    asked = right = 0
    for page in accesses:
        if page in ahead:
            ahead.remove(page)
            right += 1
        else:
            new = set(pages(policy.fault(page))) - ahead
            ahead |= new
            asked += len(new)
    assert asked - right <= len(accesses) / 10


# --- what always holds ------------------------------------------------------------------------------------

ACCESSES = st.lists(
    st.one_of(
        st.integers(0, 499).map(lambda page: [page]),
        st.tuples(st.integers(0, 499), st.integers(-9, 9), st.integers(1, 40)).map(
            lambda run: [run[0] + run[1] * place for place in range(run[2])]
        ),
    ),
    max_size=40,
).map(lambda runs: [page for run in runs for page in run])


@given(ACCESSES, st.integers(1, 500), st.sampled_from([1, 4, 64]))
def test_windows_are_bounded_and_lie_in_the_region(accesses: list[int], size: int, window_max: int) -> None:
    policy = ReadAhead(min(4, window_max), window_max, size)
    for page in accesses:
        if 0 <= page < size:
            runs = policy.fault(page)
            asked = pages(runs)
            assert runs is None or asked
            assert all(0 <= other < size for other in asked)
            assert page not in asked
            assert len(asked) == len(set(asked)) <= window_max


@given(st.integers(1, 3000), st.integers(0, 500), st.booleans())
def test_a_sweep_asks_for_everything_once(size: int, start: int, at_once: bool) -> None:
    """``at_once``: what is asked for comes before it is touched; else the reader runs into all of it."""
    policy = ReadAhead(4, 64, size)
    asked: Counter[int] = Counter()
    faults: Counter[int] = Counter()
    for page in range(start, size):
        if not at_once or not asked[page]:
            faults[page] += 1
            asked.update(pages(policy.fault(page)))
    assert set(asked.values()) <= {1}
    assert set(asked) | set(faults) == set(range(start, size))
    assert asked.keys() >= set(range(start + 2, size)) - faults.keys()
    if not at_once:
        assert set(asked) == set(range(start + 2, size))
