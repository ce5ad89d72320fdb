"""Redis as an alternative: a server and a client on this host.

``python -m benchmarks.alternatives.redis_values FOLDER``
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks.alternatives.alternative import (
    ARRAY,
    BLOCK,
    OVERWRITE,
    READ_AGAIN,
    REMOTE_READ,
    SCAN,
    UPGRADE,
    VALUE,
    VALUES,
    Alternative,
    Latency,
    Rate,
)
from benchmarks.alternatives.client import Client, Operations, each_us, obey, program, rate_gb_s
from benchmarks.child import python

if TYPE_CHECKING:
    import redis

SERVER: Final = "redis-server"
STREAM: Final = "redis: stream of 1 MiB values"
START_S: Final = 10.0
"""How long a server may take to answer: it takes some milliseconds."""


def start(folder: Path) -> Client:
    """A client, which starts a server of its own in ``folder``."""
    return Client(python(__name__, str(folder)))


def _begin(stack: ExitStack) -> tuple[str, Operations]:
    server = program(SERVER)
    import hiredis  # noqa: F401 redis-py uses it where it is installed
    import numpy as np
    import redis
    from redis._parsers import _RESP3Parser

    port = _serve(stack, server)

    def client(**options: Any) -> redis.Redis:
        pool = redis.ConnectionPool(host="127.0.0.1", port=port, **options)
        return stack.enter_context(redis.Redis(connection_pool=pool))

    fast, plain = client(), client(parser_class=_RESP3Parser)
    _until_it_answers(fast)
    value, block = os.urandom(VALUE), np.arange(BLOCK // 8, dtype="f8")
    for number in range(VALUES):
        plain.set(number, value)
    for number in range(ARRAY // BLOCK):
        plain.set(f"block {number}", block.tobytes())

    def get(client: redis.Redis, count: int) -> list[float]:
        took = each_us(count, lambda number: client.get(number % VALUES))
        assert client.get(0) == value
        return took

    def stream(client: redis.Redis) -> None:
        for number in range(ARRAY // BLOCK):
            assert np.frombuffer(client.get(f"block {number}")).sum() == total

    def overwrite() -> None:
        for number in range(ARRAY // BLOCK):
            plain.set(f"block {number}", block.data)

    total = block.sum()
    return f"redis {fast.info('server')['redis_version']}, redis-py {redis.__version__}", {
        "get": lambda count: get(plain, count),
        "get, hiredis": lambda count: get(fast, count),
        "set": lambda count: each_us(count, lambda number: plain.set(number % VALUES, value)),
        "stream": lambda: rate_gb_s(ARRAY, lambda: stream(plain)),
        "stream, hiredis": lambda: rate_gb_s(ARRAY, lambda: stream(fast)),
        "overwrite": lambda: rate_gb_s(ARRAY, overwrite),
    }


def _serve(stack: ExitStack, server: str) -> int:
    """Start a server that keeps nothing on disk; its port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    command = [server, "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", sys.argv[1]]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    stack.callback(process.wait)
    stack.callback(process.terminate)
    return port


def _until_it_answers(client: redis.Redis) -> None:
    import redis

    deadline = time.monotonic() + START_S
    while True:
        try:
            client.ping()
            return
        except redis.ConnectionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


ALTERNATIVE: Final = Alternative(
    name="redis",
    install=f"apt-get install {SERVER}; pip install 'redis[hiredis]'",
    about="""\
**Redis** (redis-server and redis-py over TCP). GET of a 4 KiB value stands beside a remote read and beside reading
that page again, SET beside an upgrade; an array kept as values of 1 MiB, fetched one after the other (pipelines and
MGET were no faster) and summed, beside the scan; SET of the same values beside overwriting an array. Each with redis-
py's own parser, GET also with its C parser (hiredis). A GET is a single round trip to one server, and faster than a
remote fault, which takes three hops; but it is paid at every access, and what comes is a copy that nobody tells when
the value changes. Redis also does what dsm does not: values on disk, expiry, replicas, clients in every language.""",
    measured=(
        Latency("get", "redis: GET 4 KiB", (REMOTE_READ, READ_AGAIN)),
        Latency("get, hiredis", "redis, hiredis: GET 4 KiB", (REMOTE_READ, READ_AGAIN)),
        Latency("set", "redis: SET 4 KiB", (UPGRADE,)),
        Rate("stream", STREAM, (SCAN,)),
        Rate("stream, hiredis", "redis, hiredis: stream of 1 MiB values", (SCAN,)),
        Rate("overwrite", "redis: SET of 1 MiB values", (OVERWRITE,)),
    ),
    start=start,
)

if __name__ == "__main__":
    obey(_begin)
