"""CPython's own tests of threading's and multiprocessing's primitives, run against those of dsm.

They come with the interpreter. What cannot hold is listed with its reason, and must indeed fail.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
from cluster import Cluster

import dsm

THREADING = ["Lock", "RLock", "Event", "Condition", "Semaphore", "BoundedSemaphore", "Barrier"]
MULTIPROCESSING = ["Lock", "Semaphore", "Condition", "Event", "Barrier"]

_PRIVATE = "a private name of threading"
_REPR = "our repr has the name, not the address; asking the directory for the state is not what a repr should do"
_LOCK = "two processes cannot share a lock of threading: a condition takes a dsm.Lock or a dsm.RLock"

NOT_APPLICABLE = {
    "Lock.test_at_fork_reinit": _PRIVATE,
    "Lock.test_reacquire": "a thread that waits for ever for a lock of its own gets DeadlockError",
    "Lock.test_repr": _REPR,
    "Lock.test_locked_repr": _REPR,
    "RLock.test_recursion_count": _PRIVATE,
    "RLock.test_release_save_unacquired": _PRIVATE,
    "RLock.test_repr": _REPR,
    "RLock.test_locked_repr": _REPR,
    "Event.test_at_fork_reinit": _PRIVATE,
    "Event.test_repr": _REPR,
    "Condition.test_acquire": _LOCK,
    "Semaphore.test_repr": _REPR,
    "BoundedSemaphore.test_repr": _REPR,
    "Semaphore.test_timeout": "a timeout where nothing waits: ValueError, as in threading, not ignored",
    "Barrier.test_repr": _REPR,
}
"""By primitive and test."""


def threads(what: str) -> dict[str, str]:
    """CPython's tests of one primitive between threads: how each of them ended."""
    import importlib
    import uuid

    kinds = {"Lock": "locktype", "RLock": "locktype", "Event": "eventtype", "Condition": "condtype",
             "Semaphore": "semtype", "BoundedSemaphore": "semtype", "Barrier": "barriertype"}  # fmt: skip

    def new(*arguments: Any, **options: Any) -> Any:
        return getattr(dsm, what)(uuid.uuid4().hex, *arguments, **options)

    theirs = getattr(importlib.import_module("test.lock_tests"), f"{what}Tests")
    return outcomes(type(what, (theirs,), {kinds[what]: staticmethod(new)}))


def processes(what: str, other: str) -> dict[str, str]:
    """CPython's tests of one primitive between processes; those that a test starts are on the ``other`` node."""
    import importlib
    import multiprocessing
    import os
    import unittest
    import uuid

    theirs = importlib.import_module("test._test_multiprocessing")

    class Process(multiprocessing.Process):
        def run(self) -> None:
            os.environ["DSM_NODE"] = other
            super().run()

    def maker(kind: str) -> Any:
        return staticmethod(lambda *a, **k: getattr(dsm, kind)(uuid.uuid4().hex, *a, **k))

    kinds = ["Lock", "RLock", "Semaphore", "BoundedSemaphore", "Event", "Condition", "Barrier"]
    body = {kind: maker(kind) for kind in kinds} | {"Process": Process}
    body["check_invariant"] = lambda self, condition: None  # reads private counters
    return outcomes(type(what, (getattr(theirs, f"_Test{what}"), theirs.ProcessesMixin, unittest.TestCase), body))


def outcomes(case: Any) -> dict[str, str]:
    """Run the tests of a class: what is wrong with each of them, if anything."""
    import unittest

    result = unittest.TestResult()
    names = unittest.defaultTestLoader.getTestCaseNames(case)
    unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
    bad = {test.id().rpartition(".")[2]: text for test, text in result.failures + result.errors}
    return {name: bad.get(name, "") for name in names} | bad


def judge(what: str, found: dict[str, str]) -> None:
    """All of them are right, but for those that have a reason not to be."""
    assert found
    wrong = {name: text for name, text in found.items() if text and f"{what}.{name}" not in NOT_APPLICABLE}
    assert not wrong, "\n".join(f"{what}.{name}: {text}" for name, text in wrong.items())
    listed = {name for name in found if f"{what}.{name}" in NOT_APPLICABLE}
    assert {name for name in listed if not found[name]} == set(), "listed as not applicable, and right"


def need(module: str) -> None:
    if importlib.util.find_spec("test") is None or importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed with this Python: on Debian it is in libpython3-testsuite")


@pytest.mark.parametrize("what", THREADING)
def test_between_threads(cluster: Cluster, what: str) -> None:
    need("test.lock_tests")
    judge(what, cluster.run(threads, what, also=(outcomes,)))


@pytest.mark.parametrize("what", MULTIPROCESSING)
def test_between_processes(cluster: Cluster, what: str) -> None:
    need("test._test_multiprocessing")
    judge(what, cluster.run(processes, what, str(cluster.path(1)), also=(outcomes,)))
