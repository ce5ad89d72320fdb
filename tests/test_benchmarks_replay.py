"""Replaying accesses through the policy: what is counted, which files are refused, what the patterns come to."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.replay import PATTERNS, Outcome, main, parse, replay


def test_a_short_sweep_is_counted_page_by_page() -> None:
    """Faults at 0, 1 and 6; 2-5 and 7-9 come ahead, of which 8 and 9 are never touched."""
    assert replay([(page, False) for page in range(8)], 10) == Outcome(8, 8, 3, 7, 5)


def test_extra_is_what_came_for_nothing() -> None:
    outcome = Outcome(accesses=100, faults_without=50, faults_with=30, asked_ahead=30, right=20)
    assert (outcome.wrong, outcome.extra_percent) == (10, 20.0)


def test_a_write_to_what_was_read_is_a_fault() -> None:
    assert replay([(5, False), (5, True), (5, True), (5, False)], 10) == Outcome(4, 2, 2, 0, 0)


@pytest.mark.parametrize("name", ["sequential", "reverse", "two-streams"])
def test_what_is_regular_hardly_faults(name: str) -> None:
    outcome = replay(PATTERNS[name](random.Random(1)), 20_000)
    assert outcome.faults_without == 20_000
    assert outcome.faults_with < 200
    assert outcome.extra_percent < 1


def test_strides_and_stencils_fault_less() -> None:
    for name in ("strided", "stencil"):
        outcome = replay(PATTERNS[name](random.Random(1)), 20_000)
        assert outcome.faults_with < outcome.faults_without / 8


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["random", "zipf"])
def test_random_accesses_cost_a_tenth_at_most(name: str, seed: int) -> None:
    assert replay(PATTERNS[name](random.Random(seed)), 20_000).extra_percent <= 10


def test_a_recorded_pattern_is_read() -> None:
    assert parse("3\n\n4 w  # comment\n# only that\n") == [(3, False), (4, True)]


@pytest.mark.parametrize("line", ["-1", "x", "3 r", "3 w w", "²"])
def test_a_line_that_is_no_access_is_named(line: str) -> None:
    with pytest.raises(ValueError, match="line 2"):
        parse(f"1\n{line}\n")


def test_a_file_is_replayed(tmp_path: Path) -> None:
    recorded = tmp_path / "accesses"
    recorded.write_text("".join(f"{page}\n" for page in range(8)))
    result = CliRunner().invoke(main, [str(recorded), "--json", "--pages", "10"], catch_exceptions=False)
    assert json.loads(result.output)["accesses"]["faults_with"] == 3
    assert CliRunner().invoke(main, [str(recorded), "--pages", "5"]).exit_code == 1
    recorded.write_text("nonsense\n")
    assert "line 1" in CliRunner().invoke(main, [str(recorded)]).output


def test_all_patterns_are_printed() -> None:
    result = CliRunner().invoke(main, ["--pattern", "strided"], catch_exceptions=False)
    assert "strided" in result.output
    assert CliRunner().invoke(main, ["--pattern", "strided", "--pages", "4"]).exit_code == 2
