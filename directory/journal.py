"""What a directory has to remember to begin again, in a SQLite file: a snapshot, and every event since.

An event is written before anybody learns what came of it. That survives the directory's death at once, and that of its
host as far as SQLite had brought it to the disk (synchronous=NORMAL): a directory that then knows less than a node does
sends that node away.

The snapshot is a pickle: of use to the same version of dsm only, and as trusted as the directory's program.
"""

from __future__ import annotations

import contextlib
import pickle
import secrets
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from directory.cluster import Cluster
from dsm import wire
from dsm.constants import PROTOCOL_VERSION
from dsm.errors import DsmError, InvalidArgument

_FORMAT: Final = 1
"""Of the snapshot."""
_EVENTS_MAX: Final = 100_000
"""Since the snapshot, before another is made: half a second's work to do again."""
_TABLES: Final = """
    CREATE TABLE IF NOT EXISTS snapshot (format INTEGER, protocol INTEGER, data BLOB);
    CREATE TABLE IF NOT EXISTS events (number INTEGER PRIMARY KEY, node INTEGER, session BLOB, message BLOB);
"""


class Journal:
    """The file at ``path``, made if it is not there. Raises :class:`InvalidArgument` where it cannot be used."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.touch(mode=0o600)
            self._file = sqlite3.connect(path, isolation_level=None, timeout=0)
            self._file.execute("PRAGMA locking_mode=EXCLUSIVE")  # one directory at a time
            self._file.execute("PRAGMA journal_mode=WAL")
            self._file.execute("PRAGMA synchronous=NORMAL")
            self._file.executescript(_TABLES)
        except (OSError, sqlite3.Error) as error:
            why = "another directory uses it" if "locked" in str(error) else str(error)
            raise InvalidArgument(f"cannot keep the directory's state in {path}: {why}") from error
        self._events = 0
        self._cluster: Cluster

    def begin(self, cluster: Cluster, now: float) -> None:
        """Let a new ``cluster`` know what was noted here, and begin again with that."""
        with self._saying("read"):
            found = self._file.execute("SELECT format, protocol, data FROM snapshot").fetchone()
            events = self._file.execute("SELECT node, session, message FROM events ORDER BY number").fetchall()
        if found is not None:
            *version, data = found
            if version != [_FORMAT, PROTOCOL_VERSION]:
                raise InvalidArgument(
                    f"{self._path} was written by another version of dsm: use that, or end the cluster's applications "
                    "and start the directory with a new file"
                )
            cluster.recall(pickle.loads(data), now)
            for node, session, message in events:
                cluster.again((node, session, wire.decode(message)), now)
            cluster.begin_again(secrets.randbits(32), now)
        cluster.events.clear()
        self._cluster = cluster
        self._take()

    def note(self) -> None:
        """Write down what has happened in the cluster since the last time."""
        events = self._cluster.events
        self._events += len(events)
        if self._events > _EVENTS_MAX:
            self._take()
            return
        rows = [(node, session, wire.encode(message)) for node, session, message in events]
        insert = "INSERT INTO events (node, session, message) VALUES (?, ?, ?)"
        with self._saying("write"):
            if len(rows) == 1:
                self._file.execute(insert, rows[0])
            else:
                self._file.execute("BEGIN")
                self._file.executemany(insert, rows)
                self._file.execute("COMMIT")

    def _take(self) -> None:
        """A snapshot takes the place of all that was there."""
        data = pickle.dumps(self._cluster.remembered())
        with self._saying("write"):
            self._file.execute("BEGIN")
            self._file.execute("DELETE FROM snapshot")
            self._file.execute("DELETE FROM events")
            self._file.execute("INSERT INTO snapshot VALUES (?, ?, ?)", (_FORMAT, PROTOCOL_VERSION, data))
            self._file.execute("COMMIT")
        self._events = 0

    @contextlib.contextmanager
    def _saying(self, what: str) -> Iterator[None]:
        """A directory that cannot write down what it knows must not go on: nobody has been told of it yet."""
        try:
            yield
        except sqlite3.Error as error:
            raise DsmError(
                f"cannot {what} the directory's state in {self._path} ({error}): the nodes wait; make room on that "
                "disk, or mend it, and start the directory again with the same file"
            ) from error

    def close(self) -> None:
        """The file is free for another directory."""
        self._file.close()
