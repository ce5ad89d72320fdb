"""The directory's shell: one thread, one socket, one loop around the pure machines."""

from __future__ import annotations

import logging
import time
from typing import Any, Final

from directory.machine import PageMachine
from directory.registry import Registry
from directory.sync import SyncMachine
from dsm import constants, errors, transport, wire

log = logging.getLogger("dsm.directory")

_TICK_MS: Final = 250
"""How often leases are looked at when nothing arrives."""
_PAGES: Final = frozenset((wire.Request, wire.Done, wire.GaveUp, wire.Hurry))


class _Node:
    __slots__ = ("address", "applications", "heard_s", "identity", "name", "number")

    def __init__(self, number: int, name: str, address: str, identity: bytes) -> None:
        self.number = number
        self.name = name
        self.address = address
        self.identity = identity
        self.applications = 0
        self.heard_s = time.monotonic()


class Directory:
    """A directory that listens on ``address`` (ZeroMQ, ``tcp://IP:PORT``, port ``*`` for any)."""

    def __init__(self, address: str) -> None:
        self._context = transport.context()
        self._socket, self.address = transport.router(self._context, address, _TICK_MS)
        self._pages = PageMachine()
        self._registry = Registry()
        self._sync = SyncMachine()
        self._nodes: dict[int, _Node] = {}
        self._by_identity: dict[bytes, _Node] = {}
        self._last_node = 0
        self._next_look_s = time.monotonic()
        self._rejected = 0
        self._running = True
        self._handlers: dict[type[Any], Any] = {
            wire.Heartbeat: self._heartbeat,
            wire.Leave: self._leave,
            wire.Open: self._open,
            wire.Keep: self._keep,
            wire.Close: self._close,
            wire.Unlink: self._unlink,
        }

    def stop(self) -> None:
        """Make :meth:`serve` return; may be called from a signal handler."""
        self._running = False

    def serve(self) -> None:
        """Serve until :meth:`stop`."""
        try:
            log.info("listening on %s", self.address)
            while self._running:
                self._turn()
        finally:
            self._context.destroy(linger=0)

    def _turn(self) -> None:
        received = transport.receive_routed(self._socket)
        if received is not None:
            self._receive(*received)
        now = time.monotonic()
        if now >= self._next_look_s:
            self._look_at_leases(now)

    def _look_at_leases(self, now: float) -> None:
        if now - self._next_look_s > constants.HEARTBEAT_S:  # it was this process that was stopped, or swamped
            for node in self._nodes.values():
                node.heard_s = now
        self._next_look_s = now + _TICK_MS / 1000
        for node in [n for n in self._nodes.values() if now - n.heard_s > constants.LEASE_S]:
            self._remove(node, f"silent for {constants.LEASE_S:g} s")

    def _receive(self, identity: bytes, data: bytes | None) -> None:
        try:
            if data is None:
                raise errors.ProtocolError("a message of several frames: one was expected")
            message = wire.decode(data)
        except errors.DsmError as error:
            self._rejected += 1
            self._answer(identity, wire.failure(0, error))
            return
        node = self._by_identity.get(identity)
        if node is not None:
            node.heard_s = time.monotonic()
            self._handle(node, message)
        elif isinstance(message, wire.Join):
            self._join(identity, message)
        elif isinstance(message, wire.Query):
            self._answer(identity, self._query(message))
        elif not isinstance(message, wire.Leave):
            self._answer(
                identity, wire.Fenced("this directory does not know you: it was restarted, or you were silent")
            )

    def _handle(self, node: _Node, message: wire.Message) -> None:
        kind = type(message)
        if kind in _PAGES:
            self._send(self._pages.step(node.number, message))
        elif kind in self._sync.messages:
            self._send(self._sync.step(node.number, message))
        elif kind is wire.Query:
            self._answer(node.identity, self._query(message))  # type: ignore[arg-type]
        elif kind in self._handlers:
            self._handlers[kind](node, message)
        else:
            self._rejected += 1

    def _send(self, outgoing: list[tuple[int, wire.Message]]) -> None:
        for to, message in outgoing:
            node = self._nodes.get(to)
            if node is not None:
                self._answer(node.identity, message)

    def _answer(self, identity: bytes, message: wire.Message) -> None:
        data = wire.encode(message)
        if len(data) > constants.CONTROL_BYTES_MAX:  # a status with very much in it
            text = f"the answer has {len(data)} bytes, a message at most {constants.CONTROL_BYTES_MAX}"
            data = wire.encode(wire.Failure(message[0], "InvalidArgument", text))
        transport.send_routed(self._socket, identity, data)

    # -- membership --------------------------------------------------------------------------------------

    def _join(self, identity: bytes, m: wire.Join) -> None:
        try:
            transport.check_address(m.address, peer=True)
        except errors.InvalidArgument as error:
            self._answer(identity, wire.failure(0, error))
            return
        if clash := self._clash(m):
            self._answer(identity, wire.Failure(0, "NodeNameInUse", clash))
            return
        if self._last_node >= constants.NODES_MAX:
            self._answer(identity, wire.Failure(0, "InvalidArgument", "this directory has run out of node numbers"))
            return
        self._last_node += 1
        newcomer = _Node(self._last_node, m.name, m.address, identity)
        self._answer(identity, wire.Welcome(newcomer.number))
        for node in self._nodes.values():
            self._answer(identity, wire.Member(node.number, node.name, node.address))
            self._answer(node.identity, wire.Member(newcomer.number, newcomer.name, newcomer.address))
        self._nodes[newcomer.number] = newcomer
        self._by_identity[identity] = newcomer
        log.info("node %d %r joined from %s", newcomer.number, newcomer.name, newcomer.address)

    def _clash(self, m: wire.Join) -> str:
        """Why a newcomer cannot be told from a node that is here, or not be reached from it; '' if it can."""
        for node in self._nodes.values():
            if node.name == m.name:
                return f"a node named {m.name!r} is here already: give this one another --name"
            if node.address == m.address:
                return (
                    f"node {node.name!r} is here already with the address {m.address}: give this one its own with "
                    f"--listen (one that was killed is forgotten after {constants.LEASE_S:g} s)"
                )
            if transport.is_loopback(node.address) != transport.is_loopback(m.address):
                return (
                    f"node {node.name!r} listens on {node.address}, this one on {m.address}: other hosts cannot reach "
                    "a loopback address; give both a --listen with the address of their host"
                )
        return ""

    def _heartbeat(self, node: _Node, m: wire.Heartbeat) -> None:
        node.applications = m.applications

    def _leave(self, node: _Node, _: wire.Leave) -> None:
        self._remove(node, "it left")

    def _remove(self, node: _Node, reason: str) -> None:
        del self._nodes[node.number]
        del self._by_identity[node.identity]
        log.info("node %d %r is gone: %s", node.number, node.name, reason)
        for other in self._nodes.values():
            self._answer(other.identity, wire.MemberLeft(node.number, reason))
        for region, known in self._registry.forget_node(node.number).items():
            self._destroy(region, known)
        self._send(self._pages.forget_node(node.number, node.name))
        self._send(self._sync.forget_node(node.number))

    # -- regions -----------------------------------------------------------------------------------------

    def _open(self, node: _Node, m: wire.Open) -> None:
        try:
            region, new = self._registry.open(node.number, m)
        except errors.DsmError as error:
            self._answer(node.identity, wire.failure(m.ticket, error))
            return
        if new:
            self._pages.add_region(region.number, region.size, region.page_size)
        answer = wire.Opened(m.ticket, region.number, region.size, region.page_size, region.options)
        self._answer(node.identity, answer)

    def _keep(self, node: _Node, m: wire.Keep) -> None:
        self._registry.keep(node.number, m.region)

    def _close(self, node: _Node, m: wire.Close) -> None:
        told = self._registry.close(node.number, m.region, m.opens)
        if m.region not in self._registry.regions:
            self._destroy(m.region, told)

    def _unlink(self, node: _Node, m: wire.Unlink) -> None:
        try:
            region, told = self._registry.unlink(m.name)
        except errors.DsmError as error:
            self._answer(node.identity, wire.failure(m.ticket, error))
            return
        if region not in self._registry.regions:
            self._destroy(region, told)
        self._answer(node.identity, wire.Granted(m.ticket, 0))

    def _destroy(self, region: int, told: set[int]) -> None:
        if self._pages.has_region(region):
            self._pages.remove_region(region)
            self._send([(node, wire.Destroy(region)) for node in told])

    # -- questions ---------------------------------------------------------------------------------------

    def _query(self, m: wire.Query) -> wire.Message:
        if m.what == "status":
            return wire.Answer(m.ticket, self._status())
        if m.what == "owners" and self._pages.has_region(m.region):
            return wire.Answer(m.ticket, {"owners": self._owners(m)})
        return wire.Failure(m.ticket, "InvalidArgument", f"cannot answer {m.what!r} of region {m.region}")

    def _owners(self, m: wire.Query) -> bytes:
        """Little-endian u16 node ids, one a page; what does not fit a message is cut off."""
        stop = min(m.start + m.count, m.start + constants.LOCAL_BYTES_MAX // 4)
        runs = self._pages.owners(m.region, m.start, stop)
        return b"".join(owner.to_bytes(2, "little") * (b - a) for a, b, owner in runs)

    def _status(self) -> dict[str, Any]:
        now = time.monotonic()
        names = {node.number: node.name for node in self._nodes.values()}
        nodes = [
            {
                "id": node.number,
                "name": node.name,
                "address": node.address,
                "applications": node.applications,
                "silent_s": round(now - node.heard_s, 3),
            }
            for node in self._nodes.values()
        ]
        regions = [
            {
                "id": region.number,
                "name": region.name,
                "size": region.size,
                "page_size": region.page_size,
                "options": region.options,
                "unlinked": region.unlinked,
                "attached": sorted(names[node] for node in region.nodes),
                "pages": self._pages.counts(region.number),
            }
            for region in self._registry.regions.values()
        ]
        counters = {
            "transactions": self._pages.transactions,
            "rejected": self._rejected + self._pages.rejected,
        }
        return {
            "directory": self.address,
            "nodes": nodes,
            "regions": regions,
            "counters": counters,
            **self._sync.status(),
        }
