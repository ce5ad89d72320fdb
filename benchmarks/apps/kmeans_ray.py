"""examples/kmeans.py with ray: actors keep the points, the driver sends centres and adds up sums."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from examples.kmeans import draw, sums

RANKS = 2


class Worker:
    def __init__(self, blocks: range) -> None:
        self.points = [draw(block) for block in blocks]

    def centres(self, count: int) -> NDArray[np.float64]:
        return self.points[0][:count]

    def sums(self, centres: NDArray[np.float64]) -> Any:
        return sum(sums(points, centres) for points in self.points)


def cluster(blocks: int, iterations: int) -> tuple[float, NDArray[np.float64]]:
    actor: Any = ray.remote(Worker)
    workers = [actor.remote(range(blocks * r // RANKS, blocks * (r + 1) // RANKS)) for r in range(RANKS)]
    centres = ray.get([worker.centres.remote(32) for worker in workers])[0]
    begin = time.perf_counter()
    for _ in range(iterations):
        given = ray.put(centres)
        total = sum(ray.get([worker.sums.remote(given) for worker in workers]))
        centres = total / np.maximum(total[:, -1:], 1)
    took = time.perf_counter() - begin
    for worker in workers:
        ray.kill(worker)
    return took, centres
