"""Questions to a directory, before one is a member or without ever becoming one."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from dsm import wire
from dsm.constants import CONNECT_TIMEOUT_S
from dsm.errors import DirectoryUnreachable, ProtocolError, from_wire
from dsm.poller import Poller
from dsm.stream import REDIAL_S, Caller

if TYPE_CHECKING:
    from dsm.seal import Seal


def first_answer(poller: Poller, link: Caller, answers: list[bytes], timeout_s: float) -> bytes | None:
    """Wait until something is in ``answers``, to which ``link`` delivers; None if nothing comes in time. Raises
    :class:`ProtocolError` if whoever listens there is no dsm service."""
    until = time.monotonic() + timeout_s
    while not answers and time.monotonic() < until:
        if link.error is not None:
            raise link.error
        poller.wait(min(REDIAL_S, max(0.0, until - time.monotonic())))
        link.look_after()
    return answers[0] if answers else None


def answer(poller: Poller, link: Caller, answers: list[bytes], address: str, kind: type[Any]) -> Any:
    """The next of ``answers`` (see :func:`first_answer`), which has to be of this kind, of the directory that ``link``
    leads to. Raises the error that it answers with, or :class:`DirectoryUnreachable`."""
    if first_answer(poller, link, answers, CONNECT_TIMEOUT_S) is None:
        raise DirectoryUnreachable(unreachable(address, CONNECT_TIMEOUT_S))
    message = wire.decode(answers.pop(0))
    if isinstance(message, wire.Failure):
        raise from_wire(message.error, message.text)
    if not isinstance(message, kind):
        raise ProtocolError(f"the directory answered with {type(message).__name__}, not with {kind.__name__}")
    return message


def ask(address: str, question: wire.Query, timeout_s: float, seal: Seal | None = None) -> dict[str, Any]:
    """One question to a directory by somebody who is no node. Raises :class:`DirectoryUnreachable` after
    ``timeout_s``."""
    answers: list[bytes] = []
    with Poller() as poller:
        poller.seal = seal
        link = Caller(poller, address, lambda _, data, __: answers.append(bytes(data)), lambda *_: None)
        try:
            link.send(wire.encode(question))
            data = first_answer(poller, link, answers, timeout_s)
        finally:
            link.close()
    if data is None:
        raise DirectoryUnreachable(unreachable(address, timeout_s))
    answer = wire.decode(data)
    if isinstance(answer, wire.Failure):
        raise from_wire(answer.error, answer.text)
    if not isinstance(answer, wire.Answer):
        raise DirectoryUnreachable(f"the directory at {address} answered with {type(answer).__name__}")
    return answer.value


def unreachable(address: str, timeout_s: float) -> str:
    """What to tell somebody whose directory is silent."""
    return (
        f"no directory answers at {address} within {timeout_s:g} s: "
        "start one with `dsm directory --listen tcp://IP:7400`, or check the address, the firewall and the key (one "
        "that has a key answers only who has the same: --key FILE or DSM_KEY)"
    )
