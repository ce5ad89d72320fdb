"""The demo's input: a real photograph as colour planes, and how far another picture is from it."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from dsm.demo.solver import Planes

NOISE: Final = 0.08
"""Standard deviation of the noise, of a range from black 0 to white 1: a small sensor in a dark room."""

_SEED: Final = 1906  # the year in which the person in the photograph was born


def load() -> Planes:
    """Rear Admiral Grace M. Hopper, the photograph that ships with matplotlib (US Navy, public domain).

    Shape (3, 600, 512): a row of a plane is 512 numbers of 8 bytes, so it fills one page of 4 KiB.
    """
    from matplotlib import cbook
    from PIL import Image

    with Image.open(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)) as image:
        pixels = np.asarray(image.convert("RGB"), dtype=np.float64)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)) / 255


def with_noise(clean: Planes) -> Planes:
    """The picture with normal noise of :data:`NOISE`; the same noise every time. Values may leave [0, 1]."""
    return clean + np.random.default_rng(_SEED).normal(0.0, NOISE, clean.shape)


def pixels(planes: Planes) -> NDArray[np.uint8]:
    """Shape (rows, columns, 3), as image files hold them."""
    return np.rint(np.clip(planes, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)


def psnr(picture: Planes, clean: Planes) -> float:
    """Peak signal-to-noise ratio in decibel: 20 looks grainy, 30 looks clean."""
    return float(-10 * np.log10(np.mean(np.square(picture - clean))))
