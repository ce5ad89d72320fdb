"""Seeds that have failed: a line of a file for each, which a campaign adds and every test run replays."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from .run import Outcome

FILE: Final = Path(__file__).parent / "regressions.txt"
_TEXT_MAX: Final = 120
"""Characters of what went wrong: a line, not the story."""


def known(file: Path = FILE) -> list[tuple[int, int | None]]:
    """The seed of each line, and the number of nodes if it says one."""
    fields = [line.partition("#")[0].split() for line in file.read_text().splitlines()]
    return [(int(seed), int(rest[0]) if rest else None) for seed, *rest in filter(None, fields)]


def add(outcome: Outcome, file: Path = FILE) -> bool:
    """Add a seed that has failed. False if it is there already."""
    if (outcome.seed, outcome.nodes) in known(file):
        return False
    seed = f"{outcome.seed} {outcome.nodes}" if outcome.nodes else f"{outcome.seed}"
    what = outcome.what.splitlines()[0][:_TEXT_MAX]
    begun = "" if file.read_text().endswith("\n") else "\n"  # somebody's editor has left the last line open
    with file.open("a") as lines:
        lines.write(f"{begun}{seed:<7} # {what}\n")
    return True
