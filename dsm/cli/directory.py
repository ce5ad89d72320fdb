"""``dsm directory``: become the directory service, which owns its options."""

from __future__ import annotations

import os
import sys

import click

from dsm import launch

PASSED_ON = {"ignore_unknown_options": True, "allow_interspersed_args": False, "help_option_names": []}
"""Settings of a command that hands on everything it is given, ``--help`` included."""


@click.command("directory", context_settings=PASSED_ON, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(arguments: tuple[str, ...]) -> None:
    """Run a directory: who owns each page, who is a member."""
    become("directory", arguments)


def become(module: str, arguments: tuple[str, ...]) -> None:
    """Replace this process by ``python -m module``: its signals, exit code and output are then the service's own."""
    argv, environment = launch.program(module)
    sys.stdout.flush()
    os.execve(argv[0], [*argv, *arguments], environment)
