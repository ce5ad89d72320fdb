"""Which node owns which page of a region: asked of the directory, through this host's node."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import dsm
from dsm import client, wire
from dsm.errors import ProtocolError


class Owners(NamedTuple):
    """``ids``: the node of each element, 0 for none; ``names``: the nodes by id."""

    ids: NDArray[np.uint16]
    names: dict[int, str]


def of_pixels(region: dsm.Region, offset: int, shape: tuple[int, ...]) -> Owners:
    """The owner of each number (8 bytes) of an array of ``shape`` that begins ``offset`` bytes into the region."""
    cluster = _ask(wire.Query(0, "status", 0, 0, 0))["cluster"]
    number = next(known["id"] for known in cluster["regions"] if known["name"] == region.name)
    pages = (offset + 8 * np.arange(math.prod(shape))) // region.page_size
    first = int(pages[0])
    owners = _of_pages(number, first, int(pages[-1]) + 1)
    return Owners(owners[pages - first].reshape(shape), {node["id"]: node["name"] for node in cluster["nodes"]})


def _of_pages(region: int, start: int, stop: int) -> NDArray[np.uint16]:
    found = b""
    while start < stop:  # an answer may be cut off to fit a message
        part: bytes = _ask(wire.Query(0, "owners", region, start, stop - start))["owners"]
        if not part:
            raise ProtocolError(f"the directory names no owner of pages {start} to {stop}")
        found += part
        start += len(part) // 2
    return np.frombuffer(found, "<u2")


def _ask(question: wire.Query) -> dict[str, Any]:
    with client.borrowed() as connection:
        return connection.ask(question, wire.Answer).value
