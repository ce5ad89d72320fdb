"""The cluster of docker-compose.yml under everything that happens to containers: ``make test-cluster``."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from containers import NODES, Containers, Program

from dsm.constants import LEASE_S

RANKS = 3
SECONDS = 8
"""How long the applications count, where nobody is given up."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Containers]:
    containers = Containers(f"dsm{os.getpid()}")
    try:
        containers.up()
        yield containers
    finally:
        containers.down()


@pytest.fixture(autouse=True)
def everybody_is_there(cluster: Containers) -> None:
    """Before each test; what the one before did is over."""
    cluster.wait_for(*NODES)


def counting(cluster: Containers, seconds: float) -> list[Program]:
    """A program on each node, which counts for so long."""
    cluster.run("node1", "forget")
    programs = [cluster.start(node, "count", rank, seconds) for rank, node in enumerate(NODES)]
    assert [program.hear() for program in programs] == ["ready"] * RANKS
    return programs


def check(cluster: Containers, done: list[int], node: str = "node1") -> None:
    """Every addition is there, and no other. ``done``: by whom, -1 where it was killed and nobody knows."""
    shared, twin, *own = cluster.run(node, "counted", RANKS)
    assert shared == twin
    known = [count for count in done if count >= 0]
    assert [own[rank] for rank, count in enumerate(done) if count >= 0] == known
    if len(known) == RANKS:
        assert shared == sum(known)
    else:
        assert shared >= sum(known)


def test_applications_in_different_containers_share_an_array(cluster: Containers) -> None:
    total = cluster.run("node1", "write", 7)
    assert [cluster.run(node, "read") for node in NODES] == [total] * 3


def pause(cluster: Containers, service: str) -> None:
    cluster.compose("pause", service)
    time.sleep(4)
    cluster.compose("unpause", service)


def restart(cluster: Containers, service: str) -> None:
    cluster.compose("restart", "--timeout", "1", service)


def kill(cluster: Containers, service: str) -> None:
    cluster.compose("kill", service)
    cluster.compose("up", "--detach", service)


def kill_agent(cluster: Containers, service: str) -> None:
    keeper = cluster.pid(service)
    for _ in range(3):
        (agent,) = Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()
        os.kill(int(agent), signal.SIGKILL)
        time.sleep(0.5)


HARMLESS: list[tuple[Callable[[Containers, str], None], str]] = [
    (pause, "directory"),
    (restart, "directory"),
    (kill, "directory"),
    (pause, "node2"),
    (kill_agent, "node2"),
]


@pytest.mark.parametrize(("fault", "service"), HARMLESS, ids=lambda what: getattr(what, "__name__", what))
def test_nobody_notices_more_than_a_pause(
    cluster: Containers, fault: Callable[[Containers, str], None], service: str
) -> None:
    programs = counting(cluster, SECONDS)
    fault(cluster, service)
    results = [program.result() for program in programs]
    print(f"longest pauses: {[round(longest_s, 2) for _, longest_s in results]} s")
    check(cluster, [done for done, _ in results])


def test_a_network_that_is_away_for_a_moment(cluster: Containers) -> None:
    programs = counting(cluster, SECONDS)
    cluster.cut_off("node2")
    time.sleep(4)
    cluster.join_again("node2")
    check(cluster, [program.result()[0] for program in programs])


def test_an_application_that_is_killed(cluster: Containers) -> None:
    programs = counting(cluster, SECONDS)
    cluster.docker("kill", programs[1].container)
    assert programs[1].code() != 0
    check(cluster, [programs[0].result()[0], -1, programs[2].result()[0]])


@pytest.mark.parametrize("fault", [restart, kill], ids=["restart", "kill"])
def test_a_node_that_goes_and_comes_back(cluster: Containers, fault: Callable[[Containers, str], None]) -> None:
    cluster.run("node1", "forget")
    others = [cluster.start(node, "count", rank, 2 * LEASE_S) for rank, node in ((0, "node1"), (2, "node3"))]
    assert [program.hear() for program in others] == ["ready", "ready"]
    fault(cluster, "node2")
    results = [program.result()[0] for program in others]
    cluster.wait_for(*NODES)
    assert cluster.run("node2", "counted", RANKS) == [sum(results)] * 2 + [results[0], 0, results[1]]


def test_a_partition_that_lasts(cluster: Containers) -> None:
    """Who is on the wrong side of it waits, and is ended; the others go on; the node comes back as another."""
    cluster.run("node1", "forget")
    programs = [cluster.start(node, "count", rank, 2 * LEASE_S) for rank, node in enumerate(NODES)]
    assert [program.hear() for program in programs] == ["ready"] * RANKS
    cluster.cut_off("node2")
    time.sleep(LEASE_S + 5)
    assert cluster.members("node1") == {"node1", "node3"}
    cluster.join_again("node2")
    programs[1].process.kill()  # its node cannot: it is in another container
    cluster.docker("rm", "--force", programs[1].container)
    programs[1].code()
    cluster.wait_for(*NODES)
    survivors = [programs[0].code(), programs[2].code()]
    # What only node2 had is lost, with a word to those who touch it; nothing else is.
    assert all(code in (0, 135) for code in survivors), survivors
    lost = cluster.run("node2", "reset_counted")
    print(f"lost pages: {lost}")
    assert all(page in (0, 2) for page in lost)


def test_a_network_with_delay_and_loss(cluster: Containers) -> None:
    if why := cluster.netem("node2", "delay", "20ms", "5ms", "loss", "2%"):
        pytest.skip(f"no delay and no loss on this machine: {why}")
    try:
        check(cluster, [program.result()[0] for program in counting(cluster, SECONDS)])
    finally:
        cluster.netem("node2")


def test_a_rolling_restart_under_applications_of_all_nodes(cluster: Containers) -> None:
    """The directory, and the agent of each node: nobody notices more than a pause."""
    programs = counting(cluster, SECONDS + 2 * len(NODES))
    restart(cluster, "directory")
    for node in NODES:
        said = cluster.docker(
            "exec", cluster.container(node), "dsm", "node", "--upgrade", "--socket", "/run/dsm/node.sock"
        )
        assert said.startswith(f"node {node!r} goes on as process ")
    results = [program.result() for program in programs]
    print(f"longest pauses: {[round(longest_s, 2) for _, longest_s in results]} s")
    check(cluster, [done for done, _ in results])


def test_a_rolling_restart_of_everything(cluster: Containers) -> None:
    """The directory, and each node whose own applications have ended, while those of another node go on."""
    cluster.run("node1", "forget")
    for service, busy in (("directory", "node1"), ("node2", "node1"), ("node3", "node1"), ("node1", "node2")):
        program = cluster.start(busy, "count", 0, 2)
        assert program.hear() == "ready"
        restart(cluster, service)
        assert program.result()[0] > 0
        cluster.wait_for(*NODES)


def test_the_file_is_one_for_both_generations_of_compose() -> None:
    file = ["--file", "docker-compose.yml", "config", "--quiet"]
    ran = []
    for compose in (["docker", "compose"], ["docker-compose"]):
        try:
            if subprocess.run([*compose, "version"], capture_output=True).returncode == 0:
                ran.append(subprocess.run([*compose, *file], capture_output=True).returncode)
        except FileNotFoundError:
            print(f"{' '.join(compose)} is not here")
    assert ran and not any(ran)
