"""The books: GPU-hours used, idle and waiting, by person, group or profile, and by day.  Pure.

What is held is cut into whole UTC days; the parts of a lease sum to exactly the time between its database
times.  Of what was held on a day, idle is what the sweeps saw idle on it, and used is the rest.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from fractions import Fraction

from .model import Kind, Lease

DAY = 86400.0
HOUR = 3600.0
BY = ("user", "group", "profile")
"""What the books can be kept by."""


@dataclass(frozen=True, slots=True)
class Account:
    """A lease as the books see it; times in seconds since 1970."""

    key: str
    gpus: float
    requested_at: float
    granted_at: float | None
    closed_at: float | None
    idle: Mapping[int, float] = field(default_factory=dict)
    """Seconds that were seen idle, by day."""


@dataclass(frozen=True, slots=True)
class Entry:
    """GPU-hours of one key on one UTC day."""

    key: str
    day: date
    used: float
    idle: float
    waiting: float

    @property
    def held(self) -> float:
        """Used or not: what nobody else could have."""
        return self.used + self.idle


@dataclass(frozen=True, slots=True)
class Total:
    """GPU-hours of one key over all days asked for."""

    key: str
    used: float
    idle: float
    waiting: float


def day_of(at: float) -> int:
    """The UTC day of a time, counted from 1970."""
    return math.floor(at / DAY)


def date_of(day: int) -> date:
    """A day as a date."""
    return datetime.fromtimestamp(day * DAY, UTC).date()


def check_by(by: str) -> str:
    """Return ``by``; raise ValueError with what is allowed for anything else."""
    if by not in BY:
        raise ValueError(f"The books are kept by {', '.join(BY)}, not by {by!r:.40}.")
    return by


def days(start: float, end: float) -> tuple[int, int]:
    """First and last UTC day that the time from ``start`` to ``end`` touches.  Raises ValueError for none."""
    if not (math.isfinite(start) and math.isfinite(end) and 0 <= start < end <= 253402300800):
        raise ValueError("The books are asked from a time since 1970 to a later one.")
    return day_of(start), day_of(math.nextafter(end, -math.inf))


def by_day(start: float, end: float) -> Iterator[tuple[int, float]]:
    """Cut a time into days: (day, seconds)."""
    at = start
    while at < end:
        day = day_of(at)
        cut = min(end, (day + 1) * DAY)
        yield day, cut - at
        at = cut


def keep(accounts: Iterable[Account], first: int, last: int, now: float) -> list[Entry]:
    """The books of these days, by key and day; days with nothing in them are left out."""
    sums: dict[tuple[str, int], list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    begin, end = first * DAY, min(now, (last + 1) * DAY)
    for item in accounts:
        closed = now if item.closed_at is None else item.closed_at
        granted = closed if item.granted_at is None else item.granted_at
        for day, seconds in by_day(max(begin, item.requested_at), min(end, granted)):
            sums[item.key, day][2] += seconds * item.gpus
        for day, seconds in by_day(max(begin, granted), min(end, closed)):
            idle = min(item.idle.get(day, 0.0), seconds)
            sums[item.key, day][0] += (seconds - idle) * item.gpus
            sums[item.key, day][1] += idle * item.gpus
    return [
        Entry(key, date_of(day), *(part / HOUR for part in parts))
        for (key, day), parts in sorted(sums.items())
        if any(parts)
    ]


def totals(entries: Iterable[Entry]) -> list[Total]:
    """Sum the days of each key."""
    days: dict[str, list[Entry]] = defaultdict(list)
    for item in entries:
        days[item.key].append(item)
    return [
        Total(
            key,
            math.fsum(item.used for item in of),
            math.fsum(item.idle for item in of),
            math.fsum(item.waiting for item in of),
        )
        for key, of in sorted(days.items())
    ]


DIGITS = 4
"""Decimals of GPU-hours that are given out: a third of a second."""

SHOWN = 2
"""Decimals of GPU-hours in a table for people."""


def rounded(entries: Iterable[Entry], digits: int = DIGITS) -> list[Entry]:
    """The books as they are given out: so rounded that every sum of them is that of what was summed, rounded.

    What has been summed up to each entry is rounded, and an entry is the step from the one before: of a key's
    days, and of everything there is, nothing is lost and nothing is won, and no entry is off by more than one
    in its last digit.
    """
    scale = 10**digits
    exact, given = [Fraction(0)] * 3, [0, 0, 0]
    found = []
    for item in entries:
        parts = []
        for n, part in enumerate((item.used, item.idle, item.waiting)):
            exact[n] += Fraction(part)
            step = round(exact[n] * scale) - given[n]
            given[n] += step
            parts.append(step / scale)
        found.append(Entry(item.key, item.day, *parts))
    return found


ENOUGH_AGE = HOUR
"""Seconds that a lease must have been active before its peaks say anything."""
HALF = 0.5


def advice(lease: Lease, now: float) -> str:
    """Say where a smaller slice would have done, by the peaks that were seen; empty: nothing to say.

    A smaller slice would have done when neither memory nor utilization ever came to half of what was held.
    """
    memory = sum(item.memory_mib for item in lease.slices)
    began, over = lease.active_at, now if lease.closed_at is None else lease.closed_at
    if lease.wish.kind is Kind.CPU or not memory or began is None or over - began < ENOUGH_AGE:
        return ""
    if lease.peak_utilization is None or lease.peak_memory_mib is None:
        return ""
    if lease.peak_memory_mib > HALF * memory or lease.peak_utilization > HALF * 100:
        return ""
    return (
        f"Half of it would have done: at most {lease.peak_memory_mib} of {memory} MiB and "
        f"{lease.peak_utilization:.0f} % of the slice were used."
    )
