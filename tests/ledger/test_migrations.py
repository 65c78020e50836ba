"""A ledger that an older version wrote: opened, kept, and in the end no different from a new one."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from jupyterhub_gpupool.errors import Unavailable
from jupyterhub_gpupool.ledger import Ledger
from jupyterhub_gpupool.ledger import schema as tables

from .conftest import HALF, Make, end, request_of

VERSION_1 = Path(__file__).with_name("version-1.sql")
"""The dump of a ledger that the first version made: two active leases, a closed and a queued one."""


def old_ledger(folder: Path) -> Path:
    path = folder / "old.sqlite"
    with sqlite3.connect(path) as conn:
        conn.executescript(VERSION_1.read_text())
    conn.close()
    return path


def rows_of(path: Path) -> dict[str, list[dict[str, object]]]:
    """Every table with its rows, each as column → value."""
    with sqlite3.connect(path) as conn:
        conn.row_factory = sqlite3.Row
        names = [row[0] for row in conn.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        found = {name: [dict(row) for row in conn.execute(f'SELECT * FROM "{name}"')] for name in names}
    conn.close()
    return found


def schema_of(path: Path) -> dict[str, str]:
    """Tables and indexes by name, as SQLite keeps their statements; blanks do not count."""
    with sqlite3.connect(path) as conn:
        found = conn.execute("SELECT type || ' ' || name, sql FROM sqlite_master").fetchall()
    conn.close()
    return {name: " ".join((sql or "").split()) for name, sql in found}


def test_a_ledger_of_version_1_is_migrated_with_all_its_rows(tmp_path: Path, make: Make) -> None:
    path = old_ledger(tmp_path)
    before = rows_of(path)
    ledger = Ledger(f"sqlite:///{path}")
    try:
        assert ledger.verify() == []
        states = {lease.user: lease.state for lease in ledger.snapshot().leases}
        assert states == {"ada": "active", "linus": "active", "alan": "queued"}
        ada = next(lease for lease in ledger.snapshot().leases if lease.user == "ada")
        assert (ada.runtime, ada.image, ada.checked, ledger.log_of(ada.id)) == ({"pid": 42}, "", {}, "")
        assert [(d.health, d.driver, d.foreign) for d in ledger.snapshot().devices] == [("ok", "", "")] * 3
        after = rows_of(path)
        for table, old in before.items():
            if table == "pool":
                continue
            assert len(after[table]) == len(old), table
            for was, now in zip(old, after[table], strict=True):
                assert was.items() <= now.items(), table
        assert after["pool"][0]["schema_version"] == tables.SCHEMA_VERSION
        assert rows_of(Path(f"{path}.schema-1")) == before, "the file as it was lies beside it"
    finally:
        ledger.close_database()
    fresh = make(name="fresh")
    assert schema_of(path) == schema_of(Path(str(fresh.store.url.database)))


def test_a_migrated_ledger_goes_on(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{old_ledger(tmp_path)}")
    try:
        ledger.register_hub("hub")
        ada = next(lease for lease in ledger.snapshot().leases if lease.user == "ada")
        assert ledger.record_check(ada.id, "sha256:x", {}, passed=True) is False
        end(ledger, ada)
        ledger.keep_log(ada.id, "the end")
        assert ledger.enqueue("hub", request_of("eve", HALF)).state == "starting"
        assert ledger.verify() == []
    finally:
        ledger.close_database()


def test_a_ledger_of_the_next_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = old_ledger(tmp_path)
    Ledger(f"sqlite:///{path}").close_database()
    with sqlite3.connect(path) as conn:
        conn.execute("UPDATE pool SET schema_version = ?", (tables.SCHEMA_VERSION + 1,))
    conn.close()
    before = rows_of(path)
    with pytest.raises(Unavailable, match=rf"schema {tables.SCHEMA_VERSION + 1}, this version knows {tables.SCHEMA_VERSION}"):
        Ledger(f"sqlite:///{path}")
    assert rows_of(path) == before
