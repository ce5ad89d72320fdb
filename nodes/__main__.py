"""``python -m nodes``: the node agent as a program."""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from dsm import constants, daemon, launch, local, memory, uffd, wire
from dsm.errors import DsmError, Fenced, NodeUnreachable, UserfaultfdUnavailable, from_wire
from dsm.logline import line
from dsm.trace import HELP, Trace
from nodes.agent import Agent, may_be_taken_over
from nodes.figures import figures
from nodes.keeper import Shelf, end_applications, keep

log = logging.getLogger("dsm.node")


_LISTEN = "tcp://IP:PORT for the other nodes: this host's address, or 0.0.0.0 for the one that reaches the directory."


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--directory", default="tcp://127.0.0.1:7400", show_default=True, help="Where the directory listens.")
@click.option("--listen", default="tcp://127.0.0.1:7401", show_default=True, help=_LISTEN)
@click.option("--socket", "path", type=click.Path(path_type=Path), help="Unix socket for applications.")
@click.option("--name", help="Name of this node, unique in the cluster.  [default: the host's name]")
@daemon.key_options
@daemon.metrics_option
@click.option("--group", help="Let the members of this Unix group use the node, too.")
@click.option("--trace", "trace_path", type=click.Path(path_type=Path), help=HELP)
@click.option(
    "--ready-fd", type=int, hidden=True, help="Descriptor on which the address is told once the node has joined."
)
@click.option(
    "--with-parent", is_flag=True, help="End, with all attached applications, when the starting process ends."
)
@click.option("--upgrade", is_flag=True, help="Let the node at --socket go on with the program as it is installed now.")
@click.option("--resume", type=int, hidden=True, help="Descriptor of what the program before this one has kept.")
@click.option("--drain", is_flag=True, help="Let the node at --socket leave: what only it has goes to others first.")
@click.option("--exit-when-idle", is_flag=True, help="End when the last application has left.")
def main(
    directory: str,
    listen: str,
    path: Path | None,
    name: str | None,
    key: Path | None,
    insecure: bool,
    metrics: str | None,
    group: str | None,
    trace_path: Path | None,
    ready_fd: int | None,
    with_parent: bool,
    upgrade: bool,
    resume: int | None,
    drain: bool,
    exit_when_idle: bool,
) -> None:
    """Serve shared memory to the applications of this host."""
    path = path or local.runtime_directory() / "node.sock"
    if drain:
        _drain(path)
        return
    if upgrade:
        _upgrade(path)
        return
    with daemon.starting("dsm node", ready_fd, with_parent) as ready:
        seal = daemon.seal_for(listen, key, insecure)
        _check_host()
        shelf = keep(_command(), partial(local.listen, path, group), None if resume else ready_fd, resume)
        given_up = _is_given_up(shelf)
        if given_up and with_parent:
            raise Fenced("the agent of this node was killed, and cannot be replaced: its applications were ended")
        memory.keep_freed_memory()
        name = name or socket.gethostname()
        trace = Trace(trace_path, f"node {name}") if trace_path else None
        join = partial(
            Agent,
            directory,
            listen,
            path,
            name,
            group,
            trace,
            end_applications=with_parent,
            exit_when_idle=exit_when_idle,
            shelf=shelf,
            seal=seal,
        )
        again, takes_over = shelf.again, bool(shelf.found)
        agent = _become_member(join, path, again and not takes_over)
        if metrics:
            daemon.serve_metrics(metrics, lambda: figures(agent))
        _on_stop(agent.stop)
        if not again:
            ready(agent.links.address)
    # The loop makes no reference cycles on its way; a full collection in the middle of a fault would be a pause.
    gc.freeze()
    gc.disable()
    try:
        while True:
            try:
                agent.serve()
                break
            except Fenced as error:
                if with_parent:  # whoever runs a program on this node cannot go on without its processes
                    raise
                log.critical("%s", error)
            shelf.clear()
            agent = _become_member(join, path, True)
    except DsmError as error:
        print(f"dsm node: error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    finally:
        if trace:
            trace.write()


def _drain(path: Path) -> None:
    """Tell the node at ``path`` to leave, and wait until it has."""
    from rich.console import Console

    try:
        with local.connect(path, constants.CONNECT_TIMEOUT_S) as sock:
            sock.settimeout(constants.CONNECT_TIMEOUT_S)
            name = _ask(sock, "drain")["name"]
            sock.settimeout(None)
            with Console(stderr=True).status(f"node {name!r} hands its pages over"):
                sock.recv(1)  # the end of it
    except (DsmError, OSError) as error:
        print(f"dsm node: error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    click.echo(f"node {name!r} has left")


def _command() -> list[str]:
    """What starts this program once more, but for what is for one start alone."""
    arguments = sys.argv[1:]
    for option in ("--resume", "--ready-fd"):
        while option in arguments:
            at = arguments.index(option)
            del arguments[at : at + 2]
    return [*launch.program("nodes")[0], *arguments]


def _upgrade(path: Path) -> None:
    """Let the node at ``path`` be replaced by this program, and wait until it is."""
    try:
        before, name = _who(path, "upgrade")
        until = time.monotonic() + constants.START_TIMEOUT_S
        while (pid := _who(path, "here")[0]) == before:
            if time.monotonic() > until:
                raise NodeUnreachable(f"node {name!r} has not been replaced in {constants.START_TIMEOUT_S:g} s")
            time.sleep(constants.HEARTBEAT_S / 10)
    except (DsmError, OSError) as error:
        print(f"dsm node: error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    click.echo(f"node {name!r} goes on as process {pid}")


def _who(path: Path, what: str) -> tuple[int, str]:
    """Ask the node at ``path`` something of which the answer says what process it is, and of what node."""
    with local.connect(path, constants.CONNECT_TIMEOUT_S) as sock:
        sock.settimeout(constants.START_TIMEOUT_S)
        answer = _ask(sock, what)
    return answer["pid"], answer["name"]


def _ask(sock: socket.socket, what: str) -> dict[str, Any]:
    """What a node says to a Query. Raises the error that it answers with."""
    local.send(sock, wire.Query(0, what, 0, 0, 0))
    answer, fds = local.receive(sock)
    local.close_all(fds)
    if isinstance(answer, wire.Failure):
        raise from_wire(answer.error, answer.text)
    if not isinstance(answer, wire.Answer):
        raise NodeUnreachable("the node agent has ended the connection without an answer")
    return answer.value


def _is_given_up(shelf: Shelf) -> bool:
    """Where a directory has several shards the pages of an agent that was killed are not found again. Nor is what an
    agent may have received while its lease was over, and done nothing with. So its applications end with it, and the
    node comes back as another one."""
    if not shelf.found or may_be_taken_over(shelf.found):
        return False
    end_applications(shelf.found)
    for thing in shelf.found.values():
        local.close_all(thing.fds)
    shelf.clear()
    return True


def _on_stop(stop: Callable[[], object]) -> None:
    """Call ``stop`` when the keeper says so."""
    signal.signal(signal.SIGTERM, lambda *_: stop())


def _become_member(join: Callable[[], Agent], path: Path, again: bool) -> Agent:
    """Join; if that cannot be, the socket at ``path`` goes."""
    try:
        return _rejoin(join) if again else join()
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _rejoin(join: Callable[[], Agent]) -> Agent:
    """Become a member anew, as another node of the same name, as soon as there is a directory to take it in."""
    _on_stop(sys.exit)
    while True:
        try:
            agent = join()
        except DsmError as error:
            log.warning("cannot join again yet: %s", error)
            time.sleep(constants.HEARTBEAT_S)
        else:
            _on_stop(agent.stop)
            log.warning("%s", line("rejoined", node=agent.links.node, name=agent.name))
            return agent


def _check_host() -> None:
    """Raise what would otherwise be found out at the first fault, or never."""
    device = uffd.open_device()
    uffd.probe(device)
    if device is not None:
        os.close(device)
    if not memory.fills_single_pages():
        raise UserfaultfdUnavailable(
            "this host gives huge pages to memory files, so that a page would bring neighbours nobody wrote: "
            "echo never > /sys/kernel/mm/transparent_hugepage/shmem_enabled"
        )


main(prog_name="dsm node")
