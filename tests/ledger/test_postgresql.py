"""What is PostgreSQL's alone: its URLs, its refusals in words, its restarts, its schemas."""

from __future__ import annotations

import multiprocessing
import re
import signal
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import inspect, text

from jupyterhub_gpupool.errors import GPUPoolError, Rejected, Unavailable
from jupyterhub_gpupool.ledger import Ledger, file_of
from jupyterhub_gpupool.ledger import databases as database_module
from jupyterhub_gpupool.ledger import schema as tables
from jupyterhub_gpupool.ledger.migrations import to_3

from .. import postgres
from .conftest import HALF, WHOLE, Make, end, gpu, request_of, run, url_of

pytestmark = [pytest.mark.postgresql, pytest.mark.engine("postgresql")]
SECRET = "pa55w0rd"


@pytest.fixture(scope="module")
def guarded() -> Iterator[postgres.Server]:
    """A server that asks for a password, as real ones do."""
    with postgres.own(auth="scram-sha-256") as server:
        yield server


def refused(url: str) -> str:
    """The sentence with which a ledger is refused."""
    with pytest.raises(Unavailable) as refusal:
        Ledger(url).close_database()
    said = str(refusal.value)
    assert SECRET not in said and "right" not in said.replace("rights", "") and "\n" not in said
    assert said.endswith(".") and ".." not in said
    return said


# --- the URL -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_the_schemes_that_people_paste_are_one(scheme: str) -> None:
    server = postgres.shared()
    database = server.ledger()
    ledger = Ledger(server.url(database).replace("postgresql:", f"{scheme}:"))
    assert ledger.verify() == []
    ledger.close_database()
    server.drop(database)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        (f"postgresql+psycopg2://u:{SECRET}@h/d", "'postgresql+psycopg2' databases cannot hold a ledger"),
        (f"postgresql+asyncpg://u:{SECRET}@h/d", "cannot hold a ledger"),
        (f"mysql://u:{SECRET}@h/d", "begins with 'sqlite:' or 'postgresql:'"),
        (f"postgresql://u:x@{SECRET}@h/d", "write '@' as '%40'"),
        (f"postgresql://u:{SECRET}@h:port/d", "is not an SQLAlchemy URL"),
        (f"postgresql:/u:{SECRET}@h/d", "is not an SQLAlchemy URL"),
        (f"postgres//u?password={SECRET}", "is not an SQLAlchemy URL"),
        ("sqlite://", "lost with its process"),
        ("sqlite:///:memory:", "lost with its process"),
        ("sqlite+aiosqlite:///x", "cannot hold a ledger"),
    ],
)
def test_urls_that_are_none_get_a_sentence_without_the_password(url: str, says: str) -> None:
    with pytest.raises(ValueError) as problem:
        file_of(url)
    assert says in str(problem.value) and SECRET not in str(problem.value)
    assert says in refused(url)


def test_a_server_has_no_file() -> None:
    assert file_of("postgresql://u@h/d") is None


# --- who does not let us in ----------------------------------------------------------------------------


def test_wrong_and_missing_passwords_users_and_databases(guarded: postgres.Server) -> None:
    good = guarded.url(guarded.empty())
    Ledger(good).close_database()
    assert "does not let the user 'gpupool' in" in refused(good.replace(":right@", f":{SECRET}@"))
    assert "no password supplied" in refused(good.replace(":right@", "@"))
    assert "does not let the user 'nobody' in" in refused(good.replace("gpupool:right", f"nobody:{SECRET}"))
    assert "nothing on the PostgreSQL server" in refused(guarded.url("nothing"))
    assert "does not exist: make it first" in refused(guarded.url("nothing"))


def test_a_server_that_cannot_be_reached() -> None:
    said = refused(f"postgresql://u:{SECRET}@127.0.0.1:{postgres.free_port()}/d")
    assert "cannot be reached" in said and "refused" in said
    assert "cannot be reached" in refused(f"postgresql://u:{SECRET}@no-such-host.invalid/d")
    assert "cannot be reached" in refused(f"postgresql://u:{SECRET}@/d?host=/nowhere")


def test_a_driver_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module.importlib.util, "find_spec", lambda name: None)
    assert "pip install 'jupyterhub-gpupool[postgresql]'" in refused(f"postgresql://u:{SECRET}@h/d")


def test_an_option_that_there_is_not() -> None:
    server = postgres.shared()
    assert "does not answer" in refused(f"{server.url('postgres')}?sslmod=require")


# --- servers and databases that cannot hold a ledger -----------------------------------------------------


def test_a_server_that_is_too_old(monkeypatch: pytest.MonkeyPatch, databases: Any) -> None:
    monkeypatch.setattr(database_module, "OLDEST_POSTGRESQL", 99)
    assert "99 or later is needed" in refused(databases.url())


def test_a_database_in_another_encoding() -> None:
    server = postgres.shared()
    server.run("CREATE DATABASE old ENCODING 'LATIN1' TEMPLATE template0")
    assert "keeps text as LATIN1" in refused(server.url("old"))
    server.drop("old")


def test_somebody_elses_tables_are_left_alone() -> None:
    server = postgres.shared()
    database = server.empty()
    server.run("CREATE TABLE pool (swimmers integer)", database)
    assert "a table 'pool' that is not of a ledger" in refused(server.url(database))
    assert server.run("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'", database) == [(1,)]
    server.drop(database)


def test_an_account_without_rights() -> None:
    server = postgres.shared()
    database = server.empty()
    server.run("DROP ROLE IF EXISTS guest")
    server.run("CREATE ROLE guest LOGIN")
    url = server.url(database).replace("//gpupool@", "//guest@")
    assert "does not give the user 'guest' the rights" in refused(url)
    server.drop(database)


def test_a_server_that_is_read_only(databases: Any) -> None:
    options = "options=-cdefault_transaction_read_only%3Don"
    assert "is read-only: this server is a standby" in refused(f"{databases.url('x', empty=True)}?{options}")
    reader = Ledger(f"{databases.url('y')}?{options}")
    assert reader.snapshot().leases == ()
    with pytest.raises(Unavailable, match="is read-only"):
        reader.beat("hub")
    reader.close_database()


def test_who_may_not_make_a_ledger_makes_none(databases: Any) -> None:
    url = databases.url("x", empty=True)
    with pytest.raises(Unavailable, match="has no ledger in it"):
        Ledger(url, prepare=False)
    with pytest.raises(Unavailable, match="has no ledger in it"):
        Ledger(url, prepare=False)


# --- schemas ---------------------------------------------------------------------------------------------


def test_two_pools_in_two_schemas_of_one_database() -> None:
    server = postgres.shared()
    database = server.empty()
    ledgers = []
    for name in ("lab_a", "lab_b"):
        server.run(f"CREATE SCHEMA {name}", database)
        ledger = Ledger(f"{server.url(database)}?options=-csearch_path%3D{name}")
        ledger.sync_inventory([gpu(0)])
        ledger.settle()
        ledger.register_hub("hub")
        ledgers.append(ledger)
    first, second = (run(ledger, "ada", WHOLE) for ledger in ledgers)
    assert (first.state, second.state) == ("active", "active")
    for ledger in ledgers:
        assert len(ledger.snapshot().leases) == 1
        assert ledger.verify() == []
        ledger.close_database()
    assert "its search_path names none" in refused(f"{server.url(database)}?options=-csearch_path%3Dnone")
    server.drop(database)


def open_and_close(url: str, results: Any) -> None:
    try:
        Ledger(url).close_database()
        results.put("")
    except GPUPoolError as problem:
        results.put(problem.message)


def test_many_make_the_tables_at_once(databases: Any) -> None:
    url, fork = databases.url("x", empty=True), multiprocessing.get_context("fork")
    results = fork.Queue()
    workers = [fork.Process(target=open_and_close, args=(url, results)) for _ in range(8)]
    for worker in workers:
        worker.start()
    assert [results.get(timeout=60) for _ in workers] == [""] * 8
    for worker in workers:
        worker.join(30)


def added_by(migration: Callable[[Any], None]) -> list[tuple[str, str]]:
    """The columns that a migration adds, with their tables."""
    said: list[str] = []
    migration(SimpleNamespace(exec_driver_sql=said.append))
    found = [re.match(r'ALTER TABLE (\w+) ADD COLUMN "?(\w+)"? ', statement) for statement in said]
    return [(match[1], match[2]) for match in found if match]


def test_a_ledger_of_the_version_before_is_migrated(make: Make) -> None:
    ledger = make()
    ada = run(ledger, "ada", HALF)
    columns = {name: inspect(ledger.store.engine).get_columns(name) for name in tables.metadata.tables}
    with ledger.store.engine.begin() as conn:
        for table in ("deliveries", "choices", "endings"):
            conn.execute(text(f"DROP TABLE {table}"))
        for table, name in added_by(to_3):
            conn.execute(text(f"ALTER TABLE {table} DROP COLUMN {name}"))
        conn.execute(text("UPDATE pool SET schema_version = 2"))
    again = Ledger(url_of(ledger))
    assert again.lease(ada.id) is not None
    found = {name: inspect(again.store.engine).get_columns(name) for name in tables.metadata.tables}
    assert {key: [str(c) for c in value] for key, value in found.items()} == {
        key: [str(c) for c in value] for key, value in columns.items()
    }
    again.close_database()


# --- what a row can hold -------------------------------------------------------------------------------


@pytest.mark.parametrize("odd", ["a\0b", "a\ud800b", "x" * 256])
def test_what_is_no_text_is_refused_with_a_sentence(ledger: Ledger, odd: str) -> None:
    with pytest.raises(Rejected, match="cannot keep this") as refusal:
        ledger.enqueue("hub", request_of("ada", HALF, server=odd))
    assert refusal.value.status == 400
    assert ledger.snapshot().leases == ()
    kept = ledger.enqueue("hub", request_of("ada", HALF, server="ä\u202e'; --\n" + "x" * 240))
    assert ledger.lease(kept.id) == kept


def test_what_is_kept_as_json_may_be_anything(ledger: Ledger) -> None:
    request = request_of("ada", HALF, groups=("a\0b", "Ä"))
    lease = ledger.enqueue("hub", request)
    assert ledger.lease(lease.id).groups == ("a\0b", "Ä")  # type: ignore[union-attr]


def test_upper_and_lower_case_are_two_people(ledger: Ledger) -> None:
    assert (
        ledger.enqueue("hub", request_of("ada", HALF)).id != ledger.enqueue("hub", request_of("Ada", HALF)).id
    )


# --- transactions ------------------------------------------------------------------------------------------


def test_a_reader_sees_one_moment_and_holds_up_nobody(ledger: Ledger) -> None:
    lease = run(ledger, "ada", HALF)
    count = text("SELECT count(*) FROM claims")
    with ledger.store.read() as (conn, _):
        before = conn.execute(count).scalar_one()
        end(ledger, lease)
        assert conn.execute(count).scalar_one() == before == 60
    with ledger.store.read() as (conn, _):
        assert conn.execute(count).scalar_one() == 0


def test_a_lock_that_is_not_given_up_says_so(ledger: Ledger) -> None:
    other = Ledger(f"{url_of(ledger)}?options=-clock_timeout%3D200")
    with ledger.store.write():
        with pytest.raises(Unavailable, match="locked by another program"):
            other.beat("hub")
        assert other.snapshot().settled, "reading goes on"
    assert other.beat("hub")
    other.close_database()


def test_a_transaction_in_which_nothing_happens_is_taken_back(make: Make) -> None:
    ledger = make()
    slow = Ledger(f"{url_of(ledger)}?options=-cidle_in_transaction_session_timeout%3D200")
    with pytest.raises(Unavailable), slow.store.write() as tx:
        tx.run(text("UPDATE devices SET drained = 1, drain_at = 1"))
        assert ledger.beat("hub"), "the lock is free again"
        tx.run(text("SELECT 1"))
    assert not any(device.drained for device in ledger.snapshot().devices)
    assert slow.beat("hub"), "the next connection is a good one"
    slow.close_database()


def test_a_server_that_crashes_and_is_back() -> None:
    with postgres.own() as server:
        ledger = Ledger(server.url(server.empty()))
        ledger.sync_inventory([gpu(0)])
        ledger.settle()
        ledger.register_hub("hub")
        held = run(ledger, "ada", HALF)
        with pytest.raises(Unavailable) as lost, ledger.store.write() as tx:
            tx.run(text("DELETE FROM claims"))
            server.stop(signal.SIGQUIT)
            tx.run(text("SELECT 1"))
        assert "Nothing was changed" in lost.value.message
        with pytest.raises(Unavailable, match="cannot be reached"):
            ledger.snapshot()
        server.start()
        assert ledger.snapshot().leases == (held,)
        assert ledger.enqueue("hub", request_of("grace", HALF)).state == "starting"
        with pytest.raises(Unavailable) as unsure, ledger.store.write() as tx:
            tx.run(text("UPDATE pool SET mode = 'observe'"))
            server.stop(signal.SIGQUIT)
        assert "Whether the last change was written" in unsure.value.message
        server.start()
        assert ledger.verify() == []
        ledger.close_database()
