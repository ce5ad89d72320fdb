"""How many bytes a second move between nodes, beside what a message library moves between two processes.

Three nodes on this host over TCP loopback, with an application on each and a second one on the first. One of them owns
the pages, the others read, overwrite or fetch them; before each measurement the owner takes all of them back.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import random
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import zmq

from benchmarks.measurements import Bound, Figure, Progress, Section, interleave

PAGE: Final = 4096
_FRAME: Final = 64 << 10
_REGION: Final = "benchmark.bandwidth"
_CHUNK: Final = 64  # pages that are copied at once into private memory
_STRIDE: Final = 4
_TOUCHES: Final = 25  # random accesses between two looks whether the scan beside them is over


# --- the application -----------------------------------------------------------------------------------


class _Obeying:
    """What an application does when told so. Pages are numbers; times are seconds."""

    def __init__(self, memory: memoryview, region: Any) -> None:
        self._region = region
        self._pages: Any = np.frombuffer(memory, np.uint8).reshape(-1, PAGE)
        self._private = np.ones((_CHUNK, PAGE), np.uint8)

    def read(self, start: int, stop: int, order: str) -> float:
        """Copy pages into private memory, in this order."""
        pages = _ordered(start, stop, order)
        parts = [pages[at : at + _CHUNK] for at in range(0, len(pages), _CHUNK)]
        began = time.perf_counter()
        for part in parts:
            np.take(self._pages, part, 0, self._private[: len(part)], "clip")
        return time.perf_counter() - began

    def touch(self, pages: list[int]) -> list[float]:
        """Load a byte of each; the time of each."""
        column, now, took = self._pages[:, 0], time.perf_counter, []
        for page in pages:
            began = now()
            column[page]
            took.append(now() - began)
        return took

    def store(self, start: int, stop: int, value: int) -> float:
        """Store to every byte, in order."""
        began = time.perf_counter()
        self._pages[start:stop] = value
        return time.perf_counter() - began

    def prefetch(self, start: int, stop: int, write: bool) -> float:
        """Ask for all of them at once."""
        began = time.perf_counter()
        self._region.prefetch(start * PAGE, stop * PAGE, write)
        return time.perf_counter() - began

    def stats(self) -> Any:
        """What the node has counted."""
        return self._region.stats()


def _ordered(start: int, stop: int, order: str) -> list[int]:
    pages = list(range(start, stop, _STRIDE if order == "strided" else 1))
    if order == "reverse":
        pages.reverse()
    elif order == "random":
        random.Random(start).shuffle(pages)
    return pages


def _application(pages: int) -> None:
    """Obey lines ``[method, argument...]`` and answer each with a line."""
    import dsm

    with dsm.attach(_REGION, size=pages * PAGE) as region:
        obeying = _Obeying(region.buf, region)
        print("null", flush=True)
        for line in sys.stdin:
            method, *arguments = json.loads(line)
            print(json.dumps(getattr(obeying, method)(*arguments)), flush=True)


class _Child:
    """An application in a process of its own: it may be in a page fault, and holds the interpreter's lock then."""

    def __init__(self, node: Path, pages: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.bandwidth", "application", str(pages)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=dict(os.environ) | {"DSM_NODE": str(node)},
            text=True,
        )
        self.answer()

    def tell(self, *command: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def ask(self, *command: Any) -> Any:
        self.tell(*command)
        return self.answer()

    @property
    def has_answered(self) -> bool:
        assert self.process.stdout is not None
        return bool(select.select([self.process.stdout], [], [], 0)[0])

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


# --- floors --------------------------------------------------------------------------------------------


def _sender(port: int) -> None:
    """Send so many frames as each line says."""
    payload = os.urandom(_FRAME)
    with zmq.Context() as context, context.socket(zmq.PUSH) as push:
        push.connect(f"tcp://127.0.0.1:{port}")
        for line in sys.stdin:
            for _ in range(int(line)):
                push.send(payload)


class Stream:
    """Frames of 64 KiB through pyzmq, from another process into a memfd of this one."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._context = zmq.Context()
        self._pull = self._context.socket(zmq.PULL)
        port = self._pull.bind_to_random_port("tcp://127.0.0.1")
        command = [sys.executable, "-m", "benchmarks.bandwidth", "sender", str(port)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True)
        self._tell(1)
        self._pull.recv()

    def _tell(self, frames: int) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{frames}\n")
        self._process.stdin.flush()

    def seconds(self) -> float:
        """Until all of it has come."""
        memfd = os.memfd_create("benchmark", os.MFD_CLOEXEC)
        try:
            os.ftruncate(memfd, self._size)
            self._tell(self._size // _FRAME)
            began = time.perf_counter()
            for at in range(0, self._size, _FRAME):
                os.pwrite(memfd, self._pull.recv(copy=False).buffer, at)
            return time.perf_counter() - began
        finally:
            os.close(memfd)

    def close(self) -> None:
        """End the sender."""
        self._process.kill()
        self._process.wait()
        self._context.destroy(linger=0)


def fill_private(size: int) -> float:
    """Seconds that it takes to store to every byte of new private memory."""
    with mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        pages = np.frombuffer(memory, np.uint8)
        began = time.perf_counter()
        pages[:] = 1
        took = time.perf_counter() - began
        del pages
    return took


# --- the measurement -----------------------------------------------------------------------------------


class _Cluster:
    """Four applications on three nodes, and the region that they share: ``rounds`` slices of ``size`` pages are for
    filling, one for everything else, and one to be touched at random beside it."""

    def __init__(self, folder: Path, rounds: int, size: int, done: contextlib.ExitStack) -> None:
        from dsm import launch

        self.size = size
        self.slice = (0, size)
        self.beside = (size, 2 * size)
        self.unfilled = iter(range(2 * size, (rounds + 2) * size, size))
        directory = launch.start_directory()
        done.callback(directory.stop)
        sockets = [folder / name for name in ("a", "b", "c")]
        for path in sockets:
            done.callback(launch.start_node(directory.address, socket=path, name=path.name).stop)
        pages = (rounds + 2) * size
        self.owner, self.reader, self.other, self.neighbour = [
            _Child(sockets[number], pages) for number in (0, 1, 2, 1)
        ]
        self.children = [self.owner, self.reader, self.other, self.neighbour]
        for child in self.children:
            done.callback(child.end)
        self.owner.ask("store", 0, 2 * size, 1)

    def take_back(self, pages: tuple[int, int] | None = None) -> None:
        """Every page is the owner's alone again."""
        start, stop = pages or self.slice
        self.owner.ask("prefetch", start, stop, True)
        self.owner.ask("store", start, stop, 2)

    def rate(self, seconds: float, pages: int | None = None) -> list[float]:
        """As a sample: GB/s."""
        return [(pages or self.size) * PAGE / seconds / 1e9]

    # -- parts: one sample each ------------------------------------------------------------------------

    def read(self, order: str) -> list[float]:
        self.take_back()
        pages = len(range(0, self.size, _STRIDE if order == "strided" else 1))
        return self.rate(self.reader.ask("read", *self.slice, order), pages)

    def read_at_random(self, moved: Figure, wanted: Figure) -> list[float]:
        self.take_back()
        before = self.reader.ask("stats")["pages_in"]
        seconds = self.reader.ask("read", *self.slice, "random")
        moved.samples.append(self.reader.ask("stats")["pages_in"] - before)
        wanted.samples.append(self.size)
        return [seconds / self.size * 1e6]

    def prefetch(self, write: bool) -> list[float]:
        self.take_back()
        return self.rate(self.reader.ask("prefetch", *self.slice, write))

    def fill(self) -> list[float]:
        start = next(self.unfilled)
        return self.rate(self.owner.ask("store", start, start + self.size, 1))

    def overwrite(self, shared: bool) -> list[float]:
        """Pages of another node, or of which it has a copy as the writer has."""
        self.take_back()
        if shared:
            self.reader.ask("prefetch", *self.slice, False)
        return self.rate(self.reader.ask("store", *self.slice, 3))

    def two_readers(self) -> list[float]:
        self.take_back()
        return self.rate(max(self._together((self.reader, self.slice), (self.other, self.slice))), 2 * self.size)

    def two_owners(self) -> list[float]:
        self.take_back()
        half = self.size // 2
        self.other.ask("prefetch", 0, half, True)
        self.other.ask("store", 0, half, 2)
        return self.rate(max(self._together((self.reader, (0, half)), (self.neighbour, (half, self.size)))))

    def _together(self, *readers: tuple[_Child, tuple[int, int]]) -> list[float]:
        for child, pages in readers:
            child.tell("read", *pages, "sequential")
        return [child.answer() for child, _ in readers]

    def touch_alone(self) -> list[float]:
        """Random accesses, in microseconds."""
        self.take_back(self.beside)
        return [1e6 * took for took in self.neighbour.ask("touch", self._at_random(8 * _TOUCHES))]

    def touch_beside(self, *command: Any) -> list[float]:
        """The same while the other application of the node fetches pages of the same owner."""
        self.take_back(self.beside)
        self.take_back()
        pages = self._at_random(self.size)
        took: list[float] = []
        self.reader.tell(*command)
        while pages and not self.reader.has_answered:
            took += self.neighbour.ask("touch", pages[:_TOUCHES])
            del pages[:_TOUCHES]
        self.reader.answer()
        return [1e6 * t for t in took]

    def _at_random(self, count: int) -> list[int]:
        return random.Random(1).sample(range(*self.beside), min(count, self.size))


_STREAM: Final = "pyzmq stream of 64 KiB frames into a memfd"
_PRIVATE: Final = "filling private memory"
_ALONE: Final = "random access, alone"
_WANTED: Final = "pages read at random"

Part = tuple[Figure, Callable[[], list[float]]]


def _parts(cluster: _Cluster, stream: Stream, moved: Figure, wanted: Figure) -> Iterator[Part]:
    def moving(name: str, part: Callable[[], list[float]], *bounds: Bound) -> Part:
        return Figure(name, "GB/s", beside=(_STREAM,), bounds=bounds), part

    bytes_ = cluster.size * PAGE
    yield Figure(_STREAM, "GB/s"), lambda: cluster.rate(stream.seconds())
    yield moving("sequential read", lambda: cluster.read("sequential"), Bound("at least", 0.8, _STREAM))
    yield moving("strided read", lambda: cluster.read("strided"))
    yield moving("reverse read", lambda: cluster.read("reverse"))
    yield moving("prefetch", lambda: cluster.prefetch(False))
    yield moving("prefetch to write", lambda: cluster.prefetch(True))
    yield moving("overwriting another node's pages", lambda: cluster.overwrite(False))
    yield moving("overwriting shared pages", lambda: cluster.overwrite(True))
    yield moving("two readers of one owner, together", cluster.two_readers)
    yield moving("one node reads from two owners", cluster.two_owners)
    yield Figure(_PRIVATE, "GB/s"), lambda: cluster.rate(fill_private(bytes_))
    fill = Figure("filling new memory", "GB/s", beside=(_PRIVATE,), bounds=(Bound("at least", 0.4, _PRIVATE),))
    yield fill, cluster.fill
    yield Figure("random read", "µs a page"), lambda: cluster.read_at_random(moved, wanted)
    yield Figure(_ALONE, "µs"), cluster.touch_alone
    fetching = {"scan": ("read", *cluster.slice, "sequential"), "prefetch": ("prefetch", *cluster.slice, False)}
    for what, command in fetching.items():
        bound = Bound("at most", 2, "random access, alone, p99", 0.99)
        yield (
            Figure(f"random access during a {what}", "µs", beside=(_ALONE,), bounds=(bound,)),
            lambda command=command: cluster.touch_beside(*command),  # type: ignore[misc]
        )


def measure(quick: bool, progress: Progress) -> Section:
    """Everything, ``quick`` with little memory and few rounds."""
    rounds, size = (2, 2048) if quick else (7, 16384)
    section = Section("bandwidth", "Bandwidth", (__doc__ or "").strip())
    moved = Figure("pages moved by random reads", "pages", beside=(_WANTED,), bounds=(Bound("at most", 1.1, _WANTED),))
    wanted = Figure(_WANTED, "pages")
    with contextlib.ExitStack() as done:
        folder = Path(done.enter_context(tempfile.TemporaryDirectory()))
        cluster = _Cluster(folder, rounds, size, done)
        stream = Stream(size * PAGE)
        done.callback(stream.close)
        parts = list(_parts(cluster, stream, moved, wanted))
        interleave(rounds, progress, parts)
    section.figures = [figure for figure, _ in parts] + [moved, wanted]
    slowest = Figure("random access, alone, p99", "µs", [section[_ALONE].quantile(0.99)])
    section.figures.append(slowest)
    return section


def main(arguments: Sequence[str]) -> None:
    """Be a child, or measure and print."""
    if arguments and arguments[0] == "application":
        _application(int(arguments[1]))
    elif arguments and arguments[0] == "sender":
        _sender(int(arguments[1]))
    else:
        section = measure("--quick" in arguments, lambda what: print(what, file=sys.stderr))
        for figure in section.figures:
            low, high = figure.spread
            ratios = " ".join(f"{section.ratio(figure, beside):.2f}x {beside}" for beside in figure.beside)
            print(f"{figure.name:45} {figure.median:9.3f} ({low:.3f}-{high:.3f}) {figure.unit:10} {ratios}")


if __name__ == "__main__":
    main(sys.argv[1:])
