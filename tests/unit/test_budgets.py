"""Budgets: hours in a sliding window, whose budget decides, and when a start works again."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyterhub_gpupool.errors import Unavailable
from jupyterhub_gpupool.fairness import (
    BudgetState,
    Span,
    admit,
    budget,
    check_budget,
    hours_in,
    pays,
    read_limits,
)
from jupyterhub_gpupool.fairness.budgets import again_at
from jupyterhub_gpupool.fairness.words import figure, span

H = 3600.0
NOW = 1_780_300_800.0  # 2026-06-01 08:00 UTC


def test_hours_are_those_within_the_window() -> None:
    spans = [Span(NOW - 30 * H, NOW - 9 * H, 2), Span(NOW - 4 * H, None, 0.5), Span(NOW + H, None, 9)]
    assert hours_in(spans, NOW, 10 * H) == pytest.approx(2 + 2)
    assert hours_in(spans, NOW, 100 * H) == pytest.approx(42 + 2)
    assert hours_in([Span(NOW, NOW - H, 1)], NOW, 10 * H) == 0


LIMITS = read_limits(
    {
        "pool": {"gpu_hours": 1000},
        "user:*": {"gpu_hours": 10, "window": 86400},
        "user:rich": {"gpu_hours": 100},
        "group:a": {"gpu_hours": 20},
        "group:b": {"gpu_hours": 5},
        "group:s": {"gpu_hours": 4, "strict": True},
        "group:zero": {"gpu_hours": 0},
    }
)


@pytest.mark.parametrize(
    ("user", "groups", "used", "state", "scope", "left"),
    [
        ("ada", [], {}, "ok", "user:ada", 10),
        ("ada", [], {"user:ada": 7.9}, "ok", "user:ada", 2.1),
        ("ada", [], {"user:ada": 8.0}, "warned", "user:ada", 2),
        ("ada", [], {"user:ada": 12.0}, "exhausted", "user:ada", 0),
        ("rich", [], {"user:rich": 12.0}, "ok", "user:rich", 88),
        ("rich", [], {"pool": 990.0}, "warned", "pool", 10),
        ("rich", ["a", "b"], {"group:b": 5.0}, "ok", "group:a", 20),
        ("rich", ["a", "b"], {"group:b": 5.0, "group:a": 20.0}, "exhausted", "group:a", 0),
        ("rich", ["a", "s"], {"group:s": 3.5}, "warned", "group:s", 0.5),
        ("rich", ["a", "s"], {"group:s": 4.0}, "exhausted", "group:s", 0),
        ("rich", ["zero"], {}, "exhausted", "group:zero", 0),
        ("rich", ["unlisted"], {}, "ok", "user:rich", 100),
    ],
)
def test_whose_budget_decides(
    user: str, groups: list[str], used: dict[str, float], state: str, scope: str, left: float
) -> None:
    found = budget(user, groups, used, LIMITS, NOW)
    assert (found.state, found.scope) == (state, scope)
    assert found.left == pytest.approx(left)
    assert bool(found.message) == (found.state is not BudgetState.OK)
    assert found.again_at is None  # sums do not tell when they come back


CHARGED = read_limits(
    {
        "group:a": {"gpu_hours": 20},
        "group:b": {"gpu_hours": 5},
        "group:s": {"gpu_hours": 4, "strict": True},
        "group:caps": {"gpus": 1},
        "group:both": {"gpus": 1, "gpu_hours": 8},
        "group:lab": {"guaranteed_gpus": 1, "gpu_hours": 8},
    }
)


@pytest.mark.parametrize(
    ("group", "groups", "paying"),
    [
        ("", [], []),
        ("a", ["a", "b"], ["a"]),
        ("a", ["a", "b", "s"], ["a", "s"]),
        ("caps", ["a", "b", "caps"], ["a", "b"]),
        ("", ["a", "b"], ["a", "b"]),
        ("both", ["a", "both"], ["both"]),
        ("caps", ["a", "both", "caps"], ["both"]),
        ("caps", ["caps", "s"], ["s"]),
        ("left", ["a"], ["a"]),
        ("b", ["a"], ["b"]),  # it is no member any more
    ],
)
def test_which_budgets_a_lease_counts_against(group: str, groups: list[str], paying: list[str]) -> None:
    assert pays(group, groups, CHARGED) == paying


def test_a_group_that_can_be_charged_first_decides_before_one_that_only_budgets() -> None:
    for first in ("both", "lab"):
        found = budget("ada", ["a", first], {f"group:{first}": 8.0}, CHARGED, NOW)
        assert (found.state, found.scope) == ("exhausted", f"group:{first}")
    assert budget("ada", ["a", "caps"], {}, CHARGED, NOW).scope == "group:a"


names = st.sampled_from(["a", "b", "s", "caps", "both", "lab"])


@given(st.lists(names, min_size=1, max_size=4, unique=True))
def test_nobody_uses_more_hours_than_their_budgets_have(groups: list[str]) -> None:
    """Hour after hour, one GPU: what a budget allows counts against it, so that it comes to an end."""
    used: dict[str, float] = {}
    guaranteed = {"lab": 1.0}
    total = 0
    limited = [name for name in groups if CHARGED[f"group:{name}"].gpu_hours is not None]
    while budget("ada", groups, used, CHARGED, NOW).state is not BudgetState.EXHAUSTED:
        left = {
            name: (CHARGED[f"group:{name}"].gpu_hours or 0) - used.get(f"group:{name}", 0) for name in limited
        }
        said = admit("ada", groups, 1, {}, CHARGED, guaranteed, left)
        assert said.allowed
        for name in pays(said.group, groups, CHARGED):
            used[f"group:{name}"] = used.get(f"group:{name}", 0) + 1
        total += 1
        if not limited:
            return
        assert total <= sum(CHARGED[f"group:{name}"].gpu_hours or 0 for name in limited)


def test_nobody_limits() -> None:
    found = check_budget("ada", ["x"], 4, {"user:ada": 1e9}, {}, NOW)
    assert (found.left, found.scope, found.message) == (math.inf, "", "")


def test_the_refusal_names_when_a_start_works_again() -> None:
    used = {"user:ada": [Span(NOW - 20 * H, NOW - 12 * H, 1), Span(NOW - 4 * H, None, 1)]}
    says = (
        r"User ada has used all of its 10 GPU-hours in 24 h; a start works again in 6 h "
        r"\(2026-06-01 14:00 UTC\) at the earliest\."
    )
    with pytest.raises(Unavailable, match=says) as caught:
        check_budget("ada", [], 1, used, LIMITS, NOW)
    assert (caught.value.reason, caught.value.status) == ("budget", 429)
    assert check_budget("ada", [], 0, used, LIMITS, NOW).again_at == NOW + 6 * H
    with pytest.raises(Unavailable, match="when enough of it is older than 24 h"):
        check_budget("ada", [], 1, {"user:ada": 10.0}, LIMITS, NOW)
    with pytest.raises(Unavailable, match="Group zero is allowed no GPU-hours at all"):
        check_budget("ada", ["zero"], 1, {}, LIMITS, NOW)


def test_the_warning_says_what_is_left() -> None:
    found = budget("ada", [], {"user:ada": 8.5}, LIMITS, NOW)
    assert found.message == "User ada has used 8.5 of 10 GPU-hours in 24 h; 1.5 are left."


def test_of_exhausted_groups_the_one_that_comes_back_first_decides() -> None:
    used = {
        "group:a": [Span(NOW - 20 * H, None, 1)],
        "group:b": [Span(NOW - 160 * H, NOW - 154 * H, 1)],
    }
    found = budget("rich", ["a", "b"], used, LIMITS, NOW)
    assert (found.scope, found.again_at) == ("group:b", NOW + 9 * H)


def test_figures_in_words() -> None:
    assert [figure(x) for x in (0, 1e-9, 0.0001, 0.0049, 0.005, 1 / 3, 2.0, 12345.678)] == [
        "0",
        "0",
        "0.0001",
        "0.005",
        "0.01",
        "0.33",
        "2",
        "12345.68",
    ]


def test_durations_in_words() -> None:
    assert [span(s) for s in (0, 89, 90, 5399, 5400, 9000, 172799, 604800)] == [
        "0 s",
        "89 s",
        "2 min",
        "90 min",
        "1.5 h",
        "2.5 h",
        "48 h",
        "7 days",
    ]


spans = st.builds(
    lambda start, length, gpus: Span(NOW - start, None if length is None else NOW - start + length, gpus),
    st.integers(0, 300_000),
    st.none() | st.integers(0, 200_000),
    st.sampled_from([1 / 120, 0.25, 1.0, 2.0, 8.0]),
)


@given(st.lists(spans, min_size=1, max_size=8), st.floats(0.01, 50), st.integers(60, 200_000))
def test_a_start_works_again_just_when_it_is_said(found: list[Span], hours: float, window: int) -> None:
    now = NOW + 100
    ended = [Span(item.start, now if item.end is None else min(item.end, now), item.gpus) for item in found]
    then = again_at(found, hours, now, window)
    assert then is not None and now <= then <= now + window
    assert hours_in(ended, then + 1, window) < hours or hours_in(ended, then, window) < hours
    if then > now:
        assert hours_in(ended, then - 1, window) >= hours - 1e-6
    assert again_at(found, 0, now, window) is None
