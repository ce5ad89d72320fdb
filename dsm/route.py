"""Which address of this host others can reach."""

from __future__ import annotations

import socket
from typing import Final

from dsm.address import address_of, is_loopback, port_of
from dsm.errors import DirectoryUnreachable, InvalidArgument
from dsm.stream import resolve

_ANY: Final = {"tcp://0.0.0.0": (socket.AF_INET,), "tcp://[::]": (socket.AF_INET6, socket.AF_INET)}
"""Every interface of this host, and the families of addresses with which it is reached there."""


def check_reachable(bound: str, directory: str) -> None:
    """Raise :class:`InvalidArgument` if only this host can reach ``bound``, but others the directory: they would send
    what is for this node to themselves."""
    if not is_loopback(bound) or is_loopback(directory):
        return
    # A name may be one of the loopback, too. What cannot be looked up cannot be reached, which is said later.
    if any(is_loopback(address_of(*where[:2])) for _, where in resolve(directory)):
        return
    port = port_of(bound)
    raise InvalidArgument(
        f"other hosts cannot reach {bound}, but the directory is at {directory}: give --listen tcp://IP:{port} with "
        f"this host's address, or tcp://0.0.0.0:{port}, which takes the one from which the directory is reached"
    )


def reachable(bound: str, towards: str) -> str:
    """The address that others should use for a socket bound to ``bound``: where that is every interface of this host,
    the one from which ``towards`` is reached."""
    prefix, _, port = bound.rpartition(":")
    if prefix not in _ANY:
        return bound
    why = "it has no address of that kind"
    for family, where in resolve(towards):
        if family in _ANY[prefix]:
            try:
                with socket.socket(family, socket.SOCK_DGRAM) as probe:
                    probe.connect(where)  # sends nothing; only chooses the route
                    return address_of(probe.getsockname()[0], port)
            except OSError as error:
                why = str(error)
    raise DirectoryUnreachable(f"cannot find a route to the directory at {towards} from {bound}: {why}")
