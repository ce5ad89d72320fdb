"""The cluster of docker-compose.yml, really run: its containers, and programs in containers that use it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

DEPLOY: Final = Path(__file__).resolve().parent
NODES: Final = ("node1", "node2", "node3")
LIMIT_S: Final = 120.0
"""Of anything that is waited for."""


def _compose() -> list[str]:
    if subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0:
        return ["docker", "compose"]
    return ["docker-compose"]


class Program:
    """A program in a container that uses a node."""

    def __init__(self, process: subprocess.Popen[str], container: str) -> None:
        self.process = process
        self.container = container

    def hear(self) -> str:
        """The next line that it says."""
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def result(self) -> Any:
        """The last line that it says, once it has ended well."""
        out, err = self.process.communicate(timeout=LIMIT_S)
        assert self.process.returncode == 0, f"exit code {self.process.returncode}:\n{out}\n{err}"
        return json.loads(out.strip().splitlines()[-1])

    def code(self) -> int:
        """With what it ends."""
        self.process.communicate(timeout=LIMIT_S)
        return self.process.returncode


class Containers:
    """A project of its own, for one test module. ``project`` must be short: it is a part of every name."""

    def __init__(self, project: str) -> None:
        self.project = project
        self._compose = [*_compose(), "--project-name", project, "--file", str(DEPLOY.parent / "docker-compose.yml")]
        self._programs = 0

    def compose(self, *words: str) -> str:
        """What docker compose says to this."""
        ran = subprocess.run([*self._compose, *words], capture_output=True, text=True, timeout=600)
        assert ran.returncode == 0, f"{' '.join(words)}:\n{ran.stdout}\n{ran.stderr}"
        return ran.stdout

    def docker(self, *words: str) -> str:
        """What docker says to this."""
        ran = subprocess.run(["docker", *words], capture_output=True, text=True, timeout=600)
        assert ran.returncode == 0, f"{' '.join(words)}:\n{ran.stdout}\n{ran.stderr}"
        return ran.stdout

    def up(self) -> None:
        """Build the image and start the services."""
        self.compose("build", "directory")
        self.compose("up", "--detach", "key", "directory", *NODES)
        self.wait_for(*NODES)

    def down(self) -> None:
        """Remove everything."""
        self.compose("down", "--volumes", "--timeout", "5")

    def container(self, service: str) -> str:
        """The container of a service."""
        return self.compose("ps", "--quiet", service).strip()

    def pid(self, service: str) -> int:
        """Of its first process, on this host."""
        return int(self.docker("inspect", "--format", "{{.State.Pid}}", self.container(service)))

    # -- programs ----------------------------------------------------------------------------------------

    def start(self, node: str, *words: object) -> Program:
        """Start program.py with these words in a container that uses a node."""
        self._programs += 1
        name = f"{self.project}_app{self._programs}"
        options = ["--rm", "-T", "--name", name, "-e", f"DSM_NODE=/run/{node}/node.sock"]
        command = [*self._compose, "run", *options, "--volume", f"{DEPLOY}:/programs:ro", "app", "python"]
        process = subprocess.Popen(
            [*command, "/programs/program.py", *map(str, words)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        return Program(process, name)

    def run(self, node: str, *words: object) -> Any:
        """The same, and wait for its result."""
        return self.start(node, *words).result()

    def status(self, node: str = "node1") -> Any:
        """As ``dsm status --json`` has it; None if the node cannot tell."""
        ran = subprocess.run(
            ["docker", "exec", self.container(node), "sh", "-c", "DSM_NODE=/run/dsm/node.sock dsm status --json"],
            capture_output=True, text=True, timeout=LIMIT_S,
        )  # fmt: skip
        return json.loads(ran.stdout) if ran.returncode == 0 else None

    def wait_for(self, *nodes: str) -> None:
        """Until all of these are members, and nobody is away."""

        def there() -> bool:
            status = self.status(nodes[0])
            if status is None or status["cluster"].get("away"):
                return False
            return set(nodes) <= {node["name"] for node in status["cluster"]["nodes"]}

        until(there, f"{', '.join(nodes)} in the cluster")

    def members(self, node: str) -> set[str]:
        """Whom the directory counts as nodes."""
        status = self.status(node)
        return {one["name"] for one in status["cluster"]["nodes"]} if status is not None else set()

    # -- the network -------------------------------------------------------------------------------------

    def cut_off(self, service: str) -> None:
        """Take a container off the network."""
        self.docker("network", "disconnect", f"{self.project}_cluster", self.container(service))

    def join_again(self, service: str) -> None:
        """Put it back, with the address that it had."""
        number = {"directory": 10, "node1": 11, "node2": 12, "node3": 13}[service]
        words = ["network", "connect", "--ip", f"10.74.0.{number}", f"{self.project}_cluster"]
        self.docker(*words, self.container(service))

    def netem(self, service: str, *words: str) -> str:
        """Set what tc netem does to what a container sends (nothing: no longer). Why that cannot be, else empty."""
        if shutil.which("tc") is None or os.getuid():
            return "tc (Debian: iproute2) and root are needed"
        inside = ["nsenter", "--target", str(self.pid(service)), "--net"]
        links = subprocess.run([*inside, "ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
        device = next(name for line in links.splitlines() if (name := line.split()[1].partition("@")[0]) != "lo:")
        change = ["replace", "dev", device, "root", "netem", *words] if words else ["del", "dev", device, "root"]
        ran = subprocess.run([*inside, "tc", "qdisc", *change], capture_output=True, text=True)
        return ran.stderr.strip()


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, f"in vain waited for: {what}"
        time.sleep(0.3)
