"""The order of the queue, by name."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyterhub_gpupool.fairness import ORDERS, Context, Queued, Span, decayed, order, weights
from jupyterhub_gpupool.fairness.limits import MOST_PRIORITY

NOW = 1_000_000.0


def queued(ticket: int, user: str = "ada", group: str = "", **more: float) -> Queued:
    given = {"gpus": 1.0, "since": NOW - 1000 + ticket, **more}
    return Queued(f"l{ticket}", user, ticket=ticket, group=group, **given)  # type: ignore[arg-type]


def tickets(found: list[Queued]) -> list[int]:
    return [item.ticket for item in found]


def test_an_order_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(
        ValueError, match="'lifo' is not an order of the queue; there are fifo, priority, fair"
    ):
        order("lifo", [], Context(NOW))
    with pytest.raises(ValueError, match="None is not an order"):
        order(None, [], Context(NOW))  # type: ignore[arg-type]


def test_first_come_first_served() -> None:
    waiting = [queued(3), queued(1, priority=1), queued(2, priority=99)]
    assert tickets(order("fifo", waiting, Context(NOW))) == [1, 2, 3]


@pytest.mark.parametrize("name", ORDERS)
def test_what_is_a_groups_own_is_before_who_borrows(name: str) -> None:
    waiting = [
        queued(1),
        queued(2, group="a", own=True),
        queued(3, priority=99),
        queued(4, group="a", own=True),
    ]
    assert tickets(order(name, waiting, Context(NOW)))[:2] == [2, 4]


def test_priority_first_and_arrival_among_equals() -> None:
    waiting = [queued(1, priority=5), queued(2, priority=20), queued(3, priority=20), queued(4)]
    assert tickets(order("priority", waiting, Context(NOW))) == [2, 3, 4, 1]


def test_waiting_makes_up_for_priority() -> None:
    context = Context(NOW, step=60)
    old, new = queued(1, priority=5, since=NOW - 601), queued(2, priority=15, since=NOW)
    assert tickets(order("priority", [new, old], context)) == [1, 2]
    later = queued(1, priority=5, since=NOW - 599)
    assert tickets(order("priority", [new, later], context)) == [2, 1]


@given(st.lists(st.tuples(st.floats(0, 1e6), st.integers(1, MOST_PRIORITY)), min_size=1, max_size=30))
def test_priority_overtakes_only_within_its_bound(asked: list[tuple[float, int]]) -> None:
    context = Context(NOW, step=600)
    arrived = sorted(NOW - ago for ago, _ in asked)
    waiting = [
        queued(n, since=at, priority=p) for n, (at, (_, p)) in enumerate(zip(arrived, asked, strict=True))
    ]
    placed = order("priority", waiting, context)
    for n, item in enumerate(placed):
        for before in placed[:n]:
            assert before.since - item.since <= (MOST_PRIORITY - 1) * context.step
            if before.priority <= item.priority:
                assert before.ticket < item.ticket


def test_the_group_that_has_had_least_is_next_then_the_user() -> None:
    context = Context(NOW, {"group:a": 50, "group:b": 10, "user:ada": 9, "user:bob": 1, "user:cyd": 0})
    waiting = [queued(1, "cyd", "a"), queued(2, "ada", "b"), queued(3, "bob", "b"), queued(4, "ada", "b")]
    assert tickets(order("fair", waiting, context)) == [3, 2, 4, 1]


def test_equals_take_turns() -> None:
    waiting = [*(queued(n, "ada", "a") for n in (1, 2, 3)), *(queued(n, "bob", "b") for n in (4, 5, 6))]
    assert tickets(order("fair", waiting, Context(NOW))) == [1, 4, 2, 5, 3, 6]
    waiting = [*(queued(n, "ada", "a") for n in (1, 2, 3)), *(queued(n, "bob", "a") for n in (4, 5))]
    assert tickets(order("fair", waiting, Context(NOW))) == [1, 4, 2, 5, 3]


def test_a_heavier_weight_gets_more_turns() -> None:
    context = Context(NOW, weights={"group:a": 0.25, "group:b": 0.75})
    waiting = [*(queued(n, "ada", "a") for n in range(8)), *(queued(n, "bob", "b") for n in range(8, 16))]
    first = order("fair", waiting, context)[:8]
    assert sum(item.group == "b" for item in first) == 6
    nothing = Context(NOW, {"group:b": 5}, weights={"group:a": 0.0, "group:b": 1.0})
    assert [item.group for item in order("fair", waiting, nothing)] == ["b"] * 8 + ["a"] * 8


def test_a_large_request_counts_as_many_turns() -> None:
    waiting = [
        queued(1, "ada", "a", gpus=4),
        queued(2, "ada", "a"),
        *(queued(n, "bob", "b") for n in range(3, 8)),
    ]
    assert tickets(order("fair", waiting, Context(NOW))) == [1, 3, 4, 5, 6, 2, 7]


def test_who_has_no_group_is_a_group_alone() -> None:
    waiting = [queued(1, "ada"), queued(2, "ada"), queued(3, "bob"), queued(4, "cyd", "g")]
    assert tickets(order("fair", waiting, Context(NOW))) == [1, 3, 4, 2]


def test_patience_has_an_end() -> None:
    hours = {"group:a": 1e6, "user:ada": 1e6}
    waiting = [queued(1, "ada", "a", since=NOW - 3601), queued(2, "ada", "a"), queued(3, "bob", "b")]
    assert tickets(order("fair", waiting, Context(NOW, hours, patience=3600))) == [1, 3, 2]
    assert tickets(order("fair", waiting, Context(NOW, hours, patience=3602))) == [3, 1, 2]


some = st.builds(
    lambda user, group, gpus, ago, p, own: (user, group, gpus, ago, p, own and bool(group)),
    st.sampled_from("abcde"),
    st.sampled_from(["", "g", "h"]),
    st.sampled_from([0.0, 0.25, 1.0, 4.0]),
    st.floats(-10, 2e5),
    st.integers(1, 100),
    st.booleans(),
)


@given(
    st.sampled_from(sorted(ORDERS)),
    st.lists(some, max_size=25),
    st.dictionaries(st.sampled_from("gh"), st.floats(0, 99)),
)
def test_an_order_loses_nobody_and_does_not_depend_on_the_lists_own(
    name: str, asked: list[tuple[str, str, float, float, int, bool]], hours: dict[str, float]
) -> None:
    waiting = [
        Queued(f"l{n}", user, gpus, NOW - ago, n, group, p, own)
        for n, (user, group, gpus, ago, p, own) in enumerate(asked)
    ]
    context = Context(NOW, {f"group:{group}": value for group, value in hours.items()})
    found = order(name, waiting, context)
    assert sorted(tickets(found)) == list(range(len(waiting)))
    assert found == order(name, random.Random(1).sample(waiting, len(waiting)), context)
    assert [item.own for item in found] == sorted((item.own for item in found), reverse=True)
    # The same person with the same wish is served in order of arrival, whatever the order is called.
    if name != "priority":
        same = [item for item in found if (item.user, item.group, item.own) == ("a", "g", False)]
        patient = [item.ticket for item in same if NOW - item.since >= context.patience]
        rest = [item.ticket for item in same if NOW - item.since < context.patience]
        assert patient == sorted(patient) and rest == sorted(rest)


def test_the_past_weighs_half_after_a_half_life() -> None:
    now, half = NOW, 3600.0
    assert decayed([Span(now - 1, None, 2)], now, half) == pytest.approx(2 / 3600, rel=1e-3)
    fresh = decayed([Span(now - 60, now, 1)], now, half)
    assert decayed([Span(now - 60 - half, now - half, 1)], now, half) == pytest.approx(fresh / 2)
    for_ever = decayed([Span(0, None, 1)], 1e9, half)
    assert for_ever == pytest.approx(1 / 0.693147, rel=1e-5)
    assert decayed([Span(now + 5, None, 1)], now, half) == 0


def test_weights_are_priority_times_what_is_left_and_sum_to_one() -> None:
    assert weights({"a": 10, "b": 20}, {"a": 6, "b": 1}) == {"a": 0.75, "b": 0.25}
    assert weights({"a": 10, "b": 30}, {}) == {"a": 0.25, "b": 0.75}
    assert weights({}, {}) == {}


@given(st.dictionaries(st.text(max_size=2), st.floats(1, 100), min_size=1), st.floats(0, 100))
def test_weights_always_sum_to_one(priorities: dict[str, float], left: float) -> None:
    found = weights(priorities, dict.fromkeys(list(priorities)[:2], left))
    assert sum(found.values()) == pytest.approx(1)
