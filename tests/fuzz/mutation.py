"""What no honest sender sends, from one seed: valid messages with odd values, and damaged ones.

Damage knows the structure: it begins with a valid message of any kind, with values at the limits of each field, and
loses, repeats, retypes or exchanges fields, changes version or kind, or flips, cuts, inserts and repeats bytes.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Final, get_args, get_type_hints

import msgpack

from dsm import constants, wire
from dsm.errors import DsmError

KINDS: Final[Sequence[type[Any]]] = wire.MESSAGES

_FIELDS: Final = {cls: tuple(get_type_hints(cls, include_extras=True).values()) for cls in KINDS}
_NUMBER: Final = {cls: number for number, cls in enumerate(KINDS)}
_NAMES: Final = ["evil0", "evil1", "evil2", "x" * 255, "\0", "é" * 100, "../x", "a b\n", "\U0010ffff" * 8]
_HEADS: Final = [b"\xc1", b"\xdf\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\x91" * 2000]


class Mutator:
    """Messages and damage, all drawn from ``seed``."""

    def __init__(self, seed: int) -> None:
        self.plan = random.Random(seed)

    def number(self, low: int, high: int) -> int:
        """An int within limits: at one of them, near one, small, or anywhere."""
        plan = self.plan
        kind = plan.randrange(8)
        if kind < 4:
            return min(low + plan.randrange(16), high) if low >= 0 else plan.randrange(-8, 8)
        if kind == 4:
            return plan.choice((low, high))
        if kind == 5:
            return max(low, min(high, plan.choice((low + 1, high - 1, 511, 512, 513, 4096, 1 << 16, 1 << 31))))
        return max(low, min(high, plan.getrandbits(plan.randrange(1, 65))))

    def value(self, annotation: Any) -> Any:
        """A value that a field of this annotation may have."""
        if annotation is bool:
            return self.plan.random() < 0.5
        kind, bounds = get_args(annotation)
        if kind is int:
            return self.number(bounds.low, bounds.high)
        if kind is str:
            return self.plan.choice(_NAMES)
        return self.options(2)

    def options(self, depth: int) -> dict[str, Any]:
        """A map as region options are: plain values, not deep."""
        return {self.plan.choice(_NAMES): self.plain(depth) for _ in range(self.plan.randrange(4))}

    def plain(self, depth: int) -> Any:
        """Any plain value."""
        plan = self.plan
        kind = plan.randrange(8 if depth else 6)
        if kind == 0:
            return plan.choice((0, 1, -1, (1 << 64) - 1, -(1 << 63), 1 << 32))
        if kind == 1:
            return plan.choice((1.5, float("inf"), -0.0))
        if kind == 2:
            return plan.choice(_NAMES)
        if kind == 3:
            return plan.randbytes(plan.randrange(20))
        if kind < 6:
            return plan.choice((None, True, False))
        return self.options(depth - 1) if kind == 6 else [self.plain(depth - 1) for _ in range(plan.randrange(4))]

    def message(self, kinds: Sequence[type[Any]] = KINDS) -> Any:
        """A valid message of one of these kinds."""
        cls = self.plan.choice(kinds)
        return cls._make([self.value(annotation) for annotation in _FIELDS[cls]])

    def damaged(self) -> bytes:
        """The bytes of a message with something wrong, most often: some damage does none."""
        plan = self.plan
        message = self.message()
        if plan.random() < 0.04:
            return plan.choice(_HEADS) if plan.random() < 0.3 else plan.randbytes(plan.randrange(120))
        if plan.random() < 0.5:
            return self._of_bytes(bytearray(wire.encode(message)))
        parts: list[Any] = [constants.PROTOCOL_VERSION, _NUMBER[type(message)], *message]
        for _ in range(plan.choice((1, 1, 1, 2, 3))):
            self._of_parts(parts)
        data: bytes = msgpack.packb(parts)
        return data

    def garbage(self) -> bytes:
        """The bytes of what is certainly no message."""
        while True:
            data = self.damaged()
            try:
                wire.decode(data)
            except DsmError:
                return data

    def _of_parts(self, parts: list[Any]) -> None:
        plan = self.plan
        at = plan.randrange(len(parts)) if parts else 0
        kind = plan.randrange(8)
        if not parts or kind == 0:
            parts.insert(at, self.plain(2))
        elif kind == 1:
            del parts[at]
        elif kind == 2:
            parts.insert(at, parts[at])
        elif kind == 3:
            other = plan.randrange(len(parts))
            parts[at], parts[other] = parts[other], parts[at]
        elif kind == 4:
            parts[min(1, len(parts) - 1)] = plan.choice((-1, len(KINDS), 2**63, None, "Leave", plan.randrange(60)))
        elif kind == 5:
            parts[0] = plan.choice((0, 2, -1, 2**64 - 1, None, True, "1", 1.0))
        elif kind == 6:
            parts[at] = plan.choice((-1, 2**63, 2**32, 2**16, 256, "", "x" * 5000, b"", [parts[at]], {"a": parts[at]}))
        else:
            parts[at] = plan.choice(
                (msgpack.ExtType(3, b"abc"), msgpack.Timestamp(1), {"k": {"k": [1]}}, self.plain(2))
            )

    def _of_bytes(self, data: bytearray) -> bytes:
        plan = self.plan
        for _ in range(plan.choice((1, 1, 2, 4))):
            at = plan.randrange(len(data) + 1)
            kind = plan.randrange(6)
            if kind == 0 and at < len(data):
                data[at] ^= 1 << plan.randrange(8)
            elif kind == 1 and at < len(data):
                data[at] = plan.randrange(256)
            elif kind == 2:
                del data[at:]
            elif kind == 3:
                data[at:at] = plan.randbytes(plan.randrange(1, 9))
            elif kind == 4:
                data += data[at:]
            else:
                data += wire.encode(self.message())
        return bytes(data)
