"""Random faults against a real cluster: ``python tests/chaos/chaos.py [--minutes M] [--seed S] [--nodes N]``.

A directory and N nodes, each on a host of its own (a network namespace), and workers that hold everything they read
against what they know. Meanwhile processes are killed and stopped, hosts die or are cut off, for a moment or for longer
than a lease, and the directory is killed and started again. Told is what was done, and the seed it was drawn from. In
the end all is healed, the workers have to go on, and every number in memory has to be what they have made of it; what
was lost with a host must have been told to be. Exit code 1 if not, 130 after Ctrl-C.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import json
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import click
from interrupting import INTERRUPTED, listen, postponed
from limits import MemoryGroup, can_limit
from network import Hosts, missing
from worker import RECORD, ROWS, SHARED, UNSOUND, WORDS

from dsm import launch, seal
from dsm.constants import LEASE_S

_HERE: Final = Path(__file__).resolve().parent
_TREE: Final = _HERE.parents[1]
_PORT: Final = 7400
_PATIENCE_S: Final = 90.0
"""How long anything may take in the end, when nothing is wrong any more: several leases."""
_WORKERS: Final = 2
"""On each node."""
_EXCUSES: Final = ("dsm.errors.Fenced", "dsm.errors.NodeUnreachable", "dsm.errors.DirectoryUnreachable")
"""With what a worker may end whose node has gone."""


_TOO_EARLY: Final = ("no directory answers", "is here already", "does not know of this conversation any more")
"""Why a node does not begin: there was no directory, or it was killed just then, or the node that died was not given up
yet."""


class Failed(Exception):
    """Something has happened that must not."""


class Process:
    """One process of the cluster. ``doomed``: it was ended, or may end, because of what was done to it."""

    def __init__(self, process: subprocess.Popen[bytes], name: str, log: Path) -> None:
        self.process = process
        self.name = name
        self.log = log
        self.doomed = False

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def kill(self) -> None:
        self.doomed = True
        self.process.kill()
        self.process.wait()

    def send(self, number: int) -> None:
        if not self.ended:
            self.process.send_signal(number)

    @property
    def children(self) -> list[int]:
        """Of a node: its agent, which it keeps."""
        try:
            return list(
                map(int, Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split())
            )
        except OSError:
            return []

    def send_all(self, number: int) -> None:
        """A signal to it and its children."""
        for pid in self.children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        self.send(number)

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")[-2000:]


class Worker(Process):
    """A worker, on ``node``, with a row of its own."""

    row: int
    node: int
    record: Path

    def file(self) -> None:
        """It has ended: what it has done stands, if it has begun."""
        with contextlib.suppress(FileNotFoundError):
            self.record.rename(self.record.with_suffix(".over"))

    def counts(self) -> tuple[int, int, int, int]:
        """See :data:`worker.RECORD`."""
        return RECORD.unpack_from(self.record.read_bytes())


class Chaos:
    """A cluster of ``nodes`` nodes, and what is done to it."""

    def __init__(self, nodes: int, chance: random.Random, home: Path) -> None:
        self.chance = chance
        self.home = home
        self.hosts = Hosts(nodes + 1)
        self.done: Counter[str] = Counter()
        self.deadly = 0
        self.workers: list[Worker] = []
        self.void: set[int] = set()  # rows that were lost
        self.began_s = time.monotonic()
        self._number = itertools.count(1)
        self._rows = itertools.count(1)
        self._heals: list[tuple[float, int, str, Callable[[], None]]] = []
        self._cut: Counter[int] = Counter()
        seal.make(home / "key")
        self.memory: dict[int, MemoryGroup] = {}
        if can_limit():
            self.memory = {node: MemoryGroup(f"dsm-chaos-{os.getpid()}-{node}") for node in range(1, nodes + 1)}
        self.directory = self._start_directory()
        self.nodes = {node: self._start_node(node) for node in range(1, nodes + 1)}

    # -- processes ---------------------------------------------------------------------------------------

    def _run(self, host: int, name: str, command: list[str], env: dict[str, str]) -> tuple[Any, Path]:
        log = self.home / f"{next(self._number)}-{name}.log"
        with log.open("wb") as file, postponed():
            process = subprocess.Popen(
                self.hosts.inside(host, command), env=env, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                start_new_session=True,
            )  # fmt: skip
        return process, log

    def _service(self, host: int, module: str, arguments: list[str]) -> Process:
        command, env = launch.program(module)
        name = f"{module}{host or ''}"
        process, log = self._run(host, name, [*command, *arguments, "--key", str(self.home / "key")], env)
        return Process(process, name, log)

    def _start_directory(self) -> Process:
        listen_at = f"tcp://{self.hosts.addresses[0]}:{_PORT}"
        return self._service(0, "directory", ["--listen", listen_at, "--state", str(self.home / "state")])

    def socket(self, node: int) -> Path:
        """Of a node, for its applications."""
        return self.home / f"{node}.sock"

    def _start_node(self, node: int) -> Process:
        self.socket(node).unlink(missing_ok=True)
        arguments = ["--directory", f"tcp://{self.hosts.addresses[0]}:{_PORT}", "--socket", str(self.socket(node))]
        arguments += ["--listen", f"tcp://{self.hosts.addresses[node]}:{_PORT}", "--name", f"node{node}"]
        service = self._service(node, "nodes", arguments)
        if node in self.memory:
            self.memory[node].take(service.process.pid)
        return service

    def _environment(self, node: int) -> dict[str, str]:
        return os.environ | {"PYTHONPATH": f"{_TREE}:{_HERE}", "DSM_NODE": str(self.socket(node))}

    def start_worker(self, node: int) -> None:
        """One more, with a row of its own."""
        row = next(self._rows)
        if row >= ROWS:
            raise Failed(f"more than {ROWS} workers were needed")
        record = self.home / f"{row}.record"
        command = [sys.executable, str(_HERE / "worker.py"), str(row), str(record)]
        process, log = self._run(node, f"worker{row}", command, self._environment(node))
        worker = Worker(process, f"worker {row} on node {node}", log)
        worker.row, worker.node, worker.record = row, node, record
        self.workers.append(worker)

    def ask(self, node: int, action: str) -> Any:
        """What the program beside this one finds, from a node; None while nobody can tell."""
        command = [sys.executable, str(_HERE / "look.py"), action]
        try:
            result = subprocess.run(
                self.hosts.inside(node, command), env=self._environment(node), capture_output=True, timeout=_PATIENCE_S
            )
        except subprocess.TimeoutExpired:
            raise Failed(f"`look.py {action}` hangs on node {node}") from None
        return json.loads(result.stdout) if result.returncode == 0 else None

    # -- faults ------------------------------------------------------------------------------------------

    def tell(self, text: str) -> None:
        """A line about what was done."""
        print(f"{time.monotonic() - self.began_s:7.1f} s  {text}", flush=True)

    def _later(self, seconds: float, what: str, heal: Callable[[], None]) -> None:
        heapq.heappush(self._heals, (time.monotonic() + seconds, next(self._number), what, heal))

    def heal(self, *, everything: bool = False) -> None:
        """Undo what is due."""
        while self._heals and (everything or self._heals[0][0] <= time.monotonic()):
            _, _, what, undo = heapq.heappop(self._heals)
            self.tell(what)
            undo()

    def _seconds(self, *, long: bool) -> float:
        """As long as nobody is given up for, or longer."""
        return LEASE_S + self.chance.uniform(3, 10) if long else self.chance.uniform(0.05, LEASE_S / 2)

    def _count(self, text: str, *, deadly: bool = False) -> None:
        self.done[text] += 1
        self.deadly += deadly

    def kill_worker(self) -> None:
        if not self.workers:
            return
        worker = self.chance.choice(self.workers)
        self._count("worker killed")
        self.tell(f"{worker.name} is killed")
        worker.kill()

    def stop_worker(self) -> None:
        if not self.workers:
            return
        worker, seconds = self.chance.choice(self.workers), self._seconds(long=False)
        self._count("worker stopped")
        self.tell(f"{worker.name} is stopped for {seconds:.1f} s")
        worker.send(signal.SIGSTOP)
        self._later(seconds, f"{worker.name} goes on", lambda: worker.send(signal.SIGCONT))

    def kill_directory(self) -> None:
        if self.directory.ended:
            return
        seconds = self.chance.uniform(0, 3)
        self._count("directory killed")
        self.tell(f"the directory is killed, for {seconds:.1f} s")
        self.directory.kill()

        def again() -> None:
            self.directory = self._start_directory()

        self._later(seconds, "the directory is started again", again)

    def stop_directory(self) -> None:
        directory, seconds = self.directory, self._seconds(long=self.chance.random() < 0.2)
        self._count("directory stopped")
        self.tell(f"the directory is stopped for {seconds:.1f} s")
        directory.send(signal.SIGSTOP)
        self._later(seconds, "the directory goes on", lambda: directory.send(signal.SIGCONT))

    def stop_node(self) -> None:
        long = self.chance.random() < 0.2
        number, seconds = self.chance.choice(list(self.nodes)), self._seconds(long=long)
        node = self.nodes[number]
        self._count(f"node stopped for {'long' if long else 'a while'}", deadly=long)
        self.tell(f"node {number} is stopped for {seconds:.1f} s")
        if long:  # a stopped agent cannot hide its pages: as where the whole host stops, its workers stop with it
            self._of_node(number, signal.SIGSTOP)
        node.send_all(signal.SIGSTOP)

        def go_on() -> None:
            node.send_all(signal.SIGCONT)
            if long:
                self._of_node(number, signal.SIGCONT)

        self._later(seconds, f"node {number} goes on", go_on)

    def kill_agent(self) -> None:
        self._end_agent("killed", signal.SIGKILL)

    def stop_agent(self) -> None:
        """For good: its keeper kills it, and starts another one."""
        self._end_agent("stopped", signal.SIGSTOP)

    def _end_agent(self, how: str, number: int) -> None:
        node = self.chance.choice(list(self.nodes))
        for pid in self.nodes[node].children:
            self._count(f"agent {how}")
            self.tell(f"the agent of node {node} is {how}")
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _of_node(self, number: int, what: int) -> None:
        for worker in self.workers:
            if worker.node == number:
                worker.doomed = True
                worker.send(what)

    def kill_host(self) -> None:
        number = self.chance.choice(list(self.nodes))
        if self.nodes[number].ended:
            return
        self._count("host killed", deadly=True)
        self.tell(f"the host of node {number} dies")
        self._dies(number)

    def _dies(self, number: int) -> None:
        """A node, and its workers; both are started again."""
        self._of_node(number, signal.SIGKILL)
        self.nodes[number].kill()

        def again() -> None:
            self.nodes[number] = self._start_node(number)

        # Its name and address are taken until it is given up.
        self._later(LEASE_S + 2, f"node {number} is started again", again)

    def fill_memory(self) -> None:
        """The kernel then ends the agent, again and again, or the keeper."""
        number, seconds = self.chance.choice(list(self.memory)), self.chance.uniform(0.5, 4)
        node = self.nodes[number]
        if node.ended or node.doomed:
            return
        self._count("memory full", deadly=True)
        self.tell(f"the memory of node {number} is full for {seconds:.1f} s")
        node.doomed = True
        self.memory[number].fill(self.chance.choice((64, 256, 1024)) << 10)

        def free() -> None:
            self.memory[number].free()
            if node.ended:
                self._dies(number)
            else:
                node.doomed = False

        self._later(seconds, f"node {number} has memory again", free)

    def cut_off(self) -> None:
        long = self.chance.random() < 0.2
        host, seconds = self.chance.randrange(len(self.nodes) + 1), self._seconds(long=long)
        name = f"node {host}" if host else "the directory"
        self._count(f"host cut off for {'long' if long else 'a while'}", deadly=long)
        if long:
            for number in self.nodes if not host else [host]:
                self._of_node(number, 0)
        self.tell(f"{name} is cut off for {seconds:.1f} s")
        self._cut[host] += 1
        self.hosts.cut_off(host)

        def mend() -> None:
            self._cut[host] -= 1
            if not self._cut[host]:
                self.hosts.join_again(host)

        self._later(seconds, f"{name} is reached again", mend)

    def slow_down(self) -> None:
        host, seconds = self.chance.randrange(len(self.nodes) + 1), self._seconds(long=False)
        delay, loss = self.chance.choice(((5, 0), (50, 1), (200, 3)))
        self._count("link slow")
        self.tell(f"host {host} is slow for {seconds:.1f} s: {delay} ms, {loss} % lost")
        self.hosts.slow_down(host, delay, loss)
        self._later(seconds, f"host {host} is as before", lambda: self.hosts.slow_down(host, 0, 0))

    # -- what must hold ----------------------------------------------------------------------------------

    def look_after(self) -> None:
        """See who has ended, and whether that may be; others take their places."""
        if self.directory.ended and not self.directory.doomed:
            raise Failed(f"the directory has ended ({self.directory.process.returncode}):\n{self.directory.said}")
        for number, node in self.nodes.items():
            was_no_member = not node.said or any(text in node.said for text in _TOO_EARLY)  # nothing: it was killed
            if node.ended and not node.doomed and was_no_member:
                self.nodes[number] = self._start_node(number)
            elif node.ended and not node.doomed:
                raise Failed(f"node {number} has ended ({node.process.returncode}):\n{node.said}")
        for worker in [worker for worker in self.workers if worker.ended]:
            self._judge_end(worker)
            self.workers.remove(worker)
            worker.file()
        for number, node in self.nodes.items():
            here = sum(worker.node == number for worker in self.workers)
            if not node.ended and self.socket(number).exists():
                for _ in range(_WORKERS - here):
                    self.start_worker(number)

    def _judge_end(self, worker: Worker) -> None:
        code = worker.process.returncode
        if code == UNSOUND:
            raise Failed(f"{worker.name}: {worker.said}")
        if code in (-signal.SIGBUS, 128 + signal.SIGBUS) and self.deadly:
            self.done["worker ended by a lost page"] += 1
            self._reset_lost(worker.node)
        elif not worker.doomed and not (self.deadly and (code == -signal.SIGKILL or _excused(worker.said))):
            raise Failed(f"{worker.name} has ended ({code}):\n{worker.said}")

    def _reset_lost(self, node: int) -> None:
        for row in self.ask(node, "reset") or []:
            if row not in self.void:
                self.tell(f"row {row} was lost, and begins anew")
            self.void.add(row)
        (self.home / "void").write_text(" ".join(map(str, sorted(self.void))))  # who has seen them before may look

    def check(self) -> dict[str, int]:
        """All is healed: everybody must go on, and then memory must have what was stored. Returns what was compared."""
        self.heal(everything=True)
        self.tell("all is healed")
        self._wait(lambda: all(map(self._serves, self.nodes)), "the nodes")
        self.look_after()
        before = {worker.row: worker.counts()[1] for worker in self.workers if worker.record.exists()}
        self._wait(lambda: self._all_go_on(before), "workers that go on")
        for worker in self.workers:
            worker.kill()
        for worker in self.workers:
            worker.file()
        self._reset_lost(1)
        return self._compare(self.ask(1, "rows"))

    def _serves(self, node: int) -> bool:
        self.look_after()
        return self.socket(node).exists() and self.ask(node, "here") is not None

    def _all_go_on(self, before: dict[int, int]) -> bool:
        self.look_after()
        return all(w.record.exists() and w.counts()[1] > before.get(w.row, 0) for w in self.workers)

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while not condition():
            if time.monotonic() > deadline:
                raise Failed(f"in vain waited for {what}; the directory said:\n{self.directory.said}")
            time.sleep(0.2)

    def _compare(self, rows: list[list[int]] | None) -> dict[str, int]:
        if rows is None:
            raise Failed("memory cannot be read in the end")
        if self.void and not self.deadly:
            raise Failed(f"rows {sorted(self.void)} are lost, and no host was")
        compared, shared_begun, shared_done = 0, 0, 0
        for record in self.home.glob("*.over"):
            row = int(record.stem)
            begun, done, begun_shared, done_shared = RECORD.unpack_from(record.read_bytes())
            shared_begun += begun_shared
            shared_done += done_shared
            if row in self.void:
                continue
            compared += 1
            for place, value in enumerate(rows[row]):
                low, high = ((n + WORDS - 1 - place) // WORDS for n in (done, begun))
                if not low <= value <= high:
                    raise Failed(f"row {row}, place {place} is {value}, where {done} of {begun} additions were done")
        if SHARED not in self.void and not shared_done <= rows[SHARED][0] <= shared_begun:
            raise Failed(f"the shared number is {rows[SHARED][0]}, not between {shared_done} and {shared_begun}")
        return {"rows": compared, "void": len(self.void), "additions": shared_done + sum(map(sum, rows))}

    def close(self) -> None:
        """End everything."""
        for process in (*self.workers, *self.nodes.values(), self.directory):
            process.send_all(signal.SIGCONT)
            process.kill()
        for group in self.memory.values():
            group.close()
        self.hosts.close()


def _excused(said: str) -> bool:
    lines = said.strip().splitlines()
    return bool(lines) and lines[-1].startswith(_EXCUSES)


def _faults(chaos: Chaos) -> list[Callable[[], None]]:
    faults = [chaos.kill_worker] * 3 + [chaos.stop_worker, chaos.stop_directory, chaos.stop_node, chaos.kill_host]
    faults += [chaos.kill_directory] * 3 + [chaos.kill_agent] * 3 + [chaos.stop_agent] + [chaos.cut_off] * 2
    if chaos.hosts.can_be_slow():
        faults.append(chaos.slow_down)
    else:
        print("no slow links: this machine has no tc, or its kernel no netem", file=sys.stderr)
    if chaos.memory:
        faults.append(chaos.fill_memory)
    else:
        print("no full memory: this process may make no control group for it", file=sys.stderr)
    return faults


@contextlib.contextmanager
def _home() -> Iterator[Path]:
    home = Path(tempfile.mkdtemp(prefix="c-", dir="/tmp"))  # a socket path has 107 bytes at most
    try:
        yield home
    except Failed:
        print(f"the logs are in {home}", file=sys.stderr)
        raise
    else:
        shutil.rmtree(home)


def run(minutes: float, seed: int, nodes: int) -> dict[str, Any]:
    """Everything. Raises :class:`Failed`."""
    chance = random.Random(seed)
    with _home() as home:
        chaos = Chaos(nodes, chance, home)
        try:
            faults = _faults(chaos)
            chaos._wait(lambda: all(chaos.socket(node).exists() for node in chaos.nodes), "the nodes")
            chaos.look_after()
            until = time.monotonic() + minutes * 60
            while time.monotonic() < until:
                pause_until = time.monotonic() + chance.uniform(0.2, 4)
                while time.monotonic() < pause_until:
                    chaos.heal()
                    chaos.look_after()
                    time.sleep(0.1)
                chance.choice(faults)()
            compared = chaos.check()
        finally:
            with postponed():
                chaos.close()
    return {"seed": seed, "minutes": minutes, "faults": dict(chaos.done), **compared}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--minutes", type=click.FloatRange(min=0.05), default=10.0, show_default=True)
@click.option("--seed", type=int, help="What is done, and when.  [default: a fresh one]")
@click.option("--nodes", type=click.IntRange(2, 16), default=3, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON, in the end.")
def main(minutes: float, seed: int | None, nodes: int, as_json: bool) -> None:
    """Random faults against a real cluster."""
    if why := missing():
        raise click.UsageError(f"no hosts to do it on: {why}")
    listen()
    seed = secrets.randbelow(1 << 32) if seed is None else seed
    print(f"seed {seed}, {minutes:g} minutes, {nodes} nodes", flush=True)
    try:
        found = run(minutes, seed, nodes)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    except Failed as error:
        print(f"FAILED, seed {seed}: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    if as_json:
        print(json.dumps(found))
        return
    for what, count in sorted(found["faults"].items()):
        print(f"{count:6}  {what}")
    print(f"{found['rows']} rows and {found['additions']} additions are right, {found['void']} rows were lost and told")


if __name__ == "__main__":
    main()
