"""The directory's shell: one thread, one socket, one loop around the pure :class:`~directory.cluster.Cluster`."""

from __future__ import annotations

import logging
import time

from directory.cluster import TICK_S, Cluster, Outgoing
from dsm import constants, errors, transport, wire
from dsm.story import Story

log = logging.getLogger("dsm.directory")


class Directory:
    """A directory that listens on ``address`` (ZeroMQ, ``tcp://IP:PORT``, port ``*`` for any)."""

    def __init__(self, address: str) -> None:
        self._context = transport.context()
        self._socket, self.address = transport.router(self._context, address, int(TICK_S * 1000))
        self._cluster = Cluster(self.address, time.monotonic(), Story(time.time))
        self._running = True

    def stop(self) -> None:
        """Make :meth:`serve` return; may be called from a signal handler."""
        self._running = False

    def serve(self) -> None:
        """Serve until :meth:`stop`. Raises :class:`~dsm.errors.Violation`, with the story of the page in the log."""
        try:
            log.info("listening on %s", self.address)
            while self._running:
                self._turn()
        except errors.Violation as violation:
            story = self._cluster.story_of(violation.region, violation.page)
            log.critical("%s\npage %d of region %d: %s", violation, violation.page, violation.region, story)
            raise
        finally:
            self._context.destroy(linger=0)

    def _turn(self) -> None:
        received = transport.receive_routed(self._socket)
        now = time.monotonic()
        if received is not None:
            identity, data = received
            try:
                if data is None:
                    raise errors.ProtocolError("a message of several frames: one was expected")
                message = wire.decode(data)
            except errors.DsmError as error:
                self._send(self._cluster.malformed(identity, error))
            else:
                self._send(self._cluster.step(identity, message, now))
        if now >= self._cluster.due_s:
            self._send(self._cluster.tick(now))
        if self._cluster.news:
            self._tell()

    def _send(self, outgoing: Outgoing) -> None:
        for identity, message in outgoing:
            data = wire.encode(message)
            if len(data) > constants.CONTROL_BYTES_MAX:  # a status with very much in it
                text = f"the answer has {len(data)} bytes, a message at most {constants.CONTROL_BYTES_MAX}"
                data = wire.encode(wire.Failure(message[0], "InvalidArgument", text))
            if not transport.send_routed(self._socket, identity, data):
                self._cluster.unread(identity)

    def _tell(self) -> None:
        for line in self._cluster.news:
            log.info("%s", line)
        self._cluster.news.clear()
