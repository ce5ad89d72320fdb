"""A short campaign in every test run (``make fuzz`` is the long one), and proof that it can fail.

To look further, or again: ``DSM_FUZZ_SEED=7 pytest tests/fuzz``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import decoders
import lies
import pytest
import sockets
from cluster import Cluster
from fuzzing import IN_PROCESS
from report import Outcome

from directory.machine import PageMachine
from directory.waiting import Waiting
from dsm import local, wire
from dsm.errors import Violation
from nodes.machine import NodeMachine

SEED = int(os.environ.get("DSM_FUZZ_SEED", "20240607"))
MESSAGES = 5000


@pytest.mark.parametrize("target", IN_PROCESS, ids=lambda target: target.__name__)
def test_in_process(target: Callable[[int, int], Outcome]) -> None:
    outcome = target(SEED, int(MESSAGES * IN_PROCESS[target]))
    assert outcome.messages >= int(MESSAGES * IN_PROCESS[target])
    assert outcome.refused > outcome.accepted or target is lies.pages_of_the_directory


def test_sockets_of_real_services() -> None:
    cluster = Cluster(2)
    try:
        battle = sockets.Battle(cluster)
        for target, share in sockets.TARGETS.items():
            outcome = target(battle, SEED, int(MESSAGES * share))
            assert outcome.refused
        battle.probe.end()
        cluster.check()
    finally:
        cluster.clean()


# --- a campaign that cannot fail is a defect ------------------------------------------------------------------------


def decodes_what_it_likes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that raises what nobody expects, for a name that is one byte long."""
    real = wire.decode

    def decode(data: bytes) -> wire.Message:
        message = real(data)
        if "\0" in message:
            raise KeyError(message)
        return message

    monkeypatch.setattr(wire, "decode", decode)


_KEPT: list[int] = []


def keeps_a_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of thousands that come with packets, one stays open."""
    real = local.close_all

    def close_all(fds: Sequence[int]) -> None:
        if fds and not _KEPT:
            _KEPT.append(os.dup(fds[0]))
        real(fds)

    monkeypatch.setattr(local, "close_all", close_all)


def believes_who_says_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever names a transaction may close it: a node's part in it is not looked at."""
    real = PageMachine.step

    def step(self: PageMachine, node: int, message: wire.Message) -> Any:
        for other in (*range(1, lies.NODES + 1), node) if isinstance(message, wire.Done) else (node,):
            before = self.rejected
            out = real(self, other, message)
            if self.rejected == before:
                break
        return out

    monkeypatch.setattr(PageMachine, "step", step)


def counts_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused message is counted twice."""
    real = PageMachine.step

    def step(self: PageMachine, node: int, message: wire.Message) -> Any:
        before = self.rejected
        out = real(self, node, message)
        self.rejected += self.rejected - before
        return out

    monkeypatch.setattr(PageMachine, "step", step)


def ignores_generations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Page data for whatever is asked for is taken, whichever request it answers."""
    real = NodeMachine.data

    def data(self: NodeMachine, m: wire.Data, payload: Any) -> Any:
        for region in self._regions.values():
            for generation, ask in region.asks.items():
                if ask.start <= m.start < ask.stop:
                    m = m._replace(region=region.number, generation=generation)
        return real(self, m, payload)

    monkeypatch.setattr(NodeMachine, "data", data)


def lets_a_ticket_wait_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """What crashed the directory once."""
    monkeypatch.setattr(Waiting, "may_wait", lambda *_: True)


@pytest.mark.parametrize(
    ("bug", "target"),
    [
        (decodes_what_it_likes, decoders.decode),
        (keeps_a_descriptor, decoders.receive_local),
        (believes_who_says_done, lies.pages_of_the_directory),
        (counts_twice, lies.pages_of_the_directory_and_departure),
        (ignores_generations, lies.nodes_and_a_peer),
        (lets_a_ticket_wait_twice, lies.all_doors_of_the_directory),
    ],
    ids=lambda value: value.__name__,
)
def test_a_planted_bug_is_found(
    bug: Callable[[pytest.MonkeyPatch], None],
    target: Callable[[int, int], Outcome],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bug(monkeypatch)
    try:
        with pytest.raises((AssertionError, KeyError, Violation)):
            target(SEED, 4 * MESSAGES)
    finally:
        while _KEPT:
            os.close(_KEPT.pop())


def test_a_state_that_changes_is_found() -> None:
    """The fight over a socket compares before and after."""

    class Changing(sockets.Battle):
        def __init__(self) -> None:
            self.told = 0
            self.probe: Any = lambda: None

        def state(self) -> Any:
            return self.told

        def portion(self, some: int) -> None:
            self.told += some

    battle = Changing()
    with pytest.raises(AssertionError, match="the state has changed from 7 to 8"):
        battle.fight(8, battle.portion)
