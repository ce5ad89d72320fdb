"""Lines of a service's log that a program can read: ``event=joined node=3 name='n3'``. Pure."""

from __future__ import annotations


def line(event: str, **fields: object) -> str:
    """What has happened, and to whom: numbers as they are, texts quoted as Python does."""
    return " ".join((f"event={event}", *(f"{name}={value!r}" for name, value in fields.items())))
