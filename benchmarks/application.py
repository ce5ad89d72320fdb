"""Applications that obey: a process of its own on each node, since a Python thread in a page fault holds the
interpreter's lock. ``python -m benchmarks.application MODULE CLASS [ARGUMENT...]`` is one of them.

A suite writes what its applications can do as a class; each line ``[method, argument...]`` that the child reads is
answered with a line, all of it JSON.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from dsm import launch


class Application:
    """A child that has made an ``obeying(*arguments)`` and calls its methods when told."""

    def __init__(self, obeying: type[Any], *arguments: Any, node: Path | None = None) -> None:
        command = [sys.executable, "-m", "benchmarks.application", obeying.__module__, obeying.__name__]
        self._process: Final = subprocess.Popen(
            command + [json.dumps(argument) for argument in arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=dict(os.environ) | ({"DSM_NODE": str(node)} if node else {}),
            text=True,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._commands: Final = self._process.stdin
        self._answers: Final = self._process.stdout
        self.answer()  # it is ready

    def tell(self, method: str, *arguments: Any) -> None:
        """Do not wait for the answer."""
        self._commands.write(json.dumps([method, *arguments]) + "\n")
        self._commands.flush()

    def answer(self) -> Any:
        """Of the oldest command that has none yet."""
        line = self._answers.readline()
        if not line:
            how = launch.how_it_ended(self._process.wait())
            self.end()
            raise RuntimeError(f"an application of the benchmark ended ({how}): what it wrote on stderr says why")
        return json.loads(line)

    def ask(self, method: str, *arguments: Any) -> Any:
        """Tell, and wait for the answer."""
        self.tell(method, *arguments)
        return self.answer()

    @property
    def has_answered(self) -> bool:
        """Would :meth:`answer` return at once?"""
        return bool(select.select([self._answers], [], [], 0)[0])

    def end(self) -> None:
        """Kill it: it may be in a page fault."""
        self._process.kill()
        self._process.wait()
        self._commands.close()
        self._answers.close()


def together(*commands: tuple[Application, Any]) -> list[Any]:
    """Tell each ``(application, [method, argument...])``, then collect the answers."""
    for application, command in commands:
        application.tell(*command)
    return [application.answer() for application, _ in commands]


class Cluster:
    """A directory and nodes on this host, and the applications that run on them."""

    def __init__(self, folder: Path, done: contextlib.ExitStack) -> None:
        self._folder = folder
        self._done = done
        self._nodes = 0
        self._directory = launch.start_directory()
        done.callback(self._directory.stop)

    def node(self) -> Path:
        """Start another node; its socket."""
        self._nodes += 1
        path = self._folder / f"node{self._nodes}"
        self._done.callback(launch.start_node(self._directory.address, socket=path, name=path.name).stop)
        return path

    def start(self, node: Path, obeying: type[Any], *arguments: Any) -> Application:
        """Start an application on a node."""
        application = Application(obeying, *arguments, node=node)
        self._done.callback(application.end)
        return application


@contextlib.contextmanager
def cluster() -> Iterator[Cluster]:
    """A cluster that ends with the block, its applications first."""
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
