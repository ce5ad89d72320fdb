"""Which Debian packages does everything else lean on? PageRank of the dependencies of Debian 12.

    dsm run --nodes 2 --procs 2 python examples/pagerank.py
"""

import lzma
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import dsm

PACKAGES = Path(__file__).with_name("debian-packages.txt.xz")  # a package a line, then what it depends on
PAGE = 512  # numbers


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
    links = dsm.attach("links").array.copy()
    count = len(links)
    scores = dsm.attach("scores", shape=(2, -(-count // PAGE) * PAGE)).array[:, :count]
    sources, targets = dsm.attach("edges").array
    # Whole pages of the scores, with about the same number of edges for each process.
    borders = targets[len(targets) * np.arange(1, ranks) // ranks] // PAGE * PAGE
    start, stop = [0, *borders, count][rank : rank + 2]
    mine = slice(*np.searchsorted(targets, [start, stop]))
    sources, targets = sources[mine].copy(), targets[mine] - start
    scores[0, start:stop] = 1 / count
    everybody.wait()
    for number in range(iterations):
        old, new = scores[number % 2].copy(), scores[1 - number % 2]
        shares = old / np.maximum(links, 1)
        idle = old[links == 0].sum()  # who depends on nothing gives to all
        received = np.bincount(targets, shares[sources], minlength=stop - start)
        new[start:stop] = (1 - damping + damping * idle) / count + damping * received
        everybody.wait()
    return scores[iterations % 2]


if __name__ == "__main__":
    scores = rank_pages()
    if dsm.rank() == 0:
        names, _ = load()
        print(*(f"{scores[i]:.5f} {names[i]}" for i in np.argsort(-scores)[:10]), sep="\n")
