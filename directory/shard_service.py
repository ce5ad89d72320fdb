"""The shell of one more shard of a directory: a directory that is joined to the first one."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final

from directory.members import Members
from directory.service import Directory
from directory.shard import FIRST, Shard
from dsm import asking, errors, route, wire
from dsm.stream import Caller, Link
from dsm.trace import Trace

if TYPE_CHECKING:
    from dsm.seal import Seal

log = logging.getLogger("dsm.directory")

_GOES: Final = (wire.Fenced, wire.Failure)
"""What the first shard says to one that it does not know."""


class DirectoryShard(Directory):
    """One more shard, listening on ``address``, of the directory whose first shard listens on ``first``."""

    def __init__(self, address: str, first: str, trace: Trace | None = None, seal: Seal | None = None) -> None:
        self._first_address = first
        self._early: list[bytes] = []  # what the first shard has said before this one began
        self._shard: Shard | None = None
        super().__init__(address, trace=trace, seal=seal)
        for data in self._early:
            self._take(data)
        self._early.clear()

    def _machine(self, shards: int) -> Members:
        first = self._first_address
        self.address = route.reachable(self.address, first)
        route.check_reachable(self.address, first)
        self._first = caller = Caller(self._poller, first, self._from_first, self._broken)
        self._links[FIRST] = caller  # it is sent to as every other
        caller.send(wire.encode(wire.JoinShard(self.address)))
        others = asking.answer(self._poller, caller, self._early, first, wire.Shards)
        number = asking.answer(self._poller, caller, self._early, first, wire.Welcome).node
        shards = len(others.addresses.split()) + 1
        log.info("shard %d of %d of the directory at %s", number, shards, first)
        self._shard = Shard(self.address, time.monotonic(), number, shards, self._story)
        return self._shard

    def _look_after(self) -> None:
        super()._look_after()
        self._first.look_after()

    def _from_first(self, _: Link, data: memoryview, __: memoryview) -> None:
        if self._shard is None:
            self._early.append(bytes(data))
        else:
            self._take(data)

    def _take(self, data: bytes | memoryview) -> None:
        assert self._shard is not None
        message = wire.decode(data)
        if isinstance(message, _GOES):
            raise errors.DirectoryUnreachable(f"the first shard of the directory says: {message[-1]}")
        self._send(self._shard.from_first(message, time.monotonic()))

    def _broken(self, _: Link, error: Exception | None) -> None:
        if error is not None and self._shard is not None:
            raise errors.DirectoryUnreachable(
                f"the first shard of this directory no longer knows this one ({error}): start all shards again"
            )
