"""In what order messages go to the directory: pure.

A thread waits for the answer to a Request, but only others, if anybody, for what a Done lets go on. So a Done waits for
a moment, and goes with the next Request, behind it, if there is one by then.
"""

from __future__ import annotations

from dsm.wire import Done, Message, Request


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


def may_overtake(message: Message, done: Message) -> bool:
    """Is ``message`` a Request that has nothing to do with this Done: of other pages?"""
    if type(message) is not Request or type(done) is not Done:
        return False
    return message[0] != done[0] or message[2] >= done[2] + done[3] or message[2] + message[3] <= done[2]
