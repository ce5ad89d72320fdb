"""What an application logs about one access to shared memory, and how a few of them are shown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple, TypeAlias

Word: TypeAlias = tuple[int, int]
"""A page, and a word within it."""

NEVER_NS: Final = 1 << 62
"""The response time of a store whose process ended before it was over. A load without response tells nothing: leave it
out."""


class Access(NamedTuple):
    """A load that saw ``value``, or a store of it, by a process; at some moment from ``invoked_ns`` to
    ``responded_ns``, on the clock that all processes of a host share."""

    process: int
    word: Word
    store: bool
    value: int
    invoked_ns: int
    responded_ns: int

    def precedes(self, other: Access) -> bool:
        """Was it over when the other began?"""
        return self.responded_ns < other.invoked_ns


class Violation(NamedTuple):
    """Why a history is wrong, and the accesses that show it."""

    reason: str
    accesses: tuple[Access, ...]

    def __str__(self) -> str:
        return "\n".join([self.reason, *lines(self.accesses)])


def lines(accesses: Iterable[Access]) -> list[str]:
    """One line for each, with its interval in µs since the first began; in order of time."""
    ordered = sorted(accesses, key=lambda each: (each.invoked_ns, each.responded_ns))
    zero_ns = min((each.invoked_ns for each in ordered if each.process >= 0), default=0)
    return [_line(each, zero_ns) for each in ordered]


def _line(each: Access, zero_ns: int) -> str:
    if each.process < 0:
        return f"  before everything      word {each.word} holds {each.value}"
    until = "never" if each.responded_ns >= NEVER_NS else f"{(each.responded_ns - zero_ns) / 1000:.1f}"
    since = f"{(each.invoked_ns - zero_ns) / 1000:.1f}"
    what = "stores" if each.store else "loads "
    return f"  {since:>10} to {until:>10} µs  process {each.process} {what} {each.value:<8} word {each.word}"
