"""The one loop of a service: what is handled, in which turn, and what happens before it sleeps."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest

from dsm import poller
from dsm.poller import Poller

US = 1000


class Clock:
    """Stands still, but for what a yield takes."""

    def __init__(self) -> None:
        self.now = 10**12
        self.yield_us = 10
        self.yields = 0
        self.then: Callable[[], object] = lambda: None

    def sched_yield(self) -> None:
        self.yields += 1
        self.now += self.yield_us * US
        self.then()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(poller, "monotonic_ns", lambda: clock.now)
    monkeypatch.setattr(os, "sched_yield", clock.sched_yield)
    return clock


@pytest.fixture
def loop() -> Iterator[Poller]:
    with Poller() as loop:
        yield loop


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    readable, writable = os.pipe()
    yield readable, writable
    os.close(readable)
    os.close(writable)


def count_idle(loop: Poller) -> list[int]:
    called: list[int] = []
    loop.idle = lambda: called.append(1)
    return called


def test_it_looks_for_a_moment_and_then_has_time(loop: Poller, clock: Clock) -> None:
    idle = count_idle(loop)
    clock.then = lambda: None if clock.yields != 5 else idle.append(0)
    loop.wait(0.001)
    assert clock.yields == 20, "200 µs"
    assert idle == [0, 1], "after 50 µs, once"


@pytest.mark.parametrize("yield_us", [60, 399, 401, 5000])
def test_what_can_wait_never_waits_for_longer_than_sleep(loop: Poller, clock: Clock, yield_us: int) -> None:
    idle = count_idle(loop)
    clock.yield_us = yield_us
    for turn in range(1, 4):
        loop.wait(0.001)
        assert len(idle) == turn


def test_what_comes_while_it_looks_goes_first(loop: Poller, clock: Clock, pipe: tuple[int, int]) -> None:
    idle = count_idle(loop)
    handled: list[int] = []
    loop.watch(pipe[0], lambda _: handled.append(len(idle)))
    clock.then = lambda: os.write(pipe[1], b"x") if clock.yields == 3 else 0
    loop.wait(5)
    assert handled == [0] and clock.yields == 3


def test_what_comes_during_a_long_yield_is_handled_and_the_yield_noticed(
    loop: Poller, clock: Clock, pipe: tuple[int, int]
) -> None:
    handled: list[int] = []
    loop.watch(pipe[0], lambda _: handled.append(len(os.read(pipe[0], 9))))
    clock.yield_us = 500
    clock.then = lambda: os.write(pipe[1], b"x")
    loop.wait(5)
    assert handled == [1] and clock.yields == 1
    loop.wait(0.001)
    assert clock.yields == 1, "it does not look now"


def test_who_delays_what_comes_is_left_alone_for_longer_each_time(
    loop: Poller, clock: Clock, pipe: tuple[int, int]
) -> None:
    loop.watch(pipe[0], lambda _: [os.read(pipe[0], 9)].clear())
    clock.yield_us = 500
    looked_at = []
    for _ in range(4000):
        clock.now += 10_000 * US  # ten milliseconds a turn
        before = clock.yields
        loop.wait(0)  # nothing is there, and no time to wait: no look
        assert clock.yields == before
        clock.then = lambda: os.write(pipe[1], b"x")
        loop.wait(0.000001)
        if clock.yields > before:
            looked_at.append(clock.now)
    pauses = [round((b - a) / 1e9, 1) for a, b in pairwise(looked_at)]
    assert pauses == sorted(pauses) and pauses[0] <= 0.3 and 9.9 < pauses[-1] <= 10.1, pauses
    clock.now += 60 * 10**9
    clock.yield_us = 10
    clock.then = lambda: None
    before = clock.yields
    loop.wait(0.001)
    assert clock.yields == before + 20, "nobody computes any more"


def test_who_computes_while_nothing_comes_does_no_harm(loop: Poller, clock: Clock) -> None:
    clock.yield_us = 500
    for turn in range(1, 4):
        loop.wait(0.000001)
        assert clock.yields == turn, "it goes to sleep, and looks again the next time"


def test_a_new_owner_of_a_descriptor_gets_no_events_of_the_old_one(loop: Poller) -> None:
    """One handler closes what is ready, too, and opens something that gets its number."""
    ends = [os.pipe() for _ in range(2)]
    got: list[str] = []
    opened: list[int] = []

    def first(fd: int) -> None:
        got.append("first")
        other = next(readable for readable, _ in ends if readable != fd)
        loop.unwatch(fd)
        loop.unwatch(other)
        os.close(other)
        opened.append(os.open("/dev/null", os.O_RDONLY))
        assert opened == [other]
        os.close(opened.pop())
        os.dup2(blocked[0], other)
        opened.append(other)
        loop.watch(other, lambda _: got.append("stale"))

    blocked = os.pipe()
    for readable, writable in ends:
        os.write(writable, b"x")
        loop.watch(readable, lambda _, readable=readable: first(readable))  # type: ignore[misc]
    loop.wait(1)
    loop.wait(0)
    assert got == ["first"]
    os.write(blocked[1], b"x")
    loop.wait(1)
    assert got == ["first", "stale"], "its own events it gets"
    loop.unwatch(opened[0])
    for fd in {*opened, *blocked, *(fd for pair in ends for fd in pair)}:
        os.close(fd)


def test_what_is_put_off_is_for_the_next_turn(loop: Poller) -> None:
    done: list[int] = []

    def again() -> None:
        done.append(len(done))
        if len(done) < 5:
            loop.soon(again)

    loop.soon(again)
    for turn in range(1, 6):
        loop.wait(60)
        assert done == list(range(turn))
