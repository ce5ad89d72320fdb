"""Where no agent runs: the first application starts one for all of this user, which leaves with the last."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from application import hear, raised, say
from cluster import Child, Cluster, until

import dsm


@pytest.fixture
def host(start_cluster: Callable[[int], Cluster]) -> Cluster:
    """No service at all, and a runtime directory of its own."""
    cluster = start_cluster(0)
    (cluster.home / "run").mkdir(mode=0o700)
    return cluster


def start(host: Cluster, function: Callable[..., Any], *arguments: object, **options: Any) -> Child:
    return host.start(function, *arguments, node=None, env={"XDG_RUNTIME_DIR": str(host.home / "run")}, **options)


def services(host: Cluster) -> dict[str, int]:
    """What runs beside the applications: module and pid."""
    modules = ("dsm.embedded", "directory", "nodes")
    return {name: pid for pid, command in host.processes().items() for name in modules if f"-m {name} " in command}


def everything_is_gone(host: Cluster) -> None:
    until(lambda: not host.processes(), "the end of the embedded node")
    assert [path.name for path in (host.home / "run").rglob("*") if path.is_socket()] == []


def meet(rank: int, ranks: int) -> list[Any]:
    with dsm.attach("shared", shape=(ranks,), dtype="i8") as region:
        region.array[rank] = rank + 1
        dsm.Barrier("all", ranks).wait()
        say()
        hear()
        return [region.stats()["node"], region.array.tolist()]


def test_processes_that_start_at_once_share_one_node(host: Cluster) -> None:
    children = [start(host, meet, rank, 4) for rank in range(4)]
    for child in children:
        child.hear()
    assert sorted(services(host)) == ["directory", "dsm.embedded", "nodes"]
    assert len(host.processes()) == 8  # four, the three services, and the agent that the node keeps
    for child in children:
        child.tell()
    results = [child.result() for child in children]
    assert results == [[results[0][0], [1, 2, 3, 4]]] * 4
    lines = [line for child in children for line in child.stderr.splitlines()]
    assert len(lines) == 1, lines
    assert lines[0].startswith("dsm: started an embedded directory and node")
    everything_is_gone(host)


def write_and_leave(value: int) -> int:
    with dsm.attach("value", 100) as region:
        before = region.buf[0]
        region.buf[0] = value
        return before


def test_one_after_the_other_gets_a_new_one(host: Cluster) -> None:
    for value in (5, 6):
        child = start(host, write_and_leave, value)
        assert child.result() == 0
        assert child.stderr.count("\n") == 1
        everything_is_gone(host)


def join_and_leave(times: int) -> int:
    """All processes may be gone for a moment: the node that is leaving may not be mistaken for one that is there."""
    for number in range(times):
        with dsm.attach("coming and going", 8192) as region:
            region.buf[number] = 1
            assert region.buf[number] == 1
        with dsm.Lock("one at a time"):
            pass
    return times


def test_coming_while_the_last_one_is_leaving(host: Cluster) -> None:
    for _ in range(2):
        children = [start(host, join_and_leave, 8) for _ in range(3)]
        assert [child.result() for child in children] == [8] * 3
    everything_is_gone(host)


def stay() -> int:
    region = dsm.attach("value", 100)
    say()
    hear()
    region.buf[0] += 1
    return region.buf[0]


def test_the_first_application_dies_and_the_others_go_on(host: Cluster) -> None:
    first = start(host, stay)
    first.hear()
    second = start(host, stay)
    second.hear()
    first.kill()
    assert first.wait() == -signal.SIGKILL
    second.tell()
    assert second.result() == 1
    assert second.stderr == ""
    everything_is_gone(host)


def test_ctrl_c_for_the_first_application_is_not_for_the_node(host: Cluster) -> None:
    """A terminal sends it to the whole process group."""
    first = start(host, stay, start_new_session=True)
    first.hear()
    second = start(host, stay)
    second.hear()
    os.killpg(first.pid, signal.SIGINT)
    assert first.wait() == -signal.SIGINT
    second.tell()
    assert second.result() == 1
    everything_is_gone(host)


def attach_in_children(method: str) -> list[int]:
    """The parent is not attached itself: its children start the node."""
    context = multiprocessing.get_context(method)
    with context.Pool(3) as pool:
        sums = pool.map(add_one, range(6), chunksize=1)
        pool.close()
        pool.join()
    return sorted(sums)


def add_one(number: int) -> int:
    with dsm.attach("value", 100) as region:
        region.buf[number] = number
        return region.buf[number]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_children_share_the_node_too(host: Cluster, method: str) -> None:
    assert start(host, attach_in_children, method, also=(add_one,)).result() == list(range(6))
    everything_is_gone(host)


def exits_with_everything_open() -> None:
    region = dsm.attach("value", 100)
    region.buf[0] = 1
    dsm.Lock("never released").acquire()
    os._exit(7)


def test_an_application_that_just_ends(host: Cluster) -> None:
    assert start(host, exits_with_everything_open).wait() == 7
    everything_is_gone(host)


@pytest.mark.parametrize("victim", ["nodes", "directory", "dsm.embedded"])
def test_the_next_application_gets_a_new_node_after_one_was_killed(host: Cluster, victim: str) -> None:
    child = start(host, stay)
    child.hear()
    os.kill(services(host)[victim], signal.SIGKILL)
    until(lambda: not services(host), "the end of the other services")
    assert start(host, write_and_leave, 3).result() == 0
    child.kill()
    child.wait()
    everything_is_gone(host)


def complain() -> list[Any]:
    return raised(lambda: dsm.attach("x", 100))


@pytest.mark.parametrize("kind", ["open to all", "a file", "missing"])
def test_a_runtime_directory_that_is_not_safe(host: Cluster, kind: str) -> None:
    place: Path = host.home / "run" / "dsm"
    if kind == "open to all":
        place.mkdir()
        place.chmod(0o777)
    elif kind == "a file":
        place.touch()
    else:
        place.parent.rmdir()
    classes, text = start(host, complain).result()
    assert classes[0] == "PermissionDenied" and str(place) in text and "XDG_RUNTIME_DIR" in text
    place.parent.mkdir(exist_ok=True)


def test_a_bad_argument_starts_nothing(host: Cluster) -> None:
    child = start(host, attach_nothing)
    assert child.result() == "InvalidArgument"
    assert (child.stderr, list((host.home / "run").iterdir())) == ("", [])


def attach_nothing() -> str:
    return str(raised(lambda: dsm.attach("x", 0))[0][0])


def count_between_interruptions() -> list[int]:
    """Ctrl-C ends each wait together with its connection; the counter lives in the node that this process started."""
    import contextlib
    import threading

    found = [dsm.Counter("n").add(1)]
    for _ in range(3):
        timer = threading.Timer(0.1, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT])
        timer.start()
        with contextlib.suppress(KeyboardInterrupt):
            dsm.Event("never").wait()
        timer.join()
        found.append(dsm.Counter("n").add(1))
    return found


def test_ctrl_c_in_every_operation_leaves_the_node_there(host: Cluster) -> None:
    child = start(host, count_between_interruptions)
    assert child.result() == [1, 2, 3, 4]
    assert child.stderr.count("\n") == 1
    everything_is_gone(host)
