"""A frozen state must be the whole state, and no more than that: otherwise an exploration proves nothing."""

from __future__ import annotations

from collections import deque
from functools import partial
from random import Random
from typing import Any

import networkx as nx
import pytest
from simulated_cluster import Application, Channel, Cluster, Node, Thread

from directory.machine import PageMachine
from dsm.constants import EXTENT_BYTES
from dsm.wire import Data, Done, GaveUp
from nodes.machine import NodeMachine

from . import state
from .explore import GONE, Move, State, World, explore
from .network import Network, Packet
from .progress import cyclic_core, digraph, without_end
from .sides import HAPPEN, Configuration, first_node, frozen_message
from .state import HOLE, LATEST, Contents, Frozen, Held, Unknown, freeze_directory, freeze_node, with_todo
from .stepwise import StepwiseNode


class Live:
    """A cluster that lives on, with real values and no freezing, and has the same events happen to it."""

    def __init__(self, how: Configuration) -> None:
        self.how = how
        self.cluster = Cluster(
            how.nodes,
            how.pages,
            page_size=EXTENT_BYTES // how.pages,
            frame_pages=how.frame_pages,
            applications=how.applications,
            threads=how.threads,
        )
        if how.stepwise:
            for number in self.cluster.nodes:
                self.cluster.nodes[number] = StepwiseNode(self.cluster, number, how.applications, how.threads)

    def do(self, move: Move) -> None:
        kind, *arguments = move.event
        if kind == "get":
            self.cluster.deliver(Channel(arguments[0], move.side, arguments[1]))
        elif kind == "leave":
            for channel, lost in arguments[0]:
                for _ in range(lost):
                    self.cluster.channels[channel].pop()
            self.cluster.leave(move.side)
        else:
            HAPPEN[kind](self.cluster.nodes[move.side], *arguments)

    def node(self, side: int) -> Frozen:
        node = self.cluster.nodes[side]
        return as_compared(freeze_node(node, self.how.pages, 0), self._is_fresh)

    def _is_fresh(self, page: int, value: int) -> bool | None:
        return None if value == HOLE else value == self.cluster.latest[page]

    def channels(self) -> dict[Channel, list[Any]]:
        return {
            c: [self._packet(*packet) for packet in packets] for c, packets in self.cluster.channels.items() if packets
        }

    def _packet(self, message: Any, contents: list[int]) -> Any:
        start = message.start if isinstance(message, Data) else 0
        return frozen_message(message), [self._is_fresh(start + i, value) for i, value in enumerate(contents)]


def as_compared(frozen: Frozen, fresh: Contents) -> Frozen:
    """A frozen node without its budget, and of its memory, and what is to come there, only what is fresh."""
    memory = [fresh(page, value) for page, value in enumerate(frozen[2][1:])]
    return (*frozen[:2], memory, *with_todo(frozen, fresh)[3:-1])


def fresh(network: Network, page: int, value: int) -> bool | None:
    return None if value == HOLE else value == (LATEST if network.stored >> page & 1 else 0)


def fresh_packet(network: Network, packet: Packet) -> Any:
    message, contents = packet
    start = Data(*message[1:]).start if message[0] is Data else 0
    return message, [fresh(network, start + i, value) for i, value in enumerate(contents)]


def without_numbers(directory: Frozen) -> Frozen:
    """A frozen directory without the order in which it interned its holdings, some of them no longer in use."""
    if type(directory) is not tuple:
        return directory
    if directory[:1] == (Held,):
        return directory[:-1]
    return tuple(map(without_numbers, directory))


def assert_same(world: World, at: State, live: Live) -> None:
    network: Network = world.networks.values[at[-1]]
    assert {c: [fresh_packet(network, p) for p in packets] for c, packets in network.channels} == live.channels()
    exact = freeze_directory(live.cluster.directory, live.cluster.members, live.how.departures > 0)
    assert without_numbers(world.directories.values[at[0]][:-1]) == without_numbers(exact[:-1])
    for side in world.sides:
        assert (side in live.cluster.nodes) == (at[side] != GONE)
        if at[side] != GONE:
            frozen = world.nodes[side].values[at[side]]
            assert as_compared(frozen, partial(fresh, network)) == live.node(side)


@pytest.mark.parametrize(
    "how",
    [
        Configuration((4, 4, 4)),
        Configuration((4, 4), pages=3, applications=2),
        Configuration((4, 4), pages=3, frame_pages=2, patient=False),
        Configuration((4, 4, 4), departures=2),
        Configuration((4, 4, 4), stepwise=True),
        Configuration((4, 4, 4), pages=2, stepwise=True, departures=1),
    ],
    ids=["page", "runs", "frames", "departures", "stepwise", "stepwise with departures"],
)
def test_nothing_is_lost_between_two_steps(how: Configuration) -> None:
    """Step by step, frozen and thawed each time, a cluster does what one does that is left alone."""
    world = World(how)
    for seed in range(8):
        chance = Random(seed)
        live, at = Live(how), world.first()
        for _ in range(250):
            moves = [
                move for move in world.moves(at, canonical=False) if chance.random() < 0.5 or move.event[0] != "leave"
            ]
            if not moves:
                break
            move = chance.choice(moves)
            assert not move.wrong
            live.do(move)
            at = move.state
            assert_same(world, at, live)


def test_renumbered_generations_change_nothing() -> None:
    """What follows a state follows its canonical form: the same states, by their canonical names."""
    for how in (
        Configuration((3, 3), pages=2),
        Configuration((2, 2, 2)),
        Configuration((2, 2, 2), departures=1),
        Configuration((2, 2, 2), stepwise=True),
    ):
        world = World(how)
        for seed in range(3):
            chance = Random(seed)
            at = world.first()
            for _ in range(50):
                name = world.canonical(at)
                assert world.canonical(name) == name
                assert {m.state for m in world.moves(at)} == {m.state for m in world.moves(name)}
                at = chance.choice([move.state for move in world.moves(at, canonical=False)] or [world.first()])


@pytest.mark.parametrize(
    "how",
    [
        Configuration((1, 1, 1), operations=("load", "store")),
        Configuration((2, 2, 2), operations=("load", "evict")),
        Configuration((1, 1), pages=2),
        Configuration((1, 1, 1), operations=("load", "store"), stepwise=True),
        Configuration((1, 1, 1), operations=("load", "store", "evict"), departures=2),
        Configuration((1, 1), pages=2, operations=("load", "store"), departures=1),
    ],
)
def test_exchanging_nodes_leaves_no_state_out(how: Configuration) -> None:
    world = World(how)
    world.symmetric = False
    every, _ = explore(world)
    world.symmetric = True
    some, _ = explore(world)
    assert len(some.states) < len(every.states)
    assert set(some.states) == {world.canonical(each) for each in every.states}


# -- what is part of the state ---------------------------------------------------------------------------


def test_a_new_field_of_a_machine_is_not_left_out() -> None:
    class Newer(NodeMachine):
        def __init__(self, me: int) -> None:
            super().__init__(me)
            self.hints: list[int] = []

    with pytest.raises(Unknown, match="hints"):
        first_node(1, Configuration((1,), node_class=Newer))


def test_a_new_field_of_the_directory_is_not_left_out() -> None:
    class Newer(PageMachine):
        def __init__(self) -> None:
            super().__init__()
            self.hints: list[int] = []

    with pytest.raises(Unknown, match="hints"):
        freeze_directory(Newer(), {1}, False)


def test_a_value_of_an_unknown_type_is_not_left_out() -> None:
    class Hint:
        __slots__ = ("page",)

    with pytest.raises(Unknown, match="Hint"):
        state.Freezer([]).freeze(deque([Hint()]))


def test_the_fields_of_the_shell_are_those_that_are_frozen() -> None:
    node, stepwise = Node(Cluster(1, 1), 1, 1, 1), StepwiseNode(Cluster(1, 1), 1, 1, 1)
    application = node.applications[0]
    shells: dict[type, Any] = {
        Node: node,
        StepwiseNode: stepwise,
        Application: application,
        Thread: application.threads[0],
    }
    assert {cls: frozenset(vars(shell)) for cls, shell in shells.items()} == state.SHELL


def test_messages_with_equal_fields_are_not_the_same() -> None:
    fields = (1, 2, 3, 4)
    assert {Done(*fields), GaveUp(*fields)} == {fields}  # to Python they are
    assert frozen_message(Done(*fields)) != frozen_message(GaveUp(*fields))


# -- the graph -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patient", [True, False])
def test_peeling_finds_what_networkx_finds(patient: bool) -> None:
    graph, _ = explore(World(Configuration((1, 1), operations=("load", "store"), patient=patient)))
    whole = digraph(graph)
    cycles = [component for component in nx.strongly_connected_components(whole) if len(component) > 1]
    assert bool(cycles) != patient
    whole.add_edges_from([edge for node in set().union(*cycles) for edge in (("from", node), (node, "to"))])
    whole.add_edges_from([(number, "end") for number, quiet in enumerate(graph.quiet) if quiet])
    whole.add_nodes_from(["from", "to"])
    core = nx.descendants(whole, "from") & nx.ancestors(whole, "to")
    assert set(cyclic_core(graph).tolist()) == core
    assert set(without_end(graph).tolist()) == set(range(len(graph.states))) - nx.ancestors(whole, "end")


def test_a_state_without_a_way_to_the_end_is_found() -> None:
    graph, _ = explore(World(Configuration((1,), operations=("load",))))
    last = graph.quiet.rindex(1)
    graph.quiet[last] = 0
    assert last in without_end(graph).tolist()
    assert 0 not in without_end(graph).tolist()  # who begins nothing is at the end
