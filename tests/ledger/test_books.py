"""The ledger's books: what the sweeps saw, summing to the leases' own times."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from jupyterhub_gpupool.books import DAY, HOUR

from .bench import INTERVAL, Bench
from .conftest import HALF, Databases


def test_the_books_sum_to_the_database_times_and_know_the_idle(databases: Databases) -> None:
    bench = Bench(databases.url("bench"), 1, limits={"group:vision": {"gpus": 9}})
    bench.clock.now = 20_000 * DAY - 65  # before midnight
    bench.busy = {"ada"}
    ada, linus = bench.ask("ada", "vision", wish=HALF), bench.ask("linus", wish=HALF)
    grace = bench.ask("grace")
    bench.pass_time(13)
    bench.busy = set()
    bench.pass_time(2)
    bench.ledger.begin_stop(linus.id, actor="linus", reason="test")
    bench.ledger.close(linus.id, actor="linus")
    bench.pass_time(1)
    now, begin = bench.clock.now, 20_000 * DAY - 65
    start, end = 19_000 * DAY, 20_001 * DAY
    entries = bench.ledger.usage("user", start, end)
    assert [(x.key, x.day.isoformat()) for x in entries] == [
        (user, day) for user in ("ada", "grace", "linus") for day in ("2024-10-03", "2024-10-04")
    ]
    sums = {user: [sum(x) for x in zip(*((e.used, e.idle, e.waiting) for e in entries if e.key == user), strict=True)]
            for user in ("ada", "linus", "grace")}  # fmt: skip
    closed = bench.lease(linus).closed_at or 0.0
    assert math.isclose((sums["ada"][0] + sums["ada"][1]) * HOUR, (now - begin) * 0.5)
    assert math.isclose((sums["linus"][0] + sums["linus"][1]) * HOUR, (closed - begin) * 0.5)
    assert sums["linus"][1] * HOUR == pytest.approx(14 * INTERVAL * 0.5), "the first look measures no time"
    assert sums["ada"][1] * HOUR == pytest.approx(3 * INTERVAL * 0.5)
    assert sums["grace"] == [0, 0, pytest.approx((now - begin) / HOUR)]
    assert bench.lease(ada).idle_total == 3 * INTERVAL
    assert bench.lease(ada).peak_utilization == 90
    first = next(x for x in entries if x.key == "linus")
    assert first.idle * HOUR == pytest.approx(55 * 0.5), "a look across midnight belongs to two days"
    assert {x.key for x in bench.ledger.usage("group", start, end)} == {"", "vision"}
    assert {x.key for x in bench.ledger.usage("profile", start, end)} == {"gpu"}
    assert {x.key for x in bench.ledger.usage("user", start, end, user="ada")} == {"ada"}
    assert {x.day.isoformat() for x in bench.ledger.usage("user", 20_000 * DAY, end)} == {"2024-10-04"}
    assert bench.ledger.usage("user", 0, DAY) == []
    for by, a, b in (("device", start, end), ("user", end, start), ("user", math.nan, end)):
        with pytest.raises(ValueError, match="The books"):
            bench.ledger.usage(by, a, b)
    assert grace.gpus == 1
    bench.close()


def test_a_persons_own_books_read_nobody_elses_idle_time(databases: Databases) -> None:
    bench = Bench(databases.url("bench"), 1)
    ada = bench.ask("ada", wish=HALF)
    bench.ask("linus", wish=HALF)
    bench.pass_time(4)
    read: list[str] = []
    real = bench.ledger.store.read

    @contextmanager
    def reading() -> Iterator[tuple[Any, float]]:
        with real() as (conn, now):

            class Counting:
                def execute(self, statement: Any) -> list[Any]:
                    found = conn.execute(statement).all()
                    read.extend(row.lease for row in found if hasattr(row, "lease"))
                    return list(found)

            yield Counting(), now

    bench.ledger.store.read = reading  # type: ignore[method-assign]
    (mine,) = bench.ledger.usage("user", 0, 20_001 * DAY, user="ada")
    assert read == [ada.id] and mine.idle > 0
    bench.ledger.store.read = real  # type: ignore[method-assign]
    assert mine in bench.ledger.usage("user", 0, 20_001 * DAY)
    bench.close()


def test_what_is_seen_between_two_sweeps_is_counted_for_the_metrics(databases: Databases) -> None:
    bench = Bench(databases.url("bench"), 1, limits={"group:vision": {"gpus": 9}})
    bench.pass_time(1)
    bench.busy = {"ada"}
    ada = bench.ask("ada", "vision")
    linus = bench.ask("linus")
    bench.pass_time(3)
    bench.ledger.begin_stop(ada.id, actor="ada", reason="test")
    bench.clock.forward(5)
    bench.ledger.close(ada.id, actor="ada")
    bench.pass_time(2)
    seconds = bench.counters.seconds
    assert bench.counters.waits == [0, 35]
    assert seconds["vision", "used"] == 35
    assert seconds["", "waiting"] == 35
    assert seconds["", "used"] + seconds["", "idle"] == bench.clock.now - (bench.lease(linus).granted_at or 0)
    assert seconds["", "idle"] == 10
    bench.close()
