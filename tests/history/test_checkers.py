"""The checkers themselves: histories made by hand, and drawn ones beside an oracle that tries everything."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import pytest
from accesses import NEVER_NS, Access, Word, lines
from histories import overlapping, unexplained
from hypothesis import given, settings
from hypothesis import strategies as st
from linearizable import violation, violations
from sequential import explain, in_turns

X, Y = (0, 0), (1, 0)


def load(process: int, value: int, since: int, until: int, word: Word = X) -> Access:
    return Access(process, word, False, value, since, until)


def store(process: int, value: int, since: int, until: int, word: Word = X) -> Access:
    return Access(process, word, True, value, since, until)


# -- one word, by hand ---------------------------------------------------------------------------------

LINEARIZABLE = {
    "nothing": [],
    "only the initial value": [load(0, 0, 1, 2), load(1, 0, 5, 9)],
    "one after the other": [store(0, 1, 1, 2), load(1, 1, 3, 4), store(1, 2, 5, 6), load(0, 2, 7, 8)],
    "a load during a store sees the old value": [store(0, 1, 1, 9), load(1, 0, 4, 5)],
    "a load during a store sees the new value": [store(0, 1, 1, 9), load(1, 1, 4, 5)],
    "first the old value, then the new": [store(0, 1, 1, 9), load(1, 0, 2, 3), load(1, 1, 4, 5)],
    "two stores at once, either last": [store(0, 1, 1, 9), store(1, 2, 1, 9), load(2, 1, 10, 11)],
    "what begins when another ends overlaps it": [store(0, 1, 1, 2), load(1, 0, 2, 3)],
    "a store that was never over, seen": [store(0, 1, 1, NEVER_NS), load(1, 1, 5, 6)],
    "a store that was never over, unseen": [store(0, 1, 1, NEVER_NS), load(1, 0, 5, 6)],
    "a backward zone beside a forward one": [store(0, 1, 1, 2), store(1, 2, 3, 9), load(2, 1, 4, 5), load(2, 2, 8, 9)],
}

NOT_LINEARIZABLE = {
    "stale": ([store(0, 1, 1, 2), load(1, 0, 3, 4)], "both before and after"),
    "a lost store": ([store(0, 1, 1, 2), store(1, 2, 3, 4), load(0, 1, 5, 6)], "both before and after"),
    "taken back": ([store(0, 1, 1, 9), load(1, 1, 2, 3), load(2, 0, 4, 5)], "both before and after"),
    "seen in two orders": (
        [
            *(store(0, 1, 1, 20), store(1, 2, 1, 20), load(2, 1, 2, 3), load(2, 2, 4, 5)),
            *(load(3, 2, 2, 3), load(3, 1, 6, 7)),
        ],
        "both before and after",
    ),
    "a backward zone within a forward one": (
        [store(0, 1, 1, 2), store(1, 2, 4, 5), load(2, 1, 7, 8)],
        "both before and after",
    ),
    "out of thin air": ([store(0, 1, 1, 2), load(1, 7, 3, 4)], "nobody stored"),
    "before its store": ([load(1, 1, 1, 2), store(0, 1, 3, 4)], "before its store began"),
}


@pytest.mark.parametrize("name", LINEARIZABLE)
def test_linearizable(name: str) -> None:
    assert violation(LINEARIZABLE[name]) is None
    assert linearizes(LINEARIZABLE[name])


@pytest.mark.parametrize("name", NOT_LINEARIZABLE)
def test_not_linearizable(name: str) -> None:
    history, reason = NOT_LINEARIZABLE[name]
    found = violation(history)
    assert found is not None and reason in found.reason
    # What is shown is enough to see it.
    shown = [access for access in found.accesses if access.process >= 0]
    assert not linearizes(shown) or reason == "nobody stored"
    assert not linearizes(history)


def test_each_word_is_checked_on_its_own() -> None:
    history = [store(0, 1, 1, 2), load(1, 1, 3, 4), store(0, 2, 5, 6, Y), load(1, 0, 7, 8, Y)]
    assert [found.accesses[-1].word for found in violations(history)] == [Y]


def test_values_that_are_stored_twice_are_refused() -> None:
    with pytest.raises(ValueError, match="two stores of 1"):
        violation([store(0, 1, 1, 2), store(1, 1, 3, 4)])


def test_a_violation_is_shown_with_its_intervals() -> None:
    found = violation([store(0, 1, 5_000, 6_000), load(1, 0, 7_500, 8_000)])
    assert str(found).splitlines() == [
        "word (0, 0) had value 0 both before and after it had value 1: the first of these accesses with 0 was over "
        "before the last with 1 began, and the other way round",
        "  before everything      word (0, 0) holds 0",
        "         0.0 to        1.0 µs  process 0 stores 1        word (0, 0)",
        "         2.5 to        3.0 µs  process 1 loads  0        word (0, 0)",
    ]
    assert lines([store(0, 1, 0, NEVER_NS)]) == ["         0.0 to      never µs  process 0 stores 1        word (0, 0)"]
    assert lines([]) == []


def test_overlapping_accesses_are_counted() -> None:
    assert overlapping([store(0, 1, 1, 5), load(1, 1, 4, 6), load(2, 1, 4, 6)]) == 2
    assert overlapping([store(0, 1, 1, 5), load(0, 1, 6, 7), load(1, 1, 6, 7)]) == 0
    assert overlapping([store(0, 1, 1, 3), load(1, 1, 4, 6), store(2, 2, 5, 6)]) == 1


# -- one word, drawn -----------------------------------------------------------------------------------


def linearizes(history: Sequence[Access]) -> bool:
    """The oracle: any order that keeps the order in time and in which each load sees the last store."""

    def fits(left: tuple[Access, ...], value: int) -> bool:
        if not left:
            return True
        return any(
            fits((*left[:at], *left[at + 1 :]), access.value)
            for at, access in enumerate(left)
            if (access.store or access.value == value) and not any(other.precedes(access) for other in left)
        )

    return fits(tuple(history), 0)


@st.composite
def any_history(draw: st.DrawFn) -> list[Access]:
    """A few accesses at any times, of any values."""
    stored = draw(st.integers(0, 3))
    history = []
    for at in range(draw(st.integers(stored, 7))):
        since = draw(st.integers(0, 12))
        until = since + draw(st.integers(0, 6))
        value = at + 1 if at < stored else draw(st.integers(0, stored))
        history.append(Access(at, X, at < stored, value, since, until))
    return history


@given(any_history())
@settings(max_examples=500, deadline=None)
def test_the_checker_agrees_with_the_oracle(history: list[Access]) -> None:
    assert (violation(history) is None) == linearizes(history)


def flat(threads: list[list[Access]]) -> list[Access]:
    return list(itertools.chain.from_iterable(threads))


@st.composite
def atomic(draw: st.DrawFn, words: int, accesses_max: int) -> list[list[Access]]:
    """The accesses of each process on an atomic memory: each takes effect at a moment within its interval, and begins
    after the last of its process was over."""
    order = draw(st.lists(st.integers(0, 3), max_size=accesses_max))
    effects: dict[int, list[int]] = {}
    for number, process in enumerate(order):
        effects.setdefault(process, []).append(10 * number)
    memory: dict[Word, int] = {}
    threads: dict[int, list[Access]] = {process: [] for process in effects}
    free = dict.fromkeys(effects, -30)
    for number, process in enumerate(order):
        following = next((each for each in effects[process] if each > 10 * number), 10 * number + 60)
        since = draw(st.integers(max(free[process] + 1, 10 * number - 30), 10 * number))
        until = draw(st.integers(10 * number, min(following - 1, 10 * number + 30)))
        free[process] = until
        word = (draw(st.integers(0, words - 1)), 0)
        is_store = draw(st.booleans())
        if is_store:
            memory[word] = number + 1
        threads[process].append(Access(process, word, is_store, memory.get(word, 0), since, until))
    return list(threads.values())


@given(atomic(words=1, accesses_max=40))
@settings(max_examples=100, deadline=None)
def test_histories_of_an_atomic_word_are_accepted(threads: list[list[Access]]) -> None:
    assert violation(flat(threads)) is None


@given(atomic(words=1, accesses_max=8), st.data())
@settings(max_examples=200, deadline=None)
def test_changed_histories_are_refused_when_they_are_wrong(threads: list[list[Access]], data: st.DataObject) -> None:
    history = flat(threads)
    loads = [at for at, access in enumerate(history) if not access.store]
    if not loads:
        return
    at = data.draw(st.sampled_from(loads))
    history[at] = history[at]._replace(value=data.draw(st.integers(0, 9)))
    assert (violation(history) is None) == linearizes(history)


# -- several words, by hand ----------------------------------------------------------------------------


def threads_of(text: str) -> list[list[Access]]:
    """``"x=1 y0 | y=2 x0"``: stores of 1 and 2, and loads that saw 0."""
    threads = []
    for process, thread in enumerate(text.split("|")):
        accesses = []
        for token in thread.split():
            word = {"x": X, "y": Y}[token[0]]
            accesses.append(Access(process, word, "=" in token, int(token[1:].lstrip("=")), 0, 0))
        threads.append(accesses)
    return threads


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x=1 y0 | y=2 x1",
        "x=1 y2 | y=2 x1",
        "x=1 y=2 | y0 x1",
        "x0 x1 | x=1",
        "x=1 | y=2 | x1 y2 | y0 x1",
        "x=1 x=2 | x1 x2 | x2",
        "x=1 y=2 x=3 | x3 y2 | y=4 y4",
    ],
)
def test_sequentially_consistent(text: str) -> None:
    found = explain(threads_of(text), {})
    assert found.complete and sorted(found.order) == sorted(flat(threads_of(text)))
    assert unexplained(threads_of(text), {}, None) == ""


@pytest.mark.parametrize(
    "text",
    [
        "x=1 y0 | y=2 x0",  # store buffering
        "x=1 y=2 | y2 x0",  # message passing: stores or loads out of order
        "x2 y=1 | y1 x=2",  # load buffering
        "x=1 | y=2 | x1 y0 | y2 x0",  # two readers disagree
        "x=1 | x=2 | x1 x2 | x2 x1",
        "x=1 | x1 x0",  # stale
        "x=1 x0",  # its own store is lost
        "x7",  # out of thin air
    ],
)
def test_not_sequentially_consistent(text: str) -> None:
    assert not explain(threads_of(text), {}).complete


def test_what_the_words_hold_before_and_after_counts() -> None:
    threads = threads_of("x=1 y=3 | y=2 x=4")
    assert explain(threads, {}, {X: 4, Y: 2}).complete is True
    assert explain(threads, {}, {X: 1, Y: 2}).complete is False  # 2+2W
    assert explain(threads_of("x5"), {X: 5}).complete is True
    assert explain(threads_of("x0"), {X: 5}).complete is False
    assert explain([], {X: 5}, {X: 5}).complete is True
    assert explain([], {X: 5}, {X: 6}).complete is False


def test_what_is_not_explained_is_shown() -> None:
    text = unexplained(
        [[store(0, 1, 1_000, 2_000), load(0, 0, 3_000, 4_000, Y)], [load(1, 0, 5_000, 6_000)]], {}, {X: 2}
    )
    assert text.splitlines() == [
        "no order of these accesses explains what was loaded",
        "         0.0 to        1.0 µs  process 0 stores 1        word (0, 0)",
        "         2.0 to        3.0 µs  process 0 loads  0        word (1, 0)",
        "         4.0 to        5.0 µs  process 1 loads  0        word (0, 0)",
        "  at the end: word (0, 0) holds 2",
        "one of the longest orders that can be explained:",
        "  process 1 loads  0        word (0, 0)",
        "  process 0 stores 1        word (0, 0)",
        "  process 0 loads  0        word (1, 0)",
        "all of it, but for what the words hold at the end",
    ]


def test_programs_that_may_have_run_in_turns() -> None:
    assert in_turns(threads_of("x=1 y0 | y=2 x1"), {})
    assert not in_turns(threads_of("x=1 y2 | y=2 x1"), {})
    assert in_turns(threads_of("x5"), {X: 5}) and not in_turns(threads_of("x5"), {})


# -- several words, drawn ------------------------------------------------------------------------------


def orders(threads: Sequence[Sequence[Access]]) -> Iterator[list[Access]]:
    """Every order that keeps the order of each process."""
    if not any(threads):
        yield []
    for at, thread in enumerate(threads):
        if thread:
            for rest in orders([*threads[:at], thread[1:], *threads[at + 1 :]]):
                yield [thread[0], *rest]


def is_explained(threads: Sequence[Sequence[Access]], final: dict[Word, int] | None) -> bool:
    """The oracle."""
    for order in orders(threads):
        memory: dict[Word, int] = {}
        for access in order:
            if access.store:
                memory[access.word] = access.value
            elif memory.get(access.word, 0) != access.value:
                break
        else:
            if final is None or all(memory.get(word, 0) == value for word, value in final.items()):
                return True
    return False


@st.composite
def any_threads(draw: st.DrawFn) -> list[list[Access]]:
    """Up to three processes with up to three accesses to two words, of any values; stores may be alike."""
    one = st.tuples(st.sampled_from([X, Y]), st.booleans(), st.integers(0, 3))
    drawn = draw(st.lists(st.lists(one, max_size=3), max_size=3))
    return [[Access(process, *each, 0, 0) for each in thread] for process, thread in enumerate(drawn)]


@given(any_threads(), st.none() | st.fixed_dictionaries({X: st.integers(0, 3), Y: st.integers(0, 3)}))
@settings(max_examples=250, deadline=None)
def test_the_search_agrees_with_the_oracle(threads: list[list[Access]], final: dict[Word, int] | None) -> None:
    found = explain(threads, {}, final)
    assert found.complete == is_explained(threads, final)
    if found.complete:
        assert sorted(found.order) == sorted(flat(threads))


@given(atomic(words=3, accesses_max=24))
@settings(max_examples=100, deadline=None)
def test_histories_of_an_atomic_memory_are_explained(threads: list[list[Access]]) -> None:
    assert explain(threads, {}).complete
    assert violations(flat(threads)) == []


@given(atomic(words=3, accesses_max=12), st.data())
@settings(max_examples=150, deadline=None)
def test_linearizable_word_by_word_means_sequentially_consistent(
    threads: list[list[Access]], data: st.DataObject
) -> None:
    """Linearizability is local; so a history that is changed and still passes it has an explanation."""
    history = [list(thread) for thread in threads]
    loads = [(t, at) for t, thread in enumerate(history) for at, access in enumerate(thread) if not access.store]
    for t, at in data.draw(st.lists(st.sampled_from(loads), max_size=2)) if loads else []:
        history[t][at] = history[t][at]._replace(value=data.draw(st.integers(0, 12)))
    if not violations(flat(history)):
        assert explain(history, {}).complete
