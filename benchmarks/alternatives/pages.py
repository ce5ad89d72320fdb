"""dsm itself: two nodes on this host. ``python -m benchmarks.alternatives.pages`` is an application on one."""

from __future__ import annotations

import random
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from benchmarks.alternatives.alternative import ARRAY, BLOCK, VALUE
from benchmarks.alternatives.client import Client, Operations, each_us, obey, rate_gb_s
from benchmarks.application import Cluster, on
from benchmarks.child import python

PAGES: Final = 4096
"""Of the region whose pages are touched one by one: enough that those of a batch have few neighbours."""


class Pages:
    """``there`` is an application on one node, ``neighbour`` another beside it, ``here`` is on the other node.

    A round calls the methods in the order in which they stand here; each gives samples. It begins, and ends, with all
    pages and the array exclusive where ``there`` is. All check what they read.
    """

    def __init__(self, stack: ExitStack, folder: Path, batch: int) -> None:
        own = folder / "dsm"  # removed by the last node
        own.mkdir()
        cluster = Cluster(own, stack)
        nodes = [cluster.node() for _ in range(2)]
        clients = [Client(python(__name__), on(nodes[node])) for node in (0, 1, 1)]
        for client in clients:
            cluster.keep(client)
        for client in clients:
            client.ready()
        self._here, self._there, self._neighbour = clients
        self._batch = batch
        self._random = random.Random(1)
        self._pages = list(range(PAGES))  # of this round
        self._bytes = [0] * PAGES  # what each was filled with
        self._stored = 0
        self._store(self._there)
        self._byte = 1  # of the array
        self._there.ask("overwrite", self._byte)

    def _load(self, client: Client) -> Any:
        return client.ask("load", self._pages, [self._bytes[page] for page in self._pages])

    def _store(self, client: Client) -> Any:
        """Something else than anybody has stored in the last rounds."""
        self._stored = self._stored % 255 + 1
        for page in self._pages:
            self._bytes[page] = self._stored
        return client.ask("store", self._pages, self._stored)

    def remote_read(self) -> Any:
        """Copy pages that are exclusive on the other node, in random order."""
        self._pages = self._random.sample(range(1, PAGES, 2), self._batch)
        return self._load(self._here)

    def read_again(self) -> Any:
        """Copy the same pages once more."""
        return self._load(self._here)

    def upgrade(self) -> Any:
        """Fill the same pages, of which the other node has copies now."""
        return self._store(self._there)

    def neighbour_reads(self) -> Any:
        """Copy the same pages in another process of the node that has written them."""
        return self._load(self._neighbour)

    def neighbour_stores(self) -> Any:
        """Fill the same pages in that process: the first time since they came back, so the agent is asked."""
        return self._store(self._neighbour)

    def neighbour_adds_up(self) -> Any:
        """Read the array in another process of the node that has written it."""
        return self._neighbour.ask("add up", self._byte)

    def scan(self) -> Any:
        """Read the array on the other node."""
        return self._here.ask("add up", self._byte)

    def overwrite(self) -> Any:
        """Fill the array, of which the other node has a copy now."""
        self._byte = self._byte % 100 + 1
        return self._there.ask("overwrite", self._byte)


# --- the applications ----------------------------------------------------------------------------------


def _begin(stack: ExitStack) -> tuple[str, Operations]:
    import dsm

    region = stack.enter_context(dsm.attach("benchmark.peers.pages", size=PAGES * VALUE))
    memory = region.buf
    whole = stack.enter_context(dsm.attach("benchmark.peers.array", shape=ARRAY // 8, dtype="u8"))
    array = whole.array

    def load(pages: list[int], filled: list[int]) -> list[float]:
        def one(number: int) -> None:
            at = pages[number] * VALUE
            loaded.append(bytes(memory[at : at + VALUE]))

        loaded: list[bytes] = []
        took = each_us(len(pages), one)
        assert loaded == [bytes([byte]) * VALUE for byte in filled], "a page was stale"
        return took

    def store(pages: list[int], byte: int) -> list[float]:
        def one(number: int) -> None:
            at = pages[number] * VALUE
            memory[at : at + VALUE] = value

        value = bytes([byte]) * VALUE
        return each_us(len(pages), one)

    def add_up(number: int) -> list[float]:
        def each_block() -> None:
            for start in range(0, ARRAY // 8, BLOCK // 8):
                assert array[start : start + BLOCK // 8].sum() == number * BLOCK // 8

        return rate_gb_s(ARRAY, each_block)

    def overwrite(number: int) -> list[float]:
        def all_of_it() -> None:
            whole.prefetch(write=True)
            array[:] = number

        return rate_gb_s(ARRAY, all_of_it)

    return dsm.__version__, {"load": load, "store": store, "add up": add_up, "overwrite": overwrite}


if __name__ == "__main__":
    obey(_begin)
