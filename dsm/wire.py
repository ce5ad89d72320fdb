"""The messages, and the one place where bytes become messages.

A control message is a MessagePack array ``[version, kind, field, ...]``. Every field is checked on arrival against
the annotation of the message's class; what does not fit raises :class:`~dsm.errors.ProtocolError` and changes
nothing. Page data never passes through here: it travels beside a :class:`Data` message, as it is.

The messages between services are also the events of the pure machines: one vocabulary, no translation.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, NamedTuple, get_args, get_type_hints

from dsm import constants
from dsm.codec import Codec, Layout


class Bounds(NamedTuple):
    """Inclusive limits: of the value of an int, of the length of a str, bytes or list."""

    low: int
    high: int


Flag = bool
U8 = Annotated[int, Bounds(0, 2**8 - 1)]
U16 = Annotated[int, Bounds(0, 2**16 - 1)]
U32 = Annotated[int, Bounds(0, 2**32 - 1)]
U64 = Annotated[int, Bounds(0, 2**63 - 1)]
"""Page numbers, sizes and addresses; below 2**63 so that they fit the kernel's signed offsets."""
I64 = Annotated[int, Bounds(-(2**63), 2**63 - 1)]
Kind = Annotated[int, Bounds(0, 7)]
"""Of a named primitive: see LOCK and those below it."""
Wait = Annotated[int, Bounds(0, 2)]
"""How somebody waits: see TRY, TIMED and FOREVER."""
Name = Annotated[str, Bounds(1, constants.NAME_CHARS_MAX)]
_TEXT_CHARS_MAX: Final = 4096
Text = Annotated[str, Bounds(0, _TEXT_CHARS_MAX)]
SessionName = Annotated[bytes, Bounds(16, 16)]
"""Of the conversation in which a node became a member: only it and the directory know it (:mod:`dsm.session`)."""
Packed = Annotated[bytes, Bounds(0, constants.PACKED_BYTES_MAX)]
"""Many numbers, little-endian."""
Options = Annotated[dict[str, Any], Bounds(0, 64)]
"""Region options travel as a map, so that later ones need no new message."""

# Operations of a Request. EVICT gives a clean copy back; RESET makes a lost page begin anew, as zeros.
READ: Final = 0
WRITE: Final = 1
EVICT: Final = 2
RESET: Final = 3

# Why pages are requested. Only what a thread waits for goes before everything else.
FAULT: Final = 0
GUESS: Final = 1
"""Read-ahead. A write is then granted only where no page was ever touched: nobody is to lose a page for a guess."""
PREFETCH: Final = 2
"""What will be used for sure: an explicit prefetch, or what lies ahead of a thread that stores to page after page."""

# How a node has pages.
COPY: Final = 0
ONLY: Final = 1
"""Nobody else has one: exclusive."""
KEPT: Final = 2
"""It has given them up, but what was in them is still there, should nobody have got it."""

# How a region is opened.
OPEN_OR_CREATE: Final = 0
MUST_NOT_EXIST: Final = 1
MUST_EXIST: Final = 2

# Kinds of named primitives. They share their names: one name, one kind.
LOCK: Final = 0
RLOCK: Final = 1
SEMAPHORE: Final = 2
BOUNDED_SEMAPHORE: Final = 3
EVENT: Final = 4
CONDITION: Final = 5
BARRIER: Final = 6
COUNTER: Final = 7
KIND_NAMES: Final = (
    "lock", "reentrant lock", "semaphore", "bounded semaphore", "event", "condition", "barrier", "counter",
)  # fmt: skip

# How somebody waits.
TRY: Final = 0
"""Not at all."""
TIMED: Final = 1
"""Until the waiter cancels it, at the latest."""
FOREVER: Final = 2
"""As long as it takes: a circle of such waits is a deadlock."""

# Bits of the value with which a lock is Granted to a node.
CONTENDED: Final = 1
"""Others wait for it: give it back once it is released, without being asked."""
OWNER_DIED: Final = 2
"""Who held it last ended without releasing it."""

ACT: Final = 1 << 32
"""Bit of the value with which a full barrier is Granted: this one runs the action; the others wait for its Post."""

ALL: Final = 2**32 - 1
"""The count of a Post to a condition that wakes all."""

DIRECTORY: Final = 0
"""The directory's address among node ids; nodes count from 1."""


# --- pages: node -> directory ---------------------------------------------------------------------


class Request(NamedTuple):
    """Pages ``[start, start + count)`` are wanted. ``generation`` numbers the sender's requests; every answer repeats
    it. ``need`` is why: see FAULT, GUESS and PREFETCH."""

    region: U32
    generation: U32
    start: U64
    count: U32
    op: U8
    need: U8


class Done(NamedTuple):
    """The requester has everything that a transaction, or a part of it, owed it: the directory may start the next one
    on these pages."""

    region: U32
    generation: U32
    start: U64
    count: U32


class GaveUp(NamedTuple):
    """The answer to Orphan of a requester: these pages have not come, and the transaction is over without them."""

    region: U32
    generation: U32
    start: U64
    count: U32


class Hurry(NamedTuple):
    """A thread of ``requester`` waits for ``page``, which was asked for among many, or ahead: it goes before the
    others. From the requester to the directory, and on to whoever supplies the page."""

    region: U32
    generation: U32
    page: U64
    requester: U16


# --- pages: directory -> node ---------------------------------------------------------------------


class Grant(NamedTuple):
    """To the requester, where no data travels: it has a copy already, the pages were never written or begin anew
    (``zero``), or it may drop them (EVICT). Complete once ``acks`` other nodes have acknowledged."""

    region: U32
    generation: U32
    start: U64
    count: U32
    acks: U16
    zero: Flag


class Fetch(NamedTuple):
    """To the owner: send these pages to ``requester``, keeping a read-only copy (``keep``) or none. ``acks`` and
    ``generation`` are passed on with the data. ``ahead``: no thread waits for them."""

    region: U32
    generation: U32
    start: U64
    count: U32
    requester: U16
    acks: U16
    keep: Flag
    ahead: Flag


class Invalidate(NamedTuple):
    """To a sharer: drop these pages, then acknowledge to ``requester``."""

    region: U32
    generation: U32
    start: U64
    count: U32
    requester: U16


class Refuse(NamedTuple):
    """To the requester: not granted. Threads that wait ask again; a prefetch or an eviction is over."""

    region: U32
    generation: U32
    start: U64
    count: U32


class Orphan(NamedTuple):
    """To the requester: the owner has gone. Give up the pages that have not come, and say GaveUp."""

    region: U32
    generation: U32
    start: U64
    count: U32


class Lost(NamedTuple):
    """To the requester: the only copy of these pages was on the node named ``node``, which is gone."""

    region: U32
    generation: U32
    start: U64
    count: U32
    node: Name


class Restore(NamedTuple):
    """To a node that has used the region: these pages, which were lost, begin anew. It is to forget that, then to
    acknowledge to ``requester``, which makes them zeros."""

    region: U32
    generation: U32
    start: U64
    count: U32
    requester: U16


class Revive(NamedTuple):
    """To a node that has kept what was in these pages when another one was to write them: that one is lost, or never
    got them, so that is in them again, and they are here, shared. Those that are here anyway stay as they are."""

    region: U32
    start: U64
    count: U32


# --- pages: node -> node --------------------------------------------------------------------------


class Data(NamedTuple):
    """Pages ``[start, start + count)`` of the transaction ``[first, first + total)``; the page data follows."""

    region: U32
    generation: U32
    first: U64
    total: U32
    start: U64
    count: U32
    acks: U16


class Ack(NamedTuple):
    """The copy of ``sender`` is gone; ``start`` names the transaction as its first page."""

    region: U32
    generation: U32
    start: U64
    sender: U16


# --- membership -----------------------------------------------------------------------------------


class Join(NamedTuple):
    name: Name
    address: Name


class Welcome(NamedTuple):
    node: U16


class Shards(NamedTuple):
    """To a newcomer before its Welcome, where the directory has several shards: the addresses of the others, separated
    by spaces, from the second on. Of each of them it becomes a member, too, before it says anything else."""

    addresses: Text


class Enlist(NamedTuple):
    """To another shard of the directory than the first, which has called the sender ``node``. Answered with Welcome."""

    node: U16
    name: Name
    address: Name


class JoinShard(NamedTuple):
    """To the first shard of a directory, by one more that listens on ``address``. Answered with Shards, which has a
    word for each of the others, and Welcome with the number of this one. After that it hears of members and regions
    (Member, MemberLeft, Opened, Destroy), and answers Opened with Granted."""

    address: Name


class Member(NamedTuple):
    """A node has arrived; sent to every node, and to a newcomer once for every node that is there."""

    node: U16
    name: Name
    address: Name


class MemberLeft(NamedTuple):
    node: U16
    reason: Text


class Heartbeat(NamedTuple):
    """``beat`` numbers the sender's heartbeats; ``heard`` counts the answers (ANSWERS) that have come to it."""

    applications: U32
    beat: U32
    heard: U64


class Lease(NamedTuple):
    """The answer to a Heartbeat: ``shard`` of the directory counts the node as a member for a lease from then on, and
    remembers what has come of the ``heard`` first messages (REMEMBERED) of it."""

    shard: U8
    beat: U32
    heard: U64


class Leave(NamedTuple):
    """The sender is going; it holds no page any more that anybody will get."""


class Fenced(NamedTuple):
    """The sender of the message just received is no member (any more): it must stop."""

    reason: Text


# --- a directory that begins again (node -> directory, and back) ----------------------------------------


class Rejoin(NamedTuple):
    """The directory has forgotten the sender's conversation: was it restarted? ``session``: that of its Join.

    Or it was the sender's agent that was killed: another one took its place, and knows neither what is under way nor
    whether its pages are exclusive. Then ``anew`` is the epoch that is to begin with this, a number that nobody else
    can guess; otherwise 0."""

    node: U16
    session: SessionName
    anew: U32


class Rejoined(NamedTuple):
    """It was, and remembers what has come of the ``heard`` first messages (REMEMBERED) of the node: say the later ones
    again, and then what is still Awaited. ``epoch`` is this beginning of it, a number that nobody else can guess."""

    heard: U64
    epoch: U32


class Awaited(NamedTuple):
    """The ``tickets`` (u32) that are to be answered still, but for those of what was just said again, and of what the
    sender will ask again itself. After an agent was killed this is the end of what it has said anew."""

    tickets: Packed


class Stands(NamedTuple):
    """After an agent was killed, before all else: the lock that the node got as ``grant`` is held there, or somebody
    will hold it once he hears of that. Any other that belongs to the node nobody holds."""

    grant: U32
    name: Name


class Opens(NamedTuple):
    """After an agent was killed, before all else: so many of the opens of a region last. Of any other none do."""

    region: U32
    opens: U32


class Flush(NamedTuple):
    """All are there again: send what is owed to peers, and last Flushed. ``nodes`` (u16): who is a member."""

    epoch: U32
    nodes: Packed


class Flushed(NamedTuple):
    """To a peer, on each of the two connections (``bulk``): nothing that was ordered before is still to come on it."""

    epoch: U32
    sender: U16
    bulk: Flag


class Have(NamedTuple):
    """Pages that the sender has, or none of a region that it knows. ``runs``: (first page u64, count u32) each.
    ``how``: see COPY, ONLY and KEPT."""

    region: U32
    how: U8
    runs: Packed


class Rebuilt(NamedTuple):
    """There are no more: the sender has told the directory of all pages. After that, the answer to a Revive."""

    epoch: U32


class GoOn(NamedTuple):
    """Every node has: pages may be asked for."""

    epoch: U32


# --- second copies, of pages that only one node has (node -> directory, and back) -------------------------


class Drain(NamedTuple):
    """The sender is about to leave: others are to take what only it has. Answered with Drained."""


class Drained(NamedTuple):
    """That is done, but for ``left`` pages, which nobody could take."""

    left: U64


class Mirror(NamedTuple):
    """What only the sender has of a region is to be on another node, too. Answered with Granted when it is."""

    ticket: U32
    region: U32


class Take(NamedTuple):
    """Fetch these pages of a region that the receiver may not know yet, and keep them."""

    region: U32
    size: U64
    page_size: U32
    name: Name
    options: Options
    start: U64
    count: U32


class Taken(NamedTuple):
    """They have been here."""

    region: U32
    start: U64
    count: U32


# --- questions with one answer, in both worlds (node -> directory, application -> node) ---------------


class Failure(NamedTuple):
    """The answer to ``ticket`` is an error of :mod:`dsm.errors`."""

    ticket: U32
    error: Name
    text: Text


class Answer(NamedTuple):
    ticket: U32
    value: Options


class Open(NamedTuple):
    """Open or create a region. ``size`` 0: must exist. ``create`` is how: see OPEN_OR_CREATE."""

    ticket: U32
    name: Name
    size: U64
    page_size: U32
    create: U8
    options: Options


class Opened(NamedTuple):
    ticket: U32
    region: U32
    size: U64
    page_size: U32
    options: Options


class Keep(NamedTuple):
    """An application of the sending node has mapped the region: from now on it exists until it is unlinked. One that
    was created and that nobody could map goes with the last Close."""

    region: U32


class Hold(NamedTuple):
    """Application to node, and node to directory for its first and its last: the region, which does not persist, is not
    over while it is held (``on``), unless it is unlinked. The node answers with Ready; the end of the connection ends
    its holds."""

    region: U32
    on: Flag


class Close(NamedTuple):
    """The last application of the sending node has detached from the region, which it had opened ``opens`` times; an
    Open that crosses this message on its way is not among them, and keeps the node attached."""

    region: U32
    opens: U32


class Unlink(NamedTuple):
    ticket: U32
    name: Name


class Destroy(NamedTuple):
    """To every node that opened it: the region is unlinked and nobody is attached; forget its pages."""

    region: U32


class Query(NamedTuple):
    """``what``: "status" (of the cluster), "owners" (``region``, ``start``, ``count``: who owns each page), "lost" (the
    same: which of these pages are lost, and with whom), "story" (of page ``start`` of ``region``), "cluster" (its
    name), or "here", which a node answers itself: it is there, and not about to leave."""

    ticket: U32
    what: Name
    region: U32
    start: U64
    count: U32


# --- synchronisation (application -> node -> directory, and back) ------------------------------------
#
# ``process`` is a random number of the application process, ``thread`` the waiting thread in it, ``who`` a text that
# tells people which that is.


class Acquire(NamedTuple):
    """Wait for what the primitive called ``name`` gives: a lock, one of a semaphore, an event to be set, a condition to
    be notified. ``wait`` is how: see TRY, TIMED and FOREVER."""

    ticket: U32
    name: Name
    kind: Kind
    wait: Wait
    process: U64
    thread: U64
    who: Name


class Post(NamedTuple):
    """The other side of Acquire, by kind: ``count`` more of a semaphore; an event is set (1) or cleared (0); ``count``
    waiters of a condition are notified; ``count`` is added to a counter, and the answer is its new value; the action of
    a full barrier is done."""

    ticket: U32
    name: Name
    kind: Kind
    count: I64


class Enroll(NamedTuple):
    """Open a semaphore or a counter, which begins with ``value``, or become one of the ``value`` parties of a
    barrier."""

    ticket: U32
    name: Name
    kind: Kind
    value: I64
    process: U64
    thread: U64
    who: Name


class Arrive(NamedTuple):
    """Wait at a barrier of ``parties``. ``act``: this party has an action to run when it is full."""

    ticket: U32
    name: Name
    parties: U32
    wait: Wait
    act: Flag
    process: U64
    thread: U64
    who: Name


class BarrierReset(NamedTuple):
    """Wake everybody who waits with an error; ``broken``: and leave the barrier broken (abort)."""

    ticket: U32
    name: Name
    parties: U32
    broken: Flag


class Inspect(NamedTuple):
    """How a primitive stands; answered with a map, changes nothing."""

    ticket: U32
    name: Name
    kind: Kind


class Forget(NamedTuple):
    """Remove a semaphore, an event or a counter, with what it counts."""

    ticket: U32
    name: Name
    kind: Kind


class Cancel(NamedTuple):
    """Give up waiting on ``ticket``. Answered on that ticket: with Cancelled, or with what overtook it. ``died``: who
    waited has ended."""

    ticket: U32
    died: Flag


class Cancelled(NamedTuple):
    ticket: U32


class Granted(NamedTuple):
    """It is yours, or done. ``value``: of a lock see CONTENDED and OWNER_DIED, of a barrier the order of arrival and
    ACT, of a counter its new value."""

    ticket: U32
    value: I64


# --- locks: directory <-> node. A lock belongs to a node, which keeps it until others want it ----------


class Recall(NamedTuple):
    """To the node that has the lock: others want it. A node that has it no more has said so already."""

    name: Name


class Holds(NamedTuple):
    """The answer to Recall of a node where somebody holds the lock: Return will follow its release."""

    name: Name
    process: U64
    thread: U64
    who: Name


class Return(NamedTuple):
    """The node gives the lock back that it got as ``grant``, the ticket of whoever asked then. ``died``: who held it
    has ended without releasing it."""

    grant: U32
    name: Name
    died: Flag


class Gone(NamedTuple):
    """A process that has to do with a barrier has ended, or is about to. ``died``: without a word to its node."""

    process: U64
    died: Flag


# --- application -> node (Unix socket), and back --------------------------------------------------------


class Attach(NamedTuple):
    """As Open. Answered with Attached and the descriptors: memfd, and /dev/userfaultfd where the node may open it."""

    name: Name
    size: U64
    page_size: U32
    create: U8
    options: Options


class Attached(NamedTuple):
    region: U32
    size: U64
    page_size: U32
    options: Options
    node: Name


class Mapped(NamedTuple):
    """The region is mapped at ``address`` and registered with the userfaultfd that comes with this message."""

    address: U64


class Detach(NamedTuple):
    """The application is about to unmap the region of this connection; once answered (Ready), the node no longer
    touches the address range, which the kernel may give to another mapping."""


class Ready(NamedTuple):
    """Done; the answer to whatever has nothing to tell."""


class Prefetch(NamedTuple):
    """Bytes ``[start, stop)`` of the attached region; answered with Ready when all of them have been here."""

    start: U64
    stop: U64
    write: Flag


class Reset(NamedTuple):
    """Pages ``[start, stop)`` of the attached region that are lost become zeros; answered with Ready."""

    start: U64
    stop: U64


class Release(NamedTuple):
    """Give back the lock that is held on this connection; ``died``: still marked as that of an owner that died.
    Answered with Ready."""

    name: Name
    died: Flag


class WaitOn(NamedTuple):
    """Wait for the condition called ``name``, and then release ``lock``, which is held on this connection, in one step.
    Answered as Acquire; the lock is to be acquired again."""

    name: Name
    lock: Name
    wait: Wait
    process: U64
    thread: U64
    who: Name


class StatsQuery(NamedTuple):
    """Statistics of the attached region on this node; answered with Answer."""


MESSAGES: Final[tuple[type[Any], ...]] = (
    Request, Done, Grant, Fetch, Invalidate, Refuse, Lost, Data, Ack,
    Join, Welcome, Member, MemberLeft, Heartbeat, Leave, Fenced,
    Failure, Answer, Open, Opened, Close, Unlink, Destroy, Query,
    Acquire, Release, Arrive, BarrierReset, Inspect, Cancel, Cancelled, Granted,
    Attach, Attached, Mapped, Ready, Prefetch, StatsQuery,
    Orphan, GaveUp, Detach, Hurry, Keep, Shards, Enlist, JoinShard,
    Post, Enroll, Forget, Recall, Holds, Return, Gone, WaitOn, Hold, Restore, Reset, Lease,
    Rejoin, Rejoined, Awaited, Flush, Flushed, Have, Rebuilt, GoOn, Drain, Drained, Mirror, Take, Taken,
    Revive, Stands, Opens,
)  # fmt: skip
"""The position is the kind on the wire: append, never reorder."""

Message = tuple[Any, ...]
"""Any of MESSAGES."""

PAGES: Final = frozenset((Request, Done, GaveUp, Hurry))
"""What a node says to the directory of pages."""
REMEMBERED: Final = frozenset((
    Open, Keep, Hold, Close, Unlink, Acquire, Post, Enroll, Arrive, BarrierReset, Inspect, Forget, Cancel, Return,
    Holds, Gone,
))  # fmt: skip
"""What a node says to the directory of all else: where a directory can begin again, it has written it down before
anybody learns what came of it. Both ends count it."""
ANSWERS: Final = frozenset((Opened, Failure, Answer, Granted, Cancelled))
"""What the directory says on a ticket of a node."""


def _layout(cls: type[Any]) -> Layout:
    fields = [_field(hint) for hint in get_type_hints(cls, include_extras=True).values()]
    kinds = [kind for kind, _ in fields]
    return Layout(cls, kinds, [bounds.low for _, bounds in fields], [bounds.high for _, bounds in fields])


def _field(annotation: Any) -> tuple[type, Bounds]:
    if annotation is bool:
        return bool, Bounds(0, 1)
    kind, bounds = get_args(annotation)
    return getattr(kind, "__origin__", kind), bounds


_codec: Final = Codec(constants.PROTOCOL_VERSION, [_layout(cls) for cls in MESSAGES])
encode: Final = _codec.encode
decode: Final = _codec.decode


def failure(ticket: int, error: Exception) -> Failure:
    """The answer that tells an error, its text cut to what a message may carry."""
    return Failure(ticket, type(error).__name__, str(error)[:_TEXT_CHARS_MAX])
