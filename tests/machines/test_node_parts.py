"""The node's pure parts one by one: the machine given what is late, false or too much, read-ahead, statistics."""

from __future__ import annotations

import pytest

from dsm.errors import ProtocolError
from dsm.wire import READ, WRITE, Ack, Data, Done, Fetch, Grant, Invalidate, Message, Request
from nodes.machine import Finished, Hold, Install, NodeMachine, Resume, Send, Unprotect
from nodes.readahead import ReadAhead
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
    node.step(Ack(1, 1, 0, OTHER))
    last = node.data(Data(1, 1, 0, 32, 16, 16, 1), "second half")
    assert last[1:] == [Unprotect(1, 0, 32, "a"), Send(0, Done(1, 1, 0, 32)), Finished("a")]


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
    with pytest.raises(ProtocolError, match="not here"):
        node.step(Grant(1, ask(node, 5, True).generation, 5, 1, 0, False))


def test_an_application_that_has_detached_is_waited_for_no_more(node: NodeMachine) -> None:
    generation = ask(node, 5, False, "a").generation
    node.fault(1, 5, False, "b")
    node.forget_waiter(1, "a")
    effects = node.data(Data(1, generation, 5, 1, 5, 1, 0), "page")
    assert effects[:2] == [Install(1, 5, 1, "page", False, None), Resume(1, 5, False, ["b"])]


def test_a_prefetch_of_what_is_here_is_over_at_once(node: NodeMachine) -> None:
    (effect,) = node.prefetch(1, 0, 4, False, "a")
    assert isinstance(effect, Send) and effect.message == Request(1, 1, 0, 4, READ, False)
    assert node.step(Grant(1, 1, 0, 4, 0, True))[-1] == Finished("a")
    assert node.prefetch(1, 1, 3, False, "a") == [Finished("a")]


# --- read-ahead ------------------------------------------------------------------------------------------


def test_the_window_opens_at_the_second_fault_in_a_row_and_doubles() -> None:
    policy = ReadAhead(4, 16)
    asked = []
    page = 0
    for _ in range(6):
        window = policy.fault(page)
        asked.append(window)
        page = window[1] if window else page + 1
    assert asked == [None, (2, 6), (7, 15), (16, 32), (33, 49), (50, 66)]


def test_a_wrong_guess_closes_the_window() -> None:
    policy = ReadAhead(4, 16)
    assert [policy.fault(page) for page in (0, 1, 100, 7, 3)] == [None, (2, 6), None, None, None]


def test_a_reader_that_runs_into_what_is_on_its_way_gets_the_next_window() -> None:
    policy = ReadAhead(4, 16)
    assert [policy.fault(page) for page in (0, 1, 2, 3)] == [None, (2, 6), (6, 14), None]


def test_random_access_asks_for_nothing() -> None:
    policy = ReadAhead(4, 16)
    assert all(policy.fault(page * 7919 % 100003) is None for page in range(1000))


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
