"""Regions in the memory of this process, and what becomes of them and of the connections when the process forks.

A forked child may not use its parent's descriptors: one connection serves one process, and a descriptor that stays
open in a child would hide its parent's death from the node. Nor does it inherit the memory of a region
(MADV_DONTFORK): without a userfaultfd of its own it would read zeros where another node has data. So before any code
of the child runs, every region is attached again at the same address, where the child's arrays expect it, and what
was inherited is closed. None of this needs a privilege.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Final

from dsm import geometry, local, memory, wire
from dsm.errors import DsmError, ProtocolError, UserfaultfdUnavailable
from dsm.uffd import Userfaultfd

if TYPE_CHECKING:
    from dsm.client import Connection

gate: Final = threading.RLock()
"""Held wherever descriptors or mappings are made or dropped: no fork falls between the kernel and the sets below.
Reentrant, because the garbage collector may drop a mapping at any moment."""

connections: Final[weakref.WeakSet[Connection]] = weakref.WeakSet()
_mappings: Final[set[Mapping]] = set()
_kept: Final[list[Pages]] = []
"""Memory whose agent has not confirmed that it is done with the address range: the range is never given free."""


class Pages(mmap.mmap):
    """The memory of a region. Before it is unmapped, the agent lets go of the address range: it might otherwise put a
    page that was on its way into whatever another thread has mapped there meanwhile."""

    mapping: Mapping | None = None

    def __del__(self) -> None:
        if self.mapping is not None and not sys.is_finalizing() and not self.mapping.detach():
            _kept.append(self)


class Mapping:
    """A region in the memory of this process. It lasts as long as arrays of it are in use, and follows a fork.

    ``connection`` keeps the process attached. The userfaultfd stays open on this side, too: if the agent dies an
    absent page must block whoever touches it, not read as zeros.
    """

    def __init__(self, name: str, connection: Connection, attached: wire.Attached, pages: mmap.mmap) -> None:
        self.name = name
        self.connection = connection
        self.region, self.size, self.page_size, self.options, self.node = attached
        self.lost = ""
        """Why the memory may not be touched, if so."""
        self._length = len(pages)
        self._address = memory.address_of(pages)
        self._pages = weakref.ref(pages)
        self._uffd: Userfaultfd | None = None

    def manage(self, fds: list[int]) -> None:
        """Hand the faults of the range to the agent, which sent ``fds``; before this nothing may touch it."""
        uffd = Userfaultfd.create(fds[1] if len(fds) > 1 else None)
        try:
            uffd.register(self._address, self._length)
            self.connection.ask(wire.Mapped(self._address), wire.Ready, [uffd.fileno()])
        except BaseException:
            uffd.close()
            raise
        self._uffd = uffd

    def detach(self) -> bool:
        """Leave, and close the descriptors. False if the memory may not be unmapped: the agent has not confirmed."""
        with gate:
            confirmed = self._uffd is None or self._ask_to_leave()
            if self._uffd is not None:
                self._uffd.close()
            self.connection.close()
            _mappings.discard(self)
            return confirmed

    def _ask_to_leave(self) -> bool:
        try:
            self.connection.ask(wire.Detach(), wire.Ready)
        except DsmError:  # stopped, or gone
            return False
        return True

    # In a forked child:

    def in_use(self) -> bool:
        """False once the memory has been unmapped."""
        return self._pages() is not None

    def hold_place(self) -> None:
        """Occupy the range with an empty file: nothing else can come to lie there, and touching it is SIGBUS."""
        empty = memory.create_memfd("dsm-nothing", 0)
        try:
            memory.map_fixed(empty, self._length, self._address)
        finally:
            os.close(empty)

    def attach_again(self) -> None:
        """The same region at the place that is held, with descriptors of this process. Raises nothing."""
        inherited = self._uffd
        try:
            self._attach_again()
        except BaseException as error:  # also Ctrl-C, which comes to parent and child alike
            self.lost = f"region {self.name!r} could not be attached in forked process {os.getpid()} ({error!r})"
            self.connection.close()
            _tell(f"dsm: {self.lost}; touching it is a bus error")
        finally:
            if inherited is not None:
                inherited.close()

    def _attach_again(self) -> None:
        self.connection = self.connection.another()
        # By its number: the name may have been unlinked, or be another region's by now.
        question = wire.Attach(self.name, 0, 0, 2, {"region": self.region})
        _, fds = self.connection.ask_for_descriptors(question, wire.Attached)
        try:
            memory.unmap(self._address, self._length)
            try:
                memory.map_fixed(fds[0], self._length, self._address)
                self.manage(fds)
            except BaseException:
                memory.unmap(self._address, self._length)
                self.hold_place()
                raise
        finally:
            local.close_all(fds)


def map_region(name: str, connection: Connection, attached: wire.Attached, fds: list[int]) -> tuple[Pages, Mapping]:
    """Map what the agent has answered. The process detaches when the memory is garbage-collected."""
    if not fds:
        raise ProtocolError("the node agent sent no memory with its answer: use the same release of dsm for both")
    if not memory.maps_lazily():
        raise UserfaultfdUnavailable(
            "this process locks whatever it maps (mlockall with MCL_FUTURE), so nobody could bring pages when they are "
            "touched: attach first, then call mlockall"
        )
    with gate:  # a child finds all of it or nothing
        length = geometry.pages_in(attached.size, attached.page_size) * attached.page_size
        pages = memory.map_shared(fds[0], length, Pages)
        assert isinstance(pages, Pages)
        pages.mapping = mapping = Mapping(name, connection, attached, pages)
        mapping.manage(fds)
        _mappings.add(mapping)
    return pages, mapping


def _after_in_child() -> None:
    inherited = list(connections)
    alive = [mapping for mapping in _mappings if mapping.in_use()]
    try:
        _hold_places(alive)
        for mapping in alive:
            mapping.attach_again()
        # Until here they kept the regions attached on this node, even if the parent has ended meanwhile.
        for connection in inherited:
            connection.close()
        for mapping in _mappings.difference(alive):  # another thread of the parent was about to do so
            mapping.detach()
    finally:
        gate.release()


def _hold_places(mappings: list[Mapping]) -> None:
    """First of all: whatever the child allocates may come to lie in a hole that it did not inherit."""
    try:
        for mapping in mappings:
            mapping.hold_place()
    except OSError as error:
        _tell(f"dsm: ending forked process {os.getpid()}: something else lies in the place of a region ({error})")
        os.abort()


def _tell(line: str) -> None:
    """Past sys.stderr, which another thread of the parent may have been using when it forked."""
    with contextlib.suppress(OSError):
        os.write(2, line.encode() + b"\n")


os.register_at_fork(before=gate.acquire, after_in_parent=gate.release, after_in_child=_after_in_child)
