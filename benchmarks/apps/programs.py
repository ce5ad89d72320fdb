"""The programs: each of the examples, with its sizes, and what its user would have picked without dsm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

Sizes = dict[str, int]


@dataclass(frozen=True)
class Rival:
    """The same program on something else. ``needs``: the module without which it is absent. ``moved``: the bytes that
    its two processes send each other, where that can be told from the sizes."""

    label: str
    module: str
    needs: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    moved: Callable[[Sizes], int] | None = None


@dataclass(frozen=True)
class Program:
    """``exact``: the result is the same to the last bit however many processes compute it; otherwise sums are added
    in another order. ``barriers_before``: how many barriers are passed before the data are there. ``note``: on the
    figure for private memory."""

    name: str
    function: str
    full: Sizes
    quick: Sizes
    rivals: tuple[Rival, ...]
    exact: bool = True
    barriers_before: int = 1
    note: str = ""


_TCP: Final = {
    "MPIR_CVAR_NOLOCAL": "1",  # MPICH
    "FI_PROVIDER": "tcp",
    "OMPI_MCA_pml": "ob1",  # Open MPI
    "OMPI_MCA_btl": "tcp,self",
}
"""Makes MPI take the processes of one host for those of two."""


def _mpi4py(module: str, moved: Callable[[Sizes], int]) -> tuple[Rival, ...]:
    return (
        Rival("mpi4py over TCP", module, "mpi4py", _TCP, moved),
        Rival("mpi4py on one host", module, "mpi4py", {}, moved),
    )


PROGRAMS: Final = (
    Program(
        "stencil",
        "solve",
        {"side": 2048, "steps": 30},
        {"side": 512, "steps": 10},
        _mpi4py("stencil_mpi4py", lambda sizes: 2 * 8 * sizes["side"] * sizes["steps"]),
    ),
    Program(
        "kmeans",
        "cluster",
        {"blocks": 512, "iterations": 8},
        {"blocks": 32, "iterations": 3},
        (Rival("ray", "kmeans_ray", "ray", moved=lambda sizes: 2 * 2 * 8 * 32 * 32 * sizes["iterations"]),),
        exact=False,
    ),
    Program(
        "pagerank",
        "rank_pages",
        {"iterations": 50},
        {"iterations": 3},
        (Rival("multiprocessing.shared_memory", "pagerank_shared_memory"),),
        barriers_before=2,
    ),
    Program(
        "samplesort",
        "sort",
        {"count": 1 << 22},
        {"count": 1 << 17},
        _mpi4py("samplesort_mpi4py", lambda sizes: 8 * sizes["count"] // 2),
        note="It fills new memory: 60 ms more where the kernel has none at hand that is quick to hand out. "
        "On dsm the node agent does that, on another processor.",
    ),
    Program(
        "embedding",
        "serve",
        {"rows": 1 << 16, "epochs": 4, "batches": 16},
        {"rows": 1 << 12, "epochs": 2, "batches": 4},
        (Rival("ray", "embedding_ray", "ray"),),
    ),
)
