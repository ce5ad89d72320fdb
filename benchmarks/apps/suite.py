"""Measures the programs: ``measure(quick, progress)``."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.apps import children, lines
from benchmarks.apps.programs import PROGRAMS, Program, Rival, Sizes
from benchmarks.measurements import Figure, Progress, Section, interleave

NODES: Final = (1, 2, 3, 4)
NODES_QUICK: Final = (1, 2)
ROUNDS: Final = 3

_ABOUT: Final = """\
Each program of examples/, the very file, on private memory (one process, with a stand-in for dsm that does nothing) and
on dsm with one process on each of 1 to 4 nodes, and the same algorithm on what its user might have picked instead, with
two processes. Every result is compared with that on private memory: all of them to the last bit, but for k-means, which
adds its sums in another order. The time goes from the barrier at which the data are there to the one at which the
result is; a rival's result stays where it was computed. All run in turn, with one thread of BLAS a process. Lines are
those of the whole program that hold code; an example also prints its result, a rival also takes its time.

This host has {cores} processors, which the processes, the node agents and the directory share: no speed-up beyond
{cores} can show, and efficiency is the speed-up divided by the smaller of the number of processes and of processors.
Where the time of the processes went: computing, waiting for a page (a prefetch included), waiting for a processor,
waiting for a barrier or a lock."""

_PERCENT: Final = ("compute", "fault", "processor", "barrier", "lock")


class WrongResult(Exception):
    """A program computed something else than on private memory."""


def measure(quick: bool, progress: Progress) -> Section:
    """Figures of all programs."""
    cores = len(os.sched_getaffinity(0))
    section = Section("apps", "Whole programs", _ABOUT.format(cores=cores))
    nodes = NODES_QUICK if quick else NODES
    progress("starting nodes")
    with children.ranks(max(nodes)) as (ranks, folder):
        for program in PROGRAMS:
            _Measurement(section, program, program.quick if quick else program.full, ranks, folder).run(
                nodes, 1 if quick else ROUNDS, progress
            )
    for figure in section.figures:
        processes = section.facts[figure.name]["processes"]
        speed_up = 1 / section.ratio(figure, figure.beside[0]) if figure.beside else 1.0
        section.facts[figure.name] |= {
            "speed-up": round(speed_up, 2),
            "efficiency": round(speed_up / min(processes, cores), 2),
        }
    return section


class _Measurement:
    """Of one program."""

    def __init__(self, section: Section, program: Program, sizes: Sizes, ranks: children.Ranks, folder: Path) -> None:
        self._section = section
        self._program = program
        self._sizes = sizes
        self._ranks = ranks
        self._result = folder / "result.npy"
        self._expected: Any = None

    def run(self, nodes: tuple[int, ...], rounds: int, progress: Progress) -> None:
        """Private memory, dsm and the rivals in turn."""
        private = self._figure("private memory", 1, f"examples/{self._program.name}.py")
        private.note = self._program.note
        parts: list[tuple[Figure, Callable[[], list[float]]]] = [(private, self._on_dsm(private, 0))]
        for count in nodes:
            label = f"dsm, {count} node{'s' * (count > 1)}"
            figure = self._figure(label, count, f"examples/{self._program.name}.py", private)
            parts.append((figure, self._on_dsm(figure, count)))
        with contextlib.ExitStack() as stack:
            for rival in self._program.rivals:
                progress(f"{self._program.name}: starting {rival.label}")
                processes = children.RivalProcesses(rival, self._program.function, self._result.parent)
                stack.callback(processes.close)
                try:
                    processes.start()
                except children.Absent as absent:
                    self._section.absent[f"{self._program.name}: {rival.label}"] = str(absent)
                    continue
                figure = self._figure(rival.label, 2, f"benchmarks/apps/{rival.module}.py", private)
                parts.append((figure, self._on_rival(figure, rival, processes)))
            interleave(rounds, progress, parts)

    def _figure(self, label: str, processes: int, source: str, *beside: Figure) -> Figure:
        name = f"{self._program.name}: {label}"
        figure = Figure(name, "s", beside=tuple(other.name for other in beside))
        self._section.figures.append(figure)
        self._section.facts[name] = {"processes": processes, "lines": lines.of_file(lines.TREE / source)}
        return figure

    def _on_dsm(self, figure: Figure, nodes: int) -> Callable[[], list[float]]:
        spent: list[dict[str, int]] = []

        def part() -> list[float]:
            answers, services = self._ranks.run(self._program, self._sizes, nodes, self._result)
            self._check(figure.name)
            spent.extend(answer["took"] for answer in answers)
            facts = self._section.facts[figure.name]
            total = sum(took["all"] for took in spent)
            facts |= {f"{key} %": round(100 * sum(took[key] for took in spent) / total, 1) for key in _PERCENT}
            if nodes:
                counted = {key: sum(answer["counted"][key] for answer in answers) for key in answers[0]["counted"]}
                facts |= {"faults": counted["faults"], "invalidations": counted["invalidations"]}
                facts |= {"MB moved": round(counted["bytes_in"] / 1e6, 2), "services' CPU s": round(services, 2)}
            return [max(answer["took"]["all"] for answer in answers) / 1e9]

        return part

    def _on_rival(self, figure: Figure, rival: Rival, processes: children.RivalProcesses) -> Callable[[], list[float]]:
        if rival.moved is not None:
            self._section.facts[figure.name]["MB moved"] = round(rival.moved(self._sizes) / 1e6, 2)

        def part() -> list[float]:
            seconds = processes.run(self._sizes, self._result)
            self._check(figure.name)
            return [seconds]

        return part

    def _check(self, name: str) -> None:
        """Against the first result, which was that on private memory."""
        result = np.load(self._result)
        self._result.unlink()
        if self._expected is None:
            self._expected = result
        check(name, result, self._expected, self._program.exact)


def check(name: str, result: NDArray[Any], expected: NDArray[Any], exact: bool) -> None:
    """Raise WrongResult unless a result is as expected."""
    same = np.array_equal if exact else np.allclose
    if result.shape != expected.shape or not same(result, expected):
        raise WrongResult(f"{name}: the result differs from that on private memory")
