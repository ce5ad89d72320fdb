"""What the machine of a node tells its shell to do with memory and sockets, in order: plain values."""

from __future__ import annotations

from typing import Any, NamedTuple

from dsm.wire import Fetch, Hurry, Message

Waiter = Any
"""Whoever waits for a page, one for all threads of an application: the shell's business. Compared by identity only."""


class Install(NamedTuple):
    """Make pages present here: ``payload``, or zeros if it is None; writable (``write``) or read-only. ``target`` is
    the waiter into whose address space they should be mapped, if any."""

    region: int
    start: int
    count: int
    payload: Any
    write: bool
    target: Waiter


class Resume(NamedTuple):
    """Let waiters of a page retry; ``write``: the page is writable here, so lift its protection for them."""

    region: int
    page: int
    write: bool
    waiters: list[Waiter]


class Unprotect(NamedTuple):
    """Lift the protection of writable pages for a waiter that asked for all of them."""

    region: int
    start: int
    count: int
    waiter: Waiter


class Supply(NamedTuple):
    """Send pages to another node, as Data with these fields. ``protect``: they are writable here and must be
    protected first; ``keep``: they stay, read-only, else they are dropped; ``ahead``: nobody waits for them."""

    fetch: Fetch
    protect: bool


class Expedite(NamedTuple):
    """Send this page before what else is to be sent, if it is still to be sent."""

    hurry: Hurry


class Drop(NamedTuple):
    """Take read-only pages out of every local application."""

    region: int
    start: int
    count: int


class Send(NamedTuple):
    """Send a message: to the directory (``to`` 0) or to a node."""

    to: int
    message: Message


class Hold(NamedTuple):
    """Tell :meth:`NodeMachine.hold_expired` after the hold time."""

    region: int
    page: int


class Finished(NamedTuple):
    """All pages of an explicit prefetch have been here."""

    waiter: Waiter


class Poison(NamedTuple):
    """The data of a page is gone for good: whoever touches it must be told so, and never sees a value."""

    region: int
    page: int
    node: str
    waiters: list[Waiter]


class Renew(NamedTuple):
    """Pages begin anew: whoever touches one, poisoned or not, is to wait for it again."""

    region: int
    start: int
    count: int


class Revive(NamedTuple):
    """What was in these pages, before they were given up for another writer, is in them again, read-only."""

    region: int
    start: int
    count: int


Effect = Install | Resume | Unprotect | Supply | Expedite | Drop | Send | Hold | Finished | Poison | Renew | Revive
