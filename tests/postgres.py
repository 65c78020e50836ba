"""A PostgreSQL server of the tests' own: started at the first use, gone with the process that asked for it."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg

from jupyterhub_gpupool.ledger import Ledger

USER = "gpupool"
SECONDS = 60.0


@functools.cache
def binaries() -> Path | None:
    """Where the newest server's programs are: Debian keeps them off the path."""
    debian = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"),
        key=lambda path: int(re.sub(r"\D", "", str(path)) or 0),
    )
    found = str(debian[-1]) if debian else shutil.which("initdb")
    return Path(found).parent if found else None


def lacking() -> str:
    """What the tests miss here, in words; empty when nothing."""
    return "" if binaries() else "no PostgreSQL server (Debian's package postgresql) is installed"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """One cluster in a folder of its own, on loopback.  The server refuses to run as root, so it never does."""

    def __init__(self, *settings: str, auth: str = "trust", encoding: str = "UTF8") -> None:
        programs = binaries()
        assert programs is not None
        self.programs, self.settings, self.auth = programs, settings, auth
        self.account = "nobody" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
        self.folder = Path(tempfile.mkdtemp(prefix="gpupool-postgresql-"))
        self.data, self.port = self.folder / "data", free_port()
        self.log = self.folder / "log"
        self.process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count(1)
        if os.geteuid() == 0:
            account = pwd.getpwnam(self.account)
            os.chown(self.folder, account.pw_uid, account.pw_gid)
        secret = self.folder / "password"
        secret.write_text("right")
        secret.chmod(0o644)
        self._run(
            "initdb", "-D", self.data, "-U", USER, "-A", auth, "-E", encoding, "--locale=C", "--no-sync",
            "--no-instructions", *([f"--pwfile={secret}"] if auth != "trust" else []),
        )  # fmt: skip

    def _as(self) -> dict[str, str | int]:
        """Arguments of subprocess that leave root behind."""
        if os.geteuid() != 0:
            return {}
        account = pwd.getpwnam(self.account)
        return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}  # type: ignore[dict-item]

    def _run(self, program: str, *arguments: object) -> None:
        done = subprocess.run(
            [str(self.programs / program), *map(str, arguments)],
            cwd="/", capture_output=True, text=True, **self._as(),  # type: ignore[call-overload]
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    def start(self, *settings: str) -> None:
        """Start the server, and wait until it takes connections."""
        # The tests kill processes, never the machine: what the kernel has been given is not lost with any of them.
        quick = ("fsync=off", "full_page_writes=off", "max_connections=200")
        given = (*quick, *self.settings, *settings, f"unix_socket_directories={self.folder}")
        options = [part for setting in given for part in ("-c", setting)]
        address = ["-h", "127.0.0.1", "-p", str(self.port)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [str(self.programs / "postgres"), "-D", str(self.data), *address, *options],
                cwd="/", stdout=log, stderr=log, start_new_session=True, **self._as(),  # type: ignore[call-overload]
            )  # fmt: skip
        deadline = time.monotonic() + SECONDS
        while True:
            assert self.process.poll() is None, self.log.read_text()
            with contextlib.suppress(psycopg.OperationalError):
                self.run("SELECT 1")
                return
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End the server: SIGINT breaks off what is under way, SIGQUIT is a crash."""
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(SECONDS)
            self.process = None

    def close(self) -> None:
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.folder)

    def run(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Run one statement as the server's owner."""
        with psycopg.connect(self.dsn(database), autocommit=True, connect_timeout=5) as conn:
            found = conn.execute(statement)  # type: ignore[call-overload]
            return found.fetchall() if found.description else []

    def dsn(self, database: str) -> str:
        password = "" if self.auth == "trust" else " password=right"
        return f"host=127.0.0.1 port={self.port} user={USER} dbname={database}{password}"

    def url(self, database: str) -> str:
        """The URL of a ledger in this database, as an admin would write it."""
        password = "" if self.auth == "trust" else ":right"
        return f"postgresql://{USER}{password}@127.0.0.1:{self.port}/{database}"

    def empty(self) -> str:
        """Make a database, and return its name."""
        name = f"empty{next(self._numbers)}"
        self.run(f"CREATE DATABASE {name}")
        return name

    @functools.cached_property
    def _template(self) -> str:
        self.run("CREATE DATABASE template_ledger")
        Ledger(self.url("template_ledger")).close_database()
        return "template_ledger"

    def ledger(self) -> str:
        """Make a database with a new ledger in it, quickly, and return its name."""
        name = f"ledger{next(self._numbers)}"
        self.run(f"CREATE DATABASE {name} TEMPLATE {self._template}")
        return name

    def drop(self, database: str) -> None:
        self.run(f"DROP DATABASE IF EXISTS {database} WITH (FORCE)")


_servers: list[Server] = []


def shared() -> Server:
    """The server of this process, started at the first call; :func:`end_shared` ends it."""
    if not _servers:
        server = Server()
        _servers.append(server)
        server.start()
    return _servers[0]


def end_shared() -> None:
    while _servers:
        _servers.pop().close()


@contextlib.contextmanager
def own(*settings: str, auth: str = "trust", encoding: str = "UTF8") -> Iterator[Server]:
    """A server that a test may stop, kill and start again."""
    server = Server(*settings, auth=auth, encoding=encoding)
    try:
        server.start()
        yield server
    finally:
        server.close()
