"""Golden transcripts: conversations of the production machines, as text that a person can review.

A file under transcripts/ is a list of commands, each followed by ``----`` and by what every side did. Commands:

    nodes N                     a directory and N nodes, one region of 512 pages
    fault n1 read|write P       a thread of an application on n1 touches page P
    prefetch n1 read|write A B  an explicit prefetch of pages [A, B)
    ahead n1 read|write A B     read-ahead
    evict n1 A B                n1 gives clean copies back
    hold n1 P                   the hold of page P on n1 is over
    leave n1                    n1 leaves
    deliver [x->y]              all until nothing is on its way, or the next message from x to y (0: the directory)

``DSM_REWRITE=1 pytest tests/machines/test_transcripts.py`` writes what happens now into the files: then read the diff.
(After etcd's raft/interaction_test.go.)
"""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path
from typing import Any, Final

import pytest

from directory.machine import PageMachine
from dsm.constants import PAGE_BYTES
from dsm.story import span, told
from dsm.wire import DIRECTORY, Data, Fetch, MemberLeft, Message
from nodes import effects
from nodes.machine import NodeMachine

FOLDER: Final = Path(__file__).parent / "transcripts"
PAGES: Final = 512


def side(number: int) -> str:
    return f"n{number}" if number else "dir"


class Conversation:
    """A directory and nodes joined by a network that delivers what one side sends to another in order."""

    def __init__(self, count: int) -> None:
        self.out: list[str] = []
        self.directory = PageMachine()
        self.directory.add_region(1, PAGES * PAGE_BYTES, PAGE_BYTES)
        self.nodes = {number: NodeMachine(number) for number in range(1, count + 1)}
        for node in self.nodes.values():
            node.add_region(1, PAGES, PAGE_BYTES)
        self.network: deque[tuple[int, int, Message]] = deque()

    def do(self, line: str) -> str:
        command, *words = line.split()
        self.out = []
        getattr(self, command)(*words)
        return "\n".join(self.out)

    # commands

    def fault(self, node: str, op: str, page: str) -> None:
        number = int(node[1:])
        self._run(number, self.nodes[number].fault(1, int(page), op == "write", f"app@{node}"))

    def prefetch(self, node: str, op: str, start: str, stop: str) -> None:
        number = int(node[1:])
        self._run(number, self.nodes[number].prefetch(1, int(start), int(stop), op == "write", f"app@{node}"))

    def ahead(self, node: str, op: str, start: str, stop: str) -> None:
        number = int(node[1:])
        self._run(number, self.nodes[number].read_ahead(1, int(start), int(stop), op == "write", f"app@{node}"))

    def evict(self, node: str, start: str, stop: str) -> None:
        number = int(node[1:])
        self._run(number, self.nodes[number].evict(1, int(start), int(stop)))

    def hold(self, node: str, page: str) -> None:
        number = int(node[1:])
        self._run(number, self.nodes[number].hold_expired(1, int(page)))

    def leave(self, node: str) -> None:
        gone = int(node[1:])
        del self.nodes[gone]
        for number in self.nodes:
            self._send(DIRECTORY, number, MemberLeft(gone, "it left"))
        self._from_directory(self.directory.forget_node(gone, node))

    def deliver(self, channel: str = "") -> None:
        if not channel:
            while self.network:
                self._deliver(*self.network.popleft())
            return
        source, to = (int(number) for number in channel.split("->"))
        packet = next(packet for packet in self.network if packet[:2] == (source, to))
        self.network.remove(packet)
        self._deliver(*packet)

    # the network

    def _send(self, source: int, to: int, message: Message) -> None:
        self.out.append(f"    {side(source)} -> {side(to)}: {told(message)}")
        self.network.append((source, to, message))

    def _deliver(self, source: int, to: int, message: Message) -> None:
        self.out.append(f"{side(to)} gets {told(message)} from {side(source)}")
        if not to:
            self._from_directory(self.directory.step(source, message))
        elif to not in self.nodes:
            self.out.append("    nobody is there")
        elif isinstance(message, Data):
            self._run(to, self.nodes[to].data(message, "data"))
        else:
            self._run(to, self.nodes[to].step(message))

    def _from_directory(self, outgoing: list[tuple[int, Message]]) -> None:
        for to, message in outgoing:
            self._send(DIRECTORY, to, message)

    def _run(self, number: int, decided: list[Any]) -> None:
        for effect in decided:
            if isinstance(effect, effects.Send):
                self._send(number, effect.to, effect.message)
            elif isinstance(effect, effects.Supply):
                self._supply(number, effect.fetch, effect.protect)
            elif isinstance(effect, effects.Expedite):
                self.out.append(
                    f"    {side(number)}: p{effect.hurry.page} goes first, for {side(effect.hurry.requester)}"
                )
            else:
                self.out.append(f"    {side(number)}: {self._effect(effect)}")

    def _supply(self, number: int, m: Fetch, protect: bool) -> None:
        steps = [*(["protect"] if protect else []), "read", *([] if m.keep else ["drop"])]
        self.out.append(f"    {side(number)}: {', '.join(steps)} {span(m.start, m.count)}")
        data = Data(m.region, m.generation, m.start, m.count, m.start, m.count, m.acks)
        self._send(number, m.requester, data)

    def _effect(self, effect: Any) -> str:
        match effect:
            case effects.Install(_, start, count, payload, write, target):
                how = "writable" if write else "read-only"
                return f"install {span(start, count)} {payload or 'zeros'}, {how}, into {target}"
            case effects.Resume(_, page, write, waiters):
                return f"{'unprotect' if write else 'wake'} p{page} for {', '.join(waiters)}"
            case effects.Unprotect(_, start, count, waiter):
                return f"unprotect {span(start, count)} for {waiter}"
            case effects.Drop(_, start, count):
                return f"drop {span(start, count)}"
            case effects.Hold(_, page):
                return f"hold p{page}"
            case effects.Finished(waiter):
                return f"prefetch of {waiter} is over"
            case effects.Poison(_, page, node, waiters):
                return f"poison p{page}, lost with {node}, for {', '.join(waiters)}"
        raise AssertionError(effect)


def replay(text: str) -> str:
    """The transcript with what happens now in place of what it says."""
    blocks = []
    conversation = Conversation(0)
    for block in text.strip().split("\n\n"):
        comments = [line for line in block.split("\n----")[0].splitlines() if line.startswith("#")]
        command = next(line for line in block.splitlines() if not line.startswith("#"))
        if command.startswith("nodes "):
            conversation = Conversation(int(command.split()[1]))
            outcome = ""
        else:
            outcome = conversation.do(command)
        blocks.append("\n".join([*comments, command, "----", *([outcome] if outcome else [])]))
    return "\n\n".join(blocks) + "\n"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.txt")), ids=lambda path: path.stem)
def test_transcript(path: Path) -> None:
    before = path.read_text()
    now = replay(before)
    if os.environ.get("DSM_REWRITE"):
        path.write_text(now)
    assert now == before


def test_there_are_transcripts() -> None:
    assert len(list(FOLDER.glob("*.txt"))) >= 10
