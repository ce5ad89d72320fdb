"""A side as a value that can be compared, and back: the one place here that knows the private fields of the machines.

A side is frozen by walking over all its fields into nested tuples ``(type, item, ...)``. Nothing is left out silently:
a class or a field that the table below does not know raises :class:`Unknown`.

Three things are made the same that cannot matter:

- *Generations* are only ever compared with one another: those that occur anywhere are numbered anew, in order.
- *Contents* of a page are 0 (zeros), LATEST (what was stored last) or OUTDATED: a store outdates every other copy.
- *Holdings* are written out in place of the number under which the directory interned them. After a departure two
  numbers may mean the same, which cuts runs shorter, and the lower one is given to new pages: so where nodes may leave,
  the order of the numbers that are in use is part of the state (*exact*). A number that no page carries is forgotten at
  once; production forgets them in a sweep now and then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import cache
from typing import Any, Final, NamedTuple

from simulated_cluster import Application, Node, Thread

from directory.holdings import Holding, Holdings, nodes_in
from directory.machine import PageMachine
from dsm.pagetable import PageTable
from dsm.wire import Data
from nodes.effects import Install

from .stepwise import Post, StepwiseNode

Frozen = Any
"""Nested tuples ``(type, item, ...)`` with plain values at the leaves; hashable."""

LATEST: Final = 1
OUTDATED: Final = 2


class Unknown(TypeError):
    """A machine has a field, or a value of a type, that nobody has decided about: is it part of its state?"""


class Held(NamedTuple):
    """A Holding in place of its number; ``place``: that of its number among those in use, 0 where it cannot matter."""

    state: int
    owner: int
    copies: int
    shadows: int
    place: int


class Members(NamedTuple):
    """The nodes that the directory counts as members, as a bit mask."""

    copies: int


class Side(NamedTuple):
    """A node: its machine, and what its shell knows. ``budget``: operations that it may still begin."""

    machine: Frozen
    memory: Frozen  # contents by page, HOLE where there is none
    applications: Frozen
    holds: Frozen
    bulk: Frozen
    todo: Frozen  # what is left of the last step, where effects happen one by one
    budget: int


HOLE: Final = -1

KNOWN: Final[dict[str, frozenset[str]]] = {
    name: frozenset(fields.split())
    for name, fields in {
        "nodes.NodeMachine": "_regions _generation deferred",
        "nodes.Region": "number pages per_extent table asks waiters held deferred prefetches lost",
        "nodes.Ask": "generation start stop op need left target parts over",
        "nodes.Part": "count owed acks acked closed next soon",
        "nodes.Prefetch": "owed op waiter target",
        "nodes.Bulk": "_transfers",
        "directory.PageMachine": "_regions _names _losers",
        "directory.Region": "pages per_extent table extents counts users replicas",
        "directory.Extent": "base active queue",
    }.items()
}
"""By package and class: the fields that make up its state. Each is rewritten by its name, see ROLES."""

OMITTED: Final[dict[str, frozenset[str]]] = {
    name: frozenset(fields.split())
    for name, fields in {
        # Not state: who it is, constants, what only tells the story. ``late`` and ``rejected`` are looked at after
        # every step, and begin at 0 again. ``holdings`` is in the tables and transactions, written out.
        # ``events`` are for whoever keeps them.
        "nodes.NodeMachine": "me late messages story _number _tell _now _cause _handlers",
        "directory.PageMachine": "holdings transactions rejected events story _tell _now _sweep_at _shard _shards",
    }.items()
}

SHELL: Final[dict[type[Any], frozenset[str]]] = {
    cls: frozenset(fields.split())
    for cls, fields in {
        Node: "cluster number machine memory applications holds bulk _effects",
        StepwiseNode: "cluster number machine memory applications holds bulk todo _effects",
        Application: "node name threads unprotected poisoned prefetches",
        Thread: "application access asleep reported",
    }.items()
}
"""The fields of the simulated shell, which is frozen by hand: a test compares."""

NODE_FIELDS: Final = frozenset(("node", "requester", "sender", "supplier", "owner", "to"))
MASK_FIELDS: Final = frozenset(("copies", "sharers", "shadows", "acked", "users"))
HOLDING_FIELDS: Final = frozenset(("before", "after"))
PLAIN_FIELDS: Final = frozenset(
    (
        "region",
        "start",
        "stop",
        "count",
        "first",
        "total",
        "page",
        "pages",
        "op",
        "ahead",
        "need",
        "zero",
        "keep",
        "acks",
        "state",
        "place",
        "reason",
        "fetch",
        "machine",
        "memory",
        "applications",
        "holds",
        "bulk",
        "todo",
        "budget",
        "payload",
        "contents",
        "write",
        "protect",
        "target",
        "waiter",
        "waiters",
        "hurry",
        "message",
    )
)
"""Fields of messages, effects and other named tuples that are rewritten by their own type only."""
ROLES: Final = NODE_FIELDS | MASK_FIELDS | HOLDING_FIELDS | PLAIN_FIELDS | {"generation"}


def kind_of(cls: type[Any]) -> str:
    """The name of a class in the tables; of the first of its bases that is there, for one patched by a test."""
    for base in cls.__mro__:
        name = f"{base.__module__.partition('.')[0]}.{base.__name__.lstrip('_')}"
        if name in KNOWN:
            return name
    raise Unknown(f"{cls.__qualname__} is in no table of {__name__}: is it part of a machine's state?")


def fields_of(thing: Any) -> tuple[str, ...]:
    """The fields that make up the state of an object of a machine, in a fixed order."""
    cls: Any = type(thing)
    return _known_fields(cls, frozenset(getattr(thing, "__dict__", ())))


@cache
def _known_fields(cls: type[Any], own: frozenset[str]) -> tuple[str, ...]:
    kind = kind_of(cls)
    names = {slot for base in cls.__mro__ for slot in getattr(base, "__slots__", ())} | own
    unknown = names - KNOWN[kind] - OMITTED.get(kind, frozenset())
    if unknown:
        raise Unknown(
            f"{kind} has fields that {__name__} does not know: {sorted(unknown)}; are they part of its state?"
        )
    return tuple(sorted(names & KNOWN[kind]))


@cache
def _named_fields(cls: type[Any]) -> tuple[str, ...]:
    """The fields of a named tuple: how to rewrite each is decided by its name."""
    names: tuple[str, ...] = cls._fields
    unknown = set(names) - ROLES
    if unknown:
        raise Unknown(f"{cls.__qualname__} has fields that {__name__} does not know: {sorted(unknown)}")
    return names


# -- freezing ------------------------------------------------------------------------------------------


class Freezer:
    """Freezes one side. ``applications``: those of the node, which its machine knows as waiters."""

    def __init__(self, applications: list[Application], holdings: dict[int, Frozen] | None = None) -> None:
        self._applications = applications
        self._holdings = holdings or {}

    def freeze(self, thing: Any, role: str = "") -> Frozen:
        """``role``: the name of the field that it is in."""
        cls = type(thing)
        if thing is None or cls in (int, bool, str):
            return thing
        if cls in (list, deque, tuple):
            return (cls, *map(self.freeze, thing))
        if cls is set:
            return (cls, *sorted(thing))
        if cls is dict:
            return (cls, *((key, self.freeze(value)) for key, value in sorted(thing.items())))
        if cls is Application:
            return (cls, self._applications.index(thing))
        if issubclass(cls, tuple):
            return (cls, *map(self._field, _named_fields(cls), thing))
        return (cls, *((name, self._slot(thing, name)) for name in fields_of(thing)))

    def _field(self, name: str, value: Any) -> Frozen:
        return self._holdings[value] if name in HOLDING_FIELDS else self.freeze(value)

    def _slot(self, thing: Any, name: str) -> Frozen:
        value = getattr(thing, name)
        if isinstance(value, PageTable):
            numbers = [value.get(page) for page in range(thing.pages)]
            values = [self._holdings[number] for number in numbers] if self._holdings else numbers
            return (PageTable, "I" if self._holdings else "B", *values)
        if name == "counts":  # the untouched are not counted to the end
            return (list, 0, *value[1:])
        return self.freeze(value)


def freeze_directory(machine: PageMachine, members: set[int], exact: bool) -> Frozen:
    """The directory, whom it counts as members, and the holdings that it knows."""
    holdings, numbers = machine.holdings, machine.holdings._numbers
    used = sorted(_used(machine) - {0})
    known = sorted({*used, *(numbers[holdings[number]] for number in used)})  # new pages get the latter
    assert exact or known == [numbers[holdings[number]] for number in known], "two numbers mean the same holding"
    held = {number: (Held, *holdings[number], place if exact else 0) for place, number in enumerate([0, *known])}
    extra = (held[number] for number in known if number not in used)
    return (tuple, Freezer([], held).freeze(machine), (Members, sum(1 << node for node in members)), (tuple, *extra))


def _used(machine: PageMachine) -> set[int]:
    """The numbers of the holdings of pages, and of those in transactions."""
    regions = machine._regions.values()
    active = [t for region in regions for extent in region.extents.values() for t in extent.active]
    used = {region.table.get(page) for region in regions for page in range(region.pages)}
    return used | {t.before for t in active} | {t.after for t in active}


def freeze_node(node: Node, pages: int, budget: int) -> Frozen:
    freezer = Freezer(node.applications)
    memory = (tuple, *(node.memory.get(page, HOLE) for page in range(pages)))
    applications = (tuple, *map(_freeze_application, node.applications))
    holds = (deque, *node.holds)
    bulk, todo = freezer.freeze(node.bulk), freezer.freeze(node.todo if isinstance(node, StepwiseNode) else deque())
    return (Side, freezer.freeze(node.machine), memory, applications, holds, bulk, todo, budget)


def _freeze_application(application: Application) -> Frozen:
    """Threads of one application are alike: their order does not matter."""
    threads = sorted((t.access or (HOLE, False), t.asleep, t.reported) for t in application.threads)
    unprotected, poisoned = tuple(sorted(application.unprotected)), tuple(sorted(application.poisoned))
    return (tuple, unprotected, poisoned, application.prefetches, tuple(threads))


# -- thawing -------------------------------------------------------------------------------------------


class Thawer:
    def __init__(self, applications: list[Application], holdings: dict[Frozen, int] | None = None) -> None:
        self._applications = applications
        self._holdings = holdings or {}

    def thaw(self, frozen: Frozen) -> Any:
        if type(frozen) is not tuple:
            return frozen
        cls, *items = frozen
        if cls is Held:
            return self._holdings[frozen]
        if cls in (list, deque, set):
            return cls(map(self.thaw, items))
        if cls is tuple:
            return tuple(map(self.thaw, items))
        if cls is dict:
            return {key: self.thaw(value) for key, value in items}
        if cls is Application:
            return self._applications[items[0]]
        if cls is PageTable:
            return self._table(*items)
        if issubclass(cls, tuple):
            return cls(*map(self.thaw, items))
        thing = cls.__new__(cls)
        for name, value in items:
            setattr(thing, name, self.thaw(value))
        return thing

    def into(self, machine: Any, frozen: Frozen) -> None:
        """Give a new machine its state."""
        for name, value in frozen[1:]:
            setattr(machine, name, self.thaw(value))

    def _table(self, typecode: Any, *values: Frozen) -> PageTable:
        table = PageTable(typecode)
        for page, value in enumerate(values):
            number = self._holdings[value] if typecode == "I" else value
            if number:
                table.set(page, number)
        return table


def thaw_directory(frozen: Frozen, cls: type[PageMachine]) -> tuple[PageMachine, set[int]]:
    machine = cls()
    _, inner, members, extra = frozen
    nobody = (Held, 0, 0, 0, 0, 0)
    found: set[Frozen] = set(extra[1:])
    _find_held(inner, found)
    known = [nobody, *sorted(found - {nobody}, key=lambda held: (held[-1], held[1:]))]
    machine.holdings = holdings = Holdings()
    holdings._holdings = [Holding(*held[1:-1]) for held in known]
    holdings._numbers = {h: n for n, h in reversed(list(enumerate(holdings._holdings)))}
    Thawer([], {held: number for number, held in enumerate(known)}).into(machine, inner)
    return machine, set(nodes_in(members[1]))


def _find_held(frozen: Frozen, found: set[Frozen]) -> None:
    if type(frozen) is tuple and frozen:
        if frozen[0] is Held:
            found.add(frozen)
        for item in frozen:
            _find_held(item, found)


def thaw_node(frozen: Frozen, node: Node) -> None:
    """Give a new node, which has no applications yet, its state."""
    _, machine, memory, applications, holds, bulk, todo, _ = frozen
    node.memory = {page: value for page, value in enumerate(memory[1:]) if value != HOLE}
    node.applications = [_thaw_application(node, i, each) for i, each in enumerate(applications[1:])]
    node.holds = deque(holds[1:])
    thawer = Thawer(node.applications)
    node.bulk = thawer.thaw(bulk)
    if isinstance(node, StepwiseNode):
        node.todo = thawer.thaw(todo)
    thawer.into(node.machine, machine)


def _thaw_application(node: Node, index: int, frozen: Frozen) -> Application:
    _, unprotected, poisoned, prefetches, threads = frozen
    application = Application(node, f"n{node.number}{'abcdefgh'[index]}", len(threads))
    application.unprotected = set(unprotected)
    application.poisoned = set(poisoned)
    application.prefetches = prefetches
    for thread, ((page, write), asleep, reported) in zip(application.threads, threads, strict=True):
        thread.access = None if page == HOLE else (page, write)
        thread.asleep, thread.reported = asleep, reported
    return application


# -- rewriting -----------------------------------------------------------------------------------------


class Rewrite(NamedTuple):
    """What to put in place of a generation of a node, of a node's last one, of a node, its name, a mask of nodes."""

    generation: Callable[[int, int], int] = lambda owner, number: number
    last: Callable[[int, int], int] = lambda owner, number: number
    node: Callable[[int], int] = lambda node: node
    name: Callable[[str], str] = lambda name: name
    mask: Callable[[int], int] = lambda mask: mask


def rewritten(frozen: Frozen, owner: int, how: Rewrite, role: str = "") -> Frozen:
    """The same with other numbers. ``owner``: whose generations they are where nothing nearer says so."""
    if type(frozen) is not tuple:
        if type(frozen) is int:
            if role == "generation":
                return how.generation(owner, frozen)
            if role == "_generation":
                return how.last(owner, frozen)
            if role in NODE_FIELDS:
                return how.node(frozen) if frozen else frozen
            if role in MASK_FIELDS:
                return how.mask(frozen)
        return how.name(frozen) if type(frozen) is str else frozen
    cls = frozen[0]
    if cls in (list, deque, tuple):
        return (cls, *(rewritten(item, owner, how) for item in frozen[1:]))
    if cls is dict:
        items = ((_key(key, owner, how, role), rewritten(value, owner, how)) for key, value in frozen[1:])
        return (cls, *sorted(items))
    if cls is set or cls is Application:
        return frozen
    if cls is PageTable:
        return (*frozen[:2], *(rewritten(item, owner, how) for item in frozen[2:]))
    if cls is Side:  # the shell knows of no other node, but for what it sends
        side = Side(*frozen[1:])
        machine, bulk, todo = (rewritten(part, owner, how) for part in (side.machine, side.bulk, side.todo))
        return (cls, *side._replace(machine=machine, bulk=bulk, todo=todo))
    if issubclass(cls, tuple):
        owner = _owner(cls, frozen, owner)
        return (cls, *(rewritten(item, owner, how, name) for name, item in zip(cls._fields, frozen[1:], strict=True)))
    return (cls, *((name, rewritten(item, owner, how, name)) for name, item in frozen[1:]))


def _key(key: int, owner: int, how: Rewrite, role: str) -> int:
    """The keys of ``asks`` are generations, those of ``_names`` nodes."""
    if role == "asks":
        return how.generation(owner, key)
    return how.node(key) if role == "_names" else key


def _owner(cls: type[Any], frozen: Frozen, owner: int) -> int:
    """Whose generation a message or transaction carries, if it says so itself, or the effect that it is part of."""
    fields = cls._fields
    if "to" in fields:  # what is for a node answers it
        return int(frozen[1 + fields.index("to")]) or owner
    if "requester" in fields:
        return int(frozen[1 + fields.index("requester")])
    if "generation" in fields and "node" in fields and type(frozen[1 + fields.index("node")]) is int:
        return int(frozen[1 + fields.index("node")])
    return owner


def with_contents(frozen: Frozen, page: int, value: int) -> Frozen:
    """A frozen node with other contents of a page, if it has any."""
    frozen = with_todo(frozen, lambda each, before: value if each == page else before)
    memory = frozen[2]
    if memory[1 + page] == HOLE:
        return frozen
    return (*frozen[:2], (*memory[: 1 + page], value, *memory[2 + page :]), *frozen[3:])


Contents = Callable[[int, Any], Any]
"""What to put in place of the contents of a page."""


def with_todo(frozen: Frozen, contents: Contents) -> Frozen:
    """A frozen node with other contents in what it is about to do: install pages, or send those that it has read."""
    if len(frozen[-2]) == 1:
        return frozen
    return (*frozen[:-2], (deque, *(_with_contents(effect, contents) for effect in frozen[-2][1:])), frozen[-1])


def _with_contents(effect: Frozen, contents: Contents) -> Frozen:
    if effect[0] is Install and effect[4] is not None:
        start, at = effect[2], 4
    elif effect[0] is Post:
        start, at = Data(*effect[2][1:]).start, 3
    else:
        return effect
    changed = (contents(start + place, value) for place, value in enumerate(effect[at][1:]))
    return (*effect[:at], (list, *changed), *effect[at + 1 :])
