"""Barriers of the cluster: pure.

A barrier knows its parties once they are known to be all: the threads that came the last time it was full, or those
that have opened it, if these are exactly as many. Then it can tell when it cannot fill any more, because one has ended.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from directory.waiting import Call, Outgoing, Primitive, Thread, Waiting
from dsm.wire import ACT, BARRIER

_Key = tuple[int, int]

_ENROLLED_MAX = 1 << 16
"""Threads that a barrier remembers."""


class Barrier(Primitive):
    """A barrier of ``parties``. ``broken``: why nobody can wait at it until it is reset, else empty."""

    __slots__ = (
        "_acting",
        "_actor",
        "_arrived",
        "_dead",
        "_enrolled",
        "_known",
        "_met",
        "_waiting",
        "broken",
        "parties",
    )

    def __init__(self, name: str, parties: int, waiting: Waiting) -> None:
        super().__init__(name, BARRIER)
        self._waiting = waiting
        self.parties = parties
        self.broken = ""
        self._arrived: list[Call] = []
        self._actor: tuple[int, Thread] | None = None  # node and thread that runs the action, while it does
        self._acting: list[tuple[int, Call]] = []  # those who wait for that, with their order of arrival
        self._enrolled: dict[_Key, tuple[int, Thread]] = {}  # living threads that have opened it or come to it
        self._known: dict[_Key, Thread] = {}  # the parties, if they are known
        self._met = False  # because they came the last time
        self._dead = ""  # which of them has ended

    @property
    def says(self) -> bool:
        return bool(self.broken or self._arrived or self._actor or self._enrolled)

    @property
    def is_idle(self) -> bool:
        """Nobody waits, and it is not broken: it may as well begin again with another number of parties."""
        return not (self.broken or self._arrived or self._actor)

    @property
    def calls(self) -> int:
        return len(self._arrived) + len(self._acting)

    def enroll(self, node: int, thread: Thread) -> None:
        """A thread has opened it."""
        if not self._note(node, thread):
            return
        if not self._dead:
            everybody = {key: thread for key, (_, thread) in self._enrolled.items()}
            self._know(everybody if len(everybody) == self.parties else {}, met=False)
        elif thread[:2] not in self._known:  # somebody takes the place of the dead
            self._know({}, met=False)

    def arrive(self, call: Call, act: bool) -> Outgoing:
        """A party has come: let all go if it is the last."""
        if self.broken:
            return [call.failed("BrokenBarrier", f"{self.title} is broken, {self.broken}: reset() mends it")]
        key = call.thread[:2]
        self._note(call.node, call.thread)
        if self._known and key not in self._known:
            self._know({}, met=False)
        self._waiting.add(call, self)
        self._arrived.append(call)
        call.act = act
        if self._dead:
            return self._fail("PartyDied", f"it cannot fill: {self._dead}, one of its parties, has ended")
        return self._go_on()

    def acted(self, node: int) -> Outgoing | None:
        """The action is done: the others may go. None if this node runs none."""
        if self._actor is None or self._actor[0] != node:
            return None
        self._actor = None
        acting, self._acting = self._acting, []
        for _, call in acting:
            self._waiting.remove(call)
        return [call.granted(order) for order, call in acting] + self._go_on()

    def reset(self, *, broken: bool) -> Outgoing:
        """Wake everybody who waits; as new, or left broken."""
        out = self._fail("BrokenBarrier", "was aborted" if broken else "was reset")
        if not broken:
            self.broken = ""
            self._know({}, met=False)
        return out

    def leave(self, call: Call) -> Outgoing:
        self._remove(call)
        return self._fail("BrokenBarrier", "lost a party that gave up")

    def died(self, call: Call) -> Outgoing:
        """A party has ended while it waited."""
        self._remove(call)
        return self._fail("PartyDied", f"lost {call.thread.who}, a party that has ended")

    def gone(self, process: int, died: bool) -> Outgoing:
        """A process has ended. In good order, it may have opened the barrier only to look at it."""
        for key in [key for key in self._enrolled if key[0] == process]:
            del self._enrolled[key]
        if self._actor is not None and self._actor[1].process == process:
            return self._fail("PartyDied", f"lost {self._actor[1].who}, which ran the action and has ended")
        dead = next((thread for key, thread in self._known.items() if key[0] == process), None)
        if dead is None or self.broken:
            return []
        if not (died or self._met):
            self._known = {}
            return []
        self._dead = dead.who
        if not self._arrived:
            return []
        return self._fail("PartyDied", f"it cannot fill: {dead.who}, one of its parties, has ended")

    def processes_of(self, node: int) -> set[int]:
        """The processes on a node that have to do with it."""
        return {key[0] for key, (where, _) in self._enrolled.items() if where == node}

    @property
    def here(self) -> list[Call]:
        """The calls that wait for others to come."""
        return list(self._arrived)

    def blockers(self, call: Call) -> Iterable[Thread]:
        here = {other.thread[:2] for other in self._arrived}
        return [thread for key, thread in self._known.items() if key not in here] if call in self._arrived else ()

    def state(self) -> dict[str, Any]:
        return {"parties": self.parties, "waiting": len(self._arrived), "broken": bool(self.broken)}

    def _know(self, parties: dict[_Key, Thread], *, met: bool) -> None:
        self._known, self._met, self._dead = parties, met, ""

    def _note(self, node: int, thread: Thread) -> bool:
        if len(self._enrolled) >= _ENROLLED_MAX:
            return False
        self._enrolled[thread[:2]] = node, thread
        return True

    def _go_on(self) -> Outgoing:
        if self._actor is not None or len(self._arrived) < self.parties:
            return []
        arrived, self._arrived = self._arrived[: self.parties], self._arrived[self.parties :]
        self._know({call.thread[:2]: call.thread for call in arrived}, met=True)
        actor = max((order for order, call in enumerate(arrived) if call.act), default=-1)
        if actor < 0:
            for call in arrived:
                self._waiting.remove(call)
            return [call.granted(order) for order, call in enumerate(arrived)]
        call = arrived[actor]
        self._actor = call.node, call.thread
        self._acting = [(order, other) for order, other in enumerate(arrived) if other is not call]
        self._waiting.remove(call)
        return [call.granted(actor | ACT)]

    def _remove(self, call: Call) -> None:
        self._waiting.remove(call)
        if call in self._arrived:
            self._arrived.remove(call)
        else:
            self._acting = [(order, other) for order, other in self._acting if other is not call]

    def _fail(self, error: str, why: str) -> Outgoing:
        """It is broken: whoever waits is told."""
        self.broken = why
        self._actor = None
        failed = self._arrived + [call for _, call in self._acting]
        self._arrived, self._acting = [], []
        for call in failed:
            self._waiting.remove(call)
        return [call.failed(error, f"{self.title}: {why}") for call in failed]
