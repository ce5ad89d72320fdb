"""Counts and latencies of one region on this node: no allocation and no division when a fault is counted."""

from __future__ import annotations

from typing import Any, Final

_STEPS: Final = 8
"""Buckets a power of two: a quantile is off by at most one part in eight."""

KINDS: Final = ("read", "write", "upgrade", "local")
"""Absent page read; absent page written; shared page written; settled on this node without the directory."""


class Histogram:
    """Latencies in nanoseconds, in buckets of an eighth of a power of two."""

    __slots__ = ("_buckets", "count")

    def __init__(self) -> None:
        self._buckets = [0] * (_STEPS * 40)
        self.count = 0

    def add(self, nanoseconds: int) -> None:
        """Count one."""
        shift = nanoseconds.bit_length() - 4
        if shift > 0:
            self._buckets[min(_STEPS * shift + (nanoseconds >> shift), _STEPS * 40 - 1)] += 1
        else:
            self._buckets[max(nanoseconds, 0)] += 1
        self.count += 1

    def quantile_us(self, q: float) -> float:
        """The latency, in microseconds, that a fraction ``q`` of all stays below; 0 if nothing was counted."""
        wanted = q * self.count
        for bucket, count in enumerate(self._buckets):
            wanted -= count
            if count and wanted <= 0:
                return _upper_ns(bucket) / 1000
        return 0.0


def _upper_ns(bucket: int) -> int:
    if bucket < 2 * _STEPS:
        return bucket + 1
    shift = bucket // _STEPS - 1
    return (bucket - _STEPS * shift + 1) << shift


class Statistics:
    """What happened to one region on this node since it was first attached here."""

    __slots__ = ("faults", "invalidations", "pages_ahead", "pages_in", "pages_out")

    def __init__(self) -> None:
        self.faults = {kind: Histogram() for kind in KINDS}
        self.pages_in = 0
        self.pages_out = 0
        self.pages_ahead = 0
        self.invalidations = 0

    def report(self, page_size: int) -> dict[str, Any]:
        """As :meth:`dsm.Region.stats` documents it."""
        return {
            "faults": {
                kind: {
                    "count": histogram.count,
                    "p50_us": round(histogram.quantile_us(0.5), 1),
                    "p99_us": round(histogram.quantile_us(0.99), 1),
                }
                for kind, histogram in self.faults.items()
            },
            "pages_in": self.pages_in,
            "pages_out": self.pages_out,
            "bytes_in": self.pages_in * page_size,
            "bytes_out": self.pages_out * page_size,
            "pages_asked_ahead": self.pages_ahead,
            "invalidations": self.invalidations,
        }
