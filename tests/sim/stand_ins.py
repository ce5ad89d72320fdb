"""What a keeper has for an agent, in place of memory files and descriptors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from nodes.keeper import Thing

Called = Callable[[], None]
"""To be called before anything that lasts is done: the agent may be killed there."""


class Notes:
    """See :class:`nodes.notes.Notes`."""

    def __init__(self, called: Called) -> None:
        self._called = called
        self.ticket = 0
        self.lease = 0.0
        self.slots: dict[int, bytes] = {}
        self._next = 0

    def use(self, ticket: int) -> None:
        self.ticket = ticket

    def renew(self, lease: float) -> None:
        self.lease = lease

    def take_slot(self) -> int:
        self._next += 1
        return self._next

    def put(self, slot: int, note: bytes) -> None:
        self._called()
        self.slots[slot] = note

    def get(self, slot: int) -> bytes:
        return self.slots.get(slot, b"")

    def free(self, slot: int) -> None:
        del self.slots[slot]


class Shelf:
    """See :class:`nodes.keeper.Shelf`."""

    def __init__(self, called: Called, listener: Any) -> None:
        self._called = called
        self.listener = listener
        self.found: dict[str, Thing] = {}
        self.again = False
        self.things: dict[str, Thing] = {}

    def put(self, name: str, note: bytes, fds: Sequence[int]) -> None:
        self._called()
        self.things[name] = Thing(note, list(fds))

    def drop(self, name: str) -> None:
        self._called()
        self.things.pop(name, None)

    def clear(self) -> None:
        self.things.clear()

    def settled(self) -> None:
        """Nobody waits for it."""

    def beat(self, lease: float) -> None:
        """Nobody listens."""


class Retained:
    """See :class:`nodes.retained.Retained`: everything is kept until all was found again."""

    def __init__(self, called: Called) -> None:
        self._called = called
        self._pages: dict[tuple[int, int], bytes] = {}

    def add(self, region: int, start: int, count: int, payload: bytes) -> None:
        self._called()
        size = len(payload) // count
        for index in range(count):
            self._pages[region, start + index] = payload[index * size : (index + 1) * size]

    def sent(self, node: int, bulk: bool, number: int) -> None:
        """Nothing is overwritten here."""

    def hold(self) -> None:
        """Nothing is overwritten here."""

    def look(self) -> dict[int, list[tuple[int, int]]]:
        kept: dict[int, list[tuple[int, int]]] = {}
        for region, page in sorted(self._pages):
            kept.setdefault(region, []).append((page, 1))
        return kept

    def page(self, region: int, page: int) -> bytes | None:
        return self._pages.get((region, page))

    def clear(self) -> None:
        self._pages.clear()
