"""The suite of latencies, quick: its figures are there and sensible in kind. Their size does not matter here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fault_thread import FaultThread, NoFaultThread
from benchmarks.floors import Floors, Stream
from benchmarks.latency import PARTIES, ROUND_TRIP, SHARERS
from benchmarks.private_memory import fill, first_touches


def test_every_figure_is_there_and_stands_beside_something(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks", "latency", "--quick", "--json", str(file)]
    ended = subprocess.run(command, capture_output=True, timeout=100, text=True)
    assert ended.returncode == 0, ended.stderr
    (section,) = json.loads(file.read_text())["sections"]
    figures: dict[str, Any] = {figure["name"]: figure for figure in section["figures"]}
    expected = {"first touch", "local fault", "remote read, from its owner", "remote read, from a sharer"}
    expected |= {"upgrade, 1 sharer", "upgrade, 2 sharers", "lock, uncontended", "lock, taken again", "lock, hand-over"}
    crowd = {f"upgrade, {sharers} sharers, of nine nodes" for sharers in SHARERS[1:]}
    crowd |= {"upgrade, 1 sharer, of nine nodes", *(f"barrier of {parties}" for parties in PARTIES)}
    assert expected | crowd <= figures.keys()
    for name, figure in figures.items():
        quantiles = figure["quantiles"]
        assert 0 <= quantiles["p25"] <= quantiles["p50"] <= quantiles["p99"], name
        assert quantiles["p25"] > 0 if "µs" in figure["unit"] else quantiles["p99"] <= 100, name
    assert all(ROUND_TRIP in figures[name]["ratios"] for name in expected - {"local fault"})
    assert all(f"{ROUND_TRIP}, of nine nodes" in figures[name]["ratios"] for name in crowd)
    bounds = {(bound["beside"], bound["ratio"]) for bound in figures["remote read, from its owner"]["bounds"]}
    assert bounds == {(ROUND_TRIP, 1.2), (ROUND_TRIP, 1.5), ("remote read, from its owner", 3)}


def test_the_floors_measure_what_they_are_asked_for() -> None:
    floors, stream = Floors(), Stream(1 << 20)
    try:
        for floor in (floors.round_trips, floors.three_hops, floors.three_hops_tcp, first_touches):
            took = floor(5)
            assert len(took) == 5 and min(took) > 0
        assert stream.seconds() > 0 and stream.seconds() > 0
        assert fill(1 << 20) > 0
    finally:
        stream.close()
        floors.close()


def test_a_thread_in_c_serves_faults_and_serves_them_again() -> None:
    try:
        thread = FaultThread()
    except NoFaultThread as error:
        pytest.skip(str(error))
    try:
        for count in (3, 1024, 2):
            took = thread.faults(count)
            # A store to a page that is here takes a few nanoseconds, one that another thread serves thousands.
            assert len(took) == count and min(took) > 500
    finally:
        thread.close()


def test_without_a_compiler_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(NoFaultThread, match="apt-get install gcc"):
        FaultThread()
