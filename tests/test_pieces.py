"""An explicit prefetch in pieces: nothing is left out, nothing comes twice, never too many are open."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodes.pieces import Pieces


@given(st.integers(0, 2000), st.integers(0, 2000), st.integers(1, 300), st.integers(1, 5), st.data())
def test_all_pages_come_once_in_order(start: int, stop: int, step: int, open_max: int, data: st.DataObject) -> None:
    pieces = Pieces(start, stop, step, open_max)
    taken: list[tuple[int, int]] = []
    number = 0
    while not pieces.over:
        if number and data.draw(st.booleans()):
            pieces.came()
            number -= 1
        elif piece := pieces.take():
            taken.append(piece)
            number += 1
        else:
            pieces.came()
            number -= 1
        assert 0 <= number <= open_max
    assert [page for a, b in taken for page in range(a, b)] == list(range(start, stop))
    assert all(a // step == (b - 1) // step for a, b in taken)
    assert all(b % step == 0 for (_, b), _ in pairwise(taken))


def test_nothing_is_over_at_once() -> None:
    assert Pieces(5, 5, 4, 2).over
    assert Pieces(5, 5, 4, 2).take() is None


def test_what_nobody_took_cannot_come() -> None:
    with pytest.raises(AssertionError, match="nobody had taken"):
        Pieces(0, 9, 4, 2).came()
