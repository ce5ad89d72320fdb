"""The pager carries out all that one step of the machine decided before it begins with anything else."""

from __future__ import annotations

from typing import Any, cast

from dsm import wire
from nodes import effects
from nodes.pager import Pager

GAVE_UP = wire.GaveUp(1, 7, 300, 156)
NEXT_PIECE = wire.Request(1, 8, 300, 212, wire.READ, wire.PREFETCH)


class Recorder:
    """What goes out, in order."""

    def __init__(self) -> None:
        self.messages: list[wire.Message] = []

    def send(self, to: int, message: wire.Message) -> None:
        self.messages.append(message)

    def send_pages(self, to: int, message: wire.Message, payload: bytes, bulk: bool) -> None:
        raise AssertionError("no pages are asked for")

    def takes_bulk(self, node: int) -> bool:
        return True

    def member_left(self, node: int) -> None:
        raise AssertionError("nobody leaves")

    def sent(self, node: int, bulk: bool) -> int:
        raise AssertionError("no pages are asked for")


def test_the_next_piece_of_a_prefetch_is_asked_for_after_the_rest_of_the_step_that_ended_the_last() -> None:
    def finished(_: Any) -> None:
        pager.run([effects.Send(wire.DIRECTORY, NEXT_PIECE)])

    links = Recorder()
    pager = Pager(
        1, links, lambda: 0, finished=finished, blame=lambda *_: None, tell=lambda *_: None, retained=cast(Any, None)
    )
    pager.run([effects.Finished(object()), effects.Send(wire.DIRECTORY, GAVE_UP)])
    # The directory refuses a Request for pages of which the same node still has one.
    assert links.messages == [GAVE_UP, NEXT_PIECE]
