"""dsm.shared_memory: CPython's own tests of what it replaces, and blocks between nodes, whoever dies."""

from __future__ import annotations

import importlib.util
import signal
from typing import Any

import pytest
from application import hear, raised, say
from cluster import Cluster, until

import dsm

NOT_APPLICABLE = {
    "test_shared_memory_SharedMemoryServer_ignores_sigint": "the manager has no server process",
    "test_shared_memory_SharedMemoryManager_reuses_resource_tracker": "there is no resource tracker",
    "test_shared_memory_cleaned_after_process_termination": "reads the resource tracker's warning; the rest is below",
}


def cpython_tests(other: str, left_out: list[str]) -> dict[str, str]:
    """Run CPython's tests with only the imports changed: what is wrong with each, if anything. What a test starts is on
    the ``other`` node."""
    import importlib
    import multiprocessing
    import os
    import sys
    import types
    import unittest
    from pathlib import Path

    class Process(multiprocessing.Process):
        def run(self) -> None:
            os.environ["DSM_NODE"] = other
            super().run()

    origin = importlib.util.find_spec("test._test_multiprocessing")
    assert origin is not None and origin.origin is not None
    source = Path(origin.origin).read_text()
    for theirs, ours in (
        ("from multiprocessing import shared_memory", "from dsm import shared_memory"),
        ("'multiprocessing.shared_memory.", "'dsm.shared_memory."),
        ("multiprocessing.managers.SharedMemoryManager", "shared_memory.SharedMemoryManager"),
    ):
        assert theirs in source, theirs
        source = source.replace(theirs, ours)
    module = types.ModuleType("cpython")
    sys.modules["cpython"] = module
    exec(compile(source, origin.origin, "exec"), vars(module))
    bases = (module._TestSharedMemory, module.ProcessesMixin, unittest.TestCase)
    case: Any = type("Case", bases, {"Process": Process})
    names = unittest.defaultTestLoader.getTestCaseNames(case)
    result = unittest.TestResult()
    unittest.TestSuite(case(name) for name in names if name not in left_out).run(result)
    told = [*result.failures, *result.errors, *result.skipped]
    return dict.fromkeys(names, "") | {test.id().rpartition(".")[2].split()[0]: text for test, text in told}


def test_what_cpython_demands_of_shared_memory(cluster: Cluster) -> None:
    if importlib.util.find_spec("test") is None or importlib.util.find_spec("test._test_multiprocessing") is None:
        pytest.skip("CPython's tests are not installed: on Debian they are in libpython3-testsuite")
    found = cluster.run(cpython_tests, str(cluster.path(1)), list(NOT_APPLICABLE))
    assert NOT_APPLICABLE.keys() <= found.keys()
    assert len(found) - len(NOT_APPLICABLE) >= 9
    assert {name: text for name, text in found.items() if text} == {}


def make_block(name: str | None, track: bool) -> None:
    """Create, close, say what it is called, and stay."""
    from dsm import shared_memory

    block = shared_memory.SharedMemory(name, create=True, size=5000, track=track)
    block.buf[:5] = b"first"  # type: ignore[index]
    block.close()
    say(block.name)
    if hear() == "unlink":
        block.unlink()
        say()
        hear()


def use_block(name: str) -> list[Any]:
    """Open it by name, use it as an array, stay, and look again."""
    import numpy as np

    from dsm import shared_memory

    block = shared_memory.SharedMemory(name)
    array: Any = np.ndarray(block.size, "u1", block.buf)
    before = bytes(array[:5])
    array[5:11] = list(b"second")
    say()
    hear()
    block.close()
    return [before.decode(), bytes(array[:11]).decode(), block.size, block.buf]  # the array is what it was


def regions(cluster: Cluster) -> list[str]:
    return [region["name"] for region in cluster.status()["cluster"]["regions"] if not region["unlinked"]]


def no_region(cluster: Cluster) -> None:
    until(lambda: not cluster.status()["cluster"]["regions"], "the end of the block")
    until(lambda: not cluster.memory(0) and not cluster.memory(1), "the end of its memory")


def test_a_block_outlives_its_creator_while_it_is_used_and_not_longer(cluster: Cluster) -> None:
    creator = cluster.start(make_block, None, True)
    name = creator.hear()
    user = cluster.start(use_block, name, node=1)
    user.hear()
    creator.kill()
    assert creator.wait() == -signal.SIGKILL
    late = cluster.start(use_block, name)
    late.hear()
    for child in (late, user):
        child.tell()
        assert child.result() == ["first", "firstsecond", 5000, None]
    no_region(cluster)


def test_a_closed_block_is_there_while_its_creator_is(cluster: Cluster) -> None:
    creator = cluster.start(make_block, "block", True)
    creator.hear()
    user = cluster.start(use_block, "block", node=1)
    user.hear()
    user.tell()
    user.result()
    assert regions(cluster) == ["block"]
    creator.tell()
    creator.result()
    no_region(cluster)


def test_a_block_ends_with_unlink_although_its_creator_lives(cluster: Cluster) -> None:
    creator = cluster.start(make_block, "block", True)
    creator.hear()
    user = cluster.start(use_block, "block", node=1)
    user.hear()
    creator.tell("unlink")
    creator.hear()
    assert regions(cluster) == []
    assert cluster.memory(1) == 1  # in use
    user.tell()
    assert user.result()[1] == "firstsecond"
    no_region(cluster)
    creator.tell()
    creator.result()


def test_an_untracked_block_stays_until_it_is_unlinked(cluster: Cluster) -> None:
    creator = cluster.start(make_block, "block", False)
    creator.hear()
    creator.kill()
    creator.wait()
    until(lambda: cluster.all_gone(0), "the end of the creator")
    assert regions(cluster) == ["block"]
    assert cluster.run(unlink_twice, "block", node=1) == "RegionNotFound"
    no_region(cluster)


def unlink_twice(name: str) -> str:
    from dsm import shared_memory

    block = shared_memory.SharedMemory(name, track=False)
    block.unlink()
    return raised(block.unlink)[0][0]  # type: ignore[no-any-return]


def make_in_a_child() -> None:
    """The child of a creator holds nothing for it, and what it creates itself."""
    import os

    from dsm import shared_memory

    first = shared_memory.SharedMemory("of the parent", create=True, size=10)
    first.close()
    if os.fork() == 0:
        shared_memory.SharedMemory("of the child", create=True, size=10).close()
        os.kill(os.getppid(), signal.SIGKILL)
        say()
        hear()
        os._exit(0)
    hear()


def test_a_forked_child_holds_what_it_creates_itself(cluster: Cluster) -> None:
    parent = cluster.start(make_in_a_child)
    parent.hear()
    until(lambda: regions(cluster) == ["of the child"], "the end of the parent's block")
    parent.tell()
    parent.wait()
    no_region(cluster)


def use_a_manager() -> list[Any]:
    from dsm import shared_memory

    with shared_memory.SharedMemoryManager() as manager:
        numbers = manager.ShareableList(["é" * 7, b"x", 2.5, -3, True, None])
        block = manager.SharedMemory(9)
        seen: list[Any] = list(iter(shared_memory.ShareableList(name=numbers.shm.name)))
        manager.SharedMemory(1).unlink()  # by itself
        names = [numbers.shm.name, block.name]
    found = [raised(lambda name=name: shared_memory.SharedMemory(name))[0][0] for name in names]  # type: ignore[misc]
    seen[1] = seen[1].decode()
    wrong = [
        raised(lambda: manager.SharedMemory(9))[0][0],
        raised(lambda: shared_memory.ShareableList([{}]))[0][0],
        raised(lambda: shared_memory.SharedMemory("a", create=True, size=0))[0][0],
        raised(lambda: shared_memory.SharedMemory())[0][0],
    ]
    return [seen, found, wrong]


def test_a_manager_unlinks_what_it_made(cluster: Cluster) -> None:
    seen, found, wrong = cluster.run(use_a_manager)
    assert seen == ["é" * 7, "x", 2.5, -3, True, None]
    assert found == ["RegionNotFound"] * 2
    assert wrong == ["InvalidArgument"] * 4
    no_region(cluster)


def count_in_list(rank: int, ranks: int) -> int:
    from dsm import shared_memory

    with dsm.Lock("made"):
        try:
            numbers = shared_memory.ShareableList([0, "free"], name="list")
        except FileExistsError:
            numbers = shared_memory.ShareableList(name="list")
    dsm.Barrier("made too", ranks).wait()
    for _ in range(20):
        with dsm.Lock("list"):
            numbers[0] += 1
    dsm.Barrier("counted", ranks).wait()
    return int(numbers[0])


def test_a_list_between_nodes(cluster: Cluster) -> None:
    assert cluster.everywhere(count_in_list, each=2) == [80] * 4
    no_region(cluster)
