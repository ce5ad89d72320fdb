"""One configuration explored from end to end, and what came of it."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import NamedTuple

from .conversation import conversation
from .explore import World, explore
from .progress import check_progress
from .sides import Configuration


class Verdict(NamedTuple):
    """What an exploration has found, and the CPU time that it took. ``wrong``: what is wrong, "" if nothing is."""

    name: str
    states: int
    transitions: int
    depth: int
    seconds: float
    wrong: str
    conversation: str


Sight = tuple[str, int, int, int]
"""Of an exploration that is under way: its name, states so far, how many are still to be expanded, depth."""


def run(name: str, how: Configuration, seen: Callable[[Sight], None] = lambda _: None) -> Verdict:
    """Explore one configuration. ``seen`` hears of progress."""
    began_s = time.process_time()
    world = World(how)
    graph, found = explore(world, lambda *counts: seen((name, *counts)))
    found = found or check_progress(graph, livelock=how.patient)
    told = conversation(world, found) if found is not None else ""
    wrong = found.wrong if found is not None else ""
    seconds = time.process_time() - began_s
    return Verdict(name, len(graph.states), graph.transitions, graph.depth, seconds, wrong, told)


def run_apart(name: str, how: Configuration, here: Connection) -> None:
    """As :func:`run`, in a process that does nothing else; everything is sent to whoever has started it."""
    gc.disable()  # no garbage is made of cycles here, and there are millions of tuples to look through for it
    here.send(run(name, how, here.send))
