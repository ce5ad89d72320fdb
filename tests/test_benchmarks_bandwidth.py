"""The suite of bandwidths, quick: its figures are there and sensible in kind. Their size does not matter here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.bandwidth import STREAM


def test_every_figure_is_there_and_stands_beside_something(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks", "bandwidth", "--quick", "--json", str(file)]
    subprocess.run(command, check=True, capture_output=True, timeout=100)
    (section,) = json.loads(file.read_text())["sections"]
    figures: dict[str, Any] = {figure["name"]: figure for figure in section["figures"]}
    beside_stream = {"sequential read", "strided read", "reverse read", "prefetch", "prefetch to write"}
    beside_stream |= {"overwriting another node's pages", "overwriting shared pages"}
    assert all(STREAM in figures[name]["ratios"] for name in beside_stream)
    assert all(figure["quantiles"]["p50"] > 0 for figure in figures.values())
    moved, wanted = figures["pages moved by random reads"], figures["pages read at random"]
    assert moved["quantiles"]["p25"] >= wanted["quantiles"]["p50"], "no page is read that has not come"
    assert sum(len(figure["bounds"]) for figure in figures.values()) == 5
