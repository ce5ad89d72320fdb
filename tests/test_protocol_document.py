"""docs/protocol.md shows the transition tables as they are."""

from __future__ import annotations

from directory.holdings import EXCLUSIVE, LOST, SHARED, UNTOUCHED
from directory.rules import A_COPY, NOTHING, RULES, THE_ONLY
from docs.draw_protocol import DOCUMENT, redrawn
from dsm.wire import EVICT, READ, RESET, WRITE
from nodes import pages


def test_the_diagrams_are_those_of_the_tables() -> None:
    text = DOCUMENT.read_text()
    assert text == redrawn(text), "run: python -m docs.draw_protocol"
    assert text.count("stateDiagram-v2") == 2


def test_the_directory_has_a_rule_for_all_that_can_be() -> None:
    can_have = {
        UNTOUCHED: (NOTHING,), SHARED: (NOTHING, A_COPY, THE_ONLY), EXCLUSIVE: (NOTHING, THE_ONLY), LOST: (NOTHING,)
    }  # fmt: skip
    assert set(RULES) == {
        (state, op, has) for state in can_have for op in (READ, WRITE, EVICT, RESET) for has in can_have[state]
    }


def test_every_state_of_a_node_can_be_reached_and_left() -> None:
    edges = {(before, after) for rule in pages.RULES for before, after in rule.next.items() if before != after}
    reached = {pages.ABSENT}
    while found := {after for before, after in edges if before in reached} - reached:
        reached |= found
    assert reached == set(pages.STATES)
    assert set(pages.STATES) == {before for before, _ in edges}
