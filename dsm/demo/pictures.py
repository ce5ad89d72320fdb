"""The demo's three pictures: before, after, and who owns which page."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from matplotlib import colors, image, patches
from matplotlib.figure import Figure

from dsm.demo.ownership import Owners
from dsm.demo.photograph import pixels
from dsm.demo.solver import Planes

_TINTS: Final = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#f0e442")
"""Okabe and Ito's colours, which colour-blind people can tell apart. Pages of nobody stay grey."""

_STRENGTH: Final = 0.45
"""How much of an owner's colour lies over the picture."""

_PLANES: Final = ("red", "green", "blue")


def draw(output: Path, before: Planes, after: Planes, owners: Owners) -> list[Path]:
    """Write before.png, after.png and owners.png into ``output``; their paths."""
    paths = [output / name for name in ("before.png", "after.png", "owners.png")]
    image.imsave(paths[0], pixels(before))
    image.imsave(paths[1], pixels(after))
    _draw_owners(paths[2], after, owners)
    return paths


def _draw_owners(path: Path, planes: Planes, owners: Owners) -> None:
    present = [int(number) for number in np.unique(owners.ids)]
    tints = {number: colors.to_rgb(_TINTS[(number - 1) % len(_TINTS)]) for number in present if number}
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    figure.suptitle("Which node owns which page, in the memory of each colour plane")
    for axes, plane, ids, name in zip(figure.subplots(1, len(planes)), planes, owners.ids, _PLANES, strict=True):
        tinted = np.repeat(np.clip(plane, 0, 1)[..., None], 3, axis=-1)
        for number, tint in tints.items():
            mine = ids == number
            tinted[mine] = (1 - _STRENGTH) * tinted[mine] + _STRENGTH * np.array(tint)
        axes.imshow(tinted)
        axes.set_title(name)
        axes.set_axis_off()
    legend = [patches.Patch(color=tint, label=owners.names.get(n, f"node {n}")) for n, tint in tints.items()]
    if 0 in present:
        legend.append(patches.Patch(color="grey", label="nobody"))
    figure.legend(handles=legend, loc="outside lower center", ncols=len(legend), frameon=False)
    figure.savefig(path, dpi=100)
