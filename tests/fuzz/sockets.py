"""Every socket of real services under fire, while two applications go on writing and reading.

Each target is told in portions. After each portion both applications write a page and read the other's; a last one is
told without them, and the status of the cluster must be what it was. Everything refused is counted, exactly; the
services stay up, their memory is bounded, and the agents have as many descriptors as before.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from cluster import LIMIT_S, Cluster, descriptors, until
from mutation import Mutator
from noise import Probe, strange_head, strange_opening
from report import Outcome, measured, rss_kib
from talker import Talker, connect, is_closed

from dsm import constants, local, wire
from dsm.errors import DsmError
from dsm.session import HELLO, Session

PORTIONS: Final = 8
_CAMPAIGN_S: Final = 3600.0
"""No campaign takes longer: the applications live through all of it."""
_MUTABLE: Final = {"counters", "uptime_s", "silent_s", "lease_s", "applications", "primitives"}
"""What a status says of the moment; whoever asks for it is an application, too. Primitives may be made by anybody."""
_ANSWERED: Final = (wire.Join, wire.Query, wire.Leave)
"""What a stranger may send to the directory."""


def _without_counters(status: Any) -> Any:
    """What a status says of the state of the cluster."""
    if isinstance(status, dict):
        return {key: _without_counters(value) for key, value in status.items() if key not in _MUTABLE}
    return [_without_counters(item) for item in status] if isinstance(status, list) else status


class Battle:
    """A cluster of two nodes with applications that go on whatever is sent to its sockets."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.probe = Probe(cluster, _CAMPAIGN_S)
        self.probe()

    def node_counters(self, node: int) -> dict[str, int]:
        counters: dict[str, int] = self.cluster.status(node)["node"]["counters"]
        return counters

    def refused_by_node(self, node: int) -> int:
        return sum(self.node_counters(node).values())

    def refused_by_directory(self) -> int:
        refused: int = self.cluster.status()["cluster"]["counters"]["rejected"]
        return refused

    def state(self) -> Any:
        """What must not change."""
        return [_without_counters(self.cluster.status(node)) for node in range(2)]

    def quiet_state(self) -> Any:
        """The same, once what the applications did is over on every side."""
        states: list[Any] = []

        def is_steady() -> bool:
            states.append(self.state())
            time.sleep(0.05)  # pages asked for ahead come, and are closed, after who asked for them has gone on
            return len(states) > 3 and states[-4:-1] == states[-3:]

        until(is_steady, "the state to be the same for a while")
        return states[-1]

    def fight(self, count: int, portion: Callable[[int], None]) -> None:
        """Send ``count`` messages; ``portion`` sends some and returns when they have been dealt with."""
        each = max(1, count // PORTIONS)
        for _ in range(PORTIONS - 1):
            portion(each)
            self.probe()
        before = self.quiet_state()
        portion(each)
        after = self.state()
        assert after == before, f"the state has changed from {before} to {after}"
        self.probe()

    def rss(self, service: int) -> Callable[[], int]:
        """The memory of a node, or of the directory (-1)."""
        pid = self.cluster.services()[service].process.pid
        return lambda: rss_kib(pid)


# --- the directory --------------------------------------------------------------------------------------------------


def _of_a_stranger(mutator: Mutator) -> tuple[bytes, bytes]:
    """A message, with page data or without, of which nothing is a stranger's right: it is refused."""
    plan = mutator.plan
    kind = plan.randrange(10)
    if kind == 0:
        return mutator.damaged() or b"\0", bytes(plan.choice((1, 100, 4096, 65536)))  # the directory takes no pages
    if kind == 1:
        message = mutator.message()
        while isinstance(message, _ANSWERED):
            message = mutator.message()
        return wire.encode(message), b""
    return mutator.garbage() or b"\0", b""  # nothing at all is no message, but an acknowledgement


_IN_FLIGHT: Final = 500
_BREAKS: Final = 300
"""A connection breaks after so many messages, with some of them under way: they are counted once all the same."""


def stranger(battle: Battle, seed: int, count: int) -> Outcome:
    """Noise, damage and what only members may say, from who is no member."""
    mutator = Mutator(seed)
    with (
        measured("directory, a stranger", battle.rss(-1)) as outcome,
        Talker(battle.cluster.directory.address) as talker,
    ):

        def portion(some: int) -> None:
            before = battle.refused_by_directory()
            for number in range(some):
                talker.send(*_of_a_stranger(mutator))
                if number % _IN_FLIGHT == 0:
                    talker.flush()
            talker.flush()
            refused = battle.refused_by_directory() - before
            assert refused == some, f"{some} were sent, {refused} counted"
            outcome.refused += refused

        battle.fight(count, portion)
    return outcome


_EVIL: Final = ("evil0", "evil1", "evil2")


def _of_a_member(mutator: Mutator, regions: int, probe: int) -> bytes:
    """Anything but what a member has a right to do to the region of the others, and what outlives its membership."""
    plan = mutator.plan
    if plan.random() < 0.2:
        return mutator.garbage() or b"\0"
    message = mutator.message()
    fields = message._asdict()
    for name, values in (("region", regions + 2), ("generation", 50), ("start", 420), ("page", 420), ("ticket", 9)):
        if name in fields and plan.random() < 0.9:
            message = message._replace(**{name: plan.randrange(values)})
    if "name" in fields and not isinstance(message, wire.Join):
        message = message._replace(name=plan.choice(_EVIL))
    if isinstance(message, wire.Request) and message.region == probe:
        message = message._replace(op=plan.choice((wire.EVICT, 4, 255)))
    if isinstance(message, wire.Leave | wire.Keep | wire.Arrive):
        return wire.encode(wire.Done(probe, 1, 0, 1))
    if isinstance(message, wire.BarrierReset):
        message = message._replace(broken=False)
    return wire.encode(message)


def member(battle: Battle, seed: int, count: int) -> Outcome:
    """A member says anything: claims, closes, hurries and keeps what is not its own, and floods."""
    mutator = Mutator(seed)
    probe = battle.cluster.status()["cluster"]["regions"][0]["id"]
    with measured("directory, a member", battle.rss(-1)) as outcome:

        def portion(some: int) -> None:
            before = battle.refused_by_directory()
            with Talker(battle.cluster.directory.address) as talker:
                talker.tell(wire.Join("liar", "tcp://127.0.0.1:1"))
                for number in range(some):
                    talker.send(_of_a_member(mutator, 8, probe))
                    if number % _IN_FLIGHT == 0:
                        talker.flush()
                    if number % _BREAKS == 99:
                        talker.reset()
                        talker.connect()
                talker.flush()
                talker.tell(wire.Leave())
                talker.flush()
            until(lambda: len(battle.cluster.status()["cluster"]["nodes"]) == 2, "the end of its membership")
            refused = battle.refused_by_directory() - before
            assert 0 < refused <= some
            outcome.refused += refused
            outcome.accepted += some - refused

        battle.fight(count, portion)
    return outcome


# --- what a node hears from its peers -------------------------------------------------------------------------------


def _of_a_peer(mutator: Mutator) -> bytes:
    plan = mutator.plan
    message = mutator.message((wire.Data, wire.Ack)) if plan.random() < 0.8 else mutator.message()
    for name, values in (("region", 3), ("start", 420), ("first", 420), ("count", 4), ("total", 4)):
        if name in message._fields and plan.random() < 0.8:
            message = message._replace(**{name: plan.randrange(values)})
    return wire.encode(message)


def _pages(plan: random.Random) -> bytes:
    if plan.random() < 0.001:
        return bytes(2 << 20)
    return bytes(plan.choice((0, 1, 4095, 4096, 4096, 4096, 4097, 8192, 65536, 65537)))


def peer(battle: Battle, seed: int, count: int) -> Outcome:
    """Damage, page data and acknowledgements with and without pages, from whoever finds where a node listens; the
    connection breaks now and then."""
    mutator = Mutator(seed)
    plan = mutator.plan
    address = battle.cluster.status()["node"]["address"]
    with measured("node, a peer", battle.rss(0)) as outcome, Talker(address) as talker:

        def portion(some: int) -> None:
            before = battle.refused_by_node(0)
            for number in range(some):
                data = (mutator.damaged() or b"\0") if plan.random() < 0.3 else _of_a_peer(mutator)
                talker.send(data, _pages(plan) if plan.random() < 0.4 else b"")
                if number % _BREAKS == 99:
                    talker.reset()
                    talker.connect()
            until(lambda: battle.refused_by_node(0) - before >= some, "all of it to be counted")
            assert battle.refused_by_node(0) - before == some
            outcome.refused += some

        battle.fight(count, portion)
    return outcome


# --- the Unix socket of a node --------------------------------------------------------------------------------------

_TO_A_NODE: Final = (
    wire.Attach, wire.Mapped, wire.Detach, wire.Prefetch, wire.StatsQuery, wire.Query, wire.Unlink,
    wire.Hold, wire.Acquire, wire.Release, wire.WaitOn, wire.Post, wire.Enroll, wire.Forget, wire.Inspect, wire.Cancel,
)  # fmt: skip
_A_NODE_ANSWERS: Final = (*_TO_A_NODE, wire.Arrive, wire.BarrierReset, wire.Gone)
_NOT_TO_A_NODE: Final = [kind for kind in wire.MESSAGES if kind not in _A_NODE_ANSWERS]


@contextlib.contextmanager
def _descriptors() -> Iterator[list[int]]:
    with contextlib.ExitStack() as stack:
        found = [*os.pipe(), os.open("/dev/null", os.O_RDWR), os.memfd_create("fuzz"), os.eventfd(0)]
        for fd in found:
            stack.callback(os.close, fd)
        one, other = socket.socketpair()
        stack.enter_context(one)
        stack.enter_context(other)
        stream = stack.enter_context(socket.socket())
        yield [*found, one.fileno(), other.fileno(), stream.fileno()]


def _some(plan: random.Random, fds: list[int]) -> list[int]:
    return plan.choices(fds, k=plan.choice((0, 0, 1, 1, 2, 4, 5, 30)))


def _shoot(sock: socket.socket, data: bytes, fds: list[int]) -> None:
    data = local.NO_NUMBER + data
    with contextlib.suppress(OSError):  # it was dropped before it had said everything
        socket.send_fds(sock, [data], fds) if fds else sock.send(data)


def application(battle: Battle, seed: int, count: int) -> Outcome:
    """Damage and what only services say, with 0 to 30 descriptors of wrong kinds: each ends its connection."""
    mutator = Mutator(seed)
    plan = mutator.plan
    with _descriptors() as fds, measured("node Unix socket, damage", battle.rss(0)) as outcome:
        kept = battle.cluster.descriptors(0, "")

        def portion(some: int) -> None:
            before = battle.node_counters(0)["rejected"]
            for number in range(some):
                data = mutator.garbage() if plan.random() < 0.8 else wire.encode(mutator.message(_NOT_TO_A_NODE))
                if number % 200 == 0:
                    data = bytes(constants.LOCAL_BYTES_MAX + 1)
                with local.connect(battle.cluster.path(0), LIMIT_S) as sock:
                    sock.settimeout(LIMIT_S)
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
                    _shoot(sock, data or b"\0", _some(plan, fds))  # an empty packet is what the end looks like
                    answer, came = local.receive(sock)
                    assert isinstance(answer, wire.Failure) and not came, answer
            refused = battle.node_counters(0)["rejected"] - before
            assert refused == some, f"{some} were sent, {refused} counted"
            outcome.refused += refused

        battle.fight(count, portion)
        until(lambda: battle.cluster.descriptors(0, "") <= kept, "the agent to close what came")
    return outcome


def _of_an_application(mutator: Mutator) -> wire.Message:
    message: Any = mutator.message(_TO_A_NODE)
    if "name" in message._fields:
        message = message._replace(name=mutator.plan.choice(_EVIL))
    if isinstance(message, wire.Attach):
        message = message._replace(size=min(message.size, 1 << 20), options={})
    if isinstance(message, wire.Acquire):
        message = message._replace(wait=wire.TRY)
    if isinstance(message, wire.Enroll) and message.kind == wire.BARRIER:
        message = message._replace(kind=wire.COUNTER)  # this process would be watched until it ends
    if isinstance(message, wire.Query):
        message = message._replace(what="here")
    return message  # type: ignore[no-any-return]


def conversation(battle: Battle, seed: int, count: int) -> Outcome:
    """Valid messages of applications in any order, with descriptors of wrong kinds; connections cut at any point."""
    mutator = Mutator(seed)
    plan = mutator.plan
    with _descriptors() as fds, measured("node Unix socket, talk", battle.rss(0)) as outcome:
        kept = battle.cluster.descriptors(0, "")

        def talk(sock: socket.socket, most: int) -> int:
            told = 0
            while told < most:
                told += 1
                message = _of_an_application(mutator)
                _shoot(sock, wire.encode(message), _some(plan, fds))
                if isinstance(message, wire.Cancel) or plan.random() < 0.1:
                    continue
                try:
                    answer, came = local.receive(sock)
                except (OSError, DsmError):
                    break
                local.close_all(came)
                if answer is None:
                    break
            return told

        def portion(some: int) -> None:
            before = battle.node_counters(0)["rejected"]
            told = 0
            while told < some:
                with local.connect(battle.cluster.path(0), LIMIT_S) as sock:
                    sock.settimeout(LIMIT_S)
                    told += talk(sock, plan.choice((1, 2, 5, 20)))
            until(lambda: _is_over(battle), "the end of what its connections had")
            refused = battle.node_counters(0)["rejected"] - before
            outcome.refused += refused
            outcome.accepted += told - refused

        battle.fight(count, portion)
        until(lambda: battle.cluster.descriptors(0, "") <= kept, "the agent to close what came")
    return outcome


def _is_over(battle: Battle) -> bool:
    cluster = battle.cluster.status()["cluster"]
    return not any(one["calls"] for one in cluster["primitives"]) and [
        region["name"] for region in cluster["regions"]
    ] == ["probe"]


# --- connections ----------------------------------------------------------------------------------------------------


def _connection(plan: random.Random) -> bytes:
    """The bytes of a connection on which no conversation comes about, or one that comes to an end at once."""
    hello = Session(plan.randbytes(16)).hello(False)
    kind = plan.random()
    if kind < 0.3:
        return hello[: plan.randrange(HELLO.size)]
    if kind < 0.6:
        return strange_opening(plan)
    return hello + strange_head(plan) + plan.randbytes(plan.choice((0, 10, 300, 5000)))


def connections(battle: Battle, seed: int, count: int) -> Outcome:
    """On the ports of the directory and of the nodes: noise, half and forgotten hellos, frames longer than any, more
    acknowledged than was sent. Each ends its own connection, and is counted once."""
    plan = random.Random(seed)
    addresses = [battle.cluster.directory.address] + [battle.cluster.status(n)["node"]["address"] for n in range(2)]

    def refused() -> int:
        return battle.refused_by_directory() + sum(battle.refused_by_node(node) for node in range(2))

    with measured("directory and nodes, connections", battle.rss(-1)) as outcome:
        pids = [service.process.pid for service in battle.cluster.services()]
        kept = {pid: descriptors(pid) for pid in pids}

        def portion(some: int) -> None:
            before = refused()
            for _ in range(some):
                with connect(plan.choice(addresses)) as sock:
                    with contextlib.suppress(OSError):  # it was closed before all of it had been said
                        sock.sendall(_connection(plan))
                        sock.shutdown(socket.SHUT_WR)
                    assert is_closed(sock)
            until(lambda: refused() - before >= some, "all of it to be counted")
            assert refused() - before == some
            outcome.refused += some

        battle.fight(count, portion)
        until(lambda: all(descriptors(pid) <= kept[pid] for pid in pids), "the services to close what came")
    return outcome


TARGETS: Final = {stranger: 1.0, member: 0.5, peer: 0.5, application: 0.1, conversation: 0.1, connections: 0.01}
"""How many messages each gets of what is asked for: a connection for each of them takes longer."""

__all__ = ["TARGETS", "Battle"]
