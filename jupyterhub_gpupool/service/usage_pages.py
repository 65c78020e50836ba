"""The page of the books, and the books as a file for a spreadsheet."""

from __future__ import annotations

import io
from typing import Any
from urllib.parse import urlencode

from .. import books
from ..errors import Rejected
from . import sheets, tables
from .admin import ASKED, asked, entries_of
from .base import signed_in
from .pages import Page

DAYS_SHOWN = 500
"""Lines of days on the page; the files have all."""

TOTALS = {"user": "User", "group": "Group", "profile": "Profile"}
"""What the books are kept by, for the head of a column."""


class Use(Page):
    """GPU-hours used, idle and waiting: one's own, everybody's for an admin."""

    @signed_in
    async def get(self) -> None:
        query = self.query(*ASKED)
        values: dict[str, Any] = {"totals": [], "days": [], "sum": None, "more": 0}
        wrong, by, typed = "", query.get("by", "user"), query
        try:
            by, start, end = asked(query)
        except ValueError as problem:
            wrong = str(problem)
            self.set_status(400)
        else:
            entries = books.rounded(await entries_of(self, by, start, end), books.SHOWN)
            shape = tables.usage(by, start, end, entries)
            first, last = _days(start, end)
            typed = {"from": first, "to": last, **{name: text for name, text in query.items() if text}}
            days = sorted(shape["days"], key=lambda item: str(item["day"]), reverse=True)
            values = {
                "totals": shape["totals"],
                "days": days[:DAYS_SHOWN],
                "sum": _sum(entries),
                "more": max(0, len(days) - DAYS_SHOWN),
            }
        self.show(
            "use.html",
            by=by if by in books.BY else "user",
            heads=TOTALS,
            given=typed,
            wrong=_at(wrong),
            asked=urlencode({name: text for name, text in query.items() if text}),
            titles=self.titles() if by == "profile" else {},
            **values,
        )


def _days(start: float, end: float) -> tuple[str, str]:
    """The first and the last UTC day of the books, as dates."""
    first, last = (books.date_of(day).isoformat() for day in books.days(start, end))
    return first, last


def _sum(entries: list[books.Entry]) -> dict[str, float]:
    return {
        name: sum(getattr(item, name) for item in entries) for name in ("used", "idle", "waiting", "held")
    }


def _at(sentence: str) -> dict[str, str]:
    """A sentence at the field that it is about."""
    if not sentence:
        return {}
    field = next((name for name in ("from", "to") if sentence.startswith(f"{name} is ")), "")
    return {field or ("by" if "kept by" in sentence else "to"): sentence[:1].upper() + sentence[1:]}


class Sheet(Page):
    """The same as a CSV file."""

    @signed_in
    async def get(self) -> None:
        try:
            by, start, end = asked(self.query(*ASKED))
        except ValueError as problem:
            raise Rejected(str(problem), reason="bad-request") from None
        out = io.StringIO()
        sheets.write_usage(by, await entries_of(self, by, start, end), out)
        first, last = _days(start, end)
        self.set_header("Content-Type", "text/csv; charset=utf-8")
        self.set_header("Content-Disposition", f'attachment; filename="gpu-hours-by-{by}-{first}-{last}.csv"')
        self.write(out.getvalue().encode("utf-8", "replace"))


def routes(base: str) -> list[tuple[Any, ...]]:
    """The addresses of these below the service's own, which is given as a regular expression."""
    return [(f"{base}use", Use), (f"{base}use/csv", Sheet)]
