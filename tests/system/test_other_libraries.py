"""Regions and primitives in the hands of multiprocessing, concurrent.futures, joblib and torch, on two nodes.

They travel in pickles, by name; a worker that is to be on the other node has its own ``DSM_NODE``.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from typing import Any

import pytest
from cluster import Cluster

import dsm

KINDS = ["Lock", "RLock", "Event", "Condition", "Semaphore", "BoundedSemaphore", "Counter", "Barrier"]


def move_to(node: str) -> None:
    """This process belongs to another node from now on: what it attaches is there."""
    import os

    os.environ["DSM_NODE"] = node


def add_rank(region: Any, lock: Any, counter: Any, rank: int) -> tuple[str, float]:
    """What a worker does: one row of its own, one word that is everybody's."""
    with lock:
        region.array[0, 0] += 1
    region.array[rank, 1:] = rank
    return str(counter.add(1)), float(region.array[rank].sum())


def all_of_it(region: Any, counter: Any, workers: int) -> list[Any]:
    array = region.array
    return [array[0, 0].item(), array[1:, 1].tolist(), counter.value, workers]


WANTED = [5.0, [1.0, 2.0, 3.0, 4.0, 5.0], 5, 5]


def with_multiprocessing(method: str, node: str) -> list[Any]:
    import multiprocessing

    context: Any = multiprocessing.get_context(method)
    region = dsm.attach("m", shape=(6, 600), dtype="f8")
    lock, counter, start = dsm.Lock("m"), dsm.Counter("m.done"), dsm.Barrier("m.start", 5)
    workers = [
        context.Process(target=worker, args=(node if rank % 2 else None, region, lock, counter, start, rank))
        for rank in range(1, 6)
    ]
    for process in workers:
        process.start()
    for process in workers:
        process.join()
    return all_of_it(region, counter, sum(process.exitcode == 0 for process in workers))


def worker(node: str | None, region: Any, lock: Any, counter: Any, start: Any, rank: int) -> None:
    if node:
        move_to(node)
        region = dsm.attach(region.name)
    start.wait()
    add_rank(region, lock, counter, rank)


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_multiprocessing(cluster: Cluster, method: str) -> None:
    also = (move_to, add_rank, all_of_it, worker)
    assert cluster.run(with_multiprocessing, method, str(cluster.path(1)), also=also) == WANTED


def with_futures(method: str, node: str) -> list[Any]:
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    region = dsm.attach("f", shape=(6, 600), dtype="f8")
    lock, counter = dsm.Lock("f"), dsm.Counter("f.done")
    context: Any = multiprocessing.get_context(method)
    with ProcessPoolExecutor(3, mp_context=context, initializer=move_to, initargs=(node,)) as pool:
        done = list(pool.map(add_rank, *zip(*[(region, lock, counter, rank) for rank in range(1, 6)], strict=True)))
    return all_of_it(region, counter, len(done))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_process_pool_executor(cluster: Cluster, method: str) -> None:
    also = (move_to, add_rank, all_of_it)
    assert cluster.run(with_futures, method, str(cluster.path(1)), also=also) == WANTED


def with_joblib(node: str) -> list[Any]:
    import joblib

    region = dsm.attach("j", shape=(6, 600), dtype="f8")
    lock, counter = dsm.Lock("j"), dsm.Counter("j.done")
    with joblib.parallel_config("loky", initializer=move_to, initargs=(node,)):
        done = joblib.Parallel(2)(joblib.delayed(add_rank)(region, lock, counter, rank) for rank in range(1, 6))
    joblib.externals.loky.get_reusable_executor().shutdown(wait=True)
    return all_of_it(region, counter, len(done))


def test_workers_of_joblib(cluster: Cluster) -> None:
    also = (move_to, add_rank, all_of_it)
    assert cluster.run(with_joblib, str(cluster.path(1)), also=also) == WANTED


# --- torch ----------------------------------------------------------------------------------------------------------


def with_torch(extra: str, rank: int) -> list[Any]:
    import sys

    if extra:
        sys.path.append(extra)
    import torch

    tensor = torch.frombuffer(dsm.attach("t", size=8 * 600).buf, dtype=torch.float64)
    lock, barrier = dsm.Lock("t"), dsm.Barrier("t.end", 2)
    for _ in range(10):
        with lock:
            tensor.add_(rank + 1)
    barrier.wait()
    return [tensor.shape[0], tensor.unique().tolist()]


def where_torch_is() -> str | None:
    """The folder to add to the path, empty if there is none to add; None without torch."""
    if importlib.util.find_spec("torch") is not None:
        return ""
    debian = "/usr/lib/python3/dist-packages"
    try:
        code = f"import sys; sys.path.append({debian!r}); import torch"
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    except subprocess.CalledProcessError:
        return None
    return debian


def test_tensors_of_torch(cluster: Cluster) -> None:
    extra = where_torch_is()
    if extra is None:
        pytest.skip("torch is not installed: pip install torch, or on Debian apt-get install python3-torch")
    children = [cluster.start(with_torch, extra, rank, node=rank) for rank in range(2)]
    assert [child.result() for child in children] == [[600, [30.0]]] * 2


# --- pickles --------------------------------------------------------------------------------------------------------


def make_pickles(kinds: list[str]) -> dict[str, str]:
    import pickle

    made: dict[str, Any] = {kind: getattr(dsm, kind)(f"p.{kind}") for kind in kinds if kind != "Barrier"}
    made |= {"Barrier": dsm.Barrier("p.Barrier", 3, timeout=7), "attach": dsm.attach("p", shape=(2, 3), dtype="i4")}
    made["Semaphore"].acquire()
    made["Event"].set()
    return {kind: pickle.dumps(each).hex() for kind, each in made.items()}


def read_pickles(pickles: dict[str, str]) -> dict[str, str]:
    """What each pickle comes to: the object's text, or the error's."""
    import pickle

    def read(kind: str) -> str:
        try:
            found = pickle.loads(bytes.fromhex(pickles[kind]))
        except dsm.DsmError as error:
            return f"{type(error).__name__}: {error}"
        return f"{found!r} {found.get_value() if kind == 'Semaphore' else ''}{kind == 'Event' and found.is_set()}"

    return {kind: read(kind) for kind in pickles}


def names_in_use(cluster: Cluster) -> list[str]:
    told = cluster.status()["cluster"]
    return sorted(row["name"] for key in ("regions", "primitives") for row in told[key])


def test_a_pickle_is_read_on_another_node_of_its_cluster(cluster: Cluster) -> None:
    pickles = cluster.run(make_pickles, KINDS)
    read = cluster.run(read_pickles, pickles, node=1)
    assert read["attach"].startswith("<dsm.Region 'p': 24 bytes, shape (2, 3), dtype '<i4'")
    assert "0" in read["Semaphore"] and "True" in read["Event"] and "of 3" in read["Barrier"]
    assert all(f"p.{kind}" in read[kind] and kind in read[kind] for kind in KINDS)


def test_a_pickle_of_another_cluster_is_an_error_and_makes_nothing(cluster: Cluster, cluster3: Cluster) -> None:
    pickles = cluster.run(make_pickles, KINDS)
    for text in cluster3.run(read_pickles, pickles).values():
        assert text.startswith("ClusterMismatch: 'p") and str(cluster3.path(0)) in text
    assert names_in_use(cluster3) == []
