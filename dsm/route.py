"""Which address of this host others can reach."""

from __future__ import annotations

import socket

from dsm.address import host_of, is_loopback
from dsm.errors import DirectoryUnreachable, InvalidArgument


def check_reachable(bound: str, directory: str) -> None:
    """Raise :class:`InvalidArgument` if only this host can reach ``bound``, but others the directory: they would send
    what is for this node to themselves."""
    if not is_loopback(bound) or is_loopback(directory):
        return
    try:
        # A name may be one of the loopback, too. What cannot be looked up cannot be reached, which is said later.
        if is_loopback(f"tcp://{socket.gethostbyname(host_of(directory))}:0"):
            return
    except (OSError, UnicodeError):
        pass
    port = bound.rpartition(":")[2]
    raise InvalidArgument(
        f"other hosts cannot reach {bound}, but the directory is at {directory}: give --listen tcp://IP:{port} with "
        f"this host's address, or tcp://0.0.0.0:{port}, which takes the one from which the directory is reached"
    )


def reachable(bound: str, towards: str) -> str:
    """The address that others should use for a socket bound to ``bound``: where that is every interface of this host,
    the one from which ``towards`` is reached."""
    prefix, _, port = bound.rpartition(":")
    if prefix not in ("tcp://0.0.0.0", "tcp://[::]"):
        return bound
    host, _, other_port = towards.removeprefix("tcp://").rpartition(":")
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, int(other_port)))  # sends nothing; only chooses the route
            return f"tcp://{probe.getsockname()[0]}:{port}"
    except (OSError, ValueError) as error:
        raise DirectoryUnreachable(f"cannot find a route to the directory at {towards}: {error}") from error
