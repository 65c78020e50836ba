"""Opening the ledger's database, its two kinds of transaction, and its errors in words.

Every writing transaction begins with ``UPDATE pool SET version = version + 1``: that takes the write lock
before anything is read, so SQLite and PostgreSQL behave alike and nothing is decided on stale rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Float, insert, inspect, literal_column, select, update
from sqlalchemy.engine import URL
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError

from ..errors import LeaseConflict, Rejected, Unavailable
from ..model import CELLS_PER_GPU, LEGAL
from . import schema as t
from .databases import Database, database_of, parse
from .migrations import MIGRATIONS, Migration

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
    parsed = parse(url)
    return Path(str(parsed.database)) if parsed.get_backend_name() == "sqlite" else None


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
        try:
            self.url = parse(url)
        except ValueError as problem:
            raise Unavailable(str(problem), reason="ledger") from None
        self.database: Database = database_of(self.url)
        if not prepare:
            self.database.must_be_ledger()
        self.engine = self.database.engine()
        self._reading = self.database.reading(self.engine)
        # A statement less in every transaction: the time comes with the lock.
        time = literal_column(self.database.now, Float).label("now")
        self._take_lock = _take_lock if clock is not None else _take_lock.returning(time)
        self._now_is = select(time)
        with self._in_words():
            self._prepare(migrations, prepare)

    def _prepare(self, migrations: Sequence[Migration], change: bool) -> None:
        with self.engine.begin() as conn:
            self.database.admit(conn)
            known = inspect(conn).has_table("pool")
            found = int(conn.execute(select(t.pool.c.schema_version)).scalar_one()) if known else 0
        wanted = t.SCHEMA_VERSION + len(migrations) - len(MIGRATIONS)
        if found > wanted:
            raise Unavailable(
                f"The ledger {self.database.place} was written by a newer version (schema {found}, this version "
                f"knows {wanted}). Install that version again or give GPUPool.database_url another database.",
                reason="ledger",
            )
        if found == wanted:
            return
        if not change:
            raise Unavailable(
                f"The database {self.database.place} has "
                + (f"a ledger of an older version (schema {found})" if found else "no ledger in it")
                + "; the hub makes it what it must be at its next start.",
                reason="ledger",
            )
        if not found:
            self._create()
            return
        self.database.keep(self.engine, found)
        with self.engine.begin() as conn:
            conn.execute(update(t.pool).values(version=t.pool.c.version + 1))
            now_at = int(conn.execute(select(t.pool.c.schema_version)).scalar_one())
            for migrate in migrations[now_at - 1 :]:  # another process may have been faster
                migrate(conn)
            conn.execute(update(t.pool).values(schema_version=wanted))

    def _create(self) -> None:
        with self.engine.begin() as conn:
            self.database.one_at_a_time(conn)
            if inspect(conn).has_table("pool"):
                return
            self.database.make(conn, t.metadata)
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
        with self._in_words() as told, self.engine.begin() as conn:
            row = conn.execute(self._take_lock).one()
            now = row.now if self._clock is None else self._clock()
            settled = row.settled_at is not None
            yield Transaction(conn, now, row.version, row.inventory, row.epoch, settled, row.limits_version)
            told.committing = True

    @contextmanager
    def read(self) -> Iterator[tuple[Connection, float]]:
        """Open a reading transaction: one consistent view, and the database's time."""
        with self._in_words(), self._reading.connect() as conn, conn.begin():
            yield (
                conn,
                float(conn.execute(self._now_is).scalar_one()) if self._clock is None else self._clock(),
            )

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    @contextmanager
    def _in_words(self) -> Iterator[_Told]:
        """Turn a database's error into the pool's own, with what can be done about it."""
        told = _Told()
        try:
            yield told
        except IntegrityError as problem:
            raise LeaseConflict(
                f"The ledger refused a change that would break its rules: {problem.orig}"
            ) from problem
        except (DataError, UnicodeEncodeError) as problem:
            raise Rejected(
                "The ledger cannot keep this: a name has more than 255 characters, or one that is no text "
                "(such as NUL), or a number is too large.",
                reason="not-text",
            ) from problem
        except DBAPIError as problem:
            unsure = told.committing and problem.connection_invalidated
            rest = (
                "Whether the last change was written is seen when it answers again"
                if unsure
                else "Nothing was changed"
            )
            raise Unavailable(
                f"The pool's ledger {self.database.place} {self.database.words(problem)}. {rest}; "
                "running sessions are not touched.",
                reason="ledger",
            ) from problem


@dataclass(slots=True)
class _Told:
    """How far a transaction came."""

    committing: bool = False
