"""What a directory counts, for :mod:`dsm.metrics`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dsm.metrics import Figure


def figures(status: dict[str, Any]) -> Iterator[Figure]:
    """Of a status of the cluster."""
    yield Figure("dsm_directory_transactions", "Transactions on pages", status["counters"]["transactions"], True)
    yield Figure("dsm_directory_rejected", "Messages and connections refused", status["counters"]["rejected"], True)
    yield Figure("dsm_directory_nodes", "Nodes that are members", len(status["nodes"]))
    yield Figure("dsm_directory_nodes_away", "Nodes that are to come back after a restart", len(status["away"]))
    for node in status["nodes"]:
        labels = {"node": node["name"], "epoch": str(node["id"])}
        yield Figure("dsm_directory_lease_seconds", "What is left of a node's lease", node["lease_s"], False, labels)
        yield Figure("dsm_directory_applications", "Applications of a node", node["applications"], False, labels)
    for region in status["regions"]:
        for state, pages in region["pages"].items():
            labels = {"region": region["name"], "state": state}
            yield Figure("dsm_directory_pages", "Pages of a region that were touched", pages, False, labels)
