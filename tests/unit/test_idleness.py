"""Idleness: unknown is never idle, nothing is taken without a warning that ran out."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyterhub_gpupool import idleness
from jupyterhub_gpupool.idleness import Facts, count_down, counts, fold, is_busy, judge, tick
from jupyterhub_gpupool.model import Decision, Kind, Sample, Terms, Verdict, When

KEEP, WARN, RECLAIM = Decision.KEEP, Decision.WARN, Decision.RECLAIM
TERMS = Terms(window=60, warn=30, min_age=100, threshold=5, max_age=0)
AGED = replace(TERMS, max_age=1000)
IDLE = Sample(utilization=0.4, processes=1)
FACTS = Facts(terms=TERMS, kind=Kind.GPU, age=500, idle_seconds=62, busy=False, sample=IDLE)


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        (Sample(), None),
        (Sample(utilization=0.0), False),
        (Sample(utilization=4.99), False),
        (Sample(utilization=5.0), True),
        (Sample(utilization=100.4), True),
        (Sample(utilization=350.0), True),
        (Sample(utilization=1000.1), None),
        (Sample(utilization=-0.1), None),
        (Sample(utilization=math.nan), None),
        (Sample(utilization=math.inf), None),
        (Sample(processes=0), False),
        (Sample(utilization=math.nan, processes=0), False),
        (Sample(utilization=90.0, processes=0), False),
        (Sample(processes=2), None),
        (Sample(processes=2, memory_mib=500), None),
    ],
)
def test_busy(sample: Sample, expected: bool | None) -> None:
    assert is_busy(sample, 5) is expected


def test_with_threshold_0_only_the_lack_of_processes_is_idle() -> None:
    assert is_busy(Sample(utilization=0.0), 0) is True
    assert is_busy(Sample(processes=0), 0) is False


@pytest.mark.parametrize(
    ("idle", "busy", "elapsed", "expected"),
    [
        (10, False, 5, 15),
        (10, True, 5, 0),
        (10, None, 5, 10),
        (10, False, 86400, 30),  # suspended for a day: two intervals at most
        (10, False, math.inf, 30),
        (10, False, -3600, 10),
        (10, False, math.nan, 10),
        (-7, False, 5, 5),
        (-7, None, 5, 0),
    ],
)
def test_fold(idle: float, busy: bool | None, elapsed: float, expected: float) -> None:
    assert fold(idle, busy, elapsed, interval=10) == expected


@pytest.mark.parametrize(
    ("left", "rule", "busy", "expected"),
    [
        (None, "", False, None),
        (30, "idle", False, 25),
        (3, "idle", False, 0),
        (30, "idle", None, 30),
        (30, "max_age", None, 25),
        (30, "max_age", True, 25),
    ],
)
def test_count_down(left: float | None, rule: str, busy: bool | None, expected: float | None) -> None:
    assert count_down(left, rule, busy, 5, interval=10) == expected


WHY_IDLE = "no GPU activity for 62 s (window 60 s), utilization 0.4 % below 5 %"
WHY_OLD = "open for 980 s, at most 1000 s are allowed (max_age)"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, Verdict(WARN, WHY_IDLE, 30, warned_for="idle", signal="gpu")),
        ({"age": 20}, Verdict(WARN, WHY_IDLE, 80, warned_for="idle", signal="gpu")),
        ({"age": -9}, Verdict(WARN, WHY_IDLE, 100, warned_for="idle", signal="gpu")),
        ({"age": math.nan}, Verdict(WARN, WHY_IDLE, 100, warned_for="idle", signal="gpu")),
        (
            {"sample": Sample(processes=0)},
            Verdict(
                WARN,
                "no GPU activity for 62 s (window 60 s), no process on the slice",
                30,
                warned_for="idle",
                signal="processes",
            ),
        ),
        ({"idle_seconds": 59.9}, Verdict(KEEP, "no GPU activity for 60 s of 60 s", signal="gpu")),
        ({"idle_seconds": math.nan}, Verdict(KEEP, "no GPU activity for nan s of 60 s", signal="gpu")),
        (
            {"busy": True, "sample": Sample(utilization=80.0)},
            Verdict(KEEP, "GPU in use, utilization 80 % at or above 5 %", signal="gpu"),
        ),
        ({"grace_seconds": 7}, Verdict(KEEP, "extended, 7 s left")),
        ({"kind": Kind.CPU}, Verdict(KEEP, "no GPU to give back")),
        (
            {"terms": replace(TERMS, window=0)},
            Verdict(KEEP, "idle reclaim is off for this lease (window 0 s)"),
        ),
        ({"terms": replace(TERMS, when=When.WANTED)}, Verdict(KEEP, "nobody who waits needs this slice")),
        (
            {"terms": replace(TERMS, when=When.WANTED), "wanted": True},
            Verdict(WARN, WHY_IDLE, 30, warned_for="idle", signal="gpu"),
        ),
        ({"busy": None}, Verdict(KEEP, "GPU activity is unknown", signal="gpu")),
    ],
)
def test_a_lease_without_a_warning(changes: dict[str, object], expected: Verdict) -> None:
    assert judge(replace(FACTS, **changes)) == expected  # type: ignore[arg-type]


WARNED = replace(FACTS, warned_for="idle", deadline_seconds=12)
RAN_OUT = replace(WARNED, deadline_seconds=0)


@pytest.mark.parametrize(
    ("facts", "decision", "left"),
    [
        (WARNED, WARN, 12),
        (RAN_OUT, RECLAIM, 0),
        (replace(RAN_OUT, deadline_seconds=-3), RECLAIM, 0),
        (replace(RAN_OUT, age=99), WARN, 1),  # not before min_age
        (replace(RAN_OUT, age=100), RECLAIM, 0),
        (replace(RAN_OUT, busy=None), WARN, 0),  # it stands, but nothing is taken
        (replace(WARNED, busy=None), WARN, 12),
        (replace(RAN_OUT, busy=True), KEEP, None),
        (replace(RAN_OUT, grace_seconds=1), KEEP, None),
        (replace(RAN_OUT, busy=None, grace_seconds=1), KEEP, None),
        (replace(RAN_OUT, idle_seconds=3), KEEP, None),
        (replace(RAN_OUT, terms=replace(TERMS, when=When.WANTED)), KEEP, None),
        (replace(RAN_OUT, terms=replace(TERMS, when=When.WANTED), wanted=True), RECLAIM, 0),
        (replace(RAN_OUT, terms=replace(TERMS, window=0)), KEEP, None),
        (replace(RAN_OUT, warned_for="max_age"), WARN, 30),  # warned for something else: a full warning
        (replace(RAN_OUT, warned_for=""), WARN, 30),
        (replace(RAN_OUT, deadline_seconds=None), WARN, 30),
    ],
)
def test_a_lease_with_a_warning_for_idleness(facts: Facts, decision: Decision, left: float | None) -> None:
    found = judge(facts)
    assert (found.decision, found.deadline_seconds) == (decision, left)
    assert found.warned_for == ("" if decision is KEEP else "idle")


OLD = replace(FACTS, terms=AGED, age=980, idle_seconds=0, busy=True)


@pytest.mark.parametrize(
    "spared",
    [
        {},
        {"grace_seconds": 900},
        {"busy": None},
        {"kind": Kind.CPU, "busy": False},
        {"terms": replace(AGED, when=When.WANTED), "busy": False, "idle_seconds": 99},
    ],
)
def test_the_end_by_age_is_not_affected_by_anything(spared: dict[str, object]) -> None:
    facts = replace(OLD, **spared)  # type: ignore[arg-type]
    assert judge(replace(facts, age=969)).decision is KEEP
    assert judge(facts) == Verdict(WARN, WHY_OLD, 30, warned_for="max_age")
    warned = replace(facts, warned_for="max_age", deadline_seconds=4)
    assert judge(warned) == Verdict(WARN, WHY_OLD, 4, warned_for="max_age")
    found = judge(replace(warned, deadline_seconds=0))
    assert found == Verdict(RECLAIM, f"{WHY_OLD}; the warning has run out", 0, warned_for="max_age")


@pytest.mark.parametrize(
    ("changes", "decision", "rule", "left"),
    [
        ({}, WARN, "max_age", 30),
        ({"warned_for": "idle", "deadline_seconds": 10}, WARN, "idle", 10),
        ({"warned_for": "idle", "deadline_seconds": 0}, RECLAIM, "idle", 0),
        ({"warned_for": "max_age", "deadline_seconds": 10}, WARN, "max_age", 10),
        ({"warned_for": "max_age", "deadline_seconds": 0}, RECLAIM, "max_age", 0),
        # A warning that stands still must not hold up the end by age.
        ({"warned_for": "idle", "deadline_seconds": 10, "busy": None}, WARN, "max_age", 30),
    ],
)
def test_of_two_rules_the_sooner_end_is_named(
    changes: dict[str, object], decision: Decision, rule: str, left: float
) -> None:
    facts = replace(FACTS, terms=AGED, age=980, **changes)  # type: ignore[arg-type]
    found = judge(facts)
    assert (found.decision, found.warned_for, found.deadline_seconds) == (decision, rule, left)


# --- properties -------------------------------------------------------------------------------------

seconds = st.floats(-1e6, 1e6) | st.sampled_from([0.0, 30.0, 60.0, 100.0, 1000.0])
terms = st.builds(
    Terms,
    window=st.sampled_from([0, 1, 60]),
    warn=st.sampled_from([0, 30]),
    min_age=st.sampled_from([0, 100]),
    when=st.sampled_from(When),
    max_age=st.sampled_from([0, 1000]),
)
facts_of_a_lease = st.builds(
    Facts,
    terms=terms,
    kind=st.sampled_from(Kind),
    age=seconds,
    idle_seconds=seconds,
    busy=st.sampled_from([True, False, None]),
    grace_seconds=st.sampled_from([0.0, 5.0]),
    deadline_seconds=st.none() | seconds,
    warned_for=st.sampled_from(["", "idle", "max_age"]),
    wanted=st.booleans(),
    sample=st.builds(Sample, st.none() | st.floats(0, 100), processes=st.none() | st.integers(0, 2)),
)


@given(facts_of_a_lease)
def test_promises_of_a_verdict(facts: Facts) -> None:
    found = judge(facts)
    assert found.reason
    assert (found.decision is KEEP) == (found.deadline_seconds is None) == (found.warned_for == "")
    assert found.deadline_seconds is None or found.deadline_seconds >= 0
    if found.decision is RECLAIM:
        assert facts.warned_for == found.warned_for
        assert facts.deadline_seconds is not None
        assert facts.deadline_seconds <= 0
    if found.decision is RECLAIM and found.warned_for == "idle":
        assert facts.busy is False
        assert max(0.0, facts.age) >= facts.terms.min_age
        assert facts.kind is not Kind.CPU
        assert facts.grace_seconds == 0
    if facts.terms.max_age == 0 and facts.busy is not False:
        assert found.decision is not RECLAIM
    if found.decision is WARN and found.warned_for == "idle" and facts.busy is None:
        assert facts.warned_for == "idle"


looks = st.lists(
    st.tuples(
        st.sampled_from([True, False, False, False, False, None]),
        st.floats(-100, 100, allow_nan=False),
        st.integers(0, 40).map(lambda n: n == 40),
    ),
    max_size=80,
)


@given(looks, st.sampled_from([0, 200]))
def test_over_a_whole_life_nothing_is_taken_before_its_warning_has_run_its_time(
    seen: list[tuple[bool | None, float, bool]], max_age: float
) -> None:
    """Fold, count down and judge as the sweep does; the warning's real length is measured from outside."""
    rules = Terms(window=30, warn=25, min_age=60, max_age=max_age)
    age = idle = warned_since = lived = 0.0
    left, rule = None, ""
    for busy, elapsed, jumps in seen:
        lived += max(0.0, elapsed)
        age += max(0.0, elapsed) + (86400 if jumps else 0)
        idle = fold(idle, busy, elapsed, 10)
        left = count_down(left, rule, busy, elapsed, 10)
        found = judge(Facts(rules, Kind.GPU, age, idle, busy, 0, left, rule, True))
        if found.decision is RECLAIM:
            assert lived - warned_since >= rules.warn - 1e-6
            assert found.warned_for == "max_age" or (busy is False and idle >= rules.window)
            return
        if found.decision is WARN and found.warned_for != rule:
            warned_since = lived
        left, rule = found.deadline_seconds, found.warned_for
        assert idle <= lived + 1e-6


@given(st.floats(allow_nan=True), st.floats(0, 100))
def test_a_tick_is_bounded_whatever_the_clock_does(elapsed: float, interval: float) -> None:
    assert 0 <= tick(elapsed, interval) <= 2 * interval


# --- what asks for the end besides idleness and age --------------------------------------------------


def call(rule: str = "share", seconds: float = 0.0) -> idleness.Call:
    return idleness.Call(rule, "why", seconds)


USED = replace(FACTS, busy=True, idle_seconds=0, age=1000)


@pytest.mark.parametrize(
    ("facts", "decision", "rule", "left"),
    [
        (replace(USED, calls=(call(),)), WARN, "share", 30),
        (replace(USED, calls=(call(),), age=20), WARN, "share", 80),  # min_age 100
        (replace(USED, calls=(call("budget"),), age=20), WARN, "budget", 80),
        (replace(USED, calls=(call("drain"),), age=20), WARN, "drain", 30),
        (replace(USED, calls=(call("drain", 500),)), WARN, "drain", 500),
        (replace(USED, calls=(call(),), warned_for="share", deadline_seconds=4), WARN, "share", 4),
        (replace(USED, calls=(call(),), warned_for="share", deadline_seconds=0), RECLAIM, "share", 0),
        (replace(USED, calls=(call(),), warned_for="idle", deadline_seconds=0), WARN, "share", 30),
        (
            replace(USED, calls=(call(),), warned_for="share", deadline_seconds=0, busy=None),
            RECLAIM,
            "share",
            0,
        ),
        (
            replace(USED, calls=(call("drain"), call()), warned_for="drain", deadline_seconds=9),
            WARN,
            "drain",
            9,
        ),
        # An idle session: a share counts from its own warning, a drain that is far away takes nothing back.
        (replace(FACTS, calls=(call(),), age=1000), WARN, "share", 30),
        (replace(FACTS, calls=(call("drain", 500),), age=1000), WARN, "idle", 30),
        (
            replace(FACTS, calls=(call(),), age=1000, warned_for="idle", deadline_seconds=0),
            RECLAIM,
            "idle",
            0,
        ),
        (replace(USED, warned_for="share", deadline_seconds=4), KEEP, "", None),  # nobody calls any more
    ],
)
def test_what_calls_for_an_end(
    facts: idleness.Facts, decision: Decision, rule: str, left: float | None
) -> None:
    found = judge(facts)
    assert (found.decision, found.warned_for, found.deadline_seconds) == (decision, rule, left)


@pytest.mark.parametrize("rule", idleness.CALLED)
def test_an_end_that_is_called_for_comes_nearer_whatever_is_known(rule: str) -> None:
    assert idleness.count_down(30, rule, None, 10, 10) == 20


# --- deliveries ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("delivered", "undelivered", "limit", "expected"),
    [
        (True, 0, None, True),
        (True, 0, 3600, True),
        (False, 0, None, False),
        (False, 1e9, None, False),  # never, whatever time passes
        (False, 0, 0, True),  # deliveries are not waited for
        (False, 0, 3600, False),
        (False, 3600 - 31, 3600, False),
        (False, 3600 - 30, 3600, True),  # so that it ends an hour after it was given
        (False, 0, 20, True),  # never sooner than after the warning
    ],
)
def test_from_when_a_warning_counts(
    delivered: bool, undelivered: float, limit: float | None, expected: bool
) -> None:
    assert counts(delivered, undelivered, 30, limit) is expected


def test_a_countdown_stands_still_until_the_warning_was_delivered() -> None:
    for rule in ("idle", "max_age", "drain", "share", "budget"):
        assert count_down(30, rule, False, 5, 10, counting=False) == 30
        assert count_down(30, rule, False, 5, 10, counting=True) == 25


@given(
    rule=st.sampled_from(["idle", "max_age", "drain", "share", "budget"]),
    deadline=st.floats(-10, 100),
    age=st.floats(0, 5000),
    idle=st.floats(0, 5000),
    busy=st.sampled_from([None, False]),
    warn=st.floats(0, 100),
    called=st.sampled_from([None, "drain", "share", "budget"]),
)
def test_nothing_is_reclaimed_while_a_warning_does_not_count(
    rule: str, deadline: float, age: float, idle: float, busy: bool | None, warn: float, called: str | None
) -> None:
    facts = replace(
        FACTS,
        terms=replace(AGED, warn=warn),
        age=age,
        idle_seconds=idle,
        busy=busy,
        deadline_seconds=deadline,
        warned_for=rule,
        counting=False,
        calls=(idleness.Call(called, "because"),) if called else (),
    )
    assert judge(facts).decision is not RECLAIM


@pytest.mark.parametrize("rule", ["idle", "max_age", "drain"])
@given(limit=st.sampled_from([0.0, 20.0, 45.0, 300.0, None]), told_after=st.integers(0, 60) | st.none())
def test_the_end_comes_a_whole_warning_after_the_delivery_or_at_the_limit(
    rule: str, limit: float | None, told_after: int | None
) -> None:
    """As the sweep does it, look after look; the ledger begins the countdown anew with a delivery."""
    interval, look, undelivered, told_at = 5.0, 0, 0.0, None
    calls = (idleness.Call("drain", "because"),) if rule == "drain" else ()
    terms = replace(TERMS if rule != "max_age" else AGED, min_age=0, window=60 if rule == "idle" else 0)
    facts = replace(FACTS, terms=terms, age=2000, calls=calls, deadline_seconds=None, counting=False)
    while look < 200:
        if (
            told_at is None
            and told_after is not None
            and look >= told_after
            and facts.deadline_seconds is not None
        ):
            told_at = look
            facts = replace(facts, deadline_seconds=terms.warn, counting=False)
        left = count_down(
            facts.deadline_seconds, facts.warned_for, False, interval, interval, counting=facts.counting
        )
        verdict = judge(replace(facts, deadline_seconds=left))
        if verdict.decision is RECLAIM:
            break
        assert verdict.warned_for == rule
        if facts.deadline_seconds is not None and told_at is None:
            undelivered += interval
        runs = counts(told_at is not None, undelivered, terms.warn, limit)
        facts = replace(
            facts, deadline_seconds=verdict.deadline_seconds, warned_for=verdict.warned_for, counting=runs
        )
        look += 1
    passed = look * interval
    if told_at is not None:
        assert passed - told_at * interval >= terms.warn
        assert look < 200
    elif limit is None:
        assert look == 200, "nobody was told, nothing ends"
    else:
        assert max(limit, terms.warn) <= passed <= max(limit, terms.warn) + 2 * interval
