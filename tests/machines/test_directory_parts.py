"""The directory's pure parts one by one: holdings, registry, and messages that the rules forbid."""

from __future__ import annotations

from typing import Any

import pytest

from directory.holdings import EXCLUSIVE, LOST, SHARED, Holding, Holdings, nodes_in, without
from directory.machine import PageMachine
from directory.registry import Registry
from dsm import errors
from dsm.wire import (
    READ,
    RESET,
    WRITE,
    Done,
    Fetch,
    GaveUp,
    Grant,
    Hurry,
    Inspect,
    Open,
    Orphan,
    Refuse,
    Request,
)

PAGE = 4096


# --- holdings ------------------------------------------------------------------------------------------


def test_a_copyset_names_its_nodes() -> None:
    assert list(nodes_in(0b1010_0010)) == [1, 5, 7]


def test_what_is_left_when_a_node_takes_its_copy_away() -> None:
    assert without(Holding(SHARED, 1, 0b110), 1) == Holding(SHARED, 2, 0b100)
    assert without(Holding(SHARED, 1, 0b110), 2) == Holding(SHARED, 1, 0b010)
    assert without(Holding(EXCLUSIVE, 3, 0b1000), 3) == Holding(LOST, 3, 0)
    assert without(Holding(SHARED, 1, 0b010), 3) == Holding(SHARED, 1, 0b010)


def test_pages_held_alike_share_a_number_and_swept_numbers_come_again() -> None:
    holdings = Holdings()
    first, second = (holdings.number(Holding(EXCLUSIVE, node, 1 << node)) for node in (1, 2))
    assert (holdings.number(Holding(EXCLUSIVE, 1, 2)), len(holdings)) == (first, 3)
    holdings.sweep({second})
    assert len(holdings) == 2
    assert holdings.number(Holding(EXCLUSIVE, 9, 1 << 9)) == first
    assert holdings[second] == Holding(EXCLUSIVE, 2, 4)


def test_a_node_is_forgotten_in_every_holding_at_once() -> None:
    holdings = Holdings()
    number = holdings.number(Holding(SHARED, 1, 0b110))
    holdings.forget_node(1)
    assert holdings[number] == Holding(SHARED, 2, 0b100)
    assert holdings.number(Holding(SHARED, 2, 0b100)) == number


# --- the page machine, given what a liar sends -----------------------------------------------------------


def page_machine() -> PageMachine:
    pages = PageMachine()
    pages.add_region(1, 1024 * PAGE, PAGE)
    return pages


@pytest.mark.parametrize(
    "message",
    [
        Request(2, 1, 0, 1, READ, False),  # no such region
        Request(1, 1, 0, 0, READ, False),  # no pages
        Request(1, 1, 1024, 1, READ, False),  # beyond the end
        Request(1, 1, 511, 2, READ, False),  # of two extents
        Request(1, 1, 0, 2**32 - 1, READ, False),
        Request(1, 1, 0, 1, RESET + 1, False),
        Done(1, 1, 0, 1),
        GaveUp(1, 1, 0, 1),
        Done(7, 1, 0, 1),
        Inspect(1, "no page message", 0),
    ],
    ids=repr,
)
def test_what_the_rules_forbid_changes_nothing_and_is_counted(message: Any) -> None:
    pages = page_machine()
    assert pages.step(1, message) == []
    assert (pages.rejected, pages.counts(1)) == (1, {"shared": 0, "exclusive": 0, "lost": 0})
    assert pages.step(1, Request(1, 2, 0, 1, WRITE, False)) == [(1, Grant(1, 2, 0, 1, 0, True))]


def test_a_node_asks_once_for_a_page_at_a_time() -> None:
    pages = page_machine()
    pages.step(1, Request(1, 1, 0, 4, WRITE, False))
    assert len(pages.step(2, Request(1, 1, 0, 4, WRITE, False))) == 1
    assert pages.step(2, Request(1, 2, 3, 4, READ, False)) == []
    assert pages.rejected == 1


def test_a_done_that_is_not_quite_right_closes_nothing() -> None:
    pages = page_machine()
    pages.step(1, Request(1, 1, 0, 4, WRITE, False))
    pages.step(2, Request(1, 8, 0, 4, WRITE, False))
    wrong = [(3, Done(1, 8, 0, 4)), (2, Done(1, 7, 0, 4)), (2, Done(1, 8, 0, 5)), (2, Done(1, 8, 1, 4))]
    for node, done in [*wrong, (2, Done(1, 8, 4, 1)), (2, Done(1, 8, 0, 0))]:
        assert pages.step(node, done) == []
    assert (pages.rejected, pages.owners(1, 0, 4)) == (6, [(0, 4, 1)])
    pages.step(2, Done(1, 8, 0, 4))
    assert pages.owners(1, 0, 4) == [(0, 4, 2)]


def test_a_part_that_is_done_is_free_for_others() -> None:
    pages = page_machine()
    pages.step(1, Request(1, 1, 0, 8, WRITE, False))
    pages.step(2, Request(1, 8, 0, 8, WRITE, False))
    assert pages.step(3, Request(1, 5, 0, 8, READ, False)) == []
    fetch = Fetch(1, 5, 3, 2, 3, 0, True, False)
    assert pages.step(2, Done(1, 8, 3, 2)) == [(2, fetch)]
    assert pages.owners(1, 0, 8) == [(0, 3, 1), (3, 5, 2), (5, 8, 1)]
    assert pages.step(2, Done(1, 8, 0, 3)) == [(2, fetch._replace(start=0, count=3))]
    assert pages.step(2, Done(1, 8, 5, 3)) == [(2, fetch._replace(start=5, count=3))]
    assert pages.rejected == 0


def test_of_an_orphaned_run_only_what_has_not_come_is_lost() -> None:
    pages = page_machine()
    pages.step(1, Request(1, 1, 0, 8, WRITE, False))
    pages.step(2, Request(1, 8, 0, 8, WRITE, False))
    pages.step(2, Done(1, 8, 0, 4))
    assert pages.forget_node(1, "one") == [(2, Orphan(1, 8, 4, 4))]
    pages.step(2, Done(1, 8, 4, 2))  # was on its way
    pages.step(2, GaveUp(1, 8, 6, 2))
    assert pages.counts(1) == {"shared": 0, "exclusive": 6, "lost": 2}


def test_a_hurry_is_passed_on_to_the_supplier() -> None:
    pages = page_machine()
    pages.step(1, Request(1, 1, 0, 8, WRITE, False))
    pages.step(2, Request(1, 8, 0, 8, READ, True))
    hurry = Hurry(1, 8, 5, 2)
    assert pages.step(2, hurry) == [(1, hurry)]
    for node, wrong in ((3, hurry), (2, hurry._replace(generation=7)), (2, hurry._replace(page=8))):
        assert pages.step(node, wrong) == []
    pages.step(2, Done(1, 8, 0, 8))
    assert pages.step(2, hurry) == []  # it has come meanwhile


def test_a_page_in_a_hurry_does_not_wait_with_the_pages_it_was_asked_for_with() -> None:
    pages = page_machine()
    pages.step(1, Request(1, 1, 0, 8, WRITE, False))
    pages.step(3, Request(1, 4, 0, 8, WRITE, False))
    assert pages.step(2, Request(1, 8, 0, 8, READ, True)) == []
    assert pages.step(2, Hurry(1, 8, 5, 2)) == []
    read = Fetch(1, 8, 5, 1, 2, 0, True, False)
    ahead = read._replace(ahead=True)
    assert pages.step(3, Done(1, 4, 0, 8)) == [
        (3, ahead._replace(start=0, count=5)), (3, read), (3, ahead._replace(start=6, count=2)),
    ]  # fmt: skip


@pytest.mark.parametrize("sharers", [False, True])
def test_nobody_gives_up_what_was_not_orphaned(sharers: bool) -> None:
    pages = page_machine()
    pages.step(1, Request(1, 1, 0, 1, WRITE, False))
    if sharers:
        pages.step(2, Request(1, 1, 0, 1, READ, False))
        pages.step(2, Done(1, 1, 0, 1))
    pages.step(2, Request(1, 2, 0, 1, WRITE, False))
    assert pages.step(2, GaveUp(1, 2, 0, 1)) == []
    assert pages.rejected == 1
    pages.step(2, Done(1, 2, 0, 1))
    assert pages.owners(1, 0, 1) == [(0, 1, 2)]


def test_conflicting_requests_are_served_in_order_of_arrival() -> None:
    pages = page_machine()
    pages.step(1, Request(1, 1, 0, 1, WRITE, False))
    for node in (2, 3, 4):
        pages.step(node, Request(1, node, 0, 1, WRITE, False))
    order = []
    for node in (2, 3, 4):
        order += [message.requester for _, message in pages.step(node, Done(1, node, 0, 1))]  # type: ignore[attr-defined]
    assert order == [3, 4]


def test_only_the_conflicting_part_of_a_request_waits() -> None:
    pages = page_machine()
    pages.step(1, Request(1, 1, 0, 8, WRITE, False))
    pages.step(2, Request(1, 1, 2, 2, READ, False))
    started = pages.step(3, Request(1, 1, 0, 8, READ, False))
    assert [(message.start, message.count) for _, message in started] == [(0, 2), (4, 4)]  # type: ignore[attr-defined, comparison-overlap]
    waited = pages.step(2, Done(1, 1, 2, 2))
    assert [(message.start, message.count) for _, message in waited] == [(2, 2)]  # type: ignore[attr-defined, comparison-overlap]


def test_a_write_ahead_gets_only_what_nobody_ever_touched() -> None:
    pages = page_machine()
    pages.step(1, Request(1, 1, 2, 1, WRITE, False))
    told = pages.step(2, Request(1, 5, 0, 4, WRITE, True))
    assert told == [
        (2, Grant(1, 5, 0, 2, 0, True)),
        (2, Refuse(1, 5, 2, 1)),
        (2, Grant(1, 5, 3, 1, 0, True)),
    ]


# --- the registry ----------------------------------------------------------------------------------------


def question(name: str, size: int = 0, page_size: int = 0, create: int = 0, **options: Any) -> Open:
    return Open(1, name, size, page_size, create, options)


def test_a_region_is_made_once_and_opened_by_all() -> None:
    registry = Registry()
    region, new = registry.open(1, question("a", 5000, shape=[5000], dtype="|u1"))
    assert (new, region.page_size) == (True, PAGE)
    assert registry.open(2, question("a")) == (region, False)
    assert sorted(region.nodes) == [1, 2]


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        (question("b"), errors.RegionNotFound),
        (question("b", 5000, create=2), errors.RegionNotFound),
        (question("a", 5000, create=1), errors.RegionExists),
        (question("a", 5001), errors.RegionMismatch),
        (question("a", 5000, shape=[50, 100]), errors.RegionMismatch),
        (question("a", 5000, dtype="<f8"), errors.RegionMismatch),
        (question("a", page_size=8192), errors.RegionMismatch),
        (question("c", 1, page_size=5000), errors.InvalidArgument),
        (question("c", 2**62), errors.RegionTooLarge),
        (question("a", 5000, persist=False), errors.RegionMismatch),
        (question("c", 1, shape=7), errors.InvalidArgument),
        (question("c", 1, persist="no"), errors.InvalidArgument),
    ],
    ids=repr,
)
def test_what_cannot_be_opened_changes_nothing(asked: Open, error: type[errors.DsmError]) -> None:
    registry = Registry()
    region, _ = registry.open(1, question("a", 5000, shape=[5000], dtype="|u1"))
    with pytest.raises(error):
        registry.open(2, asked)
    assert (list(registry.regions), region.nodes) == ([1], {1: 1})


def test_an_unlinked_region_lives_until_the_last_node_has_detached() -> None:
    registry = Registry()
    old, _ = registry.open(1, question("a", 5000))
    registry.open(2, question("a"))
    assert registry.unlink("a") == (old.number, set())
    new, made = registry.open(1, question("a", 6000))
    assert made and new.number != old.number
    assert registry.close(1, old.number, 1) == set()
    assert registry.close(2, old.number, 1) == {1, 2}
    assert list(registry.regions) == [new.number]


def test_a_region_that_nobody_could_map_goes_with_the_last_close() -> None:
    registry = Registry()
    region, _ = registry.open(1, question("a", 5000))
    registry.open(2, question("a"))
    assert registry.close(1, region.number, 1) == set()
    assert registry.close(2, region.number, 1) == {1, 2}
    assert registry.regions == {}
    _, new = registry.open(1, question("a", 7000))
    assert new


def test_a_region_that_somebody_has_mapped_stays() -> None:
    registry = Registry()
    region, _ = registry.open(1, question("a", 5000))
    registry.keep(2, region.number)  # it is not attached
    assert not region.kept
    registry.keep(1, region.number)
    assert registry.close(1, region.number, 1) == set()
    assert registry.open(2, question("a")) == (region, False)


def test_a_region_that_does_not_persist_goes_with_its_last_user() -> None:
    registry = Registry()
    region, _ = registry.open(1, question("a", 5000, persist=False))
    registry.open(2, question("a"))
    registry.keep(1, region.number)
    assert registry.close(1, region.number, 1) == set()
    assert registry.forget_node(2) == {region.number: {1}}
    assert registry.regions == {}
    _, new = registry.open(1, question("a", 7000))
    assert new


def test_a_region_that_is_held_stays_until_it_is_let_go_or_unlinked() -> None:
    registry = Registry()
    first, _ = registry.open(1, question("a", 5000, persist=False))
    other, _ = registry.open(1, question("b", 5000, persist=False))
    assert not registry.may_hold(2, first.number, True) and not registry.may_hold(1, first.number, False)
    for region in (first, other):
        assert registry.may_hold(1, region.number, True)
        assert registry.hold(1, region.number, True) == set()
        assert registry.close(1, region.number, 1) == set()
    assert registry.may_hold(1, first.number, False)
    assert registry.hold(1, first.number, False) == {1}
    assert registry.unlink("b") == (other.number, {1})
    assert registry.regions == {}


def test_a_region_ends_with_the_node_that_holds_it() -> None:
    registry = Registry()
    region, _ = registry.open(1, question("a", 5000, persist=False))
    registry.hold(1, region.number, True)
    registry.close(1, region.number, 1)
    assert registry.forget_node(1) == {region.number: set()}


def test_an_open_that_crosses_a_close_keeps_the_node_attached() -> None:
    registry = Registry()
    region, _ = registry.open(1, question("a", 5000))
    registry.open(1, question("a"))
    registry.close(1, region.number, 1)
    assert region.nodes == {1: 1}


def test_a_node_that_leaves_detaches() -> None:
    registry = Registry()
    region, _ = registry.open(1, question("a", 5000))
    registry.unlink("a")
    assert registry.forget_node(1) == {region.number: set()}
