"""A counter-example as a conversation, in the words of the golden transcripts (tests/machines/transcripts)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from simulated_cluster import Application
from test_transcripts import Conversation, side

from dsm.story import span, told
from dsm.wire import Data, Fetch, Invalidate
from nodes.effects import Expedite, Send, Supply

from .explore import Found, Move, State, World
from .sides import LEFT, Event, Sent, directory_step, message_of, node_step
from .stepwise import Post, Protect


def conversation(world: World, found: Found) -> str:
    """What is wrong, the cluster, and then each step: what happens, and below it what that side does."""
    how = world.how
    before = "; ".join(_what(where, event) for where, event in how.before)
    return "\n".join(
        [
            f"{how.nodes} nodes, {how.applications} applications on each, {how.threads} threads in each; "
            f"{span(0, how.pages)}, {how.frame_pages} in a frame; before: {before or 'nothing'}",
            *_steps(world, found),
        ]
    )


def _steps(world: World, found: Found) -> Iterator[str]:
    """The states were kept under names that change from step to step: go the same way under lasting ones."""
    state, wrong = world.first(), found.wrong
    for number, wanted in enumerate(found.states[1:] + found.again, 1):
        if number == len(found.states):
            yield "and from here on, round and round:"
        move = next(m for m in world.moves(state, canonical=False) if world.canonical(m.state) == wanted)
        yield from _step(world, state, move, number)
        state = move.state
    if found.last is not None:
        moves = [move for move in world.moves(state, canonical=False) if move.wrong]
        move = next((move for move in moves if move.event[0] == found.last[1][0]), moves[0])
        yield from _step(world, state, move, len(found.states))
        wrong = move.wrong
    elif not found.again:
        wrong = world.wrong(state) or world.wrong_when_quiet(state)
    yield f"so: {wrong}"


def _step(world: World, state: State, move: Move, number: int) -> Iterator[str]:
    """What happens, and what is done about it."""
    heard: list[Any] = []
    where, event = move.side, move.event
    how = world.how
    if where and event[0] != "leave":
        outcome = node_step(where, world.nodes[where].values[state[where]], event, how, heard.append)
        if event[0] == "get" and event[3][0] in (Fetch, Invalidate) and not heard:
            heard.append("a hold runs: later")
        if outcome.stored >= 0:
            heard.append(f"p{outcome.stored} is stored to")
        if outcome.loaded is not None:
            page, value = outcome.loaded
            heard.append(f"p{page} is read: {('zeros', 'what was stored last', 'old data')[value]}")
    elif not where:
        heard += directory_step(world.directories.values[state[0]], event[1], event[3], how).sent
    yield f"{number:3}. {_what(where, event)}"
    yield from (f"         {line}" for each in heard for line in _heard(where, each))


def _what(where: int, event: Event) -> str:
    """An event in words."""
    kind, *rest = event
    me = side(where)
    if kind == "get":
        source, bulk, message, _ = rest
        if message == LEFT:
            return f"{me} notices that {side(source)} has left"
        return f"{me} gets {told(message_of(message))} from {side(source)}{' (bulk)' if bulk else ''}"
    if kind in ("load", "store"):
        return f"{kind} by a thread of {me}{'abcdefgh'[rest[0]]} on p{rest[1]}"
    if kind in ("prefetch", "ahead"):
        application, start, stop, write = rest
        return f"{kind} {me}{'abcdefgh'[application]} {'write' if write else 'read'} {start} {stop}"
    if kind == "detach":
        return f"detach {me}{'abcdefgh'[rest[0]]}"
    if kind == "evict":
        return f"evict {me} {rest[0]} {rest[1]}"
    if kind == "leave":
        cuts = ", ".join(f"the last {n} to {side(c.to)}" for c, n in rest[0])
        return f"leave {me}" + (f"; lost with it: {cuts}" if cuts else "")
    if kind == "go on":
        return f"{me} goes on"
    if kind == "frame":
        return f"{me} sends a frame to {side(rest[0])}"
    if kind == "hold":
        return f"hold {me}: the oldest is over"
    thread = f"thread {rest[1]} of {me}{'abcdefgh'[rest[0]]}"
    return f"{thread} retries" if kind == "retry" else f"{me} reads the fault of {thread}"


def _heard(where: int, each: Any) -> Iterator[str]:
    """What a side does, in words; nothing for what is told by the message that it sends."""
    if isinstance(each, str):
        yield f"{side(where)}: {each}"
    elif isinstance(each, Sent):
        message = message_of(each.message)
        outdated = ", old data" if isinstance(message, Data) and 2 in each.contents else ""
        yield f"{side(where)} -> {side(each.to)}: {told(message)}{outdated}{' (bulk)' if each.bulk else ''}"
    elif isinstance(each, Supply):
        m = each.fetch
        steps = [*(["protect"] if each.protect else []), "read", *([] if m.keep else ["drop"])]
        yield f"{side(where)}: {', '.join(steps)} {span(m.start, m.count)}"
    elif isinstance(each, Protect):
        yield f"{side(where)}: protect {span(each.fetch.start, each.fetch.count)}"
    elif isinstance(each, Expedite):
        yield f"{side(where)}: p{each.hurry.page} goes first, for {side(each.hurry.requester)}"
    elif not isinstance(each, Send | Post):
        yield f"{side(where)}: {Conversation(0)._effect(_named(each))}"


def _named(effect: Any) -> Any:
    """An effect with the names of applications in place of them, and no page data."""
    fields: dict[str, Any] = {}
    for name, value in effect._asdict().items():
        if isinstance(value, Application):
            fields[name] = repr(value)
        elif name == "waiters":
            fields[name] = [repr(waiter) for waiter in value]
        elif name == "payload" and value is not None:
            fields[name] = "data"
    return effect._replace(**fields)
