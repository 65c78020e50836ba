"""What the database itself refuses, whoever writes: overlaps, jumps, moves without a trace."""

from __future__ import annotations

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import IntegrityError

from jupyterhub_gpupool.errors import GPUPoolError
from jupyterhub_gpupool.ledger import Ledger
from jupyterhub_gpupool.model import Terms

from .conftest import CPU, SMALL_MIG, WHOLE, end, request_of, run


def raw(ledger: Ledger, *statements: str) -> None:
    with ledger.store.engine.begin() as conn:
        for statement in statements:
            conn.execute(text(statement))


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE leases SET state = 'stopping' WHERE id = '{active}'",
        "UPDATE leases SET state = 'closed', held = 0, open_key = NULL WHERE id = '{active}'",
        "UPDATE leases SET state = 'queued', held = 0 WHERE id = '{active}'",
        "UPDATE leases SET step = step + 1 WHERE id = '{active}'",
        "UPDATE leases SET held = 0 WHERE id = '{active}'",
        "UPDATE leases SET open_key = NULL WHERE id = '{active}'",
        "UPDATE leases SET session = (SELECT session FROM leases WHERE id = '{other}') WHERE id = '{active}'",
        "DELETE FROM events WHERE lease = '{active}' AND step = 3",
        "DELETE FROM leases WHERE id = '{active}'",
        "DELETE FROM devices WHERE id = 'GPU-0'",
        "DELETE FROM transitions WHERE from_state = 'starting' AND to_state = 'active'",
        "DELETE FROM slices WHERE lease = '{active}'",
        "UPDATE devices SET used = -1",
        "INSERT INTO claims SELECT device, cell, '{other}', 0, 1 FROM claims WHERE lease = '{active}'",
        "UPDATE claims SET lease = '{queued}' WHERE lease = '{active}'",
        "UPDATE claims SET held = 0",
        # An event that jumps: legal pair, wrong place in the chain.
        "INSERT INTO events (at, actor, action, lease, step, prev_step, from_state, to_state, reason) "
        "VALUES (0, 'x', 'x', '{active}', 4, 3, 'starting', 'stopping', '')",
        # An event that is no legal move.
        "INSERT INTO events (at, actor, action, lease, step, prev_step, from_state, to_state, reason) "
        "VALUES (0, 'x', 'x', '{active}', 4, 3, 'active', 'closed', '')",
        # A chain that begins in the middle.
        "INSERT INTO events (at, actor, action, lease, step, prev_step, from_state, to_state, reason) "
        "VALUES (0, 'x', 'x', '{active}', 9, NULL, 'active', 'stopping', '')",
        # A second successor of the same event.
        "INSERT INTO events (at, actor, action, lease, step, prev_step, from_state, to_state, reason) "
        "VALUES (0, 'x', 'x', '{active}', 3, 2, 'starting', 'stopping', '')",
        "INSERT INTO checks VALUES ('i', 'GPU-0', '', 2, 0, '')",
        "INSERT INTO checks VALUES ('i', 'GPU-none', '', 1, 0, '')",
        "INSERT INTO checks VALUES ('i', 'GPU-0', '', 1, 0, ''), ('i', 'GPU-0', '', 0, 1, '')",
        "INSERT INTO logs VALUES ('nobody''s', '', 0)",
        "INSERT INTO logs VALUES ('{active}', 'a', 0), ('{active}', 'b', 0)",
        "INSERT INTO pool SELECT 2, version, schema_version, inventory, epoch, 0, '', 0, 0, 0, '', 0, '', 0"
        " FROM pool",
    ],
)
def test_raw_sql_is_refused(ledger: Ledger, statement: str) -> None:
    active = run(ledger, "ada", WHOLE)
    other = run(ledger, "linus", WHOLE)
    queued = ledger.enqueue("hub", request_of("grace", WHOLE))
    assert queued.state == "queued"
    with pytest.raises(IntegrityError):
        raw(ledger, statement.format(active=active.id, other=other.id, queued=queued.id))


def test_the_refusals_come_from_the_keys(ledger: Ledger) -> None:
    """Without its primary key the table of claims takes an overlap: the key is what refuses it."""
    active, other = run(ledger, "ada", WHOLE), run(ledger, "linus", WHOLE)
    raw(
        ledger,
        "CREATE TABLE keyless AS SELECT * FROM claims",
        f"INSERT INTO keyless SELECT device, cell, '{other.id}', 0, 1 FROM claims WHERE lease = '{active.id}'",
    )
    with ledger.store.engine.begin() as conn:
        doubled = conn.execute(
            text(
                "SELECT count(*) FROM"
                " (SELECT device, cell FROM keyless GROUP BY device, cell HAVING count(*) > 1) AS twice"
            )
        ).scalar_one()
        assert doubled == 120
        conn.execute(text("DROP TABLE keyless"))


def test_one_open_lease_for_each_server(ledger: Ledger) -> None:
    first = run(ledger, "ada")
    assert ledger.enqueue("hub", request_of("ada")).id == first.id
    second = ledger.enqueue("hub", request_of("ada", server="second"))
    assert second.id != first.id


def test_every_writing_transaction_begins_with_the_lock(ledger: Ledger) -> None:
    """Every verb of the ledger takes the write lock before it reads or writes anything else."""
    begun: list[list[str]] = []

    @event.listens_for(ledger.store.engine, "begin", insert=True)  # before SQLite's own BEGIN
    def _begin(conn):  # type: ignore[no-untyped-def]
        begun.append([])

    @event.listens_for(ledger.store.engine, "before_cursor_execute")
    def _note(conn, cursor, statement, parameters, context, many):  # type: ignore[no-untyped-def]
        if statement != "BEGIN" and not statement.startswith("PRAGMA"):
            begun[-1].append(statement)

    lease = run(ledger, "ada", WHOLE, terms=Terms(extend=1))
    ledger.checkpoint(lease.id, {"pid": 1})
    ledger.extend(lease.id, "ada")
    ledger.doubt(lease.id, "why")
    ledger.absent(lease.id, True)
    ledger.record_check(lease.id, "image", {}, passed=False)
    ledger.keep_log(lease.id, "the end")
    ledger.note_foreign({"GPU-1": "somebody's"})
    ledger.beat("hub")
    ledger.lead("me", 10)
    ledger.resign("me")
    ledger.record([])
    ledger.restart_warnings()
    ledger.swept(1, "observe")
    ledger.expire_queue()
    ledger.sync_inventory(())
    ledger.settle()
    end(ledger, lease)
    waiting = ledger.enqueue("hub", request_of("grace", CPU))
    ledger.begin_stop(waiting.id, actor="x", reason="x")
    writing = [
        statements
        for statements in begun
        if any(statement.split()[0] in ("INSERT", "UPDATE", "DELETE") for statement in statements)
    ]
    assert len(writing) >= 20
    for statements in writing:
        assert statements[0].startswith("UPDATE pool SET version=(pool.version + ")


def test_a_verb_that_fails_leaves_no_trace(ledger: Ledger) -> None:
    lease = run(ledger, "ada", SMALL_MIG)
    before = ledger.events()
    with pytest.raises(GPUPoolError):
        ledger.close(lease.id, actor="ada")  # not stopping
    assert ledger.events() == before
