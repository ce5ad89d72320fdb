"""``make fuzz``: every decoder, machine and socket under fire, by volume, all from one printed seed."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable
from functools import partial
from typing import Final

import click
import decoders
import lies
import sockets
from cluster import Cluster
from report import Outcome, show

IN_PROCESS: Final[dict[Callable[[int, int], Outcome], float]] = {
    decoders.decode: 1.0,
    decoders.receive_local: 0.3,
    decoders.frames: 0.2,
    decoders.connections: 0.05,
    lies.pages_of_the_directory: 0.25,
    lies.pages_of_the_directory_and_departure: 0.1,
    lies.nodes_and_a_peer: 0.1,
    lies.all_doors_of_the_directory: 0.5,
}
"""How many messages each target gets of what is asked for; those of the sockets are with them."""


def campaign(seed: int, messages: int, tell: Callable[[Outcome], None] = lambda _: None) -> list[Outcome]:
    """Everything. Raises at the first thing that is wrong, with the seed in a note."""
    found: list[Outcome] = []

    def attack(target: Callable[[int, int], Outcome], share: float) -> None:
        try:
            found.append(target(seed, max(1, int(messages * share))))
        except BaseException as error:
            error.add_note(f"seed {seed}, {messages} messages")
            raise
        tell(found[-1])

    for target, share in IN_PROCESS.items():
        attack(target, share)
    cluster = Cluster(2)
    try:
        battle = sockets.Battle(cluster)
        for fire, share in sockets.TARGETS.items():
            attack(partial(fire, battle), share)
        battle.probe.end()
        cluster.check()
    finally:
        cluster.clean()
    return found


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--messages",
    type=click.IntRange(min=1),
    default=1_000_000,
    show_default=True,
    help="For wire.decode; each target has its share.",
)
@click.option("--seed", type=int, help="Of an earlier campaign.  [default: a new one]")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
def main(messages: int, seed: int | None, as_json: bool) -> None:
    """Send mutated, random and lying messages to every decoder, machine and socket."""
    seed = secrets.randbits(31) if seed is None else seed
    print(f"seed {seed}", file=sys.stderr, flush=True)
    show(
        campaign(seed, messages, lambda o: print(f"{o.target}: {o.messages} in {o.seconds} s", file=sys.stderr)),
        seed,
        as_json,
    )


if __name__ == "__main__":
    main()
