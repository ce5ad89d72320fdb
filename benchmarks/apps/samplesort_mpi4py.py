"""examples/samplesort.py with mpi4py: what falls between one's cuts comes with Alltoallv."""

from __future__ import annotations

import time

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

PAGE = 512


def sort(count: int) -> tuple[float, NDArray[np.float64] | None]:
    world = MPI.COMM_WORLD
    rank, ranks = world.rank, world.size
    start = count * rank // ranks // PAGE * PAGE
    stop = count * (rank + 1) // ranks // PAGE * PAGE if rank < ranks - 1 else count
    mine = np.random.Generator(np.random.PCG64(0).advance(start)).random(stop - start)
    world.Barrier()
    begin = time.perf_counter()

    mine.sort()
    samples = np.empty((ranks, PAGE))
    world.Allgather(mine[:: max(len(mine) // PAGE, 1)][:PAGE].copy(), samples)

    splitters = np.sort(samples, axis=None)[PAGE::PAGE]
    cuts = np.array([0, *np.searchsorted(mine, splitters), len(mine)])
    there = np.diff(cuts)
    here = np.empty_like(there)
    world.Alltoall(there, here)

    merged = np.empty(here.sum())
    world.Alltoallv([mine, there, cuts[:-1], MPI.DOUBLE], [merged, here, here.cumsum() - here, MPI.DOUBLE])
    merged.sort(kind="stable")
    world.Barrier()
    took = time.perf_counter() - begin
    parts = world.gather(merged)
    return took, np.concatenate(parts) if parts else None
