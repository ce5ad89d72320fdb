"""Garbage from applications on the Unix socket: after each kind of it both nodes write and read as before."""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import random
import signal
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from application import attach_by_hand, hear, say
from cluster import LIMIT_S, Child, Cluster, until
from noise import SEED, Probe, lawless, random_messages, random_values

import dsm
from dsm import constants, local, memory, wire
from dsm.uffd import DEVICE, Userfaultfd, open_device


@contextlib.contextmanager
def connected(cluster: Cluster) -> Iterator[socket.socket]:
    with local.connect(cluster.path(0), LIMIT_S) as sock:
        sock.settimeout(LIMIT_S)
        yield sock


def is_told_and_dropped(sock: socket.socket, names: set[str]) -> None:
    answer, fds = local.receive(sock)
    local.close_all(fds)
    assert isinstance(answer, wire.Failure) and answer.error in names, answer
    assert local.receive(sock) == (None, [])


def test_noise_from_applications(cluster: Cluster, probe: Probe) -> None:
    for data in random_messages(random.Random(SEED), 150):
        with connected(cluster) as sock:
            sock.send(data)
            if data:  # an empty packet is what the end looks like
                is_told_and_dropped(sock, {"ProtocolError", "VersionMismatch"})
    probe()


def test_packets_that_are_too_large_or_carry_too_much(cluster: Cluster, probe: Probe) -> None:
    with connected(cluster) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        sock.send(bytes(constants.LOCAL_BYTES_MAX + 1))
        is_told_and_dropped(sock, {"ProtocolError"})
    with connected(cluster) as sock:
        rights = array.array("i", [sock.fileno()] * 100)
        data = wire.encode(wire.StatsQuery())
        sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        is_told_and_dropped(sock, {"ProtocolError"})
    probe()


_SYNCHRONISE = (
    wire.Unlink
    | wire.Acquire
    | wire.Release
    | wire.Arrive
    | wire.BarrierReset
    | wire.Post
    | wire.Enroll
    | wire.Forget
    | wire.Gone
)


def test_messages_at_the_wrong_moment(cluster: Cluster, probe: Probe) -> None:
    """What only services say, what needs a mapping, and what comes while something else is awaited."""
    for message in lawless(random.Random(SEED)):
        if not isinstance(message, _SYNCHRONISE):
            with connected(cluster) as sock:
                local.send(sock, message)
                if isinstance(message, wire.Inspect):
                    assert isinstance(local.receive(sock)[0], wire.Answer)
                elif not isinstance(message, wire.Cancel):  # it has come too late, so nothing is said
                    is_told_and_dropped(sock, {"ProtocolError"})
    me, another = (1, 1, "a thread"), (1, 2, "another")
    seconds = (
        wire.Acquire(0, "other", wire.LOCK, wire.FOREVER, *another),
        wire.Attach("probe", 0, 0, 2, {}),
        wire.Arrive(0, "b", 2, wire.FOREVER, False, *another),
    )
    for second in seconds:
        with connected(cluster) as holder, connected(cluster) as sock:
            local.send(holder, wire.Acquire(0, "lock", wire.LOCK, wire.FOREVER, *me))
            assert isinstance(local.receive(holder)[0], wire.Granted)
            local.send(sock, wire.Acquire(0, "lock", wire.LOCK, wire.FOREVER, *another))
            local.send(sock, second)
            is_told_and_dropped(sock, {"ProtocolError"})
        until(lambda: not any(one["calls"] for one in cluster.status()["cluster"]["primitives"]), "nobody to wait")
    probe()


def test_options_that_are_none(cluster: Cluster, probe: Probe) -> None:
    """The agent hands them on as they are; what they mean is the application's business, which may not trust them."""
    plan = random.Random(SEED)
    for number in range(30):
        options = {"shape": random_values(plan), "dtype": random_values(plan)}
        with connected(cluster) as sock, contextlib.suppress(OverflowError):
            local.send(sock, wire.Attach(f"odd{number}", 4096, 0, 0, options))
            answer, fds = local.receive(sock)
            local.close_all(fds)
            assert isinstance(answer, wire.Attached | wire.Failure)
    for name in ("large", "large", "probe"):
        for length in (1000, 20_000, constants.LOCAL_BYTES_MAX - 100):
            with connected(cluster) as sock:
                local.send(sock, wire.Attach(name, 4096, 0, 0, {"shape": "x" * length}))
                local.close_all(local.receive(sock)[1])
        probe()
    probe()


def attach_to_odd_options() -> list[str]:
    """The library names the error, whatever stands in the options."""
    found = set()
    path = local.socket_path()
    values: list[Any] = [{}, {"a": 1}, [-1], ["x"], [1 << 63], "abc", 7, None, 1.5, b"abc", [[1]], [8, 8]]
    for number, shape in enumerate(values):
        for dtype in ("<f8", "nonsense", "[('a', 'O')]", "[" * 3000, "O", 5, None, "[__import__('os')._exit(3)]"):
            name = f"odd {number} {str(dtype)[:10]}".replace("/", "")
            with local.connect(path, 5) as sock:
                local.send(sock, wire.Attach(name, 512, 0, 0, {"shape": shape, "dtype": dtype}))
                answer, fds = local.receive(sock)
                local.close_all(fds)
                if isinstance(answer, wire.Failure):  # refused where regions are made
                    found.add(answer.error)
                    continue
                region = dsm.attach(name)  # while the other holds it: nobody has mapped it yet
            try:
                repr(region)
                found.add(str(region.array.shape))
            except dsm.errors.DsmError as error:
                found.add(type(error).__name__)
    return sorted(found)


def test_a_library_that_attaches_to_them(cluster: Cluster) -> None:
    assert set(cluster.run(attach_to_odd_options)) <= {"(8, 8)", "(7,)", "()", "InvalidArgument", "ProtocolError"}


def test_a_flood_of_connections_closed_at_once(cluster: Cluster, probe: Probe) -> None:
    for number in range(2000):
        sock = local.connect(cluster.path(0), LIMIT_S)
        if number % 3 == 0:
            with contextlib.suppress(OSError):
                local.send(sock, wire.Attach("flood", 4096, 0, 0, {}))
        sock.close()
        if number % 500 == 0:
            probe()
    probe()


def test_a_question_whose_asker_never_listens(cluster: Cluster, probe: Probe) -> None:
    """Its buffer is full of answers; nobody else waits for it."""
    with local.connect(cluster.path(0), LIMIT_S) as sock:
        sock.setblocking(False)
        data = wire.encode(wire.Inspect(0, "x", 0))
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            try:
                sock.send(data)
            except BlockingIOError:
                time.sleep(0.001)
            except OSError:  # it was dropped
                break
        probe()


def test_a_status_with_very_much_in_it(cluster: Cluster, probe: Probe) -> None:
    with connected(cluster) as sock:
        for number in range(1200):
            local.send(sock, wire.Inspect(0, f"{number} {'x' * 200}", wire.BARRIER))
            assert isinstance(local.receive(sock)[0], wire.Answer)
        local.send(sock, wire.Query(0, "status", 0, 0, 0))
        answer, _ = local.receive(sock)
        assert isinstance(answer, wire.Answer | wire.Failure)
        local.send(sock, wire.Inspect(0, "still here", wire.LOCK))
        assert isinstance(local.receive(sock)[0], wire.Answer)
    # Whatever was answered, the applications go on. (Probe asks for the status too, which is too large now.)
    for child in probe.children:
        child.tell(-1)
        assert child.hear() == 0
    probe.asks_for_the_status = False


# --- descriptors that are not what they should be -------------------------------------------------------------------


def attached(cluster: Cluster, stack: contextlib.ExitStack) -> socket.socket:
    sock = stack.enter_context(connected(cluster))
    local.send(sock, wire.Attach("mapped", 100_000, 0, 0, {}))
    answer, fds = local.receive(sock)
    local.close_all(fds)
    assert isinstance(answer, wire.Attached)
    return sock


def use_mapped() -> int:
    with dsm.attach("mapped", 100_000) as region:
        region.buf[5000] += 1
        return region.buf[5000]


def a_pipe() -> list[int]:
    return list(os.pipe())


def a_file() -> list[int]:
    return [os.open("/dev/null", os.O_RDWR)]


def the_device() -> list[int]:
    device = open_device()
    return [os.open("/dev/zero", os.O_RDWR) if device is None else device]


def nothing() -> list[int]:
    return []


def test_descriptors_that_are_no_userfaultfd(cluster: Cluster, probe: Probe) -> None:
    before = passed_on(cluster)
    for make in (a_pipe, a_file, the_device, nothing):
        for address in (0, 4096, 12345, (1 << 63) - 1):
            with contextlib.ExitStack() as stack:
                sock, fds = attached(cluster, stack), make()
                stack.callback(local.close_all, fds)
                local.send(sock, wire.Mapped(address), fds)
                is_told_and_dropped(sock, {"ProtocolError", "InvalidArgument"})
        probe()
    assert cluster.run(use_mapped) == 1
    until(lambda: passed_on(cluster) == before, "the agent to close what came")


def passed_on(cluster: Cluster) -> list[int]:
    """How many descriptors of the kinds of which some were sent the agent has."""
    return [cluster.descriptors(0, kind) for kind in ("pipe:", "/dev/null", "/dev/userfaultfd", "/dev/zero")]


def map_wrongly(kind: str) -> None:
    """Userfaultfds never negotiated, never registered, or for another range; each with addresses that are none."""
    kept: list[object] = []
    for address in (0, 4096, 12345, (1 << 63) - 4096, (1 << 63) - 1):
        sock = local.connect(local.socket_path(), 5)
        local.send(sock, wire.Attach("mapped", 100_000, 0, 0, {}))
        _, fds = local.receive(sock)
        uffd = Userfaultfd.create(fds[1] if len(fds) > 1 else None)
        number = uffd.fileno()
        if kind == "registered elsewhere":
            own = memory.map_shared(memory.create_memfd("own", 1 << 20), 1 << 20)
            uffd.register(memory.address_of(own), 1 << 20)
            kept.append(own)
        elif kind == "not negotiated":
            device = open_device()
            assert device is not None
            number = fcntl.ioctl(device, 0xAA00, os.O_CLOEXEC | os.O_NONBLOCK)  # USERFAULTFD_IOC_NEW
        local.send(sock, wire.Mapped(address), [number])
        assert type(local.receive(sock)[0]) in (wire.Ready, wire.Failure)
        kept += [sock, uffd]
    say()
    hear()


@pytest.mark.parametrize("kind", ["not negotiated", "not registered", "registered elsewhere"])
def test_userfaultfds_that_manage_nothing(cluster: Cluster, probe: Probe, kind: str) -> None:
    """Whether such a one is refused or not: whoever does this may hurt himself, but nobody else."""
    if kind == "not negotiated" and not os.access(DEVICE, os.R_OK | os.W_OK):
        pytest.skip(f"{DEVICE} cannot be opened here")
    first = cluster.start(map_wrongly, kind)
    first.hear_or_end()
    assert cluster.run(use_mapped) == 1
    assert cluster.run(use_mapped, node=1) == 2
    second = cluster.start(map_wrongly, kind)  # now pages are here
    second.hear_or_end()
    assert cluster.run(use_mapped) == 3
    probe()
    for child in (first, second):
        child.tell()
        assert child.wait() in (0, -signal.SIGKILL)  # a node may end who does this
    probe()


def fault_outside() -> None:
    """Faults at addresses before, behind and far from the region that the node was told of."""
    with local.connect(local.socket_path(), 5) as sock:
        local.send(sock, wire.Attach("mapped", 100_000, 0, 0, {}))
        _, fds = local.receive(sock)
        length = 1 << 20
        own = memory.map_shared(memory.create_memfd("own", length), length)
        uffd = Userfaultfd.create(fds[1])
        uffd.register(memory.address_of(own), length)
        local.send(sock, wire.Mapped(memory.address_of(own) + length // 2), [uffd.fileno()])
        say(type(local.receive(sock)[0]).__name__)
        for offset in (0, length - 1, length // 2):
            if not os.fork():
                own[offset] = 1
                os._exit(0)
        signal_end = hear()
        assert signal_end is None


def test_faults_outside_of_the_region(cluster: Cluster, probe: Probe) -> None:
    child = cluster.start(fault_outside)
    child.hear()
    for _ in range(3):
        probe()
    assert cluster.run(use_mapped) == 1
    probe()
    end_marked(cluster, child)
    child.tell()
    child.wait()


def end_marked(cluster: Cluster, child: Child) -> None:
    """Its children are in page faults that nobody will serve."""
    for pid, command in cluster.processes().items():
        if "fault_outside" in command and pid != child.pid:
            os.kill(pid, signal.SIGKILL)


def attach_and_leave_in_the_middle(times: int) -> int:
    """Half of a conversation: attached, mapped or asked for, and gone; or the mapping gone and the connection not."""
    path = local.socket_path()
    kept = []
    for number in range(times):
        sock = local.connect(path, 5)
        pages, uffd = attach_by_hand(sock, "mapped", 100_000)
        if number % 4 == 0:
            pages.close()
        if number % 4 == 1:
            uffd.close()
            local.send(sock, wire.Prefetch(0, 100_000, True))
        if number % 4 == 2:
            local.send(sock, wire.Prefetch(0, 100_000, True))
            sock.close()
        if number % 4 == 3:
            local.send(sock, wire.Acquire(0, "held", wire.LOCK, wire.FOREVER, 1, 1, "a thread"))
            sock.shutdown(socket.SHUT_WR)
        kept.append((sock, pages if number % 4 else None, uffd))
    return len(kept)


def test_half_of_a_conversation(cluster: Cluster, probe: Probe) -> None:
    assert cluster.run(attach_and_leave_in_the_middle, 40) == 40
    assert cluster.run(use_mapped, node=1) == 1
    assert cluster.run(use_mapped) == 2
    probe()
