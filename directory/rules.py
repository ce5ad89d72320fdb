"""What the directory does with a request: the transition table of the protocol's directory side.

A page is untouched, shared by some nodes, exclusive to one, or lost. What happens depends on that, on the operation,
and on what the requester has: nothing, a copy among others, or the only one. docs/protocol.md draws the table.
"""

from __future__ import annotations

import enum
from typing import Final

from directory.holdings import EXCLUSIVE, LOST, SHARED, UNTOUCHED
from dsm.wire import EVICT, READ, RESET, WRITE


class Action(enum.Enum):
    """What the directory does. ``value`` is how a story tells it."""

    ZEROS = "zeros granted"
    """Nobody ever wrote the page: there is nothing to fetch."""
    GRANT = "granted at once"
    """The requester has what it takes, and nobody else has to do anything."""
    COPY = "the owner sends it and keeps a copy"
    MOVE = "the owner hands it over, other copies are invalidated"
    UPGRADE = "other copies are invalidated"
    DROP = "may be dropped"
    REFUSE = "refused"
    TELL_LOST = "told lost"
    RESTORE = "zeros granted, once all others have forgotten that it was lost"


NOTHING: Final = 0
A_COPY: Final = 1
THE_ONLY: Final = 2
"""What the requester has of the page."""

RULES: Final[dict[tuple[int, int, int], tuple[Action, int]]] = {
    (UNTOUCHED, READ, NOTHING): (Action.ZEROS, SHARED),
    (UNTOUCHED, WRITE, NOTHING): (Action.ZEROS, EXCLUSIVE),
    (UNTOUCHED, EVICT, NOTHING): (Action.REFUSE, UNTOUCHED),
    (UNTOUCHED, RESET, NOTHING): (Action.REFUSE, UNTOUCHED),
    (SHARED, READ, NOTHING): (Action.COPY, SHARED),
    (SHARED, READ, A_COPY): (Action.GRANT, SHARED),
    (SHARED, READ, THE_ONLY): (Action.GRANT, SHARED),
    (SHARED, WRITE, NOTHING): (Action.MOVE, EXCLUSIVE),
    (SHARED, WRITE, A_COPY): (Action.UPGRADE, EXCLUSIVE),
    (SHARED, WRITE, THE_ONLY): (Action.GRANT, EXCLUSIVE),
    (SHARED, EVICT, NOTHING): (Action.REFUSE, SHARED),
    (SHARED, EVICT, A_COPY): (Action.DROP, SHARED),
    (SHARED, EVICT, THE_ONLY): (Action.REFUSE, SHARED),
    (SHARED, RESET, NOTHING): (Action.REFUSE, SHARED),
    (SHARED, RESET, A_COPY): (Action.REFUSE, SHARED),
    (SHARED, RESET, THE_ONLY): (Action.REFUSE, SHARED),
    (EXCLUSIVE, READ, NOTHING): (Action.COPY, SHARED),
    (EXCLUSIVE, READ, THE_ONLY): (Action.GRANT, EXCLUSIVE),
    (EXCLUSIVE, WRITE, NOTHING): (Action.MOVE, EXCLUSIVE),
    (EXCLUSIVE, WRITE, THE_ONLY): (Action.GRANT, EXCLUSIVE),
    (EXCLUSIVE, EVICT, NOTHING): (Action.REFUSE, EXCLUSIVE),
    (EXCLUSIVE, EVICT, THE_ONLY): (Action.REFUSE, EXCLUSIVE),
    (EXCLUSIVE, RESET, NOTHING): (Action.REFUSE, EXCLUSIVE),
    (EXCLUSIVE, RESET, THE_ONLY): (Action.REFUSE, EXCLUSIVE),
    (LOST, READ, NOTHING): (Action.TELL_LOST, LOST),
    (LOST, WRITE, NOTHING): (Action.TELL_LOST, LOST),
    (LOST, EVICT, NOTHING): (Action.REFUSE, LOST),
    (LOST, RESET, NOTHING): (Action.RESTORE, EXCLUSIVE),
}
"""(state, operation, what the requester has) -> (what is done, state when it is over). A request to write that was made
ahead, for nobody who waits, is refused instead wherever somebody has a copy."""
