"""From the logs of the processes to one history, and what is wrong with it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import linearizable
import sequential
from accesses import Access, Violation, Word
from programs import LOAD, PAGE_WORDS, STORE, Batch, Settings, batches

Log = Sequence[Sequence[int]]
"""Page, word, value, invocation and response of each load and store of one process."""


class SmallProgram(NamedTuple):
    """What happened in one program: the accesses of each process that took part, and what its words held before and
    after."""

    threads: list[list[Access]]
    initial: dict[Word, int]
    final: dict[Word, int]


class Result(NamedTuple):
    """What was checked, and what was found. ``overlapping``: accesses that overlap a store of another process to the
    same word. ``mixed``: programs whose processes cannot have run one after the other."""

    accesses: int
    words: int
    overlapping: int
    programs: int
    mixed: int
    linearizability: list[Violation]
    sequential: list[str]

    @property
    def sound(self) -> bool:
        """Was nothing found?"""
        return not self.linearizability and not self.sequential

    def __str__(self) -> str:
        return (
            f"{self.accesses} accesses to {self.words} words, {self.overlapping} of them during a store by another "
            f"process: {len(self.linearizability)} words not linearizable; {self.programs} small programs, "
            f"{self.mixed} of them mixed: {len(self.sequential)} not sequentially consistent"
        )


def check(settings: Settings, logs: Sequence[Log]) -> Result:
    """Check the history of a run, per word and per program."""
    history, programs = assemble(settings, logs)
    words: dict[Word, list[Access]] = defaultdict(list)
    for access in history:
        words[access.word].append(access)
    return Result(
        len(history),
        len(words),
        sum(map(overlapping, words.values())),
        len(programs),
        sum(not sequential.in_turns(each.threads, each.initial) for each in programs),
        linearizable.violations(history),
        [text for each in programs if (text := unexplained(each.threads, each.initial, each.final))],
    )


def unexplained(
    threads: Sequence[Sequence[Access]], initial: Mapping[Word, int], final: Mapping[Word, int] | None
) -> str:
    """Why a program's history is not sequentially consistent; empty if it is."""
    found = sequential.explain(threads, initial, final)
    return "" if found.complete else sequential.report(threads, initial, final, found)


def overlapping(accesses: Sequence[Access]) -> int:
    """How many accesses to one word overlap a store of another process."""
    hit: set[Access] = set()
    under_way: list[Access] = []
    for access in sorted(accesses, key=lambda each: each.invoked_ns):
        under_way = [each for each in under_way if not each.precedes(access)]
        others = [each for each in under_way if each.process != access.process]
        hit.update(other for other in others if access.store)
        hit.update(access for other in others if other.store)
        under_way.append(access)
    return len(hit)


def assemble(settings: Settings, logs: Sequence[Log]) -> tuple[list[Access], list[SmallProgram]]:
    """All accesses of a run, and those of each program."""
    entries = [iter(log) for log in logs]
    memory: dict[Word, int] = {}
    history: list[Access] = []
    programs: list[SmallProgram] = []
    for batch in batches(settings):
        played = [list(_played(rank, batch, entries[rank])) for rank in range(settings.ranks)]
        looked = [
            _access(batch.reader, LOAD, word, next(entries[batch.reader])) for words in batch.words for word in words
        ]
        history += [access for mine in played for _, access in mine] + looked
        final = {access.word: access.value for access in looked}
        for number, words in enumerate(batch.words):
            mine = [place(word) for word in words]
            threads = [[access for program, access in each if program == number] for each in played]
            programs.append(
                SmallProgram(
                    [thread for thread in threads if thread],
                    {word: memory.get(word, 0) for word in mine},
                    {word: final[word] for word in mine},
                )
            )
        memory |= final
    over = object()
    assert all(next(each, over) is over for each in entries), "the processes logged more than they were to do"
    return history, programs


def place(word: int) -> Word:
    """A word's page, and its place there."""
    return divmod(word, PAGE_WORDS)


def _played(rank: int, batch: Batch, entries: Iterator[Sequence[int]]) -> Iterator[tuple[int, Access]]:
    for call in batch.calls[rank]:
        if call.kind in (LOAD, STORE):
            yield call.program, _access(rank, call.kind, call.word, next(entries))


def _access(rank: int, kind: int, word: int, entry: Sequence[int]) -> Access:
    page, at, value, invoked_ns, responded_ns = entry
    assert (page, at) == place(word), f"process {rank} was to access word {place(word)}, not {(page, at)}"
    return Access(rank, (page, at), kind == STORE, value, invoked_ns, responded_ns)
