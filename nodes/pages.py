"""What a page can be on a node and what may happen to it there: the transition table of the protocol's node side.

A page is absent, shared (here, and readable) or exclusive (here, and writable). Beside that it may be asked for: to
read, to write, or to be evicted; or, of one that is lost, to begin anew. Each rule below is one thing that may happen,
with the states it may happen in; in any other it is a :class:`~dsm.errors.Violation`. docs/protocol.md draws the table.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from dsm.wire import EVICT, READ, RESET, WRITE

ABSENT: Final = 0
SHARED: Final = 1
EXCLUSIVE: Final = 2
HELD: Final = SHARED | EXCLUSIVE
READING: Final = 4
WRITING: Final = 8
EVICTING: Final = 16
LOST: Final = 32
RESETTING: Final = 64
PENDING: Final = READING | WRITING | EVICTING | RESETTING

ASKED: Final = {READ: READING, WRITE: WRITING, EVICT: EVICTING, RESET: WRITING}
"""By operation: what a page is asked for once something of it has come."""


class Rule(NamedTuple):
    """``name`` is what happens, as a story tells it; ``next`` the state after it by the state before."""

    name: str
    next: dict[int, int]


ASK: Final = {
    READ: Rule("asked for, to read", {ABSENT: READING}),
    WRITE: Rule("asked for, to write", {ABSENT: WRITING, SHARED: SHARED | WRITING}),
    EVICT: Rule("asked to be evicted", {SHARED: SHARED | EVICTING}),
    RESET: Rule("asked to begin anew", {LOST: LOST | RESETTING, ABSENT: RESETTING}),
}
"""By operation: the node sends a Request."""

COMPLETE: Final = Rule("came, all there is to it", {READING: SHARED, WRITING: EXCLUSIVE})
"""Data that is a whole transaction, or zeros."""
ARRIVE: Final = Rule("came, of a run", {READING: SHARED | READING, WRITING: SHARED | WRITING})
"""Data of a run: others may still have copies of what was asked for to be written, so it may be read only."""
ARRIVE_ALONE: Final = Rule("came, of a run, nobody else has it", {WRITING: EXCLUSIVE | WRITING})
AWAIT: Final = Rule("granted, others have it still", {SHARED | WRITING: SHARED | WRITING})
ALONE: Final = Rule("every other copy is gone", {SHARED | WRITING: EXCLUSIVE | WRITING})
CLOSE: Final = Rule("done", {SHARED | READING: SHARED, EXCLUSIVE | WRITING: EXCLUSIVE})
"""The directory is told Done."""
UPGRADE: Final = Rule("granted without data", {SHARED | WRITING: EXCLUSIVE, SHARED | READING: SHARED})
REFUSE: Final = Rule(
    "refused",
    {
        WRITING: ABSENT,
        SHARED | EVICTING: SHARED,
        EVICTING: ABSENT,
        RESETTING: ABSENT,
        SHARED | RESETTING: SHARED,
        SHARED | WRITING: SHARED,
    },
)
GIVE_UP: Final = Rule("given up, the owner has gone", {READING: ABSENT, WRITING: ABSENT})
REVIVE: Final = Rule(
    "as it was before, who wrote it is lost",
    {
        ABSENT: SHARED,
        READING: SHARED | READING,
        WRITING: SHARED | WRITING,
        RESETTING: SHARED | RESETTING,
        LOST: SHARED,
    },
)
FORGET: Final = Rule(
    "no longer asked for, the directory begins again",
    {
        READING: ABSENT,
        WRITING: ABSENT,
        EVICTING: ABSENT,
        SHARED | READING: SHARED,
        SHARED | WRITING: SHARED,
        SHARED | EVICTING: SHARED,
        EXCLUSIVE | WRITING: EXCLUSIVE,
        RESETTING: ABSENT,
        SHARED | RESETTING: SHARED,
        LOST | RESETTING: LOST,
    },
)
"""What was asked of it is void."""
TAKE_OVER: Final = Rule("taken over, from an agent that was killed", {ABSENT: SHARED})
LOSE: Final = Rule("lost", {READING: LOST, WRITING: LOST})
RESTORE: Final = Rule("no longer lost", {LOST: ABSENT, LOST | RESETTING: RESETTING})
"""Some node has asked for it to begin anew."""
BEGIN: Final = Rule("begins anew", {RESETTING: EXCLUSIVE, LOST | RESETTING: EXCLUSIVE})
BEGIN_ALONE: Final = Rule(
    "begins anew, all others know", {RESETTING: EXCLUSIVE | WRITING, LOST | RESETTING: EXCLUSIVE | WRITING}
)
DROP: Final = Rule("dropped", {SHARED | EVICTING: ABSENT})
"""An eviction is granted."""
SUPPLY: Final = Rule(
    "sent, kept",
    {
        EXCLUSIVE: SHARED,
        SHARED: SHARED,
        SHARED | READING: SHARED | READING,
        SHARED | WRITING: SHARED | WRITING,
        SHARED | EVICTING: SHARED | EVICTING,
        SHARED | RESETTING: SHARED | RESETTING,
    },
)
HAND_OVER: Final = Rule(
    "sent, dropped",
    {
        EXCLUSIVE: ABSENT,
        SHARED: ABSENT,
        SHARED | READING: READING,
        SHARED | WRITING: WRITING,
        SHARED | EVICTING: EVICTING,
        SHARED | RESETTING: RESETTING,
    },
)
INVALIDATE: Final = Rule(
    "invalidated",
    {
        SHARED: ABSENT,
        SHARED | READING: READING,
        SHARED | WRITING: WRITING,
        SHARED | EVICTING: EVICTING,
        SHARED | RESETTING: RESETTING,
    },
)

RULES: Final = (
    *ASK.values(), COMPLETE, ARRIVE, ARRIVE_ALONE, AWAIT, ALONE, CLOSE, UPGRADE, REFUSE, GIVE_UP, LOSE, DROP, SUPPLY,
    HAND_OVER, INVALIDATE, RESTORE, BEGIN, BEGIN_ALONE, FORGET, REVIVE,
    TAKE_OVER,
)  # fmt: skip

STATES: Final = tuple(sorted({state for rule in RULES for pair in rule.next.items() for state in pair}))


def name(state: int) -> str:
    """A state in words: ``"shared, asked for to write"``."""
    words = {ABSENT: "absent", SHARED: "shared", EXCLUSIVE: "exclusive", LOST: "lost"}
    asked = {READING: "to read", WRITING: "to write", EVICTING: "to be evicted", RESETTING: "to begin anew"}
    return words[state & (HELD | LOST)] + "".join(f", asked for {what}" for bit, what in asked.items() if state & bit)
