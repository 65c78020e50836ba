"""What was done for a session before its end: documents that its pages saved, the owner's own script."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, bindparam, insert, select, update

from ..errors import Rejected
from ..model import State
from ..notices import DUE
from . import rows
from . import schema as t
from .base import Base
from .store import Transaction
from .text import clean, last_lines
from .transitions import note, row_of

PATHS, PATH = 100, 1000
"""Documents that one report may name, and characters of each."""

SAVED_LATE = 600.0
"""Seconds after the end of a session for which a page may still say what it has saved."""


@dataclass(frozen=True, slots=True)
class Ending:
    """What was done for a session before its end; empty where nothing was."""

    saved: Mapping[str, Any] = field(default_factory=dict)
    """``at``, ``documents``, ``failed``: as the pages of its owner have said."""
    script: Mapping[str, Any] = field(default_factory=dict)
    """``at``, ``state`` (due, running, done, timeout, failed), ``status``, ``tail``: the owner's own script."""


class Endings(Base):
    """The ledger's verbs for what comes before an end; each is one short transaction."""

    def saved(self, lease: str, documents: Sequence[str], failed: Sequence[str]) -> None:
        """Add what a page has saved before the end; of a document the last word counts.

        Raises Rejected when the end is long past, or the session does not run yet.
        """
        with self.store.write() as tx:
            row = row_of(tx, lease)
            late = row.closed_at is not None and tx.now - row.closed_at > SAVED_LATE
            if late or State(row.state) not in (State.ACTIVE, State.STOPPING, State.CLOSED):
                raise Rejected("This session does not run.", reason="not-running", status=409)
            before = read(tx.conn, lease).saved
            new = _union((), documents)
            missed = [path for path in _union((), failed) if path not in new]
            done = _union((path for path in before.get("documents", ()) if path not in missed), new)
            lost = [path for path in _union(before.get("failed", ()), missed) if path not in done]
            _set_ending(tx, lease, saved={"at": tx.now, "documents": done, "failed": lost})

    def begin_script(self, lease: str) -> bool:
        """Write that the owner's script is about to run; False when it is not due: never, or begun before."""
        with self.store.write() as tx:
            if read(tx.conn, lease).script.get("state") != DUE or row_of(tx, lease).state != State.STOPPING:
                return False
            _set_ending(tx, lease, script={"at": tx.now, "state": "running", "status": None, "tail": ""})
            return True

    def end_script(self, lease: str, state: str, status: int | None, tail: str) -> None:
        """Write what became of the owner's script; ``none``: there is no such script."""
        with self.store.write() as tx:
            if state == "none":
                _set_ending(tx, lease, script={})
                return
            row = row_of(tx, lease)
            began = read(tx.conn, lease).script.get("at", tx.now)
            script = {"at": began, "state": state, "status": status, "tail": last_lines(tail)}
            _set_ending(tx, lease, script=script)
            how = f"{state}, exit status {status}" if status is not None else state
            note(tx, "service", "script", f"before-reclaim: {how}", lease=lease, user=row.user)

    def ending_of(self, lease: str) -> Ending:
        """What was done for a session before its end."""
        with self.store.read() as (conn, _):
            return read(conn, lease)


def intend_script(tx: Transaction, lease: str) -> None:
    """Write that the owner's script is to run before the end; in the transaction that begins this end."""
    _set_ending(tx, lease, script={"at": tx.now, "state": DUE, "status": None, "tail": ""})


_ending = select(t.endings).where(t.endings.c.lease == bindparam("key"))


def read(conn: Connection, lease: str) -> Ending:
    """What was done for a session before its end."""
    row = conn.execute(_ending, {"key": lease}).one_or_none()
    return Ending() if row is None else Ending(rows.load(row.saved), rows.load(row.script))


def _set_ending(tx: Transaction, lease: str, **given: Mapping[str, Any]) -> None:
    """Write parts of an ending.  The lease's version stays: else its owner could put a reclaim off for ever."""
    columns = {name: rows.dump(dict(value)) for name, value in given.items()}
    if tx.run(_ending, {"key": lease}).one_or_none() is not None:
        tx.run(update(t.endings).where(t.endings.c.lease == lease).values(**columns))
    else:
        tx.run(insert(t.endings).values(lease=lease, **{"saved": "{}", "script": "{}"} | columns))


def _union(before: Iterable[str], more: Iterable[str]) -> list[str]:
    """Both without repetition, bounded, and fit to be shown."""
    named = dict.fromkeys([*before, *(" ".join(clean(path).split())[:PATH] for path in more)])
    return [path for path in named if path][:PATHS]
