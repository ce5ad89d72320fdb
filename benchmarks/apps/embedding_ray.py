"""examples/embedding.py with ray: actors keep shares of the rows, tasks ask them for what they need.

An object of ray cannot change, so a table that does is kept by actors, and its rows travel by calls.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from examples.embedding import BAGS, DIMENSIONS, words

RANKS = 2


class Shard:
    def __init__(self, rank: int, rows: int) -> None:
        self.table = np.random.default_rng(0).normal(size=(rows, DIMENSIONS)).astype("f4")[rank::RANKS]

    def look_up(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = self.table[rows // RANKS]
        return found

    def halve(self, rows: NDArray[np.int64]) -> None:
        self.table[rows // RANKS] *= np.float32(0.5)


def answer(shards: list[Any], batch: int, rows: int) -> NDArray[np.float32]:
    wanted, where = np.unique(words(batch, rows), return_inverse=True)
    owner = wanted % RANKS
    parts = ray.get([shard.look_up.remote(wanted[owner == rank]) for rank, shard in enumerate(shards)])
    found = np.empty((len(wanted), DIMENSIONS), "f4")
    for rank, part in enumerate(parts):
        found[owner == rank] = part
    best: NDArray[np.float32] = found[where.reshape(BAGS, -1)].mean(axis=1).max(axis=1)
    return best


def serve(rows: int, epochs: int, batches: int) -> tuple[float, NDArray[np.float32]]:
    actor: Any = ray.remote(num_cpus=0)(Shard)
    task: Any = ray.remote(answer)
    shards = [actor.remote(rank, rows) for rank in range(RANKS)]
    ray.get([task.remote(shards, 0, rows) for _ in range(RANKS)])  # or the start of its processes would be measured
    answers: list[NDArray[np.float32]] = []
    begin = time.perf_counter()
    for epoch in range(1, epochs + 1):
        answers += ray.get([task.remote(shards, len(answers) + number, rows) for number in range(batches)])
        learnt = np.unique(words(-epoch % 1000, rows)[:8])
        ray.get([shard.halve.remote(learnt[learnt % RANKS == rank]) for rank, shard in enumerate(shards)])
    took = time.perf_counter() - begin
    for shard in shards:
        ray.kill(shard)
    return took, np.array(answers)
