"""``dsm run --node-list``: addresses of this host, and another host, which is a network namespace behind a stand-in for
ssh."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_run import TREE, Run, run  # noqa: F401  (a fixture)

SHARE = """
import numpy as np
import dsm
rows = dsm.attach("rows", shape=(world, 512), dtype="i8")
rows.array[rank] = rank + 1
dsm.Barrier("written", world).wait()
say(json.dumps([rank, os.path.basename(os.environ["DSM_NODE"]), int(rows.array[:, 7].sum()), rows.stats()["node"]]))
dsm.Barrier("read", world).wait()
"""


def told(out: str) -> list[list[object]]:
    return sorted(json.loads(line) for line in out.splitlines())


def test_several_addresses_of_this_host(run: Run) -> None:  # noqa: F811
    code, out, err = run.finish("--node-list", "127.0.0.1:2,127.0.0.2,127.0.0.3:2", "-n", "4", source=SHARE)
    assert (code, err) == (0, "")
    nodes = ["127.0.0.1", "127.0.0.1", "127.0.0.2", "127.0.0.3"]
    assert told(out) == [[rank, "node.sock", 10, node] for rank, node in enumerate(nodes)]


def test_a_list_in_a_file_prefixes_and_variables(run: Run) -> None:  # noqa: F811
    file = run.home / "hosts"
    file.write_text("127.0.0.1   # the first\n\n127.0.0.2:2\n")
    source = "say(os.environ['WHO'], sys.stdin.read() == '')\n"
    arguments = ("--node-list", f"@{file}", "--prefix", "--env", "WHO=it is me")
    code, out, err = run.finish(*arguments, source=source, stdin="nobody reads this")
    assert (code, err) == (0, "")
    assert sorted(out.splitlines()) == [f"[{rank}] it is me True" for rank in range(3)]


def test_a_rank_of_one_host_that_fails_ends_the_others_and_is_shown_last(run: Run) -> None:  # noqa: F811
    source = "if rank == 2: raise LookupError('the cause')\ntime.sleep(600)"
    code, out, err = run.finish("--node-list", "127.0.0.1:2,127.0.0.2:2", source=source)
    assert (code, out) == (1, "")
    assert "dsm run: rank 2 failed, the others are ended: exit code 1" in err
    assert "dsm run: host 127.0.0.2 failed, the others are ended: exit code 1" in err
    last = err.partition("dsm run: host 127.0.0.2 failed (exit code 1), after it had written:\n")[2]
    assert last.startswith("Traceback") and last.count("LookupError: the cause\n") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_ranks_of_all_hosts(run: Run, number: signal.Signals) -> None:  # noqa: F811
    process = run.start(
        "--node-list", "127.0.0.1:2,127.0.0.2", source="say('here', rank, os.getpid()); time.sleep(600)"
    )
    run.ranks(3)
    process.send_signal(number)
    code, _, _ = run.rest()
    assert code == 128 + number
    run.nothing_left_soon()


@pytest.mark.parametrize("depth", [0, 1])
def test_kill_9_of_what_looks_after_the_hosts(run: Run, depth: int) -> None:  # noqa: F811
    """The process that the user started, or the one behind it."""
    process = run.start("--node-list", "127.0.0.1,127.0.0.2", source="say('here', rank, os.getpid()); time.sleep(600)")
    run.ranks(2)
    victim = process.pid
    if depth:
        children = Path(f"/proc/{victim}/task/{victim}/children").read_text().split()
        victim = int(children[0])
    os.kill(victim, signal.SIGKILL)
    run.rest()
    run.nothing_left_soon(lambda what: depth == 0 and what.startswith("/"))


# --- another host ---------------------------------------------------------------------------------------------------

_SSH = """#!/bin/sh
# A stand-in for ssh: the "host" is a network namespace; its shell starts elsewhere and inherits nothing but a mark.
while [ "${1#-}" != "$1" ]; do if [ "$1" = -o ]; then shift; fi; shift; done
[ "$1" = USER@ADDRESS ] || { echo "ssh: cannot reach $1" >&2; exit 255; }
cd /
exec ip netns exec NAMESPACE env -i "PATH=$PATH" "TMPDIR=$TMPDIR" MARK sh -c "$2"
"""


@pytest.fixture
def elsewhere(run: Run, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:  # noqa: F811
    """The login of another host."""
    if os.getuid() or shutil.which("ip") is None:
        pytest.skip("only root can make a network namespace, with the program ip")
    name = f"dsm{random.randrange(1 << 32):x}"
    net = f"10.{random.randrange(100, 200)}.{random.randrange(256)}"

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True)

    with contextlib.ExitStack() as stack:
        ip("netns", "add", name)
        stack.callback(ip, "netns", "delete", name)
        ip("link", "add", f"{name}a", "type", "veth", "peer", "name", f"{name}b", "netns", name)
        ip("address", "add", f"{net}.1/24", "dev", f"{name}a")
        ip("link", "set", f"{name}a", "up")
        for words in (["address", "add", f"{net}.2/24", "dev", f"{name}b"], ["link", "set", f"{name}b", "up"]):
            ip("-n", name, *words)
        ip("-n", name, "link", "set", "lo", "up")
        programs = run.home / "bin"
        programs.mkdir()
        text = _SSH.replace("USER@ADDRESS", f"me@{net}.2").replace("NAMESPACE", name).replace("MARK", run.mark)
        (programs / "ssh").write_text(text)
        (programs / "ssh").chmod(0o755)
        monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
        yield f"me@{net}.2"


def test_ranks_on_another_host_share_a_region_with_those_here(run: Run, elsewhere: str) -> None:  # noqa: F811
    here = elsewhere.partition("@")[2].rpartition(".")[0] + ".1"
    code, out, err = run.finish("--node-list", f"{here}:2,{elsewhere}:2", "--env", "X=1 2", source=SHARE)
    assert (code, err) == (0, "")
    assert told(out) == [[rank, "node.sock", 10, node] for rank, node in enumerate([here, here, elsewhere, elsewhere])]


def test_ranks_on_another_host_end_with_the_run(run: Run, elsewhere: str) -> None:  # noqa: F811
    source = "say('here', rank, os.getpid()); time.sleep(600)"
    process = run.start("--node-list", f"{elsewhere}:2", source=source)
    run.ranks(2)
    os.kill(process.pid, signal.SIGKILL)
    run.rest()
    run.nothing_left_soon(lambda what: what.startswith("/"))


def test_a_host_that_ssh_cannot_reach(run: Run, elsewhere: str) -> None:  # noqa: F811
    address = elsewhere.partition("@")[2]
    code, _, err = run.finish("--node-list", f"127.0.0.1,other@{address}", source="time.sleep(600)")
    assert code == 255
    assert f"host other@{address} failed" in err and "that is ssh's own: try `ssh other@" in err
    assert f"ssh: cannot reach other@{address}" in err
