"""The machines in all that can happen in small clusters; and the checker itself, which must find what is wrong."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from processes import children, is_deaf
from rich.console import Console

from nodes.machine import NodeMachine

from . import bugs
from .__main__ import table
from .configurations import QUICK
from .conversation import conversation
from .explore import Found, World, explore
from .progress import check_progress, cyclic_core
from .sides import Configuration
from .verdict import run

ACCESS = ("load", "store")


def look(how: Configuration) -> tuple[World, Found | None]:
    world = World(how)
    graph, found = explore(world)
    return world, found or check_progress(graph, livelock=how.patient)


@pytest.mark.parametrize("name", QUICK)
def test_everything_holds_in_every_state(name: str) -> None:
    world, found = look(QUICK[name])
    assert found is None, conversation(world, found)


# -- what is wrong is found ------------------------------------------------------------------------------

SEEDED = [
    (bugs.WritesBeforeTheAcks, Configuration((2, 2), operations=ACCESS), "single writer"),
    (bugs.SaysDoneBeforeTheAcks, Configuration((2, 2), operations=ACCESS), "unhandled"),
    (bugs.KeepsWritable, Configuration((1, 1), operations=ACCESS), "memory"),
    (bugs.NeverDrops, Configuration((2, 2), operations=ACCESS), "memory"),
    (bugs.SaysDoneBeforeItDrops, QUICK["2 nodes, 1 page, stepwise"], "single writer"),
    (bugs.AcknowledgesBeforeItDrops, QUICK["2 nodes, 1 page, stepwise"], "single writer"),
    (
        bugs.TakesLateAnswers,
        Configuration((0, 1), operations=ACCESS, departures=1, before=((1, ("load", 0, 0)),)),
        "unhandled",
    ),
    (bugs.ForgetsWhatIsOver, QUICK["run of two owners, departure"], "unhandled"),
    (bugs.CountsAcksOfWhatIsOver, QUICK["run of two owners that share, departure"], "bounds"),
    (bugs.ForgetsWhatItClosed, QUICK["run given up before the acks"], "unhandled"),
    (bugs.ForgetsWhatItClosed, QUICK["run closed early"], "unhandled"),
    (bugs.DoesNotHold, Configuration((1, 1), operations=ACCESS), "livelock"),
    (bugs.WakesOnlyOne, Configuration((1, 2), operations=ACCESS, applications=2), "deadlock"),
    (bugs.ForgetsOneSharer, Configuration((2, 2), operations=ACCESS), "single writer"),
    (bugs.ForgetsTheQueue, Configuration((2, 2), operations=ACCESS), "deadlock"),
    (bugs.DoesNotQueue, Configuration((2, 2), operations=ACCESS), "unhandled"),
]


@pytest.mark.parametrize(("bug", "how", "kind"), SEEDED, ids=[bug.__name__ for bug, _, _ in SEEDED])
def test_a_seeded_bug_is_found(bug: type[Any], how: Configuration, kind: str) -> None:
    is_node = issubclass(bug, NodeMachine)
    world, found = look(how._replace(node_class=bug) if is_node else how._replace(directory_class=bug))
    assert found is not None
    assert found.wrong.startswith(f"{kind}:")
    told = conversation(world, found).splitlines()
    assert told[-1].startswith(f"so: {kind}:")
    assert any("dir gets Request p" in line for line in told)
    if kind == "livelock":
        assert "and from here on, round and round:" in told

    _, without = look(how)  # the same exploration of the machines as they are
    assert without is None


def test_a_livelock_is_none_where_holds_may_be_too_short() -> None:
    how = Configuration((1, 1), operations=ACCESS, patient=False)
    graph, found = explore(World(how))
    assert found is None
    assert check_progress(graph, livelock=False) is None
    assert len(cyclic_core(graph))


def test_the_table_tells_what_holds_and_what_does_not() -> None:
    how = Configuration((1, 1), operations=ACCESS)
    chosen = {"right": how, "wrong": how._replace(node_class=bugs.KeepsWritable), "later": how}
    verdicts = {name: run(name, chosen[name]) for name in ("right", "wrong")}
    console = Console(width=160, file=StringIO(), record=True)
    console.print(table(chosen, {**verdicts}))
    shown = {line.split()[1]: line for line in console.export_text().splitlines() if line.startswith("│")}
    assert f"{verdicts['right'].states:,}" in shown["right"] and "holds" in shown["right"]
    assert "memory: p0" in shown["wrong"] and "so: memory: p0" in verdicts["wrong"].conversation
    assert "waits" in shown["later"]


def test_an_interrupted_run_says_how_far_it_got() -> None:
    environment = {**os.environ, "PYTHONPATH": "tests:tests/machines"}
    with subprocess.Popen(
        [sys.executable, "-m", "model", "--json", "--jobs", "2"],
        cwd=Path(__file__).parents[2],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        while len(children(process.pid)) < 3:  # one tracks resources
            assert process.poll() is None
        assert all(map(is_deaf, children(process.pid)))
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
        _, said = process.communicate()  # to its end: nobody is left who could say more
    assert process.returncode == 130
    assert re.fullmatch(
        r"interrupted: \d+ of \d+ configurations explored, 0 of them wrong; [\d,]+ states so far\n", said
    )
