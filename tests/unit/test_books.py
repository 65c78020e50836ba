"""The books: parts sum to the leases' own times, whatever the clock and the days."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyterhub_gpupool import books
from jupyterhub_gpupool.books import DAY, HOUR, Account, Entry, advice, by_day, day_of, days, keep, totals
from jupyterhub_gpupool.model import Kind, Lease, Slice, State, Terms, Wish
from jupyterhub_gpupool.service import sheets, tables

D = 20_000  # some day

times = st.floats(D * DAY, (D + 5) * DAY)


@st.composite
def accounts(draw: st.DrawFn) -> Account:
    at = sorted(draw(st.lists(times, min_size=3, max_size=3)))
    granted = at[1] if draw(st.booleans()) else None
    closed = at[2] if draw(st.booleans()) else None
    idle = draw(st.dictionaries(st.integers(D, D + 5), st.floats(0, DAY)))
    gpus = draw(st.sampled_from([1 / 3, 0.5, 1.0, 8.0]))
    return Account(draw(st.sampled_from("ab")), gpus, at[0], granted, closed, idle if granted else {})


@given(st.lists(accounts(), max_size=8))
def test_the_books_balance_to_the_times_of_the_leases(some: list[Account]) -> None:
    now = (D + 5) * DAY
    kept = keep(some, D, D + 5, now)
    for key in "ab":
        held = waited = 0.0
        for item in (item for item in some if item.key == key):
            closed = now if item.closed_at is None else item.closed_at
            if item.granted_at is not None:
                held += (closed - item.granted_at) * item.gpus
            waited += (
                (closed if item.granted_at is None else item.granted_at) - item.requested_at
            ) * item.gpus
        assert math.isclose(sum(x.held for x in kept if x.key == key) * HOUR, held, abs_tol=1e-5)
        assert math.isclose(sum(x.waiting for x in kept if x.key == key) * HOUR, waited, abs_tol=1e-5)
    assert all(min(x.used, x.idle, x.waiting) >= 0 for x in kept)
    assert math.isclose(sum(x.used for x in totals(kept)), sum(x.used for x in kept), abs_tol=1e-9)
    # A part of the days is that part of the books.
    assert keep(some, D + 1, D + 2, now) == [
        x for x in kept if books.date_of(D + 1) <= x.day <= books.date_of(D + 2)
    ]


amounts = st.floats(0, 1000) | st.sampled_from([0.00005, 1 / 3, 0.1, 1e-9])


@given(
    st.dictionaries(
        st.tuples(st.sampled_from("abc"), st.integers(D, D + 40)),
        st.tuples(amounts, amounts, amounts),
        max_size=60,
    )
)
def test_what_is_given_out_sums_to_the_times_in_every_decimal(
    kept: dict[tuple[str, int], tuple[float, ...]],
) -> None:
    entries = [Entry(key, books.date_of(day), *parts) for (key, day), parts in sorted(kept.items())]
    shape = tables.usage("user", 0.0, 1.0, entries)
    out = io.StringIO()
    sheets.write_usage("user", entries, out)
    lines = list(csv.DictReader(io.StringIO(out.getvalue())))
    for n, name in enumerate(("used", "idle", "waiting")):
        exact = sum((Fraction(parts[n]) for parts in kept.values()), Fraction(0))
        listed = [Decimal(repr(item[name])) for item in shape["days"]]
        summed = [Decimal(repr(item[name])) for item in shape["totals"]]
        assert sum(listed) == sum(summed) == sum(Decimal(line[name]) for line in lines)
        assert sum(listed) == Decimal(round(exact * 10**4)) / 10**4, "and that is what the leases' times say"
        for total, key in zip(summed, sorted({key for key, _ in kept}), strict=True):
            days = [Decimal(repr(item[name])) for item in shape["days"] if item["key"] == key]
            assert total == sum(days)
        assert all(value >= 0 for value in listed)
        for shown, entry in zip(listed, entries, strict=True):
            assert abs(Fraction(shown) - Fraction(getattr(entry, name))) <= Fraction(1, 10**4)
        people = books.rounded(entries, books.SHOWN)
        assert sum(Decimal(f"{getattr(item, name):.2f}") for item in people) == sum(
            Decimal(f"{getattr(item, name):.2f}") for item in totals(people)
        )


def test_a_night_across_midnight_belongs_to_two_days() -> None:
    start = D * DAY + 22 * HOUR
    item = Account("ada", 0.5, start - HOUR, start, start + 4 * HOUR, {D: HOUR, D + 1: 9 * HOUR})
    first, second = keep([item], D, D + 3, (D + 9) * DAY)
    assert first == Entry("ada", books.date_of(D), used=0.5, idle=0.5, waiting=0.5)
    assert second == Entry("ada", books.date_of(D + 1), used=0.0, idle=1.0, waiting=0.0), (
        "no more than was held"
    )
    assert books.date_of(D) == date(2024, 10, 4)


@given(times, st.floats(0, 5 * DAY))
def test_days_cut_a_time_without_a_gap(start: float, lasts: float) -> None:
    parts = list(by_day(start, start + lasts))
    assert math.isclose(sum(seconds for _, seconds in parts), lasts, abs_tol=1e-4)
    assert [day for day, _ in parts] == sorted({day for day, _ in parts})
    assert all(0 < seconds <= DAY for _, seconds in parts)


def test_which_days_are_asked_for() -> None:
    noon = D * DAY + 12 * HOUR
    assert days(noon, noon + 1) == (D, D)
    assert days(noon, (D + 1) * DAY) == (D, D), "the end of a day is not the next one"
    assert days(noon, (D + 1) * DAY + 1) == (D, D + 1)
    assert day_of(datetime(2024, 10, 4, 23, 59, tzinfo=UTC).timestamp()) == D
    for start, end in ((noon, noon), (noon, noon - 1), (math.nan, noon), (noon, math.inf), (-1.0, noon)):
        with pytest.raises(ValueError, match="The books are asked from a time since 1970 to a later one"):
            days(start, end)
    with pytest.raises(ValueError, match="kept by user, group, profile, not by 'device'"):
        books.check_by("device")


HALF_GPU = Slice("GPU-0", Kind.SHARE, tuple(range(60)), 120, 40960, 50)
LEASE = Lease(
    id="x", user="ada", server="", profile="p", state=State.ACTIVE, version=1, epoch=1, session="s",
    wish=Wish(Kind.SHARE, fraction="1/2"), terms=Terms(), groups=(), options={}, slices=(HALF_GPU,), gpus=0.5,
    group="", url="", runtime={}, requested_at=0, granted_at=0, active_at=0,
    peak_memory_mib=20480, peak_utilization=50.0,
)  # fmt: skip


def test_advice_only_where_half_of_it_would_have_done() -> None:
    assert advice(LEASE, 2 * HOUR).startswith(
        "Half of it would have done: at most 20480 of 40960 MiB and 50 %"
    )
    for other in (
        replace(LEASE, peak_memory_mib=20481),
        replace(LEASE, peak_utilization=50.1),
        replace(LEASE, peak_memory_mib=None),
        replace(LEASE, peak_utilization=None),
        replace(LEASE, active_at=None),
        replace(LEASE, closed_at=HOUR / 2),
        replace(LEASE, wish=Wish()),
    ):
        assert advice(other, 2 * HOUR) == ""
