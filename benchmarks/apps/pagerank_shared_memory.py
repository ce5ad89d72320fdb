"""examples/pagerank.py with the standard library's shared memory, which is of one host."""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.shared_memory import SharedMemory
from multiprocessing.synchronize import Barrier

import numpy as np
from numpy.typing import NDArray

from examples.pagerank import load

RANKS = 2


def work(rank: int, name: str, count: int, iterations: int, damping: float, everybody: Barrier) -> None:
    memory = SharedMemory(name)
    scores = np.ndarray((2, count), buffer=memory.buf)
    _, edges = load()
    links = np.bincount(edges[0], minlength=count).astype("f8")
    borders = edges[1, edges.shape[1] * np.arange(1, RANKS) // RANKS]
    start, stop = [0, *borders.tolist(), count][rank : rank + 2]
    sources, targets = edges[:, slice(*np.searchsorted(edges[1], [start, stop]))].copy()
    targets -= start
    scores[0, start:stop] = 1 / count
    everybody.wait()
    for number in range(iterations):
        old, new = scores[number % 2], scores[1 - number % 2]
        received = np.bincount(targets, (old / np.maximum(links, 1))[sources], minlength=stop - start)
        idle = old[links == 0].sum()
        new[start:stop] = (1 - damping + damping * idle) / count + damping * received
        everybody.wait()
    del scores, old, new
    memory.close()


def rank_pages(iterations: int, damping: float = 0.85) -> tuple[float, NDArray[np.float64]]:
    count = len(load()[0])
    memory = SharedMemory(create=True, size=2 * 8 * count)
    try:
        context = multiprocessing.get_context("fork")
        everybody = context.Barrier(RANKS + 1)
        arguments = (memory.name, count, iterations, damping, everybody)
        processes = [context.Process(target=work, args=(rank, *arguments)) for rank in range(RANKS)]
        for process in processes:
            process.start()
        everybody.wait()
        begin = time.perf_counter()
        for _ in range(iterations):
            everybody.wait()
        took = time.perf_counter() - begin
        for process in processes:
            process.join()
        return took, np.ndarray((2, count), buffer=memory.buf)[iterations % 2].copy()
    finally:
        memory.close()
        memory.unlink()
