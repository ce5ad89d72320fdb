"""Does everything come to an end? Questions about the graph of all states.

Only transitions that must happen sooner or later are in the graph. Two things are wanted:

- *No deadlock.* From every state some way leads to a quiet one, where all threads have done what they wanted.
- *No livelock.* There is no cycle: whatever happens next, each step brings everybody nearer to the end.

The graph of a correct protocol has millions of states and no cycle. So what cannot be part of one is peeled off first,
by numpy, end by end; of what is left, usually nothing, networkx finds the strongly connected components.
"""

from __future__ import annotations

from typing import Any

import networkx as nx
import numpy as np

from .explore import Found, Graph

Ints = np.ndarray[Any, np.dtype[Any]]


def check_progress(graph: Graph, livelock: bool = True) -> Found | None:
    """What is wrong with the graph of states that are each right. ``livelock``: cycles are a fault, too."""
    stuck = without_end(graph)
    if len(stuck):
        return _round(graph, stuck, "deadlock: from here no way leads to an end")
    if livelock:
        core = cyclic_core(graph)
        if len(core):
            return _round(graph, core, "livelock: this can go on for ever, and nobody gets anywhere")
    return None


def without_end(graph: Graph) -> Ints:
    """The states from which no quiet one can be reached."""
    count = len(graph.states)
    before = _Neighbours(_ints(graph.targets), _ints(graph.sources), count)
    reached = np.frombuffer(graph.quiet, np.uint8).astype(bool)
    frontier = np.flatnonzero(reached)
    while len(frontier):
        found = before.of(frontier)
        frontier = np.unique(found[~reached[found]])
        reached[frontier] = True
    return np.flatnonzero(~reached)


def cyclic_core(graph: Graph) -> Ints:
    """The states on cycles or between them: what is left when all beginnings and all ends have been taken away."""
    sources, targets, count = _ints(graph.sources), _ints(graph.targets), len(graph.states)
    left = np.ones(count, bool)
    for tails, heads in ((targets, sources), (sources, targets)):
        _peel(_Neighbours(tails, heads, count), np.bincount(heads, minlength=count), left)
    return np.flatnonzero(left)


def _peel(neighbours: _Neighbours, degree: Ints, left: Ints) -> None:
    """Take away, again and again, the states that have no transition (any more)."""
    frontier = np.flatnonzero(degree == 0)
    while len(frontier):
        left[frontier] = False
        touched, times = np.unique(neighbours.of(frontier), return_counts=True)
        degree[touched] -= times
        frontier = touched[degree[touched] == 0]


class _Neighbours:
    """The heads of all transitions by their tail, in two arrays."""

    def __init__(self, tails: Ints, heads: Ints, count: int) -> None:
        order = np.argsort(tails, kind="stable")
        self._heads = heads[order]
        self._starts = np.concatenate(([0], np.cumsum(np.bincount(tails, minlength=count))))

    def of(self, states: Ints) -> Ints:
        """The neighbours of all these states, with repetitions."""
        starts, counts = self._starts[states], self._starts[states + 1] - self._starts[states]
        places = np.repeat(starts - np.concatenate(([0], np.cumsum(counts)[:-1])), counts) + np.arange(counts.sum())
        neighbours: Ints = self._heads[places]
        return neighbours


def _ints(values: Any) -> Ints:
    return np.frombuffer(values, np.uint32) if len(values) else np.zeros(0, np.uint32)


def digraph(graph: Graph, among: Ints | None = None) -> nx.DiGraph:
    """The transitions as networkx has them; only those ``among`` some states."""
    sources, targets = _ints(graph.sources), _ints(graph.targets)
    inside = np.ones(len(graph.states), bool)
    if among is not None:
        inside[:] = False
        inside[among] = True
    both = inside[sources] & inside[targets]
    found = nx.DiGraph()
    found.add_nodes_from(np.flatnonzero(inside).tolist())
    found.add_edges_from(zip(sources[both].tolist(), targets[both].tolist(), strict=True))
    return found


def _round(graph: Graph, among: Ints, wrong: str) -> Found:
    """The cycle that is reached first, and the shortest way to it."""
    states = digraph(graph, among)
    first, component = min(
        (min(component), component)
        for component in nx.strongly_connected_components(states)
        if len(component) > 1 or states.has_edge(*component, *component)
    )
    cycle = nx.find_cycle(states.subgraph(component), first)
    return Found(wrong, graph.path(first), again=[graph.states[head] for _, head in cycle])
