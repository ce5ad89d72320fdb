"""k-means: every process assigns its own blocks of points; what travels are sums.

Run it with: dsm run --nodes 2 --procs 2 python examples/kmeans.py
"""

import sys

import numpy as np
from numpy.typing import NDArray

import dsm

BLOCK, DIMENSIONS, CLUSTERS = 512, 32, 32  # a block, and what is computed from it, stays in the cache


def draw(block: int) -> NDArray[np.float64]:
    """Points around CLUSTERS places. Their last coordinate is 1, so that a sum of points also counts them."""
    places = np.random.default_rng(0).uniform(-10, 10, (CLUSTERS, DIMENSIONS))
    dice = np.random.default_rng(block + 1)
    points = places[dice.integers(CLUSTERS, size=BLOCK)] + dice.normal(size=(BLOCK, DIMENSIONS))
    points[:, -1] = 1
    return points


def sums(points: NDArray[np.float64], centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of the points that are nearest to each centre."""
    distances = (centres * centres).sum(axis=1) - 2 * points @ centres.T  # but for what is the same for all centres
    nearest = distances.argmin(axis=1)
    return (nearest == np.arange(CLUSTERS)[:, None]).astype("f8") @ points


def cluster(blocks: int = 512, iterations: int = 20) -> NDArray[np.float64]:
    rank, ranks = dsm.rank(), dsm.world_size()
    everybody = dsm.Barrier("sums", ranks)
    points = dsm.attach("points", shape=(blocks, BLOCK, DIMENSIONS)).array
    mine = range(blocks * rank // ranks, blocks * (rank + 1) // ranks)
    for block in mine:
        points[block] = draw(block)
    # A page for each process, and that twice: who is ahead does not write where others still read.
    shape = (2, ranks, CLUSTERS, DIMENSIONS)
    partial = dsm.attach("partial sums", shape=shape, page_size=8 * CLUSTERS * DIMENSIONS).array
    everybody.wait()
    centres = points[0, :CLUSTERS].copy()
    for number in range(iterations):
        partial[number % 2, rank] = sum(sums(points[block], centres) for block in mine)
        everybody.wait()
        total = partial[number % 2].sum(axis=0)
        centres = total / np.maximum(total[:, -1:], 1)
    return centres


if __name__ == "__main__":
    result = cluster(*map(int, sys.argv[1:]))
    if dsm.rank() == 0:
        print(f"{len(result)} centres, the first at {result[0, :3].round(3)}...")
