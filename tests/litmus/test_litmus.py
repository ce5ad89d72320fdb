"""Litmus tests on real clusters, fewer rounds than ``make litmus``; and that broken sharing does not pass them."""

from __future__ import annotations

from pathlib import Path

import pytest
from broken_sharing import AGENTS, MISTAKE_S, never_ended, plant
from campaign import DEFAULT, Run, Variant, run_all, variants
from cluster import running
from litmus_program import PRIVATE, STALE

import dsm

ROUNDS = 120
SEED = 1


def told(runs: list[Run]) -> str:
    """Also where all is well: pytest shows it with ``-rP``."""
    text = "\n".join(line for run in runs for line in run.report())
    print(text)
    return text


@pytest.mark.parametrize(("nodes", "ranks"), [(2, 2), (2, 4), (3, 3), (4, 4)])
def test_nothing_comes_that_sequential_consistency_forbids(nodes: int, ranks: int) -> None:
    group = [each for each in variants(DEFAULT) if (each.nodes, each.ranks) == (nodes, ranks)]
    with running(nodes) as cluster:
        runs = run_all(cluster, group, ROUNDS, SEED)
    text = told(runs)
    assert [run.histogram.total() for run in runs] == [ROUNDS] * len(group)
    assert sum(run.forbidden for run in runs) == 0, text
    if len(group) > 4:  # fewer tests, of more threads: there may be none on a busy machine
        assert any(run.histogram.total("interleaved") for run in runs), text


def test_within_one_node_nothing_comes_that_tso_forbids() -> None:
    group = [Variant(1, 2, name, apart) for name in ("SB", "MP") for apart in (False, True)]
    with running(1) as cluster:
        runs = run_all(cluster, group, 3000, SEED)
    text = told(runs)
    assert sum(run.forbidden for run in runs) == 0, text


# -- the harness can fail ------------------------------------------------------------------------------


def test_regions_that_have_nothing_in_common_are_found_out() -> None:
    with running(2) as cluster:
        (run,) = run_all(cluster, [Variant(2, 2, "SB", True)], ROUNDS, SEED, PRIVATE)
    assert run.forbidden == ROUNDS


def test_loads_from_an_old_copy_are_found_out() -> None:
    with running(2) as cluster:
        runs = run_all(cluster, [Variant(2, 2, name, True) for name in ("MP", "SB", "CoRR")], 2000, SEED, STALE)
    text = told(runs)
    assert sum(run.forbidden for run in runs) > 0, text


@pytest.mark.parametrize("mistake", AGENTS)
def test_an_agent_that_makes_a_mistake_is_found_out(
    mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", plant(mistake, tmp_path))
    group = [each for each in variants(["MP", "SB"]) if (each.nodes, each.ranks) == (2, 2)]
    try:
        with running(2) as cluster:
            runs = run_all(cluster, group, 2500, SEED, limit_s=MISTAKE_S)
    except AssertionError as error:
        assert never_ended(error)
        return
    text = told(runs)
    assert sum(run.forbidden for run in runs) > 0, text


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
        assert cluster.run(load_either_value, 400_000, node=nodes - 1) >= 1
        assert storing.result() == 200_000
