"""Points of release: what was written before one has to be on another node, too, in regions with replicas.

(Release consistency: Gharachorloo et al., "Memory consistency and event ordering in scalable shared-memory
multiprocessors", ISCA 1990. Here it says what outlives a node, not what is seen: that is sequential.)
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from dsm import wire
from dsm.errors import DirectoryUnreachable

if TYPE_CHECKING:
    from dsm.forking import Mapping

_mappings: weakref.WeakSet[Mapping] = weakref.WeakSet()


def add(mapping: Mapping) -> None:
    """A region with replicas is mapped in this process."""
    _mappings.add(mapping)


def mirror(mapping: Mapping) -> None:
    """Return when what this node has of a region is on another node, too."""
    if not mapping.options.get("replicas"):
        return
    try:
        mapping.connection.wait(wire.Mirror(0, 0))
    except DirectoryUnreachable:  # it was restarted, and has forgotten the question
        mapping.connection.wait(wire.Mirror(0, 0))


def mirror_all() -> None:
    """The same of all regions with replicas that this process has mapped."""
    if _mappings:
        by_region = {mapping.region: mapping for mapping in list(_mappings) if not mapping.connection.closed}
        for mapping in by_region.values():
            mirror(mapping)
