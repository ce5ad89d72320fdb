"""MessagePack arrays ``[version, kind, field, ...]`` become messages here, and messages such arrays: pure.

What a message looks like is said by its class (:mod:`dsm.wire`, which makes the one codec there is). Every message of a
fault comes by here: this is compiled (setup.py), which the annotated classes themselves cannot be.
"""

from __future__ import annotations

from typing import Any, Final

import msgpack

from dsm.errors import ProtocolError, VersionMismatch

_DEPTH_MAX: Final = 8
"""Of lists and maps within each other."""
_PLAIN: Final = frozenset((int, float, str, bytes, bool, type(None)))
_MALFORMED: Final = (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException)
"""What msgpack raises for malformed input. Not Exception: a signal handler of the application may raise in between."""

_new: Final = tuple.__new__  # what a NamedTuple calls, but not by way of a function of Python
_unpackb: Final = msgpack.unpackb


class Layout:
    """How a message of ``cls`` must look: by field the type, and the lowest and highest value, or length where it is
    no int."""

    __slots__ = ("cls", "count", "highs", "lows", "types")

    def __init__(self, cls: type[Any], types: list[type], lows: list[int], highs: list[int]) -> None:
        self.cls = cls
        self.types = types
        self.lows = lows
        self.highs = highs
        self.count = len(types)

    def fits(self, fields: list[Any]) -> bool:
        if len(fields) != self.count:
            return False
        types, lows, highs = self.types, self.lows, self.highs
        for i in range(self.count):
            value = fields[i]
            kind = type(value)
            if kind is not types[i]:
                return False
            if kind is bool:
                continue
            if kind is int:
                size: int = value
            elif _is_plain(value, _DEPTH_MAX):
                size = len(value)
            else:
                return False
            if size < lows[i] or size > highs[i]:
                return False
        return True

    def misfit(self, fields: list[Any]) -> str:
        """Why the fields do not fit."""
        name = self.cls.__name__
        if len(fields) != self.count:
            return f"{name} has {self.count} fields, {len(fields)} came"
        return f"{name} with a field out of its range"


def _is_plain(value: object, depth: int) -> bool:
    """May any code compare, print and keep this value: no extension types, maps by name only, not too deep?"""
    if type(value) in _PLAIN:
        return True
    if isinstance(value, list):
        return depth > 0 and all(_is_plain(item, depth - 1) for item in value)
    if isinstance(value, dict):
        return depth > 0 and all(type(key) is str and _is_plain(item, depth - 1) for key, item in value.items())
    return False


class Codec:
    """Encodes and decodes messages of these layouts, whose position is the kind on the wire, in one ``version`` of the
    protocol."""

    __slots__ = ("_heads", "_layouts", "_pack", "_version")

    def __init__(self, version: int, layouts: list[Layout]) -> None:
        self._version = version
        self._layouts = layouts
        self._heads: dict[type[Any], tuple[int, int]] = {
            layout.cls: (version, kind) for kind, layout in enumerate(layouts)
        }
        self._pack = msgpack.Packer(autoreset=True).pack

    def encode(self, message: tuple[Any, ...]) -> bytes:
        """The bytes of a message of :data:`dsm.wire.MESSAGES`."""
        packed: bytes = self._pack(self._heads[type(message)] + message)
        return packed

    def decode(self, data: bytes | memoryview) -> tuple[Any, ...]:
        """The message in ``data``.

        Raises :class:`VersionMismatch` if the sender speaks another version, :class:`ProtocolError` for anything that
        is not a message.
        """
        try:
            parts: Any = _unpackb(data, use_list=True)
        except _MALFORMED as error:
            raise ProtocolError(f"not a MessagePack message: {type(error).__name__}") from error
        if type(parts) is not list or len(parts) < 2 or type(parts[0]) is not int:
            raise ProtocolError("not a message: an array [version, kind, field, ...] was expected")
        version, kind = parts[0], parts[1]
        if version != self._version:
            raise VersionMismatch(
                f"the other side speaks protocol version {version}, this side {self._version}: "
                "install the same release of dsm on every host"
            )
        if type(kind) is not int or not 0 <= kind < len(self._layouts):
            raise ProtocolError("unknown kind of message")
        layout = self._layouts[kind]
        fields: list[Any] = parts[2:]
        if not layout.fits(fields):
            raise ProtocolError(layout.misfit(fields))
        message: tuple[Any, ...] = _new(layout.cls, fields)
        return message


def pack(*values: Any) -> bytes:
    """Values that no other process than one of the same node will see, packed."""
    packed: bytes = msgpack.packb(values)
    return packed


def unpack(packed: bytes) -> list[Any]:
    """What was packed."""
    values: list[Any] = _unpackb(packed, use_list=True, strict_map_key=False)
    return values
