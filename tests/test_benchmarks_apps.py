"""The suite of whole programs: its quick run has all figures, and a wrong result is an error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.apps import lines, suite
from benchmarks.apps.programs import PROGRAMS, Rival
from benchmarks.apps.suite import WrongResult, check

TREE = Path(__file__).resolve().parent.parent
LIMIT_S = 100

MEASURE = """\
import json
from benchmarks.apps import measure
print(json.dumps(measure(True, lambda what: None).to_json()))
"""


def test_the_quick_run() -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE],
        cwd=TREE,
        env=os.environ | {"PYTHONPATH": str(TREE)},
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr
    section = json.loads(done.stdout)
    figures = {figure["name"]: figure for figure in section["figures"]}
    for program in PROGRAMS:
        for label in ("private memory", "dsm, 1 node", "dsm, 2 nodes"):
            facts = section["facts"][f"{program.name}: {label}"]
            assert figures[f"{program.name}: {label}"]["quantiles"]["p50"] > 0
            shares = [facts[f"{key} %"] for key in ("compute", "fault", "processor", "barrier", "lock")]
            assert sum(shares) == pytest.approx(100, abs=1)
        assert section["facts"][f"{program.name}: dsm, 2 nodes"]["MB moved"] > 0
        for rival in program.rivals:
            name = f"{program.name}: {rival.label}"
            assert (name in figures) != (name in section["absent"])


def test_a_rival_that_does_not_start_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    program = PROGRAMS[2]
    rivals = (Rival("broken", "no_such_module"), Rival("not here", "", needs="no_such_package"))
    monkeypatch.setattr(suite, "PROGRAMS", (replace(program, rivals=rivals),))
    monkeypatch.setattr(suite, "NODES_QUICK", (1,))
    section = suite.measure(True, lambda _: None)
    assert [figure.name for figure in section.figures] == ["pagerank: private memory", "pagerank: dsm, 1 node"]
    assert all(figure.samples for figure in section.figures)
    assert "is installed, but does not run here" in section.absent["pagerank: broken"]
    assert "No module named 'benchmarks.apps.no_such_module'" in section.absent["pagerank: broken"]
    assert section.absent["pagerank: not here"] == "no_such_package is not installed: make peers"


def test_a_wrong_result_is_an_error() -> None:
    right = np.linspace(0, 1, 5)
    check("exact", right.copy(), right, exact=True)
    check("nearly", right + 1e-12, right, exact=False)
    with pytest.raises(WrongResult, match="exact"):
        check("exact", right + 1e-12, right, exact=True)
    with pytest.raises(WrongResult, match="nearly"):
        check("nearly", right + 1, right, exact=False)
    with pytest.raises(WrongResult, match="shape"):
        check("shape", right[:1], right, exact=False)


def test_lines_of_code_are_those_that_hold_code(tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(
        '"""Docstring,\n\nof three lines."""\n\n# a comment\nx = """not\na docstring"""  # three with y\ny = 1\n'
    )
    assert lines.of_file(path) == 3
    path.write_text("def f():\n    '''Docstring.'''\n\n    return (\n        1\n    )\n")
    assert lines.of_file(path) == 4


def test_what_a_program_takes_over_from_an_example_counts(tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text("from examples.kmeans import BLOCK, draw\n")
    assert lines.of_file(path) == 1 + 6
