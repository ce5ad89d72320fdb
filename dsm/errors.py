"""Everything dsm raises, as one tree. Each error is also the builtin that fits.

::

    DsmError
    ├── InvalidArgument          (ValueError)       an argument that can never be right
    │   └── RegionTooLarge                          beyond what can be mapped
    ├── RegionNotFound           (FileNotFoundError)
    ├── RegionExists             (FileExistsError)  create=True and the name is taken
    ├── RegionMismatch           (ValueError)       exists with another size, shape, dtype or page size
    ├── RegionClosed             (ValueError)       used after close()
    ├── NodeUnreachable          (ConnectionError)  no agent answers on the local socket
    ├── NodeExhausted            (OSError)          the agent has no descriptor left for one more mapping
    ├── DirectoryUnreachable     (ConnectionError)
    │   └── Fenced                                  it has given this node up
    ├── NodeNameInUse            (FileExistsError)  another live node has this name or address
    ├── VersionMismatch          (ConnectionError)  the other side speaks another protocol version
    ├── PermissionDenied         (PermissionError)  the agent belongs to somebody else
    ├── UserfaultfdUnavailable   (OSError)          kernel, device or privilege is missing; `dsm doctor` says which
    ├── PageLost                 (OSError)          the only copy of a page was on a host that is gone
    ├── OperationTimeout         (TimeoutError)
    ├── LockNotHeld              (RuntimeError)     release of a lock that is not held
    ├── OwnerDied                (RuntimeError)     the lock is yours, but who held it died
    ├── KindMismatch             (ValueError)       the name is that of another kind of primitive
    ├── ValueMismatch            (ValueError)       opened with another initial value
    ├── SemaphoreOverflow        (ValueError)       released more often than acquired
    ├── BarrierMismatch          (ValueError)       joined with another number of parties
    ├── BrokenBarrier            (threading.BrokenBarrierError)
    │   └── PartyDied            (and DeadlockError)  it cannot fill any more
    ├── DeadlockError            (RuntimeError)     everybody in a circle waits for the next
    ├── ClusterMismatch          (ValueError)       a pickle from another cluster
    ├── PrimitiveNotFound        (FileNotFoundError)  a semaphore or a counter that was unlinked
    ├── InUse                    (OSError)          somebody waits for what was to be removed
    └── ProtocolError            (RuntimeError)     a message or event that the rules do not allow
        └── Violation                               of an invariant, inside a service: it stops itself
"""

from __future__ import annotations

import threading


class DsmError(Exception):
    """Base of everything dsm raises. Every subclass is at once the builtin that fits."""


class InvalidArgument(DsmError, ValueError):
    """An argument that can never be right; nothing was changed."""


class RegionTooLarge(InvalidArgument):
    """A size beyond what the file system or the address space allows."""


class RegionNotFound(DsmError, FileNotFoundError):
    """No region of that name, and no size or shape was given to create one."""


class RegionExists(DsmError, FileExistsError):
    """``create=True`` and the name is taken."""


class RegionMismatch(DsmError, ValueError):
    """The region exists with another size, shape, dtype or page size."""


class RegionClosed(DsmError, ValueError):
    """The region was used after ``close()``."""


class NodeUnreachable(DsmError, ConnectionError):
    """No node agent answers on the local socket."""


class NodeExhausted(DsmError, OSError):
    """The node agent has no descriptor left for one more connection or mapping."""


class DirectoryUnreachable(DsmError, ConnectionError):
    """The directory does not answer."""


class Fenced(DirectoryUnreachable):
    """The directory has given this node up: its lease was over, or it had said what it should not."""


class NodeNameInUse(DsmError, FileExistsError):
    """Another live node has this name or address, or cannot reach the newcomer's address."""


class VersionMismatch(DsmError, ConnectionError):
    """The other side speaks another version of the protocol."""


class PermissionDenied(DsmError, PermissionError):
    """The node agent belongs to another user, or a file may not be opened."""


class UserfaultfdUnavailable(DsmError, OSError):
    """The kernel, the device or the privilege for userfaultfd is missing; ``dsm doctor`` says which."""


class PageLost(DsmError, OSError):
    """The only copy of some page was on a node that is gone. ``region.lost()`` lists such pages, ``region.reset()``
    makes them zeros."""


class OperationTimeout(DsmError, TimeoutError):
    """The operation did not finish within the time-out given."""


class LockNotHeld(DsmError, RuntimeError):
    """Release of a lock that this process does not hold."""


class BarrierMismatch(DsmError, ValueError):
    """A barrier was joined with another number of parties than it has."""


class BrokenBarrier(DsmError, threading.BrokenBarrierError):
    """The barrier was aborted, reset, or one of its parties timed out."""


class OwnerDied(DsmError, RuntimeError):
    """Whoever held this lock ended without releasing it: what it protects may be half changed.

    Raised by ``acquire()``, which has acquired the lock all the same, as ``pthread_mutex_lock`` does with EOWNERDEAD:
    mend what it protects, then release it. A ``with`` block is not entered, and the lock stays marked.
    """


class KindMismatch(DsmError, ValueError):
    """The name is in use by a primitive of another kind; nothing was changed."""


class ValueMismatch(DsmError, ValueError):
    """A semaphore or a counter was opened with another initial value than it has; nothing was changed."""


class SemaphoreOverflow(DsmError, ValueError):
    """A bounded semaphore was released more often than it was acquired; nothing was changed."""


class DeadlockError(DsmError, RuntimeError):
    """Everybody in a circle waits for the next; the text names all of them. Raised in the one that came last."""


class PartyDied(BrokenBarrier, DeadlockError):
    """The barrier cannot fill any more: one of its parties has ended."""


class ClusterMismatch(DsmError, ValueError):
    """A region or a primitive was pickled in another cluster than the one it is unpickled in."""


class PrimitiveNotFound(DsmError, FileNotFoundError):
    """No semaphore, counter or event of that name exists (any more)."""


class InUse(DsmError, OSError):
    """Somebody waits for, or has open, what was to be removed."""


class ProtocolError(DsmError, RuntimeError):
    """A message or an event that the rules do not allow; the text tells the story."""


class Violation(ProtocolError):
    """An invariant of the protocol does not hold for ``page`` of the region numbered ``region``: the service stops."""

    def __init__(self, text: str, region: int = 0, page: int = 0) -> None:
        super().__init__(text)
        self.region = region
        self.page = page


def _tree(base: type[DsmError]) -> dict[str, type[DsmError]]:
    found = {base.__name__: base}
    for child in base.__subclasses__():
        found |= _tree(child)
    return found


def from_wire(name: str, text: str) -> DsmError:
    """The error that another process named, to raise here. An unknown name becomes a plain ``DsmError``."""
    return _tree(DsmError).get(name, DsmError)(text)
