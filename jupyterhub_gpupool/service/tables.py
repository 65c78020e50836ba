"""What REST and commands show of limits and books, as JSON-ready dictionaries.  Pure, as :mod:`.shapes`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .. import books, fairness
from ..ledger import LimitRow, Touched
from ..model import Limit
from .changes import Change
from .shapes import Shape, iso


def limit(row: LimitRow, over: str = "") -> Shape:
    """A scope's limit; ``over`` is why it holds more than it may."""
    return {
        "scope": row.scope,
        "configured": _keys(row.configured),
        "edited": _keys(row.edited),
        "effective": _keys(row.effective),
        "actor": row.actor or None,
        "at": iso(row.at),
        "why": row.why or None,
        "over": over or None,
    }


def limits(rows: Mapping[str, LimitRow], over: Mapping[str, str]) -> Shape:
    """``api/limits``."""
    return {"limits": [limit(row, over.get(scope, "")) for scope, row in rows.items()]}


def _keys(found: Limit | None) -> dict[str, Any] | None:
    return None if found is None else fairness.write_limit(found)


def touched(found: Iterable[Touched]) -> list[Shape]:
    """Whom a change puts over their limit."""
    return [{"scope": item.scope, "users": list(item.users), "why": item.why} for item in found]


def change(found: Change) -> Shape:
    """``api/limits/{scope}/preview``: what a change would do."""
    return {
        "scope": found.scope,
        "before": _keys(found.before),
        "after": _keys(found.after),
        "touched": touched(found.touched),
        "relieved": list(found.relieved),
        "notes": list(found.notes),
    }


def usage(by: str, start: float, end: float, entries: Iterable[books.Entry]) -> Shape:
    """``api/usage``: GPU-hours by key and day, and by key; the key of nobody's group is null.

    The days of a key sum to its total, and the totals to that of all, in every decimal.
    """
    listed = books.rounded(entries)
    return {
        "by": by,
        "from": iso(start),
        "to": iso(end),
        "days": [{"key": item.key or None, "day": item.day.isoformat(), **_hours(item)} for item in listed],
        "totals": [{"key": item.key or None, **_hours(item)} for item in books.totals(listed)],
    }


def _hours(item: books.Entry | books.Total) -> dict[str, float]:
    return {name: round(getattr(item, name), books.DIGITS) for name in ("used", "idle", "waiting")}
