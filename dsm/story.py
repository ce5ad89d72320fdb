"""What happened to pages lately, and why: for people, when something is wrong. No machine ever decides by it: pure.

A service keeps the last transitions of all its pages together, as they came; nothing is formatted until somebody asks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Any, Final

from dsm.constants import STORY_ENTRIES, STORY_TOLD_MAX
from dsm.wire import EVICT, GUESS, MESSAGES, PREFETCH, READ, RESET, WRITE, Data, Message

OPERATIONS: Final = {READ: "read", WRITE: "write", EVICT: "evict", RESET: "reset"}

NEEDS: Final = {GUESS: "read-ahead", PREFETCH: "prefetch"}

Entry = tuple[float, int, int, int, str, Any, Any, Any]
"""When, region, pages ``[start, stop)``, what happened, state before, state after, and the event that was the cause."""


class Story:
    """The last transitions. ``now`` tells the time in seconds; whoever makes the story passes it in.

    ``add`` takes an entry; it is the deque's own method because every step of a machine comes by.
    """

    __slots__ = ("_entries", "add", "now")

    def __init__(self, now: Callable[[], float] = float) -> None:
        self.now = now
        self._entries: deque[Entry] = deque(maxlen=STORY_ENTRIES)
        self.add = self._entries.append

    def of(self, region: int, page: int, name: Callable[[Any], str]) -> list[dict[str, Any]]:
        """What is known of a page, oldest first; ``name`` puts a state into words."""
        about = (entry for entry in reversed(self._entries) if entry[1] == region and entry[2] <= page < entry[3])
        return [
            {"time": when, "what": what, "before": name(before), "after": name(after), "cause": told(cause)}
            for when, _, _, _, what, before, after, cause in reversed(list(islice(about, STORY_TOLD_MAX)))
        ]


def text(of: dict[str, Any]) -> str:
    """What a machine's ``story_of`` says of a page, as text for a log."""
    happened = "".join(
        "\n  {time:.6f}  {what}: {before} -> {after}  ({cause})".format(**entry) for entry in of["story"]
    )
    return f"{of['state']}; under way: {', '.join(of['under way']) or 'nothing'}{happened}"


def span(start: int, count: int) -> str:
    """Pages in short: ``p5`` or ``p5..8``."""
    return f"p{start}" if count == 1 else f"p{start}..{start + count - 1}"


def told(cause: Any) -> str:
    """An event in few words: of a message what is false or nothing, and the region, are left out."""
    return _message(cause) if type(cause) in MESSAGES else str(cause)


def _message(message: Message) -> str:
    fields = message._asdict()  # type: ignore[attr-defined]
    start, count = fields.pop("start", None), fields.pop("count", 1)
    words = [type(message).__name__] + ([] if start is None else [span(start, count)])
    fields.pop("region", None)
    if isinstance(message, Data):
        first, total = fields.pop("first"), fields.pop("total")
        words += [] if (first, total) == (start, count) else [f"of {span(first, total)}"]
    for key, value in fields.items():
        if key == "op":
            words.append(OPERATIONS.get(value, str(value)))
        elif key == "need" and value:
            words.append(NEEDS.get(value, str(value)))
        elif value is True:
            words.append(key)
        elif value not in (False, 0):
            words.append(f"{key}={value}")
    return " ".join(words)
