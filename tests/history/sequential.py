"""Is the history of a small program sequentially consistent? By exhaustive search, over all words at once.

Lamport 1979: there is one order of all accesses that keeps the order of each process and in which every load sees the
last store. To decide it is NP-complete (Gibbons, Korach 1997), so this is for a few processes with a few accesses
each. The search goes through states (how far each process is, what memory holds), each at most once. A load that sees
what memory holds is taken at once: it changes nothing, so it cannot spoil what is possible later. Only the stores are
tried in every order.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from accesses import Access, Word, lines

Programs = Sequence[Sequence[Access]]
"""The accesses of each process, in its order."""


class Explanation(NamedTuple):
    """An order of the accesses. ``complete``: of all of them, so that the history is sequentially consistent; else it
    is one of the longest that can be found."""

    order: tuple[Access, ...]
    complete: bool


def explain(programs: Programs, initial: Mapping[Word, int], final: Mapping[Word, int] | None = None) -> Explanation:
    """The order in which it may have happened. ``initial``: what the words held before (0 if not given); ``final``:
    what they held at the end, if known."""
    words = sorted({access.word for program in programs for access in program} | set(final or ()))
    index = {word: at for at, word in enumerate(words)}
    start = tuple(initial.get(word, 0) for word in words)
    wanted = None if final is None else {index[word]: value for word, value in final.items()}
    best: tuple[Access, ...] = ()
    known = set()
    todo: list[tuple[tuple[int, ...], tuple[int, ...], tuple[Access, ...]]] = [((0,) * len(programs), start, ())]
    while todo:
        at, memory, order = todo.pop()
        at, order = _load_all(programs, index, at, memory, order)
        if (at, memory) in known:
            continue
        known.add((at, memory))
        best = max(best, order, key=len)
        nexts = [(n, program[at[n]]) for n, program in enumerate(programs) if at[n] < len(program)]
        if not nexts and (wanted is None or all(memory[word] == value for word, value in wanted.items())):
            return Explanation(order, True)
        for number, access in nexts:
            if access.store:
                word = index[access.word]
                after = (*memory[:word], access.value, *memory[word + 1 :])
                todo.append(((*at[:number], at[number] + 1, *at[number + 1 :]), after, (*order, access)))
    return Explanation(best, False)


def _load_all(
    programs: Programs,
    index: Mapping[Word, int],
    at: tuple[int, ...],
    memory: tuple[int, ...],
    order: tuple[Access, ...],
) -> tuple[tuple[int, ...], tuple[Access, ...]]:
    """Every load that can be next, of every process."""
    positions = list(at)
    taken = []
    for number, program in enumerate(programs):
        while positions[number] < len(program):
            access = program[positions[number]]
            if access.store or memory[index[access.word]] != access.value:
                break
            taken.append(access)
            positions[number] += 1
    return tuple(positions), (*order, *taken)


def in_turns(programs: Programs, initial: Mapping[Word, int]) -> bool:
    """Might the processes as well have run one after the other? Then the history tells little."""
    return any(_one_by_one(order, initial) for order in itertools.permutations(programs))


def _one_by_one(programs: Programs, initial: Mapping[Word, int]) -> bool:
    memory = dict(initial)
    for access in itertools.chain.from_iterable(programs):
        if access.store:
            memory[access.word] = access.value
        elif memory.get(access.word, 0) != access.value:
            return False
    return True


def report(
    programs: Programs, initial: Mapping[Word, int], final: Mapping[Word, int] | None, found: Explanation
) -> str:
    """Why a history is not sequentially consistent, to be read."""
    told = ["no order of these accesses explains what was loaded"]
    told += [f"  before: word {word} holds {value}" for word, value in sorted(initial.items())]
    told += lines(access for program in programs for access in program)
    told += [f"  at the end: word {word} holds {value}" for word, value in sorted((final or {}).items())]
    told += ["one of the longest orders that can be explained:"]
    told += [
        f"  process {a.process} {'stores' if a.store else 'loads '} {a.value:<8} word {a.word}" for a in found.order
    ]
    if len(found.order) == sum(map(len, programs)):
        told += ["all of it, but for what the words hold at the end"]
    return "\n".join(told)
