"""Arguments: refused here with a reason and without asking anybody, or turned into the question the node gets."""

from __future__ import annotations

import gc
import mmap
import pickle
import re
import resource
import socket
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dsm
from dsm import errors, local, wire
from dsm.client import Connection
from dsm.constants import EXTENT_BYTES, NAME_CHARS_MAX, REGION_BYTES_MAX
from dsm.forking import Mapping


@pytest.fixture
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No agent is there: whatever asks one fails with NodeUnreachable."""
    monkeypatch.setenv("DSM_NODE", str(tmp_path / "nobody"))


BAD_NAMES = ["", "x" * (NAME_CHARS_MAX + 1), "a/b", "a\0b", "a\nb", "\ud800"]

NEVER_RIGHT: list[tuple[dict[str, Any], str]] = [
    ({"size": 0}, "at least one byte"),
    ({"size": -1}, "at least one byte"),
    ({"size": 1.5}, "size is a whole number"),
    ({"size": (10, 10)}, "shape="),
    ({"size": "10"}, "size is a whole number"),
    ({"size": 10, "page_size": 0}, "use a multiple of 4096"),
    ({"size": 10, "page_size": 1000}, "use a multiple of 4096"),
    ({"size": 10, "page_size": -4096}, "use a multiple of 4096"),
    ({"size": 10, "page_size": 2 * EXTENT_BYTES}, "use a multiple of 4096"),
    ({"page_size": 1000}, "use a multiple of 4096"),
    ({"size": 10, "persist": "no"}, "persist is True, False or None"),
    ({"size": 10, "page_size": 4096.0}, "page_size is a whole number"),
    ({"shape": (3, -1)}, "no negative sides"),
    ({"shape": (3, 0)}, "without zeros"),
    ({"shape": (2.0,)}, "whole number"),
    ({"shape": "ab"}, "whole number"),
    ({"shape": [1] * 33}, "32 sides at most"),
    ({"shape": 3, "dtype": "no such"}, "numpy does not know"),
    ({"shape": 3, "dtype": object}, "Python objects"),
    ({"shape": 3, "dtype": [("a", "f4"), ("b", "O")]}, "Python objects"),
    ({"shape": 3, "dtype": "S"}, "give a length"),
    ({"dtype": "f8"}, "dtype needs a shape"),
    ({"size": 24, "dtype": "f8"}, "dtype needs a shape"),
    ({"size": 25, "shape": 3, "dtype": "f8"}, "has 24 bytes, not 25"),
    ({"create": True}, "needs a size or a shape"),
    ({"size": 10, "create": "yes"}, "create is True, False or None"),
]


@pytest.mark.usefixtures("nobody")
@pytest.mark.parametrize(("arguments", "reason"), NEVER_RIGHT)
def test_refused(arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(errors.InvalidArgument, match=reason):
        dsm.attach("x", **arguments)


@pytest.mark.usefixtures("nobody")
@pytest.mark.parametrize("size", [REGION_BYTES_MAX, REGION_BYTES_MAX + 1, 1 << 70])
def test_too_large(size: int) -> None:
    with pytest.raises(errors.RegionTooLarge, match="do not fit") as refused:
        dsm.attach("x", size)
    room = int(re.findall(r"has room for (\d+) bytes", str(refused.value))[0])
    mmap.mmap(-1, room - (1 << 30), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000, 0).close()  # MAP_NORESERVE
    unlimited = resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY
    assert ("ulimit" in str(refused.value)) is not unlimited


def test_an_agent_that_does_not_answer_and_was_not_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for named in (False, True):
        monkeypatch.setenv("DSM_NODE", "x") if named else monkeypatch.delenv("DSM_NODE", raising=False)
        with pytest.raises(errors.NodeUnreachable, match="dsm run") as refused:
            local.connect(tmp_path / "nobody", 1.0)
        assert ("unset DSM_NODE" in str(refused.value)) is named


@pytest.mark.usefixtures("nobody")
@pytest.mark.parametrize("name", BAD_NAMES)
def test_bad_names(name: str) -> None:
    for call in (dsm.attach, dsm.Lock, lambda name: dsm.Barrier(name, 1)):
        with pytest.raises(errors.InvalidArgument, match="choose another"):
            call(name)


@pytest.mark.usefixtures("nobody")
def test_a_name_is_a_str() -> None:
    with pytest.raises(errors.InvalidArgument, match="a str, not bytes"):
        dsm.attach(b"x")  # type: ignore[arg-type]


@pytest.mark.usefixtures("nobody")
def test_what_is_right_reaches_for_the_node() -> None:
    with pytest.raises(errors.NodeUnreachable, match="dsm run"):
        dsm.attach("x" * NAME_CHARS_MAX, 1)
    with pytest.raises(errors.NodeUnreachable):
        dsm.Lock("x").acquire()
    with pytest.raises(errors.NodeUnreachable):
        dsm.Barrier("x", 1).wait()


@pytest.mark.parametrize("parties", [0, -1, 1.0, True, 1 << 32])
def test_parties(parties: Any) -> None:
    with pytest.raises(errors.InvalidArgument, match="at least one party"):
        dsm.Barrier("x", parties)


@pytest.mark.usefixtures("nobody")
@pytest.mark.parametrize("arguments", [(False, 1.0), (True, -2.0), (True, threading.TIMEOUT_MAX * 2), (True, "soon")])
def test_lock_time_outs_fail_as_those_of_threading(arguments: tuple[bool, Any]) -> None:
    with pytest.raises(Exception) as theirs:
        threading.Lock().acquire(*arguments)
    with pytest.raises(theirs.type, match=str(theirs.value)):
        dsm.Lock("x").acquire(*arguments)


def test_release_of_a_lock_that_is_not_held() -> None:
    with pytest.raises(errors.LockNotHeld, match="acquire it first"):
        dsm.Lock("x").release()


def test_lock_and_barrier_are_pickled_by_name() -> None:
    lock = pickle.loads(pickle.dumps(dsm.Lock("x")))
    barrier = pickle.loads(pickle.dumps(dsm.Barrier("y", 3)))
    assert (lock.name, barrier.name, barrier.parties) == ("x", "y", 3)


# -- the question that the node gets -------------------------------------------------------------------


def asked(path: Path, **arguments: Any) -> wire.Attach:
    """What ``attach`` sends, to a node that answers with an error."""
    got: list[Any] = []

    def answer_once() -> None:
        with listener, listener.accept()[0] as connection:
            got.append(local.receive(connection)[0])
            local.send(connection, wire.Failure(0, "RegionNotFound", "as expected"))

    listener = local.listen(path)
    node = threading.Thread(target=answer_once)
    node.start()
    with pytest.raises(errors.RegionNotFound, match="as expected"):
        dsm.attach("x", **arguments)
    node.join()
    question = got[0]
    assert isinstance(question, wire.Attach)
    return question


f8 = np.dtype("f8").str

QUESTIONS: list[tuple[dict[str, Any], tuple[Any, ...]]] = [
    # what is given, and: size, page_size, create, options
    ({}, (0, 0, 2, {})),
    ({"create": False}, (0, 0, 2, {})),
    ({"page_size": 8192}, (0, 8192, 2, {})),
    ({"size": 10, "persist": False}, (10, 0, 0, {"persist": False})),
    ({"size": 10}, (10, 0, 0, {})),
    ({"size": np.int64(10), "page_size": 4096}, (10, 4096, 0, {})),
    ({"size": 10, "create": True}, (10, 0, 1, {})),
    ({"size": 10, "create": False}, (10, 0, 2, {})),
    ({"shape": 3}, (24, 0, 0, {"shape": [3], "dtype": f8})),
    ({"shape": ()}, (8, 0, 0, {"shape": [], "dtype": f8})),
    ({"shape": (2, np.int32(3)), "dtype": np.uint8}, (6, 0, 0, {"shape": [2, 3], "dtype": "|u1"})),
    ({"shape": (2,), "dtype": "(3,)<i4"}, (24, 0, 0, {"shape": [2, 3], "dtype": "<i4"})),
    ({"shape": 2, "dtype": ">u2", "size": 4}, (4, 0, 0, {"shape": [2], "dtype": ">u2"})),
    ({"shape": 2, "dtype": "<M8[ns]"}, (16, 0, 0, {"shape": [2], "dtype": "<M8[ns]"})),
    (
        {"shape": 2, "dtype": [("a", "<f4"), ("b", "<i8", (2,))]},
        (40, 0, 0, {"shape": [2], "dtype": "[('a', '<f4'), ('b', '<i8', (2,))]"}),
    ),
]


@pytest.mark.parametrize(("arguments", "question"), QUESTIONS)
def test_asked(
    arguments: dict[str, Any], question: tuple[Any, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSM_NODE", str(tmp_path / "node"))
    assert asked(tmp_path / "node", **arguments) == wire.Attach("x", *question)


# -- a region over private memory ----------------------------------------------------------------------


@pytest.fixture
def conversation() -> Iterator[tuple[Connection, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield Connection(Path("node"), ours), theirs


def region_of(connection: Connection, size: int, **options: Any) -> dsm.Region:
    pages = mmap.mmap(-1, -(-size // 4096) * 4096)
    return dsm.Region(pages, Mapping("x", connection, wire.Attached(1, size, 4096, options, "a"), pages))


def test_buf_has_exactly_the_size(conversation: tuple[Connection, socket.socket]) -> None:
    region = region_of(conversation[0], 5000)
    assert len(region.buf) == region.size == 5000
    assert not region.buf.readonly
    region.buf[4999] = 7
    assert region.array.shape == (5000,) and region.array.dtype == np.uint8 and region.array[4999] == 7
    assert region.array is region.array


@pytest.mark.parametrize("dtype", ["<f8", ">i2", "<M8[s]", [("a", "<f4"), ("b", "S5")]])
def test_array_has_the_layout_of_its_creation(conversation: tuple[Connection, socket.socket], dtype: Any) -> None:
    kind: np.dtype[Any] = np.dtype(dtype)
    text = kind.str if kind.names is None else str(kind.descr)
    region = region_of(conversation[0], 6 * kind.itemsize, shape=[2, 3], dtype=text)
    assert region.array.shape == (2, 3) and region.array.dtype == kind


@pytest.mark.parametrize(
    "options",
    [
        {"shape": [3]},
        {"shape": 3.5, "dtype": "<f8"},
        {"shape": [3], "dtype": "nonsense"},
        {"shape": [3], "dtype": "[1"},
        {"shape": [3], "dtype": 8},
    ],
)
def test_a_layout_that_is_none(conversation: tuple[Connection, socket.socket], options: dict[str, Any]) -> None:
    region = region_of(conversation[0], 24, **options)
    with pytest.raises(errors.ProtocolError, match="use ndarray"):
        region.array  # noqa: B018  (the lookup is the test)
    assert len(region.buf) == 24


def test_ndarray_stays_within(conversation: tuple[Connection, socket.socket]) -> None:
    region = region_of(conversation[0], 5000)
    assert region.ndarray((5, 100), "f8", 1000).base is not None
    assert region.ndarray(1, "u1", 4999).shape == (1,)
    assert region.ndarray((0, 3), "f8", 5000).size == 0
    for shape, offset in [(626, 0), (1, 4993), (1, -1), (0, 5001), (1 << 70, 0)]:
        with pytest.raises(errors.InvalidArgument, match="does not lie within region 'x'"):
            region.ndarray(shape, "f8", offset)
    with pytest.raises(errors.InvalidArgument, match="Python objects"):
        region.ndarray(1, object)


@pytest.mark.parametrize(("start", "stop"), [(-1, None), (0, 5001), (10, 9), (5001, None)])
def test_prefetch_stays_within(conversation: tuple[Connection, socket.socket], start: int, stop: int | None) -> None:
    with pytest.raises(errors.InvalidArgument, match="not a range of region 'x'"):
        region_of(conversation[0], 5000).prefetch(start, stop)


def test_prefetch_of_nothing_asks_nobody(conversation: tuple[Connection, socket.socket]) -> None:
    ours, theirs = conversation
    region_of(ours, 5000).prefetch(100, 100)
    theirs.setblocking(False)
    with pytest.raises(BlockingIOError):
        theirs.recv(1)


def test_after_close(conversation: tuple[Connection, socket.socket]) -> None:
    region = region_of(conversation[0], 5000)
    with region as entered:
        assert entered is region
    region.close()
    uses = (lambda: region.buf, lambda: region.array, lambda: region.ndarray(1, "u1"))
    for use in (*uses, region.prefetch, region.stats, region.__enter__, lambda: pickle.dumps(region)):
        with pytest.raises(errors.RegionClosed, match="attach to it again"):
            use()
    assert (region.name, region.size, region.page_size) == ("x", 5000, 4096)
    assert "closed" in repr(region)


@pytest.mark.parametrize("view", ["array", "buf"])
def test_memory_lives_as_long_as_its_last_view(conversation: tuple[Connection, socket.socket], view: str) -> None:
    region = region_of(conversation[0], 5000)
    pages = weakref.ref(region.buf.obj)
    held = getattr(region, view)[10:20]
    region.close()
    del region
    gc.collect()
    assert pages() is not None
    held[0] = 5
    assert held[0] == 5
    del held
    gc.collect()
    assert pages() is None


def test_an_interrupted_answer_is_not_taken_for_the_next(conversation: tuple[Connection, socket.socket]) -> None:
    ours, theirs = conversation
    with pytest.raises(errors.ProtocolError, match="Ready instead of Answer"):
        local.send(theirs, wire.Ready())
        ours.ask(wire.StatsQuery(), wire.Answer)
    ours._questions.append(1)  # as Ctrl-C leaves it while an answer is on its way
    assert not ours.idle
    local.send(theirs, wire.Answer(0, {"which": "the late one"}))
    local.send(theirs, wire.Answer(0, {"which": "ours"}))
    assert ours.ask(wire.StatsQuery(), wire.Answer).value == {"which": "ours"}
    assert ours.idle


def test_a_wait_that_times_out_is_cancelled(conversation: tuple[Connection, socket.socket]) -> None:
    ours, theirs = conversation
    waited: list[wire.Message] = []
    question = wire.Acquire(0, "x", wire.LOCK, wire.TIMED, 1, 1, "me")
    waiter = threading.Thread(target=lambda: waited.append(ours.wait(question, 0.01)))
    waiter.start()
    assert local.receive(theirs)[0] == question
    assert local.receive(theirs)[0] == wire.Cancel(0, False)
    local.send(theirs, wire.Granted(0, 0))  # it has overtaken the Cancel
    waiter.join()
    assert waited == [wire.Granted(0, 0)] and ours.idle


def test_an_agent_that_goes(conversation: tuple[Connection, socket.socket]) -> None:
    ours, theirs = conversation
    theirs.close()
    with pytest.raises(errors.NodeUnreachable, match="has gone"):
        ours.ask(wire.StatsQuery(), wire.Answer)
    assert ours.closed
