"""The watchdog over the memory of shares: its judgement, and what the sweep makes of it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from traitlets import TraitError
from traitlets.config import Config

from jupyterhub_gpupool import rungs, watchdog
from jupyterhub_gpupool.model import Decision, Kind, Lease, Sample, Slice, State, Terms, Verdict, Wish
from jupyterhub_gpupool.notices import Occasion, Rules, decide
from jupyterhub_gpupool.rungs import Rung
from jupyterhub_gpupool.service import sweep as sweeps
from jupyterhub_gpupool.service import telling, words
from jupyterhub_gpupool.service.app import GPUPoolService
from jupyterhub_gpupool.service.watching import patience_of
from jupyterhub_gpupool.watchdog import MEMORY, Facts, Patience, Watch, join, limit_of, watch

LIMIT, SECONDS = 1000, 60.0
PATIENCE = Patience(fraction=0.1, seconds=SECONDS)
HALF = Slice("g", Kind.SHARE, tuple(range(60)), 120, LIMIT, 50)
NOW = 1000.0
LEASE = Lease(
    id="l1", user="ada", server="", profile="p", state=State.ACTIVE, version=1, epoch=1, session="s",
    wish=Wish(Kind.SHARE, fraction="1/2"), terms=Terms(window=60, warn=30, min_age=0), groups=(), options={},
    slices=(HALF,), gpus=0.5, group="", url="", runtime={}, requested_at=0.0, granted_at=0.0, active_at=0.0,
)  # fmt: skip


def look(
    memory: int | None, over: float | None = None, tick: float = 10.0, limit: int | None = LIMIT
) -> Watch:
    return watch(Facts(limit, memory, over, tick), PATIENCE)


@pytest.mark.parametrize(
    ("memory", "over", "then", "left", "counting"),
    [
        (1000, None, None, None, False),  # its share, to the last MiB
        (1001, None, 0, 60, False),  # warned at the limit, and no more than that up to the bound
        (1100, 0, 0, 60, False),
        (1101, None, 0, 60, True),  # nothing counts before the warning
        (1101, 0, 10, 50, True),
        (5000, 45, 55, 5, True),
        (1050, 30, 30, 30, False),  # it stands still
        (None, 30, 30, 30, False),  # unknown is neither
        (-1, 30, 30, 30, False),
        (None, None, None, None, False),
        (900, 30, 20, 40, False),  # it runs back, and the warning stands so long
        (900, 10, None, None, False),
        (0, 0, None, None, False),
    ],
)
def test_a_look(
    memory: int | None, over: float | None, then: float | None, left: float | None, counting: bool
) -> None:
    seen = look(memory, over)
    assert (seen.over_seconds, seen.counting) == (then, counting)
    if left is None:
        assert seen.verdict is None
    else:
        assert seen.verdict is not None
        assert (seen.verdict.decision, seen.verdict.warned_for) == (Decision.WARN, MEMORY)
        assert seen.verdict.deadline_seconds == left


def test_the_stop_names_what_was_held_the_share_the_bound_and_for_how_long() -> None:
    seen = look(1500, 50).verdict
    assert seen is not None and (seen.decision, seen.warned_for) == (Decision.RECLAIM, MEMORY)
    assert seen.reason == (
        "its processes hold 1500 MiB of GPU memory together, its share is 1000 MiB; more than 1100 MiB for "
        "60 s of 60 s"
    )


def test_what_the_hardware_holds_is_not_watched() -> None:
    whole = replace(HALF, kind=Kind.GPU)
    assert limit_of((HALF, replace(HALF, device="h"))) == 2 * LIMIT
    assert limit_of((whole,)) is limit_of(()) is limit_of((HALF, replace(HALF, kind=Kind.MIG))) is None
    assert look(10**6, 59, limit=None) == Watch()


@given(
    st.lists(st.tuples(st.one_of(st.none(), st.integers(-1, 3000)), st.floats(0, 20)), max_size=60),
    st.floats(0, 2),
    st.integers(0, 500),
)
def test_nobody_is_stopped_without_a_warning_of_the_full_time_over_the_bound(
    looks: list[tuple[int | None, float]], fraction: float, mib: int
) -> None:
    patience = Patience(fraction, mib, SECONDS)
    over: float | None = None
    spent = 0.0  # seconds over the bound since the warning
    for memory, tick in looks:
        warned = over is not None
        seen = watch(Facts(LIMIT, memory, over, tick), patience)
        certainly = watchdog.is_over(memory, LIMIT, patience)
        spent = (spent + tick if certainly else spent) if warned else 0.0
        assert seen.over_seconds is None or 0 <= seen.over_seconds <= min(spent, SECONDS) + 1e-6
        if seen.verdict is None:
            assert seen.over_seconds is None or memory is None or memory < 0
        elif seen.verdict.decision is Decision.RECLAIM:
            assert warned and certainly and spent >= SECONDS - 1e-6
        assert not seen.counting or certainly
        over = seen.over_seconds


IDLE = Verdict(Decision.WARN, "idle", 300.0, warned_for="idle")


def test_one_verdict_is_made_of_both() -> None:
    warned, over = look(1050), look(1500, 50)
    assert join(Verdict(Decision.KEEP, "in use"), warned) is warned.verdict
    assert join(Verdict(Decision.KEEP, "in use"), Watch()).decision is Decision.KEEP
    ended = replace(IDLE, decision=Decision.RECLAIM)
    assert join(ended, over) is ended and join(IDLE, over) is over.verdict
    beside = join(IDLE, look(1500, 20))
    assert (beside.decision, beside.deadline_seconds, beside.warned_for) == (Decision.WARN, 300.0, "idle")
    assert beside.reason.startswith("idle; besides, its processes hold 1500 MiB")
    assert beside.reason.endswith("for which it ends in 30 s")
    assert "ends in" not in join(IDLE, warned).reason
    at_work = replace(IDLE, signal="kernel")  # who waits can have it sooner, also while it overruns
    assert join(at_work, look(1500, 20)).signal == "kernel"


# --- the sweep ---------------------------------------------------------------------------------------------


def observe(lease: Lease, memory: int | None, mode: str = "reclaim") -> Any:
    rules = sweeps.Rules(mode, 10.0, undelivered_max=None, patience=PATIENCE)
    sweep = sweeps.Sweep(Any, SimpleNamespace(), Any, Any, rules, Any)  # type: ignore[arg-type]
    return sweep.observe(lease, Sample(90.0, memory, 1), 10.0, NOW)


WARNED = replace(
    LEASE, warned_for=MEMORY, deadline_seconds=60.0, warning="w1", warned_at=NOW - 9, over_seconds=0.0
)


@pytest.mark.parametrize(
    ("mode", "over", "decision", "deadline", "then"),
    [
        ("reclaim", None, Decision.WARN, 60, 0),
        ("reclaim", 20, Decision.WARN, 30, 30),  # whether anybody was told or not
        ("reclaim", 50, Decision.RECLAIM, 0, 60),
        ("warn", 50, Decision.WARN, 0, 60),
        ("warn", 60, Decision.WARN, 0, 60),
        ("observe", None, Decision.WARN, None, None),
    ],
)
def test_what_follows_depends_on_the_mode(
    mode: str, over: float | None, decision: Decision, deadline: float | None, then: float | None
) -> None:
    seen = observe(replace(WARNED if over is not None else LEASE, over_seconds=over), 2000, mode)
    assert (seen.verdict.decision, seen.deadline_seconds, seen.over_seconds) == (decision, deadline, then)
    assert seen.warned_for == (MEMORY if deadline is not None else "")
    assert seen.counting is (deadline is not None)


def test_the_countdown_stands_still_within_the_excess_and_the_warning_goes_with_its_cause() -> None:
    within = observe(replace(WARNED, over_seconds=20.0, counting=True), 1050)
    assert (within.deadline_seconds, within.counting, within.over_seconds) == (40, False, 20)
    back = observe(replace(WARNED, over_seconds=10.0), 500)
    assert (back.deadline_seconds, back.warned_for, back.over_seconds) == (None, "", None)


# --- what is said --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("counting", [True, False])
def test_a_page_counts_down_only_while_time_runs(counting: bool) -> None:
    lease = replace(WARNED, delivered_at=NOW - 5, verdict_at=NOW - 4, counting=counting)
    shape = telling.warned_shape(lease, NOW, "reclaim")
    assert shape["warning"]["deadline_seconds"] == (56 if counting else None)
    assert shape["warning"]["stands"] == "the countdown runs only while it holds more than is tolerated"
    assert shape["rule_words"] == words.RULES[MEMORY] and not shape["warning"]["extendable"]
    assert shape["extend_words"].startswith("Extend does not help here")


@pytest.mark.parametrize("stops", [True, False])
def test_its_owner_is_told_what_helps(stops: bool) -> None:
    rules = Rules(events={"warning": ("mail",)}, stops=stops)
    [told] = decide(rules, Occasion("warn", NOW, reason="it holds 2000 MiB", lease=WARNED, owner="ada"))
    assert told.subject == "Your GPU session “p” holds more GPU memory than its share"
    assert "Reason: it holds 2000 MiB." in told.text and "Free some" in told.text
    assert ("It is stopped after 60 s with more than is tolerated." in told.text) is stops
    assert told.facts["rule"] == MEMORY and told.facts["seconds"] == 60 and told.warning == "w1"


# --- what is configured --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "bound"),
    [("10%", 1100), ("0%", 1000), (" 2.5 % ", 1025), ("1000%", 11000), ("512M", 1512), ("1G", 2024)],
)
def test_an_excess_is_a_part_of_the_share_or_a_size(text: str, bound: int) -> None:
    service = GPUPoolService(config=Config({"GPUPoolService": {"memory_excess": text}}))
    assert patience_of(service.memory_excess, 7.0).bound(LIMIT) == bound


@pytest.mark.parametrize(
    "text", ["", "10", "0", "1001%", "-5%", "-1", "much", "٣%", "1e3%", "nan%", "9" * 99 + "G"]
)
def test_what_is_no_excess_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(TraitError, match="memory_excess"):
        GPUPoolService(config=Config({"GPUPoolService": {"memory_excess": text}}))


@pytest.mark.parametrize("seconds", [-1, 86401])
def test_a_time_is_bounded(seconds: float) -> None:
    with pytest.raises(TraitError, match="memory_excess_time"):
        GPUPoolService(config=Config({"GPUPoolService": {"memory_excess_time": seconds}}))


# --- the rungs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "simulated", "limited", "rung"),
    [
        (Kind.CPU, True, None, Rung.NONE),
        (Kind.GPU, False, True, Rung.DEVICES),
        (Kind.GPU, True, True, Rung.SIMULATED),
        (Kind.MIG, False, None, Rung.HARDWARE),
        (Kind.SHARE, False, True, Rung.FRAMEWORK),
        (Kind.SHARE, False, False, Rung.WATCHDOG),
        (Kind.SHARE, False, None, Rung.WATCHDOG),  # no more is claimed than is known
        (Kind.SHARE, True, True, Rung.WATCHED),
    ],
)
def test_the_rung_of_a_slice(kind: Kind, simulated: bool, limited: bool | None, rung: Rung) -> None:
    assert rungs.rung_of(kind, simulated=simulated, limited=limited) is rung
    assert len(rung.value) <= 32, "the ledger's column"


@pytest.mark.parametrize(
    ("tensorflow", "checked", "limited"),
    [
        ({}, {}, True),
        ({"memory": "limit"}, {"passed": True}, True),
        ({"memory": "growth"}, {"passed": True}, False),
        ({"memory": "limit"}, {"passed": None}, False),  # the image knows nothing of us
    ],
)
def test_tensorflow_keeps_to_a_limit_where_it_is_told_and_listens(
    tensorflow: dict[str, str], checked: dict[str, Any], limited: bool
) -> None:
    assert rungs.is_limited(tensorflow, checked) is limited


def test_the_words_say_how_far_each_goes() -> None:
    for rung in Rung:
        for stops in (True, False, None):
            assert rungs.in_words(rung.value, stops=stops)
    said = rungs.in_words(Rung.FRAMEWORK)
    for part in ("TensorFlow's own limit, for each process by itself", "a watchdog that stops a session",
                 "Other programs have no limit", "not held back from computing"):  # fmt: skip
        assert part in said
    assert "stops nothing in this mode" in rungs.in_words(Rung.FRAMEWORK, stops=False)
    said = rungs.in_words(Rung.FRAMEWORK, stops=None)  # in the form, where the mode is not known
    assert "a watchdog over what its processes hold together" in said and "stops" not in said
    assert rungs.in_words("of a later version") == "not known"
    assert rungs.shown("", Kind.SHARE, simulated=False) == ""
    assert rungs.shown("", Kind.MIG, simulated=False) == Rung.HARDWARE
    assert rungs.shown("watchdog", Kind.SHARE, simulated=True) == "watchdog"
