"""Every example, as a user runs it, on two nodes: what it computes is what one process computes on private memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

TREE = Path(__file__).resolve().parent.parent
LIMIT_S = 60

SMALL = {
    "embedding": (1 << 12, 2, 4),
    "kmeans": (32, 3),
    "pagerank": (3,),
    "samplesort": (1 << 16,),
    "stencil": (512, 10),
}
"""The numbers on the command line of each."""

RUN = """\
import os, runpy, sys
import numpy as np
memory, path, result, *sys.argv[1:] = sys.argv[1:]
if memory == "private":
    from benchmarks.apps import private
    sys.modules["dsm"] = private
variables = runpy.run_path(path, run_name="__main__")
if os.environ.get("DSM_RANK", "0") == "0":
    np.save(result, variables["result"])
"""


def run(command: list[str], example: str, memory: str, result: Path) -> str:
    """What it prints."""
    arguments = [memory, str(TREE / "examples" / f"{example}.py"), str(result), *map(str, SMALL[example])]
    done = subprocess.run(
        [*command, sys.executable, "-c", RUN, *arguments],
        env=os.environ | {"PYTHONPATH": str(TREE), "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("example", SMALL)
def test_an_example_computes_what_it_does_on_private_memory(example: str, tmp_path: Path) -> None:
    expected, found = tmp_path / "private.npy", tmp_path / "dsm.npy"
    said = run([], example, "private", expected)
    assert said
    command = [sys.executable, "-m", "dsm", "run", "--nodes", "2", "--procs", "2"]
    assert run(command, example, "dsm", found) == said
    same = np.allclose if example == "kmeans" else np.array_equal  # whose sums are added in another order
    assert same(np.load(found), np.load(expected))


def test_all_examples_are_run() -> None:
    assert {path.stem for path in (TREE / "examples").glob("*.py")} - {"__init__"} == set(SMALL)
