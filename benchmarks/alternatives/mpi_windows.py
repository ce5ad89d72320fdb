"""MPI's one-sided communication as an alternative: two ranks over TCP.

``mpiexec -n 2 python -m benchmarks.alternatives.mpi_windows FIFO``

Rank 0 measures and is the child that is asked. Rank 1 owns the window. A target makes progress only inside of MPI, so
rank 1 waits there while rank 0 measures, which takes a processor; between measurements it reads the FIFO.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from benchmarks.alternatives.alternative import (
    ARRAY,
    BLOCK,
    OVERWRITE,
    READ_AGAIN,
    REMOTE_READ,
    SCAN,
    UPGRADE,
    VALUE,
    Alternative,
    Latency,
    Rate,
)
from benchmarks.alternatives.client import Absent, Client, Operations, each_us, obey, program, rate_gb_s
from benchmarks.child import python

LAUNCHER: Final = "mpiexec"
OWNER: Final = 1

OVER_TCP: Final = {
    "MPIR_CVAR_NOLOCAL": "1",  # MPICH: both ranks as if on hosts of their own
    "MPIR_CVAR_CH4_NETMOD": "ofi",  # MPICH with both transports: this one was the faster over TCP
    "FI_PROVIDER": "tcp",
    "FI_TCP_IFACE": "lo",
    "UCX_TLS": "tcp",  # MPICH that has only the other
    "OMPI_MCA_pml": "ob1",  # Open MPI
    "OMPI_MCA_btl": "tcp,self",
    "OMPI_MCA_btl_tcp_if_include": "lo",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",  # a machine with one core
    "OMPI_ALLOW_RUN_AS_ROOT": "1",  # in containers
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}
"""Shared memory turned off, whichever MPI it is; :func:`_check` looks whether that has worked."""


def start(folder: Path) -> Client:
    """Two ranks."""
    fifo = folder / "measure"
    os.mkfifo(fifo)
    return Client([program(LAUNCHER), "-n", "2", *python(__name__, str(fifo))], OVER_TCP)


def _window() -> Any:
    """Of the owner's memory, an array of ones. Everybody calls it."""
    from mpi4py import MPI

    window = MPI.Win.Allocate(ARRAY, 1, comm=MPI.COMM_WORLD)
    memory = window.tomemory()
    memory[:] = bytes([1]) * len(memory)
    MPI.COMM_WORLD.Barrier()
    return window


def _own() -> None:
    """Rank 1: be there for what rank 0 does, each time it says that it begins."""
    from mpi4py import MPI

    with Path(sys.argv[1]).open() as fifo:
        window = _window()
        for _ in fifo:
            MPI.COMM_WORLD.Barrier()
        window.Free()


def _begin(stack: ExitStack) -> tuple[str, Operations]:
    """Rank 0."""
    import numpy as np
    from mpi4py import MPI

    fifo = os.open(sys.argv[1], os.O_WRONLY)
    window = _window()
    stack.callback(window.Free)  # everybody calls it, too
    stack.callback(os.close, fifo)
    value, block = np.zeros(VALUE, "u1"), np.zeros(BLOCK, "u1")
    ones, ones_block = np.ones(VALUE, "u1"), np.ones(BLOCK, "u1")

    def at(number: int) -> int:
        return number * VALUE % ARRAY

    def get(number: int) -> None:
        window.Lock(OWNER, MPI.LOCK_SHARED)
        window.Get(value, OWNER, at(number))
        window.Unlock(OWNER)

    def put(number: int) -> None:
        window.Lock(OWNER, MPI.LOCK_EXCLUSIVE)
        window.Put(ones, OWNER, at(number))
        window.Unlock(OWNER)

    def get_flush(number: int) -> None:
        window.Get(value, OWNER, at(number))
        window.Flush(OWNER)

    def put_flush(number: int) -> None:
        window.Put(ones, OWNER, at(number))
        window.Flush(OWNER)

    def get_array() -> None:
        for start in range(0, ARRAY, BLOCK):
            window.Get(block, OWNER, start)
            window.Flush(OWNER)
            total = block.view("u8").sum()
            assert total == ones_block.view("u8").sum()

    def put_array() -> None:
        for start in range(0, ARRAY, BLOCK):
            window.Put(ones_block, OWNER, start)
            window.Flush(OWNER)

    def with_owner(operation: Callable[[], list[float]], locked: int | None = None) -> list[float]:
        """Measure while the owner is there, holding the window's lock or not."""
        os.write(fifo, b"now\n")
        if locked is not None:
            window.Lock(OWNER, locked)
        took = operation()
        if locked is not None:
            window.Unlock(OWNER)
        MPI.COMM_WORLD.Barrier()
        return took

    def each(operation: Callable[[int], None], locked: int | None = None) -> Callable[[int], list[float]]:
        return lambda count: with_owner(lambda: each_us(count, operation), locked)

    def rate(operation: Callable[[], None], locked: int) -> Callable[[], list[float]]:
        return lambda: with_owner(lambda: rate_gb_s(ARRAY, operation), locked)

    operations: dict[str, Callable[..., list[float]]] = {
        "get": each(get),
        "put": each(put),
        "get, flush": each(get_flush, MPI.LOCK_SHARED),
        "put, flush": each(put_flush, MPI.LOCK_EXCLUSIVE),
        "get array": rate(get_array, MPI.LOCK_SHARED),
        "put array": rate(put_array, MPI.LOCK_EXCLUSIVE),
    }
    _check(operations["get array"])
    return _version(MPI.Get_library_version()), operations


def _check(get_array: Callable[[], list[float]]) -> None:
    """Does what is transferred pass through the loopback interface?"""
    before = _loopback_bytes()
    get_array()
    if _loopback_bytes() - before < ARRAY:
        raise RuntimeError("this MPI uses shared memory although it was told not to")


def _loopback_bytes() -> int:
    found = re.search(r"^\s*lo:\s*(\d+)", Path("/proc/net/dev").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


def _version(library: str) -> str:
    """The first line of what MPI says of itself, and mpi4py's."""
    import mpi4py

    return f"{' '.join(library.splitlines()[0].replace('Version:', '').split())}, mpi4py {mpi4py.__version__}"


def _rank() -> int:
    try:
        from mpi4py import MPI
    except RuntimeError as error:  # mpi4py is there, its MPI not
        raise Absent(str(error)) from error
    if MPI.COMM_WORLD.size != 2:
        raise Absent(f"{LAUNCHER} does not belong to the MPI of mpi4py, {_version(MPI.Get_library_version())}")
    return int(MPI.COMM_WORLD.rank)


def _rank_begins(stack: ExitStack) -> tuple[str, Operations]:
    if _rank() == OWNER:
        _own()
        sys.exit()
    return _begin(stack)


ALTERNATIVE: Final = Alternative(
    name="mpi4py",
    install="pip install mpi4py mpich",
    about="""\
**mpi4py, one-sided** (two ranks over TCP with shared memory turned off, which is verified by the bytes that pass
through the loopback interface). Lock, Get, unlock of 4 KiB, and Get and flush with the lock held throughout, stand
beside a remote read; the same with Put beside an upgrade; Get of 1 MiB blocks, summed, beside the scan, Put of such
blocks beside overwriting an array. MPI is C, and both ranks keep a processor busy while they wait: nobody sleeps, so
nobody has to be woken, and it is several times as fast as a remote fault. The other side of it: the owner answers
only while it is inside of MPI itself (here it waits there all the time; an owner that computes makes the other wait),
every access is written out in the program, what comes is a copy that nobody invalidates, and a lost rank ends the
job. MPI also has collectives, datatypes and fast networks.""",
    measured=(
        Latency("get", "MPI: lock, Get 4 KiB, unlock", (REMOTE_READ, READ_AGAIN)),
        Latency("get, flush", "MPI: Get 4 KiB, flush", (REMOTE_READ, READ_AGAIN)),
        Latency("put", "MPI: lock, Put 4 KiB, unlock", (UPGRADE,)),
        Latency("put, flush", "MPI: Put 4 KiB, flush", (UPGRADE,)),
        Rate("get array", "MPI: Get of 1 MiB blocks", (SCAN,)),
        Rate("put array", "MPI: Put of 1 MiB blocks", (OVERWRITE,)),
    ),
    start=start,
)

if __name__ == "__main__":
    obey(_rank_begins)
