"""The page table against a plain dict, and the memory that it takes."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterable
from itertools import pairwise
from typing import Literal

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from dsm.pagetable import PageTable, Run

Typecode = Literal["B", "I"]
BOTH: list[Typecode] = ["B", "I"]
MAXIMUM = {"B": 2**8 - 1, "I": 2**32 - 1}

BLOCK = 1 << 14
"""Pages after which the table begins another block; a guess here would only make the tests weaker."""

END = 1 << 35

TOUCHED_BYTES_MAX = 16
"""What a touched page may cost (DESIGN.md, decision 14)."""


def runs_of(model: dict[int, int], start: int, stop: int) -> list[Run]:
    """The maximal runs of ``[start, stop)`` in a dict without zeros, found one touched page at a time."""
    found: list[Run] = []

    def append(first: int, last: int, value: int) -> None:
        if found and found[-1][2] == value:
            first = found.pop()[0]
        if first < last:
            found.append((first, last, value))

    at = start
    for page in sorted(page for page in model if start <= page < stop):
        append(at, page, 0)
        append(page, page + 1, model[page])
        at = page + 1
    append(at, stop, 0)
    return found


def test_runs_of_the_model() -> None:
    assert runs_of({}, 3, 3) == []
    assert runs_of({}, 3, 5) == [(3, 5, 0)]
    assert runs_of({3: 1, 4: 1, 5: 2, 8: 2}, 2, 9) == [(2, 3, 0), (3, 5, 1), (5, 6, 2), (6, 8, 0), (8, 9, 2)]


# --- against the model ---------------------------------------------------------------------------

VALUES = st.sampled_from([0, 1, 2, 3, 255])
AROUND = st.integers(-12, 12)
"""Close together, so that neighbours are often equal and runs meet."""
PLACES = st.sampled_from([BLOCK // 2, BLOCK, 2 * BLOCK, 2 * BLOCK + 100, 1 << 28])
PAGES = st.builds(int.__add__, PLACES, AROUND)


class AgainstDict(RuleBasedStateMachine):
    """Any sequence of operations leaves what it would leave in a dict."""

    @initialize(typecode=st.sampled_from(BOTH))
    def begin(self, typecode: Typecode) -> None:
        self.table = PageTable(typecode)
        self.model: dict[int, int] = {}

    def put(self, pages: Iterable[int], value: int) -> None:
        if value:
            self.model.update(dict.fromkeys(pages, value))
        else:
            for page in pages:
                self.model.pop(page, None)

    @rule(page=PAGES, value=VALUES)
    def set(self, page: int, value: int) -> None:
        self.table.set(page, value)
        self.put([page], value)
        assert self.table.get(page) == value

    @rule(start=PAGES, count=st.integers(0, 30), value=VALUES)
    def set_run(self, start: int, count: int, value: int) -> None:
        self.table.set_run(start, start + count, value)
        self.put(range(start, start + count), value)

    @rule(start=st.builds(int.__add__, st.sampled_from([0, BLOCK, 2 * BLOCK]), st.integers(0, 3)), value=VALUES)
    def set_more_than_a_block(self, start: int, value: int) -> None:
        self.table.set_run(start, start + BLOCK, value)
        self.put(range(start, start + BLOCK), value)

    @precondition(lambda self: len(self.model) < 4 * BLOCK)
    @rule(start=st.sampled_from([1, BLOCK, BLOCK + 1]), step=st.sampled_from([1, 2, 3]))
    def crowd(self, start: int, step: int) -> None:
        """Fragment a block until it takes its other form."""
        for page in range(start, start + BLOCK - 2, step):
            self.table.set(page, page % 200 + 1)
            self.model[page] = page % 200 + 1

    @rule(page=PAGES)
    def get(self, page: int) -> None:
        assert self.table.get(page) == self.model.get(page, 0)

    @rule(start=PAGES, count=st.integers(0, 40))
    def runs_nearby(self, start: int, count: int) -> None:
        assert self.table.runs(start, start + count) == runs_of(self.model, start, start + count)

    @rule(start=PAGES, stop=PAGES)
    def runs_from_place_to_place(self, start: int, stop: int) -> None:
        assert self.table.runs(start, stop) == (runs_of(self.model, start, stop) if start < stop else [])

    @rule()
    def touched_runs(self) -> None:
        last = max(self.model, default=0) + 1
        assert list(self.table.touched_runs()) == [run for run in runs_of(self.model, 0, last) if run[2]]

    def teardown(self) -> None:
        if hasattr(self, "model"):
            self.touched_runs()


AgainstDict.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=30,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking would take minutes: single steps set whole blocks
)
TestAgainstDict = AgainstDict.TestCase


def crowded(typecode: Typecode) -> PageTable:
    """A table whose first block is as fragmented as can be, and then empty again around its end."""
    table = PageTable(typecode)
    for page in range(BLOCK):
        table.set(page, page % 250 + 1)
    table.set_run(BLOCK - 20, BLOCK, 0)
    return table


@pytest.mark.parametrize("crowd", [False, True], ids=["runs", "dense"])
@given(
    typecode=st.sampled_from(BOTH),
    steps=st.lists(st.tuples(st.integers(-8, 7), st.integers(1, 6), st.sampled_from([0, 1, 2])), max_size=40),
)
@settings(deadline=None)
def test_every_page_after_every_step_around_the_border_of_two_blocks(
    crowd: bool, typecode: Typecode, steps: list[tuple[int, int, int]]
) -> None:
    table = crowded(typecode) if crowd else PageTable(typecode)
    model: dict[int, int] = {}
    window = range(BLOCK - 10, BLOCK + 15)
    for at, count, value in steps:
        pages = range(BLOCK + at, BLOCK + at + count)
        if count == 1:
            table.set(pages.start, value)
        else:
            table.set_run(pages.start, pages.stop, value)
        model.update(dict.fromkeys(pages, value))
        assert [table.get(page) for page in window] == [model.get(page, 0) for page in window]
        touched = {page: value for page, value in model.items() if value}
        for start, stop in ((window.start, BLOCK), (BLOCK, window.stop), (window.start, window.stop)):
            assert table.runs(start, stop) == runs_of(touched, start, stop)


# --- the ends of what it promises ----------------------------------------------------------------


@pytest.mark.parametrize("typecode", BOTH)
@pytest.mark.parametrize("crowd", [False, True], ids=["runs", "dense"])
def test_a_value_that_does_not_fit_is_refused_and_changes_nothing(typecode: Typecode, crowd: bool) -> None:
    table = crowded(typecode) if crowd else PageTable(typecode)
    table.set_run(5, 9, MAXIMUM[typecode])
    table.set(9, 1)
    before, size = list(table.touched_runs()), table.nbytes
    for value in (MAXIMUM[typecode] + 1, -1):
        for page in (4, 5, 6, 8, 9, 10, BLOCK - 1, 3 * BLOCK):
            with pytest.raises(OverflowError):
                table.set(page, value)
            with pytest.raises(OverflowError):
                table.set_run(page, page + 2, value)
        with pytest.raises(OverflowError):
            table.set_run(0, 3 * BLOCK, value)
    assert list(table.touched_runs()) == before
    assert table.nbytes == size


@pytest.mark.parametrize("crowd", [False, True], ids=["runs", "dense"])
@pytest.mark.parametrize("run", [False, True], ids=["set", "set_run"])
def test_a_value_beyond_16_bits_widens_its_block_alone(crowd: bool, run: bool) -> None:
    table = crowded("I") if crowd else PageTable("I")
    table.set_run(3, 9, 0xFFFF)
    table.set(2 * BLOCK, 5)
    before = {page: table.get(page) for page in range(3 * BLOCK)}
    size = table.nbytes
    for page, value in ((4, 1 << 16), (8, 0xFFFFFFFF), (4, 7), (9, 1 << 20)):
        before[page] = value
        if run:
            table.set_run(page, page + 1, value)
        else:
            table.set(page, value)
    assert {page: table.get(page) for page in range(3 * BLOCK)} == before
    assert table.nbytes < size + (2 * BLOCK if crowd else 0) + 600


def test_the_first_and_the_last_page() -> None:
    table = PageTable("I")
    table.set(0, 7)
    table.set(END - 1, 2**32 - 1)
    assert table.get(0) == 7
    assert table.get(END - 1) == 2**32 - 1
    assert table.runs(0, END) == [(0, 1, 7), (1, END - 1, 0), (END - 1, END, 2**32 - 1)]
    assert list(table.touched_runs()) == [(0, 1, 7), (END - 1, END, 2**32 - 1)]


def test_an_empty_range_has_no_runs_and_setting_it_changes_nothing() -> None:
    table = PageTable("B")
    empty = table.nbytes
    table.set_run(10, 10, 1)
    table.set_run(10, 9, 1)
    assert table.nbytes == empty
    assert table.runs(9, 12) == [(9, 12, 0)]
    assert table.runs(10, 10) == table.runs(10, 9) == []


@given(st.lists(st.tuples(st.integers(0, 3 * BLOCK), st.integers(1, BLOCK), st.integers(0, 3)), max_size=12))
def test_runs_are_maximal_and_cover_what_was_asked(steps: list[tuple[int, int, int]]) -> None:
    table = PageTable("B")
    for start, count, value in steps:
        table.set_run(start, start + count, value)
    runs = table.runs(7, 4 * BLOCK)
    assert (runs[0][0], runs[-1][1]) == (7, 4 * BLOCK)
    assert all(start < stop for start, stop, _ in runs)
    assert all(left[1] == right[0] and left[2] != right[2] for left, right in pairwise(runs))
    touched = list(table.touched_runs())
    assert all(value for _, _, value in touched)
    assert all(left[1] < right[0] or (left[1] == right[0] and left[2] != right[2]) for left, right in pairwise(touched))


# --- memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize("typecode", BOTH)
def test_an_untouched_page_costs_nothing(typecode: Typecode) -> None:
    table = PageTable(typecode)
    empty = table.nbytes
    for page in range(0, END, END // 1000):
        assert table.get(page) == 0
        table.set(page, 0)
        table.set_run(page, page + 100_000, 0)
    assert table.runs(0, END) == [(0, END, 0)]
    assert table.nbytes == empty


@pytest.mark.parametrize("typecode", BOTH)
def test_pages_touched_in_order_with_one_value_cost_next_to_nothing(typecode: Typecode) -> None:
    table = PageTable(typecode)
    for page in range(200_000):
        table.set(page, 1)
    assert table.nbytes < 200_000 * 0.1
    assert list(table.touched_runs()) == [(0, 200_000, 1)]


@pytest.mark.parametrize(("typecode", "bound"), [("B", 2), ("I", 3)])
def test_pages_touched_in_order_with_a_value_each_cost_little_more_than_their_values(
    typecode: Typecode, bound: int
) -> None:
    table = PageTable(typecode)
    for page in range(12 * BLOCK):
        table.set(page, page % 251 + 1)
    assert table.nbytes < 12 * BLOCK * bound


@pytest.mark.parametrize("typecode", BOTH)
@pytest.mark.parametrize("values", [1, 100], ids=["equal", "different"])
def test_at_no_moment_of_a_fill_in_random_order_is_the_bound_exceeded(typecode: Typecode, values: int) -> None:
    table = PageTable(typecode)
    order = list(range(4 * BLOCK))
    random.Random(1).shuffle(order)
    for count, page in enumerate(order, 1):
        table.set(page, page % values + 1)
        if count % 500 == 0:
            assert table.nbytes <= count * TOUCHED_BYTES_MAX


@pytest.mark.parametrize("typecode", BOTH)
def test_a_million_scattered_pages_and_then_none(typecode: Typecode) -> None:
    """As dense as ten million pages among 2**28 (a region of 1 TiB)."""
    pages = random.Random(2).sample(range((1 << 28) // 10), 1_000_000)
    table = PageTable(typecode)
    for page in pages:
        table.set(page, 1)
    full = table.nbytes
    assert full <= len(pages) * TOUCHED_BYTES_MAX
    for page in pages[: len(pages) // 2]:
        table.set(page, 0)
    assert table.nbytes <= full
    kept = pages[len(pages) // 2 :]
    assert sum(stop - start for start, stop, _ in table.touched_runs()) == len(kept)
    assert all(table.get(page) == 1 for page in kept[:10_000])


@pytest.mark.parametrize("typecode", BOTH)
def test_taking_pages_back_one_by_one_never_exceeds_what_the_touched_ones_may_cost(typecode: Typecode) -> None:
    table = PageTable(typecode)
    touched = 4 * BLOCK
    table.set_run(0, touched, 1)
    order = list(range(touched))
    random.Random(3).shuffle(order)
    for count, page in enumerate(order):
        table.set(page, 0)
        if count % 500 == 0:
            assert table.nbytes <= touched * TOUCHED_BYTES_MAX
    assert list(table.touched_runs()) == []


def test_a_blank_table_is_as_small_as_at_first() -> None:
    table = PageTable("I")
    table.set(3, 1)
    table.set(3, 0)
    small = table.nbytes
    for page in [turn * BLOCK + offset for turn in range(300) for offset in (0, 1, BLOCK // 2, BLOCK - 1)]:
        table.set(page, 1)
        table.set(page, 2)
        table.set(page, 0)
    for page in range(3 * BLOCK):
        table.set(page, page % 100 + 1)
    table.set_run(0, 3 * BLOCK, 0)
    assert table.nbytes <= small


def test_a_terabyte_can_be_touched_as_one_run() -> None:
    table = PageTable("I")
    table.set_run(0, 1 << 28, 9)
    assert table.runs(0, 1 << 28) == [(0, 1 << 28, 9)]
    assert table.nbytes < 8 << 20


@pytest.mark.parametrize("spread", [1, 20, 1000])
def test_nbytes_is_the_memory_really_taken(spread: int) -> None:
    pages = random.Random(4).sample(range(40_000 * spread), 40_000)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        table = PageTable("I")
        for page in pages:
            table.set(page, page % 200 + 1)
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert table.nbytes == pytest.approx(taken, rel=0.05)
