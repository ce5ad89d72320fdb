"""The hosts of ``dsm run --node-list``: what a list says, and the command that starts the ranks of one of them.

As with mpirun, a host is reached by ssh, without a password, and has the same programs at the same paths.
"""

from __future__ import annotations

import os
import shlex
import socket
import sys
from pathlib import Path
from typing import Final, NamedTuple

import click

from dsm import launch

_SSH: Final = ("ssh", "-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10")


class Host(NamedTuple):
    """``login``: what ssh is given; ``ip``: its address; ``slots``: how many ranks it has room for."""

    login: str
    ip: str
    slots: int
    is_here: bool


def parse(text: str) -> list[Host]:
    """``[USER@]HOST[:SLOTS],...``, or ``@FILE`` with one on each line. Raises :class:`click.UsageError`."""
    if text.startswith("@"):
        try:
            lines = Path(text[1:]).read_text().splitlines()
        except OSError as error:
            raise click.UsageError(f"--node-list: cannot read {text[1:]}: {error.strerror}") from None
        entries = [line.partition("#")[0].strip() for line in lines]
    else:
        entries = [entry.strip() for entry in text.split(",")]
    hosts = [_host(entry) for entry in entries if entry]
    if not hosts:
        raise click.UsageError("--node-list names no host: give HOST[:SLOTS],... or @FILE")
    names = [host.login for host in hosts]
    if len(set(names)) < len(names):
        raise click.UsageError("--node-list names a host twice: give it once, with SLOTS")
    return hosts


def _host(entry: str) -> Host:
    login, colon, slots = entry.rpartition(":")
    if not colon or entry.endswith("]") or (entry.count(":") > 1 and "]" not in entry):  # an address of IPv6
        login, slots = entry, "1"
    if not slots.isdecimal() or not int(slots) or not login:
        raise click.UsageError(f"--node-list: {entry!r} is not [USER@]HOST[:SLOTS], with one slot or more")
    name = login.rpartition("@")[2].strip("[]")
    try:
        ip = str(socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise click.UsageError(f"--node-list: there is no host {name!r} ({error.strerror})") from None
    return Host(login, ip, int(slots), _is_here(ip))


def _family(ip: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in ip else socket.AF_INET


def _is_here(ip: str) -> bool:
    """Is it an address of this host?"""
    with socket.socket(_family(ip)) as sock:
        try:
            sock.bind((ip, 0))
        except OSError:
            return False
    return True


def meeting_point(hosts: list[Host]) -> str:
    """Where on this host the directory has to listen, so that all of them can reach it."""
    far = next((host for host in hosts if not host.is_here), None)
    if far is None:
        return launch.LOOPBACK
    with socket.socket(_family(far.ip), socket.SOCK_DGRAM) as sock:
        sock.connect((far.ip, 9))  # sends nothing; the kernel chooses the way
        return listening(sock.getsockname()[0])


def listening(ip: str) -> str:
    """Any free port of that address."""
    return f"tcp://[{ip}]:*" if ":" in ip else f"tcp://{ip}:*"


def split(hosts: list[Host], procs: int | None) -> list[tuple[Host, int, int]]:
    """How many of ``procs`` ranks (as many as there are slots if None) each host has: its first, and how many."""
    slots = sum(host.slots for host in hosts)
    if procs is not None and procs > slots:
        raise click.UsageError(f"--procs {procs} is more than the {slots} slots of --node-list: give some HOST:SLOTS")
    left, first, shares = procs or slots, 0, []
    for host in hosts:
        count = min(host.slots, left)
        if count:
            shares.append((host, first, count))
        first, left = first + count, left - count
    return shares


def command_on(host: Host, arguments: list[str]) -> list[str]:
    """What runs ``dsm ARGUMENTS`` there, in the working directory of this process."""
    program, environment = launch.program("dsm")
    command = [*program, *arguments]
    if host.is_here:
        return command
    path = environment.get("PYTHONPATH")
    there = [f"PYTHONPATH={path}"] if path else []
    line = f"cd {shlex.quote(os.getcwd())} && exec {shlex.join(['env', *there, *command])}"
    return [*_SSH, host.login, line]


def environment_here() -> dict[str, str]:
    """Of a command that runs on this host."""
    return launch.program("dsm")[1]


def ssh_failed(host: Host, returncode: int) -> str:
    """What it may mean, for people."""
    if host.is_here or returncode != 255:
        return ""
    return f" (that is ssh's own: try `ssh {host.login} {sys.executable} --version`)"
