"""Where each microsecond of a fault goes.

Two clusters of a directory and two nodes run on this host over TCP loopback. The services of one are traced
(:mod:`dsm.trace`), those of the other are not; the same faults are made in both, in turn, so that it shows what tracing
costs. Between two marks of a fault lies a stage; the medians of all stages are the figures, beside the whole fault.

Marks are put together from the records of three services by page and time: an application makes one fault after the
other, and each service tells when it decided on that page. What it did before and after is what lies next to that.

Processor time is that of the untraced services (/proc/PID/task/*/schedstat): also what they spend on looking whether
something comes (dsm/poller.py), and on what follows a fault (Done).
"""

from __future__ import annotations

import bisect
import functools
import json
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks.application import Cluster, record
from benchmarks.measurements import Figure, Progress, Section

PAGE: Final = 4096
REGION: Final = "benchmark.faultpath"
BATCH: Final = 100
"""Faults of each kind in a round."""
ROUNDS: Final = 30
ROUNDS_QUICK: Final = 3

SERVICES: Final = ("directory", "first", "second")


class Step(NamedTuple):
    """A mark after the decision: the beginning or end of the next call of that name."""

    label: str
    call: str
    end: bool = False


@dataclass(frozen=True)
class Hop:
    """What one service does for a fault. ``received``: the call that brings it the event. ``last``: it decides on the
    page more than once, and this is the last time."""

    who: str
    service: str
    received: str
    steps: tuple[Step, ...]
    last: bool = False


class Kind(NamedTuple):
    """A kind of fault: who makes it (the application on which node), and its way."""

    application: str
    op: str
    hops: tuple[Hop, ...]


_SEND: Final = Step("encode", "send")


def _asks(service: str) -> Hop:
    return Hop("requester", service, "read events", (_SEND,))


_DIRECTORY: Final = Hop("directory", "directory", "receive", (_SEND,))
_SUPPLIES: Final = Hop(
    "owner",
    "second",
    "receive",
    (Step("protect", "protect", end=True), Step("read the page", "pages"), _SEND),
)
_DROPS: Final = Hop("sharer", "first", "receive", (Step("punch", "message"), _SEND))

KINDS: Final = {
    "first touch": Kind(
        "second",
        "write",
        (_asks("second"), _DIRECTORY, Hop("requester", "second", "receive", (Step("COPY", "copy", True),), last=True)),
    ),
    "remote read": Kind(
        "first",
        "read",
        (
            _asks("first"),
            _DIRECTORY,
            _SUPPLIES,
            Hop("requester", "first", "receive", (Step("COPY", "copy", True),), last=True),
        ),
    ),
    "upgrade": Kind(
        "second",
        "write",
        (
            _asks("second"),
            _DIRECTORY,
            _DROPS,
            Hop("requester", "second", "receive", (Step("unprotect", "unprotect", True),), last=True),
        ),
    ),
}
"""In the order in which they are made on each page."""

Fault = tuple[int, int, int]
"""Page, and when the application was before and after its access (ns)."""


# --- the application -----------------------------------------------------------------------------------


class Faults:
    """What an application does when told so."""

    def __init__(self, pages: int) -> None:
        import dsm

        self._memory = dsm.attach(REGION, size=pages * PAGE).buf

    def fault(self, op: str, pages: list[int]) -> list[Fault]:
        """Touch each of these pages."""
        memory, now, write = self._memory, time.monotonic_ns, op == "write"
        faults = []
        for page in pages:
            at = page * PAGE
            before = now()
            if write:
                memory[at] = 1
            else:
                memory[at]
            faults.append((page, before, now()))
        return faults


# --- the clusters --------------------------------------------------------------------------------------


class _Services:
    """A cluster of two nodes with an application each; ``traced``: whether they record what they do."""

    def __init__(self, folder: Path, done: ExitStack, pages: int, traced: bool) -> None:
        cluster = Cluster(folder, done, traced)
        nodes = [cluster.node(name) for name in SERVICES[1:]]
        self._services = cluster.services
        self._applications = {node.name: cluster.start(node, Faults, pages) for node in nodes}

    def fault(self, kind: Kind, pages: list[int]) -> list[Fault]:
        told = self._applications[kind.application].ask("fault", kind.op, pages)
        return [(page, before, after) for page, before, after in told]

    def spent_us(self) -> dict[str, float]:
        """Processor time of each service so far."""
        return {name: _spent_us(service.process.pid) for name, service in self._services.items()}

    def system_share(self) -> dict[str, float]:
        """The part of its processor time that a service has spent in the kernel."""
        share = {}
        for name, service in self._services.items():
            fields = Path(f"/proc/{service.process.pid}/stat").read_text().rpartition(")")[2].split()
            user, system = int(fields[11]), int(fields[12])
            share[name] = system / max(1, user + system)
        return share


def _spent_us(pid: int) -> float:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1000


# --- marks ---------------------------------------------------------------------------------------------


class Lane:
    """What one service did, from its file; times in nanoseconds."""

    def __init__(self, path: Path) -> None:
        self._calls: dict[str, tuple[list[float], list[float]]] = {}
        self._decided: dict[int, list[float]] = {}
        events = [event for event in json.loads(path.read_text())["traceEvents"] if event["ph"] == "X"]
        for event in sorted(events, key=lambda event: float(event["ts"])):
            begin = event["ts"] * 1000
            if event["name"] == "decided":
                self._decided.setdefault(event["args"]["page"], []).append(begin)
            begins, ends = self._calls.setdefault(event["name"], ([], []))
            begins.append(begin)
            ends.append(begin + event["dur"] * 1000)

    def decided(self, page: int, after: float, before: float, last: bool) -> float:
        """When it decided on a page. Raises ``LookupError`` if it did not, as all others do here."""
        times = [at for at in self._decided.get(page, ()) if after <= at <= before]
        return times[-1 if last else 0]

    def begun(self, call: str, at: float) -> float:
        """When the last call before a time began."""
        begins, _ = self._calls[call]
        return begins[_at_least(bisect.bisect_right(begins, at) - 1)]

    def ended(self, call: str, at: float) -> float:
        """When the last call that was over by then ended."""
        _, ends = self._calls[call]
        return ends[_at_least(bisect.bisect_right(ends, at) - 1)]

    def next(self, step: Step, at: float) -> float:
        """When the next call begins, or ends."""
        begins, ends = self._calls[step.call]
        return (ends if step.end else begins)[bisect.bisect_left(begins, at)]


def _at_least(index: int) -> int:
    if index < 0:
        raise IndexError("nothing before that")
    return index


Mark = tuple[str, str, float]
"""Who, the stage that ends here, and when."""


def marks(hops: tuple[Hop, ...], lanes: dict[str, Lane], fault: Fault) -> list[Mark]:
    """The marks of a fault. Raises ``LookupError`` where one is missing."""
    page, before, after = fault
    found: list[Mark] = [("application", "", before)]
    for hop in hops:
        lane = lanes[hop.service]
        decided = lane.decided(page, before, after, hop.last)
        found.append((hop.who, "send, wake up" if len(found) > 1 else "fault, wake up", lane.begun("handle", decided)))
        found.append((hop.who, hop.received, lane.ended(hop.received, decided)))
        if hop.service == "directory":
            found.append((hop.who, "decode", lane.ended("decoded", decided)))
            found.append((hop.who, "decide", decided))
        else:
            found.append((hop.who, "decide" if hop.received == "read events" else "decode, decide", decided))
        at = decided
        for step in hop.steps:
            at = lane.next(step, at)
            found.append((hop.who, step.label, at))
    found.append(("application", "wake up", after))
    times = [at for _, _, at in found]
    if times[:-1] != sorted(times[:-1]):  # COPY wakes the thread before it returns
        raise LookupError(f"the marks of page {page} are not in order")
    return found


def _all_marks(kind: Kind, lanes: dict[str, Lane], faults: list[Fault]) -> Iterator[list[Mark]]:
    for fault in faults:
        try:
            yield marks(kind.hops, lanes, fault)
        except LookupError:  # of a fault that was disturbed; they are counted
            continue


# --- the measurement -----------------------------------------------------------------------------------


def measure(quick: bool, progress: Progress) -> Section:
    """The stages of each kind of fault."""
    section = Section("faultpath", "Where a fault spends its time", (__doc__ or "").partition("\n\n")[2])
    section.draw = functools.partial(draw, section)
    rounds = ROUNDS_QUICK if quick else ROUNDS
    pages = list(range(1, 2 * rounds * BATCH, 2))  # every other one, in random order: nothing is read ahead
    random.Random(1).shuffle(pages)
    made: dict[str, list[Fault]] = {kind: [] for kind in KINDS}
    whole = {kind: (Figure(kind, "µs"), Figure(f"{kind}, traced", "µs", beside=(kind,))) for kind in KINDS}
    spent = {(kind, name): Figure(f"{kind}: processor time, {name}", "µs") for kind in KINDS for name in SERVICES}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        folders = [Path(folder, name) for name in ("plain", "traced")]
        for into in folders:
            into.mkdir()
        plain = _Services(folders[0], stack, 2 * rounds * BATCH, traced=False)
        traced = _Services(folders[1], stack, 2 * rounds * BATCH, traced=True)
        for number in range(rounds):
            progress(f"faults ({number + 1} of {rounds})")
            batch = pages[number * BATCH : (number + 1) * BATCH]
            for name, kind in KINDS.items():
                before = plain.spent_us()
                whole[name][0].samples += [(end - begin) / 1000 for _, begin, end in plain.fault(kind, batch)]
                for service, after in plain.spent_us().items():
                    spent[name, service].samples.append((after - before[service]) / BATCH)
                faults = traced.fault(kind, batch)
                whole[name][1].samples += [(end - begin) / 1000 for _, begin, end in faults]
                made[name] += faults
        share = plain.system_share()
        progress("reading the traces")
        stack.close()  # they write what they recorded
        lanes = {name: Lane(record(folders[1], name)) for name in SERVICES}
    for name, kind in KINDS.items():
        found = list(_all_marks(kind, lanes, made[name]))
        section.figures += [*whole[name], *_stages(name, found), *(spent[name, service] for service in SERVICES)]
        section.facts[name] = {
            "faults": len(made[name]),
            "put together": len(found),
            "kernel's share of processor time": {service: round(part, 2) for service, part in share.items()},
        }
    return section


def _stages(kind: str, found: list[list[Mark]]) -> list[Figure]:
    """The stages of all faults of a kind, in order."""
    figures: list[Figure] = []
    for number in range(1, len(found[0]) if found else 0):
        who, label, _ = found[0][number]
        took = [(fault[number][2] - fault[number - 1][2]) / 1000 for fault in found]
        figures.append(Figure(f"{kind}: {number:02} {who}: {label}", "µs", took, beside=(f"{kind}, traced",)))
    return figures


# --- to look at ----------------------------------------------------------------------------------------


def stages(section: Section, kind: str) -> list[tuple[str, str, float]]:
    """Who, what and the median of each stage of a kind of fault, in order."""
    found = []
    for figure in section.figures:
        of, _, rest = figure.name.partition(": ")
        if of == kind and rest[:2].isdigit():
            who, _, label = rest[3:].partition(": ")
            found.append((who, label, figure.median))
    return found


_COLOURS: Final = {
    "wake up": "#b0b0b0",
    "decode": "#4878a8",
    "decide": "#4878a8",
    "encode": "#4878a8",
}
"""By what is in a label; the rest are calls of the kernel."""
_CALLS: Final = "#d08840"


def draw(section: Section, folder: Path) -> Path:
    """One row for each who is on the way of a fault, one picture for each kind: the medians of the stages."""
    from matplotlib.figure import Figure as Picture

    figure = Picture(figsize=(11, 7.5), layout="constrained")
    axes = figure.subplots(len(KINDS), sharex=True)
    for axis, kind in zip(axes, KINDS, strict=True):
        rows = list(dict.fromkeys(who for who, _, _ in stages(section, kind)))
        rows = ["application", *(row for row in rows if row != "application")]
        at = 0.0
        for who, label, took in stages(section, kind):
            colour = next((colour for word, colour in _COLOURS.items() if word in label), _CALLS)
            axis.barh(rows.index(who), max(took, 0), left=at, color=colour, edgecolor="white", linewidth=0.5)
            if took > 2:
                axis.text(at + took / 2, rows.index(who), f"{took:.0f}", ha="center", va="center", fontsize=8)
            at += max(took, 0)
        axis.set_yticks(range(len(rows)), rows)
        axis.invert_yaxis()
        traced = section[f"{kind}, traced"].median
        axis.set_title(f"{kind}: {section[kind].median:.0f} µs, traced {traced:.0f} µs", loc="left", fontsize=10)
    axes[-1].set_xlabel("µs; blue: Python; orange: calls of the kernel; grey: on the way, until who is next has woken")
    path = folder / "faultpath.png"
    figure.savefig(path, dpi=110)
    return path
