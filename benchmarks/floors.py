"""What ZeroMQ costs without dsm: the floors that its latencies stand beside. ``python -m benchmarks.floors ROLE
PORT...``

``round trip``: 4 KiB from a DEALER to a ROUTER and back. ``three hops``: the way of a remote fault through bare
sockets (DEALER, ROUTER, DEALER, then PUSH, PULL with 4 KiB), in three processes. ``three hops, TCP``: the same over
bare TCP sockets, which dsm uses. All of them block until something comes. A stream: frames of 64 KiB from another
process into a memfd.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, Final

import zmq

PAGE: Final = 4096
FRAME: Final = 64 << 10
"""What streams best through pyzmq."""

_REQUEST: Final = bytes(20)  # as long as a request for a page
_OWNER: Final = b"owner"
_REQUESTER: Final = b"r"
_IP: Final = "127.0.0.1"
_HOST: Final = f"tcp://{_IP}"


def _echo() -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        _tell(router.bind_to_random_port(_HOST))
        while True:
            router.send_multipart(router.recv_multipart())


def _switch() -> None:
    """Pass every request on to the owner, as a directory does."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        _tell(router.bind_to_random_port(_HOST))
        owner = b""
        while True:
            sender, message = router.recv_multipart()
            if message == _OWNER:
                owner = sender
                continue
            router.send(owner, zmq.SNDMORE)
            router.send(message)


def _owner(switch: str, requester: str) -> None:
    """Answer every request that the switch passes on with a page, straight to the requester."""
    payload = bytes(PAGE)
    with zmq.Context() as context, context.socket(zmq.DEALER) as requests, context.socket(zmq.PUSH) as answers:
        requests.connect(f"{_HOST}:{switch}")
        answers.connect(f"{_HOST}:{requester}")
        requests.send(_OWNER)
        _tell(0)
        while True:
            message = requests.recv()
            answers.send(message, zmq.SNDMORE)
            answers.send(payload)


def _tcp_switch() -> None:
    """As ``_switch``: the first byte on a connection says whose it is."""
    with socket.create_server((_IP, 0)) as listener:
        _tell(listener.getsockname()[1])
        ends = {}
        for _ in range(2):
            end = _tuned(listener.accept()[0])
            ends[end.recv(1)] = end
        while message := ends[_REQUESTER].recv(PAGE):
            ends[_OWNER[:1]].sendall(message)


def _tcp_owner(switch: str, requester: str) -> None:
    """As ``_owner``."""
    payload = bytes(PAGE)
    with _tcp(switch, _OWNER[:1]) as requests, _tcp(requester, b"") as answers:
        _tell(0)
        while message := requests.recv(PAGE):
            answers.sendall(message + payload)


def _sender(port: str) -> None:
    """Send so many frames as each line says."""
    payload = os.urandom(FRAME)
    with zmq.Context() as context, context.socket(zmq.PUSH) as push:
        push.connect(f"{_HOST}:{port}")
        _tell(0)
        for line in sys.stdin:
            for _ in range(int(line)):
                push.send(payload)


def _tcp(port: str | int, name: bytes) -> socket.socket:
    end = _tuned(socket.create_connection((_IP, int(port))))
    end.sendall(name)
    return end


def _tuned(end: socket.socket) -> socket.socket:
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return end


def _tell(port: int) -> None:
    print(json.dumps(port), flush=True)


class Floors:
    """The other processes of the floors; each method but ``close`` gives nanoseconds of each of n."""

    def __init__(self) -> None:
        self._children: list[subprocess.Popen[str]] = []
        self._context = zmq.Context()
        self._echo = self._context.socket(zmq.DEALER)
        self._echo.connect(f"{_HOST}:{self._start('echo')}")
        self._requests = self._context.socket(zmq.DEALER)
        switch = self._start("switch")
        self._requests.connect(f"{_HOST}:{switch}")
        self._answers = self._context.socket(zmq.PULL)
        self._start("owner", str(switch), str(self._answers.bind_to_random_port(_HOST)))
        with socket.create_server((_IP, 0)) as listener:
            tcp_switch = self._start("tcp_switch")
            self._tcp_requests = _tcp(tcp_switch, _REQUESTER)
            self._start("tcp_owner", str(tcp_switch), str(listener.getsockname()[1]))
            self._tcp_answers = _tuned(listener.accept()[0])
        time.sleep(0.2)  # until the owner's name has reached the switch; no measurement has begun

    def _start(self, *arguments: str) -> Any:
        command = [sys.executable, "-m", "benchmarks.floors", *arguments]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self._children.append(child)
        assert child.stdout is not None
        return json.loads(child.stdout.readline())

    def round_trips(self, count: int) -> list[int]:
        """A page there and back."""
        payload = bytes(PAGE)
        return _time(count, lambda: self._echo.send(payload), self._echo.recv)

    def three_hops(self, count: int) -> list[int]:
        """A request by way of the switch to the owner, a page back."""
        return _time(count, lambda: self._requests.send(_REQUEST), self._answers.recv_multipart)

    def three_hops_tcp(self, count: int) -> list[int]:
        """The same without ZeroMQ."""

        def answered() -> None:
            left = len(_REQUEST) + PAGE
            while left:
                left -= len(self._tcp_answers.recv(left))

        return _time(count, lambda: self._tcp_requests.sendall(_REQUEST), answered)

    def close(self) -> None:
        """End the other processes."""
        self._tcp_requests.close()
        self._tcp_answers.close()
        for child in self._children:
            with child:
                child.kill()
        self._context.destroy(linger=0)


class Stream:
    """``size`` bytes, in frames of 64 KiB through pyzmq, from another process into a memfd of this one."""

    def __init__(self, size: int) -> None:
        self._frames = size // FRAME
        self._context = zmq.Context()
        self._pull = self._context.socket(zmq.PULL)
        port = self._pull.bind_to_random_port(_HOST)
        command = [sys.executable, "-m", "benchmarks.floors", "sender", str(port)]
        self._sender = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._sender.stdin is not None and self._sender.stdout is not None
        self._commands = self._sender.stdin
        self._sender.stdout.readline()
        self._ask(1)  # the connection is there before anything is measured
        self._pull.recv()

    def _ask(self, frames: int) -> None:
        self._commands.write(f"{frames}\n")
        self._commands.flush()

    def seconds(self) -> float:
        """Until all of it has come into new memory."""
        memfd = os.memfd_create("benchmark", os.MFD_CLOEXEC)
        try:
            os.ftruncate(memfd, self._frames * FRAME)
            self._ask(self._frames)
            start = time.perf_counter()
            for number in range(self._frames):
                os.pwrite(memfd, self._pull.recv(copy=False).buffer, number * FRAME)
            return time.perf_counter() - start
        finally:
            os.close(memfd)

    def close(self) -> None:
        """End the sender."""
        with self._sender:
            self._sender.kill()
        self._context.destroy(linger=0)


def _time(count: int, ask: Callable[[], object], answered: Callable[[], object]) -> list[int]:
    now = time.perf_counter_ns
    took = []
    for _ in range(count):
        start = now()
        ask()
        answered()
        took.append(now() - start)
    return took


if __name__ == "__main__":
    role, *ports = sys.argv[1:]
    roles: dict[str, Any] = {
        "echo": _echo, "switch": _switch, "owner": _owner, "tcp_switch": _tcp_switch, "tcp_owner": _tcp_owner,
        "sender": _sender,
    }  # fmt: skip
    roles[role](*ports)
