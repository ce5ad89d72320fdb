"""The benchmark of the directory's scale measures what it says, at whatever speed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from benchmarks import directory_load, directory_memory
from benchmarks.measurements import Bound, Figure, Section
from benchmarks.scale import loads
from dsm import asking, wire

PROGRAM = """
import json
from benchmarks.scale import measure
print(json.dumps(measure(True, lambda what: None).to_json()))
"""


def test_every_figure_is_there_with_its_target() -> None:
    child = subprocess.run([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, check=True, timeout=100)
    section = json.loads(child.stdout)
    figures = {figure["name"]: figure for figure in section["figures"]}
    assert all(figure["samples"] and figure["unit"] and figure["quantiles"]["p50"] > 0 for figure in figures.values())
    targets = {name: [bound["beside"] for bound in figure["bounds"]] for name, figure in figures.items()}
    assert targets["core"] == targets["single-page misses"] == targets["pages in runs of 128"] == [""]
    assert targets["single-page miss, CPU of the busier of 2 shards"] == ["single-page miss, CPU of the directory"]
    assert targets["miss, 1000 nodes"] == ["miss, 2 nodes"]
    assert targets["shared by half, 1000 nodes"] == ["shared by half, 2 nodes"]


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("kind", [directory_load.FIRST_TOUCH, directory_load.MISSES, directory_load.RUNS])
def test_a_load_is_transactions_of_the_directory(kind: str, shards: int) -> None:
    with loads(2, 3, shards) as running:
        before = _counters(running.address)
        measured = running.round(kind, 0.1)
        after = _counters(running.address)
    assert before["rejected"] == after["rejected"] == 0
    assert after["transactions"] - before["transactions"] == measured["total"] > 0
    pages = directory_load.RUN_PAGES if kind == directory_load.RUNS else 1
    assert measured["pages"] == pytest.approx(pages * measured["misses"])


def _counters(address: str) -> dict[str, int]:
    counters: dict[str, int] = asking.ask(address, wire.Query(0, "status", 0, 0, 0), 30)["counters"]
    return counters


@pytest.mark.parametrize("pattern", directory_memory.PATTERNS)
def test_memory_is_that_of_the_pages(pattern: str) -> None:
    command = [sys.executable, "-m", "benchmarks.directory_memory", pattern, "100000"]
    told = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=100).stdout)
    assert 99_000 < told["touched"] <= 100_000
    assert told["bytes"] > 0


def test_a_target_beside_nothing_is_absolute() -> None:
    bound = Bound("at least", 10, "")
    section = Section("x", "x", "x", [Figure("a", "1/s", [8.0, 12.0, 40.0], bounds=(bound,))])
    assert section.verdicts() == [(section["a"], bound, 12.0)]
    assert section.to_json()["figures"][0]["bounds"][0]["met"]
