"""The simulator itself: old failures, fresh seeds, exact replay, and that it can fail."""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from processes import at_a_terminal, children, is_deaf

import nodes.memory
from directory.cluster import Cluster, Outgoing
from directory.locks import Lock
from directory.machine import PageMachine
from directory.registry import Registry
from directory.sync import SyncMachine
from directory.waiting import Call
from dsm import wire
from dsm.constants import LEASE_S, PAGE_BYTES
from dsm.session import Session
from dsm.uffd import Outcome, Userfaultfd
from nodes import effects
from nodes.applications import Applications
from nodes.connections import Connection
from nodes.keeper import MAPPED, Thing
from nodes.ledger import Ledger
from nodes.locks import Locks
from nodes.memory import RegionMemory
from nodes.outgoing import Said
from nodes.pager import Pager
from nodes.rebuild import Rebuild
from nodes.tenure import Tenure

from . import regressions, stand_ins
from .__main__ import main
from .cluster import SimulatedCluster
from .host import Host
from .kernel import KernelNoise
from .programs import WORD, Load, Process, Program, Sleep, Store, acquire, attach, detach, prefetch, release
from .run import Run, simulate
from .workloads import Workload
from .world import MS, S, SimulationError, World

TREE = Path(__file__).resolve().parents[2]
LINES = 80
BUG_SEEDS = 200


def demand_success(seed: int, nodes: int | None = None) -> None:
    outcome = simulate((seed, nodes, LINES))
    if outcome.failure:
        pytest.fail(f"{outcome.failure}\nreplay: {outcome.replay_command}", pytrace=False)


@pytest.mark.parametrize(("seed", "nodes"), regressions.known())
def test_what_once_failed(seed: int, nodes: int | None) -> None:
    demand_success(seed, nodes)


@pytest.mark.parametrize("part", range(4))
def test_fresh_seeds(part: int) -> None:
    first = secrets.randbelow(1 << 32)
    for seed in range(first, first + 8):
        demand_success(seed)


def test_a_thousand_nodes() -> None:
    demand_success(1, 1000)


class OneAfterTheOther(Workload):
    """Two processes of one node, then one of another, take a lock again and again, each when the one before is done."""

    def spawn(self, host: Host, index: int) -> None:
        super().spawn(self.cluster.hosts[1 + index // 2], index)

    def worker(self, process: Process, index: int) -> Program:
        yield Sleep(1 + index * S)
        for _ in range(self.rounds):
            held = yield from acquire(process, "kept")
            self.demand(held is not None, "the lock was not granted")
            yield from release(process, "kept", held)


@pytest.mark.parametrize(("workers", "acquired", "returned"), [(1, 1, 0), (2, 1, 0), (3, 2, 1)])
def test_a_lock_that_a_node_takes_again_costs_no_message(
    monkeypatch: pytest.MonkeyPatch, workers: int, acquired: int, returned: int
) -> None:
    step, said = Cluster.step, Counter[str]()

    def counting(self: Cluster, identity: bytes, message: wire.Message, now: float) -> Outgoing:
        said[type(message).__name__] += 1
        return step(self, identity, message, now)

    monkeypatch.setattr(Cluster, "step", counting)
    world = World(4711)
    cluster = SimulatedCluster(world, 2, KernelNoise(0, 0, 0, 0, 0, 0), (20, 60))
    with cluster.kernel.installed():
        cluster.workloads.append(OneAfterTheOther(cluster, "in turn", workers, 200, 1, PAGE_BYTES))
        while cluster.alive:
            assert world.step()
    assert (said["Acquire"], said["Return"]) == (acquired, returned)


class Late(Workload):
    """One process stores to a page, another looks at it much later: too late."""

    def spawn(self, host: Host, index: int) -> None:
        del host
        super().spawn(self.cluster.hosts[1 + index], index)

    def worker(self, process: Process, index: int) -> Program:
        region = yield from attach(process, "late", PAGE_BYTES)
        if index == 0:
            yield Store(region, 0, 4711)
        yield Sleep(40 * S)
        yield Load(region, 0)


def taken_along() -> None:
    """A node dies with its directory; the next one gives it up, and is killed before it has found all pages."""
    world = World(4711)
    cluster = SimulatedCluster(world, 2, KernelNoise(0, 0, 0, 0, 0, 0), (20, 60))
    with cluster.kernel.installed():
        cluster.workloads.append(Late(cluster, "late", 2, 1, 1, PAGE_BYTES))
        world.after(1 * S, cluster.hosts[1].die)
        world.after(1 * S, cluster.restart_directory, MS)
        world.after(int((LEASE_S - 1) * S), _cut_one_way, cluster, 2, 0)
        world.after(int((LEASE_S + 2) * S), cluster.restart_directory, MS)
        world.after(int((LEASE_S + 2.5) * S), cluster.network.mend, 1)
        while cluster.alive:
            assert world.step()
        assert world.counts["SIGBUS"] == 1


class Takeover(Workload):
    """One process stores to many pages, another takes them all, and looks at them."""

    def spawn(self, host: Host, index: int) -> None:
        del host
        super().spawn(self.cluster.hosts[1 + index], index)

    def worker(self, process: Process, index: int) -> Program:
        region = yield from attach(process, "taken", self.pages * PAGE_BYTES)
        words = [page * PAGE_BYTES // WORD for page in range(self.pages)]
        if index == 0:
            for word in words:
                yield Store(region, word, 1 + word)
            yield Sleep(5 * S)
        else:
            yield Sleep(S)
            yield from prefetch(region, 0, self.pages, True)
            for word in words:
                yield Load(region, word)
        yield from detach(process, region)


def _cut_one_way(cluster: SimulatedCluster, source: int, to: int) -> None:
    cluster.network.cut(lambda a, b: (a, b) == (source, to))


def takeover() -> None:
    """The directory is killed while the connection on which the pages come is cut."""
    world = World(4711)
    cluster = SimulatedCluster(world, 2, KernelNoise(0, 0, 0, 0, 0, 0), (20, 60))
    with cluster.kernel.installed():
        cluster.workloads.append(Takeover(cluster, "takeover", 2, 1, 512, PAGE_BYTES))
        world.after(S // 2, _cut_one_way, cluster, 1, 2)
        world.after(S + 10 * MS, cluster.restart_directory, MS)
        world.after(4 * S, cluster.network.mend, 1)
        while cluster.alive:
            assert world.step()
        assert world.counts["loads"] == 512, "SIGBUS: its pages are lost"


def test_pages_on_their_way_are_found_again() -> None:
    takeover()


# --- replay ----------------------------------------------------------------------------------------------


def test_a_seed_is_always_the_same_run() -> None:
    seeds = (47, 101, 102)
    here = [simulate((seed, None, 0)).trace_hash for seed in seeds]
    assert [simulate((seed, None, 0)).trace_hash for seed in seeds] == here
    assert len(set(here)) == len(seeds)
    code = f"from tests.sim.run import simulate\nfor seed in {seeds}: print(simulate((seed, None, 0)).trace_hash)"
    for hash_seed in ("0", "4711"):
        there = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(TREE)},
            cwd=TREE,
            capture_output=True,
            text=True,
            check=True,
        )
        assert there.stdout.split() == here


def test_nothing_real_is_opened() -> None:
    before = os.listdir("/proc/self/fd")
    for seed in range(10):
        demand_success(seed)
    assert os.listdir("/proc/self/fd") == before


# --- it can fail -----------------------------------------------------------------------------------------

Break = Callable[[pytest.MonkeyPatch], None]


def forget_a_sharer(patch: pytest.MonkeyPatch) -> None:
    """The directory takes one sharer's copy for gone, and says so to the writer."""
    step = Cluster.step

    def forgetful(self: Cluster, identity: bytes, message: wire.Message, now: float) -> Outgoing:
        out = step(self, identity, message, now)
        for index, (to, told) in enumerate(out):
            if isinstance(told, wire.Invalidate):
                sender, requester = (
                    next(n.number for n in self._nodes.values() if n.identity == to),
                    self._nodes[told.requester].identity,
                )
                out[index] = requester, wire.Ack(told.region, told.generation, told.start, sender)
                break
        return out

    patch.setattr(Cluster, "step", forgetful)


def drop_before_reading(patch: pytest.MonkeyPatch) -> None:
    send = Pager._send_pages

    def hasty(self: Pager, region: RegionMemory, fetch: wire.Fetch, start: int, count: int, bulk: bool) -> None:
        if not fetch.keep:
            region.drop(start, count)
        send(self, region, fetch, start, count, bulk)

    patch.setattr(Pager, "_send_pages", hasty)


def read_without_protecting(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RegionMemory, "protect", lambda self, start, count: None)


def forget_the_rest_of_a_partial_copy(patch: pytest.MonkeyPatch) -> None:
    copy = Userfaultfd.copy

    def lazy(self: Userfaultfd, to: int, source: int, length: int, protect: bool) -> Outcome:
        copy(self, to, source, PAGE_BYTES, protect)
        return Outcome.DONE

    patch.setattr(Userfaultfd, "copy", lazy)


def overwrite_after_a_failed_copy(patch: pytest.MonkeyPatch) -> None:
    """As it was: ENOMEM in the middle of a COPY loses what a thread has stored meanwhile."""

    def careless(self: RegionMemory, offset: int, frame: Any, length: int) -> None:
        kernel = nodes.memory.__dict__["os"]  # the simulated one
        for at in range(0, length, PAGE_BYTES):
            kernel.pwrite(self.memfd, frame.buffer[at : at + PAGE_BYTES], offset + at)

    patch.setattr(RegionMemory, "_write_absent", careless)


def wake_nobody(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RegionMemory, "resume", lambda self, mapping, page, write: None)


def leave_with_pages_readable(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Pager, "withdraw", lambda self: None)


def acknowledge_before_dropping(patch: pytest.MonkeyPatch) -> None:
    run = Pager.run

    def reordered(self: Pager, decided: list[effects.Effect]) -> None:
        run(self, sorted(decided, key=lambda effect: isinstance(effect, effects.Drop)))

    patch.setattr(Pager, "run", reordered)


def send_nothing_again(patch: pytest.MonkeyPatch) -> None:
    """What was under way when a connection broke is lost."""
    patch.setattr(Session, "resume", lambda self, received: [])


def send_everything_again(patch: pytest.MonkeyPatch) -> None:
    """The first message that had arrived before a connection broke comes twice."""
    resume = Session.resume

    def generous(self: Session, received: int) -> list[bytes]:
        arrived = [*self.kept][: received - self.acknowledged]
        return [frame for frame in arrived if isinstance(frame, bytes)] + resume(self, received)

    patch.setattr(Session, "resume", generous)


def grant_a_lock_twice(patch: pytest.MonkeyPatch) -> None:
    def generous(self: Lock, call: Call) -> list[tuple[int, wire.Message]]:
        self.node = call.node
        return [call.granted()]

    patch.setattr(Lock, "acquire", generous)


def take_a_lock_that_is_recalled(patch: pytest.MonkeyPatch) -> None:
    """A node that gives a lock back keeps it all the same."""

    def greedy(self: Locks, name: str, died: bool = False) -> wire.Return:
        self._locks[name].recalled = False
        self._free[name] = None
        return wire.Return(self._locks[name].grant, name, died)

    patch.setattr(Locks, "_give_back", greedy)


def break_a_barrier_twice(patch: pytest.MonkeyPatch) -> None:
    """As it was: of two waiters of a node at one barrier, the first takes the other with it."""

    def careless(self: SyncMachine, node: int) -> list[tuple[int, wire.Message]]:
        return [told for call in self._waiting.of_node(node) for told in self._end(call)]

    patch.setattr(SyncMachine, "forget_node", careless)


def forget_to_close(patch: pytest.MonkeyPatch) -> None:
    """Regions are destroyed although somebody is attached."""

    def hasty(self: Registry, node: int, number: int, opens: int) -> set[int]:
        region = self.regions.get(number)
        if region is None:
            return set()
        region.nodes.clear()
        return self._destroy_if_over(region)

    patch.setattr(Registry, "close", hasty)


def read_on_after_the_lease(patch: pytest.MonkeyPatch) -> None:
    """A node that the directory has given up lets its applications go on."""
    patch.setattr(Tenure, "look", lambda self, now: None)


def answer_nobody_again(patch: pytest.MonkeyPatch) -> None:
    """What a node had not read when its directory was killed it never learns."""
    patch.setattr(Cluster, "_noted", lambda self, out: out)


def say_nothing_again(patch: pytest.MonkeyPatch) -> None:
    """What a directory that was killed had not heard it never learns."""
    patch.setattr(Said, "unheard", lambda self, count: [])


def say_everything_again(patch: pytest.MonkeyPatch) -> None:
    """A directory that begins again hears once more what it had written down."""
    patch.setattr(Said, "unheard", lambda self, count: list(self._messages))


def tell_before_all_has_come(patch: pytest.MonkeyPatch) -> None:
    """A node tells what it has though pages are on their way to it."""
    flush = Rebuild.flush

    def hasty(self: Rebuild, m: wire.Flush) -> None:
        flush(self, m)
        if self._awaited:
            self._awaited = set()
            self._report_if_all_came()

    patch.setattr(Rebuild, "flush", hasty)


def keep_what_was_ordered(patch: pytest.MonkeyPatch) -> None:
    """What a node was to send to others when the directory was killed it never sends."""
    patch.setattr(Pager, "bring_out", lambda self: None)


def take_the_rest_for_zeros(patch: pytest.MonkeyPatch) -> None:
    """Who does not come back to a directory that begins again had nothing."""
    patch.setattr(PageMachine, "lose_the_rest", lambda self, number, node: None)


def forget_who_took_the_rest_along(patch: pytest.MonkeyPatch) -> None:
    """As it was: a directory that is killed again before all pages are found forgets who did not come back."""
    again = Cluster.again
    patch.setattr(
        Cluster,
        "again",
        lambda self, event, now: (
            again(self, (event[0] * 0, *event[1:]), now)
            if isinstance(event[2], wire.MemberLeft)
            else again(self, event, now)
        ),
    )


def keep_nothing_under_way(patch: pytest.MonkeyPatch) -> None:
    """What was in pages that were handed over is nowhere but in the message."""
    patch.setattr(stand_ins.Retained, "add", lambda self, region, start, count, payload: None)


def ask_everything_once_more(patch: pytest.MonkeyPatch) -> None:
    """The directory does again what the agent before this one had asked for, too."""
    patch.setattr(Cluster, "_knows", lambda self, node, ticket: False)


def note_no_question(patch: pytest.MonkeyPatch) -> None:
    """Another agent does not know what is waited for."""
    note = Connection.note

    def forgetful(self: Connection) -> bytes:
        question, ticket = self.question, self.ticket
        self.question, self.ticket = None, 0
        noted = note(self)
        self.question, self.ticket = question, ticket
        return noted

    patch.setattr(Connection, "note", forgetful)


def answer_before_noting(patch: pytest.MonkeyPatch) -> None:
    """An application goes on with what no other agent would know of."""
    commit = Ledger.commit

    def hasty(self: Ledger) -> None:
        replies, self._replies = self._replies, []
        for connection, packet in replies:
            self._send(connection, packet)
        commit(self)

    patch.setattr(Ledger, "commit", hasty)


def leave_mappings_with_the_keeper(patch: pytest.MonkeyPatch) -> None:
    """As it was: what the agent before this one was about to drop stays with the keeper, without its connection."""
    drop, take_over = stand_ins.Shelf.drop, Applications.take_over
    taking_over: list[bool] = []

    def forgetful(self: stand_ins.Shelf, name: str) -> None:
        if not (taking_over and name.startswith(MAPPED)):
            drop(self, name)

    def slack(self: Applications, found: dict[str, Thing]) -> None:
        taking_over.append(True)
        try:
            take_over(self, found)
        finally:
            taking_over.pop()

    patch.setattr(stand_ins.Shelf, "drop", forgetful)
    patch.setattr(Applications, "take_over", slack)


def answer_twice(patch: pytest.MonkeyPatch) -> None:
    """As it was: a question that is answered while a node says again what the directory had not heard has another
    answer after that, which counts if both are lost."""
    patch.setattr(Cluster, "_has_answered", lambda self, node, ticket: False)


def keep_locks_that_were_taken_back(patch: pytest.MonkeyPatch) -> None:
    """As it was: an agent that has just begun keeps locks that nobody holds, which the directory does not know."""
    give_up = Locks.give_up

    def greedy(self: Locks) -> list[wire.Message]:
        free, locks = dict(self._free), dict(self._locks)
        said = give_up(self)
        self._free, self._locks = free, locks
        return said

    patch.setattr(Locks, "give_up", greedy)


def let_store_to_a_part_of_a_page(patch: pytest.MonkeyPatch) -> None:
    """As it was: of a page that has several of the kernel's some can be written before the others are there."""
    install = RegionMemory.install

    def hasty(self: RegionMemory, start: int, count: int, source: Any, write: bool, target: Any) -> bool:
        size, self.page_size = self.page_size, PAGE_BYTES
        parts = size // PAGE_BYTES
        try:
            return install(self, start * parts, count * parts, source, write, target)
        finally:
            self.page_size = size

    patch.setattr(RegionMemory, "install", hasty)


BUGS: list[Break] = [
    forget_a_sharer,
    drop_before_reading,
    read_without_protecting,
    forget_the_rest_of_a_partial_copy,
    overwrite_after_a_failed_copy,
    wake_nobody,
    acknowledge_before_dropping,
    leave_with_pages_readable,
    send_nothing_again,
    send_everything_again,
    grant_a_lock_twice,
    take_a_lock_that_is_recalled,
    break_a_barrier_twice,
    forget_to_close,
    read_on_after_the_lease,
]
BUGS_OF_RESTARTS: list[Break] = [
    answer_nobody_again,
    say_nothing_again,
    say_everything_again,
    take_the_rest_for_zeros,
]
BUGS_OF_KILLS: list[tuple[Break, int]] = [  # with a seed from which on it does not take long
    (keep_nothing_under_way, 0),
    (ask_everything_once_more, 0),
    (note_no_question, 0),
    (answer_before_noting, 300),
    (keep_locks_that_were_taken_back, 280),
    (let_store_to_a_part_of_a_page, 2000),
    (answer_twice, 5700),
    (leave_mappings_with_the_keeper, 115),
]
BUGS_OF_A_TAKEOVER: list[tuple[Break, str]] = [
    (tell_before_all_has_come, "SIGBUS"),
    (keep_what_was_ordered, "was stored last"),
]


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
def test_a_bug_is_found(bug: Break, monkeypatch: pytest.MonkeyPatch) -> None:
    bug(monkeypatch)
    failures = (simulate((seed, None, 20)).failure for seed in range(BUG_SEEDS))
    failure = next(filter(None, failures), "")
    print(failure)
    assert failure


@pytest.mark.parametrize("bug", BUGS_OF_RESTARTS, ids=lambda bug: bug.__name__)
def test_a_bug_of_a_restart_is_found(bug: Break, monkeypatch: pytest.MonkeyPatch) -> None:
    bug(monkeypatch)
    kinds = [*["restarted directory"] * 3, "cut connection", "node that dies", "slow link"]
    for seed in range(BUG_SEEDS):
        try:
            Run(seed, None, kinds).execute()
        except Exception as error:
            print(f"{type(error).__name__}: {error}")
            return
    pytest.fail("nobody noticed")


@pytest.mark.parametrize(("bug", "first"), BUGS_OF_KILLS, ids=lambda bug: getattr(bug, "__name__", ""))
def test_a_bug_of_killed_agents_is_found(bug: Break, first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    bug(monkeypatch)
    for seed in range(first, first + BUG_SEEDS):
        try:
            Run(seed, None, ["killed agent"]).execute()
        except Exception as error:
            print(f"seed {seed}: {type(error).__name__}: {error}")
            return
    pytest.fail("nobody noticed")


@pytest.mark.parametrize(("bug", "what"), BUGS_OF_A_TAKEOVER, ids=lambda bug: getattr(bug, "__name__", ""))
def test_a_bug_of_a_takeover_is_found(bug: Break, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bug(monkeypatch)
    with pytest.raises((SimulationError, AssertionError), match=what):
        takeover()


def test_who_took_the_rest_along_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    taken_along()
    forget_who_took_the_rest_along(monkeypatch)
    with pytest.raises(SimulationError, match="was stored last"):
        taken_along()


# --- campaigns -------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A copy of the list of seeds that have failed, whose last line somebody has left open."""
    copy = tmp_path / "regressions.txt"
    copy.write_text(regressions.FILE.read_text().rstrip("\n"))
    return copy


def campaign(file: Path, *arguments: str) -> Result:
    return CliRunner().invoke(
        main, ["--first", "1000", "--large", "0", "--jobs", "1", "--regressions", f"{file}", *arguments]
    )


def test_a_seed_that_fails_becomes_a_line_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = regressions.known(file)
    wake_nobody(monkeypatch)
    ran = campaign(file, "--seeds", "3")
    failed = [(seed, None) for seed in range(1000, 1003) if simulate((seed, None, 0)).failure]
    assert ran.exit_code == 1 and failed
    assert regressions.known(file) == before + failed
    added = file.read_text().splitlines()[-len(failed) :]
    for (seed, _), line in zip(failed, added, strict=True):
        assert line.startswith(f"{seed} ") and "# SimulationError: no" in line
        assert f"seed {seed} is now a line of {file}, which `make test` replays" in ran.stderr

    again = campaign(file, "--seeds", "3")
    assert regressions.known(file) == before + failed
    assert again.stderr.count(f"is a line of already: {file}") == len(failed)


def test_a_seed_that_fails_with_a_number_of_nodes_is_another(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = regressions.known(file)
    wake_nobody(monkeypatch)
    campaign(file, "--seeds", "3", "--nodes", "3")
    failed = [(seed, 3) for seed in range(1000, 1003) if simulate((seed, 3, 0)).failure]
    assert failed and regressions.known(file) == before + failed


def test_a_campaign_without_failures_leaves_the_file_alone(file: Path) -> None:
    before = file.read_text()
    ran = campaign(file, "--seeds", "3")
    assert ran.exit_code == 0, ran.stderr
    assert file.read_text() == before


@pytest.mark.parametrize(("jobs", "processes"), [(1, 0), (2, 3)], ids=["here", "apart"])  # one tracks resources
def test_an_interrupted_campaign_says_how_far_it_got(jobs: int, processes: int, file: Path) -> None:
    command = [sys.executable, "-m", "tests.sim", "--seeds", "100000", "--jobs", f"{jobs}", "--regressions", f"{file}"]
    with subprocess.Popen(
        command, cwd=TREE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=at_a_terminal,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline().startswith("seeds ")
        while len(children(process.pid)) < processes:
            assert process.poll() is None
        assert all(map(is_deaf, children(process.pid)))
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
        _, said = process.communicate()  # to its end: nobody is left who could say more
    assert process.returncode == 130
    assert re.fullmatch(r"interrupted: \d+ of 100001 seeds, \d+\.\d seeds/s, 0 failed\n", said)
