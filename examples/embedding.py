"""An embedding table in service: all processes look rows up, the common ones far more often, and some rows change.

Run it with: dsm run --nodes 2 --procs 2 python examples/embedding.py
"""

import sys

import numpy as np
from numpy.typing import NDArray

import dsm

DIMENSIONS, BAGS, BAG = 64, 2048, 16


def words(batch: int, rows: int) -> NDArray[np.int64]:
    """The rows of BAGS texts of BAG words each; row 0 is the most common word, as Zipf's law has it."""
    return (np.random.default_rng(batch).zipf(1.3, (BAGS, BAG)) - 1) % rows


def serve(rows: int = 1 << 16, epochs: int = 4, batches: int = 32) -> NDArray[np.float32]:
    rank, ranks = dsm.rank(), dsm.world_size()
    everybody, turn = dsm.Barrier("epoch", ranks), dsm.Lock("turn")
    region = dsm.attach("table", shape=(rows, DIMENSIONS), dtype="f4")
    table = region.array
    shape = (epochs * batches, BAGS)
    answers = dsm.attach("answers", shape=shape, dtype="f4", page_size=4 * BAGS).array  # a page for each batch
    queue = dsm.attach("queue", shape=1, dtype="i8").array
    if rank == 0:
        table[:] = np.random.default_rng(0).normal(size=table.shape)
    everybody.wait()
    region.prefetch()  # in one go, since every node comes to need nearly all rows; rows that change come by themselves
    for epoch in range(1, epochs + 1):
        while True:
            with turn:  # whoever is free takes the next batch
                batch = int(queue[0])
                if batch < epoch * batches:
                    queue[0] += 1
            if batch == epoch * batches:
                break
            answers[batch] = table[words(batch, rows)].mean(axis=1).max(axis=1)
        everybody.wait()
        learnt = np.unique(words(-epoch % 1000, rows)[:8])  # some rows change, each by the hand of one process
        changed = learnt[learnt % ranks == rank]
        table[changed] *= np.float32(0.5)
        everybody.wait()
    return answers


if __name__ == "__main__":
    result = serve(*map(int, sys.argv[1:]))
    if dsm.rank() == 0:
        print(f"{result.size} answers, {result.mean():.4f} on average")
