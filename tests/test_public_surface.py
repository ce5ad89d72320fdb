"""What ``import dsm`` offers, what it costs, and that the texts which describe it are true."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import threading
import tomllib
from pathlib import Path

import pytest

import dsm
from dsm import errors
from dsm.sync import Barrier, Lock

TREE = Path(__file__).resolve().parent.parent


def modules_after(code: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after ``code``."""
    command = [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"]
    return set(subprocess.run(command, cwd=TREE, capture_output=True, text=True, check=True).stdout.split())


def test_all_is_sorted_and_there() -> None:
    assert dsm.__all__ == sorted(dsm.__all__)
    assert {name for name in dsm.__all__ if not hasattr(dsm, name)} == set()
    assert set(dsm.__all__) <= set(dir(dsm))


PRIMITIVES = ["Lock", "RLock", "Semaphore", "BoundedSemaphore", "Event", "Condition", "Barrier", "Counter"]


def test_the_names_are_those_of_the_design() -> None:
    assert set(dsm.__all__) == {
        *PRIMITIVES, *("attach", "Region", "rank", "world_size", "errors", "DsmError", "__version__")
    }  # fmt: skip


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'detach'"):
        dsm.detach  # noqa: B018  (the lookup is the test)


def test_the_version_is_that_of_the_package() -> None:
    project = tomllib.loads((TREE / "pyproject.toml").read_text())["project"]
    assert dsm.__version__ == project["version"]


def test_the_library_loads_nothing_heavy() -> None:
    loaded = modules_after("import dsm\ndsm.attach, dsm.Lock")
    assert "dsm.region" in loaded  # else the next line proves nothing
    assert (
        loaded & {"numpy", "zmq", "click", "rich", "networkx", "asyncio", "subprocess", "directory", "nodes"} == set()
    )


def test_the_vocabulary_does_not_load_the_library() -> None:
    loaded = modules_after("import dsm.wire, dsm.local")
    assert "dsm.local" in loaded
    assert loaded & {"dsm.client", "dsm.region", "dsm.forking", "dsm.sync"} == set()


def test_attach_takes_what_the_design_says() -> None:
    parameters = inspect.signature(dsm.attach).parameters
    assert list(parameters) == ["name", "size", "shape", "dtype", "create", "page_size", "persist", "replicas"]
    by_keyword = [name for name, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY]
    assert by_keyword == ["shape", "dtype", "create", "page_size", "persist", "replicas"]


def test_help_of_attach_explains_every_parameter_and_names_real_errors() -> None:
    text = inspect.getdoc(dsm.attach) or ""
    described = re.findall(r"^(\w[\w, ]*)$", text, re.MULTILINE)
    names = {name for line in described for name in line.split(", ")}
    assert set(inspect.signature(dsm.attach).parameters) <= names
    named = {name for name in names if name[0].isupper()} - {"Parameters", "Raises"}
    assert {"RegionMismatch", "NodeUnreachable"} <= named
    assert {name for name in named if not hasattr(errors, name)} == set()


def test_region_has_what_the_design_says() -> None:
    public = {name for name in vars(dsm.Region) if not name.startswith("_")}
    assert public == {
        *(
            "name",
            "size",
            "page_size",
            "persist",
            "replicas",
            "flush",
            "buf",
            "array",
            "ndarray",
            "prefetch",
            "lost",
            "reset",
            "stats",
            "close",
            "unlink",
        )
    }


@pytest.mark.parametrize("ours", [Lock.acquire, Lock.release, Lock.locked, Barrier.wait, Barrier.reset, Barrier.abort])
def test_methods_are_those_of_threading(ours: object) -> None:
    kind, _, method = getattr(ours, "__qualname__").partition(".")  # noqa: B009  (a plain object has none)
    theirs = getattr(threading.Barrier if kind == "Barrier" else type(threading.Lock()), method)
    assert theirs
    if kind == "Barrier":  # those of Lock are written in C and have no signature
        assert list(inspect.signature(ours).parameters) == list(inspect.signature(theirs).parameters)  # type: ignore[arg-type]


def test_everything_public_is_documented() -> None:
    things = [dsm.attach, dsm.Region, dsm.Lock, dsm.Barrier, dsm.rank, dsm.world_size, dsm.DsmError]
    members = [vars(cls)[name] for cls in (dsm.Region, dsm.Lock, dsm.Barrier) for name in vars(cls) if name[0] != "_"]
    assert [thing for thing in things + members if not inspect.getdoc(thing)] == []


def test_the_drawn_tree_of_errors_is_the_real_one() -> None:
    drawn = re.findall(r"^[ │]*[├└]── (\w+) *(?:\(([\w.]+)\))?", errors.__doc__ or "", re.MULTILINE)
    real = {name: cls for name, cls in vars(errors).items() if isinstance(cls, type) and name != "DsmError"}
    assert {name for name, _ in drawn} == set(real)
    for name, builtin in drawn:
        assert issubclass(real[name], errors.DsmError)
        names = {f"{base.__module__}.{base.__name__}".removeprefix("builtins.") for base in real[name].__mro__}
        assert not builtin or builtin in names


def test_rank_and_world_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DSM_RANK", raising=False)
    monkeypatch.delenv("DSM_WORLD_SIZE", raising=False)
    assert (dsm.rank(), dsm.world_size()) == (0, 1)
    monkeypatch.setenv("DSM_RANK", "3")
    monkeypatch.setenv("DSM_WORLD_SIZE", "6")
    assert (dsm.rank(), dsm.world_size()) == (3, 6)
    monkeypatch.setenv("DSM_RANK", "first")
    with pytest.raises(errors.InvalidArgument, match="DSM_RANK is 'first'"):
        dsm.rank()
    for rank, size in (("6", "6"), ("7", "6"), ("1", None), ("0", "0")):
        monkeypatch.setenv("DSM_RANK", rank)
        monkeypatch.setenv("DSM_WORLD_SIZE", size) if size else monkeypatch.delenv("DSM_WORLD_SIZE")
        with pytest.raises(errors.InvalidArgument, match="DSM_WORLD_SIZE"):
            dsm.rank()
