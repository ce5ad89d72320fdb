"""Applications that obey: a process of its own on each node, since a Python thread in a page fault holds the
interpreter's lock. ``python -m benchmarks.application MODULE CLASS [ARGUMENT...]`` is one of them.

A suite writes what its applications can do as a class; each line ``[method, argument...]`` that the child reads is
answered with a line, all of it JSON.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.child import Child, answers, python
from dsm import launch


class Application(Child):
    """A child that has made an ``obeying(*arguments)`` and calls its methods when told."""

    def __init__(self, obeying: type[Any], *arguments: Any, node: Path | None = None) -> None:
        super().__init__(
            python("benchmarks.application", obeying.__module__, obeying.__name__, *map(json.dumps, arguments)),
            on(node) if node else {},
            f"an application, {obeying.__name__}" + (f" on {node.name}" if node else ""),
        )
        self.answer()  # it is ready


def on(node: Path) -> dict[str, str]:
    """The environment of an application of a node, which is given by its socket."""
    return {"DSM_NODE": str(node)}


def together(*commands: tuple[Child, Any]) -> list[Any]:
    """Tell each ``(application, [method, argument...])``, then collect the answers."""
    for application, command in commands:
        application.tell(*command)
    return answers(*(application for application, _ in commands))


def record(folder: Path, service: str) -> Path:
    """Where a traced service of a cluster writes what it did when."""
    return folder / f"{service}.json"


class Cluster:
    """A directory and nodes on this host, and the applications that run on them; ``services`` by name.

    All end with ``done``, the applications first. ``traced``: each service leaves a :func:`record` in ``folder`` then.
    """

    def __init__(self, folder: Path, done: contextlib.ExitStack, traced: bool = False) -> None:
        self._folder = folder
        self._traced = traced
        self._ends = done.enter_context(contextlib.ExitStack())
        self._applications = done.enter_context(contextlib.ExitStack())
        self._directory = launch.start_directory(trace=self._trace("directory"))
        self._ends.callback(self._directory.stop)
        self.services = {"directory": self._directory}

    def node(self, name: str = "") -> Path:
        """Start another node; its socket."""
        path = self._folder / (name or f"node{len(self.services)}")
        node = launch.start_node(self._directory.address, socket=path, name=path.name, trace=self._trace(path.name))
        self._ends.callback(node.stop)
        self.services[path.name] = node
        return path

    def _trace(self, service: str) -> Path | None:
        return record(self._folder, service) if self._traced else None

    def start(self, node: Path, obeying: type[Any], *arguments: Any) -> Application:
        """Start an application on a node."""
        application = Application(obeying, *arguments, node=node)
        self.keep(application)
        return application

    def keep(self, application: Child) -> None:
        """Kill it at the end: it may be in a page fault."""
        self._applications.callback(application.kill)


@contextlib.contextmanager
def cluster() -> Iterator[Cluster]:
    """A cluster that ends with the block."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as done:
        yield Cluster(Path(folder), done)


def main(module: str, name: str, *arguments: str) -> None:
    """Be a child."""
    obeying = getattr(importlib.import_module(module), name)(*map(json.loads, arguments))
    print("null", flush=True)
    for line in sys.stdin:
        method, *rest = json.loads(line)
        print(json.dumps(getattr(obeying, method)(*rest)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
