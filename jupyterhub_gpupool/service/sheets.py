"""The books as a CSV file for a spreadsheet, to which no name in it can give orders.  Pure."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from typing import TextIO

from .. import books

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes a cell for a formula by."""


def write_usage(by: str, entries: Iterable[books.Entry], out: TextIO) -> None:
    """Write a line for each key and day, in GPU-hours."""
    sheet = csv.writer(out, lineterminator="\n")
    sheet.writerow((by, "day", "used", "idle", "waiting"))
    for item in books.rounded(entries):
        hours = (item.used, item.idle, item.waiting)
        sheet.writerow(
            (defused(item.key), item.day.isoformat(), *(f"{value:.{books.DIGITS}f}" for value in hours))
        )


def defused(cell: str) -> str:
    """The text of a cell, with an apostrophe before what a spreadsheet would compute."""
    return f"'{cell}" if cell.startswith(FORMULA) else cell
