"""What a litmus test may end with: every outcome that a memory model allows, by enumeration, and how outcomes are
judged.

An outcome is the values of all loads, thread by thread, followed by the last value of each variable. 0 is what a
variable was before, FOREIGN is a value that nobody has stored this time: stale or out of thin air.

- **sequential**: the threads might as well have run one after the other. It takes no overlap, and tells little.
- **interleaved**: only threads that overlap end like this, and an interleaving explains it. A run in which none of
  these came had no power.
- **forbidden**: no interleaving of the threads explains it.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple, TypeAlias

from shapes import Shape

Outcome: TypeAlias = tuple[int, ...]

FOREIGN: Final = -1

SC: Final = "SC"
"""Lamport's sequential consistency: what is promised between nodes."""
TSO: Final = "TSO"
"""Each thread has a queue of stores before memory, and sees its own: x86, what is promised within a node (Owens,
Sarkar, Sewell, "A better x86 memory model: x86-TSO", TPHOLs 2009)."""


class _State(NamedTuple):
    at: tuple[int, ...]  # the next step of each thread
    memory: Outcome
    queues: tuple[tuple[tuple[int, int], ...], ...]  # stores of each thread that are not in memory yet
    seen: tuple[tuple[int, ...], ...]  # loads of each thread


def _with(items: tuple[int, ...], at: int, value: int) -> tuple[int, ...]:
    return (*items[:at], value, *items[at + 1 :])


def _load(state: _State, thread: int, variable: int) -> int:
    for stored, value in reversed(state.queues[thread]):
        if stored == variable:
            return value
    return state.memory[variable]


def _stepped(shape: Shape, model: str, state: _State, thread: int) -> _State:
    """The thread makes its next access."""
    step = shape.threads[thread][state.at[thread]]
    state = state._replace(at=_with(state.at, thread, state.at[thread] + 1))
    if not step.value:
        seen = list(state.seen)
        seen[thread] = (*seen[thread], _load(state, thread, step.variable))
        return state._replace(seen=tuple(seen))
    if model == SC:
        return state._replace(memory=_with(state.memory, step.variable, step.value))
    queues = list(state.queues)
    queues[thread] = (*queues[thread], (step.variable, step.value))
    return state._replace(queues=tuple(queues))


def _drained(state: _State, thread: int) -> _State:
    """The oldest store in the thread's queue reaches memory."""
    (variable, value), *rest = state.queues[thread]
    queues = list(state.queues)
    queues[thread] = tuple(rest)
    return state._replace(memory=_with(state.memory, variable, value), queues=tuple(queues))


def _next(shape: Shape, model: str, state: _State) -> Iterable[_State]:
    for thread, steps in enumerate(shape.threads):
        if state.at[thread] < len(steps):
            yield _stepped(shape, model, state, thread)
        if state.queues[thread]:
            yield _drained(state, thread)


def _start(shape: Shape) -> _State:
    nothing: tuple[()] = ()
    threads = len(shape.threads)
    return _State((0,) * threads, (0,) * len(shape.variables), (nothing,) * threads, (nothing,) * threads)


def _outcome(state: _State) -> Outcome:
    return (*itertools.chain.from_iterable(state.seen), *state.memory)


def allowed(shape: Shape, model: str = SC) -> frozenset[Outcome]:
    """Every outcome that the model allows."""
    found: set[Outcome] = set()
    known = {_start(shape)}
    todo = list(known)
    while todo:
        state = todo.pop()
        following = set(_next(shape, model, state))
        if not following:
            found.add(_outcome(state))
        todo += following - known
        known |= following
    return frozenset(found)


def sequential(shape: Shape) -> frozenset[Outcome]:
    """Every outcome of threads that run one after the other, in any order."""
    found: set[Outcome] = set()
    for order in itertools.permutations(range(len(shape.threads))):
        state = _start(shape)
        for thread in order:
            for _ in shape.threads[thread]:
                state = _stepped(shape, SC, state, thread)
        found.add(_outcome(state))
    return frozenset(found)


def decode(raw: int, initial: int, base: int) -> int:
    """What a word holds, as an outcome has it, if the stores of this round were of ``base`` + value."""
    if raw == initial:
        return 0
    return raw - base if base < raw < base + 8 else FOREIGN


class Histogram:
    """How often each outcome of a litmus test came, under a model."""

    def __init__(self, shape: Shape, model: str = SC) -> None:
        self.shape = shape
        self.model = model
        self.counts: Counter[Outcome] = Counter()
        self.allowed = allowed(shape, model)
        self.sequential = sequential(shape)

    def add(self, outcome: Sequence[int]) -> None:
        """One round ended like this."""
        self.counts[tuple(outcome)] += 1

    def kind(self, outcome: Outcome) -> str:
        """``"sequential"``, ``"interleaved"`` or ``"forbidden"``."""
        if outcome not in self.allowed:
            return "forbidden"
        return "sequential" if outcome in self.sequential else "interleaved"

    def total(self, kind: str | None = None) -> int:
        """Rounds, of one kind or all."""
        return sum(count for outcome, count in self.counts.items() if kind in (None, self.kind(outcome)))

    @property
    def missing(self) -> list[Outcome]:
        """The interleaved outcomes that never came."""
        return sorted(self.allowed - self.sequential - set(self.counts))

    @property
    def powerless(self) -> bool:
        """Did threads of a test that can show it never overlap?"""
        return bool(self.allowed - self.sequential) and not self.total("interleaved")

    def text(self, outcome: Outcome) -> str:
        """An outcome as in ``1:y=1 1:x=0``, and in brackets the last values of variables stored to more than once."""
        shape = self.shape
        loads = shape.loads
        parts = [
            f"{thread}:{shape.variables[variable]}={_value(value)}"
            for (thread, variable), value in zip(loads, outcome, strict=False)
        ]
        last = outcome[len(loads) :]
        stored = {step.variable: step.value for steps in shape.threads for step in steps if step.value}
        odd = [v for v in range(len(last)) if v not in shape.contested and last[v] != stored.get(v)]
        if told := sorted({*shape.contested, *odd}):
            parts.append("[" + " ".join(f"{shape.variables[v]}={_value(last[v])}" for v in told) + "]")
        return " ".join(parts)

    @property
    def ordered(self) -> list[Outcome]:
        """The outcomes that came, the most frequent of each kind first."""
        order = {"sequential": 0, "interleaved": 1, "forbidden": 2}
        return sorted(self.counts, key=lambda each: (order[self.kind(each)], -self.counts[each], each))

    def table(self) -> list[str]:
        """A line for each outcome that came."""
        return [f"  {self.counts[each]:>8}  {self.kind(each):<11}  {self.text(each)}" for each in self.ordered]


def _value(value: int) -> str:
    return "?" if value == FOREIGN else str(value)
