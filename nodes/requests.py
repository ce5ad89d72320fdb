"""What a node has asked for and still waits for: requests, the parts that the directory cuts them into, prefetches."""

from __future__ import annotations

from nodes.effects import Waiter


class Part:
    """What is owed to one transaction of a request: the directory cuts a request into runs of pages held alike."""

    __slots__ = ("acked", "acks", "closed", "count", "next", "owed", "soon")

    def __init__(self) -> None:
        self.count = 0
        self.owed: int | None = None  # pages still to come as data; None until a Grant or Data tells
        self.next = self.soon = -1  # the pages that come next, if some have come in order and nothing is in a hurry
        self.acks = 0  # acknowledgements owed, known when ``owed`` is
        self.acked = 0  # bit mask of the nodes that have acknowledged: one counts once
        self.closed: set[int] = set()  # pages that were closed, or given up, before the others were settled

    @property
    def alone(self) -> bool:
        """Has nobody else a copy of these pages any more?"""
        return self.acked.bit_count() >= self.acks

    @property
    def settled(self) -> bool:
        return self.owed == 0 and self.alone


class Ask:
    """The open request ``generation``; ``left`` of its pages are not settled; ``target`` asked for them, or will touch
    them next."""

    __slots__ = ("generation", "left", "need", "op", "over", "parts", "start", "stop", "target")

    def __init__(self, generation: int, start: int, stop: int, op: int, need: int, target: Waiter) -> None:
        self.generation = generation
        self.start = start
        self.stop = stop
        self.op = op
        self.need = need
        self.left = stop - start
        self.target = target
        self.parts: dict[int, Part] = {}  # by first page
        self.over: set[int] = set()  # first pages of the parts that are over

    def part(self, first: int) -> Part:
        part = self.parts.get(first)
        if part is None:
            part = self.parts[first] = Part()
        return part

    def part_with(self, page: int) -> tuple[int, Part]:
        """The part, and its first page, that a page lies in; a new one that begins there if nothing has come of it."""
        for first, part in self.parts.items():
            if first <= page < first + part.count:
                return first, part
        return page, self.part(page)

    def close(self, first: int) -> None:
        """Nothing is owed to this part any more."""
        self.parts.pop(first, None)
        self.over.add(first)


class Prefetch:
    """An explicit prefetch, or a reset of lost pages (``op``: READ, WRITE or RESET); the pages ``owed`` have not been
    here yet. ``target``: into whose memory they should be mapped, if anybody's."""

    __slots__ = ("op", "owed", "target", "waiter")

    def __init__(self, owed: set[int], op: int, waiter: Waiter, target: Waiter) -> None:
        self.owed = owed
        self.op = op
        self.waiter = waiter
        self.target = target
