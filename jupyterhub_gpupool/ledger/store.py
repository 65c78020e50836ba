"""Opening the ledger's database, its two kinds of transaction, and its errors in words.

Every writing transaction begins with ``UPDATE pool SET version = version + 1``: that takes the write lock
before anything is read, so SQLite and PostgreSQL behave alike and nothing is decided on stale rows.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Connection,
    Engine,
    Float,
    create_engine,
    event,
    func,
    insert,
    inspect,
    literal_column,
    select,
    text,
    update,
)
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError, OperationalError

from ..errors import LeaseConflict, Unavailable
from ..model import CELLS_PER_GPU, LEGAL
from . import schema as t
from .migrations import MIGRATIONS, Migration

BUSY_TIMEOUT = 20.0
"""Seconds that a transaction waits for the write lock before the ledger counts as locked."""

_take_lock = (
    update(t.pool)
    .where(t.pool.c.id == 1)
    .values(version=t.pool.c.version + 1)
    .returning(
        t.pool.c.version,
        t.pool.c.inventory,
        t.pool.c.epoch,
        t.pool.c.settled_at,
        t.pool.c.limits_version,
    )
)
_SQLITE_TIME = "(julianday('now') - 2440587.5) * 86400.0"
_SQLITE_NOW = text(f"SELECT {_SQLITE_TIME}")
# A statement less in every transaction: the time comes with the lock.
_sqlite_take_lock = _take_lock.returning(literal_column(_SQLITE_TIME, Float).label("now"))


@dataclass(slots=True)
class Transaction:
    """A write in progress: the connection, the database's time, and the pool's row as the lock found it."""

    conn: Connection
    now: float
    version: int
    inventory: int
    epoch: int
    settled: bool
    limits_version: int

    def run(self, statement: Any, parameters: Any = None) -> Any:
        """Execute one statement of this transaction."""
        return self.conn.execute(statement, parameters)


def file_of(url: str) -> Path | None:
    """The file of a ledger; None for a server.  Raises ValueError with a sentence for what is no such URL."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise ValueError(
            f"{url!r} is not an SQLAlchemy URL such as 'sqlite:////srv/gpupool.sqlite'."
        ) from None
    if parsed.get_backend_name() != "sqlite":
        return None
    if not parsed.database:
        raise ValueError(
            "A ledger in memory is lost with its process; name a file: 'sqlite:////srv/gpupool.sqlite'."
        )
    return Path(parsed.database)


def url_of(file: Path) -> str:
    """The URL of a SQLite ledger in this file, whatever characters its path has."""
    return URL.create("sqlite", database=str(file)).render_as_string()


class Store:
    """One database file or server.  Thread-safe; each call takes a connection of its own.

    With ``prepare`` False a ledger is neither made nor migrated: Unavailable where it is not there as it must be.
    """

    def __init__(
        self,
        url: str,
        *,
        clock: Callable[[], float] | None = None,
        migrations: Sequence[Migration] = MIGRATIONS,
        prepare: bool = True,
    ) -> None:
        self._clock = clock
        self.url = make_url(url)
        if not prepare and self.url.get_backend_name() == "sqlite":
            _must_be_ledger(str(self.url.database))
        self.engine = self._connect()
        with _in_words(self.url.database):
            self._prepare(migrations, prepare)

    def _connect(self) -> Engine:
        if self.url.get_backend_name() != "sqlite":
            try:
                return create_engine(self.url)
            except (NoSuchModuleError, ModuleNotFoundError) as problem:
                driver = self.url.drivername
                raise Unavailable(
                    f"No driver for {driver!r} databases is installed here.", reason="ledger"
                ) from problem
        path = self.url.database
        if path and not os.path.exists(path):
            # Created by us first, so that it is never readable by others, not even for a moment.  Only where
            # it is not there: closing a file that SQLite has open drops the locks of this whole process.
            with _in_words(path):
                try:
                    Path(path).parent.mkdir(parents=True, exist_ok=True)
                    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
                except OSError as problem:
                    raise Unavailable(
                        f"The ledger {path} cannot be opened: {problem.strerror}.", reason="ledger"
                    ) from problem
        engine = create_engine(self.url, connect_args={"timeout": BUSY_TIMEOUT, "check_same_thread": False})

        @event.listens_for(engine, "connect")
        def _configure(connection: Any, _record: Any) -> None:
            connection.isolation_level = None  # we say BEGIN ourselves; pysqlite's guesses come too late
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
                connection.execute(f"PRAGMA {pragma}")

        @event.listens_for(engine, "begin")
        def _begin(connection: Connection) -> None:
            connection.exec_driver_sql("BEGIN")

        return engine

    def _prepare(self, migrations: Sequence[Migration], change: bool) -> None:
        with self.engine.begin() as conn:
            known = inspect(conn).has_table("pool")
            found = int(conn.execute(select(t.pool.c.schema_version)).scalar_one()) if known else 0
        wanted = t.SCHEMA_VERSION + len(migrations) - len(MIGRATIONS)
        if found > wanted:
            raise Unavailable(
                f"The ledger {self.url.database} was written by a newer version (schema {found}, this version "
                f"knows {wanted}). Install that version again or give GPUPool.database_url another file.",
                reason="ledger",
            )
        if found == wanted:
            return
        if not change:
            raise Unavailable(
                f"The database {self.url.database} has "
                + (f"a ledger of an older version (schema {found})" if found else "no ledger in it")
                + "; the hub makes it what it must be at its next start.",
                reason="ledger",
            )
        if not found:
            self._create()
            return
        if self.url.get_backend_name() == "sqlite" and self.url.database:
            self._copy(found)
        with self.engine.begin() as conn:
            conn.execute(update(t.pool).values(version=t.pool.c.version + 1))
            now_at = int(conn.execute(select(t.pool.c.schema_version)).scalar_one())
            for migrate in migrations[now_at - 1 :]:  # another process may have been faster
                migrate(conn)
            conn.execute(update(t.pool).values(schema_version=wanted))

    def _copy(self, found: int) -> None:
        """Keep the file as it is before a migration, beside it."""
        path = str(self.url.database)
        with self.engine.connect() as conn:
            conn.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        self.engine.dispose()  # closing a copied file would drop the locks of connections that are open
        shutil.copy2(path, f"{path}.schema-{found}")

    def _create(self) -> None:
        with self.engine.begin() as conn:
            if self.url.get_backend_name() == "sqlite":
                # Two processes may create the file at once: the write lock lets one at a time look.
                conn.exec_driver_sql("CREATE TABLE IF NOT EXISTS creating (n INTEGER)")
                conn.exec_driver_sql("DROP TABLE creating")
            if inspect(conn).has_table("pool"):
                return
            t.metadata.create_all(conn)
            conn.execute(insert(t.cell_numbers), [{"n": n} for n in range(CELLS_PER_GPU)])
            conn.execute(insert(t.transitions), [{"from_state": a, "to_state": b} for a, b in sorted(LEGAL)])
            conn.execute(
                insert(t.pool).values(
                    id=1,
                    version=0,
                    schema_version=t.SCHEMA_VERSION,
                    inventory=0,
                    epoch=0,
                    leader="",
                    leader_until=0,
                    mode="",
                )
            )

    @contextmanager
    def write(self) -> Iterator[Transaction]:
        """Open a writing transaction; it commits at the end of the block or leaves no trace."""
        with _in_words(self.url.database), self.engine.begin() as conn:
            timed = self._clock is None and self.engine.dialect.name == "sqlite"
            row = conn.execute(_sqlite_take_lock if timed else _take_lock).one()
            now = row.now if timed else self._now(conn)
            settled = row.settled_at is not None
            yield Transaction(conn, now, row.version, row.inventory, row.epoch, settled, row.limits_version)

    @contextmanager
    def read(self) -> Iterator[tuple[Connection, float]]:
        """Open a reading transaction: one consistent view, and the database's time."""
        with _in_words(self.url.database), self.engine.connect() as conn, conn.begin():
            yield conn, self._now(conn)

    def _now(self, conn: Connection) -> float:
        if self._clock is not None:
            return self._clock()
        if self.engine.dialect.name == "sqlite":
            return float(conn.execute(_SQLITE_NOW).scalar_one())
        return float(conn.execute(select(func.extract("epoch", func.clock_timestamp()))).scalar_one())

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def _must_be_ledger(path: str) -> None:
    """Raise Unavailable for a file that is not there or is something else, and leave it as it is.

    Looked at read-only: opening it in the usual way would already change how SQLite keeps it.
    """
    if not os.path.isfile(path):
        raise Unavailable(f"There is no ledger {path}; the hub makes it at its first start.", reason="ledger")
    try:
        with closing(sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True)) as conn:
            known = conn.execute(
                "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'pool'"
            ).fetchone()
    except sqlite3.Error as problem:
        raise Unavailable(
            f"The file {path} cannot be read as a ledger: {problem}.", reason="ledger"
        ) from problem
    if known is None:
        raise Unavailable(f"The file {path} is not the ledger of a pool.", reason="ledger")


@contextmanager
def _in_words(place: str | None) -> Iterator[None]:
    """Turn a database's error into the pool's own, with what can be done about it."""
    try:
        yield
    except IntegrityError as problem:
        raise LeaseConflict(
            f"The ledger refused a change that would break its rules: {problem.orig}"
        ) from problem
    except (OperationalError, DBAPIError) as problem:
        said = str(problem.orig)
        known = {
            "database is locked": "is locked by another program",
            "readonly": "cannot be written: its file or folder is read-only",
            "disk is full": "cannot be written: the disk is full",
            "disk I/O error": "cannot be written: the disk reports an error",
            "unable to open": "cannot be opened",
            "not a database": "is not a SQLite database",
        }
        words = next((words for key, words in known.items() if key in said), f"does not answer: {said}")
        raise Unavailable(
            f"The pool's ledger {place or ''} {words}. Nothing was changed; running sessions are not touched.",
            reason="ledger",
        ) from problem
