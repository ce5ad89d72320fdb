"""The sockets of a node: to the directory, from its peers, and to each peer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dsm import constants, errors, transport, wire


class Links:
    """Joined to a directory as ``node``. ``directory`` and ``inbox`` are the sockets to read from."""

    def __init__(self, directory: str, listen: str, name: str) -> None:
        self._context = transport.context()
        try:
            self.inbox, bound = transport.inbox(self._context, listen)
            self.address = transport.reachable(bound, directory)
            transport.check_reachable(self.address, directory)
            self.directory = transport.dealer(self._context, directory)
            self.directory_address = directory
            self.node = self._join(name)
        except BaseException:
            self._context.destroy(linger=0)
            raise
        self._members: dict[int, str] = {}  # addresses by node id
        self._urgent: dict[int, transport.Socket] = {}
        self._bulk: dict[int, transport.Socket] = {}

    def _join(self, name: str) -> int:
        self.directory.send(wire.encode(wire.Join(name, self.address)))
        if not self.directory.poll(int(constants.CONNECT_TIMEOUT_S * 1000)):
            raise errors.DirectoryUnreachable(
                transport.unreachable(self.directory_address, constants.CONNECT_TIMEOUT_S)
            )
        answer = wire.decode(self.directory.recv())
        if isinstance(answer, wire.Failure):
            raise errors.from_wire(answer.error, answer.text)
        if not isinstance(answer, wire.Welcome):
            raise errors.ProtocolError(f"the directory answered Join with {type(answer).__name__}")
        return int(answer.node)

    def close(self) -> None:
        """Say goodbye and close every socket."""
        self.directory.linger = 500  # milliseconds: the goodbye should arrive, but nobody waits for it
        self.directory.send(wire.encode(wire.Leave()))
        self.directory.close()
        self._context.destroy(linger=0)

    def member(self, node: int, address: str) -> None:
        """A peer is there; it is connected to when something is first sent to it."""
        self._members[node] = address

    def member_left(self, node: int) -> None:
        """A peer has gone; what is still to be sent to it goes nowhere."""
        self._members.pop(node, None)
        for sockets in (self._urgent, self._bulk):
            socket = sockets.pop(node, None)
            if socket is not None:
                socket.close()

    def send(self, to: int, message: wire.Message) -> None:
        """A message to the directory (0) or to a peer."""
        if not to:
            self.directory.send(wire.encode(message))
            return
        socket = self._urgent.get(to) or self._outbox(self._urgent, to)
        if socket is not None:
            socket.send(wire.encode(message))

    def send_pages(self, to: int, message: wire.Data, payload: bytes, bulk: bool) -> None:
        """Page data to a peer; ``bulk``: on the connection where it delays nothing that somebody waits for."""
        sockets = self._bulk if bulk else self._urgent
        socket = sockets.get(to) or self._outbox(sockets, to)
        if socket is not None:
            transport.send_with_payload(socket, wire.encode(message), payload)

    def takes_bulk(self, node: int) -> bool:
        """Can page data be sent to a peer's bulk connection at once? What goes nowhere can."""
        socket = self._bulk.get(node) or self._outbox(self._bulk, node)
        return socket is None or transport.is_writable(socket)

    def bulk_writable(self, nodes: Iterable[int]) -> list[tuple[transport.Socket | int, int]]:
        """What to wait for until one of these nodes takes more page data."""
        return [(self._bulk[node], transport.WRITABLE) for node in nodes if node in self._bulk]

    def _outbox(self, sockets: dict[int, transport.Socket], to: int) -> transport.Socket | None:
        address = self._members.get(to)
        if address is None:  # it has just left
            return None
        sockets[to] = socket = transport.outbox(self._context, address, bulk=sockets is self._bulk)
        return socket

    def receive(self, buffer: Any) -> tuple[wire.Message, int]:
        """One message of a peer, its page data in ``buffer``, and how many bytes these are.

        Raises :class:`~dsm.errors.DsmError` if it is not one; all of it has then been read.
        """
        data, length = transport.receive_with_payload(self.inbox, buffer)
        return wire.decode(data), length
