"""How a directory that begins again finds its pages: pure.

What nodes have said of regions, locks and all else it had written down (:mod:`directory.journal`), but not who has
which page: the nodes know. They come back one by one (Rejoin, Rejoined), say again what it did not hear, and hear again
what they did not (Awaited). Then no node acts on a word of the directory as it was, and each brings out what it owes to
others, and says so to each (Flush, Flushed); so nothing is under way any more. What then is where, the nodes tell
(Have, Rebuilt). Who has not come back when its lease is over has taken its pages along.

A directory also begins again when the agent of a node was killed, and another one has taken its place: it knows nothing
of what was under way, and what was on its way to it, or from it, is perhaps nowhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from directory.machine import InTransit, Kept


class Recovery:
    """``epoch`` is a number of this beginning that only members learn. ``away``: nodes that are to come back.
    ``in_transit``: what may be nowhere, as far as that is known. ``kept``: what nodes have told of that."""

    def __init__(self, epoch: int, nodes: Iterable[int], in_transit: Iterable[InTransit] = ()) -> None:
        self.epoch = epoch
        self.away = set(nodes)
        self.in_transit = list(in_transit)
        self.kept: list[Kept] = []
        self._returning: set[int] = set()  # they say again what may have been lost
        self._telling: set[int] = set()  # what they have
        self._reviving: Counter[int] = Counter()  # how often they are to say that something is there again
        self._flushed = False
        self.settled = False  # what nobody has told of is there again, or lost

    def came(self, node: int) -> bool:
        """A node is back. False if it was not away."""
        if node not in self.away:
            return False
        self.away.discard(node)
        self._returning.add(node)
        return True

    def returned(self, node: int) -> bool:
        """It has said everything again. False if it was not to."""
        if node not in self._returning:
            return False
        self._returning.discard(node)
        self._telling.add(node)
        return True

    def to_flush(self) -> bool:
        """Are all back? To be asked after every change; true once."""
        if self._flushed or self.away or self._returning:
            return False
        self._flushed = True
        return True

    def tells(self, node: int) -> bool:
        """Is it this node's turn to tell of pages?"""
        return self._flushed and node in self._telling

    def told(self, node: int) -> None:
        """It has told of all that it has, or something is there again."""
        self._telling.discard(node)
        if node in self._reviving:
            self._reviving[node] -= 1
            self._reviving += Counter()  # without those that owe nothing

    def revive(self, nodes: Iterable[int]) -> None:
        """What was nowhere is to be there again, on these nodes, each as often as it is among them."""
        self.settled = True
        self._reviving.update(nodes)

    @property
    def over(self) -> bool:
        """Have all told?"""
        return self._flushed and not self._telling and not self._reviving

    def left(self, node: int) -> None:
        """A node does not come back, or has gone again."""
        for nodes in (self.away, self._returning, self._telling):
            nodes.discard(node)
        del self._reviving[node]
