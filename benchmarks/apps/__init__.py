"""Whole programs: each of examples/ on private memory, on dsm with 1 to 4 nodes, and on what else one would pick."""

from benchmarks.apps.suite import measure

__all__ = ["measure"]
