"""Where a service listens, as text: ``tcp://HOST:PORT``. Pure: the directory checks what a newcomer says of itself."""

from __future__ import annotations

import ipaddress
import re
from typing import Final

from dsm.errors import InvalidArgument

_ADDRESS: Final = re.compile(r"tcp://(?P<host>[\w.-]+|\*|\[[0-9a-fA-F:.]+(%\w+)?\]):(?P<port>\d{1,5}|\*)", re.ASCII)


def check_address(address: str, *, peer: bool = False) -> None:
    """Raise :class:`InvalidArgument` unless ``address`` is ``tcp://HOST:PORT``; both may be ``*`` for any where it is
    not that of a ``peer``, but to be listened on."""
    match = _ADDRESS.fullmatch(address)
    if match is None or (peer and "*" in (match["host"], match["port"])) or int(match["port"].strip("*") or 1) >> 16:
        raise InvalidArgument(f"{address!r} is no address: give tcp://HOST:PORT, with a port below 65536")


def is_loopback(address: str) -> bool:
    """Does ``address`` name the host itself, whichever that is? False for a host's name: nothing is looked up."""
    host = host_of(address)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def host_of(address: str) -> str:
    """Its host, without the brackets of an IPv6 address."""
    return address.removeprefix("tcp://").rpartition(":")[0].strip("[]")


def port_of(address: str) -> int:
    """Its port; 0 where that is any."""
    return int(address.rpartition(":")[2].strip("*") or 0)


def address_of(host: str, port: int | str) -> str:
    """The text for a host, which may be an IPv6 address, and a port."""
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def check_peer(address: str) -> None:
    """Raise :class:`InvalidArgument` unless ``address`` is ``tcp://IP:PORT``, which nobody has to look up: whoever
    does so cannot do anything else before the answer."""
    check_address(address, peer=True)
    try:
        ip = ipaddress.ip_address(host_of(address))
    except ValueError as error:
        raise InvalidArgument(f"{address!r} is no address of a node: give tcp://IP:PORT") from error
    if getattr(ip, "scope_id", None) is not None:  # which means something on one host only
        raise InvalidArgument(f"{address!r} is no address of a node for others: give one without a scope")
    if not port_of(address):
        raise InvalidArgument(f"{address!r} is no address of a node: nobody listens on port 0")
