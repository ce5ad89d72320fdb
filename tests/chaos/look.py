"""What :mod:`chaos` wants to know of the region from a node, as JSON: ``python look.py ACTION``.

``here``: that it can be attached. ``reset``: make zeros of what is lost; which rows were. ``rows``: all numbers.
"""

from __future__ import annotations

import json
import sys

from worker import ROWS, WORDS

import dsm


def main() -> None:
    """See above."""
    region = dsm.attach("chaos", shape=(ROWS, WORDS), dtype="i8")
    if sys.argv[1] == "here":
        print(json.dumps(True))
    elif sys.argv[1] == "reset":
        size = WORDS * 8
        lost = [row for start, stop, _ in region.lost() for row in range(start // size, stop // size)]
        region.reset()
        print(json.dumps(lost))
    else:
        region.prefetch()
        print(json.dumps(region.array.tolist()))


if __name__ == "__main__":
    main()
