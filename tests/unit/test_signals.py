"""Signals beside the GPU: what a session says is checked, and unknown is never idle."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyterhub_gpupool import signals
from jupyterhub_gpupool.idleness import (
    ENOUGH,
    PATIENCE,
    STEADY,
    Facts,
    Idle,
    count_down,
    is_busy,
    judge,
    look,
)
from jupyterhub_gpupool.model import Decision, Kind, Sample, Terms, When
from jupyterhub_gpupool.signals import Level, Signal, Work

ACTIVE, QUIET, UNKNOWN = Level.ACTIVE, Level.QUIET, Level.UNKNOWN
NOW = 1_800_000_000.0


def kernel(state: object) -> dict[str, object]:
    return {"id": "k", "execution_state": state, "last_activity": "2027-01-15T08:00:00Z"}


@pytest.mark.parametrize(
    ("answer", "level", "ground"),
    [
        ([], QUIET, "no kernel is open"),
        ([kernel("idle"), kernel("starting")], QUIET, "no cell is running"),
        ([kernel("idle"), kernel("busy")], ACTIVE, "a cell is running"),
        ([kernel("busy"), kernel("busy"), kernel(7)], ACTIVE, "2 cells are running"),
        ([kernel("unknown")], UNKNOWN, "whether a cell is running is unknown"),
        ([kernel(None)], UNKNOWN, "whether a cell is running is unknown"),
        ([{}], UNKNOWN, "whether a cell is running is unknown"),
        ([[]], UNKNOWN, "whether a cell is running is unknown"),
        ([kernel("idle")] * (signals.MOST + 1), UNKNOWN, "whether a cell is running is unknown"),
        ({"message": "no"}, UNKNOWN, "whether a cell is running is unknown"),
        (None, UNKNOWN, "whether a cell is running is unknown"),
    ],
)
def test_kernels(answer: object, level: Level, ground: str) -> None:
    assert signals.kernels(answer) == Signal("kernel", level, ground)


@pytest.mark.parametrize(
    ("answer", "level", "ground"),
    [
        ([], QUIET, "no terminal is open"),
        ([{"last_activity": "2027-01-15T07:59:20Z"}], ACTIVE, "a terminal was in use 40 s ago"),
        ([{"last_activity": "2027-01-15T09:59:20+02:00"}], ACTIVE, "a terminal was in use 40 s ago"),
        ([{"last_activity": "2027-01-15T07:59:20"}], ACTIVE, "a terminal was in use 40 s ago"),
        ([{"last_activity": "2031-01-01T00:00:00Z"}], ACTIVE, "a terminal was in use 0 s ago"),
        ([{"last_activity": "2027-01-15T07:00:00Z"}], QUIET, "no terminal was in use for 60 min"),
        (
            [{"last_activity": "2027-01-15T07:00:00Z"}, {"last_activity": "soon"}],
            UNKNOWN,
            "whether a terminal is in use is unknown",
        ),
        ([{"last_activity": 9e99}], UNKNOWN, "whether a terminal is in use is unknown"),
        ([None], UNKNOWN, "whether a terminal is in use is unknown"),
        ("[]", UNKNOWN, "whether a terminal is in use is unknown"),
    ],
)
def test_terminals(answer: object, level: Level, ground: str) -> None:
    assert signals.terminals(answer, NOW, 1800) == Signal("terminal", level, ground)


anything: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["execution_state", "last_activity", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(anything)
@settings(max_examples=60, deadline=None)
def test_whatever_a_session_answers_is_one_of_three(answer: object) -> None:
    for found in (signals.kernels(answer), signals.terminals(answer, NOW, 60)):
        assert found.level in Level
        assert found.ground
        if not isinstance(answer, list):
            assert found.level is UNKNOWN


@pytest.mark.parametrize(
    ("last", "level", "ground"),
    [
        (None, UNKNOWN, "the hub has seen no activity"),
        (NOW - 30, ACTIVE, "the hub saw activity 30 s ago"),
        (NOW - 9000, QUIET, "the hub saw activity 2 h 30 min ago"),
        (NOW + 30, ACTIVE, "the hub saw activity 0 s ago"),
    ],
)
def test_the_hub_is_told_of_and_decides_nothing(last: float | None, level: Level, ground: str) -> None:
    found = signals.hub(last, NOW, 1800)
    assert found == Signal("hub", level, ground)
    assert Work((found,)).decisive is None


def test_an_active_signal_decides_before_an_unknown_one() -> None:
    work = Work((Signal("kernel", UNKNOWN, "?"), Signal("terminal", ACTIVE, "!")))
    assert work.decisive == Signal("terminal", ACTIVE, "!")
    assert signals.silent("no answer").decisive is not None
    assert Work().decisive is None


# --- the verdict ---------------------------------------------------------------------------------

KEEP, WARN, RECLAIM = Decision.KEEP, Decision.WARN, Decision.RECLAIM
TERMS = Terms(window=60, warn=30, min_age=0, threshold=5)
FACTS = Facts(
    terms=TERMS, kind=Kind.GPU, age=5000, idle_seconds=62, busy=False, sample=Sample(0.0, processes=1)
)
IDLE = Work(
    (Signal("kernel", QUIET, "no cell is running"), Signal("hub", ACTIVE, "the hub saw activity 1 s ago"))
)
CELL = Work((Signal("kernel", ACTIVE, "a cell is running"),))
SILENT = signals.silent("it does not answer")
RAN_OUT: dict[str, Any] = {"warned_for": "idle", "deadline_seconds": 0}


@pytest.mark.parametrize(
    ("changes", "decision", "left", "signal"),
    [
        ({"work": IDLE}, WARN, 30, "gpu"),
        ({"work": IDLE, **RAN_OUT}, RECLAIM, 0, "gpu"),
        ({"work": IDLE, "sample": Sample(processes=0)}, WARN, 30, "processes"),
        # Who is at work is warned like any other, and stopped after four windows, or when somebody waits.
        ({"work": CELL}, WARN, 178, "kernel"),
        ({"work": SILENT}, WARN, 178, "session"),
        ({"work": CELL, **RAN_OUT}, WARN, 178, "kernel"),
        ({"work": CELL, **RAN_OUT, "idle_seconds": 239}, WARN, 1, "kernel"),
        ({"work": CELL, **RAN_OUT, "idle_seconds": 240}, RECLAIM, 0, "gpu"),
        ({"work": SILENT, **RAN_OUT, "idle_seconds": 240}, RECLAIM, 0, "gpu"),
        ({"work": CELL, "wanted": True}, WARN, 30, "kernel"),
        ({"work": CELL, **RAN_OUT, "wanted": True}, RECLAIM, 0, "gpu"),
        # Told of an end far away: a whole warning is left when somebody begins to wait, or the cell ends.
        ({"work": CELL, "warned_for": "idle", "deadline_seconds": 150, "wanted": True}, WARN, 30, "kernel"),
        ({"work": IDLE, "warned_for": "idle", "deadline_seconds": 150}, WARN, 30, "gpu"),
        ({"work": CELL, "busy": True}, KEEP, None, "gpu"),
        ({"work": CELL, "busy": None}, KEEP, None, "gpu"),
        ({"work": CELL, "terms": replace(TERMS, when=When.WANTED)}, KEEP, None, ""),
        ({"samples": ENOUGH - 1, **RAN_OUT}, KEEP, None, "gpu"),
        ({"low": STEADY, **RAN_OUT, "sample": Sample(1.0, processes=1)}, KEEP, None, "gpu"),
        ({"low": 1, **RAN_OUT, "sample": Sample(1.0, processes=1)}, WARN, 0, "gpu"),
    ],
)
def test_the_signal_that_decides(
    changes: dict[str, Any], decision: Decision, left: float | None, signal: str
) -> None:
    found = judge(replace(FACTS, **changes))
    assert (found.decision, found.deadline_seconds, found.signal) == (decision, left, signal)


def test_reasons_name_the_signals() -> None:
    assert judge(replace(FACTS, work=IDLE)).reason == (
        "no GPU activity for 62 s (window 60 s), utilization 0 % below 5 %; no cell is running, "
        "the hub saw activity 1 s ago"
    )
    busy = replace(FACTS, terms=replace(TERMS, window=1800), idle_seconds=7300, work=CELL)
    assert judge(replace(busy, idle_seconds=1900)).reason == (
        "no GPU activity for 32 min (window 30 min), utilization 0 % below 5 %; a cell is running; it is stopped "
        "after 2 h without use, or when somebody waits"
    )
    assert "unknown (it does not answer)" in judge(replace(FACTS, work=SILENT)).reason
    low = replace(FACTS, low=STEADY, sample=Sample(1.2, processes=1))
    assert judge(low).reason == "GPU use is low but steady, utilization 1.2 % below 5 %; no max_age ends it"
    aged = judge(replace(low, terms=replace(TERMS, max_age=9000)))
    assert aged.reason.endswith("it ends by its age (max_age)")


def test_burning_a_little_ends_at_max_age_and_not_before() -> None:
    terms, idle, decisions = replace(TERMS, max_age=1000), Idle(), []
    for age in range(0, 1000, 10):
        idle = look(idle, Sample(1.0, 100, 1), terms, 10, 10)
        facts = replace(
            FACTS, terms=terms, age=age, idle_seconds=idle.seconds, low=idle.low, samples=idle.samples
        )
        decisions.append((age, judge(facts)))
    assert all(found.decision is KEEP for age, found in decisions if age < 970)
    assert {found.warned_for for age, found in decisions if age >= 970} == {"max_age"}


@pytest.mark.parametrize(
    ("before", "sample", "expected"),
    [
        (Idle(50, 5), Sample(0.0), Idle(60, 6)),
        (Idle(50, 5), Sample(9.0), Idle()),
        (Idle(50, 5, 2), Sample(), Idle(50, 5, 2, 10)),
        (Idle(50, 5, 2), Sample(0.9), Idle(60, 6)),
        (Idle(50, 5, 2), Sample(1.0), Idle(60, 6, 3)),
        (Idle(50, 5, 2), Sample(1.0, processes=0), Idle(60, 6)),  # not of this session
        (Idle(50, 5, STEADY - 1), Sample(1.0), Idle(low=STEADY)),
        (Idle(0, 0, STEADY), Sample(0.0), Idle(10, 1)),
        (Idle(50, 5, 0, 59), Sample(0.0), Idle(60, 6)),
        (Idle(50, 5, 0, 60), Sample(0.0), Idle(0, 1)),  # a whole window of looks that saw nothing
        (Idle(50, 5, 0, 60), Sample(), Idle(50, 5, 0, 70)),
    ],
)
def test_a_look(before: Idle, sample: Sample, expected: Idle) -> None:
    assert look(before, sample, TERMS, 10, 10) == expected


def test_while_nobody_looks_is_no_gap() -> None:
    assert look(Idle(50, 5), Sample(0.0), TERMS, 86400, 10) == Idle(70, 6)


# --- whole lives ---------------------------------------------------------------------------------

INTERVAL = 10.0


def live(samples: list[Sample], terms: Terms, work: Work = Work()) -> float | None:  # noqa: B008
    """When the rule stops a session that is seen so, look after look; None: it lives on."""
    idle, left, rule = Idle(), None, ""
    for number, sample in enumerate(samples):
        now = number * INTERVAL
        busy = is_busy(sample, terms.threshold)
        idle = look(idle, sample, terms, INTERVAL, INTERVAL)
        left = count_down(left, rule, busy, INTERVAL, INTERVAL)
        found = judge(
            Facts(
                terms, Kind.GPU, now, idle.seconds, busy,
                deadline_seconds=left, warned_for=rule, sample=sample, samples=idle.samples, low=idle.low, work=work,
            )
        )  # fmt: skip
        if found.decision is RECLAIM:
            return now
        left, rule = found.deadline_seconds, found.warned_for
    return None


blocks = st.lists(
    st.tuples(
        st.sampled_from(["use", "use", "rest", "blip", "gap"]),
        st.integers(1, 30),
        st.floats(5, 100),
    ),
    max_size=12,
)


def seen(kind: str, looks: int, height: float) -> list[Sample]:
    """A stretch of a life: use, rest (now and then with a trace), or nothing known."""
    match kind:
        case "use":
            return [Sample(height, 1, 1)] * looks
        case "rest":
            return [Sample(0.0, 1, 1)] * looks
        case "blip":
            return [Sample(3.0 if n % 4 == 0 else 0.0, 1, 1) for n in range(looks)]
        case _:
            return [Sample(None, 1, 1)] * looks


@given(blocks, st.sampled_from([30.0, 60.0, 200.0]))
@settings(max_examples=150, deadline=None)
def test_no_session_is_stopped_within_a_window_of_its_last_use(
    life: list[tuple[str, int, float]], window: float
) -> None:
    terms = Terms(window=window, warn=0, min_age=0, threshold=5)
    samples = [sample for block in life for sample in seen(*block)]
    end = live(samples, terms)
    if end is None:
        return
    at = int(end / INTERVAL)
    before = samples[max(0, at - int(window / INTERVAL) + 1) : at + 1]
    assert not any(is_busy(sample, 5) for sample in before)
    assert samples[at].utilization == 0, "unknown, and even a trace, stops nothing"
    assert sum(sample.utilization is not None for sample in samples[: at + 1]) >= ENOUGH


@given(blocks, st.sampled_from([30.0, 60.0, 200.0]), st.booleans())
@settings(max_examples=150, deadline=None)
def test_with_regular_samples_an_idle_gpu_is_had_after_the_window_and_two_looks(
    life: list[tuple[str, int, float]], window: float, cell: bool
) -> None:
    terms = Terms(window=window, warn=0, min_age=0, threshold=5)
    samples = [sample for block in life if block[0] != "gap" for sample in seen(*block)]
    samples = [sample for sample in samples if sample.utilization != 3.0]
    samples += [Sample(0.0, 1, 1)] * int((PATIENCE if cell else 1) * window / INTERVAL + 3)
    end = live(samples, terms, CELL if cell else IDLE)
    assert end is not None
    uses = [number for number, sample in enumerate(samples[: int(end / INTERVAL)]) if is_busy(sample, 5)]
    idle = end - uses[-1] * INTERVAL if uses else end + INTERVAL
    assert idle <= (PATIENCE if cell else 1) * window + 2 * INTERVAL


@given(st.integers(1, 60), st.integers(1, 60))
@settings(max_examples=40, deadline=None)
def test_little_but_steady_use_is_never_taken_for_idleness(rest: int, looks: int) -> None:
    """Its sixth look keeps it; and no look at it is one that stops."""
    terms = Terms(window=120, warn=0, min_age=0, threshold=5)
    samples = [Sample(0.0, 1, 1)] * rest + [Sample(1.0, 1, 1)] * looks
    end = live(samples, terms)
    assert end is None or end < rest * INTERVAL
