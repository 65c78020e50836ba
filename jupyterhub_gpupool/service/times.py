"""Times and periods as people write them, in a request or on the command line.  Pure."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta

from ..books import DAY

USUAL_DAYS = 30
"""Days of the books that are shown where nobody says from when."""

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)


def moment(name: str, text: str) -> float:
    """Read an ISO 8601 time with its zone as seconds since 1970.

    Raises ValueError with a sentence that calls the value ``name``.
    """
    try:
        at = datetime.fromisoformat(text)
        if at.tzinfo is not None:
            return at.timestamp()
    except (ValueError, OverflowError):
        at = None
    raise ValueError(
        f"{name} is {text!a:.60}; allowed is an ISO 8601 time with its zone, such as 2026-06-01T09:00+02:00."
    )


def period(first: str, last: str, now: float) -> tuple[float, float]:
    """Read from when and to when the books are asked for, as seconds since 1970.

    Each is a date (a whole UTC day, the last one included) or a time with its zone.  Without ``last`` it is
    up to ``now``; without ``first`` it is ``USUAL_DAYS`` days.  Raises ValueError with a sentence.
    """
    end = _edge("to", last, 1) if last else now
    return (_edge("from", first, 0) if first else max(0.0, end - USUAL_DAYS * DAY)), end


def _edge(name: str, text: str, later: int) -> float:
    if not _DATE.fullmatch(text):
        try:
            return moment(name, text)
        except ValueError:
            day = None
    else:
        try:
            day = date.fromisoformat(text) + timedelta(days=later)
        except (ValueError, OverflowError):
            day = None
    if day is None:
        raise ValueError(
            f"{name} is {text!a:.60}; allowed is a date such as 2026-06-01, "
            "or an ISO 8601 time with its zone such as 2026-06-01T09:00Z."
        )
    return datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()
