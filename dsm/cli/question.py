"""One question of a command to a node agent or to a directory."""

from __future__ import annotations

import select
from pathlib import Path
from typing import Any

from dsm import errors, local, wire
from dsm.constants import CONNECT_TIMEOUT_S


def ask_directory(address: str, question: wire.Query, key: Path | None) -> dict[str, Any]:
    """What the directory at ``address`` answers, whose cluster has the ``key``. Raises the error it answers with."""
    from dsm import asking

    seal = None
    if key is not None:
        from dsm.seal import Seal

        seal = Seal(key)
    return asking.ask(address, question, CONNECT_TIMEOUT_S, seal)


def cluster_status(path: Path) -> dict[str, Any]:
    """What the directory of the node agent at ``path`` knows."""
    cluster: dict[str, Any] = ask_node(path, wire.Query(0, "status", 0, 0, 0))["cluster"]
    return cluster


def ask_node(path: Path, question: wire.Query) -> dict[str, Any]:
    """What the node agent at ``path`` answers. Raises the error it answers with."""
    value: dict[str, Any] = tell_node(path, question, wire.Answer).value
    return value


def tell_node(path: Path, message: wire.Message, kind: type[Any]) -> Any:
    """The answer of the node agent at ``path``, of that kind. Raises the error it answers with."""
    with local.connect(path, CONNECT_TIMEOUT_S) as sock:
        local.send(sock, message)
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        if not poll.poll(CONNECT_TIMEOUT_S * 1000):
            raise errors.OperationTimeout(f"the node agent at {path} did not answer within {CONNECT_TIMEOUT_S:g} s")
        answer, fds = local.receive(sock)
    local.close_all(fds)
    if isinstance(answer, wire.Failure):
        raise errors.from_wire(answer.error, answer.text)
    if not isinstance(answer, kind):
        raise errors.NodeUnreachable(f"the node agent at {path} closed the connection without an answer")
    return answer
