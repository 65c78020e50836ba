"""Promises over whole pools: random devices, limits, requests and clocks, played in memory."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jupyterhub_gpupool.fairness import ORDERS, Context, Span, read_limits
from jupyterhub_gpupool.fairness.limits import MOST_PRIORITY
from jupyterhub_gpupool.model import Device, Kind, Limit, Wish

from .pools import Asked, Pool

WHOLE = Wish(Kind.GPU)
QUARTER = Wish(Kind.SHARE, fraction="1/4")
HALF = Wish(Kind.SHARE, fraction="1/2")


def gpus(count: int, nodes: int = 1) -> tuple[Device, ...]:
    return tuple(Device(f"g{n}", f"n{n % nodes}", n, "A100", 81920) for n in range(count))


slowly = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
times = st.integers(0, 2000).map(float)
lives = st.integers(1, 3000).map(float)
people = st.sampled_from(["ada", "bob", "cyd", "dan"])
member_of = st.lists(st.sampled_from(["a", "b", "c"]), max_size=2, unique=True)
wishes = st.sampled_from([Wish(), QUARTER, HALF, WHOLE, WHOLE, Wish(Kind.GPU, count=2)])
arrivals = st.lists(st.tuples(times, people, member_of, wishes, lives, times), min_size=5, max_size=30)
caps = st.none() | st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0])
some_limit = st.builds(Limit, sessions=st.none() | st.integers(0, 4), gpus=caps)
of_group = st.builds(
    Limit,
    sessions=st.none() | st.integers(2, 5),
    gpus=st.sampled_from([0.5, 1.0, 1.5, 3.0]),
    strict=st.booleans(),
)
any_limits = st.fixed_dictionaries(
    {"group:a": of_group, "group:b": of_group},
    optional={"pool": some_limit, "user:*": some_limit, "user:ada": some_limit},
)


def play(pool: Pool, asked: list[tuple[float, str, list[str], Wish, float, float]]) -> list[Asked]:
    """Let everybody come in their time, then wait until all have ended; returns what became of them."""
    found = []
    for at, user, groups, wish, life, busy in sorted(asked, key=lambda item: item[0]):
        pool.run(at)
        found.append(pool.ask(user, groups, wish, life, busy))
    while pool.held:
        pool.run(pool.now + 3000)
    return found


@slowly
@given(
    st.integers(2, 4), st.integers(1, 2), any_limits, st.sampled_from(sorted(ORDERS)), arrivals, st.booleans()
)
def test_limits_hold_at_each_grant_and_who_may_start_starts(
    count: int, nodes: int, limits: dict[str, Limit], name: str, asked: Any, wanted: bool
) -> None:
    window = 300.0 if wanted else math.inf
    pool = Pool(gpus(count, nodes), limits, name, window=window)
    for item in play(pool, asked):
        if item.granted_at is None:
            # Only who could never start is left: the limits refuse it in an empty pool, or no node can.
            alone = Pool(gpus(count, nodes), limits)
            assert alone.ask(item.user, item.groups, item.wish, 1.0).granted_at is None
    assert not pool.held


shared = st.lists(st.sampled_from([0.0, 1.0, 1.0, 2.0]), min_size=3, max_size=3).filter(
    lambda s: 0 < sum(s) <= 4
)


@slowly
@given(
    shared,
    st.sampled_from(sorted(ORDERS)),
    st.lists(
        st.tuples(times, people, member_of, st.just(WHOLE), lives.map(lambda s: s * 3), times), max_size=25
    ),
    st.sampled_from([(300.0, 600.0), (600.0, 60.0), (0.0, 0.0)]),
    st.sampled_from([None, 3.0, 4.0]),
)
def test_a_guaranteed_share_is_honoured_in_time(
    parts: list[float], name: str, asked: Any, terms: tuple[float, float], cap: float | None
) -> None:
    warn, min_age = terms
    limits = {f"group:{group}": Limit(guaranteed_gpus=part) for group, part in zip("abc", parts, strict=True)}
    if cap is not None and sum(parts) <= cap:
        limits["pool"] = Limit(gpus=cap)
    pool = Pool(gpus(4), limits, name, warn, min_age)
    for item in play(pool, asked):
        assert item.granted_at is not None
        assert not item.unmet  # whole GPUs leave no pieces
        if item.own_since is not None:
            assert item.granted_at - item.own_since <= max(warn, min_age) + 2 * pool.sweep


@slowly
@given(shared, st.sampled_from(sorted(ORDERS)), arrivals, st.booleans())
def test_a_guaranteed_share_of_any_size_is_honoured_or_said_to_be_unmet(
    parts: list[float], name: str, asked: Any, capped: bool
) -> None:
    limits = {f"group:{group}": Limit(guaranteed_gpus=part) for group, part in zip("abc", parts, strict=True)}
    if capped:
        limits["pool"] = Limit(gpus=sum(parts))
    pool = Pool(gpus(4, 2), limits, name)
    for item in play(pool, asked):
        if item.own_since is not None and not item.unmet:
            assert item.granted_at is not None
            assert item.granted_at - item.own_since <= 600 + 2 * pool.sweep


def test_what_is_claimed_back_comes_from_who_borrows_and_no_sooner() -> None:
    pool = Pool(gpus(2), {"group:a": Limit(guaranteed_gpus=1)})
    first, second = (pool.ask(user, [], WHOLE, 1e6) for user in ("bob", "cyd"))
    pool.run(50)
    mine = pool.ask("ada", ["a"], WHOLE, 1e6)
    later = pool.ask("ada", ["a"], WHOLE, 1e6)  # more than the share: it borrows, and waits
    pool.run(599)
    assert mine.granted_at is None  # asked at 50, warned at 60 for 300 s, but min_age is 600 s
    pool.run(5000)
    assert (mine.granted_at, later.granted_at) == (600, None)
    assert [item.taken for item in (first, second)].count(True) == 1


def test_nobody_settles_on_what_a_second_claim_waits_for() -> None:
    models = [Device(f"g{n}", "n0", n, model, 81920) for n, model in enumerate(["A", "B", "B"])]
    pool = Pool(tuple(models), {"group:a": Limit(guaranteed_gpus=3)}, min_age=0.0)
    for user, model, life in (("bob", "A", 1e6), ("cyd", "B", 1e6), ("dan", "B", 100.0)):
        pool.ask(user, [], Wish(Kind.GPU, model=model), life)
    pool.run(50)
    claims = [
        pool.ask("ada", ["a"], Wish(Kind.GPU, n, model=model), 1e6) for n, model in ((1, "A"), (2, "B"))
    ]
    pool.run(200)
    late = pool.ask("eve", [], Wish(Kind.SHARE, fraction="1/2", model="B"), 1e6)
    pool.run(1000)
    assert [item.granted_at for item in claims] == [360, 360]
    assert late.granted_at is None


def test_nobody_takes_the_room_under_the_pools_cap_that_a_claim_waits_for() -> None:
    pool = Pool(gpus(2), {"group:a": Limit(guaranteed_gpus=1), "pool": Limit(gpus=1)}, min_age=0.0)
    pool.ask("bob", [], HALF, 100.0)
    pool.ask("cyd", [], HALF, 1e6)
    pool.run(50)
    claim = pool.ask("ada", ["a"], WHOLE, 1e6)
    pool.run(200)
    late = pool.ask("eve", [], HALF, 1e6)
    pool.run(1000)
    assert (claim.granted_at, late.granted_at) == (360, None)


def test_a_reservation_is_claimed_when_it_starts_and_lent_when_it_is_over() -> None:
    booked = {"gpus": 1, "start": "1970-01-01T01:00:00+00:00", "end": "1970-01-01T02:00:00+00:00"}
    pool = Pool(gpus(1), read_limits({"group:a": {"reservations": [booked]}}))
    other = pool.ask("bob", [], WHOLE, 1e6)
    mine = pool.ask("ada", ["a"], WHOLE, 1e6)
    pool.run(3600)
    assert other.warned_at is None or other.warned_at == 3600
    pool.run(3920)
    assert other.taken and mine.granted_at == 3900
    again = pool.ask("bob", ["b"], WHOLE, 60)
    pool.run(20000)
    assert (
        again.granted_at is None and not mine.taken
    )  # over: what runs on is lent, and nobody else has a right


@pytest.mark.parametrize(("name", "ahead"), [("fifo", 0.0), ("priority", 99 * 20.0), ("fair", 2000.0)])
def test_a_big_request_does_not_starve_behind_an_endless_stream_of_small_ones(
    name: str, ahead: float
) -> None:
    """Twice as much is asked for as there is; only what came ``ahead`` of its time is served before it."""
    limits = {"group:rich": Limit(priority=MOST_PRIORITY), "user:big": Limit(priority=1)}
    pool = Pool(gpus(4), limits, name, context=Context(0.0, step=20, patience=2000))
    pool.spans["user:big"] = [Span(-1e6, 0.0, 50.0)]  # and whose turn it is not, by what they have had
    big, work = None, 0.0
    for n in range(300):
        pool.run(n * 90.0)
        small = WHOLE if n % 2 else HALF
        pool.ask(f"new{n}", ["rich"], small, 900.0)  # each of them has had nothing yet
        if n == 20:
            big = pool.ask("big", [], Wish(Kind.GPU, count=4), 900.0)
        if big is None or pool.now <= big.since + ahead:
            work += 900.0 if n % 2 else 450.0
        elif big.granted_at is not None:
            break
    assert big is not None and big.granted_at is not None
    assert big.granted_at <= work / 4 + 2 * 900.0


@slowly
@given(
    st.lists(
        st.tuples(st.integers(0, 500).map(float), st.sampled_from([QUARTER, HALF, WHOLE]), lives), max_size=8
    ),
    st.sampled_from([WHOLE, Wish(Kind.GPU, count=2), HALF]),
    st.lists(
        st.tuples(st.integers(501, 3000).map(float), st.sampled_from([QUARTER, HALF, WHOLE]), lives),
        max_size=12,
    ),
)
def test_small_ones_never_delay_the_head(before: Any, wish: Wish, after: Any) -> None:
    started = []
    for later in ([], after):
        pool = Pool(gpus(3), known=True)
        for at, other, life in sorted(before, key=lambda item: item[0]):
            pool.run(at)
            pool.ask("bob", [], other, life)
        pool.run(500)
        pool.waiting.clear()  # who still waits gives up, so that the next is the head
        head = pool.ask("ada", [], wish, 10.0)
        for at, other, life in sorted(later, key=lambda item: item[0]):
            pool.run(at)
            pool.ask("cyd", [], other, life)
        pool.run(1e5)
        started.append(head.granted_at)
    assert started[0] is not None and started[1] is not None and started[1] <= started[0]
