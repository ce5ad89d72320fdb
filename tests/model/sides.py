"""One step of one side: the production machine and its shell, from a frozen state to a frozen state."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

from simulated_cluster import REGION, Cluster, Left, Node, Packet

from directory.machine import PageMachine
from dsm.constants import EXTENT_BYTES
from dsm.wire import MemberLeft, Message
from nodes.machine import NodeMachine

from .state import (
    LATEST,
    OUTDATED,
    Freezer,
    Frozen,
    Thawer,
    freeze_directory,
    freeze_node,
    thaw_directory,
    thaw_node,
    with_todo,
)
from .stepwise import StepwiseNode

Event = tuple[Any, ...]
"""``(kind, argument, ...)``: what happens to a side. Kinds: those of :data:`NEW`, "retry", "fault", "hold", "frame"
(to a requester), "go on" (with the effects of the last step), and "get" (source, bulk, message, contents)."""

NEW: Final = frozenset(("load", "store", "prefetch", "ahead", "evict", "detach", "leave"))
"""Kinds of events that somebody may think of; all others must happen sooner or later."""

LEFT: Final = (Left,)
"""The end of a node's channel to the directory, frozen."""

OPERATIONS: Final = ("load", "store", "prefetch", "ahead", "evict", "detach")


class Configuration(NamedTuple):
    """What is explored. ``budgets``: for each node, how many operations it may begin, any of ``operations``;
    ``applications`` of each node, ``threads`` of each of these; ``departures``: nodes that may be lost; ``patient``: a
    hold outlasts the retry of its thread, else it may end at any time. ``before``: events, each with its node, that
    have happened and come to an end before anything else may begin. ``programs``: if any, the operations that each node
    begins, in this order, in place of any; its budget is their number. ``stepwise``: the effects of one step of a node
    happen one by one, and whatever others and its own threads may do happens between them."""

    budgets: tuple[int, ...]
    pages: int = 1
    operations: tuple[str, ...] = OPERATIONS
    applications: int = 1
    threads: int = 1
    frame_pages: int = 1
    departures: int = 0
    patient: bool = True
    stepwise: bool = False
    before: tuple[tuple[int, Event], ...] = ()
    programs: tuple[tuple[Event, ...], ...] = ()
    node_class: type[NodeMachine] = NodeMachine
    directory_class: type[PageMachine] = PageMachine

    @property
    def nodes(self) -> int:
        return len(self.budgets)

    def may_begin(self, number: int, event: Event, budget: int) -> bool:
        """May a node, which has so much of its budget left, begin this operation?"""
        if not self.programs:
            return event[0] in self.operations
        program = (*(event for side, event in self.before if side == number), *self.programs[number - 1])
        return program[len(program) - budget] == event


def programmed(*programs: tuple[Event, ...], **rest: Any) -> Configuration:
    """Each node begins these operations in this order."""
    return Configuration(tuple(map(len, programs)), programs=programs, **rest)


class Sent(NamedTuple):
    to: int
    bulk: bool
    message: Frozen
    contents: tuple[int, ...]


class Outcome(NamedTuple):
    """What a step leaves: the side afterwards, what it has sent, the page that it has stored to (or NOTHING), what a
    load has seen (page and contents), and what went wrong."""

    side: Frozen
    sent: tuple[Sent, ...] = ()
    stored: int = -1
    loaded: tuple[int, int] | None = None
    wrong: str = ""


NOTHING: Final = -1


class Stage(Cluster):
    """The cluster as one node sees it: everything is taken down, nothing is delivered."""

    def __init__(self, how: Configuration, told: Callable[[Any], None] | None = None) -> None:
        self.pages = how.pages
        self.page_size = EXTENT_BYTES // how.pages
        self.frame_pages = how.frame_pages
        self.told = told
        self.sent: list[Sent] = []
        self.stored = NOTHING
        self.loaded: tuple[int, int] | None = None

    def effect(self, node: Node, effect: Any) -> None:
        if self.told is not None:
            self.told(effect)  # a Send is told of by send(), too

    def store(self, node: Node, page: int) -> None:
        self.stored = page
        node.memory[page] = LATEST

    def check_value(self, node: Node, page: int) -> None:
        self.loaded = page, node.memory[page]

    def send(
        self, source: int, to: int, message: Message, contents: list[int] | None = None, bulk: bool = False
    ) -> None:
        self.sent.append(Sent(to, bulk, frozen_message(message), tuple(contents or ())))
        if self.told is not None:
            self.told(self.sent[-1])


def frozen_message(message: Message) -> Frozen:
    return Freezer([]).freeze(message)


def message_of(frozen: Frozen) -> Message:
    message: Message = Thawer([]).thaw(frozen)
    return message


# -- nodes ---------------------------------------------------------------------------------------------


def make_node(number: int, frozen: Frozen | None, how: Configuration, stage: Stage) -> Node:
    """A node in this state, or at its start."""
    applications = 0 if frozen is not None else how.applications
    node = (StepwiseNode if how.stepwise else Node)(stage, number, applications, how.threads)
    if how.node_class is not NodeMachine:
        node.machine = how.node_class(number)
        node.machine.add_region(REGION, how.pages, stage.page_size)
    if frozen is not None:
        thaw_node(frozen, node)
    return node


def first_node(number: int, how: Configuration) -> Frozen:
    budget = how.budgets[number - 1] + sum(side == number for side, _ in how.before)
    return freeze_node(make_node(number, None, how, Stage(how)), how.pages, budget)


def budget_of(frozen: Frozen) -> int:
    return int(frozen[-1])


def node_step(
    number: int, frozen: Frozen, event: Event, how: Configuration, told: Callable[[Any], None] | None = None
) -> Outcome:
    """What an event does to a node. ``told`` hears of every effect."""
    stage = Stage(how, told)
    node = make_node(number, frozen, how, stage)
    budget = budget_of(frozen) - (event[0] in NEW)
    try:
        HAPPEN[event[0]](node, *event[1:])
        after = freeze_node(node, how.pages, budget)
        if stage.stored != NOTHING:
            after = with_todo(after, lambda page, value: OUTDATED if page == stage.stored else value)
    except Exception as error:
        return Outcome(frozen, wrong=f"unhandled: n{number}: {type(error).__name__}: {error}")
    wrong = ""
    if node.machine.late and not how.departures:
        wrong = f"unhandled: n{number} counts an answer as late, though nobody has left"
    return Outcome(after, tuple(stage.sent), stage.stored, stage.loaded, wrong)


def _access(write: bool) -> Callable[[Node, int, int], None]:
    def begin(node: Node, application: int, page: int) -> None:
        thread = next(thread for thread in node.applications[application].threads if thread.access is None)
        thread.access = page, write
        node.access(thread)

    return begin


def _retry(node: Node, application: int, thread: int) -> None:
    node.access(node.applications[application].threads[thread])


def _fault(node: Node, application: int, thread: int) -> None:
    node.report(node.applications[application].threads[thread])


def _prefetch(node: Node, application: int, start: int, stop: int, write: bool) -> None:
    waiter = node.applications[application]
    waiter.prefetches += 1
    node.run(node.machine.prefetch(REGION, start, stop, write, waiter))


def _ahead(node: Node, application: int, start: int, stop: int, write: bool) -> None:
    node.run(node.machine.read_ahead(REGION, start, stop, write, node.applications[application]))


def _evict(node: Node, start: int, stop: int) -> None:
    node.run(node.machine.evict(REGION, start, stop))


def _detach(node: Node, application: int) -> None:
    node.detach(node.applications[application])


def _frame(node: Node, requester: int) -> None:
    frame = node.bulk.next(lambda other: other == requester)
    assert frame is not None
    node._send_pages(*frame, True)


def _get(node: Node, source: int, bulk: bool, message: Frozen, contents: tuple[int, ...]) -> None:
    node.receive(Packet(message_of(message), list(contents)))


def _go_on(node: Node) -> None:
    assert isinstance(node, StepwiseNode)
    node.go_on()


HAPPEN: Final[dict[str, Callable[..., None]]] = {
    "load": _access(False),
    "store": _access(True),
    "prefetch": _prefetch,
    "ahead": _ahead,
    "evict": _evict,
    "detach": _detach,
    "retry": _retry,
    "fault": _fault,
    "hold": lambda node: node.expire_hold(),
    "frame": _frame,
    "go on": _go_on,
    "get": _get,
}


def node_events(number: int, frozen: Frozen, how: Configuration) -> list[Event]:
    """What may happen to a node next, beside the messages that are on their way to it."""
    node = make_node(number, frozen, how, Stage(how))
    events = list(_under_way(node, how))
    if isinstance(node, StepwiseNode) and node.todo:  # until then the agent does nothing else
        events = [("go on",), *(event for event in events if event[0] == "retry")]
    budget = budget_of(frozen)
    if budget:
        events += [event for event in _thought_of(node, how) if how.may_begin(number, event, budget)]
    return events


def _under_way(node: Node, how: Configuration) -> Iterator[Event]:
    retrying = set()
    for a, application in enumerate(node.applications):
        seen = []
        for t, thread in enumerate(application.threads):
            if thread.access is None or (thread.access, thread.asleep, thread.reported) in seen:
                continue  # idle, or as another one
            seen.append((thread.access, thread.asleep, thread.reported))
            if not thread.asleep:
                retrying.add(thread.access[0])
                yield ("retry", a, t)
            elif not thread.reported:
                yield ("fault", a, t)
    if node.holds and not (how.patient and node.holds[0] in retrying):
        yield ("hold",)
    for requester in sorted({frame.fetch.requester for frame in node.bulk}):
        yield ("frame", requester)


def _thought_of(node: Node, how: Configuration) -> Iterator[Event]:
    runs = [(a, b) for a in range(how.pages) for b in range(a + 1, how.pages + 1)]
    if isinstance(node, StepwiseNode) and node.todo:
        runs = []
    for a, application in enumerate(node.applications):
        if any(thread.access is None for thread in application.threads):
            for page in range(how.pages):
                yield ("load", a, page)
                yield ("store", a, page)
        for start, stop in runs:
            for write in (False, True):
                yield ("prefetch", a, start, stop, write)
                yield ("ahead", a, start, stop, write)
        if runs:
            yield ("detach", a)
    for start, stop in runs:
        yield ("evict", start, stop)


# -- the directory -------------------------------------------------------------------------------------


def first_directory(how: Configuration) -> Frozen:
    machine = how.directory_class()
    page_size = EXTENT_BYTES // how.pages
    machine.add_region(REGION, how.pages * page_size, page_size)
    return freeze_directory(machine, set(range(1, how.nodes + 1)), how.departures > 0)


def directory_step(frozen: Frozen, source: int, message: Frozen, how: Configuration) -> Outcome:
    """What a message of ``source`` does to the directory."""
    machine, members = thaw_directory(frozen, how.directory_class)
    sent: list[tuple[int, Message]] = []
    try:
        if message == LEFT:
            members.discard(source)
            sent = [(number, MemberLeft(source, "it left")) for number in sorted(members)]
            sent += machine.forget_node(source, f"n{source}")
        else:
            sent = machine.step(source, message_of(message))
        after = freeze_directory(machine, members, how.departures > 0)
    except Exception as error:
        return Outcome(frozen, wrong=f"unhandled: dir: {type(error).__name__}: {error}")
    out = tuple(Sent(to, False, frozen_message(each), ()) for to, each in sent if to in members)
    return Outcome(after, out, wrong="unhandled: dir rejects a message" if machine.rejected else "")
