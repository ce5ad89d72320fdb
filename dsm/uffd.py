"""The one file that speaks userfaultfd: numbers, layouts, requests, events, and what each errno means.

Sources: ioctl_userfaultfd(2), the kernel's Documentation/admin-guide/mm/userfaultfd.rst and
include/uapi/linux/userfaultfd.h. The numbers are spelled out because distributions ship older headers than kernels;
they are the same on x86-64 and aarch64. `tests/kernel` checks every behaviour that is relied on.
"""

from __future__ import annotations

import ctypes
import enum
import errno
import os
from fcntl import ioctl
from pathlib import Path
from struct import Struct
from typing import Final

from dsm.constants import PAGE_BYTES
from dsm.errors import InvalidArgument, UserfaultfdUnavailable

DEVICE: Final = "/dev/userfaultfd"
"""Whoever may open it may make userfaultfds, or hand the open descriptor to somebody who may not."""

FLAG_WRITE: Final = 1
"""The access that faulted is a store."""
FLAG_WP: Final = 2
"""The page is write-protected, present here or not; without this flag it is absent."""

FEATURE_NAMES: Final = (
    "PAGEFAULT_FLAG_WP", "EVENT_FORK", "EVENT_REMAP", "EVENT_REMOVE", "MISSING_HUGETLBFS", "MISSING_SHMEM",
    "EVENT_UNMAP", "SIGBUS", "THREAD_ID", "MINOR_HUGETLBFS", "MINOR_SHMEM", "EXACT_ADDRESS", "WP_HUGETLBFS_SHMEM",
    "WP_UNPOPULATED", "POISON", "WP_ASYNC", "MOVE",
)  # fmt: skip
"""The position is the bit."""

NEEDED: Final = frozenset({"PAGEFAULT_FLAG_WP", "MISSING_SHMEM", "WP_HUGETLBFS_SHMEM", "POISON"})
"""Events (fork, remap, remove, unmap) are left out on purpose: they block the application until they are read. Markers
on empty ranges of a memfd come with WP_HUGETLBFS_SHMEM; WP_UNPOPULATED would bring them to anonymous memory."""
_INITIALIZED: Final = 1 << 31
"""What the kernel shows beside the features of a descriptor that was negotiated (fs/userfaultfd.c)."""

SYSCALL_NUMBERS: Final = {"x86_64": 323, "aarch64": 282}
"""By what uname(2) calls the machine."""

SAYS_MORE: Final = "; `dsm doctor` says more"
"""How an error of this file ends, wherever it is not that very command that shows it."""

_API: Final = 0xAA
_IOC_NEW: Final = 0xAA00
_IOC_API: Final = 0xC018AA3F
_IOC_REGISTER: Final = 0xC020AA00
_IOC_WAKE: Final = 0x8010AA02
_IOC_COPY: Final = 0xC028AA03
_IOC_WRITEPROTECT: Final = 0xC018AA06
_IOC_POISON: Final = 0xC020AA08

_REGISTER_MISSING_WP: Final = 1 | 2
_COPY_WP: Final = 2
_PROTECT: Final = 1
_UNPROTECT: Final = 0
_UNPROTECT_DONTWAKE: Final = 2

_API_ARGUMENT: Final = Struct("<QQQ")  # api, features, ioctls
_REGISTER_ARGUMENT: Final = Struct("<QQQQ")  # start, length, mode, ioctls
_COPY_ARGUMENT: Final = Struct("<QQQQq")  # to, source, length, mode, bytes copied or -errno
_POISON_ARGUMENT: Final = Struct("<QQQq")  # start, length, mode, bytes poisoned or -errno
_WRITEPROTECT_ARGUMENT: Final = Struct("<QQQ")  # start, length, mode
_WAKE_ARGUMENT: Final = Struct("<QQ")  # start, length
_COPIED: Final = Struct("<32xq")
_EVENT: Final = Struct("<8xQQ8x")  # struct uffd_msg of a page fault; no other event is asked for

_ARGUMENT_BYTES: Final = 1032
"""fcntl.ioctl passes a buffer beyond 1024 bytes as it is. A smaller one is copied in and out, and from Python 3.14 on
not out again when the request fails, which would hide how far a partial COPY came."""

_READ_BYTES: Final = 64 * _EVENT.size
"""One read takes this much: threads of one process seldom wait on more pages at once."""

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class Outcome(enum.Enum):
    """What became of a request. Everything else that a kernel may say is an error of ours and raises ``OSError``."""

    DONE = "done"
    PRESENT = "present"
    """A page was there already and stayed as it is; the other pages of the request are done."""
    GONE = "gone"
    """The range was unmapped or its process has exited: forget it."""


_DONE: Final = Outcome.DONE
_AGAIN: Final = None

_MEANING: Final[dict[int | None, Outcome | None]] = {
    errno.EAGAIN: _AGAIN,  # the address space was changing, or a COPY came only part of the way
    errno.EEXIST: Outcome.PRESENT,
    errno.ENOENT: Outcome.GONE,  # the range is not mapped, or not registered, any more
    errno.ESRCH: Outcome.GONE,  # the process has exited or called exec
    errno.ENOSPC: Outcome.GONE,  # COPY into an exited process, on some kernels
}


def classify(error: OSError) -> Outcome | None:
    """What a refused request means; None: ask again. Raises ``error`` when it is no normal event.

    EINVAL and EFAULT are mistakes of the caller; ENOMEM: the host, or the control group, has no memory left.
    """
    if error.errno not in _MEANING:
        raise error
    return _MEANING[error.errno]


def open_device() -> int | None:
    """A new descriptor of /dev/userfaultfd, or None where it does not exist or may not be opened."""
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None


def probe(device: int | None) -> frozenset[str]:
    """Names of the features this kernel has. Raises :class:`UserfaultfdUnavailable` where none can be made at all."""
    fd = _new(device)
    try:
        offered = _negotiate(fd, 0)
    finally:
        os.close(fd)
    return frozenset(name for bit, name in enumerate(FEATURE_NAMES) if offered >> bit & 1)


def _new(device: int | None) -> int:
    """A userfaultfd that has not been negotiated yet."""
    flags = os.O_CLOEXEC | os.O_NONBLOCK
    if device is not None:
        try:
            return ioctl(device, _IOC_NEW, flags)
        except OSError as error:
            raise _unavailable(error.errno, f"a userfaultfd from {DEVICE}") from error
    number = SYSCALL_NUMBERS.get(os.uname().machine)
    if number is None:
        raise UserfaultfdUnavailable(f"dsm runs on x86-64 and aarch64, not on {os.uname().machine}")
    fd: int = _libc.syscall(ctypes.c_long(number), ctypes.c_int(flags))
    if fd < 0:
        raise _unavailable(ctypes.get_errno(), "the userfaultfd system call")
    return fd


def _unavailable(number: int | None, what: str) -> UserfaultfdUnavailable:
    there = "" if os.path.exists(DEVICE) else f" (in a container: `--device {DEVICE}`)"
    remedy = {
        errno.EPERM: f"run the node as root or let its user open {DEVICE}{there}",
        errno.ENOSYS: "the kernel was built without CONFIG_USERFAULTFD",
        errno.EMFILE: "raise the limit on open files (`ulimit -n`)",
    }.get(number or 0, "run `dsm doctor`")
    return UserfaultfdUnavailable(f"{what} was refused ({os.strerror(number or 0)}): {remedy}{SAYS_MORE}")


def _needed_bits() -> int:
    return sum(1 << bit for bit, name in enumerate(FEATURE_NAMES) if name in NEEDED)


def _negotiate(fd: int, features: int) -> int:
    """The features the kernel has, as bits; ``OSError`` EINVAL if it lacks one that was asked for."""
    argument = bytearray(_API_ARGUMENT.pack(_API, features, 0))
    ioctl(fd, _IOC_API, argument, True)
    offered: int = _API_ARGUMENT.unpack(argument)[1]
    return offered


def _missing_features(device: int | None) -> UserfaultfdUnavailable:
    missing = ", ".join(sorted(NEEDED - probe(device)))
    return UserfaultfdUnavailable(
        f"Linux {os.uname().release} lacks userfaultfd features ({missing}): boot Linux 6.8 or newer"
    )


class Userfaultfd:
    """One userfaultfd: that of one application's mapping of one region.

    Not for several threads at once: the argument of all requests is one buffer. Addresses and lengths are bytes, in
    whole kernel pages, in the address space of the process that made the descriptor.
    """

    __slots__ = ("_argument", "_fd")

    def __init__(self, fd: int) -> None:
        """Takes ownership of ``fd``, negotiated by whoever made it. Raises :class:`InvalidArgument` (and leaves ``fd``
        open) if it is no userfaultfd: it may have come from another process."""
        if os.readlink(f"/proc/self/fd/{fd}") != "anon_inode:[userfaultfd]":
            raise InvalidArgument(f"descriptor {fd} is no userfaultfd")
        os.set_blocking(fd, False)  # its maker shares the flag; a read that blocks would stop a whole service
        self._fd = fd
        self._argument = bytearray(_ARGUMENT_BYTES)

    @classmethod
    def adopt(cls, fd: int) -> Userfaultfd:
        """One that another process has made and handed over. Raises :class:`InvalidArgument` (and leaves ``fd`` open)
        unless it was negotiated as :meth:`create` does: with events to answer, its calls could be made to wait."""
        adopted = cls(fd)
        line = next(line for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines() if line[:4] == "API:")
        features = int(line.split(":")[2], 16)
        if features != _needed_bits() | _INITIALIZED:
            raise InvalidArgument(f"this userfaultfd has the features {features:#x}: use the same release of dsm")
        return adopted

    @classmethod
    def create(cls, device: int | None) -> Userfaultfd:
        """A new one for this process, through a descriptor of /dev/userfaultfd, or by the system call if None.

        Raises :class:`UserfaultfdUnavailable`, which says what to do.
        """
        fd = _new(device)
        try:
            _negotiate(fd, _needed_bits())
            return cls(fd)
        except BaseException as error:
            os.close(fd)
            if isinstance(error, OSError) and error.errno == errno.EINVAL:
                raise _missing_features(device) from error
            raise

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        """Closes this descriptor. With the last one the range is no longer registered: absent pages read as zeros."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def register(self, address: int, length: int) -> None:
        """Faults on absent and on write-protected pages of the range come here. Called by the process that maps it."""
        argument = bytearray(_REGISTER_ARGUMENT.pack(address, length, _REGISTER_MISSING_WP, 0))
        ioctl(self._fd, _IOC_REGISTER, argument, True)

    def copy(self, to: int, source: int, length: int, protect: bool) -> Outcome:
        """Fill absent pages at ``to`` from ``source`` in this process, map them there, and wake who waits for them.

        PRESENT: some page was in the memfd already (or mapped there); it keeps its data and its protection.
        """
        outcome = _DONE
        mode = _COPY_WP if protect else 0
        while True:
            _COPY_ARGUMENT.pack_into(self._argument, 0, to, source, length, mode, 0)
            try:
                ioctl(self._fd, _IOC_COPY, self._argument, True)
                return outcome
            except OSError as error:
                refusal = classify(error)
            if refusal is Outcome.GONE:
                return refusal
            advance = max(0, _COPIED.unpack_from(self._argument)[0])
            if refusal is Outcome.PRESENT:  # said of the first page of this round only
                self.wake(to, PAGE_BYTES)
                outcome, advance = refusal, PAGE_BYTES
            to, source, length = to + advance, source + advance, length - advance
            if length <= 0:
                return outcome

    def protect(self, address: int, length: int) -> Outcome:
        """Stores to the range fault from now on, also where no page is yet (a marker; it allocates no page)."""
        return self._writeprotect(address, length, _PROTECT)

    def unprotect(self, address: int, length: int) -> Outcome:
        """Allow stores to the range, and wake who waits there. A marker without a page is gone too."""
        return self._writeprotect(address, length, _UNPROTECT)

    def _writeprotect(self, address: int, length: int, mode: int) -> Outcome:
        while True:
            _WRITEPROTECT_ARGUMENT.pack_into(self._argument, 0, address, length, mode)
            try:
                ioctl(self._fd, _IOC_WRITEPROTECT, self._argument, True)
                return _DONE
            except OSError as error:
                refusal = classify(error)
            if refusal is not _AGAIN:
                return refusal

    def wake(self, address: int, length: int) -> Outcome:
        """Let everyone who waits in the range retry; who still may not go on faults again and is told again."""
        while True:
            _WAKE_ARGUMENT.pack_into(self._argument, 0, address, length)
            try:
                ioctl(self._fd, _IOC_WAKE, self._argument, True)
                return _DONE
            except OSError as error:
                refusal = classify(error)
            if refusal is not _AGAIN:
                return refusal

    def poison(self, address: int, length: int) -> Outcome:
        """The next touch of the range in this process, and of who waits there now, is SIGBUS.

        The pages must be absent (punched) before: protection is lifted first, since a marker is in the way, and a
        page that is still mapped would then be writable. PRESENT: there was such a page, and it is not poisoned.
        """
        outcome = self._writeprotect(address, length, _UNPROTECT_DONTWAKE)
        for page in range(address, address + length, PAGE_BYTES):
            if outcome is Outcome.GONE:
                break
            told = self._poison_page(page)
            outcome = outcome if told is _DONE else told
        return outcome

    def _poison_page(self, address: int) -> Outcome:
        while True:
            _POISON_ARGUMENT.pack_into(self._argument, 0, address, PAGE_BYTES, 0, 0)
            try:
                ioctl(self._fd, _IOC_POISON, self._argument, True)
                return _DONE
            except OSError as error:
                refusal = classify(error)
            if refusal is not _AGAIN:
                return refusal

    def faults(self) -> list[tuple[int, int]]:
        """(flags, address) of every fault that is ready, [] if none. Each is told once, until a WAKE on its range."""
        events: list[tuple[int, int]] = []
        while True:
            try:
                data = os.read(self._fd, _READ_BYTES)
            except BlockingIOError:
                return events
            events += _EVENT.iter_unpack(data)
            if len(data) < _READ_BYTES:
                return events
