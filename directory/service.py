"""The directory's shell: one thread, one loop around the pure :class:`~directory.cluster.Cluster`."""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING, Any, Final

from directory.cluster import Cluster
from directory.journal import Journal
from directory.members import TICK_S, Members, Outgoing
from dsm import constants, daemon, errors, wire
from dsm.listener import Listener
from dsm.poller import Poller
from dsm.story import Story
from dsm.stream import Link
from dsm.trace import Trace, untraced

if TYPE_CHECKING:
    from dsm.seal import Seal

log = logging.getLogger("dsm.directory")

_UNREAD_BYTES_MAX: Final = 16 << 20
"""What may wait in the directory for a member to read it: more than can be of use to one that is alive."""
_STRANGER_BYTES_MAX: Final = 2 << 20
"""The same, for anybody else."""


class Directory:
    """A directory that listens on ``address`` (``tcp://IP:PORT``, port ``*`` for any), the first of its ``shards``. If
    it has a ``journal``, another can go on where this one ends."""

    def __init__(
        self,
        address: str,
        shards: int = 1,
        trace: Trace | None = None,
        journal: Journal | None = None,
        seal: Seal | None = None,
    ) -> None:
        around = trace.around if trace else untraced
        self._poller = Poller(around)
        self._poller.seal = seal
        self._now = around("decoded", time.monotonic)
        story = Story(time.time)
        self._story = trace.follow(story) if trace else story
        self._listener = Listener(self._poller, address)
        self._links = self._listener.links
        self.address = self._listener.address
        self._running = True
        self._journal = journal
        try:
            self._cluster = self._machine(shards)
        except BaseException:
            self._close()
            raise
        self._listener.start(self._deliver, lambda link: self._cluster.is_member(link.name))

    def _machine(self, shards: int) -> Members:
        now = time.monotonic()
        cluster = Cluster(self.address, now, self._story, shards, os.urandom(16).hex())
        if self._journal is not None:
            self._journal.begin(cluster, now)
        return cluster

    def status(self) -> dict[str, Any]:
        """What this shard knows of the cluster, as ``dsm status`` has it; also for another thread."""
        return self._cluster.status(time.monotonic())

    def stop(self) -> None:
        """Make :meth:`serve` return; may be called from a signal handler."""
        self._running = False

    def serve(self) -> None:
        """Serve until :meth:`stop`. Raises :class:`~dsm.errors.Violation`, with the story of the page in the log."""
        try:
            log.info("listening on %s", self.address)
            daemon.serve(self._turn)
        except errors.Violation as violation:
            story = self._cluster.story_of(violation.region, violation.page)
            log.critical("%s\npage %d of region %d: %s", violation, violation.page, violation.region, story)
            raise
        finally:
            self._close()

    def _close(self) -> None:
        self._listener.close()
        self._poller.close()
        if self._journal is not None:
            self._journal.close()

    def _turn(self) -> bool:
        cluster = self._cluster
        self._poller.wait(TICK_S)
        cluster.connections_rejected = self._listener.rejected
        now = time.monotonic()
        if now >= cluster.due_s:
            self._send(cluster.tick(now))
            self._look_after()
        if cluster.news:
            self._tell()
        return self._running

    def _look_after(self) -> None:
        self._listener.look_after()

    def _deliver(self, link: Link, data: memoryview, payload: memoryview) -> None:
        try:
            if payload:
                raise errors.ProtocolError("page data: the directory takes none")
            message = wire.decode(data)
        except errors.DsmError as error:
            self._send(self._cluster.malformed(link.name, error))
        else:
            self._send(self._cluster.step(link.name, message, self._now()))

    def _send(self, outgoing: Outgoing) -> None:
        if self._cluster.events:  # nobody is to learn what may be forgotten again
            if self._journal is not None:
                self._journal.note()
            self._cluster.events.clear()
        for identity in self._cluster.forgotten:
            self._listener.forget(identity)
        self._cluster.forgotten.clear()
        for identity, message in outgoing:
            link = self._links.get(identity)
            if link is None:  # it has gone
                continue
            data = wire.encode(message)
            if len(data) > constants.CONTROL_BYTES_MAX:  # a status with very much in it
                text = f"the answer has {len(data)} bytes, a message at most {constants.CONTROL_BYTES_MAX}"
                data = wire.encode(wire.Failure(message[0], "InvalidArgument", text))
            unread = link.unacknowledged_bytes
            if unread > _STRANGER_BYTES_MAX and (unread > _UNREAD_BYTES_MAX or not self._cluster.is_member(identity)):
                self._cluster.unread(identity)
            else:
                link.send(data)

    def _tell(self) -> None:
        for line in self._cluster.news:
            log.info("%s", line)
        self._cluster.news.clear()
