"""Writes the graph of examples/pagerank.py, on a Debian: ``python -m docs.debian_packages``.

A package a line, then the packages that it depends on or recommends, any alternative counting as one; only packages
that apt knows itself, so that virtual ones are left out.
"""

from __future__ import annotations

import lzma
import re
import subprocess
from pathlib import Path
from typing import Final

OUTPUT: Final = Path(__file__).resolve().parents[1] / "examples" / "debian-packages.txt.xz"
_NAME: Final = re.compile(r"^Package: (\S+)$", re.MULTILINE)
_RELATIONS: Final = re.compile(r"^(?:Pre-Depends|Depends|Recommends): (.+)$", re.MULTILINE)
_OTHER: Final = re.compile(r"(?:^|[,|]) *([^ :,|]+)")


def main() -> None:
    """Ask apt, write the file."""
    described = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, check=True, text=True).stdout
    others: dict[str, set[str]] = {}
    for package in described.split("\n\n"):
        if found := _NAME.search(package):
            others[found[1]] = {name for line in _RELATIONS.findall(package) for name in _OTHER.findall(line)}
    lines = [" ".join([name, *sorted((others[name] & others.keys()) - {name})]) for name in sorted(others)]
    OUTPUT.write_bytes(lzma.compress("\n".join([*lines, ""]).encode(), preset=9 | lzma.PRESET_EXTREME))


if __name__ == "__main__":
    main()
