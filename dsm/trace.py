"""What a service did, and when: a record for whoever wants to know where the time of a fault goes.

A service that is to be traced wraps the calls it would make anyway, once, when it starts and when it makes a
connection; one that is not traced makes the same calls unwrapped, so that nothing of this is on its way. Times are
CLOCK_MONOTONIC, which all processes of a host share: the files of several services can be laid side by side.

A file is JSON in the Trace Event Format, which https://ui.perfetto.dev and chrome://tracing show.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from struct import Struct
from time import monotonic_ns
from typing import Any, Final

from dsm.story import Entry, Story

RECORDS: Final = 1 << 18
"""The last ones are kept: some ten thousand faults, and 10 MiB."""
_RECORD: Final = Struct("<QQQIII")  # begin and end (ns), page, region, generation, what

HELP: Final = "Write to this file, at the end, what was done when: https://ui.perfetto.dev shows it."

Around = Callable[[str, Any], Any]
"""Makes of the name of a call and the call itself what is to be called in its place."""


def untraced(what: str, call: Any) -> Any:
    """The call itself."""
    return call


class Trace:
    """The last calls of the service ``name``; nothing is formatted before :meth:`write`."""

    def __init__(self, path: Path, name: str) -> None:
        self._path = path
        self._name = name
        self._calls: list[str] = []
        self._records = bytearray(RECORDS * _RECORD.size)
        self._next = 0

    def around(self, what: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """``call``, of which each beginning and end is recorded as ``what``."""
        number = self._number(what)

        def traced(*arguments: Any) -> Any:
            begin = monotonic_ns()
            try:
                return call(*arguments)
            finally:
                self._add(begin, monotonic_ns(), 0, 0, 0, number)

        return traced

    def follow(self, story: Story) -> Story:
        """Record what happens to pages, too: as ``decided``, with region, page, and generation where it is known."""
        number = self._number("decided")
        keep = story.add

        def add(entry: Entry) -> None:
            now = monotonic_ns()
            self._add(now, now, entry[2], entry[1], getattr(entry[7], "generation", 0), number)
            keep(entry)

        story.add = add
        return story

    def write(self) -> None:
        """Write the file."""
        pid = os.getpid()
        events: list[dict[str, Any]] = [{"name": "process_name", "ph": "M", "pid": pid, "args": {"name": self._name}}]
        for begin, end, page, region, generation, what in self._kept():
            event = {"name": self._calls[what], "ph": "X", "ts": begin / 1000, "dur": (end - begin) / 1000}
            about = {"region": region, "page": page, "generation": generation} if region else {}
            events.append(event | {"pid": pid, "tid": pid, "args": about})
        self._path.write_text(json.dumps({"traceEvents": events}))

    def _number(self, what: str) -> int:
        if what not in self._calls:
            self._calls.append(what)
        return self._calls.index(what)

    def _add(self, *record: int) -> None:
        _RECORD.pack_into(self._records, self._next % RECORDS * _RECORD.size, *record)
        self._next += 1

    def _kept(self) -> Iterator[tuple[int, ...]]:
        for index in range(max(0, self._next - RECORDS), self._next):
            yield _RECORD.unpack_from(self._records, index % RECORDS * _RECORD.size)
