"""The Unix socket between applications and their node agent: where it is, and how one message crosses it.

One packet of a SEQPACKET socket is a number and one message of :mod:`dsm.wire`; descriptors travel beside it
(SCM_RIGHTS). The number is that of a question on its connection, and of the answer to it: where an agent was killed
between its answer and the next question, the next agent may answer once more. Closing a connection is itself a message:
the kernel says it for a process that died.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import os
import select
import socket
import stat
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from dsm import wire
from dsm.constants import LOCAL_BYTES_MAX
from dsm.errors import InvalidArgument, NodeNameInUse, NodeUnreachable, PermissionDenied, ProtocolError

_FDS_MAX: Final = 4
"""No message carries more descriptors; the kernel closes what does not fit."""
_ANCILLARY_BYTES: Final = socket.CMSG_SPACE(_FDS_MAX * array.array("i").itemsize)
Received = tuple[bytes, list[tuple[int, int, bytes]], int, Any]
RECEIVE: Final = (LOCAL_BYTES_MAX, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC)
"""The arguments of ``recvmsg`` for one packet."""
_PATH_BYTES_MAX: Final = 107
"""sockaddr_un(7): sun_path has 108 bytes, the last of them zero."""
_BACKLOG: Final = 128
_CREDENTIALS: Final = struct.Struct("iII")
_NUMBER: Final = struct.Struct("<I")
NO_NUMBER: Final = _NUMBER.pack(0)
"""In front of what is no question, and no answer to one."""
_TIMEVAL: Final = struct.Struct("ll")


def runtime_directory() -> Path:
    """The directory of this user's socket: ``$XDG_RUNTIME_DIR/dsm``, else ``/tmp/dsm-<uid>``. Made if it is missing.

    Raises :class:`PermissionDenied` if it cannot be made, or if anybody else could have put something there.
    """
    base = os.environ.get("XDG_RUNTIME_DIR")
    path = Path(base, "dsm") if base else Path(f"/tmp/dsm-{os.geteuid()}")
    try:
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        status = path.lstat()
    except OSError as error:
        raise PermissionDenied(
            f"the directory {path} cannot be used ({error.strerror}): set XDG_RUNTIME_DIR to a directory of yours"
        ) from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise PermissionDenied(
            f"{path} must be a directory of user {os.geteuid()} with mode 0700: remove it, or set XDG_RUNTIME_DIR"
        )
    return path


def socket_path() -> Path:
    """Where the node agent of this process listens: ``DSM_NODE``, else ``node.sock`` in the runtime directory."""
    named = os.environ.get("DSM_NODE")
    path = Path(named) if named else runtime_directory() / "node.sock"
    return path.absolute()  # the process may change its directory and then fork


def listen(path: Path, group: str | None = None) -> socket.socket:
    """A listening socket at ``path``, open to this user, and to ``group`` (a name or number) if one is given.

    A file left behind by a dead agent is replaced. Raises :class:`NodeNameInUse` if an agent is alive there,
    :class:`InvalidArgument` for a path or a group that cannot be, :class:`PermissionDenied` where this user may not.
    """
    _check_path(path)
    gid = None if group is None else _group_number(group)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with _one_listener_at_a_time(path.parent):
            _remove_stale(path)
            sock.bind(str(path))
            _open_to(path, gid)  # nobody can connect before listen(), so it is right from the first connection on
            sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        if isinstance(error, PermissionError) and not isinstance(error, PermissionDenied):
            whose = f" for group {group}" if group else ""
            raise PermissionDenied(
                f"this user may not make the socket {path}{whose}: choose another path with --socket"
            ) from error
        raise
    return sock


def connect(path: Path, timeout: float) -> socket.socket:
    """A connection to the node agent at ``path``; blocking from then on.

    Raises :class:`NodeUnreachable` if none accepts it within ``timeout`` seconds, :class:`PermissionDenied` if this
    user may not talk to it.
    """
    _check_path(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        # A non-blocking connect to a full backlog fails at once instead of waiting, so Python's settimeout is no use.
        _set_send_timeout(sock, timeout)
        sock.connect(str(path))
        _set_send_timeout(sock, 0)
    except OSError as error:
        sock.close()
        raise _connect_error(path, error, timeout) from error
    return sock


def send(sock: socket.socket, message: wire.Message, fds: Sequence[int] = (), number: int = 0) -> None:
    """Send one message and the descriptors that belong to it; they stay open on this side."""
    sock.sendmsg(*packet(message, fds, number))


def packet(
    message: wire.Message, fds: Sequence[int] = (), number: int = 0
) -> tuple[list[bytes], list[tuple[int, int, Any]], int]:
    """The arguments of ``sendmsg`` for a message, the answer to question ``number`` or that itself."""
    data = wire.encode(message)
    if len(data) > LOCAL_BYTES_MAX - _NUMBER.size:
        raise ProtocolError(f"{type(message).__name__} has {len(data)} bytes, {LOCAL_BYTES_MAX} at most may be sent")
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    return [_NUMBER.pack(number), data], rights, socket.MSG_NOSIGNAL


def receive(sock: socket.socket) -> tuple[wire.Message | None, list[int]]:
    """The next message and its descriptors, which are the caller's to close; ``(None, [])`` when the peer has gone.

    Raises what :func:`dsm.wire.decode` raises, and :class:`ProtocolError` for a packet that is too large or carries
    too many descriptors; then its descriptors are closed.
    """
    try:
        return parse(sock.recvmsg(*RECEIVE))
    except ConnectionResetError:  # the peer closed without reading all that was sent to it; told once, before
        return parse(sock.recvmsg(*RECEIVE))  # what it still had to say


def again(data: bytes) -> tuple[list[bytes], list[tuple[int, int, Any]], int]:
    """The arguments of ``sendmsg`` for a packet that was sent before."""
    return [data], [], socket.MSG_NOSIGNAL


def look(sock: socket.socket) -> Received:
    """The next packet, which stays there until :func:`take`: whoever is killed meanwhile has not taken it."""
    length, ancillary_length, flags = RECEIVE
    try:
        return sock.recvmsg(length, ancillary_length, flags | socket.MSG_PEEK)
    except ConnectionResetError:  # as in receive()
        return sock.recvmsg(length, ancillary_length, flags | socket.MSG_PEEK)


def take(sock: socket.socket) -> None:
    """Take a packet that was looked at."""
    try:
        sock.recv(1)
    except ConnectionResetError:  # as in receive()
        sock.recv(1)


def next_number(sock: socket.socket) -> int:
    """The number of the next packet, which stays there; 0 if there is none, and none will come."""
    try:
        return int.from_bytes(sock.recv(_NUMBER.size, socket.MSG_PEEK), "little")
    except OSError:  # whoever receives it is told
        return 0


def number_of(received: Received) -> int:
    """The number of a packet: of a question, or of that which it answers."""
    data = received[0]
    return int.from_bytes(data[: _NUMBER.size], "little")


def parse(received: Received) -> tuple[wire.Message | None, list[int]]:
    """What ``recvmsg`` gave, as :func:`receive` returns and raises."""
    data, ancillary, flags, _ = received
    fds = _descriptors(ancillary)
    try:
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise ProtocolError(
                f"a packet of more than {LOCAL_BYTES_MAX} bytes or {_FDS_MAX} descriptors came, or this process has no "
                "descriptor left to take one: then raise its limit (`ulimit -n`)"
            )
        if data:
            return _decode(data), fds
    except Exception:
        close_all(fds)
        raise
    close_all(fds)
    return None, []


def _decode(data: bytes) -> wire.Message:
    try:
        return wire.decode(memoryview(data)[_NUMBER.size :])
    except ProtocolError:
        wire.decode(data)  # raises VersionMismatch for an earlier release, which had no numbers
        raise


def peer(sock: socket.socket) -> tuple[int, int, int]:
    """Process, user and group of the other side, as the kernel saw them when it connected."""
    pid, uid, gid = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return pid, uid, gid


def ended(pidfd: int) -> bool:
    """Has the process of this descriptor ended?"""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors that came with a message nobody wants."""
    for fd in fds:
        os.close(fd)


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return found.tolist()


def _set_send_timeout(sock: socket.socket, seconds: float) -> None:
    whole, part = divmod(seconds, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.pack(int(whole), int(part * 1e6)))


def _connect_error(path: Path, error: OSError, timeout: float) -> OSError:
    if isinstance(error, PermissionError):
        return PermissionDenied(
            f"this user may not connect to the node agent at {path}: run as the user who started it, "
            "or start it with --group"
        )
    what = (
        f"the node agent at {path} accepts no connection for {timeout:g} s"
        if error.errno == errno.EAGAIN
        else f"no node agent answers at {path} ({error.strerror})"
    )
    named = os.environ.get("DSM_NODE")
    return NodeUnreachable(
        f"{what}: start one with `dsm node --directory ADDRESS --listen ADDRESS --socket {path}`, "
        f"{'run the program under `dsm run`, or unset DSM_NODE' if named else 'or run the program under `dsm run`'}"
    )


def _check_path(path: Path) -> None:
    length = len(os.fsencode(path))
    if not 0 < length <= _PATH_BYTES_MAX:
        raise InvalidArgument(
            f"the socket path {path} has {length} bytes, a Unix socket allows {_PATH_BYTES_MAX}: use a shorter one"
        )


def _open_to(path: Path, gid: int | None) -> None:
    try:
        if gid is not None:
            os.chown(path, -1, gid)
        os.chmod(path, 0o600 if gid is None else 0o660)
    except OSError:
        path.unlink()
        raise


def _group_number(group: str) -> int:
    import grp

    try:
        return int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
    except KeyError:
        raise InvalidArgument(f"there is no group {group!r}: `getent group` lists them") from None


@contextlib.contextmanager
def _one_listener_at_a_time(directory: Path) -> Iterator[None]:
    """Between the look at a stale file and its replacement nobody else may do the same. Leaves no lock file."""
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InvalidArgument(f"{directory} is not a directory: make it before a socket can lie in it") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _remove_stale(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise InvalidArgument(f"{path} exists and is not a socket: choose another path with --socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:  # its backlog is full: alive, and busy
            pass
    raise NodeNameInUse(f"another node agent is listening at {path}: use it, or give this one another --socket")
