"""All states, breadth first.

A state of the cluster is a tuple of small numbers, one for each side and one for the network; behind each number is a
frozen value, kept once. What a step does to a side, what a message adds to the network, how a side looks with its
generations numbered anew or its nodes exchanged: all are kept by number, and worked out once.

Nodes may be exchanged (*symmetry*) where no machine compares node ids. One thing does: when an owner evicts its copy,
or leaves, the next holder in the order of ids, round and round, becomes its owner. So where pages are evicted or nodes
leave, nodes may only be exchanged all together, each for the next.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from functools import partial
from itertools import permutations
from typing import Any, Final, NamedTuple

from . import checks
from .network import Network, lost, pops, pushed, renamed, stored_to
from .sides import (
    NEW,
    NOTHING,
    Configuration,
    Event,
    Sent,
    Stage,
    directory_step,
    first_directory,
    first_node,
    make_node,
    node_events,
    node_step,
)
from .state import LATEST, OUTDATED, Frozen, Rewrite, rewritten, thaw_directory, with_contents

State = tuple[int, ...]
"""``(directory, node 1, ..., node n, network)``, by number."""

GONE: Final = 0
"""The number of a node that has left."""

_BITS: Final = 32
"""Generations of one node that may be about at a time."""


class About(NamedTuple):
    """What is known of a value: the generations in it, as a bit mask (see _BITS), and what is wrong with it.

    ``last``: a node's last generation, at its place in such a mask too. ``view``: the number of a node's View; of the
    directory, what it says of the pages. ``open``: has the directory a transaction open; is a node amid a step?
    """

    generations: int
    wrong: str
    last: int = 0
    view: Any = None
    open: bool = False


class Interned:
    """Numbers for values, from 1. ``look``: what is asked of each value once, when it is new."""

    def __init__(self, look: Callable[[Any], About]) -> None:
        self.values: list[Any] = [None]
        self.about = [About(0, "")]
        self._numbers: dict[Any, int] = {}
        self._look = look

    def number(self, value: Any) -> int:
        number = self._numbers.get(value)
        if number is None:
            number = self._numbers[value] = len(self.values)
            self.values.append(value)
            self.about.append(self._look(value))
        return number


class Step(NamedTuple):
    """An Outcome by number."""

    side: int
    sent: int
    stored: int
    loaded: tuple[int, int] | None
    wrong: str


class Move(NamedTuple):
    """One transition: the event that happens to ``side`` (0: the directory), and the next state."""

    side: int
    event: Event
    state: State
    wrong: str


def exchanges(how: Configuration) -> list[tuple[int, ...]]:
    """The ways to exchange nodes that no machine can tell: node ``i`` becomes node ``order[i - 1]``."""
    sides = list(range(1, how.nodes + 1))
    if how.nodes > 2 and (how.departures or "evict" in how.operations):
        return [tuple(sides[turn:] + sides[:turn]) for turn in range(how.nodes)]
    return list(permutations(sides))


class World:
    """The rules of the game: which states follow a state."""

    def __init__(self, how: Configuration, symmetry: bool = True) -> None:
        self.how = how
        self.symmetric = symmetry and not how.programs and how.nodes > 1
        self.exchanges = exchanges(how)
        self.sides = range(1, how.nodes + 1)
        self.directories = Interned(self._look_at_directory)
        self.nodes = [Interned(partial(self._look_at_node, side)) for side in range(how.nodes + 1)]
        self.networks = Interned(self._look_at_network)
        self.sents = Interned(lambda sent: About(0, ""))
        self.views = Interned(lambda view: About(0, ""))
        self.views.values[GONE] = checks.NOBODY
        self._steps: dict[Any, Step] = {}
        self._events: dict[Any, list[Event]] = {}
        self._pops: dict[int, list[tuple[int, Event, int]]] = {}
        self._pushes: dict[Any, int] = {}
        self._lost: dict[Any, list[tuple[Event, int]]] = {}
        self._stored: dict[Any, int] = {}
        self._is_canonical: dict[Any, bool] = {}
        self._renamed: dict[Any, int] = {}
        self._together: dict[Any, str] = {}
        self._quiet: dict[Any, str] = {}
        self._orbits: dict[Any, int] = {}
        self._forms: dict[Frozen, int] = {}
        self._orders: dict[Any, list[tuple[int, ...]]] = {}

    def first(self) -> State:
        """Nothing has happened but what was to happen before."""
        directory = self.directories.number(first_directory(self.how))
        nodes = [self.nodes[i].number(first_node(i, self.how)) for i in self.sides]
        state: State = (directory, *nodes, self.networks.number(Network(0, ())))
        for side, event in self.how.before:
            due = [move for move in self.moves(state, canonical=False) if (move.side, move.event) == (side, event)]
            while due:
                state = due[0].state
                due = [move for move in self.moves(state, canonical=False) if move.event[0] not in NEW]
        return state

    # -- what is known of a value --------------------------------------------------------------------------

    def _look_at_directory(self, frozen: Frozen) -> About:
        machine, _ = thaw_directory(frozen, self.how.directory_class)
        wrong = checks.directory_alone(machine, self.how) or checks.miscounted(machine, self.how)
        busy = any(region.extents for region in machine._regions.values())
        return About(_generations(frozen, 0), wrong, 0, checks.statement(machine, self.how), busy)

    def _look_at_node(self, side: int, frozen: Frozen) -> About:
        node = make_node(side, frozen, self.how, Stage(self.how))
        last = node.machine._generation << _BITS * side
        view = self.views.number(checks.view(node, self.how.pages))
        in_between = checks.in_between(node)
        return About(_generations(frozen, side), checks.node_alone(node, self.how), last, view, in_between)

    def _look_at_network(self, network: Network) -> About:
        found = [0]
        renamed(network, _collecting(found))
        return About(found[0], checks.network_alone(network, self.how))

    def wrong(self, state: State) -> str:
        """What is wrong with the nodes of a state, taken together."""
        views = tuple([self.nodes[side].about[state[side]].view or GONE for side in self.sides])
        stored = self.networks.values[state[-1]].stored
        wrong = self._together.get((views, stored))
        if wrong is None:
            looked = tuple(self.views.values[view] for view in views)
            wrong = self._together[views, stored] = checks.together(looked, stored, self.how.pages)
        return wrong

    def wrong_when_quiet(self, state: State) -> str:
        """What is wrong with a state in which nothing is under way."""
        views = tuple(self.views.values[self.nodes[side].about[state[side]].view or GONE] for side in self.sides)
        directory = self.directories.about[state[0]]
        return checks.quiet(views, directory.view, directory.open)

    # -- one transition ------------------------------------------------------------------------------------

    def moves(self, state: State, canonical: bool = True) -> Iterator[Move]:
        """All that may happen next. The states are canonical, or else as they come: for telling it to people."""
        network = state[-1]
        events = self._pops.get(network)
        if events is None:
            events = self._pops[network] = [
                (channel.to, ("get", channel.source, channel.bulk, *packet), self.networks.number(rest))
                for channel, packet, rest in pops(self.networks.values[network])
            ]
        for to, event, rest in events:
            if to and self.nodes[to].about[state[to]].open:  # it does one thing after the other
                continue
            yield self._move(state, to, event, rest, canonical)
        for side in self.sides:
            here = state[side]
            if here:
                local = self._events.get((side, here))
                if local is None:
                    frozen = self.nodes[side].values[here]
                    local = self._events[side, here] = node_events(side, frozen, self.how)
                for event in local:
                    yield self._move(state, side, event, network, canonical)
        if self.how.departures:
            yield from self._departures(state, canonical)

    def _move(self, state: State, side: int, event: Event, network: int, canonical: bool) -> Move:
        here = state[side]
        step = self._steps.get((side, here, event))
        if step is None:
            step = self._steps[side, here, event] = self._step(side, here, event)
        if step.wrong:
            return Move(side, event, state, step.wrong)
        wrong = ""
        if step.loaded is not None:
            page, value = step.loaded
            if value != (LATEST if self.networks.values[network].stored >> page & 1 else 0):
                wrong = f"values: n{side} has read old data from p{page}"
        after = list(state)
        after[side] = step.side
        if step.sent:
            network = self._push(network, side, step.sent, state)
        if step.stored != NOTHING:
            network = self._store(after, side, step.stored, network)
        after[-1] = network
        wrong = wrong or self.networks.about[network].wrong
        return Move(side, event, self.canonical(tuple(after)) if canonical else tuple(after), wrong)

    def _step(self, side: int, here: int, event: Event) -> Step:
        if side:
            outcome = node_step(side, self.nodes[side].values[here], event, self.how)
            after, table = here, self.nodes[side]
        else:
            message = event[3]
            outcome = directory_step(self.directories.values[here], event[1], message, self.how)
            after, table = here, self.directories
        wrong = outcome.wrong
        if not wrong:
            after = table.number(outcome.side)
            wrong = table.about[after].wrong
        sent = self.sents.number(outcome.sent) if outcome.sent else 0
        return Step(after, sent, outcome.stored, outcome.loaded, wrong)

    def _push(self, network: int, source: int, sent: int, state: State) -> int:
        alive = frozenset(side for side in self.sides if state[side])
        key = (network, source, sent, alive)
        after = self._pushes.get(key)
        if after is None:
            outgoing: tuple[Sent, ...] = self.sents.values[sent]
            after = self.networks.number(pushed(self.networks.values[network], source, outgoing, alive))
            self._pushes[key] = after
        return after

    def _store(self, after: list[int], side: int, page: int, network: int) -> int:
        """All other copies, here and on their way, are old now."""
        for other in self.sides:
            here = after[other]
            if here and other != side:
                key = (other, here, page)
                older = self._stored.get(key)
                if older is None:
                    frozen = with_contents(self.nodes[other].values[here], page, OUTDATED)
                    older = self._stored[key] = self.nodes[other].number(frozen)
                after[other] = older
        key = (0, network, page)
        now = self._stored.get(key)
        if now is None:
            now = self._stored[key] = self.networks.number(stored_to(self.networks.values[network], page))
        return now

    def _departures(self, state: State, canonical: bool) -> Iterator[Move]:
        if state[1:-1].count(GONE) >= self.how.departures:
            return
        for side in self.sides:
            if not state[side]:
                continue
            key = (side, state[-1])
            ways = self._lost.get(key)
            if ways is None:
                network: Network = self.networks.values[state[-1]]
                ways = self._lost[key] = [
                    (("leave", tuple(cuts.items())), self.networks.number(after)) for cuts, after in lost(network, side)
                ]
            for event, network_after in ways:
                after = (*state[:side], GONE, *state[side + 1 : -1], network_after)
                yield Move(side, event, self.canonical(after) if canonical else after, "")

    # -- one name for what is the same ----------------------------------------------------------------------

    def canonical(self, state: State) -> State:
        """The same state with its generations numbered from 1 and, where they are alike, its nodes in one order."""
        generations = self.directories.about[state[0]].generations | self.networks.about[state[-1]].generations
        last = 0
        for side in self.sides:
            about = self.nodes[side].about[state[side]]
            generations |= about.generations
            last += about.last
        key = generations, last
        fine = self._is_canonical.get(key)
        if fine is None:
            alive = [side for side in self.sides if state[side]]
            fine = self._is_canonical[key] = _is_canonical(generations, last, alive)
        if not fine:
            state = self._rename(state, generations, self._renumber)
        return self._in_order(state) if self.symmetric else state

    def _rename(self, state: State, key: Any, rename: Callable[[int, int, Any], int]) -> State:
        """``rename`` (side, number, key) done to every part of a state; the network's side is -1."""
        known = self._renamed
        out = []
        for side, number in zip((*range(len(state) - 1), -1), state, strict=True):
            after = known.get((side, number, key))
            if after is None:
                after = known[side, number, key] = rename(side, number, key) if number else GONE
            out.append(after)
        return tuple(out)

    def _renumber(self, side: int, number: int, generations: int) -> int:
        """A part of a state in which each node's generations are numbered from 1, given all that are in use."""
        how = Rewrite(
            generation=lambda owner, g: (_of(generations, owner) & (1 << g) - 1).bit_count(),
            last=lambda owner, g: _of(generations, owner).bit_count(),
        )
        if side < 0:
            return self.networks.number(renamed(self.networks.values[number], how))
        table = self.nodes[side] if side else self.directories
        return table.number(rewritten(table.values[number], side, how))

    def _in_order(self, state: State) -> State:
        """The least of the states that differ only in who is who."""
        orbits = tuple([self._orbit(side, state[side]) for side in self.sides])
        orders = self._orders.get(orbits)
        if orders is None:
            arranged = {order: tuple(orbits[order.index(s)] for s in self.sides) for order in self.exchanges}
            least = min(arranged.values())
            orders = [order for order in self.exchanges if arranged[order] == least]
            self._orders[orbits] = orders
        if len(orders) == 1:
            return self._exchange(state, orders[0])
        return min([self._exchange(state, order) for order in orders])

    def _exchange(self, state: State, order: tuple[int, ...]) -> State:
        """Node ``i`` becomes node ``order[i - 1]``."""
        if order == tuple(self.sides):
            return state
        parts = self._rename(state, order, self._exchanged)
        out = list(parts)
        for side in self.sides:
            out[order[side - 1]] = parts[side]
        return tuple(out)

    def _exchanged(self, side: int, number: int, order: tuple[int, ...]) -> int:
        how = _exchanging(order)
        if side < 0:
            return self.networks.number(renamed(self.networks.values[number], how))
        if not side:
            return self.directories.number(rewritten(self.directories.values[number], 0, how))
        return self.nodes[order[side - 1]].number(rewritten(self.nodes[side].values[number], side, how))

    def _orbit(self, side: int, number: int) -> int:
        """A number for all that a node can be turned into by exchanging nodes."""
        if number == GONE:
            return GONE
        orbit = self._orbits.get((side, number))
        if orbit is None:
            frozen = self.nodes[side].values[number]
            forms = (rewritten(frozen, side, _exchanging(order)) for order in self.exchanges)
            orbit = min(
                [
                    self._forms.setdefault((order[side - 1], form), len(self._forms) + 1)
                    for order, form in zip(self.exchanges, forms, strict=True)
                ]
            )
            self._orbits[side, number] = orbit
        return orbit


def _exchanging(order: tuple[int, ...]) -> Rewrite:
    def mask(nodes: int) -> int:
        return sum(1 << order[node - 1] for node in range(1, len(order) + 1) if nodes >> node & 1)

    names = {f"n{node}": f"n{other}" for node, other in enumerate(order, 1)}
    return Rewrite(node=lambda node: order[node - 1] if node else 0, name=lambda name: names.get(name, name), mask=mask)


def _collecting(found: list[int]) -> Rewrite:
    """Rewrites nothing, but adds every generation to the mask ``found[0]``."""

    def generation(owner: int, number: int) -> int:
        assert 0 < number < _BITS, f"generation {number} of n{owner}: more are in use than there are bits for"
        found[0] |= 1 << _BITS * owner + number - 1
        return number

    return Rewrite(generation=generation)


def _generations(frozen: Frozen, owner: int) -> int:
    found = [0]
    rewritten(frozen, owner, _collecting(found))
    return found[0]


def _of(generations: int, owner: int) -> int:
    """The generations of one node: bit ``g - 1`` for generation ``g``."""
    return generations >> _BITS * owner & (1 << _BITS) - 1


def _is_canonical(generations: int, last: int, alive: list[int]) -> bool:
    for side in range(1, generations.bit_length() // _BITS + 1):
        if _of(generations, side) & _of(generations, side) + 1:
            return False
    return all(_of(last, side) == _of(generations, side).bit_count() for side in alive)


class Found(NamedTuple):
    """Something is wrong: what, and how it comes about. ``after``: the events that lead from ``states[i]`` to the next;
    the last may lead nowhere. ``again``: from where on it goes round for ever."""

    wrong: str
    states: list[State]
    last: tuple[int, Event] | None = None
    again: list[State] = []  # noqa: RUF012


class Graph(NamedTuple):
    """All states, and the transitions that must happen sooner or later (what is only thought of is left out: whoever
    begins nothing new must come to an end)."""

    states: list[State]
    parents: array[int]  # the state, by place in ``states``, from which each was reached first
    sources: array[int]
    targets: array[int]
    quiet: bytearray  # 1 for each state in which nothing is under way
    transitions: int
    depth: int

    def path(self, number: int) -> list[State]:
        """The shortest way to a state."""
        path = [self.states[number]]
        while number:
            number = self.parents[number]
            path.append(self.states[number])
        return path[::-1]


def explore(world: World, progress: Callable[[int, int, int], None] = lambda *_: None) -> tuple[Graph, Found | None]:
    """Every state there is, until something is wrong. ``progress`` hears of (states, still to expand, depth)."""
    first = world.canonical(world.first())
    numbers = {first: 0}
    graph = Graph([first], array("I", (0,)), array("I"), array("I"), bytearray(1), 0, 0)
    states, parents, sources, targets, quiet = graph[:5]
    transitions = depth = at = 0
    level_ends = 1
    found = None
    while at < len(states) and found is None:
        if at == level_ends:
            depth += 1
            level_ends = len(states)
        if not at & 0x1FFF:
            progress(len(states), len(states) - at, depth)
        state = states[at]
        under_way = False
        for side, event, after, wrong in world.moves(state):
            transitions += 1
            number = numbers.get(after)
            if wrong:
                found = Found(wrong, graph.path(at), (side, event))
                break
            if number is None:
                number = numbers[after] = len(states)
                states.append(after)
                parents.append(at)
                quiet.append(0)
                wrong = world.wrong(after)
                if wrong:
                    found = Found(wrong, graph.path(number))
                    break
            if event[0] not in NEW:
                under_way = True
                sources.append(at)
                targets.append(number)
        if not under_way and found is None:
            quiet[at] = 1
            wrong = world.wrong_when_quiet(state)
            if wrong:
                found = Found(wrong, graph.path(at))
        at += 1
    progress(len(states), len(states) - at, depth)
    return graph._replace(transitions=transitions, depth=depth), found
