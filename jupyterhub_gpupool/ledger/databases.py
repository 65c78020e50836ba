"""The two databases that can hold a ledger: how each is named, opened and locked, its time, its errors in words."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

from sqlalchemy import Connection, Engine, MetaData, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from ..errors import Unavailable

BUSY_TIMEOUT = 20.0
"""Seconds that a transaction waits for the write lock before the ledger counts as locked."""

STATEMENT_TIMEOUT = 30.0
"""Seconds that a server may take for one statement, and that it waits for the next one of a transaction."""

CONNECT_TIMEOUT = 10
"""Whole seconds that a server may take to answer a new connection."""

OLDEST_POSTGRESQL = 15
"""Major version; the tests run on this one."""

_PSYCOPG = "postgresql+psycopg"


def parse(text: str) -> URL:
    """Read the URL of a ledger.  Raises ValueError with a sentence, in which there is no password."""
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ValueError(
            f"{_without_password(text)!r} is not an SQLAlchemy URL such as 'sqlite:////srv/gpupool.sqlite' or "
            "'postgresql://gpupool@db.example.org/gpupool'."
        ) from None
    kind, _, driver = url.drivername.partition("+")
    if kind == "sqlite" and driver in ("", "pysqlite"):
        if not url.database or url.database == ":memory:":
            raise ValueError(
                "A ledger in memory is lost with its process; name a file: 'sqlite:////srv/gpupool.sqlite'."
            )
        return url
    if kind not in ("postgresql", "postgres") or driver not in ("", "psycopg"):
        raise ValueError(
            f"{url.drivername!r} databases cannot hold a ledger; the URL begins with 'sqlite:' or "
            f"'postgresql:' (the same as {_PSYCOPG!r})."
        )
    if "@" in (url.host or ""):
        raise ValueError(
            "The URL of the PostgreSQL server has more than one '@'; in a password, write '@' as '%40'."
        )
    return url.set(drivername=_PSYCOPG)


def _without_password(text: str) -> str:
    head, at, tail = re.sub(r"(password=)[^&]*", r"\1…", text).rpartition("@")
    return f"{head.partition(':')[0]}:…@{tail}" if at else tail


def database_of(url: URL) -> Database:
    """The database behind a URL that :func:`parse` has read."""
    return SQLite(url) if url.get_backend_name() == "sqlite" else PostgreSQL(url)


class Database:
    """One database, not yet opened."""

    now: ClassVar[str]
    """SQL for the seconds since 1970 by the database's own clock."""

    def __init__(self, url: URL) -> None:
        self.url = url

    @property
    def place(self) -> str:
        """How a sentence names it; without a password."""
        raise NotImplementedError

    def engine(self) -> Engine:
        """Make the connections' pool.  Nothing is asked yet."""
        raise NotImplementedError

    def reading(self, engine: Engine) -> Engine:
        """The same connections for transactions that only read: each sees one moment."""
        return engine

    def must_be_ledger(self) -> None:
        """Raise Unavailable where no ledger is, and change nothing; for who may not make one."""

    def admit(self, conn: Connection) -> None:
        """Raise Unavailable for a server that cannot hold a ledger."""

    def one_at_a_time(self, conn: Connection) -> None:
        """Let one process at a time make the tables, until the transaction ends."""
        raise NotImplementedError

    def make(self, conn: Connection, tables: MetaData) -> None:
        """Make the tables."""
        tables.create_all(conn)

    def keep(self, engine: Engine, version: int) -> None:
        """Keep what is there before it is migrated, where that is the ledger's business."""

    def words(self, problem: DBAPIError) -> str:
        """What an error means, behind the name of the ledger."""
        raise NotImplementedError


class SQLite(Database):
    """A file on a local disk."""

    now = "(julianday('now') - 2440587.5) * 86400.0"
    _WORDS: ClassVar[dict[str, str]] = {
        "database is locked": "is locked by another program",
        "readonly": "cannot be written: its file or folder is read-only",
        "disk is full": "cannot be written: the disk is full",
        "disk I/O error": "cannot be written: the disk reports an error",
        "unable to open": "cannot be opened",
        "not a database": "is not a SQLite database",
    }

    @property
    def place(self) -> str:
        return str(self.url.database)

    def engine(self) -> Engine:
        path = self.place
        if not os.path.exists(path):
            # Created by us first, so that it is never readable by others, not even for a moment.  Only where
            # it is not there: closing a file that SQLite has open drops the locks of this whole process.
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

    def must_be_ledger(self) -> None:
        """Look read-only: opening the file in the usual way would already change how SQLite keeps it."""
        path = self.place
        if not os.path.isfile(path):
            raise Unavailable(
                f"There is no ledger {path}; the hub makes it at its first start.", reason="ledger"
            )
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

    def one_at_a_time(self, conn: Connection) -> None:
        # Two processes may create the file at once: the write lock lets one at a time look.
        conn.exec_driver_sql("CREATE TABLE IF NOT EXISTS creating (n INTEGER)")
        conn.exec_driver_sql("DROP TABLE creating")

    def keep(self, engine: Engine, version: int) -> None:
        """Copy the file as it is, beside it."""
        with engine.connect() as conn:
            conn.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        engine.dispose()  # closing a copied file would drop the locks of connections that are open
        shutil.copy2(self.place, f"{self.place}.schema-{version}")

    def words(self, problem: DBAPIError) -> str:
        said = str(problem.orig)
        return next((words for key, words in self._WORDS.items() if key in said), f"does not answer: {said}")


class PostgreSQL(Database):
    """A database on a server.

    Writing transactions are READ COMMITTED: all of them begin by changing the one row of ``pool``, so each
    waits there for the one before, reads what that one has committed, and no two can wait for each other.
    """

    now = "extract(epoch FROM clock_timestamp())::float8"
    _LOCK = 0x67707570  # any number that other programs are unlikely to use
    _STATES: ClassVar[dict[str, str]] = {
        "25006": "is read-only: this server is a standby, or default_transaction_read_only is on",
        "25P03": f"took the connection back: nothing was asked for {STATEMENT_TIMEOUT:g} s in a transaction",
        "3D000": "does not exist: make it first, as docs/postgresql.md shows",
        "3F000": "has no schema to write to: its search_path names none that exists",
        "40P01": "was changed by somebody else in another order",
        "53100": "cannot be written: the server's disk is full",
        "53300": "has no connection left: raise max_connections of the server, or use fewer programs",
        "55P03": "is locked by another program",
        "57014": f"did not answer within {STATEMENT_TIMEOUT:g} s",
        "57P01": "is not there at the moment: the server is being stopped",
        "57P02": "is not there at the moment: the server has crashed and is coming back",
        "57P03": "is not there at the moment: the server is being started or stopped",
    }
    # Of a connection that fails the client has no code, only the server's text.
    _WORDS: ClassVar[dict[str, str]] = {
        "password authentication failed": "28P01",
        "no password supplied": "28P01",
        "too many clients": "53300",
        "remaining connection slots": "53300",
        "is starting up": "57P03",
        "shutting down": "57P03",
        "not yet accepting connections": "57P03",
        "recovery mode": "57P02",
    }

    @property
    def place(self) -> str:
        where = self.url.host or self.url.query.get("host") or "this machine"
        port = f":{self.url.port}" if self.url.port else ""
        return f"{self.url.database or self.url.username or ''!s} on the PostgreSQL server {where}{port}"

    def engine(self) -> Engine:
        if importlib.util.find_spec("psycopg") is None:
            raise Unavailable(
                "A ledger on PostgreSQL needs the package 'psycopg', which is not installed: "
                "pip install 'jupyterhub-gpupool[postgresql]'.",
                reason="ledger",
            )
        given = self.url.query
        settings = {
            "statement_timeout": STATEMENT_TIMEOUT,
            "lock_timeout": BUSY_TIMEOUT,
            "idle_in_transaction_session_timeout": STATEMENT_TIMEOUT,
        }
        options = [f"-c {name}={int(seconds * 1000)}" for name, seconds in settings.items()]
        # What was granted must not be forgotten, whatever the others do.
        options.append("-c synchronous_commit=on")
        own = {
            "connect_timeout": CONNECT_TIMEOUT,
            "application_name": "gpupool",
            # A server whose machine has vanished is found out, and does not hold a thread for hours.
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": int(STATEMENT_TIMEOUT * 1000),
        }
        arguments: dict[str, Any] = {key: value for key, value in own.items() if key not in given}
        # What the URL says comes later, and so counts.
        arguments["options"] = " ".join([*options, str(given.get("options", ""))]).strip()
        return create_engine(
            self.url.difference_update_query(["options"]),
            connect_args=arguments,
            isolation_level="READ COMMITTED",
            pool_pre_ping=True,
            pool_recycle=3600,
            hide_parameters=True,
        )

    def reading(self, engine: Engine) -> Engine:
        return engine.execution_options(isolation_level="REPEATABLE READ")

    def admit(self, conn: Connection) -> None:
        version, encoding, ours, others = conn.exec_driver_sql(
            "SELECT current_setting('server_version_num')::int, current_setting('server_encoding'),"
            " to_regclass('transitions') IS NOT NULL, to_regclass('pool') IS NOT NULL"
        ).one()
        why = ""
        if version // 10000 < OLDEST_POSTGRESQL:
            why = f"is version {version // 10000}; {OLDEST_POSTGRESQL} or later is needed"
        elif encoding != "UTF8":
            why = f"keeps text as {encoding}; a ledger needs a database with the encoding UTF8"
        elif others and not ours:
            why = "has a table 'pool' that is not of a ledger; give the ledger a database, or a schema, of its own"
        if why:
            raise Unavailable(f"The pool's ledger {self.place} {why}.", reason="ledger")

    def one_at_a_time(self, conn: Connection) -> None:
        conn.exec_driver_sql(f"SELECT pg_advisory_xact_lock({self._LOCK})")

    def make(self, conn: Connection, tables: MetaData) -> None:
        # Of a copy: two tables name each other, and to make such ones here marks their keys for later engines, too.
        copy = MetaData()
        for table in tables.tables.values():
            table.to_metadata(copy)
        copy.create_all(conn)

    def _state_of(self, said: str) -> str:
        """The code of a failed connection, which has none; "" where the text says nothing known."""
        if "does not exist" not in said and "pg_hba.conf" not in said:
            return next((code for text, code in self._WORDS.items() if text in said), "")
        return "3D000" if "database" in said and "role" not in said and "pg_hba" not in said else "28000"

    def words(self, problem: DBAPIError) -> str:
        said = " ".join(str(problem.orig).partition("\n\tIs the server")[0].split()).rstrip(".?")
        state = getattr(problem.orig, "sqlstate", None)
        state = state or self._state_of(said)
        if state in ("28P01", "28000"):
            return f"does not let the user {self.url.username!r} in: {said}"
        if state == "42501":
            return f"does not give the user {self.url.username!r} the rights that a ledger needs: {said}"
        reached = re.search(
            r"connection .*failed: (.*)|(failed to resolve host.*)|(connection timeout.*)", said
        )
        if not state and reached:
            return f"cannot be reached: {next(filter(None, reached.groups()))}"
        return self._STATES.get(state) or f"does not answer: {said}"
