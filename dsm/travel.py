"""How regions and primitives travel in pickles: by name, together with the cluster that the name belongs to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dsm import client, local, wire
from dsm.errors import ClusterMismatch


def reduced(make: Callable[..., Any], *arguments: object) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """For ``__reduce__``: ``make(*arguments)`` makes it again, in a process that uses the same cluster."""
    return _received, (_cluster(), make, arguments)


def _received(cluster: str, make: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    if _cluster() != cluster:
        name = arguments[0]
        raise ClusterMismatch(
            f"{name!r} was pickled in another cluster than that of the node agent at {local.socket_path()}, or its "
            "directory was started again since: use the same `dsm run`, or the right DSM_NODE, on both sides"
        )
    return make(*arguments)


def _cluster() -> str:
    """The name of this process's cluster: random, new for each directory that is started."""
    with client.borrowed() as connection:
        return str(connection.ask(wire.Query(0, "cluster", 0, 0, 0), wire.Answer).value["cluster"])
