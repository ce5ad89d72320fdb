"""Heat spreads through a plate whose upper edge is hot: Jacobi's iteration, each process on a band of rows.

    dsm run --nodes 2 --procs 2 python examples/stencil.py
"""

import numpy as np
from numpy.typing import NDArray

import dsm


def solve(side: int = 1024, steps: int = 200) -> NDArray[np.float64]:
    rank, ranks = dsm.rank(), dsm.world_size()
    everybody = dsm.Barrier("step", ranks)
    region = dsm.attach("plate", shape=(2, side, side))  # two plates: this step's and the next one's
    now, after = region.array
    start, stop = max(side * rank // ranks, 1), min(side * (rank + 1) // ranks, side - 1)
    if rank == 0:
        now[0] = after[0] = 100.0
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
    plate = solve()
    if dsm.rank() == 0:
        print(f"mean temperature {plate.mean():.3f}")
