"""Ray as an alternative: a cluster of two nodes on this host.

``python -m benchmarks.alternatives.ray_objects FOLDER``
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from benchmarks.alternatives.alternative import (
    ARRAY,
    LOCAL_SCAN,
    READ_AGAIN,
    REMOTE_READ,
    SCAN,
    VALUE,
    VALUES,
    Alternative,
    Latency,
    Rate,
)
from benchmarks.alternatives.client import Client, Operations, each_us, obey, rate_gb_s
from benchmarks.child import python

STORE: Final = 200 << 20
"""Bytes of the object store of a node: some arrays, and twice what ray wants at least."""


def start(folder: Path) -> Client:
    """A driver, which starts a cluster that keeps its sockets and logs in ``folder``."""
    (folder / "ray").mkdir()  # the address of the cluster is written there, instead of where all clusters of a host are
    return Client(python(__name__, str(folder)), {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": str(folder)})


class _Holder:
    """An actor on the other node, which holds a value and makes arrays."""

    def __init__(self) -> None:
        self._value = os.urandom(VALUE)

    def value(self) -> bytes:
        return self._value

    def array(self) -> Any:
        import numpy as np
        import ray

        return ray.put(np.ones(ARRAY // 8))


def _begin(stack: ExitStack) -> tuple[str, Operations]:
    import numpy as np
    import ray
    from ray.cluster_utils import Cluster

    node: dict[str, Any] = {"num_cpus": 1, "object_store_memory": STORE}
    cluster = Cluster(True, head_node_args=node | {"include_dashboard": False, "temp_dir": sys.argv[1]})
    stack.callback(cluster.shutdown)
    cluster.add_node(**node, resources={"other": 1})
    ray.init(cluster.address, log_to_driver=False, logging_level="error")
    stack.callback(ray.shutdown)
    holder = ray.remote(_Holder).options(num_cpus=0, resources={"other": 1}).remote()
    values = [ray.put(os.urandom(VALUE)) for _ in range(VALUES)]
    array = ray.put(np.ones(ARRAY // 8))

    def get(count: int) -> list[float]:
        return each_us(count, lambda number: ray.get(values[number % VALUES]))

    def call(count: int) -> list[float]:
        took = each_us(count, lambda _: ray.get(holder.value.remote()))
        assert len(ray.get(holder.value.remote())) == VALUE
        return took

    def add_up(array: Any) -> None:
        assert ray.get(array).sum() == ARRAY // 8

    def fetch() -> list[float]:
        there = ray.get(holder.array.remote())
        return rate_gb_s(ARRAY, lambda: add_up(there))

    return f"ray {ray.__version__}", {
        "get": get,
        "call": call,
        "sum": lambda: rate_gb_s(ARRAY, lambda: add_up(array)),
        "fetch": fetch,
    }


ALTERNATIVE: Final = Alternative(
    name="ray",
    install="pip install ray",
    about="""\
**Ray** (two nodes on this host). ray.get of a 4 KiB object in the store of the own node, and a call of an actor on
the other node that returns 4 KiB, stand beside a remote read; an array of another node, fetched by ray.get and
summed, beside the scan; one in the own node's store beside reading an array that is on the node already. Objects are
immutable, so a local one is plain shared memory without any protocol, as fast as memory, and a lost one can be
computed again; but changing one element means another object. Ray also schedules tasks and actors over a cluster,
which dsm leaves to others.""",
    measured=(
        Latency("get", "ray: get of a local 4 KiB object", (REMOTE_READ, READ_AGAIN)),
        Latency("call", "ray: actor call returning 4 KiB", (REMOTE_READ,)),
        Rate("fetch", "ray: array of another node", (SCAN,)),
        Rate("sum", "ray: local array", (LOCAL_SCAN,)),
    ),
    start=start,
)

if __name__ == "__main__":
    obey(_begin)
