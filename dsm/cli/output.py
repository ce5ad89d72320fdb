"""What ranks write: passed on as it comes, each line with its rank in front if that is wanted, its end kept."""

from __future__ import annotations

import contextlib
import os
import selectors
import threading
from typing import Final

_TAIL_BYTES: Final = 4096
_LINE_BYTES_MAX: Final = 1 << 20
"""A line without an end is passed on in pieces of this size."""


class _Stream:
    """One stream of one rank. ``prefix``: before each line; None: bytes pass as they are."""

    def __init__(self, target: int, prefix: bytes | None, tail: bytearray | None) -> None:
        self.target = target
        self._prefix = prefix
        self._tail = tail
        self._line = b""

    def take(self, data: bytes) -> bytes:
        """What is to be written for what has come; nothing has come at the end."""
        if self._tail is not None:
            self._tail += data
            del self._tail[:-_TAIL_BYTES]
        if self._prefix is None:
            return data
        *lines, self._line = (self._line + data).split(b"\n")
        if self._line and (not data or len(self._line) > _LINE_BYTES_MAX):
            lines.append(self._line)
            self._line = b""
        return b"".join(self._prefix + line + b"\n" for line in lines)


class Output:
    """The streams of all ranks. One thread passes on what comes; begin it when nothing is forked any more."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._tails: dict[str, bytearray] = {}
        self._open: list[int] = []  # our copies of the ends that the ranks write to
        self._deaf: set[int] = set()  # where nobody reads any more
        self._thread = threading.Thread(target=self._pass_on, daemon=True)

    def pipe(self, target: int, prefix: bytes | None = None, tail_of: str | None = None) -> int:
        """A descriptor to write to; what is written comes out at ``target``. ``tail_of``: whose last words to keep."""
        reader, writer = os.pipe()
        tail = None if tail_of is None else self._tails.setdefault(tail_of, bytearray())
        self._selector.register(reader, selectors.EVENT_READ, _Stream(target, prefix, tail))
        self._open.append(writer)
        return writer

    def begin(self) -> None:
        """All have been started."""
        for writer in self._open:
            os.close(writer)
        self._open.clear()
        self._thread.start()

    def end(self) -> None:
        """All have ended: wait until everything is passed on."""
        if self._thread.ident is not None:
            self._thread.join()

    def tail(self, whose: str) -> str:
        """The last lines that it wrote."""
        kept = self._tails.get(whose, bytearray())
        text = kept.decode(errors="replace")
        return text.partition("\n")[2] if len(kept) == _TAIL_BYTES else text

    def _pass_on(self) -> None:
        while self._selector.get_map():
            for key, _ in self._selector.select():
                data = os.read(key.fd, 65536)
                self._write(key.data.target, key.data.take(data))
                if not data or key.data.target in self._deaf:  # whoever still writes there learns it, too
                    self._selector.unregister(key.fd)
                    os.close(key.fd)

    def _write(self, target: int, data: bytes) -> None:
        left = memoryview(data)
        with contextlib.suppress(OSError):
            while left:
                left = left[os.write(target, left) :]
        if left:
            self._deaf.add(target)
