"""What a node counts, for :mod:`dsm.metrics`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from dsm.metrics import Figure

if TYPE_CHECKING:
    from nodes.agent import Agent


def figures(agent: Agent) -> Iterator[Figure]:
    """Of an agent, now."""
    yield Figure(
        "dsm_node_epoch", "The number of this node in its cluster, new with each time it joins", agent.links.node
    )
    yield Figure("dsm_node_lease_seconds", "What is left of its lease", agent.lease_left_s(time.monotonic()))
    yield Figure("dsm_node_rejected", "Messages and connections refused", agent.rejected + agent.links.rejected, True)
    yield Figure("dsm_node_late", "Answers to requests that were over", agent.pager.machine.late, True)
    for region in list(agent.pager.regions.values()):
        stats, labels = region.stats, {"region": region.name}
        for kind, histogram in list(stats.faults.items()):
            text = "Page faults that were served, by what they were"
            yield Figure("dsm_node_faults", text, histogram.count, True, labels | {"kind": kind})
            for quantile in (0.5, 0.99):
                which = labels | {"kind": kind, "quantile": str(quantile)}
                seconds = histogram.quantile_us(quantile) / 1e6
                yield Figure("dsm_node_fault_seconds", "How long they took", seconds, False, which)
        size = region.page_size
        yield Figure("dsm_node_received_bytes", "Page data from other nodes", stats.pages_in * size, True, labels)
        yield Figure("dsm_node_sent_bytes", "Page data to other nodes", stats.pages_out * size, True, labels)
        yield Figure("dsm_node_pages_ahead", "Pages asked for by read-ahead", stats.pages_ahead, True, labels)
        yield Figure("dsm_node_invalidations", "Copies dropped for others", stats.invalidations, True, labels)
