"""Every message survives the wire; nothing else gets through it."""

from __future__ import annotations

import re
from typing import Any, get_type_hints

import msgpack
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dsm import constants, wire
from dsm.errors import ProtocolError, VersionMismatch

REFUSED = (ProtocolError, VersionMismatch)

LAYOUT = """
    Request(region, generation, start, count, op, need)
    Done(region, generation, start, count)
    Grant(region, generation, start, count, acks, zero)
    Fetch(region, generation, start, count, requester, acks, keep, ahead)
    Invalidate(region, generation, start, count, requester)
    Refuse(region, generation, start, count)
    Lost(region, generation, start, count, node)
    Data(region, generation, first, total, start, count, acks)
    Ack(region, generation, start, sender)
    Join(name, address)
    Welcome(node)
    Member(node, name, address)
    MemberLeft(node, reason)
    Heartbeat(applications, beat, heard)
    Leave()
    Fenced(reason)
    Failure(ticket, error, text)
    Answer(ticket, value)
    Open(ticket, name, size, page_size, create, options)
    Opened(ticket, region, size, page_size, options)
    Close(region, opens)
    Unlink(ticket, name)
    Destroy(region)
    Query(ticket, what, region, start, count)
    Acquire(ticket, name, kind, wait, process, thread, who)
    Release(name, died)
    Arrive(ticket, name, parties, wait, act, process, thread, who)
    BarrierReset(ticket, name, parties, broken)
    Inspect(ticket, name, kind)
    Cancel(ticket, died)
    Cancelled(ticket)
    Granted(ticket, value)
    Attach(name, size, page_size, create, options)
    Attached(region, size, page_size, options, node)
    Mapped(address)
    Ready()
    Prefetch(start, stop, write)
    StatsQuery()
    Orphan(region, generation, start, count)
    GaveUp(region, generation, start, count)
    Detach()
    Hurry(region, generation, page, requester)
    Keep(region)
    Shards(addresses)
    Enlist(node, name, address)
    JoinShard(address)
    Post(ticket, name, kind, count)
    Enroll(ticket, name, kind, value, process, thread, who)
    Forget(ticket, name, kind)
    Recall(name)
    Holds(name, process, thread, who)
    Return(grant, name, died)
    Gone(process, died)
    WaitOn(name, lock, wait, process, thread, who)
    Hold(region, on)
    Restore(region, generation, start, count, requester)
    Reset(start, stop)
    Lease(shard, beat, heard)
    Rejoin(node, session, anew)
    Rejoined(heard, epoch)
    Awaited(tickets)
    Flush(epoch, nodes)
    Flushed(epoch, sender, bulk)
    Have(region, how, runs)
    Rebuilt(epoch)
    GoOn(epoch)
    Drain()
    Drained(left)
    Mirror(ticket, region)
    Take(region, size, page_size, name, options, start, count)
    Taken(region, start, count)
    Revive(region, start, count)
    Stands(grant, name)
    Opens(region, opens)
"""
"""Version 5 of the protocol, in the order of the kinds. A new message goes to the end; whatever changes or moves an old
one needs another PROTOCOL_VERSION, because released programs speak this one."""

LIMITS: dict[Any, tuple[type, int, int]] = {
    wire.U8: (int, 0, 2**8 - 1),
    wire.U16: (int, 0, 2**16 - 1),
    wire.U32: (int, 0, 2**32 - 1),
    wire.U64: (int, 0, 2**63 - 1),
    wire.I64: (int, -(2**63), 2**63 - 1),
    wire.Flag: (bool, 0, 1),
    wire.Kind: (int, 0, 7),
    wire.Wait: (int, 0, 2),
    wire.Name: (str, 1, 255),
    wire.Text: (str, 0, 4096),
    wire.SessionName: (bytes, 16, 16),
    wire.Packed: (bytes, 0, constants.PACKED_BYTES_MAX),
    wire.Options: (dict, 0, 64),
}
"""Of each annotation: the type, and the lowest and highest value or length."""

STRINGS = st.text(st.characters(exclude_categories=["Cs"]))
SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.binary()
VALUES = st.recursive(SCALARS | STRINGS, lambda inner: st.lists(inner) | st.dictionaries(STRINGS, inner), max_leaves=8)


def fields(cls: type[Any]) -> dict[str, Any]:
    """The annotation of each field, as declared."""
    return get_type_hints(cls, include_extras=True)


def values_of(annotation: Any) -> st.SearchStrategy[Any]:
    kind, low, high = LIMITS[annotation]
    if kind is int:
        return st.integers(low, high)
    if kind is bytes:
        return st.binary(min_size=low, max_size=min(high, 100))
    if kind is str:
        return st.text(st.characters(exclude_categories=["Cs"]), min_size=low, max_size=high)
    return st.booleans() if kind is bool else st.dictionaries(STRINGS, VALUES, max_size=high)


def messages_of(cls: type[Any]) -> st.SearchStrategy[Any]:
    return st.tuples(*map(values_of, fields(cls).values())).map(cls._make)


MESSAGES = st.sampled_from(wire.MESSAGES).flatmap(messages_of)


def sample(annotation: Any, size: int) -> Any:
    """A value of that size: the int itself, or something of that length."""
    kind = LIMITS[annotation][0]
    if kind is dict:
        return {str(key): key for key in range(size)}
    return "é" * size if kind is str else kind(size)


def smallest(cls: type[Any]) -> list[Any]:
    """The fields of a message with every field at its lower limit."""
    return [sample(annotation, LIMITS[annotation][1]) for annotation in fields(cls).values()]


def pack(cls: type[Any], values: list[Any]) -> bytes:
    """What encode() would send, without its help: it would not make some of what is sent here."""
    packed: bytes = msgpack.packb([constants.PROTOCOL_VERSION, wire.MESSAGES.index(cls), *values])
    return packed


every_message = pytest.mark.parametrize("cls", wire.MESSAGES, ids=lambda cls: cls.__name__)
every_field = pytest.mark.parametrize(
    ("cls", "position", "annotation"),
    [
        pytest.param(cls, position, annotation, id=f"{cls.__name__}.{name}")
        for cls in wire.MESSAGES
        for position, (name, annotation) in enumerate(fields(cls).items())
    ],
)


# --- what is a message ---------------------------------------------------------------------------


def test_kinds_and_fields_are_where_they_always_were() -> None:
    pinned = LAYOUT.split("\n")[1:-1]
    now = [f"    {cls.__name__}({', '.join(cls._fields)})" for cls in wire.MESSAGES]
    assert constants.PROTOCOL_VERSION == 5
    assert now[: len(pinned)] == pinned


def test_the_pinned_layout_is_complete() -> None:
    assert len(wire.MESSAGES) == LAYOUT.count("("), "append the new message to LAYOUT"


def test_no_message_is_listed_twice() -> None:
    assert len(set(wire.MESSAGES)) == len(wire.MESSAGES)


def test_bytes_on_the_wire() -> None:
    request = wire.Request(region=3, generation=7, start=2**40, count=16, op=wire.WRITE, need=wire.GUESS)
    assert wire.encode(request) == bytes.fromhex("98 05 00 03 07 cf0000010000000000 10 01 01")
    assert wire.encode(wire.Unlink(5, "grid")) == bytes.fromhex("94 05 15 05 a4") + b"grid"
    assert wire.encode(wire.StatsQuery()) == bytes.fromhex("92 05 25")
    assert (wire.READ, wire.WRITE, wire.EVICT, wire.DIRECTORY) == (0, 1, 2, 0)
    assert (wire.FAULT, wire.GUESS, wire.PREFETCH) == (0, 1, 2)


@every_message
def test_a_message_survives_the_wire(cls: type[Any]) -> None:
    @given(messages_of(cls))
    def round_trip(message: Any) -> None:
        back = wire.decode(wire.encode(message))
        assert type(back) is cls
        assert back == message

    round_trip()


@given(st.dictionaries(STRINGS, VALUES, max_size=8))
def test_options_come_back_with_the_types_they_had(options: dict[str, Any]) -> None:
    assert repr(wire.decode(wire.encode(wire.Answer(1, options)))[1]) == repr(options)


# --- the limits of each field --------------------------------------------------------------------


@every_field
def test_a_field_takes_its_limits(cls: type[Any], position: int, annotation: Any) -> None:
    _, low, high = LIMITS[annotation]
    for size in (low, high):
        values = smallest(cls)
        values[position] = sample(annotation, size)
        assert wire.decode(pack(cls, values)) == tuple(values)


@every_field
def test_a_field_takes_nothing_beyond_its_limits(cls: type[Any], position: int, annotation: Any) -> None:
    kind, low, high = LIMITS[annotation]
    if kind is bool:
        beyond: list[Any] = [0, 1]  # which Python takes for False and True
    elif kind is int:
        beyond = [size for size in (low - 1, high + 1) if size >= -(2**63)]  # MessagePack has nothing lower
    else:
        beyond = [sample(annotation, size) for size in (low - 1, high + 1) if size >= 0]
    for value in beyond:
        values = smallest(cls)
        values[position] = value
        with pytest.raises(ProtocolError, match=cls.__name__):
            wire.decode(pack(cls, values))


@every_field
def test_a_field_takes_no_other_type(cls: type[Any], position: int, annotation: Any) -> None:
    kind = LIMITS[annotation][0]
    others = [
        None,
        True,
        1,
        1.0,
        float("nan"),
        "1",
        b"1",
        [1],
        {"1": 1},
        msgpack.ExtType(1, b"1"),
        msgpack.Timestamp(1),
    ]
    for value in others:
        if type(value) is kind:
            continue
        values = smallest(cls)
        values[position] = value
        with pytest.raises(ProtocolError, match=cls.__name__):
            wire.decode(pack(cls, values))


@every_message
def test_a_message_has_as_many_fields_as_declared(cls: type[Any]) -> None:
    values = smallest(cls)
    with pytest.raises(ProtocolError, match=f"{cls.__name__} has {len(values)} fields, {len(values) + 1} came"):
        wire.decode(pack(cls, [*values, 0]))
    if values:
        with pytest.raises(ProtocolError, match=cls.__name__):
            wire.decode(pack(cls, values[:-1]))


@pytest.mark.parametrize("key", [1, None, b"shape", True], ids=repr)
def test_the_keys_of_options_are_strings(key: Any) -> None:
    with pytest.raises(ProtocolError):
        wire.decode(pack(wire.Answer, [1, {key: 1}]))


def nested(depth: int) -> Any:
    value: Any = 1
    for level in range(depth):
        value = [value] if level % 2 else {"inner": value}
    return value


def test_options_may_be_nested_a_little() -> None:
    message = wire.Answer(1, {"x": nested(6)})
    assert wire.decode(wire.encode(message)) == message


@pytest.mark.parametrize(
    "value",
    [msgpack.ExtType(1, b"1"), [msgpack.Timestamp(1)], {b"key": 1}, [{1: 2}], nested(100), nested(900)],
    ids=lambda value: repr(value)[:24],
)
def test_options_are_plain_data_that_any_code_can_compare_and_print(value: Any) -> None:
    with pytest.raises(ProtocolError):
        wire.decode(pack(wire.Answer, [1, {"x": value}]))


# --- what is no message --------------------------------------------------------------------------


@pytest.mark.parametrize("version", [0, 1, constants.PROTOCOL_VERSION + 1, -1, 2**32, 2**64 - 1])
def test_another_version_is_refused_by_name_whatever_follows(version: int) -> None:
    for rest in ([0], ["?", {}, []], [len(wire.MESSAGES)]):
        with pytest.raises(VersionMismatch, match=re.escape(f"{version}, this side {constants.PROTOCOL_VERSION}")):
            wire.decode(msgpack.packb([version, *rest]))


@pytest.mark.parametrize(
    "version", [None, True, 1.0, "1", b"1", [1], {}, "9" * 100_000, msgpack.Timestamp(1)], ids=lambda v: repr(v)[:16]
)
def test_a_version_is_a_number(version: Any) -> None:
    with pytest.raises(REFUSED) as refused:
        wire.decode(msgpack.packb([version, wire.MESSAGES.index(wire.Leave)]))
    assert len(str(refused.value)) < 200  # what a stranger sends does not fill our log


@pytest.mark.parametrize(
    "kind",
    [-1, len(wire.MESSAGES), 2**64 - 1, None, True, 0.0, "Leave", "9" * 100_000, [0]],
    ids=lambda v: repr(v)[:16],
)
def test_an_unknown_kind_is_refused(kind: Any) -> None:
    with pytest.raises(ProtocolError, match="kind") as refused:
        wire.decode(msgpack.packb([constants.PROTOCOL_VERSION, kind]))
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize("other", [None, 1, "Leave", {}, {"1": 14}, [], [1], [[1, 14]]], ids=repr)
def test_only_an_array_with_version_and_kind_is_a_message(other: Any) -> None:
    with pytest.raises(ProtocolError):
        wire.decode(msgpack.packb(other))


@pytest.mark.parametrize("depth", [1, 100, 900, 1000, 1020, 1023, 1024, 2000, 100_000])
@pytest.mark.parametrize(
    "head",
    [b"", b"\x92", b"\x92\x01", b"\x93\x01\x0d", b"\x94\x01\x0d\x01"],
    ids=["all", "version", "kind", "field", "more"],
)
def test_nesting_of_any_depth_is_refused(head: bytes, depth: int) -> None:
    with pytest.raises(REFUSED):
        wire.decode(head + b"\x91" * depth + b"\xc0" + (b"\x00" if head == b"\x92" else b""))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",  # the one byte that MessagePack never uses
        b"\xdd\xff\xff\xff\xff",  # an array of 2**32 - 1 elements, none of which is there
        b"\xdf\xff\xff\xff\xff",
        b"\x93\x01\x0d\xc6\xff\xff\xff\xff",  # 4 GiB of bytes
        b"\x94\x01\x15\x01\xa1\xff",  # a name that is not UTF-8
        b"\x94\x01\x15\x01\xa3\xed\xa0\x80",  # a name with a lone surrogate
        b"\x94\x01\x11\x01\x81\x90\x01",  # a map with a list as a key
        b"\x92\x01\x0e\xc0",  # something behind the message
        b"\x92\x01\x0e\x92\x01\x0e",  # another message behind the message
    ],
    ids=bytes.hex,
)
def test_malformed(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        wire.decode(data)


@given(st.binary(max_size=300))
def test_noise_raises_nothing_else(data: bytes) -> None:
    accept_or_refuse(data)


@given(st.binary(max_size=60))
def test_noise_behind_a_good_head_raises_nothing_else(data: bytes) -> None:
    accept_or_refuse(bytes([0x90 | 8, constants.PROTOCOL_VERSION]) + data)


@given(st.lists(VALUES, max_size=8))
def test_any_other_array_raises_nothing_else(values: list[Any]) -> None:
    accept_or_refuse(msgpack.packb([constants.PROTOCOL_VERSION, *values]))


@given(MESSAGES, st.data())
def test_a_message_cut_short_is_refused(message: Any, data: st.DataObject) -> None:
    encoded = wire.encode(message)
    with pytest.raises(ProtocolError):
        wire.decode(encoded[: data.draw(st.integers(0, len(encoded) - 1))])


@given(MESSAGES, st.binary(min_size=1, max_size=20))
def test_a_message_with_a_tail_is_refused(message: Any, tail: bytes) -> None:
    with pytest.raises(ProtocolError):
        wire.decode(wire.encode(message) + tail)


@given(MESSAGES, st.data())
def test_a_damaged_message_is_refused_or_another_message(message: Any, data: st.DataObject) -> None:
    encoded = bytearray(wire.encode(message))
    for _ in range(data.draw(st.integers(1, 3))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    assume(bytes(encoded) != wire.encode(message))
    accept_or_refuse(bytes(encoded))


def accept_or_refuse(data: bytes) -> None:
    """Whatever ``data`` is: decode() refuses it as documented, or returns a message within all its limits."""
    try:
        message = wire.decode(data)
    except REFUSED:
        return
    for value, annotation in zip(message, fields(type(message)).values(), strict=True):
        kind, low, high = LIMITS[annotation]
        size: int = value if kind in (int, bool) else len(value)
        assert type(value) is kind
        assert low <= size <= high


# --- encode --------------------------------------------------------------------------------------


def test_encode_goes_on_after_a_message_that_cannot_be_packed() -> None:
    for bad in (wire.Unlink(2**64, "grid"), wire.Unlink(1, "\ud800"), wire.Answer(1, {"x": object()})):
        with pytest.raises((OverflowError, TypeError, UnicodeEncodeError)):
            wire.encode(bad)
        assert wire.decode(wire.encode(wire.Unlink(1, "grid"))) == wire.Unlink(1, "grid")


def test_only_messages_are_encoded() -> None:
    with pytest.raises(KeyError):
        wire.encode((1, 2, 3))
