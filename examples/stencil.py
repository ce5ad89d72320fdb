"""Heat spreads through a plate whose upper edge is hot: Jacobi's iteration, each process on a band of rows.

Run it with: dsm run --nodes 2 --procs 2 python examples/stencil.py
"""

import sys

import numpy as np
from numpy.typing import NDArray

import dsm


def solve(side: int = 2048, steps: int = 100) -> NDArray[np.float64]:
    rank, ranks = dsm.rank(), dsm.world_size()
    everybody = dsm.Barrier("step", ranks)
    # Two plates, this step's and the next one's. What neighbours exchange is a row: let that be the page.
    plates = dsm.attach("plate", shape=(2, side, side), page_size=8 * side).array
    start, stop = side * rank // ranks, side * (rank + 1) // ranks
    plates[:, start:stop] = 0.0  # who touches memory first has it
    if rank == 0:
        plates[:, 0] = 100.0
    start, stop = max(start, 1), min(stop, side - 1)
    now, after = plates
    everybody.wait()
    for _ in range(steps):
        inner = after[start:stop, 1:-1]
        np.add(now[start - 1 : stop - 1, 1:-1], now[start + 1 : stop + 1, 1:-1], out=inner)
        inner += now[start:stop, :-2]
        inner += now[start:stop, 2:]
        inner *= 0.25
        everybody.wait()
        now, after = after, now
    return now


if __name__ == "__main__":
    result = solve(*map(int, sys.argv[1:]))
    if dsm.rank() == 0:
        print(f"mean temperature {result.mean():.3f}")
