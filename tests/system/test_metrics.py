"""Figures for Prometheus, of real services."""

from __future__ import annotations

import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator

import pytest
from cluster import LIMIT_S, TREE, Cluster, until
from prometheus_client.parser import text_string_to_metric_families

import dsm
from dsm import launch


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def scraped(port: int) -> dict[tuple[str, str], float]:
    """Values by name and by the labels in order."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=LIMIT_S) as answer:
        text = answer.read().decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {(sample.name, " ".join(sample.labels.values())): sample.value for sample in samples}


def start(module: str, port: int, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", module, *arguments, "--metrics", f"127.0.0.1:{port}"],
        env={"PYTHONPATH": str(TREE)}, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.fixture
def measured(cluster: Cluster) -> Iterator[tuple[Cluster, int]]:
    """A third node, with metrics."""
    port = free_port()
    node = start("nodes", port, "--directory", cluster.directory.address, "--socket", str(cluster.path(2)),
                 "--listen", launch.LOOPBACK, "--name", "measured")  # fmt: skip
    until(cluster.path(2).exists, "the node")
    until(lambda: _answers(port), "the figures")
    yield cluster, port
    node.terminate()
    node.communicate(timeout=LIMIT_S)
    assert node.returncode == 0


def touch() -> int:
    region = dsm.attach("touched", shape=(8, 512), dtype="i8")
    region.array[:] += 1
    return int(region.array.sum())


def test_a_node_tells_its_faults(measured: tuple[Cluster, int]) -> None:
    cluster, port = measured
    assert scraped(port)["dsm_node_lease_seconds", ""] > 0
    cluster.run(touch, node=0)
    assert cluster.run(touch, node=2) == 2 * 8 * 512
    found = scraped(port)
    faults = sum(
        value for (name, which), value in found.items() if name == "dsm_node_faults_total" and "touched" in which
    )
    assert faults >= 1
    assert found["dsm_node_received_bytes_total", "touched"] == 8 * 4096


def test_a_directory_tells_its_nodes_and_pages(cluster: Cluster) -> None:
    port = free_port()
    directory = start("directory", port, "--listen", f"tcp://127.0.0.1:{free_port()}")
    try:
        until(lambda: _answers(port), "the figures")
        found = scraped(port)
        assert found["dsm_directory_nodes", ""] == 0
        assert found["dsm_directory_transactions_total", ""] == 0
    finally:
        directory.terminate()
        directory.communicate(timeout=LIMIT_S)
    assert directory.returncode == 0


def _answers(port: int) -> bool:
    try:
        scraped(port)
    except OSError:
        return False
    return True


def test_where_nobody_can_listen_it_says_so() -> None:
    directory = start("directory", 1 << 17, "--listen", launch.LOOPBACK)
    _, err = directory.communicate(timeout=LIMIT_S)
    assert directory.returncode == 1
    assert b"cannot serve metrics at '127.0.0.1:131072'" in err and b"give HOST:PORT" in err
