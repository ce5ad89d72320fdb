"""Starting services as programs: what they say, what they do not say, and how they end. Stand-ins play the services."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dsm import errors, launch

Play = Callable[[str], None]

PRELUDE = """
import os, signal, subprocess, sys, time
told = int(sys.argv[sys.argv.index("--ready-fd") + 1])
def tell(line):
    os.write(told, line.encode() + b"\\n")
"""


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    """Makes ``source`` the program that is started in place of any service."""

    def use(source: str) -> None:
        script = tmp_path / "service.py"
        script.write_text(PRELUDE + source)
        monkeypatch.setattr(launch, "program", lambda module: ([sys.executable, str(script), module], dict(os.environ)))

    return use


@pytest.fixture
def started() -> Iterator[list[launch.Service]]:
    services: list[launch.Service] = []
    yield services
    for service in services:
        service.process.kill()
        service.process.wait()


def test_the_address_is_what_the_service_says(play: Play, started: list[launch.Service]) -> None:
    play("tell('ready tcp://127.0.0.1:4242'); time.sleep(60)")
    started.append(launch.start_directory())
    assert started[0].address == "tcp://127.0.0.1:4242"
    started[0].stop()
    assert started[0].process.returncode == -signal.SIGTERM
    started[0].stop()


def test_the_command_line_of_a_directory(play: Play, started: list[launch.Service]) -> None:
    play("tell('ready ' + ' '.join(sys.argv[1:])); time.sleep(60)")
    started.append(launch.start_directory("tcp://10.0.0.1:7400", with_parent=False))
    started.append(launch.start_directory())
    plain, with_parent = (service.address.partition(" --ready-fd")[0] for service in started)
    assert plain == "directory --listen tcp://10.0.0.1:7400"
    assert with_parent == "directory --listen tcp://127.0.0.1:* --with-parent"


def test_the_command_line_of_a_node(play: Play, started: list[launch.Service]) -> None:
    play("tell('ready ' + ' '.join(sys.argv[1:])); time.sleep(60)")
    node = launch.start_node("tcp://h:1", socket=Path("/s"), name="n", with_parent=False, exit_when_idle=True)
    started.append(node)
    assert node.address.startswith(
        "nodes --directory tcp://h:1 --listen tcp://127.0.0.1:* --socket /s --name n --exit-when-idle --ready-fd"
    )


def test_the_error_that_the_service_names(play: Play) -> None:
    play("tell('error NodeNameInUse another node is called b'); sys.exit(1)")
    with pytest.raises(errors.NodeNameInUse, match=r"^another node is called b$"):
        launch.start_node("tcp://h:1", socket=Path("/s"))


@pytest.mark.parametrize(
    ("source", "how"),
    [
        ("sys.exit(3)", "exit code 3"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL"),
        ("tell('what?'); sys.exit(0)", "exit code 0"),
    ],
)
def test_death_before_the_ready_line(play: Play, source: str, how: str) -> None:
    play(source)
    with pytest.raises(errors.DirectoryUnreachable, match=how):
        launch.start_directory()
    with pytest.raises(errors.NodeUnreachable, match=how):
        launch.start_node("tcp://h:1", socket=Path("/s"))


def test_death_is_seen_although_a_child_of_the_service_holds_the_pipe(play: Play, tmp_path: Path) -> None:
    play(
        "sleeper = subprocess.Popen(['sleep', '60'], pass_fds=[told])\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(sleeper.pid))\n"
        "os._exit(4)"
    )
    try:
        with pytest.raises(errors.DirectoryUnreachable, match="exit code 4"):
            launch.start_directory()
    finally:
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


def test_silence_ends_and_leaves_no_process(play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "START_TIMEOUT_S", 1.0)
    play(f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)")
    with pytest.raises(errors.DirectoryUnreachable, match="silent for 1 s"):
        launch.start_directory()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_service_that_ignores_sigterm_is_killed(
    play: Play, started: list[launch.Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "STOP_TIMEOUT_S", 0.2)
    play("signal.signal(signal.SIGTERM, signal.SIG_IGN); tell('ready x'); time.sleep(60)")
    started.append(launch.start_directory())
    started[0].stop()
    assert started[0].process.returncode == -signal.SIGKILL


def test_standard_output_is_not_the_services(
    play: Play, started: list[launch.Service], capfd: pytest.CaptureFixture[str]
) -> None:
    play("print('noise', flush=True); print('trouble', file=sys.stderr, flush=True); tell('ready x'); time.sleep(60)")
    started.append(launch.start_directory())
    assert capfd.readouterr() == ("", "trouble\n")


def test_a_folder_of_the_user_is_not_taken_for_the_service(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "directory" / "__main__.py").write_text("print('the wrong one')")
    argv, environment = launch.program("directory")
    shown = subprocess.run([*argv, "--help"], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0
    assert "--listen" in shown.stdout


@pytest.mark.parametrize(("code", "words"), [(0, "exit code 0"), (-9, "killed by SIGKILL"), (-40, "signal 40")])
def test_how_it_ended(code: int, words: str) -> None:
    assert words in launch.how_it_ended(code)
