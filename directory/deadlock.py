"""Deadlocks: pure. The graph of who waits for whom, over the locks and barriers of all nodes.

An edge leads from a thread that waits for ever to each thread without which it cannot go on: the holder of the lock,
the parties that have not come to the barrier. All of them have to act, so any circle is a deadlock (the AND model of
Knapp, "Deadlock detection in distributed databases", ACM Computing Surveys 1987). Waits with a time-out are no edges:
they end.
"""

from __future__ import annotations

from directory.waiting import Call, Thread, Waiting
from dsm.wire import BARRIER


def circle(start: Thread, waiting: Waiting) -> list[Call]:
    """The calls of a circle that ``start`` is in or waits for, each waiting for the thread of the next; else empty."""
    first = waiting.of_thread(start)
    if first is None or first.primitive is None:
        return []
    if not any(waiting.of_thread(thread) for thread in first.primitive.blockers(first)):
        return []  # nearly always: whoever is waited for does not wait himself
    import networkx as nx  # takes a third of a second: not before it is needed

    graph = nx.DiGraph()
    calls = {first.thread[:2]: first}
    reached = [first]
    while reached:
        call = reached.pop()
        assert call.primitive is not None
        for thread in call.primitive.blockers(call):
            graph.add_edge(call.thread[:2], thread[:2])
            further = waiting.of_thread(thread)
            if further is not None and thread[:2] not in calls:
                calls[thread[:2]] = further
                reached.append(further)
    try:
        return [calls[edge[0]] for edge in nx.find_cycle(graph, first.thread[:2])]
    except nx.NetworkXNoCycle:
        return []


def story(circle: list[Call]) -> str:
    """Who waits for what in a circle, for people."""
    parts = []
    for call, following in zip(circle, [*circle[1:], *circle[:1]], strict=True):
        assert call.primitive is not None
        verb = "to which has to come" if call.primitive.kind == BARRIER else "which is held by"
        parts.append(f"{call.thread.who} waits for {call.primitive.title}, {verb} {following.thread.who}")
    return "deadlock: " + "; ".join(parts)
