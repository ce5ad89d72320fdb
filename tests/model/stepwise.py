"""A node whose shell does one thing at a time: between two effects of one step, threads and everybody else go on.

So it is on a real host: the agent may lose its core between two system calls, and what it has sent may be acted upon
before it does the next thing. What an agent may not do there is to read faults or messages: it has one thread.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

from simulated_cluster import REGION, Node

from dsm.wire import Data, Fetch, MemberLeft
from nodes.effects import Drop, Effect, Supply


class Protect(NamedTuple):
    """Of a Supply: no application may store to these pages any more."""

    fetch: Fetch


class Post(NamedTuple):
    """Of a Supply: send pages that have been read."""

    to: int
    message: Data
    contents: list[int]
    bulk: bool


class StepwiseNode(Node):
    """``todo``: what is left of the last step of the machine. Its first effect happens with the step itself: nobody can
    tell that from a step that comes later."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.todo: deque[Any] = deque()
        self._effects[Protect] = lambda e: self._protect(e.fetch.start, e.fetch.count)
        self._effects[Post] = lambda e: self.cluster.send(self.number, e.to, e.message, e.contents, e.bulk)

    def run(self, decided: list[Effect]) -> None:
        for effect in decided:
            if isinstance(effect, Supply) and effect.protect:
                self.todo.append(Protect(effect.fetch))
                effect = effect._replace(protect=False)
            self.todo.append(effect)
        if self.todo:
            self.go_on()

    def go_on(self) -> None:
        """Do the next thing."""
        effect = self.todo.popleft()
        self.cluster.effect(self, effect)
        self._effects[type(effect)](effect)

    def _send_pages(self, fetch: Fetch, start: int, count: int, bulk: bool) -> None:
        data, contents = self._read(fetch, start, count)
        self.todo.appendleft(Post(fetch.requester, data, contents, bulk))
        if not fetch.keep:
            self.todo.appendleft(Drop(fetch.region, start, count))

    def _member_left(self, gone: int) -> None:
        decided = self.machine.step(MemberLeft(gone, "it left"))
        cancelled = self.bulk.cancel(requester=gone)
        self.run([*decided, *(Drop(REGION, start, count) for fetch, start, count in cancelled if not fetch.keep)])
