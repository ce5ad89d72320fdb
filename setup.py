"""Compiles what lies on the way of a fault with mypyc, from the same source that runs uncompiled.

Everything else about the package stands in pyproject.toml. An editable installation runs the source as it is: what is
edited must be what runs. Where there is no C compiler the package is installed uncompiled; ``dsm doctor`` says so.
"""

from __future__ import annotations

import sys

from setuptools import Extension, setup

FAULT_PATH = [
    "directory/cluster.py",
    "directory/holdings.py",
    "directory/machine.py",
    "directory/members.py",
    "directory/rules.py",
    "directory/service.py",
    "directory/shard.py",
    "directory/shard_service.py",
    "dsm/codec.py",
    "dsm/geometry.py",
    "dsm/pagetable.py",
    "dsm/poller.py",
    "dsm/session.py",
    "dsm/story.py",
    "dsm/stream.py",
    "nodes/agent.py",
    "nodes/bulk.py",
    "nodes/effects.py",
    "nodes/links.py",
    "nodes/machine.py",
    "nodes/memory.py",
    "nodes/outgoing.py",
    "nodes/pager.py",
    "nodes/pages.py",
    "nodes/readahead.py",
    "nodes/requests.py",
    "nodes/statistics.py",
]


def extensions() -> list[Extension]:
    """None for an editable installation, nor where only metadata are asked for: mypyc may not be there."""
    if {"editable_wheel", "dist_info", "egg_info"} & set(sys.argv):
        return []
    from mypyc.build import mypycify

    compiled: list[Extension] = mypycify(FAULT_PATH, opt_level="3", debug_level="0")
    for extension in compiled:
        extension.optional = True
    return compiled


if __name__ == "__main__":
    setup(ext_modules=extensions())
