"""The alternatives of the benchmarks: an absent one is told with what installs it, one that is here does what is
measured and leaves nothing behind. Nothing here looks at how fast anything is."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import peers
from benchmarks.alternatives import managed_dict, mpi_windows, ray_objects, redis_values, shared_memory
from benchmarks.alternatives.alternative import Alternative
from benchmarks.alternatives.client import Absent
from benchmarks.alternatives.pages import Pages
from benchmarks.measurements import Section

MARK = "DSM_PEERS_TEST"
LIMIT_S = 30.0
INSTALLED = {"hiredis": redis_values.ALTERNATIVE, "ray": ray_objects.ALTERNATIVE, "mpi4py": mpi_windows.ALTERNATIVE}
"""By a module without which they cannot be."""


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """For sockets and files; whatever a test starts has ended at its end."""
    monkeypatch.setenv(MARK, mark := str(uuid.uuid4()))
    home = Path(tempfile.mkdtemp(prefix="t-", dir="/tmp"))  # a socket path has 107 bytes at most
    yield home
    shutil.rmtree(home)
    deadline = time.monotonic() + LIMIT_S
    while left := marked(mark):
        assert time.monotonic() < deadline, f"still there: {left}"
        time.sleep(0.01)


def marked(mark: str) -> list[str]:
    """The commands of all processes, zombies apart, that were started with this mark."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            if f"{MARK}={mark}".encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text().replace("\0", " "))
    return found


def told(alternative: Alternative, folder: Path) -> Section:
    """What a section says of an alternative that is started, and that may be absent."""
    section = Section("", "", "")
    with peers.told(section, alternative), contextlib.ExitStack() as stack:
        child = alternative.start(folder)
        stack.callback(child.end)
        child.ready()
    return section


@pytest.mark.parametrize("module", INSTALLED)
def test_a_module_that_is_missing_is_told(module: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing(module, folder, monkeypatch)
    program(folder / "mpiexec", 'shift 2; exec "$@"', monkeypatch)
    program(folder / "redis-server", "exit 1", monkeypatch)
    alternative = INSTALLED[module]
    absent = told(alternative, folder).absent[alternative.name]
    assert "made up to be missing" in absent
    assert alternative.install in absent


def missing(module: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on this module cannot be imported by a child."""
    modules = folder / "modules"
    modules.mkdir(exist_ok=True)
    (modules / f"{module}.py").write_text(f"raise ImportError('{module}, made up to be missing')\n")
    monkeypatch.setenv("PYTHONPATH", str(modules))


def program(path: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that is found wherever there is none beside the interpreter."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(path.parent), prepend=":")


def test_a_server_that_is_missing_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(folder))
    absent = told(redis_values.ALTERNATIVE, folder).absent["redis"]
    assert "no program 'redis-server' on the PATH" in absent
    assert "apt-get install redis-server" in absent


def test_a_launcher_that_is_missing_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mpi_windows, "LAUNCHER", "no-such-launcher")
    absent = told(mpi_windows.ALTERNATIVE, folder).absent["mpi4py"]
    assert "no program 'no-such-launcher' on the PATH" in absent
    assert mpi_windows.ALTERNATIVE.install in absent


def test_one_that_does_not_start_is_told_with_what_it_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(folder / "crashing", "echo out of order >&2; exit 3", monkeypatch)
    monkeypatch.setattr(mpi_windows, "LAUNCHER", "crashing")
    absent = told(mpi_windows.ALTERNATIVE, folder).absent["mpi4py"]
    assert "is installed, but does not run here" in absent
    assert "out of order" in absent


@pytest.mark.parametrize("alternative", peers.ALTERNATIVES, ids=lambda alternative: alternative.name)
def test_one_that_is_here_does_what_is_measured(alternative: Alternative, folder: Path) -> None:
    try:
        child = alternative.start(folder)
    except Absent as absent:
        pytest.skip(f"{absent}: {alternative.install}")
    try:
        child.ready()
        assert child.version
        for measured in alternative.measured:
            samples = measured.measure(child, 3)
            assert len(samples) == (3 if measured.unit == "µs" else 1)
            assert all(sample > 0 for sample in samples)
    except Absent as absent:
        pytest.skip(f"{absent}: {alternative.install}")
    finally:
        code = child.end()
    assert code == 0


def test_a_round_of_dsm(folder: Path) -> None:
    with contextlib.ExitStack() as stack:
        pages = Pages(stack, folder, 5)
        for _ in range(2):
            for figure, part in peers.dsm(pages):
                samples = part()
                assert len(samples) == (5 if figure.unit == "µs" else 1)
                assert all(sample > 0 for sample in samples)


def test_the_suite_where_nothing_is_installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in INSTALLED:
        missing(module, folder, monkeypatch)
    monkeypatch.setattr(peers, "MEASURED", {True: (1, 2)})
    section = peers.measure(True, lambda _: None)
    assert set(section.absent) == {alternative.name for alternative in INSTALLED.values()}
    there = {figure.name: figure for figure in section.figures}
    assert all(len(figure.samples) == (2 if figure.unit == "µs" else 1) for figure in section.figures)
    for alternative in peers.ALTERNATIVES:
        for measured in alternative.measured:
            assert all(measured.figure in there[name].beside for name in measured.instead)
            assert (measured.figure in there) == (alternative in (managed_dict.ALTERNATIVE, shared_memory.ALTERNATIVE))
    assert section.to_json()["absent"] == section.absent
