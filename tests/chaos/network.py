"""Hosts of one machine: network namespaces that are joined by a bridge, whose links can be taken down and made slow."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from contextlib import ExitStack


def missing() -> str:
    """Why there can be no such hosts here; empty if there can."""
    if os.getuid():
        return "only root can make network namespaces"
    if shutil.which("ip") is None:
        return "network namespaces need the program ip (Debian: iproute2)"
    return ""


class Hosts:
    """``count`` hosts; the address of host ``n`` is ``addresses[n]``. :meth:`close` removes them."""

    def __init__(self, count: int) -> None:
        self._stack = ExitStack()
        self._name = f"dsm{random.randrange(1 << 32):x}"
        net = f"10.{random.randrange(100, 200)}.{random.randrange(256)}"
        self.addresses = [f"{net}.{host + 1}" for host in range(count)]
        try:
            self._namespace("s")
            self._ip("-n", f"{self._name}s", "link", "add", "bridge", "type", "bridge")
            self._ip("-n", f"{self._name}s", "link", "set", "bridge", "up")
            for host, address in enumerate(self.addresses):
                self._join(host, address)
        except BaseException:
            self.close()
            raise

    def _namespace(self, suffix: str) -> None:
        self._ip("netns", "add", self._name + suffix)
        self._stack.callback(self._ip, "netns", "delete", self._name + suffix)

    def _join(self, host: int, address: str) -> None:
        self._namespace(f"{host}")
        switch, own = f"{self._name}s", f"{self._name}{host}"
        self._ip("-n", switch, "link", "add", f"port{host}", "type", "veth", "peer", "name", "eth0", "netns", own)
        self._ip("-n", switch, "link", "set", f"port{host}", "master", "bridge", "up")
        self._ip("-n", own, "address", "add", f"{address}/24", "dev", "eth0")
        self._ip("-n", own, "link", "set", "eth0", "up")
        self._ip("-n", own, "link", "set", "lo", "up")

    def inside(self, host: int, command: list[str]) -> list[str]:
        """The command that runs ``command`` on a host."""
        return ["ip", "netns", "exec", f"{self._name}{host}", *command]

    def cut_off(self, host: int) -> None:
        """Nobody hears a host any more, nor does it hear anybody."""
        self._ip("-n", f"{self._name}s", "link", "set", f"port{host}", "down")

    def join_again(self, host: int) -> None:
        """The network is as before."""
        self._ip("-n", f"{self._name}s", "link", "set", f"port{host}", "up")

    def slow_down(self, host: int, delay_ms: int, loss_percent: int) -> None:
        """What a host sends arrives late, and some of it not at all; 0 and 0: no longer."""
        command = ["tc", "qdisc", "del" if not delay_ms else "replace", "dev", "eth0", "root"]
        if delay_ms:
            command += ["netem", "delay", f"{delay_ms}ms", f"{delay_ms // 2}ms", "loss", f"{loss_percent}%"]
        subprocess.run(self.inside(host, command), check=True)

    def can_be_slow(self) -> bool:
        """Does this kernel have netem, and this machine tc?"""
        if shutil.which("tc") is None:
            return False
        try:
            self.slow_down(0, 1, 0)
        except subprocess.CalledProcessError:
            return False
        self.slow_down(0, 0, 0)
        return True

    def close(self) -> None:
        """Remove them."""
        self._stack.close()

    @staticmethod
    def _ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True)
