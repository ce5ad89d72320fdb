"""One region on this node: its memfd, and the local applications that map it.

Every page is either in the memfd, and then all of them see it, or a hole, and then touching it is a fault here.
Before the first page of an extent becomes present, every application gets write-protect markers there (KERNEL.md):
from then on each first store is a fault, too. The agent itself never maps the region.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from typing import Any, Final

from dsm import memory
from dsm.constants import EXTENT_BYTES, FRAME_BYTES, PAGE_BYTES
from dsm.geometry import pages_in
from dsm.uffd import Outcome, Userfaultfd
from nodes.readahead import ReadAhead, windows
from nodes.statistics import Statistics

_ZEROS: Final = memory.Staging()
"""One frame of zeros, the source of every page that nobody ever wrote."""


class Mapping:
    """One application's mapping of a region, at ``address`` in its address space; ``pid`` is its process."""

    __slots__ = ("address", "pid", "poisoned", "prefetch", "reads", "recalled", "region", "since", "uffd", "writes")

    def __init__(self, region: RegionMemory, uffd: Userfaultfd, address: int, pid: int) -> None:
        self.region = region
        self.uffd = uffd
        self.address = address
        self.pid = pid
        smallest, largest = windows(region.page_size)
        self.reads = ReadAhead(smallest, largest, region.pages)
        self.writes = ReadAhead(smallest, largest, region.pages)
        self.since: dict[int, tuple[int, str]] = {}  # by page with a waiting thread: when it faulted (ns), and how
        self.prefetch: Any = None
        self.poisoned: set[int] = set()  # pages
        self.recalled = False  # any page may be poisoned: an agent that was killed knew which


Blame = Callable[[Mapping, OSError], None]


class RegionMemory:
    """The pages of one region that are here. Offsets and lengths are in pages of the region.

    ``blame`` is called when the kernel refuses what an application's userfaultfd must allow: the application has undone
    its part, by mistake or malice, and its memory can no longer be kept coherent. ``found``: the descriptors of an
    agent that was killed.
    """

    def __init__(
        self,
        number: int,
        name: str,
        size: int,
        page_size: int,
        options: dict[str, Any],
        blame: Blame,
        found: Sequence[int] = (),
    ) -> None:
        self.number = number
        self.name = name
        self.size = size
        self.page_size = page_size
        self.options = options
        self.pages = pages_in(size, page_size)
        self.memfd = found[0] if found else memory.create_memfd(f"dsm:{name}"[:200], self.pages * page_size)
        self.mappings: list[Mapping] = []
        self.users = 0  # connections that are attached or about to be
        self.holds = 0  # connections for which it outlives its users
        self.opens = 0  # how often the directory was asked for it since the last Close
        self.kept = False  # has the directory been told that it could be mapped here?
        self.stats = Statistics()
        self._armed: set[int] = set()  # extents (by byte offset) in which pages may be present
        self._length = self.pages * page_size
        self._blame = blame
        # What was in pages that were given up for other writers, where the region has replicas.
        self.keeps_shadows = bool(options.get("replicas", 0))
        self._shadows = -1
        if self.keeps_shadows:
            self._shadows = found[1] if found else memory.create_memfd(f"dsm-shadows:{name}"[:200], self._length)
        self._withheld = -1  # a memory file, while suspended

    @property
    def descriptors(self) -> list[int]:
        """All that the memory is: of pages, and perhaps of shadows."""
        return [self.memfd] if self._shadows < 0 else [self.memfd, self._shadows]

    def take_over(self) -> list[tuple[int, int]]:
        """The runs ``[start, stop)`` of pages that are here. A page of which only a part is here has not come, or is
        gone, as far as it should be."""
        runs = []
        for first, last in memory.present(self.memfd, self._length):
            start, stop = -(-first // self.page_size), last // self.page_size
            for a, b in ((first, min(last, start * self.page_size)), (max(first, stop * self.page_size), last)):
                if a < b:
                    memory.punch_hole(self.memfd, a, b - a)
            if start < stop:
                runs.append((start, stop))
                self._armed.update(
                    range(start * self.page_size // EXTENT_BYTES, (stop * self.page_size - 1) // EXTENT_BYTES + 1)
                )
        return runs

    def close(self) -> None:
        """Give the memory back."""
        for mapping in self.mappings:
            mapping.uffd.close()
        os.close(self.memfd)
        for fd in (self._withheld, self._shadows):
            if fd >= 0:
                os.close(fd)

    # -- markers -----------------------------------------------------------------------------------------

    def take_in(self, mapping: Mapping) -> bool:
        """Take an application in, with markers wherever pages may be present. False if it is gone already."""
        if self._protect(mapping, 0, min(EXTENT_BYTES, self._length)) is Outcome.GONE:  # proves that it is registered
            return False
        start = stop = -1
        for extent in [*sorted(self._armed), None]:
            if extent is not None and extent == stop:
                stop += 1
                continue
            if stop > start and self._protect_extents(mapping, start, stop) is Outcome.GONE:
                return False
            if extent is not None:
                start, stop = extent, extent + 1
        self.mappings.append(mapping)
        return True

    def is_mapped(self, mapping: Mapping) -> bool:
        """Does the application still have the region in its memory, registered with us?"""
        return self._protect(mapping, 0, self.page_size) is not Outcome.GONE

    def _protect_extents(self, mapping: Mapping, start: int, stop: int) -> Outcome:
        at = start * EXTENT_BYTES
        length = min(stop * EXTENT_BYTES, self._length) - at
        return self._protect(mapping, at, length)

    def _protect(self, mapping: Mapping, offset: int, length: int) -> Outcome:
        try:
            return mapping.uffd.protect(mapping.address + offset, length)
        except OSError as error:
            self._blame(mapping, error)
            return Outcome.GONE

    def _arm(self, offset: int, length: int) -> None:
        for extent in range(offset // EXTENT_BYTES, (offset + length - 1) // EXTENT_BYTES + 1):
            if extent not in self._armed:
                for mapping in self.mappings:
                    self._protect_extents(mapping, extent, extent + 1)
                self._armed.add(extent)

    # -- pages come --------------------------------------------------------------------------------------

    def install(
        self, start: int, count: int, source: memory.Source | None, write: bool, target: Mapping | None
    ) -> bool:
        """Make pages present with the bytes of ``source`` (None: zeros), mapped into ``target`` if it is there.

        True if the threads of ``target`` that wait for them have been woken. None of them can store to a page of which
        only a part is here: if this process is killed then, that part is taken away again.
        """
        offset, left = start * self.page_size, count * self.page_size
        self._arm(offset, left)
        frame = source or _ZEROS
        woken = target is not None
        at_once = write and self.page_size == PAGE_BYTES
        while left:
            length = left if source is not None else min(left, FRAME_BYTES)
            if target is None:
                os.pwrite(self.memfd, frame.buffer[:length], offset)
            elif not self._copy(target, offset, frame, length, at_once):
                self._write_absent(offset, frame, length)
                woken = False
            offset += length
            left -= length
        if target is not None and write and not at_once:
            self.unprotect(target, start, count)
        return woken

    def _copy(self, target: Mapping, offset: int, frame: memory.Source, length: int, write: bool) -> bool:
        try:
            return target.uffd.copy(target.address + offset, frame.address, length, not write) is Outcome.DONE
        except OSError as error:
            if error.errno != errno.ENOMEM:  # of the application's control group: the file may still take the page
                self._blame(target, error)
            return False

    def _write_absent(self, offset: int, frame: memory.Source, length: int) -> None:
        """Write the pages that a COPY has left out. What it has brought may have been stored to in the meantime."""
        for at in range(0, length, PAGE_BYTES):
            if not memory.is_present(self.memfd, offset + at):
                os.pwrite(self.memfd, frame.buffer[at : at + PAGE_BYTES], offset + at)

    def resume(self, mapping: Mapping, page: int, write: bool) -> None:
        """Let the threads of an application that wait for a page retry."""
        try:
            if write:  # this wakes, too
                mapping.uffd.unprotect(mapping.address + page * self.page_size, self.page_size)
            else:
                mapping.uffd.wake(mapping.address + page * self.page_size, self.page_size)
        except OSError as error:
            self._blame(mapping, error)

    def unprotect(self, mapping: Mapping, start: int, count: int) -> None:
        """Let an application write pages that are exclusive here."""
        try:
            mapping.uffd.unprotect(mapping.address + start * self.page_size, count * self.page_size)
        except OSError as error:
            self._blame(mapping, error)

    # -- pages go ----------------------------------------------------------------------------------------

    def protect(self, start: int, count: int) -> None:
        """From here on no local application can change these pages."""
        for mapping in self.mappings:
            self._protect(mapping, start * self.page_size, count * self.page_size)

    def read(self, start: int, count: int) -> bytes:
        """The bytes of pages that are here."""
        return os.pread(self.memfd, count * self.page_size, start * self.page_size)

    def drop(self, start: int, count: int) -> None:
        """Take pages out of every local application: what was written to them must have been read before."""
        memory.punch_hole(self.memfd, start * self.page_size, count * self.page_size)

    def give_up(self, start: int, count: int) -> None:
        """As :meth:`drop`, for another writer: where the region has replicas, what is in the pages is kept aside."""
        if self._shadows >= 0:
            for page in range(start, start + count):
                if memory.is_present(self.memfd, page * self.page_size):  # else it has never come
                    os.pwrite(self._shadows, self.read(page, 1), page * self.page_size)
        self.drop(start, count)

    def fill(self, page: int, content: bytes) -> None:
        """This is in a page, read-only."""
        self._arm(page * self.page_size, self.page_size)
        os.pwrite(self.memfd, content, page * self.page_size)

    def revive(self, start: int, count: int) -> None:
        """What was kept aside of these pages is in them again."""
        offset, length = start * self.page_size, count * self.page_size
        self._arm(offset, length)
        for at in range(offset, offset + length, FRAME_BYTES):
            os.pwrite(self.memfd, os.pread(self._shadows, min(FRAME_BYTES, offset + length - at), at), at)

    def poison(self, mapping: Mapping, page: int) -> None:
        """Make touching a page, which is absent, a SIGBUS."""
        mapping.poisoned.add(page)
        try:
            mapping.uffd.poison(mapping.address + page * self.page_size, self.page_size)
        except OSError as error:
            self._blame(mapping, error)

    def renew(self, start: int, count: int) -> None:
        """Pages that are absent, and were perhaps poisoned, are only absent again. The one way to take the poison away
        is to bring a page, and to take that away."""
        for mapping in self.mappings:
            known = range(start, start + count) if mapping.recalled else sorted(mapping.poisoned)
            for page in [page for page in known if start <= page < start + count]:
                mapping.poisoned.discard(page)
                self.install(page, 1, None, False, mapping)
                self.drop(page, 1)

    def withhold(self) -> None:
        """Take every page away, to be brought back as it is: whoever touches one waits until :meth:`give_back`."""
        self._protect_all()
        self._withheld = memory.create_memfd(f"dsm-withheld:{self.name}"[:200], self._length)
        self._move(self.memfd, self._withheld)

    def give_back(self) -> None:
        """Bring back what :meth:`withhold` has taken away. Whoever has touched something since tries again."""
        self._move(self._withheld, self.memfd)
        os.close(self._withheld)
        self._withheld = -1
        for mapping in self.mappings:
            try:
                mapping.uffd.wake(mapping.address, self._length)
            except OSError as error:
                self._blame(mapping, error)

    def _move(self, source: int, to: int) -> None:
        for start, stop in memory.present(source, self._length):
            for at in range(start, stop, FRAME_BYTES):
                length = min(FRAME_BYTES, stop - at)
                os.pwrite(to, os.pread(source, length, at), at)
                memory.punch_hole(source, at, length)

    def _protect_all(self) -> None:
        for mapping in self.mappings:
            for extent in self._armed:
                self._protect_extents(mapping, extent, extent + 1)

    def withdraw(self) -> None:
        """Take every page away: whoever touches one waits, and never reads what may be old."""
        self._protect_all()
        self.drop(0, self.pages)
