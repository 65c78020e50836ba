"""What the sweep makes of a delivery: pure but for the mode, as ``Sweep.observe`` is."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from jupyterhub_gpupool.model import Decision, Kind, Lease, Sample, State, Terms, Wish
from jupyterhub_gpupool.service.sweep import Rules, Sweep

NOW = 1000.0
LEASE = Lease(
    id="l1", user="ada", server="", profile="p", state=State.ACTIVE, version=1, epoch=1, session="s",
    wish=Wish(Kind.GPU), terms=Terms(window=60, warn=30, min_age=0), groups=(), options={}, slices=(), gpus=1.0,
    group="", url="", runtime={}, requested_at=0.0, granted_at=0.0, active_at=0.0, idle_seconds=90.0, idle_samples=9,
)  # fmt: skip
WARNED = replace(LEASE, warned_for="idle", deadline_seconds=30.0, warning="w1", warned_at=NOW - 50)
TOLD = replace(WARNED, delivered_at=NOW - 3, delivered_by="page")
IDLE = Sample(0.0, 1, 0)


def sweep(limit: float | None) -> Sweep:
    rules = Rules("reclaim", 10.0, undelivered_max=limit)
    return Sweep(Any, SimpleNamespace(), Any, Any, rules, Any)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("lease", "limit", "deadline", "undelivered", "counting"),
    [
        (LEASE, 3600, 30, 0, False),  # a new warning
        (LEASE, None, 30, 0, False),
        (LEASE, 0, 30, 0, True),
        (WARNED, 3600, 30, 10, False),  # it stands still
        (WARNED, None, 30, 10, False),
        (replace(WARNED, undelivered_seconds=3560.0), 3600, 30, 3570, True),  # its time without is up
        (replace(WARNED, undelivered_seconds=3570.0, counting=True), 3600, 20, 3580, True),
        # 4 of the 10 seconds came after the warning was written; and the clock was set back since.
        (replace(WARNED, undelivered_seconds=3570.0, counting=True, warned_at=NOW - 4), 3600, 26, 3580, True),
        (
            replace(WARNED, undelivered_seconds=3570.0, counting=True, warned_at=NOW + 300),
            3600,
            20,
            3580,
            True,
        ),
        (replace(WARNED, undelivered_seconds=9e9), None, 30, 9e9 + 10, False),
        (TOLD, None, 27, 0, True),  # 3 of the 10 seconds came after the delivery
        (replace(TOLD, delivered_at=NOW - 300), None, 20, 0, True),
        (replace(TOLD, delivered_at=NOW + 300), None, 30, 0, True),  # the clock was set back
        (replace(TOLD, counting=True), None, 20, 0, True),
        (replace(TOLD, counting=True, warned_for="drain"), None, 30, 0, False),  # another rule: told anew
    ],
)
def test_a_look_at_a_warned_lease(
    lease: Lease, limit: float | None, deadline: float, undelivered: float, counting: bool
) -> None:
    seen = sweep(limit).observe(lease, IDLE, 10.0, NOW)
    assert (seen.verdict.decision, seen.warned_for) == (Decision.WARN, "idle")
    assert (seen.deadline_seconds, seen.undelivered_seconds, seen.counting) == (
        deadline,
        undelivered,
        counting,
    )


def test_nothing_of_a_warning_is_left_once_the_gpu_is_used() -> None:
    seen = sweep(3600).observe(replace(TOLD, counting=True), Sample(90.0, 1, 1), 10.0, NOW)
    assert (seen.deadline_seconds, seen.undelivered_seconds, seen.counting) == (None, 0.0, False)


@pytest.mark.parametrize(("counting", "decision"), [(False, Decision.WARN), (True, Decision.RECLAIM)])
def test_one_whose_time_has_run_out_is_reclaimed_only_if_it_counted(
    counting: bool, decision: Decision
) -> None:
    over = replace(WARNED, deadline_seconds=0.0, counting=counting)
    assert sweep(None).observe(over, IDLE, 10.0, NOW).verdict.decision is decision
