"""What each room of the tree may import: the services never each other, the pure cores no outside world."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TREE = Path(__file__).resolve().parent.parent

SERVICES = {"directory", "nodes"}

PURE = [
    "directory/barriers.py",
    "directory/cluster.py",
    "directory/deadlock.py",
    "directory/holdings.py",
    "directory/locks.py",
    "directory/machine.py",
    "directory/members.py",
    "directory/others.py",
    "directory/registry.py",
    "directory/rules.py",
    "directory/semaphores.py",
    "directory/shard.py",
    "directory/sync.py",
    "directory/waiting.py",
    "dsm/address.py",
    "dsm/codec.py",
    "dsm/constants.py",
    "dsm/errors.py",
    "dsm/geometry.py",
    "dsm/pagetable.py",
    "dsm/session.py",
    "dsm/story.py",
    "dsm/wire.py",
    "nodes/bulk.py",
    "nodes/effects.py",
    "nodes/locks.py",
    "nodes/machine.py",
    "nodes/outgoing.py",
    "nodes/pages.py",
    "nodes/pieces.py",
    "nodes/readahead.py",
    "nodes/requests.py",
    "tests/history/accesses.py",
    "tests/history/histories.py",
    "tests/history/linearizable.py",
    "tests/history/sequential.py",
    "tests/litmus/judging.py",
    "tests/litmus/outcomes.py",
    "tests/litmus/shapes.py",
]
"""A function of (state, event): the same in production, in a model checker and in a simulator."""

OUTSIDE_WORLD = {
    "asyncio",
    "concurrent",
    "ctypes",
    "datetime",
    "fcntl",
    "io",
    "logging",
    "mmap",
    "multiprocessing",
    "os",
    "pathlib",
    "queue",
    "random",
    "secrets",
    "select",
    "selectors",
    "signal",
    "socket",
    "subprocess",
    "tempfile",
    "threading",
    "time",
    "uuid",
    "zmq",
}

OUTSIDE_DSM = {
    "client", "daemon", "embedded", "forking", "launch", "local", "memory", "poller", "region", "route", "stream",
    "sync", "uffd",
}  # fmt: skip
"""Modules of dsm that are not pure: a pure module that imports one of them is not pure either."""

ALLOWED = {("dsm/errors.py", "threading")}
"""BrokenBarrier is also threading's own error; the module starts no thread."""


def sources(package: str) -> list[Path]:
    found = sorted((TREE / package).rglob("*.py"))
    assert found, f"{package}/ has no Python files"
    return found


def parsed(path: Path) -> ast.Module:
    assert path.is_file(), f"{path.relative_to(TREE)} is missing: the layout in CONTRIBUTING.md has it"
    return ast.parse(path.read_text(), str(path))


def imports(path: Path) -> Iterator[str]:
    """The full names of the modules that ``path`` imports anywhere, for ``from a import b`` both ``a`` and ``a.b``."""
    package = path.relative_to(TREE).with_suffix("").parts[:-1]
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *filter(None, [node.module])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def top_level(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports(path)}


def identifiers(path: Path) -> set[str]:
    """Every name that the code of ``path`` uses or imports: comments and docstrings may mention what they like."""
    tree = parsed(path)
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return names | attributes | {part for name in imports(path) for part in name.split(".")}


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [("dsm", SERVICES), ("directory", {"nodes"}), ("nodes", {"directory"})],
)
def test_packages_keep_to_their_side(package: str, forbidden: set[str]) -> None:
    crossing = {str(path.relative_to(TREE)): top_level(path) & forbidden for path in sources(package)}
    assert {path: names for path, names in crossing.items() if names} == {}


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_import_no_outside_world(name: str) -> None:
    found = {(name, module) for module in top_level(TREE / name) & OUTSIDE_WORLD} - ALLOWED
    assert found == set()
    impure = {f"dsm.{module}" for module in OUTSIDE_DSM} & set(imports(TREE / name))
    assert impure == set()


def users(module: str) -> set[str]:
    """The files, as paths within the tree, that import ``module``."""
    paths = [path for package in ("dsm", "directory", "nodes") for path in sources(package)]
    return {str(path.relative_to(TREE)) for path in paths if module in set(imports(path)) | top_level(path)}


TCP = {"dsm/stream.py", "dsm/listener.py"}


def test_each_end_of_a_conversation_speaks_tcp_in_one_file() -> None:
    assert users("dsm.session") == TCP


def test_one_file_speaks_messagepack() -> None:
    assert users("msgpack") == {"dsm/codec.py"}


def test_one_file_speaks_ioctl() -> None:
    paths = [path for package in ("dsm", "directory", "nodes") for path in sources(package)]
    assert {str(path.relative_to(TREE)) for path in paths if "ioctl" in identifiers(path)} == {"dsm/uffd.py"}


def test_nothing_speaks_zeromq() -> None:
    """Its threads cost each hop two wake-ups: docs/performance.md. It is there to be compared with."""
    assert users("zmq") == set()


def test_applications_do_not_speak_to_services_of_other_hosts() -> None:
    library = {path for path in users("dsm.stream") | users("dsm.listener") if path.startswith("dsm/")}
    assert library - TCP == {"dsm/asking.py", "dsm/route.py"}
    assert {path for path in users("dsm.asking") if path.startswith("dsm/")} == {"dsm/cli/question.py"}


def test_relative_imports_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "TREE", tmp_path)
    inside = tmp_path / "dsm" / "cli"
    inside.mkdir(parents=True)
    (inside / "run.py").write_text("from .. import launch\nfrom .status import table\nimport os.path\n")
    assert list(imports(inside / "run.py")) == [
        "dsm",
        "dsm.launch",
        "dsm.cli.status",
        "dsm.cli.status.table",
        "os.path",
    ]
