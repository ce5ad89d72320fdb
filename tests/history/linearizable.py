"""Is the history of one word linearizable? Exact, in O(n log n), for stores of values that all differ.

Gibbons, Korach, "Testing shared memories", SIAM J. Computing 26(4), 1997, for a known read-mapping. The store of a
value and the loads that saw it are a *cluster*: in any linearization they stand together, the store first. Let f be
the first response in a cluster and s the last invocation. One cluster has to come before another if anything of it is
over before something of the other begins: f1 < s2. So a history is linearizable if and only if every load saw a value
that somebody stored, no load was over before the store of its value began, and no two clusters have to come before
each other: f1 < s2 and f2 < s1.

That pairs are enough: let a -> b say f_a < s_b. From a -> b and c -> d follows a -> d or c -> b, so a shortest cycle
of three or more clusters can be made shorter unless all of them are forward, f < s, and in no pair both ways; but
then the intervals [f, s] are disjoint and -> is their order in time, which has no cycle. Neither can both be
backward, s <= f, since f1 < s2 <= f2 < s1 <= f1 is absurd. That leaves what the paper has: two *forward* zones that
overlap, and a *backward* zone within a forward one. Equal times count as overlapping, here as in
:meth:`Access.precedes`.
"""

from __future__ import annotations

import bisect
import itertools
from collections import defaultdict
from collections.abc import Iterable
from typing import Final, NamedTuple

from accesses import NEVER_NS, Access, Violation, Word

_NOBODY: Final = -1
_BEFORE_NS: Final = -NEVER_NS
"""By whom the initial value was stored, and when."""


class _Cluster(NamedTuple):
    store: Access
    first_over: Access
    last_begun: Access

    @property
    def f(self) -> int:
        return self.first_over.responded_ns

    @property
    def s(self) -> int:
        return self.last_begun.invoked_ns

    @property
    def forward(self) -> bool:
        return self.f < self.s


def violations(history: Iterable[Access], initial: int = 0) -> list[Violation]:
    """The first violation of each word whose history is not linearizable; all words begin with ``initial``.

    That all are linearizable means that the history of all of them is: linearizability is local (Herlihy, Wing, TOPLAS
    1990).
    """
    words: dict[Word, list[Access]] = defaultdict(list)
    for access in history:
        words[access.word].append(access)
    return [found for word in sorted(words) if (found := violation(words[word], initial))]


def violation(accesses: list[Access], initial: int = 0) -> Violation | None:
    """Why the history of one word is not linearizable; None if it is. Raises ValueError if two stores are alike."""
    if not accesses:
        return None
    word = accesses[0].word
    clusters: list[_Cluster] = []
    for store, loads in _by_value(accesses, initial):
        if store is None:
            return Violation(f"a value that nobody stored was loaded from word {word}", (loads[0],))
        early = next((load for load in loads if load.precedes(store)), None)
        if early is not None:
            return Violation(f"a value was loaded from word {word} before its store began", (early, store))
        cluster = [store, *loads]
        first_over = min(cluster, key=lambda each: each.responded_ns)
        clusters.append(_Cluster(store, first_over, max(cluster, key=lambda each: each.invoked_ns)))
    pair = _conflict(clusters)
    return _explained(word, *pair) if pair else None


def _by_value(accesses: list[Access], initial: int) -> list[tuple[Access | None, list[Access]]]:
    """Each store with the loads that saw it, and loads without a store."""
    stores = {initial: Access(_NOBODY, accesses[0].word, True, initial, _BEFORE_NS, _BEFORE_NS)}
    loads: dict[int, list[Access]] = defaultdict(list)
    for access in accesses:
        if not access.store:
            loads[access.value].append(access)
        elif access.value in stores:
            raise ValueError(f"two stores of {access.value}: this history cannot be checked in this way")
        else:
            stores[access.value] = access
    return [(stores.get(value), loads[value]) for value in sorted({*stores, *loads})]


def _conflict(clusters: list[_Cluster]) -> tuple[_Cluster, _Cluster] | None:
    """Two clusters that have to come before each other."""
    forward = sorted((each for each in clusters if each.forward), key=lambda each: each.f)
    for one, other in itertools.pairwise(forward):
        if other.f < one.s:
            return one, other
    begins = [each.f for each in forward]
    for inner in clusters:
        if inner.forward:
            continue
        at = bisect.bisect_left(begins, inner.s) - 1  # the last that begins before it; those earlier end earlier
        if at >= 0 and inner.f < forward[at].s:
            return forward[at], inner
    return None


def _explained(word: Word, one: _Cluster, other: _Cluster) -> Violation:
    a, b = one.store.value, other.store.value
    reason = (
        f"word {word} had value {a} both before and after it had value {b}: "
        f"the first of these accesses with {a} was over before the last with {b} began, and the other way round"
    )
    shown = {one.store, one.first_over, one.last_begun, other.store, other.first_over, other.last_begun}
    return Violation(reason, tuple(sorted(shown, key=lambda each: each.invoked_ns)))
