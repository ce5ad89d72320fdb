"""``dsm run`` for real: what the ranks get, what comes out, and that nothing stays, whoever is killed.

Every process of a run is recognised by a mark in its environment, which survives the loss of its parents.
"""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

LIMIT_S = 60
TREE = Path(__file__).resolve().parents[2]

PRELUDE = """
import json, multiprocessing, os, signal, subprocess, sys, time
rank, world = int(os.environ["DSM_RANK"]), int(os.environ["DSM_WORLD_SIZE"])
def say(*what):
    os.write(1, (" ".join(map(str, what)) + "\\n").encode())  # one write: lines of several ranks do not mix
"""
WAIT = "say('here', rank, os.getpid()); time.sleep(600)\n"


class Run:
    """One ``dsm run`` with its own temporary directory and its own mark."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.temporary = home / "tmp"
        self.temporary.mkdir()
        self.mark = f"DSM_TEST_MARK={uuid.uuid4()}"
        self.process: subprocess.Popen[str] | None = None

    def start(self, *arguments: str, source: str = "", terminal: str | None = None) -> subprocess.Popen[str]:
        """``dsm run ARGUMENTS``, and if there is a ``source`` a Python program as CMD."""
        if source:
            program = self.home / "program.py"
            program.write_text(PRELUDE + source)
            arguments = (*arguments, sys.executable, str(program))
        key, value = self.mark.split("=")
        # A continuous integration job may run with SIGINT ignored, which would be inherited.
        command = ["env", "--default-signal=HUP,INT,TERM", sys.executable, "-m", "dsm", "run", *arguments]
        if terminal:  # a session leader that opens a terminal gets it as its controlling terminal
            command = ["sh", "-c", 'exec "$@" <"$0"', terminal, *command]
        self.process = subprocess.Popen(
            command,
            cwd=self.home,
            env=os.environ | {key: value, "TMPDIR": str(self.temporary), "PYTHONPATH": str(TREE)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=terminal is not None,
        )
        return self.process

    def finish(self, *arguments: str, source: str = "", stdin: str = "") -> tuple[int, str, str]:
        """Start, wait, check that nothing is left; exit code, standard output, standard error."""
        process = self.start(*arguments, source=source)
        out, err = process.communicate(stdin, timeout=LIMIT_S)
        assert self.left() == []
        return process.returncode, out, err

    def ranks(self, count: int, word: str = "here") -> dict[int, int]:
        """Wait until so many ranks have said ``word``: their pids."""
        assert self.process and self.process.stdout
        found = {}
        for _ in range(count):
            said = self.process.stdout.readline().split()
            assert said[:1] == [word], (said, self.process.stderr.read() if self.process.stderr else "")
            found[int(said[1])] = int(said[2])
        return found

    def rest(self) -> tuple[int, str, str]:
        """Wait for the end after :meth:`start`: exit code, standard output, standard error."""
        assert self.process
        out, err = self.process.communicate(timeout=LIMIT_S)
        return self.process.returncode, out, err

    def processes(self) -> dict[int, list[str]]:
        """Everything alive that carries the mark: pid and command line."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                try:
                    if self.mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                        found[int(entry.name)] = (entry / "cmdline").read_text().split("\0")[:-1]
                except OSError:
                    continue
        return found

    def service(self, module: str, index: int = 0) -> int:
        """The pid of a directory ("directory") or a node ("nodes"), which keeps its agent."""
        pids = [pid for pid, command in self.processes().items() if command[2:4] == ["-m", module]]
        return sorted(pid for pid in pids if parent(pid) not in pids)[index]

    def left(self) -> list[str]:
        """Processes, sockets and directories of this run. (A multiprocessing that is killed leaves some of its own.)"""
        processes = [f"{pid}: {command}" for pid, command in self.processes().items()]
        return processes + [str(path) for path in self.temporary.rglob("*") if "pymp-" not in str(path)]

    def nothing_left_soon(self, allowed: Callable[[str], bool] = lambda _: False) -> None:
        """For runs whose outer process was killed: what remains has to notice first."""
        deadline = time.monotonic() + LIMIT_S
        while (left := [what for what in self.left() if not allowed(what)]) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert left == []


@pytest.fixture
def run() -> Iterator[Run]:
    home = Path(tempfile.mkdtemp(prefix="t-", dir="/tmp"))  # short: a socket path has 107 bytes at most
    run = Run(home)
    yield run
    for pid in run.processes():
        os.kill(pid, signal.SIGKILL)
    if run.process:
        run.process.communicate(timeout=LIMIT_S)
    shutil.rmtree(home)


# --- what a rank gets ------------------------------------------------------------------------------------


def test_ranks_are_spread_over_the_nodes(run: Run) -> None:
    source = "say(json.dumps([rank, world, os.environ['DSM_NODE'], os.stat(os.environ['DSM_NODE']).st_mode]))\n"
    code, out, err = run.finish("--nodes", "2", "--procs", "5", source=source)
    assert (code, err) == (0, "")
    told = sorted(map(json.loads, out.splitlines()))
    assert [(rank, world, Path(node).name) for rank, world, node, _ in told] == [
        (0, 5, "node1.sock"),
        (1, 5, "node1.sock"),
        (2, 5, "node1.sock"),
        (3, 5, "node2.sock"),
        (4, 5, "node2.sock"),
    ]
    assert all(stat.S_ISSOCK(mode) for *_, mode in told)
    assert {Path(node).parent.parent for _, _, node, _ in told} == {run.temporary}


def test_nobody_else_may_look_at_the_sockets(run: Run) -> None:
    code, out, _ = run.finish(source="say(oct(os.stat(os.path.dirname(os.environ['DSM_NODE'])).st_mode))\n")
    assert (code, out) == (0, "0o40700\n")


def test_as_many_processes_as_nodes_unless_told_otherwise(run: Run) -> None:
    code, out, _ = run.finish("--nodes", "2", source="say(rank, os.path.basename(os.environ['DSM_NODE']))\n")
    assert (code, sorted(out.splitlines())) == (0, ["0 node1.sock", "1 node2.sock"])


def test_options_after_the_command_are_the_commands(run: Run) -> None:
    assert run.finish("--", "echo", "--nodes", "7", "--help")[:2] == (0, "--nodes 7 --help\n")
    assert run.finish("echo", "--procs", "--", "x")[:2] == (0, "--procs -- x\n")


def test_standard_streams_are_the_programs_own(run: Run) -> None:
    source = "sys.stdout.write('a\\tb\\nno newline'); sys.stderr.write('oops')\n"
    assert run.finish(source=source) == (0, "a\tb\nno newline", "oops")


def test_standard_input_goes_to_rank_0_alone(run: Run) -> None:
    code, out, _ = run.finish("--procs", "3", source="say(rank, repr(sys.stdin.read()))\n", stdin="for one\n")
    assert code == 0
    assert sorted(out.splitlines()) == ["0 'for one\\n'", "1 ''", "2 ''"]


def test_signals_are_not_blocked_and_not_ignored_in_a_rank(run: Run) -> None:
    source = "say(signal.pthread_sigmask(signal.SIG_BLOCK, []), signal.getsignal(signal.SIGTERM).name)\n"
    assert run.finish(source=source)[:2] == (0, "set() SIG_DFL\n")


# --- exit codes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("sys.exit(7)", 7),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137),
        ("sys.exit(5) if rank == 1 else time.sleep(600)", 5),
        ("sys.exit(5) if rank == 1 else signal.signal(signal.SIGTERM, lambda *_: sys.exit(9)); time.sleep(600)", 5),
        ("sys.exit(6 if rank == 1 else 0)", 6),
    ],
)
def test_the_first_exit_code_that_is_not_zero(run: Run, source: str, code: int) -> None:
    assert run.finish("--procs", "3", source=source)[0] == code


def test_a_rank_that_fails_is_named(run: Run) -> None:
    _, out, err = run.finish("--procs", "2", source="sys.exit(5) if rank == 1 else time.sleep(600)")
    assert out == ""
    assert err == "dsm run: rank 1 failed, the others are ended: exit code 5\n"


def test_a_rank_that_ignores_sigterm_is_killed(run: Run) -> None:
    source = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if rank == 0:
    say("here", rank, os.getpid()); time.sleep(600)
time.sleep(1); sys.exit(3)
"""
    assert run.finish("--procs", "2", source=source)[0] == 3


def test_a_program_that_does_not_exist(run: Run) -> None:
    code, out, err = run.finish("no-such-program")
    assert (code, out) == (127, "")
    assert err == "dsm: error: cannot run no-such-program: there is no such program\n"


def test_a_file_that_is_no_program(run: Run) -> None:
    script = run.home / "script"
    script.write_text("no #! line")
    script.chmod(0o755)
    code, _, err = run.finish(str(script))
    assert code == 126
    assert err.startswith(f"dsm: error: cannot run {script}") and err.count("\n") == 1


def test_services_that_cannot_start(run: Run) -> None:
    run.temporary = run.temporary / ("d" * 100)  # no Unix socket has room for such a path
    run.temporary.mkdir()
    code, out, err = run.finish("true")
    assert (code, out) == (1, "")
    assert "dsm: error: " in err and "Traceback" not in err


# --- output, time and environment ------------------------------------------------------------------------


def test_each_line_has_its_rank_in_front(run: Run) -> None:
    source = """
sys.stdout.write("one " + str(rank)); sys.stdout.flush(); time.sleep(0.2 * rank)
sys.stdout.write(" line\\n\\nno newline"); sys.stdout.flush()
sys.stderr.write("oops\\n")
"""
    code, out, err = run.finish("--procs", "3", "--prefix", source=source)
    assert code == 0
    expected = [f"[{rank}] {line}" for rank in range(3) for line in (f"one {rank} line", "", "no newline")]
    assert sorted(out.splitlines()) == sorted(expected)
    assert sorted(err.splitlines()) == [f"[{rank}] oops" for rank in range(3)]


def test_much_output_of_several_ranks_is_complete_and_not_torn(run: Run) -> None:
    source = "for number in range(20000): print(rank, number, 'x' * (number % 90))"
    code, out, _ = run.finish("--procs", "3", "--prefix", source=source)
    assert code == 0
    lines = [line.split(" ", 1) for line in out.splitlines()]
    for rank in range(3):
        told = [line for prefix, line in lines if prefix == f"[{rank}]"]
        assert told == [f"{rank} {number} {'x' * (number % 90)}" for number in range(20000)]


def test_whoever_reads_no_more_ends_the_ranks(run: Run) -> None:
    process = run.start("--procs", "2", "--prefix", source="while True: print('again', flush=True)")
    assert process.stdout and process.stderr
    assert process.stdout.readline().endswith("again\n")
    process.stdout.close()
    process.stderr.close()
    process.wait(LIMIT_S)
    assert process.returncode != 0
    run.nothing_left_soon()


def test_the_error_of_the_rank_that_fails_is_shown_last(run: Run) -> None:
    source = """
if rank == 1:
    time.sleep(0.5)
    raise LookupError("the cause")
signal.signal(signal.SIGTERM, lambda *_: sys.exit("what others say when they are ended"))
time.sleep(600)
"""
    code, _, err = run.finish("--procs", "3", source=source)
    assert code == 1
    first, _, last = err.partition("dsm run: rank 1 failed (exit code 1), after it had written:\n")
    assert first.count("LookupError: the cause") == 1 and first.count("what others say") == 2
    assert last.startswith("Traceback") and last.endswith("LookupError: the cause\n")


def test_a_time_out_ends_all_ranks(run: Run) -> None:
    source = "signal.signal(signal.SIGTERM, lambda *_: (say('asked', rank), os._exit(3))); time.sleep(600)"
    code, out, err = run.finish("--procs", "2", "--timeout", "2.5", source=source)
    assert code == 124
    assert sorted(out.splitlines()) == ["asked 0", "asked 1"]
    assert err == "dsm run: not over after 2.5 s: all ranks are ended\n"


def test_a_run_that_is_over_in_time(run: Run) -> None:
    assert run.finish("--timeout", "300", source="say('well')") == (0, "well\n", "")


def test_variables_for_each_rank(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELSEWHERE", "here")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    source = "say(*map(os.environ.get, ('NEW', 'EMPTY', 'ELSEWHERE', 'DSM_RANK', 'OMP_NUM_THREADS')))"
    arguments = ("--env", "NEW=a=b", "--env", "EMPTY=", "--env", "ELSEWHERE", "--env", "DSM_RANK=7")
    assert run.finish(*arguments, "--env", "OMP_NUM_THREADS=5", source=source)[1] == "a=b  here 0 5\n"
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    _, out, _ = run.finish("-n", "2", source="say(os.environ['OMP_NUM_THREADS'])")
    assert out == f"{threads}\n" * 2


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--env", "NOT_SET_ANYWHERE"), "neither NAME=VALUE nor the name of a variable that is set here"),
        (("--env", "=x"), "neither NAME=VALUE"),
        (("--timeout", "0"), "--timeout"),
        (("--node-list", ","), "names no host"),
        (("--node-list", "127.0.0.1:0"), "is not [USER@]HOST[:SLOTS], with one slot or more"),
        (("--node-list", "127.0.0.1:x"), "is not [USER@]HOST[:SLOTS], with one slot or more"),
        (("--node-list", "127.0.0.1,127.0.0.1:2"), "names a host twice"),
        (("--node-list", "no.such.host.invalid"), "there is no host 'no.such.host.invalid'"),
        (("--node-list", "@/no/such/file"), "cannot read /no/such/file"),
        (("--node-list", "127.0.0.1:2,127.0.0.2", "-n", "4"), "more than the 3 slots"),
        (("--node-list", "127.0.0.1", "--nodes", "2"), "exclude each other"),
    ],
)
def test_what_cannot_be_is_said_and_nothing_starts(run: Run, arguments: tuple[str, ...], text: str) -> None:
    code, out, err = run.finish(*arguments, "true")
    assert (code, out) == (2, "")
    assert text in " ".join(err.split())


# --- signals -----------------------------------------------------------------------------------------------

COUNTING = """
import threading
def count(number, frame):
    say("signal", rank, number)
    ended.append(number)
ended = []
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, count)
say("here", rank, os.getpid())
while not ended:
    signal.pause()
time.sleep(1)  # room for one too many
say("total", rank, len(ended))
signal.signal(ended[0], signal.SIG_DFL)
os.kill(os.getpid(), ended[0])
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_reaches_each_rank_once(run: Run, number: signal.Signals) -> None:
    process = run.start("--nodes", "2", "--procs", "3", source=COUNTING)
    run.ranks(3)
    process.send_signal(number)
    code, out, _ = run.rest()
    assert code == 128 + number
    assert sorted(line for line in out.splitlines() if line.startswith("total")) == [f"total {n} 1" for n in range(3)]
    assert run.left() == []


def test_a_terminals_ctrl_c_reaches_each_rank_once(run: Run) -> None:
    keyboard, screen = pty.openpty()
    try:
        source = "if rank == 0: say('line', sys.stdin.isatty(), input())\n" + COUNTING
        process = run.start("--procs", "2", source=source, terminal=os.ttyname(screen))
        assert process.stdout
        os.write(keyboard, b"typed\n")
        heads = sorted(process.stdout.readline().split()[0] for _ in range(3))
        assert heads == ["here", "here", "line"]
        os.write(keyboard, b"\x03")
        code, out, _ = run.rest()
    finally:
        os.close(keyboard)
        os.close(screen)
    assert code == 130
    assert sorted(line for line in out.splitlines() if line.startswith("total")) == ["total 0 1", "total 1 1"]
    assert run.left() == []


def test_what_rank_0_reads_from_a_terminal(run: Run) -> None:
    keyboard, screen = pty.openpty()
    try:
        process = run.start(source="say(sys.stdin.isatty(), input())\n", terminal=os.ttyname(screen))
        os.write(keyboard, b"typed\n")
        assert process.stdout and process.stdout.readline() == "True typed\n"
        assert run.rest()[0] == 0
    finally:
        os.close(keyboard)
        os.close(screen)


def test_a_program_may_end_well_after_ctrl_c(run: Run) -> None:
    source = """
try:
    say("here", rank, os.getpid()); time.sleep(600)
except KeyboardInterrupt:
    say("saved", rank)
"""
    process = run.start("--procs", "2", source=source)
    run.ranks(2)
    process.send_signal(signal.SIGINT)
    code, out, err = run.rest()
    assert (code, sorted(out.splitlines()), err) == (0, ["saved 0", "saved 1"], "")
    assert run.left() == []


def test_a_rank_that_ignores_ctrl_c_is_killed(run: Run) -> None:
    process = run.start(source="signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + WAIT)
    run.ranks(1)
    process.send_signal(signal.SIGINT)
    assert run.rest()[0] == 130
    assert run.left() == []


@pytest.mark.parametrize("delay_s", [0.05, 0.3, 0.6, 1.0])
def test_ctrl_c_while_everything_starts(run: Run, delay_s: float) -> None:
    process = run.start("--nodes", "3", source=WAIT)
    time.sleep(delay_s)
    process.send_signal(signal.SIGINT)
    code, _, err = run.rest()
    # -SIGINT: before Python had set up anything here; 1: before Python had set up its own handling in a rank.
    assert code in (130, -signal.SIGINT) or (code == 1 and "KeyboardInterrupt" in err), err
    assert run.left() == []


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_ctrl_z_stops_the_ranks_and_fg_continues_them(run: Run) -> None:
    process = run.start(source="say('here', rank, os.getpid()); sys.stdin.read(); sys.exit(4)\n")
    rank = run.ranks(1)[0]
    process.send_signal(signal.SIGTSTP)
    until(lambda: state(rank) == "T" and state(process.pid) == "T")
    process.send_signal(signal.SIGCONT)
    until(lambda: state(rank) == "S")
    assert run.rest()[0] == 4


# --- kill -9 -----------------------------------------------------------------------------------------------

SUM_LATER = """
import dsm
region = dsm.attach("shared", shape=(2, 512), dtype="i8")
region.array[rank] = rank + 1
say("here", rank, os.getpid())
while not os.path.exists("go"):
    time.sleep(0.05)
dsm.Barrier("all", 2).wait()
say("sum", region.array[:, 0].sum())
"""
FAMILY = """
def child():
    time.sleep(600)
if __name__ == "__main__":
    for method in ("fork", "spawn", "forkserver"):
        process = multiprocessing.get_context(method).Process(target=child)
        process.start()
    subprocess.Popen(["sleep", "600"], start_new_session=True)
    say("here", rank, os.getpid())
    time.sleep(600)
"""


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def conductor(run: Run) -> int:
    assert run.process
    return int(Path(f"/proc/{run.process.pid}/task/{run.process.pid}/children").read_text().split()[0])


@pytest.mark.parametrize("source", [WAIT, FAMILY], ids=["alone", "with children"])
def test_kill_9_of_a_rank(run: Run, source: str) -> None:
    run.start("--nodes", "2", "--procs", "3", source=source)
    kill(run.ranks(3)[1])
    code, _, err = run.rest()
    assert (code, err) == (137, "dsm run: rank 1 failed, the others are ended: killed by SIGKILL\n")
    assert run.left() == []


@pytest.mark.parametrize("index", [0, 1])
def test_kill_9_of_a_node(run: Run, index: int) -> None:
    run.start("--nodes", "2", "--procs", "3", source=FAMILY)
    run.ranks(3)
    kill(run.service("nodes", index))
    code, _, err = run.rest()
    assert code == 1
    assert f"dsm run: the agent of node{index + 1} died: killed by SIGKILL\n" in err
    assert run.left() == []


def test_kill_9_of_an_agent_ends_nothing(run: Run) -> None:
    run.start("--nodes", "2", "--procs", "2", source=SUM_LATER)
    run.ranks(2)
    keeper = run.service("nodes", 1)
    kill(next(pid for pid in run.processes() if parent(pid) == keeper))
    (run.home / "go").touch()
    code, out, err = run.rest()
    assert (code, sorted(out.splitlines())) == (0, ["sum 3", "sum 3"]), err
    assert run.left() == []


def test_kill_9_of_the_directory(run: Run) -> None:
    run.start("--nodes", "2", "--procs", "3", source=FAMILY)
    run.ranks(3)
    kill(run.service("directory"))
    code, _, err = run.rest()
    assert code == 1
    assert "dsm run: the directory died: killed by SIGKILL\n" in err
    assert run.left() == []


def test_kill_9_of_dsm_run(run: Run) -> None:
    process = run.start("--nodes", "2", "--procs", "3", source=FAMILY)
    run.ranks(3)
    process.kill()
    run.nothing_left_soon()


def test_kill_9_of_the_process_behind_dsm_run(run: Run) -> None:
    run.start("--nodes", "2", "--procs", "3", source=FAMILY)
    run.ranks(3)
    kill(conductor(run))
    code, _, err = run.rest()
    assert (code, "their nodes died (killed by SIGKILL): all of them are ended" in err) == (137, True)
    assert run.left() == []


def test_kill_9_of_both_processes_of_dsm_run(run: Run) -> None:
    process = run.start("--nodes", "2", "--procs", "3", source=WAIT)
    run.ranks(3)
    behind = conductor(run)
    process.send_signal(signal.SIGSTOP)  # so that neither can do anything about the death of the other
    os.kill(behind, signal.SIGSTOP)
    kill(behind)
    process.kill()
    run.nothing_left_soon()


# --- with memory -------------------------------------------------------------------------------------------

TOUCHING = """
import dsm
region = dsm.attach("r", size=64 << 20)
children = [multiprocessing.get_context("fork").Process(target=time.sleep, args=[600]) for _ in range(2)]
for child in children:
    child.start()
def touch():
    say("here", rank, os.getpid())
    while True:
        for page in range(0, region.size, 4096):
            region.buf[page] = (region.buf[page] + 1) % 256  # every rank writes every page: faults without end
touch()
"""


def test_ranks_share_a_region_over_the_nodes(run: Run) -> None:
    source = """
import dsm
with dsm.attach("r", shape=(world,), dtype="i8") as region:
    region.array[rank] = rank + 1
    dsm.Barrier("all", world).wait()
    say(rank, region.array.sum())
    dsm.Barrier("all", world).wait()
"""
    code, out, err = run.finish("--nodes", "2", "--procs", "4", source=source)
    assert (code, err) == (0, "")
    assert sorted(out.splitlines()) == ["0 10", "1 10", "2 10", "3 10"]


def test_status_inside_a_run(run: Run) -> None:
    source = """
import dsm
def status(*arguments):
    command = [sys.executable, "-m", "dsm", "status", "--json", *arguments]
    return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
with dsm.attach("r", size=1 << 20) as region:
    region.buf[5000] = 1
    local = status()
    from_directory = status("--directory", local["directory"])
    table = subprocess.run([sys.executable, "-m", "dsm", "status"], capture_output=True, check=True).stdout.decode()
    say(json.dumps([local, from_directory, table]))
"""
    code, out, err = run.finish("--nodes", "2", "--procs", "1", source=source)
    assert (code, err) == (0, "")
    local, from_directory, table = json.loads(out)
    assert local["node"]["name"] == "node1"
    for status in (local, from_directory):
        assert [node["name"] for node in status["cluster"]["nodes"]] == ["node1", "node2"]
        [region] = status["cluster"]["regions"]
        assert (region["name"], region["size"], region["pages"]["exclusive"]) == ("r", 1 << 20, 1)
    assert "1 MiB" in table and "node2" in table


@pytest.mark.parametrize("victim", ["rank", "nodes", "directory", "dsm run", "both"])
def test_kill_9_while_all_ranks_fault(run: Run, victim: str) -> None:
    process = run.start("--nodes", "2", "--procs", "3", source=TOUCHING)
    ranks = run.ranks(3)
    time.sleep(0.5)
    if victim == "rank":
        kill(ranks[2])
    elif victim in ("nodes", "directory"):
        kill(run.service(victim))
    else:
        if victim == "both":
            os.kill(conductor(run), signal.SIGKILL)
        process.kill()
    assert run.rest()[0] == {"rank": 137, "nodes": 1, "directory": 1}.get(victim, -signal.SIGKILL)
    run.nothing_left_soon()


def test_ctrl_c_while_all_ranks_fault(run: Run) -> None:
    process = run.start("--nodes", "2", "--procs", "3", source=TOUCHING)
    run.ranks(3)
    process.send_signal(signal.SIGINT)
    assert run.rest()[0] == 130
    assert run.left() == []


def test_what_a_rank_leaves_behind_ends_with_the_run(run: Run) -> None:
    source = "subprocess.Popen(['sleep', '600'], start_new_session=True); say('done')\n"
    assert run.finish("--procs", "2", source=source)[:2] == (0, "done\ndone\n")
