"""The suite that says where a fault spends its time, quick: stages in order, put together from three records."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.faultpath import KINDS, SERVICES, Lane, marks
from dsm.story import Story
from dsm.trace import Trace


def test_the_stages_of_every_kind_of_fault(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks", "faultpath", "--quick"]
    options = ["--json", str(file), "--report", str(tmp_path)]
    subprocess.run([*command, *options], check=True, capture_output=True, timeout=100)
    (section,) = json.loads(file.read_text())["sections"]
    assert (tmp_path / "benchmarks" / "faultpath.png").stat().st_size > 0
    names = [figure["name"] for figure in section["figures"]]
    for kind in KINDS:
        assert {kind, f"{kind}, traced", *(f"{kind}: processor time, {service}" for service in SERVICES)} <= {*names}
        of_kind = [name.removeprefix(f"{kind}: ") for name in names if name.startswith(f"{kind}: ")]
        stages = [name[3:] for name in of_kind if name[0].isdigit()]
        hops = list(dict.fromkeys(stage.partition(": ")[0] for stage in stages))
        assert hops[:2] == ["requester", "directory"] and stages[-1] == "application: wake up"
        facts = section["facts"][kind]
        assert 0 < facts["put together"] <= facts["faults"]


def test_a_record_tells_what_was_done_when(tmp_path: Path) -> None:
    trace = Trace(tmp_path / "record.json", "somebody")
    assert trace.around("add", lambda a, b: a + b)(1, 2) == 3
    with pytest.raises(ZeroDivisionError):
        trace.around("divide", lambda: 1 // 0)()
    story = trace.follow(Story())
    story.add((0.0, 7, 5, 6, "what", 0, 1, "a load"))
    assert [entry["what"] for entry in story.of(7, 5, str)] == ["what"]
    trace.write()
    name, *events = json.loads((tmp_path / "record.json").read_text())["traceEvents"]
    assert name["args"] == {"name": "somebody"}
    assert [event["name"] for event in events] == ["add", "divide", "decided"]
    assert all(event["dur"] >= 0 for event in events) and events[2]["args"]["page"] == 5
    lane = Lane(tmp_path / "record.json")
    decided = events[2]["ts"] * 1000
    assert lane.decided(5, decided - 1, decided + 1, False) == decided
    with pytest.raises(LookupError):
        marks(KINDS["first touch"].hops, dict.fromkeys(SERVICES, lane), (6, 0, 1 << 62))
