"""The fixtures that system tests share: clusters that leave nothing behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from cluster import Cluster
from noise import Probe


@pytest.fixture
def start_cluster() -> Iterator[Callable[..., Cluster]]:
    """Start a cluster of so many nodes (and shards); after the test, nothing of it may be left."""
    started: list[Cluster] = []

    def start(nodes: int, shards: int = 1) -> Cluster:
        started.append(Cluster(nodes, shards))
        return started[-1]

    yield start
    try:
        for cluster in started:
            cluster.check()
    finally:
        for cluster in started:
            cluster.clean()


@pytest.fixture
def cluster(start_cluster: Callable[[int], Cluster]) -> Cluster:
    """Two nodes."""
    return start_cluster(2)


@pytest.fixture
def cluster3(start_cluster: Callable[[int], Cluster]) -> Cluster:
    """Three nodes."""
    return start_cluster(3)


@pytest.fixture
def probe(cluster: Cluster) -> Iterator[Probe]:
    """Applications on both nodes that tell whether the cluster works; it must at the end."""
    probe = Probe(cluster)
    probe()
    yield probe
    probe.end()
