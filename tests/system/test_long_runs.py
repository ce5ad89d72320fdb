"""``make litmus`` and ``make histories`` as programs: what they print, and that Ctrl-C ends all of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from cluster import LIMIT_S, TREE, until

_MARK: Final = "DSM_LONG_RUN"
_ENDLESS: Final = "1000000"

PROGRAMS: Final = {
    "litmus": ["tests/litmus/campaign.py", "MP", "--rounds"],
    "histories": ["tests/history/record.py", "--programs"],
}


@pytest.fixture
def mark() -> Iterator[str]:
    """A value of an environment variable by which what a run has started is found; nothing of it may be left."""
    mark = f"{uuid.uuid4()}"
    yield mark
    for pid in carrying(mark):  # where the test has failed
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def carrying(mark: str) -> dict[int, Path]:
    """Everything that runs with this mark: pid and working directory."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                if f"{_MARK}={mark}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found[int(entry.name)] = Path(os.readlink(entry / "cwd"))
    return found


def start(mark: str, *arguments: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": f".{os.pathsep}tests/system", _MARK: mark}
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=TREE,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # a group of its own, as a terminal gives it
    )


INTERRUPTED_ELSEWHERE: Final = """
import signal, subprocess, threading
from cluster import Child
import interrupting

interrupting.listen()
silent = subprocess.Popen(["sleep", "600"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
child = Child(silent, 600)
threading.Timer(0.5, lambda: signal.pthread_kill(threading.get_ident(), signal.SIGINT)).start()
try:
    child.hear_or_end()
except KeyboardInterrupt:
    print("heard")
finally:
    silent.kill()
    child.finish()
"""


def test_a_ctrl_c_that_another_thread_receives_ends_the_wait_for_an_application(mark: str) -> None:
    process = start(mark, "-c", INTERRUPTED_ELSEWHERE)
    try:
        out, err = process.communicate(timeout=LIMIT_S)
    finally:
        process.kill()
    assert (out, err) == ("heard\n", "")


@pytest.mark.parametrize("name", PROGRAMS)
def test_all_figures_as_json(name: str, mark: str) -> None:
    process = start(mark, *PROGRAMS[name], "20", "--seed", "3", "--json")
    out, err = process.communicate(timeout=2 * LIMIT_S)
    assert process.returncode == 0, err
    figures = json.loads(out)
    runs = figures["runs"]
    assert figures["seed"] == 3 and not figures["interrupted"] and len(runs) == figures["runs_wanted"]
    assert all(f"{number + 1} of {len(runs)}: " in err for number in range(len(runs)))
    if name == "litmus":
        assert figures["forbidden"] == 0 and {run["nodes"] for run in runs} >= {2, 3, 4}
        assert all(run["rounds"] == sum(each["rounds"] for each in run["outcomes"]) == 20 for run in runs)
        assert figures["interleaved"] == sum(run["interleaved"] for run in runs)
    else:
        assert figures["sound"] and all(run["programs"] == 20 and run["accesses"] for run in runs)
    assert carrying(mark) == {}


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("under_way", [False, True])
@pytest.mark.parametrize("name", PROGRAMS)
def test_ctrl_c_leaves_one_line_and_nothing_else(name: str, under_way: bool, as_json: bool, mark: str) -> None:
    process = start(mark, *PROGRAMS[name], _ENDLESS, *(["--json"] if as_json else []))
    assert process.stderr
    first = process.stderr.readline()
    assert first.startswith("1 of "), first + process.stderr.read()
    if under_way:
        until(lambda: any(path.name.startswith("t-") for path in carrying(mark).values()), "an application")
    homes = {path for path in carrying(mark).values() if path != TREE}
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=2 * LIMIT_S)
    assert process.returncode == 130, err
    assert err.startswith("interrupted: 0 of ") and err.count("\n") == 1, err
    assert carrying(mark) == {}
    assert [path for path in homes if path.exists() and path.name.startswith("t-")] == []
    if as_json:
        figures = json.loads(out)
        assert figures["interrupted"] and figures["runs"] == []
