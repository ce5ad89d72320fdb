"""Histories of real clusters, fewer than ``make histories``; and that broken sharing does not pass."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from broken_sharing import ACKNOWLEDGES_FIRST, AGENTS, MISTAKE_S, never_ended, plant
from cluster import running
from histories import Result
from programs import LOAD, PAGE_WORDS, STORE, Settings, batches
from record import run
from recorder import STALE

SEED = 1


def told(result: Result) -> str:
    return "\n\n".join([str(result), *map(str, result.linearizability[:3]), *result.sequential[:3]])


@pytest.mark.parametrize(("nodes", "ranks"), [(1, 3), (2, 4), (4, 4)])
def test_what_a_cluster_does_is_linearizable(nodes: int, ranks: int) -> None:
    with running(nodes) as cluster:
        result, _ = run(cluster, Settings(200, SEED, ranks))
    print(result)
    assert result.sound, told(result)
    assert result.programs == 200 and result.mixed and result.overlapping, told(result)


def test_loads_from_an_old_copy_are_found_out() -> None:
    with running(2) as cluster:
        result, _ = run(cluster, Settings(300, SEED, 3), STALE)
    print(result)
    assert result.linearizability and result.sequential, told(result)


@pytest.mark.parametrize("mistake", AGENTS)
def test_an_agent_that_makes_a_mistake_is_found_out(
    mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", plant(mistake, tmp_path))
    try:
        with running(2) as cluster:
            result, _ = run(cluster, Settings(500, SEED, 4), limit_s=MISTAKE_S)
    except AssertionError as error:
        assert never_ended(error)
        return
    print(result)
    assert result.linearizability, told(result)


def test_a_mistake_that_only_a_clock_can_tell_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", plant(ACKNOWLEDGES_FIRST, tmp_path))
    with running(2) as cluster:
        result, _ = run(cluster, Settings(500, SEED, 4))
    print(result)
    assert result.linearizability and not result.sequential, told(result)


# -- programs ------------------------------------------------------------------------------------------


def test_every_store_is_of_another_value() -> None:
    stored = [
        call.value
        for batch in batches(Settings(500, 3, 4))
        for calls in batch.calls
        for call in calls
        if call.kind == STORE
    ]
    assert len(stored) > 500 and len(set(stored)) == len(stored) and 0 not in stored


def test_programs_of_a_batch_share_pages_and_no_word() -> None:
    programs, sharing = 0, False
    for batch in batches(Settings(300, 4, 4)):
        words = [word for mine in batch.words for word in mine]
        assert len(set(words)) == len(words)
        pages = [{word // PAGE_WORDS for word in mine} for mine in batch.words]
        sharing = sharing or any(one & other for one, other in itertools.pairwise(pages))
        for calls in batch.calls:
            assert all(call.word in batch.words[call.program] for call in calls)
            assert all(call.value == 0 for call in calls if call.kind == LOAD)
        programs += len(batch.words)
    assert programs == 300 and sharing
