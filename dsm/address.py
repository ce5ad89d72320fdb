"""What an address looks like: pure."""

from __future__ import annotations

from dsm.errors import InvalidArgument


def check_address(address: str) -> None:
    """Raise :class:`InvalidArgument` unless ``address`` is ``tcp://HOST:PORT``, or PORT is ``*``."""
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    if not address.startswith("tcp://") or not host or not (port == "*" or (port.isdecimal() and int(port) < 1 << 16)):
        raise InvalidArgument(f"{address!r} is no address: give tcp://HOST:PORT, with a port below 65536")
