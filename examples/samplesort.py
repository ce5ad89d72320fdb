"""A parallel sort: sort your part, agree on where to cut, merge what falls between your cuts.

Run it with: dsm run --nodes 2 --procs 2 python examples/samplesort.py
"""

import sys

import numpy as np
from numpy.typing import NDArray

import dsm

PAGE = 512  # numbers


def sort(count: int = 1 << 22) -> NDArray[np.float64]:
    rank, ranks = dsm.rank(), dsm.world_size()
    if count < 2 * PAGE * ranks:
        raise SystemExit(f"{count} numbers are too few for {ranks} processes: sort {2 * PAGE * ranks} or more")
    everybody = dsm.Barrier("sort", ranks)
    keys = dsm.attach("keys", shape=count).array
    result = dsm.attach("sorted", shape=count).array
    samples = dsm.attach("samples", shape=(ranks, PAGE)).array
    cuts = dsm.attach("cuts", shape=(ranks, PAGE), dtype="i8").array

    start = count * rank // ranks // PAGE * PAGE
    stop = count * (rank + 1) // ranks // PAGE * PAGE if rank < ranks - 1 else count
    mine = keys[start:stop]
    mine[:] = np.random.Generator(np.random.PCG64(0).advance(start)).random(stop - start)
    everybody.wait()

    mine.sort()
    samples[rank] = mine[:: max(len(mine) // PAGE, 1)][:PAGE]
    everybody.wait()

    splitters = np.sort(samples, axis=None)[PAGE::PAGE]
    cuts[rank, : ranks + 1] = [start, *start + np.searchsorted(mine, splitters), stop]
    everybody.wait()

    between = [keys[cuts[other, rank] : cuts[other, rank + 1]] for other in range(ranks)]
    begin = (cuts[:, rank] - cuts[:, 0]).sum()
    merged = np.concatenate(between)
    merged.sort(kind="stable")  # which merges runs that are sorted already
    result[begin : begin + len(merged)] = merged
    everybody.wait()
    return result


if __name__ == "__main__":
    result = sort(*map(int, sys.argv[1:]))
    if dsm.rank() == 0:
        print(f"{len(result)} numbers, sorted: {bool((result[1:] >= result[:-1]).all())}")
