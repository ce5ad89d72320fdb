"""Edge-preserving diffusion of a picture: plain numpy on whatever memory it is given.

P. Perona and J. Malik, "Scale-space and edge detection using anisotropic diffusion", IEEE Transactions on Pattern
Analysis and Machine Intelligence 12(7), 1990: heat flows between neighbouring pixels in proportion to their
difference, except where the difference is so large that it must be an edge.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

Planes = NDArray[np.float64]
"""Colour planes, shape (planes, rows, columns); 0 is black, 1 is white."""

EDGE: Final = 0.05
"""The difference at which the flow is largest; a larger one is taken for an edge and smoothed less."""

RATE: Final = 0.03
"""The part of the flow that one step lets through. Stable up to 1/4, since a pixel has four neighbours; a small one
follows the differential equation more closely."""


def band(rows: int, bands: int, index: int) -> tuple[int, int]:
    """The rows ``[start, stop)`` of band ``index`` when ``rows`` are divided among ``bands`` as evenly as can be."""
    return rows * index // bands, rows * (index + 1) // bands


def step(source: Planes, target: Planes, start: int, stop: int) -> None:
    """Write one step of diffusion of ``source`` into rows ``[start, stop)`` of ``target``.

    Reads these rows of ``source`` and one more on each side. Every pixel is the result of the same additions,
    multiplications and divisions in the same order wherever the bands are cut, so it is the same to the last bit.
    (That is why the flow is the paper's rational one: numpy's exp may differ in the last bit with the position.)
    """
    for before, after in zip(source, target, strict=True):
        _step(before, after, start, stop)


def _step(source: NDArray[np.float64], target: NDArray[np.float64], start: int, stop: int) -> None:
    here = source[start:stop]
    above, below = max(start - 1, 0), min(stop + 1, len(source))
    # Flow across the horizontal borders of the rows, and across the vertical borders within each row.
    # Nothing flows across the border of the picture.
    down = np.zeros((stop - start + 1, source.shape[1]))
    down[above - start + 1 : below - start] = _flow(source[above : below - 1], source[above + 1 : below])
    right = np.zeros((stop - start, source.shape[1] + 1))
    right[:, 1:-1] = _flow(here[:, :-1], here[:, 1:])
    change = down[1:] - down[:-1]
    change += right[:, 1:] - right[:, :-1]
    change *= RATE
    np.add(here, change, out=target[start:stop])


def _flow(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """What flows from ``other`` to ``one``: difference / (1 + (difference / EDGE)²), the paper's second choice."""
    difference = other - one
    damping = difference * (1 / EDGE)
    damping *= damping
    damping += 1.0
    difference /= damping
    return difference


def diffuse(picture: Planes, iterations: int) -> Planes:
    """The picture after ``iterations`` steps, by one process on private memory; ``picture`` is not changed."""
    source, target = picture.copy(), np.empty_like(picture)
    for _ in range(iterations):
        step(source, target, 0, picture.shape[1])
        source, target = target, source
    return source
