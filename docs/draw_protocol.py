"""Write the generated parts of protocol.md anew from the transition tables: ``python -m docs.draw_protocol``.

A test compares what stands there with what would be written. The diagrams are Mermaid, which most viewers of Markdown
draw.
"""

from __future__ import annotations

import inspect
import re
from collections import defaultdict
from pathlib import Path
from typing import Final

from directory.holdings import STATE_NAMES
from directory.rules import A_COPY, NOTHING, RULES, THE_ONLY
from dsm import wire
from dsm.story import OPERATIONS
from nodes import pages

DOCUMENT: Final = Path(__file__).with_name("protocol.md")

_HAS: Final = {NOTHING: "nothing", A_COPY: "a copy", THE_ONLY: "the only copy"}

_MESSAGES: Final = (
    wire.Request, wire.Hurry, wire.Done, wire.GaveUp, wire.Grant, wire.Fetch, wire.Invalidate, wire.Refuse, wire.Orphan,
    wire.Lost, wire.Restore, wire.Data, wire.Ack,
)  # fmt: skip
"""Those about pages, in the order in which a fault meets them."""


def directory_diagram() -> str:
    """States of a page at the directory."""
    edges: dict[tuple[str, str], list[str]] = defaultdict(list)
    for (state, op, has), (action, after) in RULES.items():
        if state != after:
            asker = {NOTHING: "a node without it", A_COPY: "a sharer", THE_ONLY: "the only sharer"}[has]
            edges[STATE_NAMES[state], STATE_NAMES[after]].append(f"{OPERATIONS[op]} by {asker} / {action.value}")
    lines = ["    [*] --> untouched"]
    lines += [f"    {a} --> {b} : {'<br>'.join(labels)}" for (a, b), labels in sorted(edges.items())]
    lines += [f"    {name} --> lost : its only holder is gone" for name in ("shared", "exclusive")]
    return _mermaid(lines)


def directory_table() -> str:
    """All rules of the directory."""
    rows = [
        f"| {STATE_NAMES[state]} | {OPERATIONS[op]} | {_HAS[has]} | {action.value} | {STATE_NAMES[after]} |"
        for (state, op, has), (action, after) in sorted(RULES.items())
    ]
    return "\n".join(
        ["| page is | request to | requester has | what happens | page is then |", "|---|---|---|---|---|", *rows]
    )


def node_diagram() -> str:
    """States of a page at a node."""
    edges: dict[tuple[int, int], list[str]] = defaultdict(list)
    for rule in pages.RULES:
        for before, after in rule.next.items():
            if before != after:
                edges[before, after].append(rule.name)
    lines = [f'    state "{pages.name(state)}" as s{state}' for state in pages.STATES]
    lines += ["    [*] --> s0"]
    lines += [f"    s{before} --> s{after} : {'<br>'.join(names)}" for (before, after), names in sorted(edges.items())]
    return _mermaid(lines)


def messages() -> str:
    """The messages about pages, with their fields and the first sentences of what they say of themselves."""
    rows = [
        f"| `{kind.__name__}` | {', '.join(f'`{f}`' for f in kind._fields)} | {_about(kind)} |" for kind in _MESSAGES
    ]
    return "\n".join(["| message | fields | |", "|---|---|---|", *rows])


def _about(kind: type) -> str:
    return re.sub(r"``(.*?)``", r"`\1`", " ".join(inspect.cleandoc(kind.__doc__ or "").split()))


def _mermaid(lines: list[str]) -> str:
    return "\n".join(["```mermaid", "stateDiagram-v2", *lines, "```"])


PARTS: Final = {
    "directory diagram": directory_diagram,
    "directory table": directory_table,
    "node diagram": node_diagram,
    "messages": messages,
}


def redrawn(text: str) -> str:
    """The document with its generated parts as they should be."""
    for name, draw in PARTS.items():
        begin, end = f"<!-- generated: {name} -->\n", "\n<!-- end -->"
        before, found, rest = text.partition(begin)
        _, ended, after = rest.partition(end)
        if not found or not ended:
            raise ValueError(f"{DOCUMENT.name} has no part {name!r}")
        text = before + begin + draw() + end + after
    return text


if __name__ == "__main__":
    DOCUMENT.write_text(redrawn(DOCUMENT.read_text()))
