"""Processes with threads that run generators: what an application and ``dsm/client.py`` are to an agent.

A thread's generator yields what blocks it (:class:`Load`, :class:`Store`, :class:`Ask`, :class:`Sleep`) and gets the
result back; the functions at the end of this module put these together to what programs call.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from dsm import wire
from dsm.constants import PAGE_BYTES

from .kernel import Area, MemoryFile, Pipe, SigBus
from .world import MS, US, SimulationError

if TYPE_CHECKING:
    from .host import Host

WORD: Final = 8
"""Bytes of a word: what one load or store moves."""


_EXPECTED: Final = ("BrokenBarrier", "DirectoryUnreachable", "PageLost")
"""What programs may be told when others end, or the directory is silent; everything else is a mistake of somebody."""


class Region:
    """A region as one process has it attached."""

    def __init__(self, name: str, pipe: Pipe, answer: wire.Attached, area: Area) -> None:
        self.name = name
        self.pipe = pipe
        self.number = answer.region
        self.words = answer.size // WORD
        self.page_size = answer.page_size
        self.pages = -(-answer.size // answer.page_size)
        self.area = area


class Load(NamedTuple):
    region: Region
    word: int


class Store(NamedTuple):
    region: Region
    word: int
    value: int


class Ask(NamedTuple):
    """A question on a pipe; ``patience``: cancel it after so many nanoseconds."""

    pipe: Pipe
    question: wire.Message
    fds: tuple[int, ...] = ()
    patience: int = 0


class Sleep(NamedTuple):
    duration: int


class Refused(Exception):
    """The agent has answered with an error."""

    def __init__(self, failure: wire.Failure) -> None:
        super().__init__(failure.error, failure.text)
        self.error = failure.error


class AgentGone(Exception):
    """The agent has closed the connection."""


Program = Generator[Any, Any, Any]


class Thread:
    """One thread of a process: runnable, or stuck in a page fault, in a question or in its sleep, or over."""

    def __init__(self, process: Process, name: str, program: Program) -> None:
        self.process = process
        self.name = name
        self.over = False
        self.waits_for: Any = None  # Load, Store, Ask, Sleep; None while it runs
        self._program = program
        self._resume_with: Any = None
        self._raise: BaseException | None = None
        self._sleep = 0  # counts what it waits for, so that a late event is known
        self._runnable()

    def __repr__(self) -> str:
        return f"{self.name} on {self.process.host.name} waits for {self.waits_for}"

    @property
    def in_fault(self) -> bool:
        return isinstance(self.waits_for, (Load, Store))

    # -- who wakes it --------------------------------------------------------------------------------------

    def _runnable(self) -> None:
        """It goes on a little later, or as soon as it finds a free core while its agent works."""
        world = self.process.host.world
        self._sleep += 1
        self.process.host.runnable[self] = None
        world.after(world.spread(US // 4, 20 * US), self._scheduled, self._sleep)

    def _scheduled(self, sleep: int) -> None:
        if sleep == self._sleep:
            self.run()

    def woken(self) -> None:
        """A WAKE has found it. It may take its time."""
        self._runnable()

    def _spurious(self, sleep: int, area: Area) -> None:
        """A signal or a preemption makes it try again by itself."""
        if sleep == self._sleep and not self.over:
            self.process.host.world.counts["spurious wake"] += 1
            area.forget(self)
            self._runnable()

    def answered(self, pipe: Pipe, message: wire.Message | None) -> None:
        """What it waits for has come over its pipe."""
        if self.over or not isinstance(self.waits_for, Ask) or self.waits_for.pipe is not pipe:
            return
        pipe.busy = False
        if message is None:
            self._raise = AgentGone()
        elif isinstance(message, wire.Failure):
            self._raise = Refused(message)
        else:
            self._resume_with = message
        self.waits_for = None
        self._runnable()

    def _impatient(self, sleep: int, ask: Ask) -> None:
        if sleep == self._sleep and self.waits_for is ask and not ask.pipe.closed_there:
            self.process.host.world.counts["cancelled question"] += 1
            ask.pipe.ask(wire.Cancel(0, False))

    # -- running -------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Go on until it has to wait, or for one access."""
        self._sleep += 1
        self.process.host.runnable.pop(self, None)
        if self.over or not self.process.alive:
            return
        try:
            if self.in_fault:
                if not self._access(self.waits_for):
                    return
                self.waits_for = None
            self._next()
        except SigBus:
            self.process.host.world.counts["SIGBUS"] += 1
            self.process.kill("SIGBUS")

    def _next(self) -> None:
        raised, self._raise = self._raise, None
        result, self._resume_with = self._resume_with, None
        try:
            wanted = self._program.throw(raised) if raised is not None else self._program.send(result)
        except StopIteration:
            self.end()
            return
        except (AgentGone, Refused) as error:
            if isinstance(error, Refused) and not self._is_expected(error.error) and self.process.host.trusted:
                raise SimulationError(f"{self.name} was told {error!r}") from error
            self.process.host.world.note("%s ends: %s", self.name, repr(error))
            self.end()
            self.process.host.cluster.process_was_killed(self.process)
            return
        except SimulationError:
            if self.process.host.trusted:
                raise
            self.end()  # what it read was old, and may be: its node is out
            return
        self.waits_for = wanted
        if isinstance(wanted, Ask):
            self._ask(wanted)
        elif isinstance(wanted, Sleep):
            self.waits_for = None
            self._sleep += 1
            self.process.host.world.after(wanted.duration, self._scheduled, self._sleep)
        elif self._access(wanted):
            self.waits_for = None
            self._runnable()

    def _is_expected(self, error: str) -> bool:
        if error == "PartyDied":  # only if one has, or if its node is out
            return any(
                workload.broken
                or not all(process.host.trusted and process.host.serving for process in workload.processes)
                for workload in self.process.host.cluster.workloads
                if self.process in workload.processes
            )
        return error in _EXPECTED

    def _access(self, wanted: Load | Store) -> bool:
        host = self.process.host
        region = wanted.region
        store = isinstance(wanted, Store)
        content = host.cluster.kernel.touch(self, region.area, wanted.word * WORD, store)
        world = host.world
        if content is None:
            world.note("%s faults", self.name)
            if world.odds(host.cluster.kernel.noise.spurious):
                world.after(world.spread(5 * US, 2 * MS), self._spurious, self._sleep, region.area)
            return False
        at = wanted.word * WORD % PAGE_BYTES
        if isinstance(wanted, Store):
            host.cluster.oracle.stored(self, region, wanted.word, wanted.value)
            content[at : at + WORD] = wanted.value.to_bytes(WORD, "little")
        else:
            value = int.from_bytes(content[at : at + WORD], "little")
            host.cluster.oracle.loaded(self, region, wanted.word, value)
            self._resume_with = value
        return True

    def _ask(self, ask: Ask) -> None:
        if ask.pipe.closed_there or ask.pipe.fileno() < 0:
            self.waits_for = None
            self._raise = AgentGone()
            self._runnable()
            return
        ask.pipe.answered = self.answered
        ask.pipe.busy = True
        ask.pipe.number += 1
        world = self.process.host.world
        self._sleep += 1
        world.after(world.spread(2 * US, 20 * US), ask.pipe.ask, ask.question, ask.fds)
        if ask.patience:
            world.after(ask.patience, self._impatient, self._sleep, ask)

    def end(self) -> None:
        self.over = True
        self.process.host.runnable.pop(self, None)
        self.process.thread_ended()


class Process:
    """A process on a host, with its connections and its mappings."""

    def __init__(self, host: Host, name: str) -> None:
        self.host = host
        self.name = name
        self.pid = host.cluster.new_pid()
        self.alive = True
        self.has_memory = True
        self.threads: list[Thread] = []
        self.pipes: dict[Pipe, None] = {}
        self.areas: list[Area] = []
        self.idle: list[Pipe] = []  # connections between two operations, as dsm/client.py pools them
        host.processes[self.pid] = self
        host.cluster.alive += 1

    def start(self, name: str, program: Program) -> Thread:
        """A new thread."""
        thread = Thread(self, name, program)
        self.threads.append(thread)
        return thread

    def thread_ended(self) -> None:
        """With its last thread the process exits."""
        if self.alive and all(thread.over for thread in self.threads):
            self.kill("")

    def kill(self, who: str) -> None:
        """SIGKILL, or the ordinary exit if it was nobody: threads stop now, the rest goes soon, in any order."""
        if not self.alive:
            return
        self.alive = False
        self.host.cluster.alive -= 1
        world = self.host.world
        if who:
            world.note("%s pid %d is killed by %s", self.name, self.pid, who)
            self.host.cluster.process_was_killed(self)
        for thread in self.threads:
            thread.over = True
            self.host.runnable.pop(thread, None)
        world.after(world.spread(US, 2 * MS), self._lose_memory)
        for pipe in self.pipes:
            world.after(world.spread(US, 2 * MS), self.close, pipe)

    def vanish(self) -> None:
        """Its host has no power."""
        was_alive, self.alive = self.alive, False
        for thread in self.threads:
            thread.over = True
        self._lose_memory()
        if was_alive:
            self.host.cluster.alive -= 1
            self.host.cluster.process_was_killed(self)

    def _lose_memory(self) -> None:
        self.has_memory = False
        for area in self.areas:
            if area.mapped:
                area.unmap()

    def connect(self) -> Pipe:
        """A new connection to the agent; closed already if there is none."""
        pipe = Pipe(self.host, self, self.host.cluster.kernel.new_fd(), lambda pipe, message: None)
        if self.host.serving:
            self.pipes[pipe] = None
            self.host.cluster.kernel.pipes[pipe.fileno()] = pipe
            self.host.connect(pipe)
        else:
            pipe.closed_there = True
        return pipe

    def idle_pipe(self) -> Pipe:
        """A connection for one operation."""
        return self.idle.pop() if self.idle else self.connect()

    def map(self, file: MemoryFile) -> Area:
        """Map a memory file at some address of its own."""
        area = Area(self, file, (len(self.areas) + 1) << 32)
        self.areas.append(area)
        return area

    def close(self, pipe: Pipe) -> None:
        """Close this end of a connection."""
        if not pipe.closed_there:
            pipe.closed_there = True
            pipe.put(None)


# -- what programs call ----------------------------------------------------------------------------------

Call = Generator[Any, Any, Any]


def attach(process: Process, name: str, size: int = 0, page_size: int = 0, create: int = 0, **options: object) -> Call:
    """As :func:`dsm.attach`; returns a :class:`Region`."""
    pipe = process.connect()
    answer: wire.Attached = yield Ask(pipe, wire.Attach(name, size, page_size, create, options))
    if options.get("replicas"):
        process.host.cluster.oracle.replicated.add(answer.region)
    area = process.map(pipe.files[0])
    fd = process.host.cluster.kernel.register(area)
    yield Ask(pipe, wire.Mapped(area.address), (fd,))
    return Region(name, pipe, answer, area)


def detach(process: Process, region: Region) -> Call:
    """As :meth:`dsm.Region.close`."""
    yield Ask(region.pipe, wire.Detach())
    region.area.unmap()
    process.close(region.pipe)


def prefetch(region: Region, start: int, stop: int, write: bool) -> Call:
    """Pages ``[start, stop)``; not at all if another thread of the process is at it."""
    if not region.pipe.busy:
        size = region.page_size
        yield Ask(region.pipe, wire.Prefetch(start * size, min(stop * size, region.words * WORD), write))


def flush(process: Process, region: Region) -> Call:
    """As :meth:`dsm.Region.flush`."""
    oracle = process.host.cluster.oracle
    before = oracle.about_to_release(process.host, region.number)
    yield Ask(region.pipe, wire.Mirror(0, 0))
    oracle.released(region.number, before)


def unlink(process: Process, name: str) -> Call:
    """As :meth:`dsm.Region.unlink`. Returns whether there was such a region."""
    pipe = process.idle_pipe()
    try:
        yield Ask(pipe, wire.Unlink(0, name))
    except Refused:
        return False
    finally:
        process.idle.append(pipe)
    return True


def acquire(process: Process, name: str, patience: int = 0) -> Call:
    """A lock; returns the connection that holds it, or None if patience has run out."""
    pipe = process.idle_pipe()
    how = wire.TIMED if patience else wire.FOREVER
    answer = yield Ask(pipe, wire.Acquire(0, name, wire.LOCK, how, *_who(process, pipe)), (), patience)
    if isinstance(answer, wire.Granted):
        return pipe
    process.idle.append(pipe)
    return None


def release(process: Process, name: str, held: Pipe) -> Call:
    """Give a lock back."""
    yield Ask(held, wire.Release(name, False))
    process.idle.append(held)


def _who(process: Process, pipe: Pipe) -> tuple[int, int, str]:
    """Whoever waits, waits on a pipe of its own."""
    return process.host.number << 32 | process.pid, pipe.fileno(), f"process {process.pid} of {process.host.name}"


def barrier(process: Process, name: str, parties: int) -> Call:
    """Wait for the others."""
    pipe = process.idle_pipe()
    yield Ask(pipe, wire.Arrive(0, name, parties, wire.FOREVER, False, *_who(process, pipe)))
    process.idle.append(pipe)
