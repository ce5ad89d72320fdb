"""One of the demo's processes: ``dsm run -- python -m dsm.demo.worker OUTPUT ITERATIONS``.

Between attaching and the last barrier this is what any program on dsm looks like. Rank 0 also brings the photograph,
shows the progress, checks the result and draws.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import numpy as np
from rich.console import Console
from rich.progress import track

import dsm
from dsm.demo import ownership, photograph, pictures, report, solver
from dsm.demo.solver import Planes

_REGION: Final = "demo picture"


def main() -> int:
    """Exit code 0 if all is well, on every rank; 1 on rank 0 if the result differs."""
    output, iterations = Path(sys.argv[1]), int(sys.argv[2])
    barrier = dsm.Barrier("demo", dsm.world_size())
    if dsm.rank() == 0:
        return _lead(barrier, output, iterations)
    barrier.wait()  # the picture is there
    with dsm.attach(_REGION, create=False) as region:
        _solve(region.array, barrier, range(iterations))
        report.leave(region.stats())
        barrier.wait()  # all reports are there
    return 0


def _lead(barrier: dsm.Barrier, output: Path, iterations: int) -> int:
    clean = photograph.load()
    noisy = photograph.with_noise(clean)
    # Two pictures, this step's and the next one's, which change roles after each step.
    with dsm.attach(_REGION, shape=(2, *noisy.shape), dtype=noisy.dtype, create=True) as region:
        buffers = region.array
        buffers[0] = noisy
        barrier.wait()
        steps = track(range(iterations), "diffusing", console=Console(stderr=True))
        _solve(buffers, barrier, steps)
        report.leave(region.stats())
        barrier.wait()
        last = iterations % 2
        owners = ownership.of_pixels(region, last * noisy.nbytes, noisy.shape)
        result = buffers[last].copy()
    paths = pictures.draw(output, noisy, result, owners)
    same = np.array_equal(result.view(np.uint8), solver.diffuse(noisy, iterations).view(np.uint8))
    quality = photograph.psnr(noisy, clean), photograph.psnr(result, clean)
    report.show(report.collect(dsm.world_size()), paths, quality, same)
    return 0 if same else 1


def _solve(buffers: Planes, barrier: dsm.Barrier, steps: Iterable[int]) -> None:
    """Diffuse this rank's band of rows, in step with the others."""
    start, stop = solver.band(buffers.shape[2], dsm.world_size(), dsm.rank())
    for number in steps:
        solver.step(buffers[number % 2], buffers[1 - number % 2], start, stop)
        barrier.wait()


if __name__ == "__main__":
    sys.exit(main())
