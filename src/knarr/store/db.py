"""The daemon's durable records in SQLite: workloads and events.

One connection, used from the event loop's thread only: a commit in WAL mode without fsync takes some 30
µs, less than handing it to a thread. Such a commit survives the daemon's death; a power cut may take the
last ones, but never leaves half of one. Out of scope: what the bytes mean (`engine.records`).
"""

from __future__ import annotations

import contextlib
import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING

from knarr.model.errors import Conflict, Failed, Invalid, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

SCHEMA = 1
EVENTS_KEPT = 20_000
_TRIM_EVERY = 1_000

_TABLES = """
CREATE TABLE workloads(
  id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, spec BLOB NOT NULL, state BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE events(
  seq INTEGER PRIMARY KEY, time INTEGER NOT NULL, type TEXT NOT NULL, action TEXT NOT NULL,
  id TEXT NOT NULL, attributes TEXT NOT NULL
);
CREATE INDEX events_time ON events(time);
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class EventRow:
    time: int
    type: str
    action: str
    id: str
    attributes: str
    """a JSON object"""


class Database:
    """Records of one ROOT. Each method is one transaction; `event`s given along commit with the change."""

    def __init__(self, path: str) -> None:
        try:
            self._db = sqlite3.connect(path, isolation_level=None, cached_statements=64)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            # 16 MiB: fewer of the moments in which every start waits for the disk
            self._db.execute("PRAGMA wal_autocheckpoint=4000")
            self._migrate(path)
        except sqlite3.Error as error:
            raise Failed(f"{path}: {error}", hint="move the file away to start with no workloads") from error
        self._since_trim = 0

    def _migrate(self, path: str) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA:
            raise Invalid(
                f"{path} has schema {version}, this knarr knows {SCHEMA}", hint="use the newer knarr"
            )
        if version == 0:
            self._db.executescript(f"BEGIN; {_TABLES} PRAGMA user_version={SCHEMA}; COMMIT;")

    def close(self) -> None:
        self._db.close()

    def insert(self, workload_id: str, name: str, spec: bytes, state: bytes, *events: EventRow) -> None:
        """Raises `Conflict` when the name is taken."""
        try:
            with _Transaction(self._db):
                self._db.execute("INSERT INTO workloads VALUES(?,?,?,?)", (workload_id, name, spec, state))
                self._add(events)
        except sqlite3.IntegrityError as error:
            raise _taken(name) from error

    def update(self, workload_id: str, state: bytes, *events: EventRow) -> None:
        if not events:
            # a statement alone is a transaction of its own
            try:
                self._db.execute("UPDATE workloads SET state=? WHERE id=?", (state, workload_id))
            except sqlite3.Error as error:
                raise _unwritable(error) from error
            return
        with _Transaction(self._db):
            self._db.execute("UPDATE workloads SET state=? WHERE id=?", (state, workload_id))
            self._add(events)

    def replace(self, workload_id: str, name: str, spec: bytes, state: bytes, *events: EventRow) -> None:
        """Also what else never changes. Raises `Conflict` when the name is taken."""
        try:
            with _Transaction(self._db):
                self._db.execute(
                    "UPDATE workloads SET name=?, spec=?, state=? WHERE id=?",
                    (name, spec, state, workload_id),
                )
                self._add(events)
        except sqlite3.IntegrityError as error:
            raise _taken(name) from error

    def delete(self, workload_id: str, *events: EventRow) -> None:
        with _Transaction(self._db):
            self._db.execute("DELETE FROM workloads WHERE id=?", (workload_id,))
            self._add(events)

    def workloads(self) -> list[tuple[str, str, bytes, bytes]]:
        """(id, name, spec, state) of every workload."""
        return self._db.execute("SELECT id, name, spec, state FROM workloads").fetchall()

    def add(self, *events: EventRow) -> None:
        with _Transaction(self._db):
            self._add(events)

    def events(self, since: int, until: int) -> Iterator[EventRow]:
        """Events with `since` <= time < `until` in the order in which they happened."""
        rows = self._db.execute(
            "SELECT time, type, action, id, attributes FROM events WHERE time>=? AND time<? ORDER BY seq",
            (since, until),
        )
        for time, kind, action, subject, attributes in rows.fetchall():
            yield EventRow(time=time, type=kind, action=action, id=subject, attributes=attributes)

    def _add(self, events: tuple[EventRow, ...]) -> None:
        for event in events:
            self._db.execute(
                "INSERT INTO events(time, type, action, id, attributes) VALUES(?,?,?,?,?)",
                (event.time, event.type, event.action, event.id, event.attributes),
            )
        self._since_trim += len(events)
        if self._since_trim >= _TRIM_EVERY:
            self._since_trim = 0
            self._db.execute(
                "DELETE FROM events WHERE seq <= (SELECT max(seq) FROM events) - ?", (EVENTS_KEPT,)
            )


def _taken(name: str) -> Conflict:
    return Conflict(f"the name {name!r} is in use", hint="choose another or remove that one")


def _unwritable(error: sqlite3.Error) -> Unavailable:
    return Unavailable(
        f"the records can't be written: {error}", hint="is the disk with the --root folder full, or broken?"
    )


class _Transaction:
    """`with sqlite3.Connection` leaves BEGIN to its isolation level, which is off here to keep it
    explicit.
    """

    __slots__ = ("_db",)

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        try:
            self._db.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            raise _unwritable(error) from error

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """A failed statement or commit is rolled back, or the next transaction could not begin."""
        failed = error if isinstance(error, sqlite3.Error) else None
        try:
            if kind is None:
                self._db.execute("COMMIT")
        except sqlite3.Error as refused:
            failed = refused
        finally:
            if self._db.in_transaction:
                with contextlib.suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
        if failed is not None and not isinstance(failed, sqlite3.IntegrityError):
            raise _unwritable(failed) from failed
