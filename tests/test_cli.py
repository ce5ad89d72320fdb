"""The command line without services: errors as one line and an exit code, what is passed on, what is printed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dsm import cli, constants, doctor, errors, local, wire
from dsm.cli.status import human
from nodes import statistics

Dsm = Callable[..., int]


@pytest.fixture
def dsm(monkeypatch: pytest.MonkeyPatch) -> Dsm:
    """Runs ``dsm`` with these arguments in this process; the exit code."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["dsm", *arguments])
        return cli.main()

    return call


# --- errors --------------------------------------------------------------------------------------------


def test_an_error_of_dsm_is_one_line_and_exit_code_1(
    dsm: Dsm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def examine() -> list[doctor.Check]:
        raise errors.NodeUnreachable("nobody\n  answers")

    monkeypatch.setattr(doctor, "examine", examine)
    assert dsm("doctor") == 1
    assert capsys.readouterr() == ("", "dsm: error: nobody answers\n")


def test_ctrl_c_is_exit_code_130(dsm: Dsm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def examine() -> list[doctor.Check]:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "examine", examine)
    assert dsm("doctor") == 130
    assert "Traceback" not in capsys.readouterr().err


def test_wrong_usage_is_exit_code_2(dsm: Dsm, capsys: pytest.CaptureFixture[str]) -> None:
    assert dsm("run", "--nodes", "0", "true") == 2
    assert "--nodes" in capsys.readouterr().err
    assert dsm("run") == 2
    assert dsm("nothing") == 2
    assert dsm("status", "--node", "/a", "--directory", "tcp://b:1") == 2


def test_help_lists_every_command(dsm: Dsm, capsys: pytest.CaptureFixture[str]) -> None:
    assert dsm("--help") == 0
    shown = capsys.readouterr().out
    commands = ("demo", "directory", "doctor", "node", "run", "status")
    assert [name for name in commands if f"\n  {name} " not in shown] == []


def test_version_tells_the_protocol(dsm: Dsm, capsys: pytest.CaptureFixture[str]) -> None:
    assert dsm("--version") == 0
    assert capsys.readouterr().out.endswith(f"(protocol {constants.PROTOCOL_VERSION})\n")


def test_the_command_line_starts_without_tables_and_sockets() -> None:
    code = "import sys, dsm.cli; print(*sorted({'rich', 'zmq', 'numpy', 'matplotlib'} & sys.modules.keys()))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert loaded.stdout.split() == []


# --- directory, node -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "module"), [("directory", "directory"), ("node", "nodes")])
def test_services_get_every_argument(dsm: Dsm, monkeypatch: pytest.MonkeyPatch, name: str, module: str) -> None:
    class Became(BaseException):
        pass

    def execve(path: str, argv: list[str], environment: dict[str, str]) -> None:
        raise Became(path, argv)

    monkeypatch.setattr(os, "execve", execve)
    arguments = ["--help", "-h", "--listen", "tcp://*:1", "--no-such-option", "-x", "word", "--last"]
    with pytest.raises(Became) as became:
        dsm(name, *arguments)
    path, argv = became.value.args
    assert path == sys.executable
    assert argv[argv.index("-m") :] == ["-m", module, *arguments]


# --- doctor --------------------------------------------------------------------------------------------


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[doctor.Check]:
    found = [
        doctor.Check("kernel", True, "6.12 [is] new enough", ""),
        doctor.Check("device", False, "/dev/userfaultfd may not be opened", "sudo chmod 666 " + "/a/long/path" * 20),
    ]
    monkeypatch.setattr(doctor, "examine", lambda: found)
    return found


def test_doctor_prints_the_fix_on_a_line_of_its_own(
    dsm: Dsm, checks: list[doctor.Check], capsys: pytest.CaptureFixture[str]
) -> None:
    assert dsm("doctor") == 1
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert checks[1].fix in lines
    assert [line.split()[:2] for line in lines[:2]] == [["✓", "kernel"], ["✗", "device"]]
    assert "6.12 [is] new enough" in lines[0]


def test_doctor_is_content_when_all_is_well(dsm: Dsm, checks: list[doctor.Check]) -> None:
    del checks[1]
    assert dsm("doctor") == 0


def test_doctor_as_json(dsm: Dsm, checks: list[doctor.Check], capsys: pytest.CaptureFixture[str]) -> None:
    assert dsm("doctor", "--json") == 1
    shown = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["ok"], row["fix"]) for row in shown] == [(c.name, c.ok, c.fix) for c in checks]


# --- status --------------------------------------------------------------------------------------------

STATUS: dict[str, Any] = {
    "node": {"name": "b", "id": 2, "pid": 77, "uptime_s": 12.5, "counters": {"late": 41, "rejected": 7}},
    "directory": "tcp://10.0.0.1:7400",
    "cluster": {
        "nodes": [
            {
                "id": 1,
                "name": "a",
                "address": "tcp://10.0.0.1:7401",
                "applications": 3,
                "silent_s": 0.2,
                "lease_s": 14.8,
            },
            {
                "id": 2,
                "name": "b",
                "address": "tcp://10.0.0.2:7401",
                "applications": 0,
                "silent_s": 9.04,
                "lease_s": 5.96,
            },
        ],
        "regions": [
            {
                "id": 1,
                "name": "grid[0]",
                "size": 3 << 29,
                "page_size": 4096,
                "attached": ["a", "b"],
                "pages": {"shared": 5, "exclusive": 6, "lost": 0},
            }
        ],
        "primitives": [
            {"name": "l", "kind": "lock", "calls": 2, "node": 1, "holder": "process 7", "owner died": False}
        ],
    },
}

Agent = Callable[[wire.Message | None], Path]


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Agent]:
    """An agent at DSM_NODE that gives one answer to one question; None: closes the connection."""
    listener = local.listen(tmp_path / "s")
    listener.settimeout(30)
    monkeypatch.setenv("DSM_NODE", str(tmp_path / "s"))
    threads: list[threading.Thread] = []

    def answer(reply: wire.Message | None) -> None:
        connection: socket.socket = listener.accept()[0]
        with connection:
            assert local.receive(connection)[0] == wire.Query(0, "status", 0, 0, 0)
            if reply is not None:
                local.send(connection, reply)

    def serve(reply: wire.Message | None) -> Path:
        threads.append(threading.Thread(target=answer, args=[reply]))
        threads[-1].start()
        return tmp_path / "s"

    yield serve
    for thread in threads:
        thread.join()
    listener.close()


def row(shown: str, *words: str) -> list[str]:
    """The cells of the one line that starts with ``words``."""
    [found] = [line.split() for line in shown.splitlines() if line.split()[: len(words)] == list(words)]
    return found


def test_status_as_tables(dsm: Dsm, agent: Agent, capsys: pytest.CaptureFixture[str]) -> None:
    agent(wire.Answer(0, STATUS))
    assert dsm("status") == 0
    shown = capsys.readouterr().out
    assert row(shown, "1", "a") == ["1", "a", "tcp://10.0.0.1:7401", "3", "up", "0.2", "s", "ago", "15", "s"]
    assert row(shown, "2", "b") == ["2", "b", "tcp://10.0.0.2:7401", "0", "late", "9.0", "s", "ago", "6", "s"]
    assert row(shown, "grid[0]") == ["grid[0]", "1.5", "GiB", "4", "KiB", "11", "5", "6", "0", "a,", "b"]
    assert row(shown, "late", "41")[2:4] == ["answers", "to"]
    assert row(shown, "l") == ["l", "lock", "2", "1", "process", "7", "False"]
    assert "shards" not in shown
    assert "tcp://10.0.0.1:7400" in shown


def test_status_shows_the_faults_and_the_traffic_of_the_node(
    dsm: Dsm, agent: Agent, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")  # standard output is no terminal here: nothing is cut
    histogram = statistics.Statistics()
    histogram.faults["read"].add(100_000)
    histogram.pages_in = 3
    histogram.invalidations = 2
    name = "long" * 20
    agent(wire.Answer(0, STATUS | {"node": STATUS["node"] | {"regions": {name: histogram.report(4096)}}}))
    assert dsm("status") == 0
    shown = capsys.readouterr().out
    assert row(shown, name, "read")[2] == "1"
    assert row(shown, name, "12") == [name, "12", "KiB", "0", "B", "2"]
    assert f"{name}  write" not in shown
    for header in ("page size", "exclusive", "attached", "last heartbeat"):
        assert header in shown


def test_status_as_json(dsm: Dsm, agent: Agent, capsys: pytest.CaptureFixture[str]) -> None:
    path = agent(wire.Answer(0, STATUS))
    assert dsm("status", "--json", "--node", str(path)) == 0
    assert json.loads(capsys.readouterr().out) == STATUS


def test_status_prints_whatever_part_is_there(dsm: Dsm, agent: Agent, capsys: pytest.CaptureFixture[str]) -> None:
    agent(wire.Answer(0, {"cluster": {"nodes": [{"id": 1}], "regions": [{"name": "r"}]}}))
    assert dsm("status") == 0
    assert row(capsys.readouterr().out, "r")[0] == "r"


@pytest.mark.parametrize(
    ("reply", "told"),
    [(wire.Failure(0, "DirectoryUnreachable", "it is away"), "it is away"), (None, "closed the connection")],
)
def test_status_that_is_refused(
    dsm: Dsm, agent: Agent, capsys: pytest.CaptureFixture[str], reply: wire.Message | None, told: str
) -> None:
    agent(reply)
    assert dsm("status") == 1
    assert told in capsys.readouterr().err


def test_status_without_an_agent(dsm: Dsm, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dsm("status", "--node", str(tmp_path / "none")) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("dsm: error: no node agent answers") and shown.err.count("\n") == 1


@pytest.mark.parametrize(
    ("count", "shown"), [(0, "0 B"), (4096, "4 KiB"), (1536, "1.5 KiB"), (1 << 40, "1 TiB"), (1 << 52, "4096 TiB")]
)
def test_human_sizes(count: int, shown: str) -> None:
    assert human(count) == shown
