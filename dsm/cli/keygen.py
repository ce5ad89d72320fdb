"""``dsm keygen``: the key of a cluster."""

from __future__ import annotations

from pathlib import Path

import click

from dsm import errors


@click.command("keygen")
@click.argument("file", type=click.Path(path_type=Path))
def command(file: Path) -> None:
    """Make the key of a cluster.

    Whoever has FILE belongs to the cluster. Copy it to each of its hosts, readable for the user of the services only,
    and give it to them with --key FILE, or DSM_KEY=FILE in the environment.
    """
    from dsm import seal

    try:
        seal.make(file)
    except FileExistsError:
        raise click.ClickException(f"{file} exists already: remove it first, if no cluster uses it") from None
    except OSError as error:
        raise click.ClickException(f"cannot write {file}: {error.strerror}") from None
    except errors.DsmError as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"{file} is the key: copy it to every host, and give it to each service with --key or DSM_KEY")
