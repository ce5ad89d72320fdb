"""The one place where the fuzzing looks inside of the machines: how much they keep, and whether anything changed."""

from __future__ import annotations

import pickle

from directory.cluster import Cluster
from directory.locks import Lock
from directory.machine import PageMachine
from nodes.machine import NodeMachine


def pages_state(machine: PageMachine) -> bytes:
    """Everything that the directory knows of pages, to compare."""
    regions = {
        number: (list(region.table.touched_runs()), [(i, e.active, e.queue) for i, e in sorted(region.extents.items())])
        for number, region in machine._regions.items()
    }
    return pickle.dumps((regions, list(machine.holdings._numbers.items())))


def entries_of(machine: PageMachine, node: int) -> int:
    """The transactions and queued requests of a node."""
    extents = [extent for region in machine._regions.values() for extent in region.extents.values()]
    of = [[entry.node for entry in extent.active] + [entry.node for entry in extent.queue] for extent in extents]
    return sum(nodes.count(node) for nodes in of)


def rejected(directory: Cluster) -> int:
    """What a directory has refused."""
    return directory._rejected + directory._pages.rejected + directory._sync.rejected


def sync_entries(directory: Cluster, node: int) -> int:
    """Locks and waiting calls of a node, counted one by one."""
    sync = directory._sync
    waiting = sync._waiting
    locks = sum(isinstance(one, Lock) and one.node == node for one in sync._named.values())
    assert locks + len(waiting.of_node(node)) == waiting.load[node]
    assert sum(one.calls for one in sync._named.values()) == len(waiting)
    return waiting.load[node]


def node_number(directory: Cluster, identity: bytes) -> int:
    """The number of the member on a connection; 0 if it is a stranger."""
    node = directory._by_identity.get(identity)
    return node.number if node else 0


def open_generations(machine: NodeMachine) -> set[int]:
    """The numbers of the requests of a node that are open."""
    return {generation for region in machine._regions.values() for generation in region.asks}


def node_state(machine: NodeMachine) -> bytes:
    """Everything that a node knows of pages, to compare."""
    regions = {
        number: (
            list(region.table.touched_runs()),
            sorted(
                (g, ask.left, sorted((f, p.owed, p.acks, p.acked) for f, p in ask.parts.items()))
                for g, ask in region.asks.items()
            ),
            len(region.waiters),
            len(region.deferred),
            len(region.prefetches),
        )
        for number, region in machine._regions.items()
    }
    return pickle.dumps(regions)


def queued(machine: NodeMachine) -> int:
    """How many entries a node keeps for requests, their parts, waiters and deferred messages."""
    return sum(
        len(region.waiters) + len(region.deferred) + len(region.asks) + sum(len(a.parts) for a in region.asks.values())
        for region in machine._regions.values()
    )
