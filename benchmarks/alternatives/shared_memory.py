"""multiprocessing.shared_memory as an alternative, for one host.

``python -m benchmarks.alternatives.shared_memory``
"""

from __future__ import annotations

import multiprocessing
import platform
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Final

from benchmarks.alternatives.alternative import (
    ARRAY,
    LOCAL_READ,
    LOCAL_SCAN,
    LOCAL_STORE,
    VALUE,
    Alternative,
    Latency,
    Rate,
)
from benchmarks.alternatives.client import Client, Operations, each_us, obey, rate_gb_s
from benchmarks.child import python


def start(folder: Path) -> Client:
    """A process that uses memory which another has filled."""
    return Client(python(__name__))


def _begin(stack: ExitStack) -> tuple[str, Operations]:
    import numpy as np

    shared = SharedMemory(create=True, size=ARRAY)
    stack.callback(shared.close)
    stack.callback(shared.unlink)
    _in_another_process(_fill, shared.name)
    memory = shared.buf
    assert memory is not None
    stack.callback(memory.release)
    value = bytes([1]) * VALUE

    def load(number: int) -> None:
        at = number * VALUE % ARRAY
        bytes(memory[at : at + VALUE])

    def store(number: int) -> None:
        at = number * VALUE % ARRAY
        memory[at : at + VALUE] = value

    def add_up() -> None:
        assert np.frombuffer(memory, "u1").view("u8").sum() == ARRAY // 8 * 0x0101010101010101 % 2**64

    return f"Python {platform.python_version()}", {
        "load": lambda count: each_us(count, load),
        "store": lambda count: each_us(count, store),
        "sum": lambda: rate_gb_s(ARRAY, add_up),
    }


def _in_another_process(function: Callable[[str], None], name: str) -> None:
    """One that knows this one's tracker of resources: the tracker of a stranger would unlink the memory at its end."""
    process = multiprocessing.get_context("spawn").Process(target=function, args=(name,))
    process.start()
    process.join()
    assert process.exitcode == 0


def _fill(name: str) -> None:
    """What the other process does."""
    shared = SharedMemory(name)
    assert shared.buf is not None
    shared.buf[:] = bytes([1]) * shared.size
    shared.close()


ALTERNATIVE: Final = Alternative(
    name="multiprocessing.shared_memory",
    install="nothing: it comes with Python",
    about="""\
**multiprocessing.shared_memory** (one host). Reading 4 KiB that another process has written, writing 4 KiB over them
and summing an array stand beside the same between two processes of one dsm node. It is nothing but memory: no agent
is asked at the first store, and nothing has to run. Between hosts it does nothing.""",
    measured=(
        Latency("load", "shared_memory: read 4 KiB", (LOCAL_READ,)),
        Latency("store", "shared_memory: write 4 KiB", (LOCAL_STORE,)),
        Rate("sum", "shared_memory: scan of an array", (LOCAL_SCAN,)),
    ),
    start=start,
)

if __name__ == "__main__":
    obey(_begin)
