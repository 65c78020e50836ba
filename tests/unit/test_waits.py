"""How long a place in the queue will take."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyterhub_gpupool.fairness.waits import Past, Running, Wait, Wanted, expected_waits, together, watched

ONE = {"g0": ("n0", 120)}
TWO = {"g0": ("n0", 120), "g1": ("n0", 120)}
WHOLE = Wanted({"g0": 120, "g1": 120})
NOTHING = Past({})


def held(device: str = "g0", age: float = 0.0, cells: int = 120, **more: float) -> Running:
    return Running({device: cells}, age, "p", **more)


def test_what_is_free_waits_for_nothing() -> None:
    assert expected_waits([WHOLE], [held("g0")], TWO, NOTHING) == [Wait(0.0, 0.0, 0.0)]
    assert expected_waits([Wanted({})], [], {}, NOTHING) == [Wait(0.0, 0.0, 0.0)]


def test_a_deadline_is_known() -> None:
    found = expected_waits([WHOLE], [held("g0", ends_within=90), held("g1", ends_within=60)], TWO, NOTHING)
    assert found == [Wait(60.0, 60.0, 60.0)]
    stopping = expected_waits([WHOLE], [held("g0", ends_within=0), held("g1")], TWO, NOTHING)
    assert stopping[0].high == 0


def test_without_ground_there_is_no_range_and_it_says_why() -> None:
    few = Past({"p": [100.0] * 7})
    assert expected_waits([Wanted({"g0": 120})], [held()], ONE, few) == [
        Wait(
            None,
            None,
            None,
            "only 7 past sessions are known, 8 are needed",
        )
    ]
    gone = expected_waits([Wanted({"g9": 120})], [], ONE, few)[0]
    assert (gone.low, gone.why) == (None, "no device is there that could serve it")
    old = expected_waits([Wanted({"g0": 120})], [held(age=200)], ONE, Past({"p": [100.0] * 9}))[0]
    assert old.why == "sessions ahead have lasted longer than nearly all of 9 past ones"


def test_the_range_is_that_of_how_long_sessions_of_such_an_age_last() -> None:
    past = Past({"p": [float(n) for n in range(1, 1001)]})
    young = expected_waits([Wanted({"g0": 120})], [held(age=0)], ONE, past)[0]
    assert young.low == pytest.approx(100, abs=80) and young.high == pytest.approx(900, abs=80)
    old = expected_waits([Wanted({"g0": 120})], [held(age=900)], ONE, past)[0]
    assert old.low is not None and old.high is not None
    assert 0 <= old.low <= 30 and 70 <= old.high <= 100
    capped = expected_waits([Wanted({"g0": 120})], [held(age=0, ends_within=300)], ONE, past)[0]
    assert capped.high == 300


def test_sessions_that_go_on_count_as_long() -> None:
    ended = [float(n) for n in range(100, 120)]
    naive, fair = Past({"p": ended}), Past({"p": ended}, {"p": [500.0] * 30})
    assert [naive.lasting(0, "p").draw(u) < math.inf for u in (0.3, 0.5, 0.9)] == [True, True, True]  # type: ignore[union-attr]
    assert [fair.lasting(0, "p").draw(u) < math.inf for u in (0.3, 0.5, 0.9)] == [True, False, False]  # type: ignore[union-attr]
    found = expected_waits([Wanted({"g0": 120})], [held()], ONE, fair)[0]
    assert found.low is not None and found.high is None and "nearly all of 20 past" in found.why


def test_the_estimate_is_that_of_kaplan_and_meier() -> None:
    # The textbook's way: each end takes away one part in those still watched.
    past = Past({"p": [1.0, 3.0, 4.0]}, {"p": [2.0, 3.5]}, least=1)
    lasting = past.lasting(0, "p")
    assert lasting is not None
    assert list(lasting.durations) == [1.0, 3.0, 4.0]
    assert list(lasting.chances) == pytest.approx([1 / 5, 1 - 4 / 5 * 2 / 3, 1.0])
    later = past.lasting(1.0, "p")
    assert later is not None and list(later.chances) == pytest.approx([1 / 3, 1.0])


def test_what_is_watched_late_counts_from_then_on() -> None:
    # At 3 two were watched, at 4 three, at 6 two: the one that was seen from 3.5 on was none of those at 3.
    spells = [(0.0, 3.0, True), (0.0, 4.0, True), (3.5, 6.0, True), (2.0, 7.0, False)]
    past = Past({}, least=1, seen={"p": spells})
    lasting = past.lasting(0, "p")
    assert lasting is not None and list(lasting.durations) == [3.0, 4.0, 6.0]
    assert list(lasting.chances) == pytest.approx([1 - 2 / 3, 1 - 2 / 3 * 2 / 3, 1 - 2 / 3 * 2 / 3 * 1 / 2])


def test_only_what_was_seen_while_somebody_waited_is_watched() -> None:
    demand = together([(60.0, 80.0), (10.0, 20.0), (15.0, 40.0), (100.0, 200.0)])
    assert demand == [(10.0, 40.0), (60.0, 80.0), (100.0, 200.0)]
    assert watched(0.0, 150.0, demand, 5.0) == [(15, 40, False), (65, 80, False), (105, 150, True)]
    assert watched(30.0, 80.0, demand, 5.0) == [(0, 10, False), (35, 50, True)], "it ended for who waited"
    assert watched(30.0, 80.0, demand, 5.0, ended=False) == [(0, 10, False), (35, 50, False)]
    assert watched(10.0, 63.0, demand, 5.0) == [(5, 30, False)], "who goes at once was idle before"
    assert (
        watched(41.0, 59.0, demand, 0.0) == watched(0.0, 9.0, demand, 0.0) == watched(0.0, 9.0, [], 0.0) == []
    )


def test_sessions_end_sooner_where_idle_ones_end_for_who_waits() -> None:
    quiet = [1000.0 + n for n in range(40)]
    seen = [(0.0, 100.0 + n, True) for n in range(8)]
    (left_alone,) = expected_waits([WHOLE], [held(), held("g1")], TWO, Past({"p": quiet}))
    (wanted,) = expected_waits([WHOLE], [held(), held("g1")], TWO, Past({"p": quiet}, seen={"p": seen}))
    (few,) = expected_waits([WHOLE], [held(), held("g1")], TWO, Past({"p": quiet}, seen={"p": seen[:7]}))
    assert wanted.high is not None and wanted.high < 110
    assert few == left_alone and few.low is not None and few.low >= 1000


def test_what_will_be_drained_serves_only_who_can_start_in_time() -> None:
    running = [held("g0", ends_within=100), held("g1", ends_within=500)]
    early, late = Wanted(WHOLE.cells, until={"g0": 100}), Wanted(WHOLE.cells, until={"g0": 99})
    assert [expected_waits([item], running, TWO, NOTHING)[0].high for item in (early, late)] == [100, 500]


def test_a_kind_with_too_few_lasts_as_all_do() -> None:
    past = Past({"short": [10.0] * 20, "long": [1000.0] * 20, "rare": [5.0]})
    mine = Wanted({"g0": 120})
    short, long, rare = (
        expected_waits([mine], [Running({"g0": 120}, 0.0, kind)], ONE, past)[0]
        for kind in ("short", "long", "rare")
    )
    assert (short.high, long.low) == (10, 1000)
    assert (rare.low, rare.high) == (10, 1000)


def test_several_gpus_have_to_come_free_on_one_node() -> None:
    devices = {"g0": ("n0", 120), "g1": ("n0", 120), "g2": ("n1", 120), "g3": ("n1", 120)}
    both = Wanted(dict.fromkeys(devices, 120), count=2)
    running = [held(f"g{n}", ends_within=end) for n, end in enumerate([10, 400, 200, 300])]
    assert expected_waits([both], running, devices, NOTHING)[0].likely == 300
    assert (
        expected_waits([Wanted(dict.fromkeys(devices, 120), count=3)], running, devices, NOTHING)[0].high
        is None
    )


def test_shares_wait_for_as_many_cells_as_they_need() -> None:
    running = [held(cells=60, ends_within=50), held(cells=30, ends_within=20), held(cells=30, ends_within=80)]
    ask = [Wanted({"g0": cells}, ends_within=1000) for cells in (30, 60, 30)]
    found = expected_waits(ask, running, ONE, NOTHING)
    assert [item.likely for item in found] == [20, 50, 80]


def test_other_devices_are_not_waited_for() -> None:
    queue = [Wanted({"g0": 120}), Wanted({"g1": 120}), Wanted({"g0": 120})]
    found = expected_waits(queue, [held("g0", ends_within=500)], TWO, NOTHING)
    assert [item.likely for item in found] == [500, 0, None]


def test_a_small_request_does_not_wait_for_a_large_one_that_waits_elsewhere() -> None:
    running = [held("g0", ends_within=500), held("g1", cells=60, ends_within=400)]
    queue = [Wanted({"g0": 120}), Wanted({"g0": 60, "g1": 60}), Wanted({"g0": 60}, ends_within=9)]
    found = expected_waits(queue, running, TWO, NOTHING)
    assert [item.likely for item in found] == [
        500,
        0,
        None,
    ]  # the last one keeps off what the first waits for


durations = st.lists(st.floats(1, 1e5), max_size=30)
sizes = st.sampled_from([15, 30, 60, 120])


@settings(max_examples=40, deadline=None)
@given(
    durations,
    st.lists(
        st.tuples(st.sampled_from(["g0", "g1"]), st.floats(0, 1e5), st.floats(0, 1e6) | st.just(math.inf)),
        max_size=4,
    ),
    st.lists(sizes, min_size=1, max_size=12),
)
def test_of_like_requests_a_later_one_never_waits_less(
    lasted: list[float], running: list[tuple[str, float, float]], queue: list[int]
) -> None:
    held_now = [Running({device: 60}, age, "p", ends) for device, age, ends in running]
    asked = [Wanted({"g0": cells, "g1": cells}, "p") for cells in queue]
    past = Past({"p": lasted}, {"p": [age for _, age, _ in running]})
    found = expected_waits(asked, held_now, TWO, past)
    assert found == expected_waits(asked, held_now, TWO, past)
    for part in ("low", "likely", "high"):
        values = [math.inf if (value := getattr(item, part)) is None else value for item in found]
        for size in queue:
            alike = [value for value, other in zip(values, queue, strict=True) if other == size]
            assert alike == sorted(alike)
        assert min(values) >= 0
    for item in found:
        assert (item.high is None) == bool(item.why)
        values = [math.inf if value is None else value for value in (item.low, item.likely, item.high)]
        assert values == sorted(values)


def test_the_range_holds_as_often_as_it_says_where_sessions_are_as_they_were() -> None:
    chance = random.Random(3)
    past = Past({"p": [chance.expovariate(1 / 600) for _ in range(500)]})
    devices = {f"g{n}": ("n0", 120) for n in range(4)}
    within = 0
    for _ in range(150):
        ends = sorted(chance.expovariate(1 / 600) for _ in range(4))
        running = [Running({f"g{n}": 120}, 60.0, "p") for n in range(4)]  # memoryless: any age is alike
        asked = [Wanted(dict.fromkeys(devices, 120), "p")] * 2
        found = expected_waits(asked, running, devices, past, draws=40)[1]
        second = min(ends[1], ends[0] + chance.expovariate(1 / 600))
        assert found.low is not None and found.high is not None
        within += found.low <= second <= found.high
    assert 105 <= within <= 138  # four in five
