"""The simulated kernel of all hosts: memory files, userfaultfds, pipes to agents, and the memory of processes.

It stands in for the functions that the production modules call (:meth:`Kernel.installed`), with the meaning that
ioctl_userfaultfd(2) gives them and that ``tests/kernel`` checks on a real one. Around each call, threads of the
applications on the same host may run, as on other cores.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import nodes.applications
import nodes.attachments
import nodes.connections
import nodes.keeper
import nodes.ledger
import nodes.memory
import nodes.primitives
from dsm import memory, uffd, wire
from dsm.constants import PAGE_BYTES

from .world import US, SimulationError, World

if TYPE_CHECKING:
    from .host import Host
    from .programs import Process, Thread

_COPY: Final = struct.Struct("<QQQQq")
_RANGE: Final = struct.Struct("<QQQ")
_EVENT: Final = struct.Struct("<BxxxxxxxQQ8x")
_PAGEFAULT: Final = 0x12
_ZEROS: Final = bytes(PAGE_BYTES)
_DEPTH_MAX: Final = 3
"""Agents that are preempted at the same time: one goes on only when those preempted after it have."""


class SigBus(Exception):
    """A thread has touched a poisoned page."""


class KernelNoise:
    """How often the kernel of a run does what it may do, and what it seldom does."""

    def __init__(
        self, again: float, partial: float, spurious: float, parallel: float, preempted: float, no_memory: float
    ) -> None:
        self.again = again  # a request is refused with EAGAIN
        self.partial = partial  # a COPY of several pages comes only part of the way
        self.spurious = spurious  # a thread in a page fault wakes for nothing
        self.parallel = parallel  # an application thread runs in the middle of an agent's turn
        self.preempted = preempted  # the agent loses its core between two system calls, and everybody else goes on
        self.no_memory = no_memory  # a COPY is refused with ENOMEM


class MemoryFile:
    """A memfd: the pages that are there. ``region`` is known once the node knows it."""

    def __init__(self, host: Host, length: int) -> None:
        self.host = host
        self.length = length
        self.region = 0
        self.pages: dict[int, bytearray] = {}
        self.areas: list[Area] = []
        self.closed = False  # by the agent: it lives on while somebody maps it


class Area:
    """One process's mapping of one memory file, and the userfaultfd that it is registered with.

    A page in ``protected`` carries the write-protect bit, or a marker where no page is. ``waiting`` are the threads in
    a page fault here, with the event of each; those in ``untold`` have not been told to the agent yet.
    """

    def __init__(self, process: Process, file: MemoryFile, address: int) -> None:
        self.process = process
        self.file = file
        file.areas.append(self)
        self.address = address
        self.mapped = True
        self.protected: set[int] = set()
        self.poisoned: set[int] = set()
        self.waiting: dict[Thread, tuple[int, int]] = {}  # flags, address
        self.untold: dict[Thread, None] = {}
        self.fds: set[int] = set()  # of the agent, once it has any

    def wake(self, start: int, stop: int) -> None:
        """Let threads that wait in a range of addresses go on, after a while."""
        for thread in [t for t, (_, address) in self.waiting.items() if start <= address < stop]:
            self.forget(thread)
            thread.woken()

    def forget(self, thread: Thread) -> None:
        self.waiting.pop(thread, None)
        self.untold.pop(thread, None)

    def unmap(self) -> None:
        """The process takes the mapping away, or ends."""
        self.mapped = False
        self.file.areas.remove(self)
        self.waiting.clear()
        self.untold.clear()
        if self.file.closed:
            self.file.host.cluster.kernel.drop_if_unused(self.file)


class Pipe:
    """A connection from a process to its agent: the agent's end, as a socket."""

    def __init__(self, host: Host, process: Process, fd: int, answered: Callable[[Pipe, Any], None]) -> None:
        self.host = host
        self.process = process
        self.answered = answered
        self.inbox: list[tuple[int, bytes, list[int]] | None] = []  # None: the other end has been closed
        self.number = 0  # of the last question
        self.closed_there = False
        self.busy = False  # somebody waits for an answer
        self.files: list[MemoryFile] = []  # that came with the last answer
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def setblocking(self, flag: bool) -> None:
        """It never blocks here."""

    def shutdown(self, how: int) -> None:
        """Closing it says it all."""

    def sendmsg(self, buffers: list[bytes], fds: list[int], flags: int) -> None:
        """The answer to a question, or one that was given before, which counts for that question only."""
        kernel = self.host.cluster.kernel
        self.host.called()
        if self.closed_there:
            raise BrokenPipeError
        files = [kernel.files[fd] for fd in fds if fd in kernel.files]
        self.host.world.after(self.host.world.spread(2 * US, 60 * US), self._arrive, b"".join(buffers), files)

    def _arrive(self, data: bytes, files: list[MemoryFile]) -> None:
        if int.from_bytes(data[:4], "little") in (0, self.number):
            self.files = files
            self.answered(self, wire.decode(data[4:]))

    def again(self, fd: int) -> Pipe:
        """Another agent has it: if the one before it has hung up, it finds the end."""
        if self._fd < 0:
            self.inbox = [None]
        self._fd = fd
        return self

    def close(self) -> None:
        if self._fd >= 0:
            self._fd = -1
            self.host.world.after(self.host.world.spread(2 * US, 40 * US), self.answered, self, None)

    def ask(self, question: wire.Message, fds: tuple[int, ...] = ()) -> None:
        """The process sends the question of this number, or what is about it."""
        self.put((self.number, wire.encode(question), list(fds)))

    def put(self, item: tuple[int, bytes, list[int]] | None) -> None:
        """The process sends a message, or closes its end."""
        if self._fd >= 0:
            self.inbox.append(item)
            self.host.readable(self._fd)


class Kernel:
    """The kernels of all hosts; descriptors are numbered through."""

    def __init__(self, world: World, noise: KernelNoise) -> None:
        self.world = world
        self.noise = noise
        self.files: dict[int, MemoryFile] = {}
        self.areas: dict[int, Area] = {}  # by the agents' userfaultfds
        self.processes: dict[int, Process] = {}
        self.pipes: dict[int, Pipe] = {}
        self.host: Host | None = None  # the one whose agent runs now
        self.depth = 0  # how many agents are preempted
        self.present: dict[tuple[int, int], dict[Host, None]] = {}  # by region and kernel page: who has it in memory
        self._fd = 1000

    def new_fd(self) -> int:
        self._fd += 1
        return self._fd

    # -- what other cores do meanwhile ---------------------------------------------------------------------

    def _meanwhile(self) -> None:
        host = self.host
        if host is None:
            return
        host.called()
        if self.world.odds(self.noise.parallel):
            self.host = None  # a thread's own system calls are not those of the agent
            host.run_some_thread()
            self.host = host
        if self.depth < _DEPTH_MAX and self.world.odds(self.noise.preempted):
            self.world.counts["agent preempted"] += 1
            self.depth += 1
            self.host = None
            self.world.run_for(self.world.spread(US, 500 * US))
            self.host = host
            self.depth -= 1

    # -- memory files --------------------------------------------------------------------------------------

    def create_memfd(self, name: str, length: int) -> int:
        assert self.host is not None
        fd = self.new_fd()
        self.files[fd] = MemoryFile(self.host, length)
        return fd

    def fill(self, file: MemoryFile, page: int, content: bytes) -> None:
        file.pages[page] = bytearray(content)
        if file.region:  # else nobody maps it: it is where a node keeps what it hides
            self.present.setdefault((file.region, page), {})[file.host] = None

    def pwrite(self, fd: int, data: Any, offset: int) -> int:
        self._meanwhile()
        file = self.files[fd]
        content = bytes(data)
        for at in range(0, len(content), PAGE_BYTES):
            self.fill(file, (offset + at) // PAGE_BYTES, content[at : at + PAGE_BYTES])
        self._meanwhile()
        return len(content)

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        self._meanwhile()
        pages = self.files[fd].pages
        first = offset // PAGE_BYTES
        content = b"".join(pages.get(page, _ZEROS) for page in range(first, first + length // PAGE_BYTES))
        self._meanwhile()
        return content

    def punch_hole(self, fd: int, offset: int, length: int) -> None:
        self._meanwhile()
        self.drop(self.files[fd], range(offset // PAGE_BYTES, (offset + length) // PAGE_BYTES))
        self._meanwhile()

    def is_present(self, fd: int, offset: int) -> bool:
        return offset // PAGE_BYTES in self.files[fd].pages

    def present_ranges(self, fd: int, length: int) -> list[tuple[int, int]]:
        runs: list[tuple[int, int]] = []
        for page in sorted(self.files[fd].pages):
            start = page * PAGE_BYTES
            if runs and runs[-1][1] == start:
                start = runs.pop()[0]
            runs.append((start, (page + 1) * PAGE_BYTES))
        return runs

    def drop(self, file: MemoryFile, pages: range) -> None:
        gone = pages if len(pages) <= len(file.pages) else [page for page in file.pages if page in pages]
        for page in gone:
            if file.pages.pop(page, None) is not None and file.region:
                holders = self.present[file.region, page]
                del holders[file.host]
                if not holders:
                    del self.present[file.region, page]

    def drop_if_unused(self, file: MemoryFile) -> None:
        if not file.areas:
            self.drop(file, range(file.length // PAGE_BYTES))

    def pages_of(self, host: Host) -> list[tuple[int, int]]:
        """Region and kernel page of what a host has in memory."""
        return [page for page, holders in self.present.items() if host in holders]

    def forget_host(self, host: Host) -> None:
        """A host has died, or nobody may rely on it any more."""
        for file in self.files.values():
            if file.host is host:
                self.drop(file, range(file.length // PAGE_BYTES))

    def close(self, fd: int) -> None:
        file = self.files.pop(fd, None)
        if file is not None:
            file.closed = True
            self.drop_if_unused(file)
        area = self.areas.pop(fd, None)
        if area is not None:
            area.fds.discard(fd)

    def register(self, area: Area) -> int:
        """The agent's descriptor of a new userfaultfd."""
        fd = self.new_fd()
        self.areas[fd] = area
        return fd

    def _duplicate(self, fd: int) -> int:
        """As it comes with a message."""
        area = self.areas[fd]
        new = self.register(area)
        area.fds.add(new)
        return new

    # -- accesses of threads -------------------------------------------------------------------------------

    def touch(self, thread: Thread, area: Area, offset: int, write: bool) -> bytearray | None:
        """The page that a thread may access now; None if it waits in a page fault from now on."""
        page = offset // PAGE_BYTES
        if page in area.poisoned:
            raise SigBus(f"page {page}")
        content = area.file.pages.get(page)
        if content is not None and not (write and page in area.protected):
            return content
        flags = (uffd.FLAG_WRITE if write else 0) | (uffd.FLAG_WP if content is not None else 0)
        area.waiting[thread] = (flags, area.address + page * PAGE_BYTES)
        area.untold[thread] = None
        for fd in area.fds:
            area.file.host.readable(fd)
        return None

    # -- userfaultfd ---------------------------------------------------------------------------------------

    def read(self, fd: int, length: int) -> bytes:
        self._meanwhile()
        area = self.areas[fd]
        threads = list(area.untold)[: length // _EVENT.size]
        if not threads:
            raise BlockingIOError
        events = b""
        for thread in threads:
            del area.untold[thread]
            flags, address = area.waiting[thread]
            events += _EVENT.pack(_PAGEFAULT, flags, address)
        return events

    def ioctl(self, fd: int, request: int, argument: bytearray, mutate: bool) -> int:
        """Requests that :class:`dsm.uffd.Userfaultfd` makes of an adopted descriptor."""
        self._meanwhile()
        area = self.areas.get(fd)
        if area is None or not area.process.has_memory:  # none: an agent that was killed had forgotten it already
            raise OSError(errno.ESRCH, "the process has exited")
        start, length, mode = _RANGE.unpack_from(argument)
        if not area.mapped:
            raise OSError(errno.ENOENT, "not mapped")
        if request == uffd._IOC_COPY:
            self._copy(area, argument)
        elif self.world.odds(self.noise.again):
            self._refuse("EAGAIN")
        elif request == uffd._IOC_WRITEPROTECT:
            self._write_protect(area, start, length, mode)
        elif request == uffd._IOC_WAKE:
            area.wake(start, start + length)
        elif request == uffd._IOC_POISON:
            self._poison(area, start)
        else:
            raise SimulationError(f"ioctl {request:#x} is not simulated")
        self._meanwhile()
        return 0

    def _refuse(self, name: str) -> None:
        self.world.counts[name] += 1
        self.world.note("kernel: %s", name)
        raise OSError(getattr(errno, name), name)

    def _write_protect(self, area: Area, start: int, length: int, mode: int) -> None:
        first = (start - area.address) // PAGE_BYTES
        pages = range(first, first + length // PAGE_BYTES)
        if mode == uffd._PROTECT:
            area.protected.update(pages)
            return
        area.protected.difference_update(pages)
        if mode == uffd._UNPROTECT:
            area.wake(start, start + length)

    def _poison(self, area: Area, start: int) -> None:
        page = (start - area.address) // PAGE_BYTES
        if page in area.file.pages or page in area.protected or page in area.poisoned:
            self._refuse("EEXIST")
        area.poisoned.add(page)
        self.world.note("poison pid %d page %d", area.process.pid, page)
        area.wake(start, start + PAGE_BYTES)

    def _copy(self, area: Area, argument: bytearray) -> None:
        to, source, length, mode, _ = _COPY.unpack_from(argument)
        first, count = (to - area.address) // PAGE_BYTES, length // PAGE_BYTES
        if self.world.odds(self.noise.again):
            self._told(argument, -errno.EAGAIN)
            self._refuse("EAGAIN")
        if self.world.odds(self.noise.no_memory):
            self._told(argument, -errno.ENOMEM)
            self._refuse("ENOMEM")
        wanted = count
        if count > 1 and self.world.odds(self.noise.partial):
            wanted = self.world.chance.randint(1, count - 1)
        done = 0
        while done < wanted and first + done not in area.file.pages and first + done not in area.poisoned:
            content = ctypes.string_at(source + done * PAGE_BYTES, PAGE_BYTES)
            self.fill(area.file, first + done, content)
            (area.protected.add if mode & uffd._COPY_WP else area.protected.discard)(first + done)
            done += 1
        if not done:
            self._told(argument, -errno.EEXIST)
            self._refuse("EEXIST")
        self._told(argument, done * PAGE_BYTES)
        area.wake(to, to + done * PAGE_BYTES)
        if done < count:
            self.world.counts["partial COPY"] += 1
            self._meanwhile()
            self._refuse("EAGAIN")

    @staticmethod
    def _told(argument: bytearray, copied: int) -> None:
        struct.pack_into("<q", argument, 32, copied)

    # -- pipes and processes -------------------------------------------------------------------------------

    def look(self, pipe: Pipe) -> tuple[int, bytes, list[int]] | None:
        """As :func:`dsm.local.look`."""
        if not pipe.inbox:
            raise BlockingIOError
        return pipe.inbox[0]

    def parse(self, item: tuple[int, bytes, list[int]] | None) -> tuple[wire.Message | None, list[int]]:
        """As :func:`dsm.local.parse`."""
        return (None, []) if item is None else (wire.decode(item[1]), list(map(self._duplicate, item[2])))

    def take(self, pipe: Pipe) -> None:
        """As :func:`dsm.local.take`."""
        pipe.inbox.pop(0)
        if pipe.inbox:
            pipe.host.readable(pipe.fileno())

    @staticmethod
    def packet(message: wire.Message, fds: Sequence[int] = (), number: int = 0) -> tuple[list[bytes], list[int], int]:
        """As :func:`dsm.local.packet`."""
        return [number.to_bytes(4, "little"), wire.encode(message)], list(fds), 0

    def pidfd_open(self, pid: int) -> int:
        assert self.host is not None
        fd = self.new_fd()
        self.processes[fd] = self.host.processes[pid]
        return fd

    def send_signal(self, pidfd: int, number: int) -> None:
        process = self.processes[pidfd]
        if not process.alive:
            raise ProcessLookupError
        host = process.host
        if host.trusted and host.serving and not host.end_applications:
            raise SimulationError(f"{host.number}: the agent of a member ends {process.name} pid {process.pid}")
        self.world.after(self.world.spread(2 * US, 100 * US), process.kill, "the agent")

    def close_any(self, fd: int) -> None:
        self.close(fd)  # of a process the keeper has one, too

    # -- in place of the real one --------------------------------------------------------------------------

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Production modules call this kernel instead of the real one."""
        bits = uffd._needed_bits() | uffd._INITIALIZED
        fdinfo = SimpleNamespace(read_text=lambda: f"pos: 0\nAPI:\taa:{bits:x}:{bits:x}\n")
        files = SimpleNamespace(
            create_memfd=self.create_memfd,
            punch_hole=self.punch_hole,
            is_present=self.is_present,
            present=self.present_ranges,
            Staging=memory.Staging,
        )
        descriptors = SimpleNamespace(
            close=self.close_any, pread=self.pread, pwrite=self.pwrite, read=self.read,
            readlink=lambda path: "anon_inode:[userfaultfd]", set_blocking=lambda fd, flag: None,
            pidfd_open=self.pidfd_open, getuid=lambda: 0, getpid=lambda: 1, open=lambda *_: self.new_fd(),
            O_RDONLY=os.O_RDONLY, O_CLOEXEC=os.O_CLOEXEC,
        )  # fmt: skip
        packets = SimpleNamespace(
            look=self.look,
            parse=self.parse,
            take=self.take,
            number_of=lambda item: item[0],
            packet=self.packet,
            again=lambda data: ([data], [], 0),
            close_all=lambda fds: None,
            peer=lambda pipe: (pipe.process.pid, 0, 0),
            ended=lambda pidfd: not self.processes[pidfd].alive,
        )
        signals = SimpleNamespace(pidfd_send_signal=self.send_signal, SIGKILL=9)
        clock = SimpleNamespace(monotonic=lambda: self.world.now / 1e9)
        replaced: list[tuple[Any, str, Any]] = [
            (uffd, "ioctl", self.ioctl),
            (uffd, "os", descriptors),
            (uffd, "Path", lambda path: fdinfo),
            (nodes.memory, "os", descriptors),
            (nodes.memory, "memory", files),
            (nodes.applications, "os", descriptors),
            (nodes.applications, "local", packets),
            (nodes.applications, "socket", SimpleNamespace(socket=lambda fileno: self.pipes[fileno].again(fileno))),
            (nodes.connections, "os", descriptors),
            (nodes.connections, "signal", signals),
            (nodes.connections, "local", packets),
            (nodes.applications, "time", clock),
            (nodes.attachments, "os", descriptors),
            (nodes.attachments, "open_device", lambda: None),
            (nodes.keeper, "signal", signals),
            (nodes.ledger, "local", packets),
            (nodes.ledger, "time", clock),
            (nodes.primitives, "os", descriptors),
        ]
        before = [(module, name, getattr(module, name)) for module, name, _ in replaced]
        try:
            for module, name, function in replaced:
                setattr(module, name, function)
            yield
        finally:
            for module, name, function in before:
                setattr(module, name, function)
