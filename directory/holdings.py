"""Who holds a page, interned: the page table stores a small number, and every page held alike shares it.

A touched page thus costs the width of one table entry, whatever the number of nodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from dsm.errors import Violation

UNTOUCHED: Final = 0
SHARED: Final = 1
EXCLUSIVE: Final = 2
LOST: Final = 3

_NAMED_MAX: Final = 16
"""Nodes that a story names."""

STATE_NAMES: Final = ("untouched", "shared", "exclusive", "lost")


class Holding(NamedTuple):
    """``owner`` supplies the data of a page; ``copies`` is the copyset as a bit mask of node ids, the owner's included.

    A LOST page has no copies; ``owner`` is then the node that took the only one with it. ``shadows``, of an EXCLUSIVE
    page of a region with replicas, are the nodes that have kept what was in it before, should its owner be lost.
    """

    state: int
    owner: int
    copies: int
    shadows: int = 0

    def __str__(self) -> str:
        if self.state == SHARED:
            several = self.copies.bit_count() > _NAMED_MAX
            names = ", ".join(f"n{node}" for node in nodes_in(self.copies)) if not several else "many"
            return f"shared by {names}; owner n{self.owner}"
        return STATE_NAMES[self.state] + {EXCLUSIVE: f" to n{self.owner}", LOST: f" with n{self.owner}"}.get(
            self.state, ""
        )


def nodes_in(copies: int) -> Iterator[int]:
    """The node ids of a copyset."""
    while copies:
        low = copies & -copies
        yield low.bit_length() - 1
        copies ^= low


def _check(holding: Holding) -> None:
    """Single writer or many readers, and an owner that has what it owns: once for all pages that are held like this."""
    state, owner, copies, shadows = holding
    alone = copies == 1 << owner
    if shadows and (state != EXCLUSIVE or shadows & copies):
        raise Violation(f"no page may be held as {holding!r}")
    if not (copies >> owner & 1 if state == SHARED else alone if state == EXCLUSIVE else not copies):
        raise Violation(f"no page may be held as {holding}")


def without(holding: Holding, node: int) -> Holding:
    """What is left of a holding when a node takes its copy away for good. Where others have kept what was in the page
    before, that is in it again."""
    copies, shadows = holding.copies & ~(1 << node), holding.shadows & ~(1 << node)
    if copies == holding.copies:
        return holding if shadows == holding.shadows else holding._replace(shadows=shadows)
    if not copies and shadows:
        return Holding(SHARED, next(nodes_in(shadows)), shadows)
    if not copies:
        return Holding(LOST, node, 0)
    return Holding(SHARED, holding.owner if holding.owner != node else _after(node, copies), copies)


def _after(node: int, copies: int) -> int:
    """The next holder after a node, round and round: no number is preferred, as the lowest would be."""
    higher = copies >> node
    return node + next(nodes_in(higher)) if higher else next(nodes_in(copies))


class Holdings:
    """Numbers for holdings, and back. Number 0 is a page that nobody ever touched."""

    def __init__(self) -> None:
        nobody = Holding(UNTOUCHED, 0, 0)
        self._holdings = [nobody]
        self._numbers = {nobody: 0}
        self._free: list[int] = []

    def __len__(self) -> int:
        return len(self._holdings) - len(self._free)

    def __iter__(self) -> Iterator[Holding]:
        """By number."""
        return iter(self._holdings)

    def __getitem__(self, number: int) -> Holding:
        return self._holdings[number]

    def number(self, holding: Holding) -> int:
        """The number of a holding, a new one if it was never seen."""
        number = self._numbers.get(holding)
        if number is None:
            _check(holding)
            if self._free:
                number = self._free.pop()
                self._holdings[number] = holding
            else:
                number = len(self._holdings)
                self._holdings.append(holding)
            self._numbers[holding] = number
        return number

    def forget_node(self, node: int) -> None:
        """Take a node out of every holding at once: the page tables need not be touched.

        Two numbers may then mean the same; pages that carry them are only reported in shorter runs.
        """
        self._holdings = [without(holding, node) for holding in self._holdings]
        free = set(self._free)
        self._numbers = {h: n for n, h in reversed(list(enumerate(self._holdings))) if n not in free}

    def sweep(self, live: set[int]) -> None:
        """Give back the numbers that no page carries (``live``: those that some page does)."""
        live = live | {0}
        self._free = [number for number in range(len(self._holdings)) if number not in live]
        self._numbers = {h: n for h, n in self._numbers.items() if n in live}
