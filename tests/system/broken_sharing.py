"""Sharing that is broken on purpose, to show that a check of coherence can fail: in the application, or in the agents.

A broken agent is a real one whose interpreter finds a ``sitecustomize`` that changes one function, as in a mistake that
somebody might make. Each leaves the machines alone: what they decide is right, and carried out wrongly.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Final


class Stale:
    """Loads of words, of which those on odd pages come from a copy that is renewed every ``every`` loads."""

    def __init__(self, words: memoryview, page_words: int, every: int) -> None:
        self._words = words
        self._page_words = page_words
        self._every = every
        self._copy = words.tolist()
        self._loads = 0

    def __getitem__(self, at: int) -> int:
        self._loads += 1
        if self._loads % self._every == 0:
            self._copy = self._words.tolist()
        copied = at // self._page_words % 2
        return int(self._copy[at] if copied else self._words[at])


AGENTS: Final = {
    "drops late": """
        late = []
        sound_drop = RegionMemory.drop
        def drop(self, start, count):
            late.append((time.monotonic(), self, start, count))
        def install(self, start, count, *arguments, sound=RegionMemory.install):
            for each in [each for each in late if each[2] < start + count and start < each[2] + each[3]]:
                late.remove(each)
                sound_drop(*each[1:])
            return sound(self, start, count, *arguments)
        def turn(self, sound=Agent._turn):
            while late and late[0][0] < time.monotonic() - 0.002:
                sound_drop(*late.pop(0)[1:])
            return sound(self)
        RegionMemory.drop, RegionMemory.install, Agent._turn = drop, install, turn
    """,
    "does not protect": """
        Pager._supply = lambda self, e, sound=Pager._supply: sound(self, e._replace(protect=False))
    """,
}
"""Mistakes of an agent: a write is granted while an old copy can still be read; stores to a page that has been sent are
lost, or never seen by others.

To acknowledge first, then to drop, and to do nothing in between is a mistake that no litmus test can show: whatever the
node could learn of what came after the write has to pass the same agent. So it is sequentially consistent. Linearizable
it is not, since a clock tells what no message does: ACKNOWLEDGES_FIRST."""

ACKNOWLEDGES_FIRST: Final = "acknowledges before it drops"

_UNORDERED: Final = {
    ACKNOWLEDGES_FIRST: """
        def run(self, decided, sound=Pager.run):
            acks = [e for e in decided if type(e) is effects.Send and type(e.message) is wire.Ack]
            if acks:
                sound(self, acks)
                time.sleep(0.001)
            sound(self, [e for e in decided if e not in acks])
        Pager.run = run
    """,
}

_SITECUSTOMIZE: Final = """\
import sys
if "nodes" in sys.orig_argv:
    import time
    from dsm import wire
    from nodes import effects
    from nodes.agent import Agent
    from nodes.memory import RegionMemory
    from nodes.pager import Pager
{mistake}
"""


MISTAKE_S: Final = 50.0
"""How long programs may take on such agents."""


def never_ended(error: AssertionError) -> bool:
    """Is it an access that did not end? A page that its agent thinks is here, and that it has dropped, is never served:
    that gives a mistake away as well as a wrong value does."""
    return "Timeout (" in str(error) or "the application hung" in str(error)


def plant(mistake: str, folder: Path) -> str:
    """Make the ``PYTHONPATH`` with which agents make this mistake."""
    text = textwrap.indent(textwrap.dedent((AGENTS | _UNORDERED)[mistake]).strip(), "    ")
    (folder / "sitecustomize.py").write_text(_SITECUSTOMIZE.format(mistake=text))
    return str(folder)
