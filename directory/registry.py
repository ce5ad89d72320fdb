"""The regions by name: pure. A region lives until it is unlinked and the last node has detached; one that does not
persist, until the last node has detached.

One that was created and then mapped by nobody (its creator lacked something) is over with the last Close: an attach
that fails changes nothing.
"""

from __future__ import annotations

from typing import Any

from dsm.constants import PAGE_BYTES, REGIONS_MAX
from dsm.errors import InvalidArgument, RegionExists, RegionMismatch, RegionNotFound, RegionTooLarge
from dsm.geometry import check_size
from dsm.wire import MUST_EXIST, MUST_NOT_EXIST, Open


class Region:
    """What the registry knows of one region.

    ``nodes`` are attached, with how often each has opened it and not closed it; ``known`` ever were and may keep pages.
    ``kept``: somebody has mapped it, so that it outlives those who are attached. ``holders``: nodes for which it does,
    though it does not persist.
    """

    __slots__ = ("holders", "kept", "known", "name", "nodes", "number", "options", "page_size", "size", "unlinked")

    def __init__(self, number: int, name: str, size: int, page_size: int, options: dict[str, Any]) -> None:
        self.number = number
        self.name = name
        self.size = size
        self.page_size = page_size
        self.options = options
        self.nodes: dict[int, int] = {}
        self.known: set[int] = set()
        self.holders: set[int] = set()
        self.kept = False
        self.unlinked = False

    @property
    def persists(self) -> bool:
        """Does it outlive its users?"""
        return bool(self.options.get("persist", True))

    @property
    def replicas(self) -> bool:
        """Is what was released in it to outlive the loss of a node?"""
        return bool(self.options.get("replicas", 0))


class Registry:
    """Regions by name and by number."""

    def __init__(self) -> None:
        self.regions: dict[int, Region] = {}
        self._names: dict[str, int] = {}
        self._last = 0

    def open(self, node: int, m: Open) -> tuple[Region, bool]:
        """The region that is meant, with ``node`` attached, and whether it is new. Raises what the caller did wrong."""
        number = self._names.get(m.name)
        if number is None:
            region = self._create(m)
        else:
            region = self.regions[number]
            _check_same(region, m)
        region.nodes[node] = region.nodes.get(node, 0) + 1
        region.known.add(node)
        return region, number is None

    def _create(self, m: Open) -> Region:
        if not m.size:
            raise RegionNotFound(
                f"there is no region {m.name!r}: give a size or a shape, and not create=False, to create it"
            )
        if m.create == MUST_EXIST:
            raise RegionNotFound(
                f"there is no region {m.name!r}, and create=False forbids to create it: leave that out"
            )
        page_size = m.page_size or PAGE_BYTES
        check_size(m.size, page_size)
        _check_options(m.options)
        if len(self.regions) >= REGIONS_MAX:
            raise RegionTooLarge(f"the directory keeps {REGIONS_MAX} regions at most: unlink some")
        self._last += 1
        region = Region(self._last, m.name, m.size, page_size, m.options)
        self.regions[region.number] = region
        self._names[m.name] = region.number
        return region

    def is_attached(self, node: int, number: int) -> bool:
        """Has a node opened a region and not closed it?"""
        region = self.regions.get(number)
        return region is not None and node in region.nodes

    def keep(self, node: int, number: int) -> None:
        """A node that is attached says that the region could be mapped there."""
        if self.is_attached(node, number):
            self.regions[number].kept = True

    def may_hold(self, node: int, number: int, on: bool) -> bool:
        """Is a node attached, or, to let go, a holder?"""
        return self.is_attached(node, number) if on else number in self.regions and node in self.regions[number].holders

    def hold(self, node: int, number: int, on: bool) -> set[int]:
        """A node holds a region, or does no longer. The nodes to tell to forget it, if it is over."""
        region = self.regions[number]
        if on:
            region.holders.add(node)
            return set()
        region.holders.discard(node)
        return self._destroy_if_over(region)

    def close(self, node: int, number: int, opens: int) -> set[int]:
        """A node takes ``opens`` of its opens back. The nodes to tell to forget the region, if it is over."""
        region = self.regions.get(number)
        if region is None or node not in region.nodes:
            return set()
        region.nodes[node] -= opens
        if region.nodes[node] <= 0:
            del region.nodes[node]
        return self._destroy_if_over(region)

    def unlink(self, name: str) -> tuple[int, set[int]]:
        """Free the name. The region's number and the nodes to tell to forget it, if nobody is attached any more."""
        number = self._names.pop(name, None)
        if number is None:
            raise RegionNotFound(f"there is no region {name!r} to unlink")
        region = self.regions[number]
        region.unlinked = True
        return number, self._destroy_if_over(region)

    def forget_node(self, node: int) -> dict[int, set[int]]:
        """A node has left. The regions that are over with it, each with the nodes to tell."""
        over: dict[int, set[int]] = {}
        for region in list(self.regions.values()):
            region.known.discard(node)
            held = node in region.holders
            region.holders.discard(node)
            if region.nodes.pop(node, 0) or held:
                told = self._destroy_if_over(region)
                if region.number not in self.regions:
                    over[region.number] = told
        return over

    def known_to(self, node: int) -> list[int]:
        """The regions of which a node may keep pages."""
        return [region.number for region in self.regions.values() if node in region.known]

    def _destroy_if_over(self, region: Region) -> set[int]:
        outlives = (region.kept and region.persists) or region.holders
        if region.nodes or (outlives and not region.unlinked):
            return set()
        del self.regions[region.number]
        if self._names.get(region.name) == region.number:  # else it was unlinked, and another may have its name by now
            del self._names[region.name]
        return region.known


def _check_options(options: dict[str, Any]) -> None:
    """Whoever attaches later has to rely on these; other options are for later releases."""
    shape, dtype = options.get("shape", []), options.get("dtype", "")
    if type(options.get("persist", True)) is not bool:
        raise InvalidArgument(f"persist is true or false, not {options['persist']!r}")
    if options.get("replicas", 0) not in (0, 1) or type(options.get("replicas", 0)) is not int:
        raise InvalidArgument(f"replicas is 0 or 1, not {options['replicas']!r}")
    if type(shape) is not list or not all(type(side) is int and side >= 0 for side in shape) or type(dtype) is not str:
        raise InvalidArgument(f"a shape is a list of whole numbers and a dtype a text, not {shape!r} and {dtype!r}")


def _check_same(region: Region, m: Open) -> None:
    if m.create == MUST_NOT_EXIST:
        raise RegionExists(f"region {region.name!r} exists already: attach without create=True, or unlink it first")
    if "shape" in m.options and "shape" not in region.options:
        raise RegionMismatch(
            f"region {region.name!r} was created by its size alone, {region.size} bytes: attach without shape and "
            "dtype and use region.ndarray(shape, dtype), or unlink it first"
        )
    differs = _difference(region, m)
    if differs:
        what, theirs, ours = differs
        raise RegionMismatch(
            f"region {region.name!r} exists with {what} {theirs}, not {ours}: "
            f"attach with what it has (dsm.attach({region.name!r}) takes it over), or unlink it first"
        )


def _difference(region: Region, m: Open) -> tuple[str, object, object] | None:
    if m.page_size and m.page_size != region.page_size:
        return "page size", region.page_size, m.page_size
    for key in ("shape", "dtype"):
        if key in m.options and m.options[key] != region.options.get(key):
            return key, region.options.get(key), m.options[key]
    if m.size and m.size != region.size:
        return "size", region.size, m.size
    if m.options.get("replicas", int(region.replicas)) != region.replicas:
        return "replicas", int(region.replicas), m.options["replicas"]
    if m.options.get("persist", region.persists) != region.persists:
        return "persist", region.persists, m.options["persist"]
    return None
