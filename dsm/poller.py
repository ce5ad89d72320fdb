"""What a service waits for: one epoll, and what to call for each of its descriptors.

Before it sleeps, a service looks for a moment longer whether something has come (as Linux' haltpoll does for a whole
virtual machine, Documentation/virt/guest-halt-polling.rst, and for as long): a processor that has gone to sleep takes
longer to wake up than a message takes to be handled.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from time import monotonic_ns
from typing import TYPE_CHECKING, Final

from dsm.trace import Around, untraced

if TYPE_CHECKING:
    from dsm.seal import Seal

READABLE: Final = select.EPOLLIN
WRITABLE: Final = select.EPOLLOUT
BROKEN: Final = select.EPOLLERR

_LINGER_NS: Final = 200_000
"""How long to look before going to sleep."""
_BUSY_NS: Final = 50_000
"""Nothing for so long, and there is time for what can wait: it is about what a thread needs to fault again."""
_YIELD_NS_MAX: Final = 400_000
"""A yield that took longer gave the processor to somebody who computes: looking then only delays what comes."""
_PAUSE_NS_MIN: Final = 100_000_000
_PAUSE_NS_MAX: Final = 10_000_000_000
"""How long not to look after a yield that did delay something: twice as long each time, if they come one upon the
other."""
_NEVER_NS: Final = 1 << 63

Handler = Callable[[int], None]
"""Called with the events of its descriptor, as epoll gives them."""


class Poller:
    """Calls a handler whenever a descriptor is ready, and ``idle`` when none has been for a short moment, before it
    sleeps. A context manager. ``around``: what is put around each handler, and each call of a connection."""

    def __init__(self, around: Around = untraced) -> None:
        self.around = around
        self.seal: Seal | None = None  # what protects the connections that are watched here
        self.idle: Callable[[], None] = lambda: None
        self._epoll = select.epoll()
        self._poll = self._epoll.poll
        self._on: dict[int, Handler] = {}
        self._fresh: set[int] = set()  # watched since this turn's events came
        self._soon: list[Callable[[], None]] = []
        self._pause_ns = _PAUSE_NS_MIN
        self._paused_until_ns = 0

    def __enter__(self) -> Poller:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Watch nothing any more; the descriptors stay open."""
        self._epoll.close()

    def watch(self, fd: int, handler: Handler, events: int = READABLE) -> None:
        """Call ``handler`` whenever ``fd`` is readable (or what ``events`` say), or broken."""
        self._on[fd] = self.around("handle", handler)
        self._fresh.add(fd)
        self._epoll.register(fd, events)

    def change(self, fd: int, events: int) -> None:
        """Watch ``fd`` for other events."""
        self._epoll.modify(fd, events)

    def unwatch(self, fd: int) -> None:
        """No longer; ``fd`` is still open."""
        if self._on.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def soon(self, call: Callable[[], None]) -> None:
        """There is more to do for a descriptor than should be done in one turn: call this in the next one."""
        self._soon.append(call)

    def wait(self, timeout_s: float) -> None:
        """One turn: wait until something is ready, at most ``timeout_s``, and handle it."""
        poll = self._poll
        ready = poll(0)
        soon = tuple(self._soon)  # what is added from now on is for the next turn
        if soon:
            self._soon.clear()
        elif not ready and timeout_s:
            ready = self._linger()
            if not ready:
                ready = poll(timeout_s)
        on, fresh = self._on, self._fresh
        fresh.clear()
        for fd, events in ready:
            handler = on.get(fd)  # one handled a moment ago may have closed this one, and another have got its number
            if handler is not None and fd not in fresh:
                handler(events)
        for call in soon:
            call()

    def _linger(self) -> list[tuple[int, int]]:
        """What comes within a moment. If nothing does, ``idle`` has been called."""
        now = monotonic_ns()
        idle_at, until = now + _BUSY_NS, now + _LINGER_NS
        if now >= self._paused_until_ns:
            poll = self._poll
            while now < until:
                os.sched_yield()  # to whoever can run: it may be who is to send what is awaited
                before, now = now, monotonic_ns()
                ready = poll(0)
                if now - before > _YIELD_NS_MAX:
                    if ready:  # it has waited for us meanwhile
                        self._pause(now)
                    until = now
                if ready:
                    return ready
                if now >= idle_at:
                    self.idle()
                    idle_at = _NEVER_NS
        if idle_at != _NEVER_NS:
            self.idle()
        return []

    def _pause(self, now: int) -> None:
        """Do not look for a while."""
        again = now - self._paused_until_ns < self._pause_ns
        self._pause_ns = min(2 * self._pause_ns, _PAUSE_NS_MAX) if again else _PAUSE_NS_MIN
        self._paused_until_ns = now + self._pause_ns
