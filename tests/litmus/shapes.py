"""The litmus tests: a few threads, each with a few loads and stores of shared variables that begin as 0.

``"x=1 y | y=1 x"`` is two threads: one stores 1 to x and then loads y, the other stores 1 to y and then loads x. The
names are those of the literature (Alglave, Maranget, Tautschnig, "Herding cats", TOPLAS 2014; IRIW: Boehm, Adve, PLDI
2008).
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Step(NamedTuple):
    """An access to a variable, by its number. ``value``: what is stored; 0: it is a load."""

    variable: int
    value: int


class Shape(NamedTuple):
    """One litmus test."""

    name: str
    text: str
    threads: tuple[tuple[Step, ...], ...]
    variables: str

    @property
    def loads(self) -> list[tuple[int, int]]:
        """Thread and variable of each load, in the order in which an outcome has them."""
        return [(number, s.variable) for number, steps in enumerate(self.threads) for s in steps if not s.value]

    @property
    def contested(self) -> list[int]:
        """The variables that are stored to more than once: which store was last is part of what is told."""
        stored = [step.variable for steps in self.threads for step in steps if step.value]
        return [variable for variable in range(len(self.variables)) if stored.count(variable) > 1]


def shape(name: str, text: str) -> Shape:
    """A litmus test from its text."""
    variables = "".join(sorted({token[0] for token in text.replace("|", " ").split()}))
    threads = []
    for thread in text.split("|"):
        steps = []
        for token in thread.split():
            variable, _, value = token.partition("=")
            steps.append(Step(variables.index(variable), int(value or 0)))
        threads.append(tuple(steps))
    return Shape(name, text, tuple(threads), variables)


SHAPES: Final = {
    each.name: each
    for each in (
        shape("MP", "x=1 y=1 | y x"),
        shape("SB", "x=1 y | y=1 x"),
        shape("LB", "x y=1 | y x=1"),
        shape("R", "x=1 y=1 | y=2 x"),
        shape("S", "x=2 y=1 | y x=1"),
        shape("2+2W", "x=1 y=2 | y=1 x=2"),
        shape("WRC", "x=1 | x y=1 | y x"),
        shape("IRIW", "x=1 | y=1 | x y | y x"),
        shape("CoRR", "x=1 | x x"),
        shape("CoRR2", "x=1 | x=2 | x x | x x"),
        shape("CoWW", "x=1 x=2 | x"),
        shape("CoRW", "x x=1 | x=2"),
        shape("CoWR", "x=1 x | x=2"),
    )
}
"""By name. Those that begin with Co have one variable: the coherence of one location."""
