"""In what order messages go to the directory, and which of them are to be said again to one that was restarted: pure.

A thread waits for the answer to a Request, but only others, if anybody, for what a Done lets go on. So a Done waits for
a moment, and goes with the next Request, behind it, if there is one by then.
"""

from __future__ import annotations

from collections import deque

from dsm.wire import PAGES, Done, Message, Request


class Outgoing:
    """What is sent now and what waits; ``waits`` is that Done, if any."""

    __slots__ = ("waits",)

    def __init__(self) -> None:
        self.waits: Message | None = None

    def send(self, message: Message) -> list[Message]:
        """What to send now, in this order."""
        done, self.waits = self.waits, None
        if done is None:
            if type(message) is not Done:
                return [message]
            self.waits = message
            return []
        return [message, done] if may_overtake(message, done) else [done, message]

    def flush(self) -> list[Message]:
        """The moment is over: what to send now."""
        done, self.waits = self.waits, None
        return [done] if done is not None else []


class Muted(Outgoing):
    """While a directory begins again: of pages nothing is said that it could not understand."""

    __slots__ = ()

    def send(self, message: Message) -> list[Message]:
        return [] if type(message) in PAGES else [message]


class Said:
    """Messages (REMEMBERED) that the directory is not known to have written down, and how many there were before."""

    __slots__ = ("_before", "_messages")

    def __init__(self) -> None:
        self._before = 0
        self._messages: deque[Message] = deque()

    def add(self, message: Message) -> None:
        """It is said."""
        self._messages.append(message)

    def heard(self, count: int) -> None:
        """So many have been written down."""
        while self._before < count and self._messages:
            self._messages.popleft()
            self._before += 1

    @property
    def told(self) -> int:
        """How many were said."""
        return self._before + len(self._messages)

    @property
    def heard_of(self) -> int:
        """How many of them are known to be written down."""
        return self._before

    def begin(self, count: int) -> None:
        """The directory has written down so many, of an agent that was killed. What this one has said is said anew."""
        self._before = count
        self._messages.clear()

    def unheard(self, count: int) -> list[Message] | None:
        """Of which the first ``count`` are known to a directory: the others. None if it has forgotten some."""
        if count < self._before:
            return None
        self.heard(count)
        return list(self._messages)


def may_overtake(message: Message, done: Message) -> bool:
    """Is ``message`` a Request that has nothing to do with this Done: of other pages?"""
    if type(message) is not Request or type(done) is not Done:
        return False
    return message[0] != done[0] or message[2] >= done[2] + done[3] or message[2] + message[3] <= done[2]
