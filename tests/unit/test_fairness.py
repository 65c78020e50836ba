"""Limits: what is read, who may ever have what, who may ask, who is admitted."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyterhub_gpupool.errors import Rejected, Unavailable
from jupyterhub_gpupool.fairness import (
    Admission,
    Asking,
    Claims,
    Holds,
    Usage,
    admit,
    check_ever,
    check_profile,
    check_queue,
    check_shares,
    guarantees,
    max_age,
    next_change,
    over_limits,
    priority,
    profiles,
    read_limits,
    remaining,
    tally,
    user_limit,
    warnings,
    write_limit,
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
        ({"group:a\u202eb": {}}, "is not a scope"),
        ({"group:a\nb": {}}, "is not a scope"),
        ({f"group:{'x' * 256}": {}}, "is not a scope"),
        ({"pool": {"gpu_hours": math.nan}}, "gpu_hours is nan; it must be a number from 0"),
        ({"pool": {"gpu_hours": 1, "window": 0}}, "window is 0; it must be a number of seconds from 1"),
        ({"pool": {"window": 60}}, "window says for how long gpu_hours are counted, and there are none"),
        ({"pool": {"max_age": -1}}, "max_age is -1"),
        ({"pool": {"max_age": 10**12}}, "max_age is 1000000000000"),
        ({"pool": {"profiles": "gpu"}}, "profiles is 'gpu'; it must be a list of profiles' slugs"),
        ({"pool": {"profiles": ["gpu", 3]}}, "profiles is "),
        ({"user:*": {"priority": 0}}, "priority is 0; it must be a whole number from 1 to 100"),
        ({"user:*": {"priority": 101}}, "priority is 101"),
        ({"pool": {"priority": 5}}, "priority belongs to the scopes of a user or a group"),
        ({"user:ada": {"strict": True}}, "strict belongs to the scopes of a group"),
        ({"group:a": {"strict": 1}}, "strict is 1; it must be True or False"),
        ({"user:ada": {"guaranteed_gpus": 1}}, "guaranteed_gpus belongs to the scopes of a group"),
        ({"group:a": {"guaranteed_gpus": -1}}, "guaranteed_gpus is -1"),
        ({"group:a": {"guaranteed_gpus": 2, "gpus": 1}}, "2 GPUs are guaranteed, more than the 1 GPU that"),
        ({"group:a": {"reservations": {}}}, r"reservations is \{\}; it must be a list"),
        ({"group:a": {"reservations": [{"gpus": 1}]}}, "does not have exactly the keys gpus, start, end"),
    ],
)
def test_odd_limits_are_refused_with_a_sentence(raw: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        read_limits(raw)
    assert str(caught.value).startswith("GPUPool.limits")
    assert len(str(caught.value)) < 250


def booked(start: str, end: str, gpus: Any = 1) -> dict[str, Any]:
    return {"gpus": gpus, "start": start, "end": end}


@pytest.mark.parametrize(
    ("reservations", "says"),
    [
        ([booked("2026-06-01T09:00Z", "2026-06-01T08:00Z")], "ends 2026-06-01 08:00 UTC, which is not after"),
        ([booked("2026-06-01T09:00Z", "2026-06-01T09:00Z")], "which is not after its start"),
        (
            [booked("2026-06-01T09:00", "2026-06-01T10:00Z")],
            "start of a reservation is '2026-06-01T09:00'; it",
        ),
        (
            [booked("2026-06-01T09:00Z", "9999-12-31T23:59-05:00")],
            "end of a reservation is '9999-12-31T23:59-05",
        ),
        (
            [booked("0001-01-01T00:00+14:00", "2026-06-01T10:00Z")],
            "start of a reservation is '0001-01-01T00:00",
        ),
        ([booked("2026-06-01T09:00Z", "soon")], "end of a reservation is 'soon'"),
        ([booked("2026-06-01T09:00Z", "2026-06-01T10:00Z", math.nan)], "gpus of a reservation is nan"),
        (
            [
                booked("2026-06-01T12:00Z", "2026-06-01T14:00Z"),
                booked("2026-06-01T09:00Z", "2026-06-01T15:00+02:00"),
            ],
            "overlap: one ends 2026-06-01 13:00 UTC, the next starts 2026-06-01 12:00 UTC",
        ),
    ],
)
def test_odd_reservations_are_refused(reservations: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        read_limits({"group:a": {"reservations": reservations}})


def test_a_limit_is_written_as_it_was_read() -> None:
    raw: dict[str, dict[str, Any]] = {
        "pool": {"gpu_hours": 10, "max_age": 60, "profiles": ["a", "b"]},
        "group:a": {
            "guaranteed_gpus": 1.5,
            "strict": True,
            "priority": 3,
            "gpu_hours": 2,
            "window": 60,
            "reservations": [
                booked("2026-06-01T09:00:00+00:00", "2026-06-01T10:00:00+00:00", 0.5),
                booked("2026-06-01T10:00:00+00:00", "2026-06-01T11:00:00+00:00"),
            ],
        },
        "user:*": {},
    }
    assert {scope: write_limit(limit) for scope, limit in read_limits(raw).items()} == raw


NINE = datetime(2026, 6, 1, 9, tzinfo=UTC).timestamp()
SHARES = read_limits(
    {
        "group:a": {"guaranteed_gpus": 1},
        "group:b": {"reservations": [booked("2026-06-01T09:00Z", "2026-06-01T10:00Z", 2)]},
        "group:c": {
            "guaranteed_gpus": 0.5,
            "reservations": [booked("2026-06-01T09:30Z", "2026-06-01T10:30Z")],
        },
    }
)


def test_a_reservation_is_a_guarantee_with_a_start_and_an_end() -> None:
    assert guarantees(SHARES, NINE - 1) == {"a": 1, "c": 0.5}
    assert guarantees(SHARES, NINE) == {"a": 1, "b": 2, "c": 0.5}
    assert guarantees(SHARES, NINE + 1800) == {"a": 1, "b": 2, "c": 1.5}
    assert guarantees(SHARES, NINE + 3600) == {"a": 1, "c": 1.5}
    changes, at = [], NINE - 1
    while (then := next_change(SHARES, at)) is not None:
        changes.append(then - NINE)
        at = then
    assert changes == [0, 1800, 3600, 5400]


def test_more_than_the_pool_has_cannot_be_guaranteed_at_any_time() -> None:
    check_shares(SHARES, 4.5)
    check_shares(SHARES, 2.5, now=NINE + 3600)
    with pytest.raises(
        ValueError, match=r"4\.5 GPUs are guaranteed from 2026-06-01 09:30 UTC on \(1 to a, 2"
    ):
        check_shares(SHARES, 4, now=NINE - 60)
    with pytest.raises(ValueError, match=r"4\.5 GPUs .* and the pool has 4 GPUs"):
        check_shares({**SHARES, "pool": Limit(gpus=4)}, 99)
    with pytest.raises(
        ValueError, match=r"1\.5 GPUs are guaranteed \(1 to a, 0\.5 to c\), and the pool has 1 GPU"
    ):
        check_shares(SHARES, 1)


def test_what_may_be_a_slip_is_only_named() -> None:
    limits = {**SHARES, "user:ada": Limit(profiles=("gone", "here"))}
    assert warnings(limits) == []
    assert warnings(limits, groups=["a", "c"], slugs=["here"], now=NINE + 3600) == [
        "group:b: there is no group b yet.",
        "group:b: a reservation is over since 2026-06-01 10:00 UTC.",
        "user:ada: there is no profile gone.",
    ]


def test_a_users_own_limit_goes_before_everybodys_key_by_key() -> None:
    limits = read_limits({"user:*": {"sessions": 2, "gpus": 1}, "user:ada": {"gpus": 4, "queued": 0}})
    assert user_limit("ada", limits) == Limit(2, 4, 0)
    assert user_limit("grace", limits) == Limit(2, 1, None)
    assert user_limit("grace", {}) == Limit()
    limits = read_limits({"user:*": {"gpu_hours": 5, "window": 60}, "user:ada": {"gpu_hours": 9}})
    assert user_limit("ada", limits) == Limit(gpu_hours=9)
    assert user_limit("grace", limits) == Limit(gpu_hours=5, window=60)
    assert user_limit("ada", {**limits, "user:ada": Limit(priority=3)}) == Limit(
        gpu_hours=5, window=60, priority=3
    )


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
        (["talkers"], 1, {}, Admission(True, "talkers", room=3)),  # it decides nothing, and is charged
        (["vision"], 1, {}, Admission(True, "vision", room=2, decided="vision")),
        (["audio", "vision"], 1, {}, Admission(True, "vision", room=2, decided="vision")),
        (
            ["audio", "vision"],
            1,
            {"group:vision": Usage(1, 1.5)},
            Admission(True, "audio", room=1, decided="audio"),
        ),
        (
            ["vision", "audio"],
            0.5,
            {"group:vision": Usage(1, 1.0)},
            Admission(True, "audio", room=1, decided="audio"),
        ),
        (["audio", "closed"], 1, {}, Admission(True, "audio", room=1, decided="audio")),
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


PAYING = read_limits(
    {
        "group:hours": {"gpu_hours": 10},
        "group:more": {"gpu_hours": 20},
        "group:high": {"priority": 50},
        "group:low": {"max_age": 60},
        "group:caps": {"gpus": 4, "gpu_hours": 5},
        "group:small": {"gpus": 1, "gpu_hours": 5},
        "group:free": {"gpus": 2},
        "group:lab": {"guaranteed_gpus": 2, "gpu_hours": 5},
    }
)


@pytest.mark.parametrize(
    ("groups", "hours", "expected"),
    [
        (["hours"], {}, Admission(True, "hours", decided="hours")),
        (["more", "hours"], {}, Admission(True, "hours", decided="hours")),
        (["hours", "more"], {"hours": 3.0, "more": 4.0}, Admission(True, "more", decided="more")),
        (["hours", "more"], {"hours": 3.0, "more": 0.0}, Admission(True, "hours", decided="hours")),
        (["low", "high"], {}, Admission(True, "high")),
        (["low", "hours"], {"hours": 1.0}, Admission(True, "hours", decided="hours")),
        (["hours", "free"], {"hours": 1.0}, Admission(True, "free", room=2, decided="free")),
        (["caps", "small"], {"caps": 1.0, "small": 5.0}, Admission(True, "caps", room=4, decided="caps")),
        (["caps", "small"], {"caps": 0.0, "small": 5.0}, Admission(True, "small", room=1, decided="small")),
        (["caps", "hours"], {"caps": 0.0, "hours": 5.0}, no("group caps has no GPU-hours left")),
        (["lab"], {"lab": 1.0}, Admission(True, "lab", decided="lab", own=True)),
        (["lab", "caps"], {"lab": 0.0, "caps": 5.0}, Admission(True, "caps", room=4, decided="caps")),
    ],
)
def test_whose_hours_pay(groups: list[str], hours: dict[str, float], expected: Admission) -> None:
    guaranteed = guarantees(PAYING, 0)
    found = admit("ada", groups, 1, {}, PAYING, guaranteed, hours)
    assert found == expected
    assert admit("ada", groups, 0, {}, PAYING, guaranteed, hours).allowed  # what needs no GPU needs no hours


def test_a_user_waits_for_their_own_gpus() -> None:
    limits = read_limits({"user:*": {"gpus": 1}})
    found = admit("ada", [], 0.75, {"user:ada": Usage(1, 0.5)}, limits)
    assert found.why == "waits for your own limit of 1 GPU: you hold 0.5, and this needs 0.75 GPUs"


def test_three_thirds_are_one() -> None:
    limits = read_limits({"pool": {"gpus": 1}})
    held = sum([40 / 120 + 1e-12] * 2)
    assert admit("ada", [], 1 / 3, {"pool": Usage(2, held)}, limits).allowed
    assert not admit("ada", [], 1 / 3 + 1 / 120, {"pool": Usage(2, held)}, limits).allowed


STRICT = read_limits(
    {
        "group:students": {"gpus": 1, "queued": 1, "strict": True},
        "group:vision": {"gpus": 4, "queued": 9},
        "group:lab": {"guaranteed_gpus": 2},
        "group:chair": {"guaranteed_gpus": 1, "gpus": 1.5},
    }
)


@pytest.mark.parametrize(
    ("groups", "gpus", "usage", "expected"),
    [
        (["students", "vision"], 1, {}, Admission(True, "students", room=1, decided="students")),
        (
            ["students", "vision"],
            1,
            {"group:students": Usage(1, 0.5)},
            Admission(
                False,
                why="group students holds 0.5 of its 1 GPU, and this needs 1 GPU",
                room=0,
                decided="students",
            ),
        ),
        (["lab"], 2, {}, Admission(True, "lab", decided="lab", own=True)),
        (["lab"], 3, {}, Admission(True, "lab")),  # borrows one: no group caps
        (["lab"], 0, {}, Admission(True, "lab", decided="lab")),  # what needs no GPU is no share
        (["lab", "vision"], 1, {}, Admission(True, "lab", room=4, decided="lab", own=True)),
        (
            ["lab", "vision"],
            1,
            {"group:vision": Usage(2, 4)},
            Admission(True, "lab", room=2, decided="lab", own=True),  # beyond the share the cap is in the way
        ),
        (
            ["lab", "vision"],
            3,
            {"group:lab": Usage(2, 2)},
            Admission(True, "vision", room=4, decided="vision"),
        ),
        (["lab", "students"], 1, {}, Admission(True, "lab", room=1, decided="students", own=True)),
        (["chair"], 1, {}, Admission(True, "chair", room=1.5, decided="chair", own=True)),
        (["chair"], 0.5, {"group:chair": Usage(1, 1)}, Admission(True, "chair", room=0.5, decided="chair")),
        (
            ["chair", "lab"],
            1,
            {"group:lab": Usage(1, 1.5)},
            Admission(True, "chair", room=1.5, decided="chair", own=True),
        ),
    ],
)
def test_strict_groups_and_guaranteed_shares(
    groups: list[str], gpus: float, usage: dict[str, Usage], expected: Admission
) -> None:
    assert admit("ada", groups, gpus, usage, STRICT, guarantees(STRICT, 0)) == expected


def test_a_strict_group_that_is_full_is_enough_to_be_refused() -> None:
    usage = {"group:students": Usage(queued=1)}
    check_queue("ada", ["vision"], usage, STRICT)
    with pytest.raises(Unavailable, match="group students may have at most 1 request waiting"):
        check_queue("ada", ["vision", "students"], usage, STRICT)
    with pytest.raises(Rejected, match="group students is allowed 1 GPU at once"):
        check_ever("ada", ["vision", "students"], 2, STRICT)
    check_ever("ada", ["chair", "lab"], 2, STRICT)
    with pytest.raises(Rejected, match=r"group chair is allowed 1\.5 GPUs"):
        check_ever("ada", ["chair", "lab"], 2.5, STRICT)


def test_a_strict_group_counts_every_session_of_its_members() -> None:
    held = [
        Holds("ada", ["students", "vision"], "vision", 0.5),
        Holds("ada", [], "", 1),
        Holds("grace", ["students", "vision"], "students", 0.25),
        Holds("grace", ["vision"], "vision", 1),
    ]
    assert tally(held, STRICT, [("ada", ["vision", "lab"])]) == {
        "pool": Usage(4, 2.75, 1),
        "user:ada": Usage(2, 1.5, 1),
        "user:grace": Usage(2, 1.25),
        "group:vision": Usage(2, 1.5, 1),
        "group:students": Usage(2, 0.75),
        "group:lab": Usage(queued=1),
    }


def test_claims_are_dealt_out_so_that_no_two_are_of_one_part_of_a_share() -> None:
    guaranteed = {"a": 1.0, "b": 1.0}
    asked = [
        Asking("l1", "ada", ["a"], 1.0),
        Asking("l2", "bob", ["a", "b"], 1.0),
        Asking("l3", "cyd", ["b"], 0.5),
    ]
    usage: dict[str, Usage] = {}
    claims = Claims(
        asked,
        guaranteed,
        lambda item, left: admit(item.user, item.groups, item.gpus, usage, {}, left),
    )
    said = claims.admissions
    assert [(said[item.lease].group, said[item.lease].own) for item in asked] == [
        ("a", True),
        ("b", True),
        ("b", False),
    ]
    # Whoever's turn is first, each gets what it claimed, and nobody what another one claims.
    second = claims.admit(asked[1])
    assert (second.group, second.own) == ("b", True)
    assert not claims.admit(asked[2]).own
    claims.granted("l2")
    usage = {"group:b": Usage(1, 1.0)}
    assert claims.admit(asked[0]).own and not claims.admit(asked[2]).own


def test_who_holds_more_than_they_may_is_named() -> None:
    limits = read_limits({"pool": {"sessions": 3}, "user:*": {"gpus": 1}, "group:a": {"gpus": 1}})
    usage = {
        "pool": Usage(4, 3),
        "user:ada": Usage(2, 1.5),
        "user:grace": Usage(1, 1),
        "group:a": Usage(1, 1),
    }
    assert over_limits(usage, limits) == {
        "pool": "over limit: holds 4 of its 3 sessions",
        "user:ada": "over limit: holds 1.5 of its 1 GPU",
    }


RIGHTS = read_limits(
    {
        "pool": {"max_age": 1000, "profiles": ["small", "large", "huge"]},
        "user:*": {"max_age": 900, "priority": 2},
        "user:ada": {"priority": 50},
        "group:a": {"max_age": 300, "profiles": ["small"], "priority": 20},
        "group:b": {"max_age": 600, "profiles": ["large", "odd"], "priority": 30},
        "group:s": {"max_age": 400, "profiles": ["small", "huge"], "priority": 5, "strict": True},
    }
)


@pytest.mark.parametrize(
    ("groups", "age", "slugs", "level"),
    [
        ([], (900, "user:grace"), {"small", "large", "huge"}, 2),
        (["a"], (300, "group:a"), {"small"}, 20),
        (["a", "b"], (600, "group:b"), {"small", "large"}, 30),
        (["a", "b", "s"], (400, "group:s"), {"small", "huge"}, 5),
        (["unlisted"], (900, "user:grace"), {"small", "large", "huge"}, 2),
    ],
)
def test_rights_besides_gpus(groups: list[str], age: tuple[float, str], slugs: set[str], level: int) -> None:
    found = max_age("grace", groups, RIGHTS, 86400)
    assert (found.seconds, found.decided) == age
    assert profiles("grace", groups, RIGHTS).slugs == slugs
    assert priority("grace", groups, RIGHTS) == level
    assert priority("ada", groups, RIGHTS) == 50


def test_the_profiles_own_age_and_no_limit_at_all() -> None:
    assert max_age("grace", ["a"], RIGHTS, 60).decided == "profile"
    assert max_age("grace", ["a"], {}, 0).seconds == 0
    assert profiles("grace", ["a"], {}).allows("anything")
    assert priority("grace", ["a"], {}) == 10


def test_a_profile_that_is_not_open_is_refused_by_name() -> None:
    check_profile("grace", ["a"], "small", RIGHTS)
    says = "The profile large is not open to user grace: the pool and group a allow small."
    with pytest.raises(Rejected, match=says) as caught:
        check_profile("grace", ["a"], "large", RIGHTS)
    assert caught.value.status == 403
    with pytest.raises(Rejected, match=r"group x allows none\."):
        check_profile("grace", ["x"], "large", {"group:x": Limit(profiles=())})


def test_remaining_capacity() -> None:
    limits = read_limits({"group:a": {"gpus": 3}, "user:*": {"gpus": 1}})
    assert remaining("group:a", limits, 1, 8) == 2
    assert remaining("group:a", limits, 1, 2) == 1
    assert remaining("group:b", limits, 1, 8) == 7
    assert remaining("user:ada", limits, 2, 8) == 0


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
        assert bool(before.group) == any(f"group:{g}" in limits for g in groups)
        caps_any = any(limits.get(f"group:{g}", Limit()) != Limit() for g in groups)
        assert before.decided == (before.group if caps_any else "")
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
