"""``dsm run``: a directory, node agents and P processes of a command, on this host or on several; afterwards, nothing.

Two processes look after it. The one the user sees *guards* the other, which *conducts* (conductor.py): it starts the
services and the ranks and waits. Both are subreapers (PR_SET_CHILD_SUBREAPER): whatever loses its parent becomes a
child of the nearer one, so either can find and end every descendant, whoever else was killed. If both die at once, the
kernel's PR_SET_PDEATHSIG ends ranks and services, and a node ends the processes that are still attached to it.

On each of several hosts ``dsm run-host`` does the same for one node and its ranks. It ends with its standard input,
which is a pipe from here, through ssh where the host is another one.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import NoReturn

import click

from dsm import launch, memory
from dsm.cli import descendants, hosts
from dsm.cli.conductor import (
    ENDING,
    JOB_CONTROL,
    Conductor,
    HostPart,
    NotFound,
    Part,
    Plan,
    exit_code,
    say,
)
from dsm.constants import SHARDS_MAX, STOP_TIMEOUT_S


def _variables(_context: click.Context, _option: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    """NAME=VALUE, or NAME with the value that it has here."""
    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not name or not (equals or name in os.environ):
            raise click.BadParameter(f"{text!r} is neither NAME=VALUE nor the name of a variable that is set here")
        found[name] = value if equals else os.environ[name]
    return found


_env = click.option("--env", metavar="NAME[=VALUE]", multiple=True, callback=_variables, help="Set for each process.")
_prefix = click.option("--prefix", is_flag=True, help="Put [RANK] in front of each line of output.")
_cmd = click.argument("cmd", metavar="[--] CMD...", nargs=-1, required=True, type=click.UNPROCESSED)


@click.command("run", context_settings={"allow_interspersed_args": False})
@click.option("--nodes", type=click.IntRange(min=1), help="Node agents on this host.  [default: 1]")
@click.option(
    "-n", "--procs", type=click.IntRange(min=1), help="Processes of CMD, spread over the nodes; as many as nodes."
)
@click.option("--node-list", metavar="HOSTS", help="Run on [USER@]HOST[:SLOTS],... or those in @FILE, one node each.")
@click.option("--shards", type=click.IntRange(1, SHARDS_MAX), default=1, show_default=True, help="Of the directory.")
@click.option(
    "--key",
    type=click.Path(path_type=Path),
    envvar="DSM_KEY",
    show_envvar=True,
    help="Key with which the hosts of --node-list know each other.  [default: a new one for this run]",
)
@click.option("--insecure", is_flag=True, help="Let the hosts of --node-list talk in plain text.")
@_env
@_prefix
@click.option("--timeout", type=click.FloatRange(0, min_open=True), metavar="SECONDS", help="End all of it after that.")
@_cmd
def command(
    nodes: int | None,
    procs: int | None,
    node_list: str | None,
    shards: int,
    key: Path | None,
    insecure: bool,
    env: dict[str, str],
    prefix: bool,
    timeout: float | None,
    cmd: tuple[str, ...],
) -> NoReturn:
    """Run processes of CMD, on nodes of their own.

    A directory and node agents are started for them and end with them, on this host or, with --node-list, one on each
    host of the list, which is reached by ssh without a password and has the same programs at the same paths.

    Each process finds DSM_NODE, DSM_RANK and DSM_WORLD_SIZE in its environment, and unless it is set OMP_NUM_THREADS:
    its share of the cores. Standard input goes to rank 0 (with --node-list to none). The exit code is the first that
    was not zero, 128 + n for a process killed by signal n, 124 after --timeout. When a process fails or a service dies
    the others are ended, and the last thing shown is the error.
    """
    if node_list is None:
        nodes = nodes or 1
        plan: Plan = _OneHost(cmd, procs or nodes, nodes, shards, env, prefix)
    elif nodes is None:
        plan = _SeveralHosts(cmd, hosts.split(hosts.parse(node_list), procs), shards, _Key(key, insecure), env, prefix)
    else:
        raise click.UsageError("--nodes and --node-list exclude each other: each host of the list has one node")
    raise SystemExit(_conducted(plan, timeout, cmd[0]))


@click.command("run-host", hidden=True, context_settings={"allow_interspersed_args": False})
@click.option("--directory", required=True)
@click.option("--listen", required=True)
@click.option("--name", required=True)
@click.option("--first", type=int, required=True)
@click.option("--count", type=int, required=True)
@click.option("--world", type=int, required=True)
@click.option("--key-bytes", type=int, required=True)
@_env
@_prefix
@_cmd
def host_command(
    directory: str,
    listen: str,
    name: str,
    first: int,
    count: int,
    world: int,
    key_bytes: int,
    env: dict[str, str],
    prefix: bool,
    cmd: tuple[str, ...],
) -> NoReturn:
    """What ``dsm run --node-list`` starts on each host: a node and its ranks, until standard input ends. That begins
    with the key of the cluster, if there is one."""

    def end_with_input() -> None:
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    key = b""
    while len(key) < key_bytes and (more := os.read(0, key_bytes - len(key))):
        key += more
    plan = _RanksOfHost(cmd, directory, listen, name, range(first, first + count), world, key, env, prefix)
    raise SystemExit(_conducted(plan, None, cmd[0], end_with_input))


# --- guarding ------------------------------------------------------------------------------------------


def _conducted(plan: Plan, timeout: float | None, program: str, beside: Callable[[], None] | None = None) -> int:
    """Do it in a child, and guard that; ``beside`` it, something else. The exit code."""
    if shutil.which(program) is None:
        raise NotFound(f"cannot run {program}: there is no such program")
    signals = {n for n in (*ENDING, *JOB_CONTROL) if signal.getsignal(n) is not signal.SIG_IGN}  # as nohup wants
    signals |= {signal.SIGCHLD, signal.SIGTERM}
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # an inherited SIG_IGN would swallow every exit code
    usual = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    sockets = Path(tempfile.mkdtemp(prefix="dsm-"))
    descendants.adopt_orphans()
    guard = os.getpid()
    conductor = os.fork()
    if conductor:
        if beside is not None:
            threading.Thread(target=beside, daemon=True).start()
        return _guard(conductor, signals, sockets)
    os.setsid()
    descendants.adopt_orphans()
    memory.die_with_parent(signal.SIGTERM)
    if os.getppid() != guard:
        signal.raise_signal(signal.SIGTERM)
    return Conductor(plan, timeout, sockets, signals, usual).conduct()


def _guard(conductor: int, signals: Collection[int], sockets: Path) -> int:
    """Pass signals on until the conductor has ended, then end what it may have left. The exit code."""
    while True:
        number = signal.sigwait(signals)
        if number == signal.SIGCHLD:
            pid, status = os.waitpid(conductor, os.WNOHANG)
            if pid:
                break
        else:
            os.kill(conductor, number)
            if number == signal.SIGTSTP:
                os.kill(os.getpid(), signal.SIGSTOP)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        how = launch.how_it_ended(code)
        say(f"the process that looks after the ranks and their nodes died ({how}): all of them are ended")
    descendants.end(time.monotonic() + STOP_TIMEOUT_S)
    shutil.rmtree(sockets, ignore_errors=True)
    return exit_code(code)


# --- what a run consists of ----------------------------------------------------------------------------


def _rank(
    cmd: tuple[str, ...], rank: int, world: int, here: int, socket: Path, env: dict[str, str], prefix: bool
) -> Part:
    """One of ``here`` ranks of this host."""
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // here))}
    environment |= os.environ | env
    environment |= {"DSM_NODE": str(socket), "DSM_RANK": str(rank), "DSM_WORLD_SIZE": str(world)}
    return Part(f"rank {rank}", list(cmd), environment, prefix=f"[{rank}] ".encode() if prefix else None)


def _directory(
    listen: str, shards: int, key: Path | None = None, insecure: bool = False
) -> Iterator[tuple[str, launch.Service]]:
    directory = launch.start_directory(listen, shards=shards, key=key, insecure=insecure)
    yield "the directory", directory
    for number in range(1, shards):
        title = f"shard {number} of the directory"
        yield title, launch.start_directory(listen, shard_of=directory.address, key=key, insecure=insecure)


class _Key:
    """What the hosts of a run know each other by: the file ``path``, a new key if there is none, or nothing."""

    def __init__(self, path: Path | None, insecure: bool) -> None:
        self.path = path
        self.insecure = insecure
        self.text = b""

    def prepare(self, folder: Path) -> None:
        """Have one."""
        if self.insecure:
            return
        if self.path is None:
            from dsm import seal

            self.path = folder / "key"
            seal.make(self.path)
        self.text = self.path.read_bytes()


class _OneHost:
    """Several nodes on this host."""

    is_all = True

    def __init__(
        self, cmd: tuple[str, ...], procs: int, nodes: int, shards: int, env: dict[str, str], prefix: bool
    ) -> None:
        self.directories = shards
        self._cmd = cmd
        self._procs = procs
        self._nodes = nodes
        self._env = env
        self._prefix = prefix

    def services(self, sockets: Path) -> Iterator[tuple[str, launch.Service]]:
        address = ""
        for title, service in _directory(launch.LOOPBACK, self.directories):
            address = address or service.address
            yield title, service
        for number in range(1, self._nodes + 1):
            name = f"node{number}"
            yield f"the agent of {name}", launch.start_node(address, socket=sockets / f"{name}.sock", name=name)

    def parts(self, sockets: Path) -> list[Part]:
        made = []
        for rank in range(self._procs):
            socket = sockets / f"node{rank * self._nodes // self._procs + 1}.sock"
            made.append(_rank(self._cmd, rank, self._procs, self._procs, socket, self._env, self._prefix))
        made[0].stdin = None
        return made


class _RanksOfHost:
    """One node, and its ranks of a run that has others elsewhere."""

    directories = 0
    is_all = False

    def __init__(
        self,
        cmd: tuple[str, ...],
        directory: str,
        listen: str,
        name: str,
        ranks: range,
        world: int,
        key: bytes,
        env: dict[str, str],
        prefix: bool,
    ) -> None:
        self._cmd = cmd
        self._key = key
        self._directory = directory
        self._listen = listen
        self._name = name
        self._ranks = ranks
        self._world = world
        self._env = env
        self._prefix = prefix

    def services(self, sockets: Path) -> Iterator[tuple[str, launch.Service]]:
        socket = sockets / "node.sock"
        key = sockets / "key" if self._key else None
        if key is not None:
            key.touch(mode=0o600)
            key.write_bytes(self._key)
        node = launch.start_node(
            self._directory, listen=self._listen, socket=socket, name=self._name, key=key, insecure=key is None
        )
        yield f"the agent of {self._name}", node

    def parts(self, sockets: Path) -> list[Part]:
        here = len(self._ranks)
        return [
            _rank(self._cmd, rank, self._world, here, sockets / "node.sock", self._env, self._prefix)
            for rank in self._ranks
        ]


class _RanksElsewhere(HostPart):
    def __init__(self, host: hosts.Host, arguments: list[str], key: bytes) -> None:
        super().__init__(f"host {host.login}", hosts.command_on(host, arguments), hosts.environment_here())
        self.told = key
        self._host = host

    def explain(self, returncode: int) -> str:
        return super().explain(returncode) + hosts.ssh_failed(self._host, returncode)


class _SeveralHosts:
    """A directory here, and a node with ranks on each host."""

    is_all = True

    def __init__(
        self,
        cmd: tuple[str, ...],
        shares: list[tuple[hosts.Host, int, int]],
        shards: int,
        key: _Key,
        env: dict[str, str],
        prefix: bool,
    ) -> None:
        self.directories = shards
        self._cmd = cmd
        self._key = key
        self._shares = shares
        self._env = env
        self._prefix = prefix
        self._address = ""

    def services(self, sockets: Path) -> Iterator[tuple[str, launch.Service]]:
        listen = hosts.meeting_point([host for host, _, _ in self._shares])
        self._key.prepare(sockets)
        for title, service in _directory(listen, self.directories, self._key.path, self._key.insecure):
            self._address = self._address or service.address
            yield title, service

    def parts(self, sockets: Path) -> list[Part]:
        world = sum(count for _, _, count in self._shares)
        return [self._part(host, first, count, world) for host, first, count in self._shares]

    def _part(self, host: hosts.Host, first: int, count: int, world: int) -> Part:
        where = ["--directory", self._address, "--listen", hosts.listening(host.ip), "--name", host.login]
        which = ["--first", str(first), "--count", str(count), "--world", str(world)]
        which += ["--key-bytes", str(len(self._key.text))]
        variables = [word for name, value in self._env.items() for word in ("--env", f"{name}={value}")]
        prefix = ["--prefix"] if self._prefix else []
        command = ["run-host", *where, *which, *variables, *prefix, "--", *self._cmd]
        return _RanksElsewhere(host, command, self._key.text)
