"""Litmus tests on real clusters, fewer rounds than ``make litmus``; and that broken sharing does not pass them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from broken_sharing import AGENTS, MISTAKE_S, never_ended, plant
from campaign import DEFAULT, Run, Variant, run_all, variants
from cluster import Cluster, running
from litmus_program import PRIVATE, SOUND, STALE

import dsm

ROUNDS = 120
SEED = 1
ENOUGH = 3
"""Rounds whose outcome shows that threads overlapped, of each test that can show it: then it has shown something."""
RUNS_MAX = 10
STOP_S = 45.0
"""No further run is begun then. Whether threads overlap is up to the scheduler of the machine: a test may ask for that
again and again, and then has to say that it did not come, but it is no failure of what is tested."""


def told(runs: list[Run]) -> str:
    """Also where all is well: pytest shows it with ``-rP``."""
    text = "\n".join(line for run in runs for line in run.report())
    print(text)
    return text


def repeated(
    cluster: Cluster,
    group: list[Variant],
    rounds: int,
    enough: Callable[[list[Run]], bool],
    sharing: str = SOUND,
    limit_s: float = MISTAKE_S,
) -> list[Run]:
    """All runs, with one seed after the other, until there are enough of them or it makes no sense to go on. A test
    that has shown enough overlaps is not run again as long as others have not."""
    runs: list[Run] = []
    stop_s = time.monotonic() + STOP_S
    for seed in range(SEED, SEED + RUNS_MAX):
        chosen = idle(group, runs) or group
        runs += run_all(cluster, chosen, rounds, seed, sharing, limit_s)
        assert all(run.histogram.total() == rounds for run in runs)
        if enough(runs) or time.monotonic() > stop_s:
            break
    return runs


def idle(group: list[Variant], runs: list[Run]) -> list[Variant]:
    """The tests that can show an overlap and have not shown enough of it."""
    seen: Counter[Variant] = Counter()
    blind = set()
    for run in runs:
        seen[run.variant] += run.interleaved
        if not run.histogram.allowed - run.histogram.sequential:
            blind.add(run.variant)
    return [each for each in group if each not in blind and seen[each] < ENOUGH]


def overlapped(runs: list[Run]) -> bool:
    """Has every test that can show an overlap shown enough of it?"""
    return not idle(list({run.variant for run in runs}), runs)


def broken(runs: list[Run]) -> bool:
    """Has something come that is forbidden?"""
    return any(run.forbidden for run in runs)


def report_no_overlap(runs: list[Run]) -> None:
    """Skip what remains of a test, with the reason, if the machine gave it nothing to see."""
    if not overlapped(runs):
        rounds = sum(run.histogram.total() for run in runs)
        mixed = sum(run.interleaved for run in runs)
        pytest.skip(f"nothing forbidden came, but only {mixed} of {rounds} rounds overlapped: this shows little")


@pytest.mark.parametrize(("nodes", "ranks"), sorted({each[:2] for each in variants(DEFAULT) if each.nodes > 1}))
def test_nothing_comes_that_sequential_consistency_forbids(nodes: int, ranks: int) -> None:
    group = [each for each in variants(DEFAULT) if (each.nodes, each.ranks) == (nodes, ranks)]
    with running(nodes) as cluster:
        runs = repeated(cluster, group, ROUNDS, lambda runs: broken(runs) or overlapped(runs))
    text = told(runs)
    assert not broken(runs), text
    report_no_overlap(runs)


def test_within_one_node_nothing_comes_that_tso_forbids() -> None:
    group = [Variant(1, 2, name, apart) for name in ("SB", "MP") for apart in (False, True)]
    with running(1) as cluster:
        runs = repeated(cluster, group, 3000, lambda runs: broken(runs) or overlapped(runs))
    text = told(runs)
    assert not broken(runs), text
    report_no_overlap(runs)


def test_every_test_runs_on_two_to_four_nodes_and_on_one_page_and_several() -> None:
    asked = {"MP", "SB", "LB", "IRIW", "CoRR", "CoWW", "CoRW", "2+2W"}
    assert asked <= set(DEFAULT)
    found = {(each.shape, each.nodes, each.apart) for each in variants(DEFAULT)}
    several = {name for name in asked if not name.startswith("Co")}
    assert found >= {(name, nodes, False) for name in asked for nodes in (2, 3, 4)}
    assert found >= {(name, nodes, True) for name in several for nodes in (2, 3, 4)}


# -- the harness can fail ------------------------------------------------------------------------------


def test_regions_that_have_nothing_in_common_are_found_out() -> None:
    with running(2) as cluster:
        (run,) = run_all(cluster, [Variant(2, 2, "SB", True)], ROUNDS, SEED, PRIVATE)
    assert run.forbidden == ROUNDS


def test_loads_from_an_old_copy_are_found_out() -> None:
    group = [Variant(2, 2, name, True) for name in ("MP", "SB", "CoRR")]
    with running(2) as cluster:
        runs = repeated(cluster, group, 2000, broken, STALE)
    text = told(runs)
    assert broken(runs), text


@pytest.mark.parametrize("mistake", AGENTS)
def test_an_agent_that_makes_a_mistake_is_found_out(
    mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", plant(mistake, tmp_path))
    group = [each for each in variants(["MP", "SB"]) if (each.nodes, each.ranks) == (2, 2)]
    try:
        with running(2) as cluster:
            runs = repeated(cluster, group, 2500, broken)
    except AssertionError as error:
        assert never_ended(error)
        return
    text = told(runs)
    if not broken(runs):
        report_no_overlap(runs)
    assert broken(runs), text


# -- what the accesses are -----------------------------------------------------------------------------


def store_two_values(times: int) -> int:
    """A value whose halves are alike, and another; all bytes of it differ."""
    barrier = dsm.Barrier("both", 2)
    with dsm.attach("word", 4096) as region:
        words = region.buf.cast("Q")
        barrier.wait()
        for _ in range(times):
            words[1] = 0x0123456789ABCDEF
            words[1] = 0xFEDCBA9876543210
        barrier.wait()
        return times


def load_either_value(times: int) -> int:
    barrier = dsm.Barrier("both", 2)
    with dsm.attach("word", 4096) as region:
        words = region.buf.cast("Q")
        barrier.wait()
        seen = {words[1] for _ in range(times)}
        barrier.wait()
    assert seen <= {0, 0x0123456789ABCDEF, 0xFEDCBA9876543210}, sorted(map(hex, seen))
    return len(seen)


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_word_is_never_half_written(nodes: int) -> None:
    with running(nodes) as cluster:
        storing = cluster.start(store_two_values, 200_000, node=0)
        seen = cluster.run(load_either_value, 400_000, node=nodes - 1)
        print(f"{seen} different values were read")
        assert storing.result() == 200_000
