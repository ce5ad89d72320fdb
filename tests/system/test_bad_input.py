"""What can never be right is refused at once, by an error of the tree that says what to do, and nothing has changed."""

from __future__ import annotations

import resource
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from application import hear, raised, say
from cluster import LIMIT_S, Cluster
from talker import Service, Talker

import dsm
from dsm import constants, errors, launch, local, wire
from dsm.uffd import Userfaultfd

# --- regions ---------------------------------------------------------------------------------------------------

WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("nothing", {}, "RegionNotFound"),
    ("nothing", {"create": False, "size": 100}, "RegionNotFound"),
    ("plain", {"size": 9999}, "RegionMismatch"),
    ("plain", {"size": 10001, "create": False}, "RegionMismatch"),
    ("plain", {"size": 10000, "page_size": 8192}, "RegionMismatch"),
    ("plain", {"page_size": 8192}, "RegionMismatch"),
    ("plain", {"size": 10000, "create": True}, "RegionExists"),
    ("plain", {"shape": 1250}, "RegionMismatch"),
    ("grid", {"shape": (10, 21)}, "RegionMismatch"),
    ("grid", {"shape": (20, 10)}, "RegionMismatch"),
    ("grid", {"shape": (10, 20), "dtype": "f4"}, "RegionMismatch"),
    ("grid", {"shape": (10, 20), "dtype": "i8"}, "RegionMismatch"),
    ("grid", {"shape": [1] * 32}, "RegionMismatch"),
    ("grid", {"shape": (10, 20), "create": True}, "RegionExists"),
    ("grid", {"size": 1601}, "RegionMismatch"),
    ("new", {"size": 0}, "InvalidArgument"),
    ("new", {"size": -1}, "InvalidArgument"),
    ("new", {"size": 1.5}, "InvalidArgument"),
    ("new", {"size": "100"}, "InvalidArgument"),
    ("new", {"size": 1 << 48}, "RegionTooLarge"),
    ("new", {"size": 1 << 47}, "RegionTooLarge"),
    ("new", {"size": 1 << 62}, "RegionTooLarge"),
    ("new", {"size": 1 << 63}, "RegionTooLarge"),
    ("new", {"size": 1 << 100}, "RegionTooLarge"),
    ("new", {"shape": (1 << 40, 1 << 40)}, "RegionTooLarge"),
    ("new", {"shape": (0, 5)}, "InvalidArgument"),
    ("new", {"shape": (-1, 5)}, "InvalidArgument"),
    ("new", {"shape": (2, 2), "size": 31}, "InvalidArgument"),
    ("new", {"shape": [1] * 33}, "InvalidArgument"),
    ("new", {"shape": (2.5,)}, "InvalidArgument"),
    ("new", {"shape": 4, "dtype": "O"}, "InvalidArgument"),
    ("new", {"shape": 4, "dtype": "nonsense"}, "InvalidArgument"),
    ("new", {"shape": 4, "dtype": "S0"}, "InvalidArgument"),
    ("new", {"size": 32, "dtype": "f8"}, "InvalidArgument"),
    ("new", {"create": True}, "InvalidArgument"),
    ("new", {"size": 100, "create": "yes"}, "InvalidArgument"),
    ("new", {"size": 100, "page_size": 5000}, "InvalidArgument"),
    ("new", {"size": 100, "page_size": 0}, "InvalidArgument"),
    ("new", {"size": 100, "page_size": -4096}, "InvalidArgument"),
    ("new", {"size": 100, "page_size": 4 << 20}, "InvalidArgument"),
    ("new", {"size": 100, "page_size": 1 << 70}, "InvalidArgument"),
    ("", {"size": 100}, "InvalidArgument"),
    ("n" * 256, {"size": 100}, "InvalidArgument"),
    ("a/b", {"size": 100}, "InvalidArgument"),
    ("a\0b", {"size": 100}, "InvalidArgument"),
    ("a\nb", {"size": 100}, "InvalidArgument"),
    ("\udc80", {"size": 100}, "InvalidArgument"),
]


def attach_wrongly(wrong: list[Any]) -> list[Any]:
    plain = dsm.attach("plain", 10_000)
    grid = dsm.attach("grid", shape=(10, 20))
    plain.buf[5] = 5
    grid.array[3, 3] = 3.5
    found = [raised(lambda name=name, how=how: dsm.attach(name, **how)) for name, how, _ in wrong]  # type: ignore[misc]
    assert plain.buf[5] == 5 and grid.array[3, 3] == 3.5
    return found


def use_it() -> list[float]:
    with dsm.attach("plain") as plain, dsm.attach("grid") as grid, dsm.attach("fresh", 5000, create=True) as fresh:
        fresh.buf[4999] = 1
        return [plain.buf[5], float(grid.array[3, 3]), fresh.buf[4999]]


def test_regions_that_cannot_be(cluster: Cluster) -> None:
    wrong = [[name, how, error] for name, how, error in WRONG]
    told = cluster.run(attach_wrongly, wrong)
    for (name, how, expected), (classes, text) in zip(WRONG, told, strict=True):
        assert classes[:1] == [expected], (name, how, classes, text)
        assert "DsmError" in classes
        assert 20 < len(text) < 1000 and "\n" not in text, text
    assert sorted(region["name"] for region in cluster.status()["cluster"]["regions"]) == ["grid", "plain"]
    assert cluster.run(use_it, node=1) == [5, 3.5, 1]


def mistaken() -> list[str]:
    dsm.attach("by size", 10_000)
    hows: list[tuple[str, dict[str, Any]]] = [
        ("nothing", {"shape": 3, "create": False}),
        ("nothing", {}),
        ("by size", {"shape": 1250}),
    ]
    return [raised(lambda: dsm.attach(name, **how))[1] for name, how in hows]  # noqa: B023


def test_errors_say_what_was_the_matter(cluster: Cluster) -> None:
    forbidden, unknown, plain = cluster.run(mistaken)
    assert "create=False forbids" in forbidden and "give a size" not in forbidden
    assert "give a size or a shape" in unknown
    assert "by its size alone, 10000 bytes" in plain and "None" not in plain


def attach_within(limit: int) -> list[Any]:
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    return raised(lambda: dsm.attach("beyond", 1 << 40))


def open_within(limit: int) -> list[Any]:
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    return raised(lambda: dsm.attach("huge"))


def create_huge() -> int:
    return dsm.attach("huge", 1 << 40).size


def test_a_region_that_does_not_fit_the_address_space_of_a_process(cluster: Cluster) -> None:
    classes, text = cluster.run(attach_within, 4 << 30)
    assert classes[0] == "RegionTooLarge" and "ulimit" in text
    assert cluster.status()["cluster"]["regions"] == []
    assert cluster.run(create_huge, node=1) == 1 << 40
    assert cluster.run(open_within, 4 << 30)[0][0] == "RegionTooLarge"


def long_texts() -> list[Any]:
    """What an error repeats may be longer than a message is allowed to be."""
    name = "\N{FULL BLOCK}" * 255
    dsm.attach(name, 5000)
    fields = [(f"field_{number}_{'x' * 60}", "f8") for number in range(100)]
    dsm.attach("fields", shape=3, dtype=fields)
    return [
        raised(lambda: dsm.attach(name, 6000)),
        raised(lambda: dsm.attach("fields", shape=3, dtype=[*fields, ("more", "f8")])),
        raised(lambda: dsm.attach("many fields", shape=3, dtype=[(f"f{number}", "f8") for number in range(9000)])),
    ]


def test_errors_with_much_to_repeat(cluster: Cluster) -> None:
    first, second, _ = cluster.run(long_texts)
    assert first[0][0] == second[0][0] == "RegionMismatch"
    assert cluster.run(works) == 1


def works() -> int:
    with dsm.attach("works", 5000) as region:
        region.buf[1] = 1
        return region.buf[1]


def attach_without_userfaultfd() -> list[Any]:
    def refuse(device: int | None) -> Userfaultfd:
        raise dsm.errors.UserfaultfdUnavailable("none for you")

    genuine, Userfaultfd.create = Userfaultfd.create, refuse  # type: ignore[method-assign]
    found = [raised(lambda: dsm.attach("fails", 5000)), raised(lambda: dsm.attach("stays"))]
    Userfaultfd.create = genuine  # type: ignore[method-assign]
    found += [raised(lambda: dsm.attach("fails"))]
    dsm.attach("fails", 6000, create=True).unlink()
    return [classes[0] for classes, _ in found]


def test_an_attach_that_fails_in_the_application_makes_no_region(cluster: Cluster) -> None:
    keeper = cluster.start(keep_attached, node=1)
    assert keeper.hear() == 5000
    refused = "UserfaultfdUnavailable"
    assert cluster.run(attach_without_userfaultfd) == [refused, refused, "RegionNotFound"]
    keeper.tell()
    keeper.result()


def keep_attached() -> None:
    with dsm.attach("stays", 5000) as region:
        say(region.size)
        hear()


def use_closed() -> list[str]:
    region = dsm.attach("closed", shape=(10,))
    region.close()
    actions = [
        lambda: region.buf,
        lambda: region.array,
        lambda: region.ndarray(1, "u1"),
        region.prefetch,
        region.stats,
        region.__enter__,
    ]
    found = [raised(action)[0][0] for action in actions]
    open_one = dsm.attach("closed")
    wrong = [(11, "f8", 0), (10, "f8", 1), (1, "u1", -1), (1, "u1", 80), (-1, "u1", 0), (1, "O", 0)]
    for shape, dtype, offset in wrong:
        found.append(raised(lambda: open_one.ndarray(shape, dtype, offset))[0][0])  # noqa: B023
    return found


def test_a_region_that_was_closed_and_views_that_do_not_fit(cluster: Cluster) -> None:
    assert cluster.run(use_closed) == ["RegionClosed"] * 6 + ["InvalidArgument"] * 6


def unlink_twice() -> list[Any]:
    region = dsm.attach("unlinked", 100)
    region.unlink()
    return raised(region.unlink)


def test_unlinking_what_is_not_there(cluster: Cluster) -> None:
    classes, text = cluster.run(unlink_twice)
    assert classes[0] == "RegionNotFound" and "FileNotFoundError" in classes and "'unlinked'" in text


def names_that_cannot_be() -> list[str]:
    found = []
    for name in ("", "x" * 256, "a/b", "\0", "\ud800"):
        found.append(raised(lambda: dsm.Lock(name).acquire())[0][0])  # noqa: B023
        found.append(raised(lambda: dsm.Barrier(name, 1).wait())[0][0])  # noqa: B023
    return found


def test_locks_and_barriers_with_names_that_cannot_be(cluster: Cluster) -> None:
    assert cluster.run(names_that_cannot_be) == ["InvalidArgument"] * 10


# --- nodes that are not there -------------------------------------------------------------------------------------


def without_a_node() -> list[Any]:
    actions = [
        lambda: dsm.attach("x", 100),
        lambda: dsm.Lock("x").acquire(),
        lambda: dsm.Barrier("x", 1).wait(),
    ]
    return [raised(action) for action in actions]


def test_dsm_node_points_nowhere(start_cluster: Callable[[int], Cluster]) -> None:
    host = start_cluster(0)
    (host.home / "file").touch()
    with socket.socket(socket.AF_UNIX) as stream:
        stream.bind(str(host.home / "stream"))
        stream.listen()
        for path in ("nowhere", "file", "n" * 200, "missing/socket", "stream"):
            told = host.run(without_a_node, node=None, env={"DSM_NODE": str(host.home / path)})
            for classes, text in told:
                assert classes[0] == ("InvalidArgument" if len(path) == 200 else "NodeUnreachable"), text
                assert path in text
    (host.home / "stream").unlink()


def lose_the_node() -> list[Any]:
    lock = dsm.Lock("x")
    dsm.Barrier("x", 1).wait()
    say()
    hear()
    return [raised(lock.acquire), raised(lambda: dsm.Barrier("x", 1).wait()), raised(lambda: dsm.attach("x", 100))]


def test_a_node_that_has_left_between_two_operations(cluster: Cluster) -> None:
    child = cluster.start(lose_the_node)
    child.hear()
    cluster.ended.add(cluster.nodes[0].process.pid)
    cluster.nodes[0].stop()
    child.tell()
    assert [classes[0] for classes, _ in child.result()] == ["NodeUnreachable"] * 3


# --- services that cannot start -------------------------------------------------------------------------------------


def refused(cluster: Cluster, *arguments: str, module: str = "nodes") -> str:
    """What a service that cannot start says, which is one line."""
    command, environment = launch.program(module)
    socket_of_it = [] if module == "directory" else ["--socket", str(cluster.home / "new.sock")]
    done = subprocess.run(
        [*command, *socket_of_it, *arguments],
        env=environment, capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert not (cluster.home / "new.sock").exists()
    return done.stderr


def free_address() -> str:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{sock.getsockname()[1]}"


def test_a_directory_that_cannot_be_reached(cluster: Cluster) -> None:
    address = free_address()
    told = refused(cluster, "--directory", address, "--listen", launch.LOOPBACK)
    assert address in told and "dsm directory" in told


def test_a_directory_that_accepts_connections_and_says_nothing(cluster: Cluster) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(errors.DirectoryUnreachable, match=address):
            launch.start_node(address, socket=cluster.home / "new.sock", stderr=subprocess.DEVNULL)


def test_two_nodes_with_one_name(cluster: Cluster) -> None:
    with pytest.raises(errors.NodeNameInUse, match="'node1'"):
        cluster_node(cluster, name="node1")
    assert "'node0'" in refused(
        cluster, "--directory", cluster.directory.address, "--listen", launch.LOOPBACK, "--name", "node0"
    )
    assert [node["name"] for node in cluster.status()["cluster"]["nodes"]] == ["node0", "node1"]
    assert [cluster.run(works, node=node) for node in range(2)] == [1, 1]


def test_an_address_that_other_nodes_cannot_reach(cluster: Cluster) -> None:
    far = "tcp://203.0.113.1:7400"
    told = refused(cluster, "--directory", far, "--listen", launch.LOOPBACK)
    assert "--listen tcp://IP:" in told and "tcp://0.0.0.0:" in told and far in told
    taken = cluster.status()["node"]["address"]
    for address, reason in ((taken, "'node0'"), ("tcp://203.0.113.2:7401", "loopback")):
        with Talker(cluster.directory.address) as talker:
            talker.tell(wire.Join("new", address))
            answer = talker.hear()
        assert isinstance(answer, wire.Failure)
        assert answer.error == "NodeNameInUse" and reason in answer.text and "--listen" in answer.text
    assert len(cluster.status()["cluster"]["nodes"]) == 2


def cluster_node(cluster: Cluster, **how: Any) -> None:
    path = how.pop("socket", cluster.home / "new.sock")
    launch.start_node(cluster.directory.address, socket=path, stderr=subprocess.DEVNULL, **how)


def test_two_nodes_on_one_socket(cluster: Cluster) -> None:
    with pytest.raises(errors.NodeNameInUse, match=r"0\.sock"):
        cluster_node(cluster, name="another", socket=cluster.path(0))
    assert len(cluster.status()["cluster"]["nodes"]) == 2
    assert cluster.run(works) == 1


def test_addresses_and_paths_that_cannot_be(cluster: Cluster) -> None:
    directory = cluster.directory.address
    taken = cluster.status()["node"]["address"]
    for listen in (taken, "tcp://203.0.113.1:7000", "nonsense", "tcp://127.0.0.1", "tcp://127.0.0.1:99999"):
        assert listen in refused(cluster, "--directory", directory, "--listen", listen, "--name", "new")
    for listen in (directory, "nonsense"):
        assert listen in refused(cluster, "--listen", listen, module="directory")
    for target in ("nonsense", "tcp://127.0.0.1:nonsense", "udp://127.0.0.1:5000"):
        assert target in refused(cluster, "--directory", target, "--listen", launch.LOOPBACK)
    for how in ({"socket": Path("/proc/new.sock")}, {"socket": cluster.home / ("n" * 100)}, {"name": "n" * 256}):
        with pytest.raises(errors.DsmError):
            cluster_node(cluster, **({"name": "new"} | how))
    assert len(cluster.status()["cluster"]["nodes"]) == 2
    assert cluster.run(works) == 1


# --- another version ------------------------------------------------------------------------------------------------


THE_OTHER = f"version {constants.PROTOCOL_VERSION + 1}"


def of_another_version(message: wire.Message) -> bytes:
    data = wire.encode(message)
    assert data[1] == constants.PROTOCOL_VERSION  # msgpack: an array's head, then a small number
    return data[:1] + bytes([constants.PROTOCOL_VERSION + 1]) + data[2:]


def test_a_node_of_another_version_is_told_so_by_the_directory(cluster: Cluster) -> None:
    with Talker(cluster.directory.address) as talker:
        talker.send(of_another_version(wire.Join("new", "tcp://127.0.0.1:1")))
        answer = talker.hear()
    assert isinstance(answer, wire.Failure)
    assert answer.error == "VersionMismatch" and THE_OTHER in answer.text
    assert len(cluster.status()["cluster"]["nodes"]) == 2


def test_a_directory_of_another_version(cluster: Cluster) -> None:
    with Service() as directory:
        command, environment = launch.program("nodes")
        path = cluster.home / "new.sock"
        node = subprocess.Popen(
            [*command, "--directory", directory.address, "--listen", launch.LOOPBACK, "--socket", path],
            env=environment, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        link, _ = directory.receive()
        link.send(of_another_version(wire.Welcome(1)))
        _, told = node.communicate(timeout=LIMIT_S)
    assert node.returncode == 1
    assert told.count("\n") == 1 and THE_OTHER in told
    assert not (cluster.home / "new.sock").exists()


def test_an_application_of_another_version_is_told_so_by_its_node(cluster: Cluster) -> None:
    with local.connect(cluster.path(0), LIMIT_S) as sock:
        sock.settimeout(LIMIT_S)
        sock.send(of_another_version(wire.Attach("x", 100, 0, 0, {})))
        answer, _ = local.receive(sock)
        assert isinstance(answer, wire.Failure)
        assert answer.error == "VersionMismatch" and THE_OTHER in answer.text
        assert local.receive(sock) == (None, [])
    assert cluster.status()["cluster"]["regions"] == []


def attach_and_give_up() -> list[Any]:
    return raised(lambda: dsm.attach("x", 100))


def test_a_node_of_another_version_is_refused_by_the_library(cluster: Cluster) -> None:
    with local.listen(cluster.home / "old.sock") as listener:
        child = cluster.start(attach_and_give_up, node=None, env={"DSM_NODE": str(cluster.home / "old.sock")})
        listener.settimeout(LIMIT_S)
        sock, _ = listener.accept()
        with sock:
            local.receive(sock)
            sock.send(of_another_version(wire.Ready()))
            classes, text = child.result()
    (cluster.home / "old.sock").unlink()
    assert classes[0] == "VersionMismatch" and THE_OTHER in text


FRUGAL = """
import sys, dsm
with dsm.attach("x", 100) as region, dsm.Lock("x"):
    region.buf[0] = 1
sys.exit("numpy" in sys.modules or "zmq" in sys.modules)
"""


def test_numpy_is_imported_only_for_arrays_and_zeromq_never(cluster: Cluster) -> None:
    command, environment = launch.program("this")
    environment["DSM_NODE"] = str(cluster.path(0))
    subprocess.run([command[0], "-c", FRUGAL], env=environment, timeout=LIMIT_S, check=True)
