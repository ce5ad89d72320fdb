"""Memory and timers from the C library: memfd, mappings, holes, a timer descriptor. Nothing about userfaultfd here.

Only what Python's own `os` and `mmap` cannot do goes through ctypes.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import resource
from struct import Struct
from typing import Final

from dsm.constants import EXTENT_BYTES, FRAME_BYTES, PAGE_BYTES, REGION_BYTES_MAX
from dsm.errors import RegionTooLarge

_MFD_NOEXEC_SEAL: Final = 0x0008  # Linux 6.3; allows seals, and hosts with vm.memfd_noexec=2 insist on it
_NAME_BYTES_MAX: Final = 200  # memfd_create(2) allows 249
_PUNCH_HOLE_KEEP_SIZE: Final = 0x02 | 0x01
_MAP_FIXED_NOREPLACE: Final = 0x100000
_MAP_NORESERVE: Final = 0x4000
_PR_SET_PDEATHSIG: Final = 1
_PIDFD_GETFD: Final = 438  # the same on x86-64 and aarch64
_TFD_FLAGS: Final = os.O_CLOEXEC | os.O_NONBLOCK  # TFD_CLOEXEC and TFD_NONBLOCK have these values
_CLOCK_MONOTONIC: Final = 1
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3

_libc: Final = ctypes.CDLL(None, use_errno=True)
_fallocate: Final = _libc.fallocate64 if hasattr(_libc, "fallocate64") else _libc.fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_mmap: Final = _libc.mmap
_mmap.argtypes = (
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
)  # fmt: skip
_mmap.restype = ctypes.c_void_p
_munmap: Final = _libc.munmap
_munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_madvise: Final = _libc.madvise
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_timerfd_settime: Final = _libc.timerfd_settime
_timerfd_settime.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_prctl: Final = _libc.prctl
_prctl.argtypes = (ctypes.c_int, ctypes.c_ulong)

_ITIMERSPEC: Final = Struct("@4q")  # interval s, ns; first expiry s, ns

_ADVICE: Final = (
    mmap.MADV_NOHUGEPAGE,  # a huge page would bring in, and take out, 512 pages at once
    mmap.MADV_DONTFORK,  # a forked child's mapping would be unmanaged: absent pages would read as zeros
)


def _fail(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}")


def keep_freed_memory() -> None:
    """Let the C library keep what is freed for what is allocated next. By default it gives buffers as large as a frame
    back to the kernel again and again, and each page of the next one is a fault (mallopt(3))."""
    if hasattr(_libc, "mallopt"):  # glibc
        _libc.mallopt(_M_MMAP_THRESHOLD, 2 * EXTENT_BYTES)
        _libc.mallopt(_M_TRIM_THRESHOLD, 8 * EXTENT_BYTES)


def create_memfd(name: str, length: int) -> int:
    """A descriptor of new, empty, anonymous memory of ``length`` bytes that nobody can resize.

    It shows as ``memfd:<name>`` in /proc; a name too long for that is cut. Raises :class:`RegionTooLarge` when the
    kernel refuses the length.
    """
    label = name.replace("\0", "?").encode("ascii", "replace").decode()[:_NAME_BYTES_MAX]  # whatever the locale is
    fd = os.memfd_create(label, os.MFD_CLOEXEC | _MFD_NOEXEC_SEAL)
    try:
        os.ftruncate(fd, length)
        # An application that shrank it would make every other one's access a SIGBUS.
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except (OSError, OverflowError) as error:
        os.close(fd)
        raise RegionTooLarge(f"no memory file can have {length} bytes: {error}") from error
    return fd


def punch_hole(memfd: int, offset: int, length: int) -> None:
    """Free the range: it leaves every process that maps it at once. Write-protect markers survive."""
    if _fallocate(memfd, _PUNCH_HOLE_KEEP_SIZE, offset, length):
        raise _fail("punching a hole")


def present(memfd: int, length: int) -> list[tuple[int, int]]:
    """Byte ranges ``[start, stop)`` of the first ``length`` bytes that have memory."""
    found: list[tuple[int, int]] = []
    stop = 0
    while stop < length:
        try:
            start = os.lseek(memfd, stop, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data beyond
                break
            raise
        stop = os.lseek(memfd, start, os.SEEK_HOLE)
        if start < length:
            found.append((start, min(stop, length)))
    return found


def is_present(memfd: int, offset: int) -> bool:
    """Does the page at ``offset`` have memory?"""
    try:
        return os.lseek(memfd, offset, os.SEEK_DATA) == offset
    except OSError as error:
        if error.errno == errno.ENXIO:  # no data from there on
            return False
        raise


def map_shared(memfd: int, length: int, kind: type[mmap.mmap] = mmap.mmap) -> mmap.mmap:
    """Map it, for this process only (a forked child has nothing there) and in small pages.

    Raises :class:`RegionTooLarge` when the address space has no room.
    """
    try:
        mapping = kind(memfd, length, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    except (OSError, OverflowError) as error:
        raise RegionTooLarge(f"{length} bytes cannot be mapped into this process: {error}") from error
    for advice in _ADVICE:
        mapping.madvise(advice)
    return mapping


def map_fixed(memfd: int, length: int, address: int) -> None:
    """Map it at ``address``, which must be free: what :func:`map_shared` made, again, in a forked child.

    Raises ``FileExistsError`` if something else has been mapped there since the fork.
    """
    flags = mmap.MAP_SHARED | _MAP_FIXED_NOREPLACE
    if _mmap(address, length, mmap.PROT_READ | mmap.PROT_WRITE, flags, memfd, 0) != address:
        raise _fail(f"mapping {length} bytes at {address:#x}")
    for advice in _ADVICE:
        if _madvise(address, length, advice):
            raise _fail("advising the kernel about the mapping")


def maps_lazily() -> bool:
    """Whether mapping memory leaves it absent. After mlockall(MCL_FUTURE) it does not: the kernel fills a mapping with
    zeros at once, before anybody can ask to serve its faults."""
    memfd = create_memfd("dsm:probe", PAGE_BYTES)
    try:
        mmap.mmap(memfd, PAGE_BYTES, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE).close()
        return not present(memfd, PAGE_BYTES)
    finally:
        os.close(memfd)


def unmap(address: int, length: int) -> None:
    """Take away what :func:`map_fixed` mapped; the addresses are free again."""
    if _munmap(address, length):
        raise _fail(f"unmapping {length} bytes at {address:#x}")


def address_of(buffer: mmap.mmap | memoryview | bytearray) -> int:
    """Where a writable buffer lies in this process. Touches none of it."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def check_address_space(length: int) -> None:
    """Raise :class:`RegionTooLarge` if no range of ``length`` bytes can be mapped here: tried, then dropped."""
    try:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        mmap.mmap(-1, length, flags, 0).close()
    except (OSError, OverflowError, ValueError) as error:
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        remedy = "" if limit == resource.RLIM_INFINITY else f", or raise its limit of {limit} bytes (`ulimit -v`)"
        raise RegionTooLarge(
            f"{length} bytes do not fit the address space of this process, which has room for {_room()} bytes in one "
            f"piece: choose a smaller region{remedy}"
        ) from error


def _room() -> int:
    """How many bytes can be mapped here, to the next lower multiple of a large unit: found by trying."""
    low, high = 0, REGION_BYTES_MAX // EXTENT_BYTES
    while high - low > 1:
        middle = (low + high) // 2
        try:
            mmap.mmap(-1, middle * EXTENT_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE, 0).close()
            low = middle
        except OSError:
            high = middle
    return low * EXTENT_BYTES


def fills_single_pages() -> bool:
    """Whether writing one page to a memfd brings in that page alone.

    With transparent huge pages always on for shared memory it does not: the neighbours become present, too, as zeros,
    and touching them would be no fault any more but a wrong value. Advice on the mappings cannot prevent that.
    """
    memfd = create_memfd("dsm:probe", 2 * EXTENT_BYTES)
    try:
        os.pwrite(memfd, bytes(PAGE_BYTES), EXTENT_BYTES)
        return present(memfd, 2 * EXTENT_BYTES) == [(EXTENT_BYTES, EXTENT_BYTES + PAGE_BYTES)]
    finally:
        os.close(memfd)


class Source:
    """What pages are filled with: the bytes of ``buffer``, which lie at ``address``."""

    __slots__ = ("address", "buffer")

    def __init__(self, buffer: memoryview) -> None:
        self.buffer = buffer
        self.address = address_of(buffer)


class Staging(Source):
    """Page-aligned private memory, for such bytes to be put there."""

    __slots__ = ()

    def __init__(self, length: int = FRAME_BYTES) -> None:
        super().__init__(memoryview(mmap.mmap(-1, length, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)))
        self.buffer[:] = bytes(length)  # populate: a COPY from a page that is not there yet takes the slow way


class Timer:
    """One alarm, as a descriptor that becomes readable when it is due."""

    def __init__(self) -> None:
        self._fd: int = _libc.timerfd_create(_CLOCK_MONOTONIC, _TFD_FLAGS)
        if self._fd < 0:
            raise _fail("making a timer")

    def fileno(self) -> int:
        return self._fd

    def set_us(self, delay: int) -> None:
        """Due in ``delay`` microseconds (at once if that is not positive), instead of whatever was set before."""
        seconds, us = divmod(max(0, delay), 1_000_000)
        spec = _ITIMERSPEC.pack(0, 0, seconds, us * 1000 or (0 if seconds else 1))  # all zeros would disarm it
        if _timerfd_settime(self._fd, 0, spec, None):
            raise _fail("setting a timer")

    def clear(self) -> None:
        """Make it unreadable again, until the next :meth:`set_us`."""
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


def take_descriptor(pid: int, fd: int) -> int:
    """A duplicate of another process's descriptor (pidfd_getfd(2)). ``OSError`` where this process may not trace it."""
    pidfd = os.pidfd_open(pid)
    try:
        taken: int = _libc.syscall(ctypes.c_long(_PIDFD_GETFD), ctypes.c_int(pidfd), ctypes.c_int(fd), ctypes.c_uint(0))
    finally:
        os.close(pidfd)
    if taken < 0:
        raise _fail("taking a descriptor")
    return taken


def die_with_parent(signal: int) -> None:
    """Send this process ``signal`` when the thread that started it ends (prctl(2), PR_SET_PDEATHSIG).

    Says so at once if that happened between the two lines here; a parent that died earlier shows in the closed
    pipe on which a service reports that it is ready.
    """
    parent = os.getppid()
    if _prctl(_PR_SET_PDEATHSIG, signal):
        raise _fail("asking to end with the parent")
    if os.getppid() != parent:
        os.kill(os.getpid(), signal)
