"""The node's pure parts one by one: the machine given what is late, false or too much, read-ahead, statistics."""

from __future__ import annotations

import pytest

from dsm.errors import ProtocolError, Violation
from dsm.wire import (
    GUESS,
    PREFETCH,
    READ,
    WRITE,
    Ack,
    Data,
    Done,
    Fetch,
    GaveUp,
    Grant,
    Hurry,
    Invalidate,
    Lost,
    Message,
    Orphan,
    Request,
)
from nodes.bulk import Bulk, Frame
from nodes.effects import Expedite, Finished, Hold, Install, Resume, Send, Supply, Unprotect
from nodes.machine import NodeMachine
from nodes.statistics import Histogram

ME, OTHER, THIRD = 1, 2, 3


@pytest.fixture
def node() -> NodeMachine:
    machine = NodeMachine(ME)
    machine.add_region(1, 512, 4096)
    return machine


def ask(node: NodeMachine, page: int, write: bool, waiter: str = "a") -> Request:
    (effect,) = node.fault(1, page, write, waiter)
    assert isinstance(effect, Send) and isinstance(effect.message, Request)
    return effect.message


def test_faults_on_one_page_are_one_request(node: NodeMachine) -> None:
    generation = ask(node, 5, False).generation
    assert node.fault(1, 5, False, "a") == node.fault(1, 5, True, "b") == []
    effects = node.data(Data(1, generation, 5, 1, 5, 1, 0), "page")
    assert effects == [
        Install(1, 5, 1, "page", False, "a"),
        Resume(1, 5, False, ["a", "b"]),
        Hold(1, 5),
        Send(0, Done(1, generation, 5, 1)),
    ]
    assert ask(node, 5, True, "b").op == WRITE  # woken, b stores again


def test_a_neighbour_of_the_same_node_writes_without_the_directory(node: NodeMachine) -> None:
    node.step(Grant(1, ask(node, 5, True).generation, 5, 1, 0, True))
    assert node.fault(1, 5, True, "b") == [Resume(1, 5, True, ["b"])]


@pytest.mark.parametrize(
    "message",
    [
        Grant(1, 99, 5, 1, 0, True),
        Ack(1, 99, 5, OTHER),
        Grant(2, 1, 5, 1, 0, True),
        Ack(1, 1, 600, OTHER),
        Ack(1, 1, 6, OTHER),
    ],
    ids=repr,
)
def test_what_answers_no_open_request_changes_nothing(node: NodeMachine, message: Message) -> None:
    generation = ask(node, 5, True).generation
    assert node.step(message) == []
    assert node.step(Grant(1, generation, 5, 1, 0, True))[0] == Install(1, 5, 1, None, True, "a")


@pytest.mark.parametrize(
    "data",
    [
        Data(1, 99, 5, 1, 5, 1, 0),
        Data(7, 1, 5, 1, 5, 1, 0),
        Data(1, 1, 6, 1, 6, 1, 0),
        Data(1, 1, 5, 1, 5, 0, 0),
        Data(1, 1, 5, 1, 5, 2, 0),
        Data(1, 1, 4, 2, 4, 2, 0),
    ],
    ids=repr,
)
def test_data_that_nobody_waits_for_is_dropped_and_counted(node: NodeMachine, data: Data) -> None:
    generation = ask(node, 5, False).generation
    assert (node.data(data, "lie"), node.late) == ([], 1)
    assert node.data(Data(1, generation, 5, 1, 5, 1, 0), "page")[0] == Install(1, 5, 1, "page", False, "a")


def test_data_counts_once(node: NodeMachine) -> None:
    (effect,) = node.read_ahead(1, 0, 32, False, "a")
    assert isinstance(effect, Send)
    generation = effect.message[1]
    node.data(Data(1, generation, 0, 32, 0, 16, 0), "first half")
    assert node.data(Data(1, generation, 0, 32, 0, 16, 0), "again") == []
    effects = node.data(Data(1, generation, 0, 32, 16, 16, 0), "second half")
    assert effects[-1] == Send(0, Done(1, generation, 0, 32))
    assert node.data(Data(1, generation, 0, 32, 16, 16, 0), "again") == []


def test_a_sharer_acknowledges_once(node: NodeMachine) -> None:
    node.step(Grant(1, ask(node, 5, False).generation, 5, 1, 0, True))
    generation = ask(node, 5, True).generation
    node.step(Grant(1, generation, 5, 1, 2, False))
    assert node.step(Ack(1, generation, 5, OTHER)) == node.step(Ack(1, generation, 5, OTHER)) == []
    assert node.step(Ack(1, generation, 5, THIRD))[0] == Resume(1, 5, True, ["a"])


def test_data_in_pieces_is_readable_at_once_and_writable_with_the_last_acknowledgement(node: NodeMachine) -> None:
    node.prefetch(1, 0, 32, True, "a")
    first = node.data(Data(1, 1, 0, 32, 0, 16, 1), "first half")
    assert first == [Install(1, 0, 16, "first half", False, "a")]
    assert node.step(Ack(1, 1, 0, OTHER)) == [Unprotect(1, 0, 16, "a")]
    last = node.data(Data(1, 1, 0, 32, 16, 16, 1), "second half")
    assert last == [Install(1, 16, 16, "second half", True, "a"), Send(0, Done(1, 1, 0, 32)), Finished("a")]


def test_data_in_pieces_is_writable_at_once_where_nobody_else_had_a_copy(node: NodeMachine) -> None:
    node.prefetch(1, 0, 32, True, "a")
    assert node.data(Data(1, 1, 0, 32, 16, 16, 0), "half")[0] == Install(1, 16, 16, "half", True, "a")
    assert node.fault(1, 20, True, "b") == [Resume(1, 20, True, ["b"])]


def test_of_a_run_whose_supplier_has_gone_only_what_has_not_come_is_given_up(node: NodeMachine) -> None:
    node.prefetch(1, 0, 64, True, "a")
    node.data(Data(1, 1, 0, 64, 16, 16, 1), "came")
    effects = node.step(Orphan(1, 1, 0, 64))
    sent = [e.message for e in effects if isinstance(e, Send)]
    assert [m for m in sent if isinstance(m, GaveUp)] == [GaveUp(1, 1, 0, 16), GaveUp(1, 1, 32, 32)]
    assert Send(0, Done(1, 1, 16, 16)) in node.step(Ack(1, 1, 0, OTHER))


def test_data_of_a_page_that_was_given_up_is_late_though_the_page_is_asked_for_again(node: NodeMachine) -> None:
    """Found by the model checker: p1 was on its way when its supplier left, and an acknowledgement is still owed."""
    node.prefetch(1, 0, 2, True, "a")
    node.data(Data(1, 1, 0, 2, 0, 1, 1), "p0")
    assert Send(0, GaveUp(1, 1, 1, 1)) in node.step(Orphan(1, 1, 0, 2))
    assert any(ask.start == 1 for ask in node._regions[1].asks.values())  # the prefetch still wants it
    assert node.data(Data(1, 1, 0, 2, 1, 1, 1), "p1") == []
    assert node.late == 1
    node.step(Lost(1, 2, 1, 1, "n2"))
    assert Send(0, Done(1, 1, 0, 1)) in node.step(Ack(1, 1, 0, OTHER))


def test_a_store_to_a_page_that_has_come_does_not_wait_for_the_others(node: NodeMachine) -> None:
    node.read_ahead(1, 0, 64, False, "a")
    node.data(Data(1, 1, 0, 64, 16, 16, 0), "came")
    done, request = node.fault(1, 20, True, "a")
    assert done == Send(0, Done(1, 1, 16, 16))
    assert request == Send(0, Request(1, 2, 20, 1, WRITE, False))
    node.step(Grant(1, 2, 20, 1, 0, False))
    node.data(Data(1, 1, 0, 64, 0, 16, 0), "came")
    assert node.data(Data(1, 1, 0, 64, 32, 32, 0), "came")[1:] == [
        Send(0, Done(1, 1, 0, 16)),
        Send(0, Done(1, 1, 32, 32)),
    ]


def test_a_thread_that_faults_on_a_page_asked_for_ahead_hurries_it_once(node: NodeMachine) -> None:
    (effect,) = node.read_ahead(1, 0, 32, False, "a")
    assert isinstance(effect, Send)
    assert node.fault(1, 7, False, "a") == [Send(0, Hurry(1, effect.message[1], 7, node.me))]
    assert node.fault(1, 7, False, "b") == []


def test_one_page_that_a_thread_has_asked_for_is_not_hurried(node: NodeMachine) -> None:
    ask(node, 5, False)
    assert node.fault(1, 5, False, "b") == []


def test_what_comes_next_anyway_is_not_hurried(node: NodeMachine) -> None:
    (effect,) = node.read_ahead(1, 0, 64, False, "a")
    assert isinstance(effect, Send)
    generation = effect.message[1]

    def hurried(page: int) -> bool:
        return node.fault(1, page, False, "a") == [Send(0, Hurry(1, generation, page, node.me))]

    node.data(Data(1, generation, 0, 64, 0, 16, 0), "first")
    assert not hurried(16) and not hurried(31)
    assert hurried(32)
    node.data(Data(1, generation, 0, 64, 32, 16, 0), "hurried")
    assert not hurried(17)
    node.data(Data(1, generation, 0, 64, 16, 16, 0), "second")
    assert hurried(63)  # it comes next, but that the third has come already is not kept


@pytest.mark.parametrize("sure", [False, True])
def test_only_who_is_sure_takes_copies_from_others_ahead(node: NodeMachine, sure: bool) -> None:
    node.data(Data(1, ask(node, 5, False).generation, 5, 1, 5, 1, 0), "page")
    messages = [effect.message for effect in node.read_ahead(1, 4, 7, True, "a", sure) if isinstance(effect, Send)]
    wanted = [(4, 1), (5, 1), (6, 1)] if sure else [(4, 1), (6, 1)]
    assert [(m.start, m.count) for m in messages if isinstance(m, Request)] == wanted
    assert {m.need for m in messages if isinstance(m, Request)} == {PREFETCH if sure else GUESS}


def test_a_hurry_waits_with_the_fetch_that_it_is_about(node: NodeMachine) -> None:
    node.step(Grant(1, ask(node, 5, True).generation, 5, 1, 0, True))
    fetch = Fetch(1, 9, 5, 1, OTHER, 0, True, True)
    assert node.step(fetch) == node.step(Hurry(1, 9, 5, OTHER)) == []
    supply, expedite = node.hold_expired(1, 5)
    assert (supply, expedite) == (Supply(fetch, True), Expedite(Hurry(1, 9, 5, OTHER)))
    assert node.deferred == 0


def test_a_page_is_held_as_often_as_it_came(node: NodeMachine) -> None:
    node.step(Grant(1, ask(node, 5, False).generation, 5, 1, 0, True))
    node.step(Grant(1, ask(node, 5, True).generation, 5, 1, 0, False))
    fetch = Fetch(1, 1, 5, 1, OTHER, 0, True, False)
    assert node.step(fetch) == node.hold_expired(1, 5) == []
    assert node.deferred == 1
    assert len(node.hold_expired(1, 5)) == 1
    assert node.deferred == 0


@pytest.mark.parametrize("message", [Fetch(1, 1, 5, 1, OTHER, 0, True, False), Invalidate(1, 1, 5, 1, OTHER)], ids=repr)
def test_what_is_not_here_cannot_be_given_away(node: NodeMachine, message: Message) -> None:
    with pytest.raises(ProtocolError, match="not"):
        node.step(message)


def test_what_is_not_here_cannot_be_granted_without_data(node: NodeMachine) -> None:
    with pytest.raises(Violation, match="granted without data"):
        node.step(Grant(1, ask(node, 5, True).generation, 5, 1, 0, False))


def test_an_application_that_has_detached_is_waited_for_no_more(node: NodeMachine) -> None:
    generation = ask(node, 5, False, "a").generation
    node.fault(1, 5, False, "b")
    node.forget_waiter(1, "a")
    effects = node.data(Data(1, generation, 5, 1, 5, 1, 0), "page")
    assert effects[:2] == [Install(1, 5, 1, "page", False, None), Resume(1, 5, False, ["b"])]


def test_a_prefetch_of_what_is_here_is_over_at_once(node: NodeMachine) -> None:
    (effect,) = node.prefetch(1, 0, 4, False, "a")
    assert isinstance(effect, Send) and effect.message == Request(1, 1, 0, 4, READ, PREFETCH)
    assert node.step(Grant(1, 1, 0, 4, 0, True))[-1] == Finished("a")
    assert node.prefetch(1, 1, 3, False, "a") == [Finished("a")]


# --- statistics ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("latency_ns", [1, 15, 16, 17, 1000, 123_456, 10**9])
def test_a_quantile_is_off_by_an_eighth_at_most(latency_ns: int) -> None:
    histogram = Histogram()
    for _ in range(10):
        histogram.add(latency_ns)
    assert latency_ns <= histogram.quantile_us(0.5) * 1000 <= latency_ns * 9 / 8 + 1


def test_quantiles_are_in_order() -> None:
    histogram = Histogram()
    for latency_us in range(1, 1001):
        histogram.add(latency_us * 1000)
    assert 500 <= histogram.quantile_us(0.5) <= 570
    assert 990 <= histogram.quantile_us(0.99) <= 1130
    assert histogram.count == 1000


def test_nothing_counted_is_nothing() -> None:
    assert Histogram().quantile_us(0.5) == 0


# --- what is to be sent ------------------------------------------------------------------------------------


def fetch(generation: int, requester: int, region: int = 1) -> Fetch:
    return Fetch(region, generation, 30, 40, requester, 0, True, True)


def starts(bulk: Bulk) -> list[tuple[int, int]]:
    return [(frame.fetch.generation, frame.start) for frame in bulk]


def test_frames_go_in_order_and_none_waits_for_a_peer_that_takes_no_more() -> None:
    bulk = Bulk()
    bulk.add(fetch(1, OTHER), 16)
    bulk.add(fetch(2, THIRD), 16)
    assert bulk.next(lambda node: False) is None
    assert bulk.next(lambda node: node == THIRD) == Frame(fetch(2, THIRD), 30, 16)
    assert [bulk.next(lambda node: True) for _ in range(3)] == [
        Frame(fetch(1, OTHER), start, count) for start, count in ((30, 16), (46, 16), (62, 8))
    ]
    assert starts(bulk) == [(2, 46), (2, 62)]


def test_a_page_that_somebody_waits_for_is_taken_out_once() -> None:
    bulk = Bulk()
    bulk.add(fetch(1, OTHER), 16)
    bulk.add(fetch(2, OTHER), 16)
    assert bulk.expedite(Hurry(1, 2, 50, OTHER)) == Frame(fetch(2, OTHER), 46, 16)
    for hurry in (Hurry(1, 2, 50, OTHER), Hurry(1, 3, 50, OTHER), Hurry(1, 1, 50, THIRD), Hurry(2, 1, 50, OTHER)):
        assert bulk.expedite(hurry) is None
    assert starts(bulk) == [(1, 30), (1, 46), (1, 62), (2, 30), (2, 62)]


def test_what_is_cancelled_is_told_and_not_sent() -> None:
    bulk = Bulk()
    bulk.add(fetch(1, OTHER, region=1), 32)
    bulk.add(fetch(1, THIRD, region=2), 32)
    bulk.add(fetch(2, OTHER, region=2), 32)
    assert starts(bulk) == [(1, 30), (1, 62), (1, 30), (1, 62), (2, 30), (2, 62)]
    assert len(bulk.cancel(requester=OTHER)) == 4
    assert len(bulk.cancel(region=2)) == 2
    assert not bulk
