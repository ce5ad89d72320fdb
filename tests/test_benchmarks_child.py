"""The children of the benchmarks: one that dies or hangs is an error that says so, and none leaves anybody behind."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import child
from benchmarks.application import Application, Cluster
from benchmarks.child import Child, Died, answers

OBEYS = """
import json, os, signal, subprocess, sys, time
def say(what): print(json.dumps(what), flush=True)
say(os.getpid())
for line in sys.stdin:
    match json.loads(line):
        case ["echo", what]: say(what)
        case ["twice"]: os.write(1, b"1\\n2\\n")
        case ["fail"]: raise ValueError("out of order")
        case ["die"]: os.kill(os.getpid(), signal.SIGKILL)
        case ["deaf"]: os.close(0); time.sleep(1000)
        case ["sleep"]: time.sleep(1000)
        case ["start", *command]: say(subprocess.Popen(command).pid)
"""


@pytest.fixture
def made() -> Iterator[list[Child]]:
    """Ready children; all have ended at the end."""
    children = [Child([sys.executable, "-c", OBEYS], name=name) for name in ("first", "second")]
    try:
        answers(*children)
        yield children
    finally:
        for each in children:
            each.kill()


def is_here(pid: int) -> bool:
    """Zombies are not."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def test_one_answers_in_order(made: list[Child]) -> None:
    first = made[0]
    assert first.ask("echo", "x" * 300_000) == "x" * 300_000
    first.tell("twice")
    assert first.answer() == 1
    assert first.has_answered, "the second line came with the first"
    assert first.answer() == 2
    assert not first.has_answered
    assert first.end() == first.end() == 0


def test_one_that_fails_is_named_with_its_exit_and_its_last_words(made: list[Child]) -> None:
    with pytest.raises(Died, match=r"(?s)^first ended \(exit code 1\).*ValueError: out of order$"):
        made[0].ask("fail")
    with pytest.raises(Died, match=r"^first has ended \(exit code 1\)"):
        made[0].tell("echo", 1)
    with pytest.raises(Died, match=r"^first has ended"):
        made[0].answer()


def test_telling_one_that_has_died(made: list[Child]) -> None:
    first = made[0]
    first.tell("die")
    os.waitid(os.P_PIDFD, first.pidfd, os.WEXITED | os.WNOWAIT)
    with pytest.raises(Died, match=r"^first ended \(killed by SIGKILL\)"):
        first.tell("echo", 1)


def test_telling_one_that_reads_no_more_is_given_up(made: list[Child], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "LIMIT_S", 0.2)
    made[0].tell("sleep")
    with pytest.raises(Died, match=r"took no order for 0\.2 s, and was killed"):
        made[0].tell("echo", "x" * 300_000)


def test_one_that_hangs_is_killed_at_the_limit(made: list[Child], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "LIMIT_S", 0.2)
    for each in made:
        each.tell("sleep")
    with pytest.raises(Died, match=r"(?s)first ended \(silent for 0.2 s, and was killed\).*second ended"):
        answers(*made)


def test_the_death_of_one_is_told_although_another_waits(made: list[Child]) -> None:
    first, second = made
    first.tell("sleep")
    second.tell("die")
    with pytest.raises(Died, match=r"^second ended \(killed by SIGKILL\)"):
        answers(first, second)


@pytest.mark.parametrize("how", ["die", "fail", "end", "kill"])
def test_what_it_has_started_ends_with_it(made: list[Child], how: str) -> None:
    first = made[0]
    holds_the_pipes = first.ask("start", "sleep", "1000")
    ignores = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(1000)"
    started = [holds_the_pipes, first.ask("start", sys.executable, "-c", ignores)]
    assert all(is_here(pid) for pid in started)
    if how == "end":
        assert first.end() == 0
    elif how == "kill":
        assert first.kill() == -signal.SIGKILL
    else:
        with pytest.raises(Died, match="SIGKILL" if how == "die" else "exit code 1"):
            first.ask(how)
    for pid in started:
        ended(pid)


def ended(pid: int) -> None:
    """A killed process is gone soon."""
    with contextlib.suppress(ProcessLookupError):
        pidfd = os.pidfd_open(pid)
        try:
            assert select.select([pidfd], [], [], 10)[0], f"{pid} is still there"
        finally:
            os.close(pidfd)


def test_what_it_has_started_may_tidy_up(made: list[Child], tmp_path: Path) -> None:
    tidies = f"trap 'touch {tmp_path}/tidy; exit' TERM; echo null; while :; do sleep 0.01; done"
    made[0].tell("start", "sh", "-c", tidies)
    assert {made[0].answer() is None, made[0].answer() is None} == {True, False}
    made[0].kill()
    assert (tmp_path / "tidy").exists()


def test_applications_end_before_the_nodes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ends: list[str] = []
    kill = Application.kill

    def told(self: Application) -> int:
        ends.append(f"application, {[is_here(service.process.pid) for service in services]}")
        return kill(self)

    monkeypatch.setattr(Application, "kill", told)
    with contextlib.ExitStack() as done:
        cluster = Cluster(tmp_path, done)
        assert cluster.start(cluster.node(), list, [1]).ask("count", 1) == 1
        cluster.start(cluster.node("late"), list, [1])
        services = list(cluster.services.values())
        assert list(cluster.services) == ["directory", "node1", "late"]
    assert ends == ["application, [True, True, True]"] * 2
    assert not any(is_here(service.process.pid) for service in services)
