"""A side as a value that can be compared, and back: the one place here that knows the private fields of the machines.

A side is frozen by walking over all its fields into nested tuples ``(type, item, ...)``. Nothing is left out silently:
a class or a field that the table below does not know raises :class:`Unknown`.

Three things are made the same that cannot matter:

- *Generations* are only ever compared with one another: those that occur anywhere are numbered anew, in order.
- *Contents* of a page are 0 (zeros), LATEST (what was stored last) or OUTDATED: a store outdates every other copy.
- *Holdings* are written out in place of the number under which the directory interned them. After a departure two
  numbers may mean the same, which cuts runs shorter: ``twin`` tells them apart.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import cache
from typing import Any, Final, NamedTuple

from simulated_cluster import Application, Node, Thread

from directory.holdings import Holding, Holdings
from directory.machine import PageMachine
from dsm.pagetable import PageTable

Frozen = Any
"""Nested tuples ``(type, item, ...)`` with plain values at the leaves; hashable."""

LATEST: Final = 1
OUTDATED: Final = 2


class Unknown(TypeError):
    """A machine has a field, or a value of a type, that nobody has decided about: is it part of its state?"""


class Held(NamedTuple):
    """A Holding in place of its number; ``twin`` 0: the number that new pages held like this get."""

    state: int
    owner: int
    copies: int
    twin: int


class Side(NamedTuple):
    """A node: its machine, and what its shell knows. ``budget``: operations that it may still begin."""

    machine: Frozen
    memory: Frozen  # contents by page, HOLE where there is none
    applications: Frozen
    holds: Frozen
    bulk: Frozen
    budget: int


HOLE: Final = -1

KNOWN: Final[dict[str, frozenset[str]]] = {
    name: frozenset(fields.split())
    for name, fields in {
        "nodes.NodeMachine": "_regions _generation deferred",
        "nodes.Region": "number pages per_extent table asks waiters held deferred prefetches lost",
        "nodes.Ask": "generation start stop op ahead left target parts over",
        "nodes.Part": "count owed acks acked closed",
        "nodes.Prefetch": "owed write waiter",
        "nodes.Bulk": "_transfers",
        "directory.PageMachine": "_regions _names",
        "directory.Region": "pages per_extent table extents counts",
        "directory.Extent": "active queue",
    }.items()
}
"""By package and class: the fields that make up its state. Each is rewritten by its name, see ROLES."""

OMITTED: Final[dict[str, frozenset[str]]] = {
    name: frozenset(fields.split())
    for name, fields in {
        # Not state: who it is, constants, what only tells the story. ``late`` and ``rejected`` are looked at after
        # every step, and begin at 0 again. ``holdings`` is in the tables and transactions, written out.
        "nodes.NodeMachine": "me late story _cause _handlers",
        "directory.PageMachine": "holdings transactions rejected story _sweep_at",
    }.items()
}

SHELL: Final[dict[type[Any], frozenset[str]]] = {
    cls: frozenset(fields.split())
    for cls, fields in {
        Node: "cluster number machine memory applications holds bulk _effects",
        Application: "node name threads unprotected poisoned prefetches",
        Thread: "application access asleep reported",
    }.items()
}
"""The fields of the simulated shell, which is frozen by hand: a test compares."""

NODE_FIELDS: Final = frozenset(("node", "requester", "sender", "supplier", "owner"))
MASK_FIELDS: Final = frozenset(("copies", "sharers", "acked"))
HOLDING_FIELDS: Final = frozenset(("before", "after"))
PLAIN_FIELDS: Final = frozenset(
    "region start stop count first total page pages op ahead zero keep acks state twin reason fetch "
    "machine memory applications holds bulk budget".split()
)
"""Fields of messages and other named tuples that are rewritten by their own type only."""
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
    cls = type(thing)
    kind = kind_of(cls)
    names = {slot for base in cls.__mro__ for slot in getattr(base, "__slots__", ())} | set(
        getattr(thing, "__dict__", ())
    )
    unknown = names - KNOWN[kind] - OMITTED.get(kind, frozenset())
    if unknown:
        raise Unknown(
            f"{kind} has fields that {__name__} does not know: {sorted(unknown)}; are they part of its state?"
        )
    return tuple(sorted(names & KNOWN[kind]))


@cache
def _named_fields(cls: type[Any]) -> tuple[str, ...]:
    """The fields of a named tuple: how to rewrite each is decided by its name."""
    names: tuple[str, ...] = cls._fields  # type: ignore[attr-defined]
    unknown = set(names) - ROLES
    if unknown:
        raise Unknown(f"{cls.__qualname__} has fields that {__name__} does not know: {sorted(unknown)}")
    return names


# -- freezing ------------------------------------------------------------------------------------------


class Freezer:
    """Freezes one side. ``applications``: those of the node, which its machine knows as waiters."""

    def __init__(self, applications: list[Application], holdings: Holdings | None = None) -> None:
        self._applications = applications
        self._holdings = _twins(holdings) if holdings is not None else {}

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


def _twins(holdings: Holdings) -> dict[int, Frozen]:
    """What to write in place of each number."""
    seen: dict[Holding, int] = {}
    out: dict[int, Frozen] = {}
    for number, holding in enumerate(holdings._holdings):
        if holdings._numbers.get(holding) == number:
            out[number] = (Held, *holding, 0)
        else:
            seen[holding] = twin = seen.get(holding, 0) + 1
            out[number] = (Held, *holding, twin)
    return out


def freeze_directory(machine: PageMachine, members: set[int]) -> Frozen:
    """The directory and whom it counts as members."""
    return (tuple, Freezer([], machine.holdings).freeze(machine), (set, *sorted(members)))


def freeze_node(node: Node, pages: int, budget: int) -> Frozen:
    freezer = Freezer(node.applications)
    memory = (tuple, *(node.memory.get(page, HOLE) for page in range(pages)))
    applications = (tuple, *map(_freeze_application, node.applications))
    holds = (deque, *node.holds)
    return (Side, freezer.freeze(node.machine), memory, applications, holds, freezer.freeze(node.bulk), budget)


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
    _, inner, members = frozen
    found: set[Frozen] = set()
    _find_held(inner, found)
    numbers: dict[Frozen, int] = {(Held, 0, 0, 0, 0): 0}
    for held in sorted(found, key=lambda held: (held[-1], held[1:])):  # first those that new pages get
        holding = Holding(*held[1:4])
        if held not in numbers:
            numbers[held] = len(machine.holdings._holdings)
            machine.holdings._holdings.append(holding)
            machine.holdings._numbers.setdefault(holding, numbers[held])
        if held[-1]:  # its first number may be that of no page now
            assert holding in machine.holdings._numbers
    Thawer([], numbers).into(machine, inner)
    return machine, set(members[1:])


def _find_held(frozen: Frozen, found: set[Frozen]) -> None:
    if type(frozen) is tuple:
        if frozen and frozen[0] is Held:
            found.add(frozen)
            if frozen[-1]:
                found.add((*frozen[:-1], 0))
        else:
            for item in frozen:
                _find_held(item, found)


def thaw_node(frozen: Frozen, node: Node) -> None:
    """Give a new node, which has no applications yet, its state."""
    _, machine, memory, applications, holds, bulk, _ = frozen
    node.memory = {page: value for page, value in enumerate(memory[1:]) if value != HOLE}
    node.applications = [_thaw_application(node, i, each) for i, each in enumerate(applications[1:])]
    node.holds = deque(holds[1:])
    thawer = Thawer(node.applications)
    node.bulk = thawer.thaw(bulk)
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
    """What to put in place of generations (of a node), of a node's last generation, of nodes and of bit masks of them."""

    generation: Callable[[int, int], int] = lambda owner, number: number
    last: Callable[[int, int], int] = lambda owner, number: number
    node: Callable[[int], int] = lambda node: node
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
        return frozen
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
    if cls is Side:  # the shell knows of no other node, but for the bulk that it sends
        side = Side(*frozen[1:])
        machine, bulk = rewritten(side.machine, owner, how), rewritten(side.bulk, owner, how)
        return (cls, *side._replace(machine=machine, bulk=bulk))
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
    """Whose generation a message or transaction carries, if it says so itself."""
    fields = cls._fields  # type: ignore[attr-defined]
    if "requester" in fields:
        return int(frozen[1 + fields.index("requester")])
    if "generation" in fields and "node" in fields and type(frozen[1 + fields.index("node")]) is int:
        return int(frozen[1 + fields.index("node")])
    return owner


def with_contents(frozen: Frozen, page: int, value: int) -> Frozen:
    """A frozen node with other contents of a page, if it has any."""
    memory = frozen[2]
    if memory[1 + page] == HOLE:
        return frozen
    return (*frozen[:2], (*memory[: 1 + page], value, *memory[2 + page :]), *frozen[3:])
