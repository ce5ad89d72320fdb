"""Deliberate faults: machines that are wrong in one point, to see that the checks find it.

Each is wrong at a public door: it tampers with what comes in, or with what goes out.
"""

from __future__ import annotations

from typing import Any

from simulated_cluster import REGION

from directory.machine import Outgoing, PageMachine
from dsm.wire import DIRECTORY, Ack, Data, Done, Fetch, Grant, Invalidate, Message, Request
from nodes.effects import Drop, Effect, Hold, Resume, Send, Supply
from nodes.machine import NodeMachine


class WritesBeforeTheAcks(NodeMachine):
    """Takes an upgrade for granted while others may still read the page."""

    def step(self, message: Message) -> list[Effect]:
        return super().step(message._replace(acks=0) if isinstance(message, Grant) else message)


class SaysDoneBeforeTheAcks(NodeMachine):
    """Closes its transaction while acknowledgements, and so the copies of others, are still about."""

    def step(self, message: Message) -> list[Effect]:
        effects = super().step(message)
        if isinstance(message, Grant) and message.acks:
            return [*_without_done(effects), Send(DIRECTORY, Done(*message[:4]))]
        return _without_done(effects) if isinstance(message, Ack) else effects

    def data(self, m: Data, payload: Any) -> list[Effect]:
        effects = super().data(m, payload)
        if not m.acks:
            return effects
        return [*_without_done(effects), Send(DIRECTORY, Done(m.region, m.generation, m.start, m.count))]


def _without_done(effects: list[Effect]) -> list[Effect]:
    return [e for e in effects if not (isinstance(e, Send) and isinstance(e.message, Done))]


class KeepsWritable(NodeMachine):
    """Sends its page to a reader and goes on writing to it."""

    def step(self, message: Message) -> list[Effect]:
        return [e._replace(protect=False) if isinstance(e, Supply) else e for e in super().step(message)]


class NeverDrops(NodeMachine):
    """Acknowledges an invalidation, but leaves the page mapped."""

    def step(self, message: Message) -> list[Effect]:
        effects = super().step(message)
        return [e for e in effects if not isinstance(e, Drop)] if isinstance(message, Invalidate) else effects


class SaysDoneBeforeItDrops(NodeMachine):
    """Closes an eviction while its threads can still read the page."""

    def step(self, message: Message) -> list[Effect]:
        effects = super().step(message)
        return _dropping_last(effects) if isinstance(message, Grant) else effects


class AcknowledgesBeforeItDrops(NodeMachine):
    """Lets a writer go on while its own threads can still read the page."""

    def step(self, message: Message) -> list[Effect]:
        effects = super().step(message)
        return _dropping_last(effects) if isinstance(message, Invalidate) else effects


def _dropping_last(effects: list[Effect]) -> list[Effect]:
    return sorted(effects, key=lambda effect: isinstance(effect, Drop))


class TakesLateAnswers(NodeMachine):
    """Takes data of an old generation for what it waits for now."""

    def data(self, m: Data, payload: Any) -> list[Effect]:
        asks = self._regions[REGION].asks
        if asks and m.generation not in asks:
            m = m._replace(generation=next(reversed(asks)))
        return super().data(m, payload)


class ForgetsWhatIsOver(NodeMachine):
    """Takes data for a part of a request that it has given up: of another request for the page, or none."""

    def step(self, message: Message) -> list[Effect]:
        self._forget()
        return super().step(message)

    def data(self, m: Data, payload: Any) -> list[Effect]:
        self._forget()
        return super().data(m, payload)

    def _forget(self) -> None:
        for ask in self._regions[REGION].asks.values():
            ask.over.clear()


class ForgetsWhatItClosed(ForgetsWhatIsOver):
    """Counts pages that it has closed, or given up, before the others of their part came once more when these do."""

    def _forget(self) -> None:
        for ask in self._regions[REGION].asks.values():
            for part in ask.parts.values():
                part.closed.clear()


class CountsAcksOfWhatIsOver(NodeMachine):
    """Waits for the rest of a part that is over when it hears once more that somebody has dropped its copy."""

    def step(self, message: Message) -> list[Effect]:
        ask = self._regions[REGION].asks.get(message.generation) if isinstance(message, Ack) else None
        if ask is None:
            return super().step(message)
        over, ask.over = ask.over, set()
        effects = super().step(message)
        ask.over |= over
        return effects


class DoesNotHold(NodeMachine):
    """Gives a page away before the thread that waited for it could touch it."""

    def step(self, message: Message) -> list[Effect]:
        return self._let_go(super().step(message))

    def data(self, m: Data, payload: Any) -> list[Effect]:
        return self._let_go(super().data(m, payload))

    def _let_go(self, effects: list[Effect]) -> list[Effect]:
        for hold in [e for e in effects if isinstance(e, Hold)]:
            effects = effects + self.hold_expired(hold.region, hold.page)
        return [e for e in effects if not isinstance(e, Hold)]


class WakesOnlyOne(NodeMachine):
    """Of several applications that wait for a page, wakes the first."""

    def data(self, m: Data, payload: Any) -> list[Effect]:
        effects = super().data(m, payload)
        return [e._replace(waiters=e.waiters[:1]) if isinstance(e, Resume) else e for e in effects]


class ForgetsOneSharer(PageMachine):
    """Invalidates all sharers but one."""

    def step(self, node: int, message: Message) -> Outgoing:
        out = super().step(node, message)
        forgotten = next((each for each in out if isinstance(each[1], Invalidate)), None)
        if forgotten is None:
            return out
        return [
            (to, m._replace(acks=m.acks - 1) if isinstance(m, Grant | Fetch) else m)
            for to, m in out
            if (to, m) != forgotten
        ]


class ForgetsTheQueue(PageMachine):
    """Drops whoever waits for a page when the transaction before them is over."""

    def step(self, node: int, message: Message) -> Outgoing:
        if isinstance(message, Done):
            for extent in self._regions[REGION].extents.values():
                extent.queue.clear()
        return super().step(node, message)


class DoesNotQueue(PageMachine):
    """Begins a transaction on a page beside the one that is under way."""

    def step(self, node: int, message: Message) -> Outgoing:
        extents = self._regions[REGION].extents
        if not (isinstance(message, Request) and extents):
            return super().step(node, message)
        before = extents.pop(0)
        out = super().step(node, message)
        if 0 in extents:
            before.active += extents[0].active
        extents[0] = before
        return out
