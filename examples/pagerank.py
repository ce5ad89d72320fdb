"""Which Debian packages does everything else lean on? PageRank of the dependencies of Debian 12.

Run it with: dsm run --nodes 2 --procs 2 python examples/pagerank.py
"""

import lzma
import sys
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import dsm

PACKAGES = Path(__file__).with_name("debian-packages.txt.xz")  # a package a line, then what it depends on
PAGE = 4096  # numbers


@cache
def load() -> tuple[list[str], NDArray[np.int64]]:
    """The names, and two rows: who depends, on what; ordered by the latter."""
    with lzma.open(PACKAGES, "rt") as lines:
        packages = [line.split() for line in lines]
    number = {names[0]: i for i, names in enumerate(packages)}
    edges = np.array([(i, number[name]) for i, names in enumerate(packages) for name in names[1:]]).T
    return list(number), edges[:, edges[1].argsort(kind="stable")]


def rank_pages(iterations: int = 50, damping: float = 0.85) -> NDArray[np.float64]:
    rank, ranks = dsm.rank(), dsm.world_size()
    everybody = dsm.Barrier("iteration", ranks)
    if rank == 0:  # one process reads the graph; the others find it in memory
        names, edges = load()
        dsm.attach("edges", shape=edges.shape, dtype=edges.dtype).array[:] = edges
        dsm.attach("links", shape=len(names)).array[:] = np.bincount(edges[0], minlength=len(names))
    everybody.wait()
    links, edges = dsm.attach("links").array.copy(), dsm.attach("edges").array
    count = len(links)
    # Whole pages of the scores, with about the same number of edges, for each process.
    borders = edges[1, edges.shape[1] * np.arange(1, ranks) // ranks] // PAGE * PAGE
    start, stop = [0, *borders.tolist(), count][rank : rank + 2]
    sources, targets = edges[:, slice(*np.searchsorted(edges[1], [start, stop]))].copy()
    targets -= start
    # All scores are exchanged in each iteration: large pages, and prefetch, make few messages of that.
    region = dsm.attach("scores", shape=(2, -(-count // PAGE), PAGE), page_size=8 * PAGE)
    half = region.size // 2
    scores = region.array.reshape(2, -1)[:, :count]
    scores[0, start:stop] = 1 / count
    everybody.wait()
    for number in range(iterations):
        now, after = number % 2, 1 - number % 2
        region.prefetch(now * half, (now + 1) * half)
        old, new = scores[now], scores[after]
        received = np.bincount(targets, (old / np.maximum(links, 1))[sources], minlength=stop - start)
        idle = old[links == 0].sum()  # who depends on nothing gives to all
        region.prefetch(after * half + 8 * start, after * half + 8 * stop, write=True)
        new[start:stop] = (1 - damping + damping * idle) / count + damping * received
        everybody.wait()
    return scores[iterations % 2]


if __name__ == "__main__":
    result = rank_pages(*map(int, sys.argv[1:]))
    if dsm.rank() == 0:
        names, _ = load()
        print(*(f"{result[i]:.5f} {names[i]}" for i in np.argsort(-result)[:10]), sep="\n")
