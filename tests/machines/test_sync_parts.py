"""Named primitives, directory and node: pure parts one by one, and together in many orders of messages."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import pytest

from directory.sync import SyncMachine
from dsm.wire import (
    ACT,
    ALL,
    BARRIER,
    BOUNDED_SEMAPHORE,
    CONDITION,
    CONTENDED,
    COUNTER,
    EVENT,
    FOREVER,
    LOCK,
    OWNER_DIED,
    RLOCK,
    SEMAPHORE,
    TIMED,
    TRY,
    Acquire,
    Answer,
    Arrive,
    BarrierReset,
    Cancel,
    Cancelled,
    Enroll,
    Failure,
    Forget,
    Gone,
    Granted,
    Holds,
    Inspect,
    Message,
    Post,
    Recall,
    Return,
)
from nodes.locks import Locks


def acquire(ticket: int, name: str = "l", kind: int = LOCK, wait: int = FOREVER, thread: int = 0) -> Acquire:
    """By a thread of its own, unless that is named."""
    number = thread or ticket
    return Acquire(ticket, name, kind, wait, number, 1, f"thread {number}")


def arrive(ticket: int, parties: int, act: bool = False, thread: int = 0, wait: int = FOREVER) -> Arrive:
    number = thread or ticket
    return Arrive(ticket, "b", parties, wait, act, number, 1, f"thread {number}")


def enroll(kind: int, value: int, name: str = "b", thread: int = 1) -> Enroll:
    return Enroll(99, name, kind, value, thread, 1, f"thread {thread}")


def holds(thread: int, name: str = "l") -> Holds:
    return Holds(name, thread, 1, f"thread {thread}")


def failed(out: list[tuple[int, Message]]) -> list[tuple[int, int, str]]:
    """Node, ticket and error of each failure."""
    return [(to, m.ticket, m.error) for to, m in out if isinstance(m, Failure)]


# --- locks: the directory ----------------------------------------------------------------------------------


def test_a_lock_goes_to_who_came_first() -> None:
    sync = SyncMachine()
    assert sync.step(1, acquire(1)) == [(1, Granted(1, 0))]
    assert sync.step(2, acquire(2)) == [(1, Recall("l"))]
    assert sync.step(1, acquire(3)) == []
    assert sync.step(1, Return(1, "l", False)) == [(2, Granted(2, CONTENDED))]
    assert sync.step(2, acquire(9, wait=TRY)) == [(2, Cancelled(9))]
    assert sync.step(2, Return(2, "l", False)) == [(1, Granted(3, 0))]
    assert sync.step(1, Return(3, "l", False)) == sync.status()["primitives"] == []


def test_a_try_waits_for_the_word_of_the_node_that_has_the_lock() -> None:
    sync = SyncMachine()
    sync.step(1, acquire(1))
    assert sync.step(2, acquire(2, wait=TRY)) == [(1, Recall("l"))]
    assert sync.step(1, holds(1)) == [(2, Cancelled(2))]
    assert sync.step(2, acquire(3, wait=TRY)) == [(2, Cancelled(3))]
    sync.step(1, Return(1, "l", False))
    sync.step(1, acquire(4))
    sync.step(2, acquire(5, wait=TRY))
    assert sync.step(1, Return(4, "l", False)) == [(2, Granted(5, 0))]


def test_whether_a_lock_is_held_its_node_knows() -> None:
    sync = SyncMachine()
    assert sync.step(2, Inspect(1, "l", LOCK)) == [(2, Answer(1, {"locked": False}))]
    sync.step(1, acquire(1))
    assert sync.step(2, Inspect(2, "l", LOCK)) == [(1, Recall("l"))]
    assert sync.step(1, holds(1)) == [(2, Answer(2, {"locked": True}))]
    assert sync.step(2, Inspect(3, "l", LOCK)) == [(2, Answer(3, {"locked": True}))]
    sync.step(1, Return(1, "l", False))
    sync.step(1, acquire(4))
    sync.step(2, Inspect(5, "l", LOCK))
    assert sync.step(1, Return(4, "l", False)) == [(2, Answer(5, {"locked": False}))]


@pytest.mark.parametrize("message", [Return(1, "l", False), holds(7), Return(1, "other", True)], ids=repr)
def test_only_the_node_that_has_a_lock_speaks_of_it(message: Message) -> None:
    sync = SyncMachine()
    sync.step(1, acquire(1))
    assert (sync.step(2, message), sync.rejected) == ([], 1)
    assert sync.step(2, acquire(2)) == [(1, Recall("l"))]


def test_a_waiter_that_gives_up_is_answered_once_whatever_crosses() -> None:
    sync = SyncMachine()
    sync.step(1, acquire(1))
    sync.step(2, acquire(2, wait=TIMED))
    assert sync.step(2, Cancel(2, False)) == [(2, Cancelled(2))]
    assert sync.step(2, Cancel(2, False)) == sync.step(1, Cancel(1, False)) == []
    assert sync.step(1, Return(1, "l", False)) == []


def test_the_next_one_is_told_that_the_owner_died() -> None:
    sync = SyncMachine()
    sync.step(1, acquire(1))
    assert sync.step(1, Return(1, "l", True)) == []
    assert sync.step(2, acquire(2)) == [(2, Granted(2, OWNER_DIED))]
    sync.step(1, acquire(3))
    assert sync.step(2, Return(2, "l", False)) == [(1, Granted(3, 0))]
    sync.step(2, acquire(4))
    sync.step(2, acquire(5))
    assert sync.step(1, Return(3, "l", True)) == [(2, Granted(4, OWNER_DIED | CONTENDED))]


def test_the_locks_and_places_of_a_node_that_leaves_pass_on() -> None:
    sync = SyncMachine()
    sync.step(1, acquire(1))
    sync.step(1, acquire(2))
    sync.step(2, acquire(3))
    assert sync.forget_node(1) == [(2, Granted(3, OWNER_DIED))]


@pytest.mark.parametrize("again", [acquire(5), acquire(5, "other"), arrive(5, 2)], ids=repr)
def test_a_ticket_waits_for_one_thing(again: Any) -> None:
    sync = SyncMachine()
    sync.step(1, acquire(1))
    sync.step(2, acquire(5))
    assert (sync.step(2, again), sync.rejected) == ([], 1)
    assert sync.step(1, Return(1, "l", False)) == [(2, Granted(5, 0))]


# --- locks: the node -----------------------------------------------------------------------------------------


def test_a_lock_taken_again_costs_no_message() -> None:
    locks = Locks()
    assert locks.take(acquire(1)) is None
    locks.granted(acquire(1), 0)
    for thread in range(2, 1000):
        assert locks.released("l", 1, died=False) == []
        assert locks.take(acquire(thread)) == Granted(0, 0)
    assert locks.spared == 998


def test_a_lock_that_is_held_here_is_asked_for_there() -> None:
    locks = Locks()
    locks.granted(acquire(1), 0)
    assert (locks.take(acquire(2)), locks.take(acquire(3, wait=TRY))) == (None, Cancelled(0))
    assert locks.take(acquire(4, kind=RLOCK)) is None  # the directory knows what to say to that


def test_a_lock_that_is_recalled_goes_back_once() -> None:
    locks = Locks()
    locks.granted(acquire(1), 0)
    assert locks.recalled("l") == [holds(1)]
    assert locks.released("l", 1, died=False) == [Return(1, "l", False)]
    assert locks.recalled("l") == []
    locks.granted(acquire(2), CONTENDED)
    assert locks.released("l", 2, died=True) == [Return(2, "l", True)]
    locks.granted(acquire(3), 0)
    locks.released("l", 3, died=False)
    assert locks.recalled("l") == [Return(3, "l", False)]
    assert locks.take(acquire(4)) is None


def test_what_nobody_holds_goes_back_when_there_is_too_much_of_it_and_when_the_node_leaves() -> None:
    locks = Locks()
    for number in range(4096):
        locks.granted(acquire(1, f"l{number}"), 0)
        assert locks.released(f"l{number}", 1, died=False) == []
    locks.granted(acquire(1, "held"), 0)
    locks.granted(acquire(1, "one more"), 0)
    assert locks.released("one more", 1, died=False) == [Return(1, "l0", False)]
    assert len(locks.give_up()) == 4096
    assert locks.is_held("held", LOCK) is True


# --- directory and nodes together -------------------------------------------------------------------------------


class World:
    """A directory, nodes and threads that take a few locks; links are in order, and as slow as chance has it."""

    def __init__(self, seed: int, nodes: int, threads: int, names: int) -> None:
        self.chance = random.Random(seed)
        self.sync = SyncMachine()
        self.locks = {node: Locks() for node in range(1, nodes + 1)}
        self.up: dict[int, deque[Message]] = {node: deque() for node in self.locks}
        self.down: dict[int, deque[Message]] = {node: deque() for node in self.locks}
        self.names = [f"l{number}" for number in range(names)]
        self.idle = [(node, node * 100 + thread) for node in self.locks for thread in range(threads)]
        self.asked: dict[tuple[int, int], Acquire] = {}  # by node and ticket
        self.holds: dict[str, tuple[int, int]] = {}  # who is in
        self.taken = 0
        self.messages = 0

    def enter(self, node: int, m: Acquire) -> None:
        assert m.name not in self.holds, f"two hold {m.name}"
        self.holds[m.name] = (node, m.thread)
        self.taken += 1

    def begin(self) -> None:
        node, thread = self.idle.pop(self.chance.randrange(len(self.idle)))
        wait = self.chance.choice((TRY, TIMED, TIMED, TIMED))  # no deadlocks: those have tests of their own
        ticket = thread
        m = Acquire(ticket, self.chance.choice(self.names), LOCK, wait, node, thread, f"thread {thread}")
        answer = self.locks[node].take(m)
        if answer is None:
            self.asked[node, ticket] = m
            self.tell(node, m)
        elif isinstance(answer, Granted):
            self.enter(node, m)
        else:
            self.idle.append((node, thread))

    def end(self) -> None:
        name = self.chance.choice(sorted(self.holds))
        node, thread = self.holds.pop(name)
        for message in self.locks[node].released(name, self.locks[node].grant(name), died=self.chance.random() < 0.05):
            self.tell(node, message)
        self.idle.append((node, thread))

    def tell(self, node: int, message: Message) -> None:
        self.messages += 1
        self.up[node].append(message)

    def arrive_up(self, node: int) -> None:
        for to, message in self.sync.step(node, self.up[node].popleft()):
            self.down[to].append(message)

    def arrive_down(self, node: int) -> None:
        message: Any = self.down[node].popleft()
        if isinstance(message, Recall):
            for answer in self.locks[node].recalled(message.name):
                self.tell(node, answer)
            return
        m = self.asked.pop((node, message.ticket))
        if isinstance(message, Granted):
            self.locks[node].granted(m, message.value)
            self.enter(node, m)
        else:
            assert isinstance(message, Cancelled)
            self.idle.append((node, m.thread))

    def give_up(self) -> None:
        node, ticket = self.chance.choice(sorted(self.asked))
        self.tell(node, Cancel(ticket, False))

    def step(self, *, beginning: bool) -> bool:
        """One of the things that can happen, if any."""
        can: list[Any] = [lambda n=node: self.arrive_up(n) for node in self.up if self.up[node]]
        can += [lambda n=node: self.arrive_down(n) for node in self.down if self.down[node]]
        if self.holds:
            can += [self.end]
        if self.idle and beginning:
            can += [self.begin] * 2
        if self.asked and beginning and self.chance.random() < 0.05:
            can += [self.give_up]
        if can:
            self.chance.choice(can)()
        return bool(can)


@pytest.mark.parametrize("seed", range(60))
def test_never_two_hold_a_lock_and_everybody_who_waits_gets_it(seed: int) -> None:
    world = World(seed, nodes=1 + seed % 4, threads=3, names=1 + seed % 3)
    for _ in range(3000):
        world.step(beginning=True)
    while world.step(beginning=False):  # nobody new: all who wait get it, and release it
        pass
    assert not world.asked and not world.holds
    assert len(world.idle) == 3 * len(world.locks)
    assert world.taken > 100 and world.sync.rejected == 0


def test_a_node_alone_with_its_locks_asks_for_each_once() -> None:
    world = World(1, nodes=1, threads=1, names=3)
    world.chance = random.Random(1)
    for _ in range(3000):
        world.step(beginning=True)
    died = world.messages - world.taken + world.locks[1].spared
    assert world.taken > 500 and world.locks[1].spared >= 0.9 * world.taken
    assert died < 0.15 * world.taken  # a lock whose holder died goes back, that all nodes may know


# --- deadlocks ---------------------------------------------------------------------------------------------------


def test_two_who_wait_for_each_other() -> None:
    sync = SyncMachine()
    sync.step(1, acquire(1, "a", thread=1))
    sync.step(2, acquire(2, "b", thread=2))
    assert sync.step(1, acquire(3, "b", thread=1)) == [(2, Recall("b"))]
    assert sync.step(2, holds(2, "b")) == []
    assert sync.step(2, acquire(4, "a", thread=2)) == [(1, Recall("a"))]
    (told,) = sync.step(1, holds(1, "a"))
    assert told[0] == 2 and isinstance(told[1], Failure)
    assert (told[1].ticket, told[1].error) == (4, "DeadlockError")  # the youngest
    for part in ("thread 2 waits for lock 'a'", "held by thread 1", "thread 1 waits for lock 'b'", "held by thread 2"):
        assert part in told[1].text
    assert sync.step(2, Return(2, "b", False)) == [(1, Granted(3, 0))]


def test_a_circle_of_many_and_a_bystander() -> None:
    sync = SyncMachine()
    for number in range(1, 6):
        sync.step(number, acquire(number, f"l{number}", thread=number))
    for number in range(1, 6):
        following = number % 5 + 1
        assert failed(sync.step(number, acquire(10 + number, f"l{following}", thread=number))) == []
    assert failed(sync.step(1, acquire(99, "l3", thread=77))) == []
    out = [failed(sync.step(number, holds(number, f"l{number}"))) for number in range(1, 6)]
    assert [one for one in out if one] == [[(5, 15, "DeadlockError")]]


def test_who_waits_with_a_time_out_is_in_no_circle() -> None:
    sync = SyncMachine()
    sync.step(1, acquire(1, "a", thread=1))
    sync.step(2, acquire(2, "b", thread=2))
    sync.step(1, acquire(3, "b", thread=1, wait=TIMED))
    sync.step(2, acquire(4, "a", thread=2))
    assert failed(sync.step(2, holds(2, "b")) + sync.step(1, holds(1, "a"))) == []


def test_a_thread_that_waits_for_itself() -> None:
    sync = SyncMachine()
    sync.step(1, acquire(1, thread=1))
    sync.step(1, acquire(2, thread=1))
    assert failed(sync.step(1, holds(1))) == [(1, 2, "DeadlockError")]


def test_a_circle_through_a_barrier() -> None:
    """One waits at the barrier with a lock that the other wants before it comes there."""
    sync = SyncMachine()
    sync.step(1, enroll(BARRIER, 2, thread=1))
    sync.step(2, enroll(BARRIER, 2, thread=2))
    sync.step(1, acquire(1, thread=1))
    sync.step(1, arrive(2, 2, thread=1))
    sync.step(2, acquire(3, thread=2))
    assert failed(sync.step(1, holds(1))) == [(2, 3, "DeadlockError")]
    assert sync.step(2, arrive(4, 2, thread=2)) == [(1, Granted(2, 0)), (2, Granted(4, 1))]


# --- barriers --------------------------------------------------------------------------------------------------------


def test_a_barrier_opens_when_it_is_full_and_again() -> None:
    sync = SyncMachine()
    for ticket in (1, 3):
        assert sync.step(1, arrive(ticket, 2, thread=1)) == []
        assert sync.step(2, arrive(ticket, 2, thread=2)) == [(1, Granted(ticket, 0)), (2, Granted(ticket, 1))]
    assert sync.step(1, Gone(1, False)) == sync.step(2, Gone(2, False)) == sync.status()["primitives"] == []


def test_another_number_of_parties_is_refused_while_somebody_waits() -> None:
    sync = SyncMachine()
    sync.step(1, arrive(1, 2))
    assert failed(sync.step(2, arrive(1, 3))) == [(2, 1, "BarrierMismatch")]
    assert failed(sync.step(2, enroll(BARRIER, 3))) == [(2, 99, "BarrierMismatch")]


@pytest.mark.parametrize("how", [Cancel(1, False), BarrierReset(7, "b", 3, True)], ids=repr)
def test_a_barrier_breaks_for_all_and_stays_broken_until_it_is_reset(how: Any) -> None:
    sync = SyncMachine()
    sync.step(1, arrive(1, 3))
    sync.step(2, arrive(1, 3, thread=2))
    assert (2, 1, "BrokenBarrier") in failed(sync.step(1, how))
    assert failed(sync.step(3, arrive(1, 3, thread=3))) == [(3, 1, "BrokenBarrier")]
    sync.step(3, BarrierReset(2, "b", 3, False))
    assert sync.step(3, arrive(3, 3)) == []


def test_a_barrier_breaks_once_for_a_node_that_leaves_with_several_who_wait_there() -> None:
    sync = SyncMachine()
    sync.step(1, arrive(1, 5))
    sync.step(1, arrive(2, 5))
    sync.step(2, arrive(1, 5, thread=3))
    assert failed(sync.forget_node(1)) == [(2, 1, "PartyDied")]


def test_a_barrier_that_cannot_fill_because_a_party_has_ended() -> None:
    sync = SyncMachine()
    for node in (1, 2, 3):
        sync.step(node, arrive(1, 3, thread=node))
    sync.step(1, arrive(2, 3, thread=1))
    assert failed(sync.step(3, Gone(3, False))) == [(1, 2, "PartyDied")]
    assert failed(sync.step(2, arrive(2, 3, thread=2))) == [(2, 2, "BrokenBarrier")]
    sync.step(2, BarrierReset(3, "b", 3, False))
    assert sync.step(2, arrive(4, 3, thread=2)) == []


def test_a_party_that_ended_while_nobody_waited_and_one_in_its_place() -> None:
    sync = SyncMachine()
    for node in (1, 2):
        sync.step(node, arrive(1, 2, thread=node))
    sync.step(2, Gone(2, True))
    assert sync.step(3, arrive(2, 2, thread=3)) == []
    assert sync.step(1, arrive(2, 2, thread=1)) == [(3, Granted(2, 0)), (1, Granted(2, 1))]
    sync.step(3, Gone(3, True))
    assert failed(sync.step(1, arrive(3, 2, thread=1))) == [(1, 3, "PartyDied")]


@pytest.mark.parametrize(("died", "expected"), [(True, [(1, 1, "PartyDied")]), (False, [])])
def test_one_that_only_opened_the_barrier_may_leave_in_good_order(died: bool, expected: list[Any]) -> None:
    sync = SyncMachine()
    sync.step(1, enroll(BARRIER, 2, thread=1))
    sync.step(2, enroll(BARRIER, 2, thread=2))
    sync.step(1, arrive(1, 2, thread=1))
    assert failed(sync.step(2, Gone(2, died))) == expected


def test_one_runs_the_action_while_the_others_wait() -> None:
    sync = SyncMachine()
    sync.step(1, arrive(1, 3, act=True))
    sync.step(2, arrive(2, 3, act=True))
    assert sync.step(3, arrive(3, 3)) == [(2, Granted(2, 1 | ACT))]
    assert failed(sync.step(1, Post(9, "b", BARRIER, 0))) == [(1, 9, "BrokenBarrier")]  # it runs none
    assert sync.step(2, Post(9, "b", BARRIER, 0)) == [(2, Granted(9, 0)), (1, Granted(1, 0)), (3, Granted(3, 2))]


@pytest.mark.parametrize(
    ("how", "error"), [(BarrierReset(9, "b", 2, True), "BrokenBarrier"), (Gone(2, True), "PartyDied")]
)
def test_an_action_that_fails_breaks_the_barrier(how: Any, error: str) -> None:
    sync = SyncMachine()
    sync.step(1, arrive(1, 2))
    sync.step(2, arrive(2, 2, act=True))
    assert failed(sync.step(2, how)) == [(1, 1, error)]


# --- semaphores, events, conditions, counters
# --------------------------------------------------------------------------


def test_a_semaphore_lets_so_many_in_and_the_others_in_order() -> None:
    sync = SyncMachine()
    sync.step(1, enroll(SEMAPHORE, 2, "s"))
    take = [sync.step(node, acquire(1, "s", SEMAPHORE)) for node in (1, 2, 3, 4)]
    assert take == [[(1, Granted(1, 0))], [(2, Granted(1, 0))], [], []]
    assert sync.step(5, acquire(1, "s", SEMAPHORE, TRY)) == [(5, Cancelled(1))]
    assert sync.step(1, Post(9, "s", SEMAPHORE, 3)) == [(3, Granted(1, 0)), (4, Granted(1, 0)), (1, Granted(9, 0))]
    assert sync.step(1, Inspect(3, "s", SEMAPHORE)) == [(1, Answer(3, {"value": 1, "initial": 2}))]


def test_a_bounded_semaphore_overflows_and_is_as_it_was() -> None:
    sync = SyncMachine()
    sync.step(1, enroll(BOUNDED_SEMAPHORE, 1, "s"))
    assert failed(sync.step(1, Post(2, "s", BOUNDED_SEMAPHORE, 1))) == [(1, 2, "SemaphoreOverflow")]
    assert sync.step(1, acquire(3, "s", BOUNDED_SEMAPHORE)) == [(1, Granted(3, 0))]
    assert sync.step(1, acquire(4, "s", BOUNDED_SEMAPHORE, TRY)) == [(1, Cancelled(4))]


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (enroll(SEMAPHORE, 3, "s"), "ValueMismatch"),
        (enroll(COUNTER, 2, "s"), "KindMismatch"),
        (enroll(BOUNDED_SEMAPHORE, 2, "s"), "KindMismatch"),
        (acquire(99, "s"), "KindMismatch"),
        (acquire(99, "none", SEMAPHORE), "PrimitiveNotFound"),
        (Post(99, "none", COUNTER, 1), "PrimitiveNotFound"),
        (Post(99, "s", SEMAPHORE, 0), "InvalidArgument"),
        (Post(99, "s", SEMAPHORE, 2**63 - 1), "InvalidArgument"),
        (enroll(SEMAPHORE, -1, "new"), "InvalidArgument"),
        (enroll(BARRIER, 0, "new"), "BarrierMismatch"),
        (Inspect(99, "none", SEMAPHORE), "PrimitiveNotFound"),
        (Forget(99, "none", EVENT), "PrimitiveNotFound"),
    ],
    ids=repr,
)
def test_what_cannot_be_is_an_error_and_changes_nothing(message: Message, error: str) -> None:
    sync = SyncMachine()
    sync.step(1, enroll(SEMAPHORE, 2, "s"))
    before = sync.status()
    assert failed(sync.step(2, message)) == [(2, 99, error)]
    assert sync.status() == before


def test_what_is_waited_for_cannot_be_removed() -> None:
    sync = SyncMachine()
    sync.step(1, enroll(SEMAPHORE, 0, "s"))
    sync.step(1, acquire(1, "s", SEMAPHORE))
    assert failed(sync.step(2, Forget(2, "s", SEMAPHORE))) == [(2, 2, "InUse")]
    sync.step(1, Cancel(1, True))
    assert sync.step(2, Forget(3, "s", SEMAPHORE)) == [(2, Granted(3, 0))]
    assert sync.step(2, enroll(COUNTER, 7, "s")) == [(2, Granted(99, 0))]


def test_an_event_wakes_all_until_it_is_cleared() -> None:
    sync = SyncMachine()
    assert sync.step(1, acquire(1, "e", EVENT, TRY)) == [(1, Cancelled(1))]
    assert sync.step(1, acquire(2, "e", EVENT)) == sync.step(2, acquire(2, "e", EVENT)) == []
    out = sync.step(3, Post(1, "e", EVENT, 1))
    assert out == [(1, Granted(2, 0)), (2, Granted(2, 0)), (3, Granted(1, 0))]
    assert sync.step(1, acquire(3, "e", EVENT, TRY)) == [(1, Granted(3, 0))]
    sync.step(3, Post(2, "e", EVENT, 0))
    assert sync.status()["primitives"] == []  # as if it had never been


def test_a_condition_wakes_as_many_as_it_is_told_and_remembers_nothing() -> None:
    sync = SyncMachine()
    assert sync.step(1, Post(1, "c", CONDITION, ALL)) == [(1, Granted(1, 0))]
    for ticket in (2, 3, 4):
        assert sync.step(1, acquire(ticket, "c", CONDITION)) == []
    assert sync.step(2, Post(1, "c", CONDITION, 1)) == [(1, Granted(2, 0)), (2, Granted(1, 0))]
    assert sync.step(2, Post(2, "c", CONDITION, ALL)) == [(1, Granted(3, 0)), (1, Granted(4, 0)), (2, Granted(2, 0))]
    assert sync.status()["primitives"] == []


def test_a_counter_says_what_it_is_after_each_addition() -> None:
    sync = SyncMachine()
    sync.step(1, enroll(COUNTER, -5, "n"))
    assert sync.step(1, Post(1, "n", COUNTER, 7)) == [(1, Granted(1, 2))]
    assert sync.step(2, Post(1, "n", COUNTER, -3)) == [(2, Granted(1, -1))]
    assert failed(sync.step(2, Post(2, "n", COUNTER, -(2**63)))) == [(2, 2, "InvalidArgument")]
    assert sync.step(2, Inspect(3, "n", COUNTER)) == [(2, Answer(3, {"value": -1, "initial": -5}))]
