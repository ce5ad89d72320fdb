"""The command line: one file per command, and the one place where an error becomes a line and an exit code."""

from __future__ import annotations

import sys
from importlib import metadata

import click

from dsm.cli import demo, directory, doctor, keygen, ls, node, rm, run, status, story
from dsm.constants import PROTOCOL_VERSION
from dsm.errors import DsmError

_INTERRUPTED = 130
"""What a shell reports for a program that Ctrl-C (signal 2) ended."""


def _version() -> str:
    try:
        return metadata.version("dsm")
    except metadata.PackageNotFoundError:
        return "from a source tree"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(_version(), message=f"dsm %(version)s (protocol {PROTOCOL_VERSION})")
def cli() -> None:
    """Distributed shared memory: one numpy array for the processes of many hosts."""


for _module in (run, directory, node, status, ls, rm, story, doctor, keygen, demo):
    cli.add_command(_module.command)
cli.add_command(run.host_command)


def main() -> int:
    """Run the command that ``sys.argv`` names; the exit code."""
    try:
        return int(cli.main(prog_name="dsm", standalone_mode=False) or 0)
    except click.UsageError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        return _failed(error.format_message(), error.exit_code)
    except DsmError as error:
        return _failed(str(error), 1)
    except (click.Abort, KeyboardInterrupt):
        return _INTERRUPTED


def _failed(text: str, code: int) -> int:
    print("dsm: error:", " ".join(text.split()), file=sys.stderr)
    return code
