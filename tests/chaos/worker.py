"""What runs while things go wrong: ``python worker.py ROW RECORD``, with DSM_NODE in the environment.

It adds to numbers in a row of its own, and to two that all share, under a lock; looks at the rows of others, which
never go back; and holds whatever it reads against what it knows. It says in a file, of which nothing is lost when it is
killed, what it was about to do and what it has done.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import struct
import sys
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

import dsm
from dsm import errors

ROWS = 512
WORDS = 512
SHARED = 0
"""The row of the numbers that all share."""

RECORD = struct.Struct("<QQQQ")
"""Additions to the own row that were begun and that are done; the same of the shared numbers."""

UNSOUND = 70
"""The exit code of one that has found something wrong."""


class Unsound(Exception):
    """Memory has not what it must have."""


class Worker:
    """``row`` is its own; ``record`` the file."""

    def __init__(self, row: int, record: Path) -> None:
        self._home = record.parent
        with record.open("w+b") as file:
            file.truncate(mmap.PAGESIZE)
            self._record = mmap.mmap(file.fileno(), mmap.PAGESIZE)
        self._counts = [0, 0, 0, 0]
        self._row = row
        self._seen: dict[int, int] = {}
        self._chance = random.Random(row)
        self._region = dsm.attach("chaos", shape=(ROWS, WORDS), dtype="i8")
        self._array: npt.NDArray[np.int64] = self._region.array
        self._lock = dsm.Lock("chaos")

    def _note(self, what: int) -> None:
        self._counts[what] += 1
        RECORD.pack_into(self._record, 0, *self._counts)

    def _own(self) -> None:
        done = self._counts[1]
        place = done % WORDS
        before = int(self._array[self._row, place])
        if before != done // WORDS:
            raise Unsound(f"row {self._row}, place {place} is {before}, not {done // WORDS}")
        self._note(0)
        self._array[self._row, place] = before + 1
        self._note(1)

    def _shared(self) -> None:
        try:
            self._lock.acquire()
        except errors.OwnerDied:  # in the middle of it, perhaps
            self._array[SHARED, 1] = self._array[SHARED, 0]
        try:
            first, second = self._array[SHARED, :2].tolist()
            if first != second:
                raise Unsound(f"the shared numbers are {first} and {second}")
            self._note(2)
            self._array[SHARED, 0] = first + 1
            self._array[SHARED, 1] = first + 1
            self._note(3)
        finally:
            self._lock.release()

    def _has_begun_anew(self, row: int) -> bool:
        """Was it lost, and made zeros? That is told a moment later."""
        void = self._home / "void"
        until = time.monotonic() + 10
        while time.monotonic() < until:
            if void.exists() and str(row) in void.read_text().split():
                return True
            time.sleep(0.1)
        return False

    def _look(self) -> None:
        row = self._chance.randrange(1, ROWS)
        total = int(self._array[row].sum())
        if total < self._seen.get(row, 0) and not self._has_begun_anew(row):
            raise Unsound(f"row {row} has gone back from {self._seen[row]} to {total}")
        self._seen[row] = total

    def _fetch(self) -> None:
        start = self._chance.randrange(ROWS - 8) * WORDS * 8
        with contextlib.suppress(errors.PageLost):  # that is for the end to judge
            self._region.prefetch(start, start + 8 * WORDS * 8)

    def run(self) -> None:
        """Until it is killed."""
        actions = (self._own, self._own, self._shared, self._look, self._fetch)
        while True:
            try:
                self._chance.choice(actions)()
            except errors.DirectoryUnreachable:  # it is being restarted, or cut off
                continue


def main() -> None:
    """See above."""
    worker = Worker(int(sys.argv[1]), Path(sys.argv[2]))
    os.write(1, b"ready\n")
    try:
        worker.run()
    except Unsound as error:
        print(f"UNSOUND: {error}", file=sys.stderr, flush=True)
        os._exit(UNSOUND)


if __name__ == "__main__":
    main()
