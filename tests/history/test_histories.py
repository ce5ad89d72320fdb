"""Histories of real clusters, fewer than ``make histories``; and that broken sharing does not pass."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from broken_sharing import ACKNOWLEDGES_FIRST, AGENTS, MISTAKE_S, never_ended, plant
from cluster import Cluster, running
from histories import Result, check
from programs import LOAD, PAGE_WORDS, STORE, Settings, batches
from record import logged, run
from recorder import SOUND, STALE

SEED = 1
RUNS_MAX = 10
STOP_S = 45.0
"""No further run is begun then. Whether accesses overlap is up to the scheduler of the machine: a test may ask for that
again and again, and then has to say that it did not come, but it is no failure of what is tested."""


def told(results: list[Result]) -> str:
    """Also where all is well: pytest shows it with ``-rP``."""
    parts = [[str(each), *map(str, each.linearizability[:3]), *each.sequential[:3]] for each in results]
    text = "\n\n".join(part for each in parts for part in each)
    print(text)
    return text


def repeated(
    cluster: Cluster, programs: int, ranks: int, enough: Callable[[Result], bool], sharing: str = SOUND
) -> list[Result]:
    """The results of runs with one seed after the other, until one is enough or it makes no sense to go on."""
    results: list[Result] = []
    stop_s = time.monotonic() + STOP_S
    for seed in range(SEED, SEED + RUNS_MAX):
        results.append(run(cluster, Settings(programs, seed, ranks), sharing, MISTAKE_S)[0])
        assert results[-1].programs == programs
        if enough(results[-1]) or time.monotonic() > stop_s:
            break
    return results


def overlapped(result: Result) -> bool:
    """Did it show an overlap, of single accesses and of programs?"""
    return bool(result.mixed and result.overlapping)


def report_no_overlap(results: list[Result]) -> None:
    """Skip what remains of a test, with the reason, if the machine gave it nothing to see."""
    if not any(map(overlapped, results)):
        programs = sum(each.programs for each in results)
        pytest.skip(f"all was sound, but of {programs} programs none or nearly none overlapped: this shows little")


@pytest.mark.parametrize(("nodes", "ranks"), [(1, 3), (2, 4), (3, 3), (4, 4)])
def test_what_a_cluster_does_is_linearizable(nodes: int, ranks: int) -> None:
    with running(nodes) as cluster:
        results = repeated(cluster, 200, ranks, lambda found: not found.sound or overlapped(found))
    text = told(results)
    assert all(each.sound for each in results), text
    report_no_overlap(results)


def test_loads_from_an_old_copy_are_found_out() -> None:
    with running(2) as cluster:
        results = repeated(cluster, 300, 3, lambda found: bool(found.linearizability and found.sequential), STALE)
    text = told(results)
    assert results[-1].linearizability and results[-1].sequential, text


@pytest.mark.parametrize("mistake", AGENTS)
def test_an_agent_that_makes_a_mistake_is_found_out(
    mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", plant(mistake, tmp_path))
    try:
        with running(2) as cluster:
            results = repeated(cluster, 500, 4, lambda found: bool(found.linearizability))
    except AssertionError as error:
        assert never_ended(error)
        return
    text = told(results)
    if not results[-1].linearizability:
        report_no_overlap(results)
    assert results[-1].linearizability, text


def test_a_mistake_that_only_a_clock_can_tell_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", plant(ACKNOWLEDGES_FIRST, tmp_path))
    with running(2) as cluster:
        results = repeated(cluster, 500, 4, lambda found: bool(found.linearizability))
    text = told(results)
    assert not any(each.sequential for each in results), text
    if not results[-1].linearizability:
        report_no_overlap(results)
    assert results[-1].linearizability, text


# -- logs ----------------------------------------------------------------------------------------------


def test_a_log_of_another_word_is_refused() -> None:
    settings = Settings(5, SEED, 2)
    with running(1) as cluster:
        logs = logged(cluster, settings)[0]
    assert check(settings, logs).sound
    logs[0][0][1] += 1
    with pytest.raises(AssertionError, match="was to access word"):
        check(settings, logs)


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
