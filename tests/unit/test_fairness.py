"""Limits: what is read, who may ever have what, who may ask, who is admitted."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyterhub_gpupool.errors import Rejected, Unavailable
from jupyterhub_gpupool.fairness import (
    Admission,
    Usage,
    admit,
    check_ever,
    check_queue,
    read_limits,
    user_limit,
)
from jupyterhub_gpupool.model import Limit


def no(why: str) -> Admission:
    return Admission(False, why=why, room=0)


def test_limits_are_read_by_scope() -> None:
    raw = {
        "pool": {"sessions": 10, "gpus": 3.5, "queued": 50},
        "group:vision lab": {"gpus": 2},
        "user:ada": {"sessions": 0},
        "user:*": {},
    }
    assert read_limits(raw) == {
        "pool": Limit(10, 3.5, 50),
        "group:vision lab": Limit(gpus=2),
        "user:ada": Limit(sessions=0),
        "user:*": Limit(),
    }


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ([], r"\[\] is not a dictionary from scope to limits"),
        ({"group": {}}, r"'group' is not a scope; scopes are pool, group:NAME, user:NAME, user:\*"),
        ({"group:": {}}, "'group:' is not a scope"),
        ({"group:*": {}}, "is not a scope"),
        ({"user: ada": {}}, "is not a scope"),
        ({"Pool": {}}, "is not a scope"),
        ({"pool:x": {}}, "is not a scope"),
        ({7: {}}, "7 is not a scope"),
        ({"pool": 3}, r"\['pool'\]: 3 is not a dictionary; its keys are sessions, gpus, queued"),
        ({"pool": {"gpu": 1}}, r"\['pool'\]: unknown key 'gpu'; keys are sessions, gpus, queued"),
        ({"pool": {1: 1}}, "unknown key 1"),
        ({"user:*": {"sessions": -1}}, r"\['user:\*'\]: sessions is -1; .* a whole number from 0 to 1000000"),
        ({"pool": {"sessions": 1.5}}, "sessions is 1.5"),
        ({"pool": {"sessions": True}}, "sessions is True"),
        ({"pool": {"sessions": None}}, "sessions is None; .*Leave the key out for no limit"),
        ({"pool": {"queued": "9"}}, "queued is '9'"),
        ({"pool": {"gpus": -0.1}}, "gpus is -0.1; it must be a number from 0"),
        ({"pool": {"gpus": math.nan}}, "gpus is nan"),
        ({"pool": {"gpus": math.inf}}, "gpus is inf"),
        ({"pool": {"gpus": False}}, "gpus is False"),
        ({"pool": {"gpus": 10**5000}}, "gpus is a huge number"),
        ({"pool": {"sessions": 1_000_001}}, "sessions is 1000001"),
        ({"pool": {"gpus": "x" * 999}}, r"gpus is 'x+\.\.\.;"),
    ],
)
def test_odd_limits_are_refused_with_a_sentence(raw: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        read_limits(raw)
    assert str(caught.value).startswith("GPUPool.limits")
    assert len(str(caught.value)) < 250


def test_a_users_own_limit_goes_before_everybodys_key_by_key() -> None:
    limits = read_limits({"user:*": {"sessions": 2, "gpus": 1}, "user:ada": {"gpus": 4, "queued": 0}})
    assert user_limit("ada", limits) == Limit(2, 4, 0)
    assert user_limit("grace", limits) == Limit(2, 1, None)
    assert user_limit("grace", {}) == Limit()


LIMITS = read_limits(
    {
        "pool": {"gpus": 4, "sessions": 6, "queued": 5},
        "user:*": {"sessions": 1, "gpus": 3, "queued": 1},
        "user:grace": {"sessions": 2, "queued": 2},
        "user:off": {"sessions": 0},
        "group:vision": {"gpus": 2, "queued": 2},
        "group:audio": {"gpus": 1, "queued": 3},
        "group:talkers": {"queued": 9},
        "group:closed": {"sessions": 0},
    }
)


@pytest.mark.parametrize(
    ("user", "groups", "gpus", "says"),
    [
        ("ada", [], 3, None),
        ("ada", [], 3.5, "user ada is allowed 3 GPUs at once, and this needs 3.5 GPUs"),
        ("ada", [], 5, "the pool is allowed 4 GPUs at once, and this needs 5 GPUs"),
        ("off", [], 0, "user off is allowed no session at all"),
        ("ada", ["vision"], 2, None),
        ("ada", ["vision"], 2.5, "group vision is allowed 2 GPUs at once, and this needs 2.5 GPUs"),
        ("ada", ["audio", "vision"], 1.5, None),
        ("ada", ["audio"], 1.5, "group audio is allowed 1 GPU at once"),
        ("ada", ["audio", "vision"], 2.5, "group audio is .*, and group vision is allowed 2 GPUs"),
        ("ada", ["closed"], 0, "group closed is allowed no session at all"),
        ("ada", ["talkers", "unlisted"], 3, None),
        ("ada", ["audio"], 0.1 + 0.2 + 0.7, None),
        ("ada", ["audio"], 0, None),
    ],
)
def test_what_even_an_empty_pool_refuses(user: str, groups: list[str], gpus: float, says: str | None) -> None:
    if says is None:
        check_ever(user, groups, gpus, LIMITS)
        return
    with pytest.raises(Rejected, match=says) as caught:
        check_ever(user, groups, gpus, LIMITS)
    assert (caught.value.reason, caught.value.status) == ("over-limit", 403)


@pytest.mark.parametrize(
    ("user", "groups", "queued", "says"),
    [
        ("ada", [], {}, None),
        ("ada", [], {"pool": 5}, "the pool lets at most 5 requests wait"),
        ("ada", [], {"user:ada": 1}, "user ada may have at most 1 request waiting"),
        ("grace", [], {"user:grace": 1}, None),
        ("grace", [], {"user:grace": 2}, "at most 2 requests waiting"),
        ("ada", ["vision"], {"group:vision": 2}, "group vision may have at most 2 requests waiting"),
        ("ada", ["vision", "audio"], {"group:vision": 2, "group:audio": 2}, None),
        (
            "ada",
            ["vision", "audio"],
            {"group:vision": 2, "group:audio": 3},
            "group audio .*, and group vision",
        ),
        ("ada", ["vision", "closed"], {"group:vision": 2}, "group vision"),
        ("ada", ["closed"], {"group:closed": 99}, None),
    ],
)
def test_who_may_ask(user: str, groups: list[str], queued: dict[str, int], says: str | None) -> None:
    usage = {scope: Usage(queued=n) for scope, n in queued.items()}
    if says is None:
        check_queue(user, groups, usage, LIMITS)
        return
    with pytest.raises(Unavailable, match=says) as caught:
        check_queue(user, groups, usage, LIMITS)
    assert (caught.value.reason, caught.value.status) == ("queue-full", 429)


@pytest.mark.parametrize(
    ("groups", "gpus", "usage", "expected"),
    [
        ([], 1, {}, Admission(True, room=3)),
        (["unlisted"], 1, {}, Admission(True, room=3)),
        (["talkers"], 1, {}, Admission(True, room=3)),
        (["vision"], 1, {}, Admission(True, "vision", room=2)),
        (["audio", "vision"], 1, {}, Admission(True, "vision", room=2)),
        (["audio", "vision"], 1, {"group:vision": Usage(1, 1.5)}, Admission(True, "audio", room=1)),
        (["vision", "audio"], 0.5, {"group:vision": Usage(1, 1.0)}, Admission(True, "audio", room=1)),
        (["audio", "closed"], 1, {}, Admission(True, "audio", room=1)),
        ([], 1, {"pool": Usage(3, 3.5)}, no("the pool holds 3.5 of its 4 GPUs, and this needs 1 GPU")),
        ([], 1, {"pool": Usage(3, 4)}, no("the pool holds 4 of its 4 GPUs")),
        ([], 0, {"pool": Usage(6, 4)}, no("the pool holds 6 of its 6 sessions")),
        ([], 0, {"pool": Usage(3, 4)}, Admission(True, room=0)),
        ([], 0, {"pool": Usage(3, 5)}, Admission(True, room=0)),  # the limit was lowered: no GPU is asked for
        ([], 0, {"user:ada": Usage(1)}, no("waits for your own limit of 1 session")),
        (["vision"], 1, {"group:vision": Usage(2, 2)}, no("group vision holds 2 of its 2 GPUs")),
        (
            ["vision", "audio"],
            1,
            {"group:vision": Usage(2, 2), "group:audio": Usage(1, 1)},
            no("group audio holds 1 of its 1 GPU and group vision holds 2 of its 2 GPUs"),
        ),
    ],
)
def test_admission(groups: list[str], gpus: float, usage: dict[str, Usage], expected: Admission) -> None:
    assert admit("ada", groups, gpus, usage, LIMITS) == expected


def test_a_user_waits_for_their_own_gpus() -> None:
    limits = read_limits({"user:*": {"gpus": 1}})
    found = admit("ada", [], 0.75, {"user:ada": Usage(1, 0.5)}, limits)
    assert found.why == "waits for your own limit of 1 GPU: you hold 0.5, and this needs 0.75 GPUs"


def test_three_thirds_are_one() -> None:
    limits = read_limits({"pool": {"gpus": 1}})
    held = sum([40 / 120 + 1e-12] * 2)
    assert admit("ada", [], 1 / 3, {"pool": Usage(2, held)}, limits).allowed
    assert not admit("ada", [], 1 / 3 + 1 / 120, {"pool": Usage(2, held)}, limits).allowed


caps = st.builds(
    Limit,
    sessions=st.none() | st.integers(0, 4),
    gpus=st.none() | st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0]),
)
requests = st.tuples(
    st.sampled_from(["ada", "grace"]),
    st.lists(st.sampled_from(["vision", "audio", "open"]), max_size=3),
    st.sampled_from([0.0, 1 / 3, 0.5, 1.0, 2.0]),
)
scopes = st.sampled_from(["pool", "user:*", "user:ada", "group:vision", "group:audio"])


@given(st.dictionaries(scopes, caps), st.lists(requests, max_size=20))
def test_admission_never_exceeds_a_limit(
    limits: dict[str, Limit], asked: list[tuple[str, list[str], float]]
) -> None:
    usage: dict[str, Usage] = {}
    for user, groups, gpus in asked:
        before = admit(user, groups, gpus, usage, limits)
        assert before.allowed == (not before.why)
        if not before.allowed:
            continue
        assert before.room >= gpus - 1e-9 or gpus == 0
        check_ever(user, groups, gpus, limits)  # what is granted was never refused for good
        for scope in ("pool", f"user:{user}", *([f"group:{before.group}"] if before.group else [])):
            held = usage.get(scope, Usage())
            usage[scope] = Usage(held.sessions + 1, held.gpus + gpus)
        assert not before.group or before.group in groups
        limited = [g for g in groups if limits.get(f"group:{g}", Limit()) != Limit()]
        assert bool(before.group) == bool(limited)
    for scope, held in usage.items():
        limit = user_limit(scope[5:], limits) if scope.startswith("user:") else limits.get(scope, Limit())
        assert limit.sessions is None or held.sessions <= limit.sessions
        assert limit.gpus is None or held.gpus <= limit.gpus + 1e-9


@given(st.dictionaries(scopes, caps), requests)
def test_what_may_ever_be_had_is_admitted_to_an_empty_pool(
    limits: dict[str, Limit], asked: tuple[str, list[str], float]
) -> None:
    user, groups, gpus = asked
    allowed = admit(user, groups, gpus, {}, limits).allowed
    if allowed:
        check_ever(user, groups, gpus, limits)
    else:
        with pytest.raises(Rejected):
            check_ever(user, groups, gpus, limits)
