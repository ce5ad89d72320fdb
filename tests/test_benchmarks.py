"""The program that runs the benchmarks and reports, on suites that measure nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from benchmarks import __main__ as program
from benchmarks import rows
from benchmarks.application import Application, together
from benchmarks.measurements import Bound, Figure, Progress, Section

FLOOR = "the floor"


def section() -> Section:
    figures = [
        Figure(FLOOR, "µs", [float(n) for n in range(1, 2001)]),
        Figure("near", "µs", [1200.0] * 2000, (FLOOR,), (Bound("at most", 1.5, FLOOR),)),
        Figure("far", "µs", [3000.0, 3100.0, 3200.0], (FLOOR, "a peer"), (Bound("at most", 1.5, FLOOR),)),
        Figure("uneven", "µs", [1.0] * 90 + [9.0] * 10, (), (Bound("at most", 3, "uneven", 0.99),)),
        Figure("empty", "GB/s"),
        Figure(
            "lonely",
            "GB/s",
            [1.0],
            (),
            (Bound("at least", 0.8, "a peer"), Bound("at least", 2000, "")),
            note="on its own",
        ),
    ]
    return Section("latency", "Made up", "Nothing.", figures, {"a peer": "apt-get install it"}, {"near": {"lines": 7}})


def suite(monkeypatch: pytest.MonkeyPatch, name: str, measure: Callable[[bool, Progress], Section]) -> None:
    module: Any = ModuleType(f"benchmarks.{name}")
    module.measure = measure
    monkeypatch.setitem(sys.modules, module.__name__, module)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(program.main, arguments)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(quick: bool, progress: Progress) -> Section:
        assert quick
        progress("[nothing]")
        return section()

    suite(monkeypatch, "latency", measure)


def test_everything_that_was_measured_is_in_the_json(measured: None, tmp_path: Path) -> None:
    file = tmp_path / "new" / "results.json"
    assert run("latency", "--quick", "--json", str(file)).exit_code == 0
    results = json.loads(file.read_text())
    assert results["quick"] and results["failed"] == {}
    assert {"date", "processor", "cores", "kernel", "Python", "dsm"} <= results["machine"].keys()
    (only,) = results["sections"]
    assert only["absent"] == {"a peer": "apt-get install it", "empty": "nothing was measured"}
    near, far = only["figures"][1:3]
    assert near["bounds"][0]["met"] and not far["bounds"][0]["met"]
    assert near["ratios"][FLOOR] == pytest.approx(1200 / 1000.5)


def test_the_report_shows_missed_targets_as_plainly_as_met_ones(measured: None, tmp_path: Path) -> None:
    assert run("latency", "--quick", "--report", str(tmp_path)).exit_code == 0
    page = (tmp_path / "benchmarks.md").read_text()
    assert "1 met, 3 missed" in page
    assert f"| near | at most 1.5 × {FLOOR} | 1.20 | met |" in page
    assert f"| far | at most 1.5 × {FLOOR} | 3.10 | **missed** |" in page
    assert "| uneven | p99 at most 3 × its own median | 9.00 | **missed** |" in page
    assert "| lonely | at least 2,000 GB/s | 1.00 | **missed** |" in page
    assert "lonely: on its own" in page
    assert "at least 0.8 × a peer: not measured" in page
    assert "Absent: a peer (apt-get install it)." in page
    assert "A quick run" in page
    pictures = {path.name: path.read_bytes() for path in (tmp_path / "benchmarks").iterdir()}
    assert pictures.keys() == {"targets.png", "latency-latencies.png", "latency-medians.png"}
    for name, content in pictures.items():
        assert content.startswith(b"\x89PNG") and f"(benchmarks/{name})" in page


def test_a_suite_that_fails_is_reported_and_the_others_go_on(
    measured: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def measure(quick: bool, progress: Progress) -> Section:
        raise RuntimeError("no [such] thing")

    suite(monkeypatch, "bandwidth", measure)
    monkeypatch.setattr(program, "SUITES", ("bandwidth", "latency"))
    monkeypatch.setattr(program.main.params[0], "type", click.Choice(program.SUITES))
    result = run("--quick", "--json", str(tmp_path / "json"), "--report", str(tmp_path))
    assert result.exit_code == 1
    assert "bandwidth failed: RuntimeError: no [such] thing" in result.output
    results = json.loads((tmp_path / "json").read_text())
    assert results["failed"] == {"bandwidth": "RuntimeError: no [such] thing"}
    assert [each["name"] for each in results["sections"]] == ["latency"]
    assert "Failed: RuntimeError: no [such] thing" in (tmp_path / "benchmarks.md").read_text()


def test_the_tables_of_the_terminal_say_what_the_report_says(measured: None) -> None:
    output = run("latency", "--quick").output
    assert "MISSED (3.10)" in output and "met (1.20)" in output
    assert "absent: a peer (apt-get install it)" in output


def test_a_tail_is_shown_where_enough_was_measured_to_know_it() -> None:
    names = {row[0]: row for row in rows.figures(section())}
    assert names[FLOOR][4:6] == ("1,980", "1,998")
    assert names["uneven"][4:6] == ("9.00", "")
    assert names["far"][4:6] == ("", "")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (-0.0, "0"), (12345.6, "12,346"), (100.4, "100"), (42.05, "42.0"), (1.234, "1.23"), (0.01234, "0.0123")],
)
def test_numbers_have_about_three_digits(value: float, text: str) -> None:
    assert rows.number(value) == text


def test_an_application_obeys() -> None:
    first, second = Application(list, [1, 2, 2]), Application(list, [3])
    try:
        assert first.ask("count", 2) == 2
        first.tell("pop")
        assert first.answer() == 2
        assert together((first, ["index", 2]), (second, ["index", 3])) == [1, 0]
        assert not first.has_answered
        with pytest.raises(RuntimeError, match="exit code 1"):
            first.ask("no_method")
    finally:
        first.end()
        second.end()
