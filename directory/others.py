"""The other shards of a directory, as the first one knows them: what they are told and asked, and what waits for that.
Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from directory.members import Node, Outgoing
from dsm import wire

_PATIENCE_S: Final = 1.0
"""How long a question waits for a shard that does not answer: less than who asks has patience."""

Answers = dict[int, dict[str, Any]]
"""What shards have answered, by number."""


class _Question:
    """Was put to several shards, and is answered with what ``then`` makes of their answers."""

    __slots__ = ("answers", "due_s", "identity", "then", "waits")

    def __init__(
        self, identity: bytes, waits: set[int], due_s: float, then: Callable[[Answers, set[int]], wire.Message]
    ) -> None:
        self.identity = identity
        self.waits = waits
        self.due_s = due_s
        self.then = then
        self.answers: Answers = {}

    def over(self) -> Outgoing:
        return [(self.identity, self.then(self.answers, self.waits))]


class _Opening:
    """A region that not all shards know yet, and the answers of who has opened it: none of them may ask for pages."""

    __slots__ = ("answers", "waits")

    def __init__(self, waits: set[int]) -> None:
        self.waits = waits
        self.answers: Outgoing = []


class Others:
    """All shards but the first, of ``shards``. They are numbered from 1 as they come, once and for all."""

    def __init__(self, shards: int) -> None:
        self.shards = shards
        self._numbers: dict[bytes, int] = {}
        self._addresses: dict[int, str] = {}
        self._openings: dict[int, _Opening] = {}  # by region
        self._questions: dict[int, _Question] = {}  # by ticket
        self._last_ticket = 0

    @property
    def missing(self) -> int:
        """How many are still to come."""
        return self.shards - 1 - len(self._addresses)

    @property
    def there(self) -> bool:
        """Are there any?"""
        return bool(self._addresses)

    def has(self, identity: bytes) -> bool:
        """Is this the connection of one?"""
        return identity in self._numbers

    def join(self, identity: bytes, address: str) -> tuple[int, Outgoing]:
        """One has come: its number, and what to send."""
        number = len(self._addresses) + 1
        self._numbers[identity] = number
        self._addresses[number] = address
        words = " ".join(self._addresses.get(other, "-") for other in range(1, self.shards))
        return number, [(identity, wire.Shards(words)), (identity, wire.Welcome(number))]

    def lose(self, identity: bytes) -> None:
        """One has missed something that it was told: it cannot go on, nor another in its place. Nor can its pages."""
        self._numbers.pop(identity, None)

    def introduce(self, node: Node) -> Outgoing:
        """A node is about to be welcomed."""
        if not self._addresses:
            return []
        return [*self.tell(node.told()), (node.identity, wire.Shards(" ".join(self._addresses.values())))]

    def tell(self, message: wire.Message) -> Outgoing:
        """A message to each of them."""
        return [(identity, message) for identity in self._numbers]

    # -- regions -----------------------------------------------------------------------------------------

    def destroyed(self, region: int) -> Outgoing:
        """A region is over; who waits for a shard to know it waits for nothing."""
        self._openings.pop(region, None)
        return self.tell(wire.Destroy(region))

    def opened(self, region: wire.Opened, new: bool, answer: tuple[bytes, wire.Message]) -> Outgoing:
        """A node has opened a region: the answer to it waits until all shards know the region."""
        out: Outgoing = []
        if new and self._addresses:
            self._openings[region.region] = _Opening(set(self._addresses))
            out = self.tell(region._replace(ticket=region.region, options={}))
        opening = self._openings.get(region.region)
        if opening is None:
            return [answer]
        opening.answers.append(answer)
        return out

    def answered(self, identity: bytes, m: wire.Granted | wire.Answer | wire.Failure) -> Outgoing:
        """One of them has answered."""
        number = self._numbers[identity]
        if isinstance(m, wire.Granted):
            opening = self._openings.get(m.ticket)
            if opening is None:
                return []
            opening.waits.discard(number)
            if opening.waits:
                return []
            del self._openings[m.ticket]
            return opening.answers
        question = self._questions.get(m.ticket)
        if question is None or number not in question.waits:
            return []
        question.waits.discard(number)
        if isinstance(m, wire.Answer):
            question.answers[number] = m.value
        if question.waits:
            return []
        del self._questions[m.ticket]
        return question.over()

    # -- questions ---------------------------------------------------------------------------------------

    def ask_one(self, shard: int, identity: bytes, m: wire.Query, mine: wire.Answer, now: float) -> Outgoing:
        """What that shard knows of a page takes the place of what the first one does."""

        def then(answers: Answers, silent: set[int]) -> wire.Message:
            if shard in answers:
                return wire.Answer(m.ticket, mine.value | answers[shard])
            return wire.Failure(m.ticket, "DirectoryUnreachable", self._silence(silent or {shard}))

        return self._ask({shard}, identity, m, now, then)

    def ask_all(self, identity: bytes, m: wire.Query, mine: wire.Answer, now: float) -> Outgoing:
        """What all of them know is added up."""

        def then(answers: Answers, silent: set[int]) -> wire.Message:
            if m.what == "status":
                return wire.Answer(m.ticket, self._status(mine.value, answers, silent))
            if silent:
                return wire.Failure(m.ticket, "DirectoryUnreachable", self._silence(silent))
            if m.what == "lost":
                return wire.Answer(m.ticket, _lost([mine.value, *answers.values()]))
            return wire.Answer(m.ticket, {"owners": _together([mine.value, *answers.values()])})

        return self._ask(set(self._addresses), identity, m, now, then)

    def _ask(
        self,
        shards: set[int],
        identity: bytes,
        m: wire.Query,
        now: float,
        then: Callable[[Answers, set[int]], wire.Message],
    ) -> Outgoing:
        self._last_ticket = ticket = self._last_ticket % 0xFFFFFFFF + 1
        self._questions[ticket] = _Question(identity, set(shards), now + _PATIENCE_S, then)
        question = m._replace(ticket=ticket)
        return [(shard, question) for shard, number in self._numbers.items() if number in shards]

    def tick(self, now: float) -> Outgoing:
        """Time has passed: who asks waits no longer for a shard that is silent."""
        out: Outgoing = []
        for ticket in [ticket for ticket, question in self._questions.items() if now >= question.due_s]:
            out += self._questions.pop(ticket).over()
        return out

    def _silence(self, silent: set[int]) -> str:
        names = ", ".join(f"{number} at {self._addresses[number]}" for number in sorted(silent))
        return f"shard {names} of the directory does not answer: faults on its pages wait"

    def _status(self, mine: dict[str, Any], answers: Answers, silent: set[int]) -> dict[str, Any]:
        for answer in answers.values():
            for name, count in answer["counters"].items():
                mine["counters"][name] += count
            for region in mine["regions"]:
                for state, count in answer["pages"].get(str(region["id"]), {}).items():
                    region["pages"][state] += count
        shards = [
            {"shard": number, "address": address, "state": "silent" if number in silent else "up"}
            for number, address in self._addresses.items()
        ]
        return mine | {"shards": shards}


def _lost(answers: list[dict[str, Any]]) -> dict[str, Any]:
    """All lost pages, as far as every shard has told of its own."""
    until = min(answer["until"] for answer in answers)
    runs = sorted((start, min(stop, until), node) for answer in answers for start, stop, node in answer["lost"])
    return {"lost": [run for run in runs if run[0] < run[1]], "until": until}


def _together(answers: list[dict[str, Any]]) -> bytes:
    """Of each page one shard knows the owner; the others say 0."""
    owners = [answer["owners"] for answer in answers]
    total = 0
    for each in owners:
        total |= int.from_bytes(each, "big")
    return total.to_bytes(len(owners[0]), "big")
