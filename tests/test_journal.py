"""The file of a directory that is to begin again, where the disk fails it."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest

from directory.cluster import Cluster
from directory.journal import Journal
from dsm import wire
from dsm.errors import DsmError, InvalidArgument

ADDRESS = "tcp://127.0.0.1:1"


def begin(path: Path) -> tuple[Journal, Cluster]:
    journal, cluster = Journal(path), Cluster(ADDRESS, 0.0)
    journal.begin(cluster, 0.0)
    return journal, cluster


def join(cluster: Cluster, number: int) -> None:
    cluster.step(bytes([number]) * 16, wire.Join(f"node {number}", f"tcp://127.0.0.1:{1000 + number}"), 0.0)
    assert cluster.events


def names(cluster: Cluster) -> list[str]:
    return [row["name"] for row in cluster.status(0.0)["nodes"]]


def test_a_disk_that_is_full_is_said_and_nothing_written_before_is_lost(tmp_path: Path) -> None:
    journal, cluster = begin(tmp_path / "state")
    join(cluster, 1)
    journal.note()
    journal._file.execute("PRAGMA max_page_count=1")  # as many as there are, then
    with pytest.raises(DsmError, match=r"cannot write .*full.* start the directory again with the same file"):
        for number in range(2, 200):
            cluster.events.clear()
            join(cluster, number)
            journal.note()
    journal.close()
    journal, cluster = begin(tmp_path / "state")
    assert names(cluster)[0] == "node 1"
    journal.close()


def test_a_file_with_holes_is_said(tmp_path: Path) -> None:
    path = tmp_path / "state"
    journal, _ = begin(path)
    journal.close()
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    path.write_bytes(data)
    with pytest.raises(DsmError, match="cannot"):
        begin(path)


def test_two_directories_do_not_share_a_file(tmp_path: Path) -> None:
    journal, _ = begin(tmp_path / "state")
    with pytest.raises(InvalidArgument, match="another directory uses it"):
        begin(tmp_path / "state")
    journal.close()


def test_the_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    journal, _ = begin(tmp_path / "state")
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o600
    journal.close()
    with pytest.raises(InvalidArgument, match="not a database"):
        (tmp_path / "other").write_text("something else, and long enough to be looked at" * 100)
        Journal(tmp_path / "other")
    with contextlib.closing(sqlite3.connect(tmp_path / "state")) as file:
        assert file.execute("SELECT count(*) FROM snapshot").fetchone() == (1,)
