"""Who is at work beside an idle GPU: warned like any other, stopped after four windows or for who waits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from jupyterhub_gpupool import signals
from jupyterhub_gpupool.model import Decision, Lease, Sample, State
from jupyterhub_gpupool.signals import Level, Signal, Work

from .bench import INTERVAL, Bench
from .conftest import WHOLE

CELL = Work((Signal("kernel", Level.ACTIVE, "a cell is running"),))
REST = Work((Signal("kernel", Level.QUIET, "no cell is running"),))
IDLE: dict[str, Any] = {"window": 60, "warn": 30}


class Asked:
    """Stands in for the prober: every session says the same."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.next: Work | None = None

    async def quiet_ones(
        self, leases: Iterable[Lease], samples: Mapping[str, Sample], tick: float
    ) -> Mapping[str, Work]:
        return {lease.id: self.work for lease in leases}

    async def look(self, leases: Iterable[Lease]) -> Mapping[str, Work]:
        return {lease.id: self.next or self.work for lease in leases}


@pytest.fixture
def bench(databases: Any) -> Any:
    made = Bench(databases.url("bench"), 1)
    yield made
    made.close()


def until_over(bench: Bench, lease: Lease, most: int = 60) -> int:
    """Sweeps until the lease holds nothing."""
    for count in range(1, most + 1):
        bench.pass_time()
        if bench.lease(lease).state is State.CLOSED:
            return count
    return most + 1


def test_a_busy_kernel_keeps_an_idle_gpu_for_four_windows(bench: Bench) -> None:
    bench.sweep.prober = Asked(CELL)  # type: ignore[assignment]
    ada = bench.ask("ada", **IDLE)
    bench.pass_time(8)
    warned = bench.lease(ada)
    assert (warned.verdict, warned.signal, warned.idle_samples) == (Decision.WARN, "kernel", 8)
    assert (
        "a cell is running; it is stopped after 4 min without use, or when somebody waits"
        in warned.verdict_reason
    )
    assert warned.deadline_seconds is not None
    assert warned.deadline_seconds > 100
    sweeps = 8 + until_over(bench, ada)
    assert 240 <= sweeps * INTERVAL <= 240 + 2 * INTERVAL
    assert "no GPU activity for 4 min" in bench.lease(ada).reason


def test_a_busy_kernel_makes_room_for_who_waits_after_a_whole_warning(bench: Bench) -> None:
    bench.sweep.prober = Asked(CELL)  # type: ignore[assignment]
    ada = bench.ask("ada", **IDLE)
    bench.pass_time(10)
    assert bench.lease(ada).signal == "kernel"
    bench.ledger.expect({"gpu": WHOLE})
    assert bench.ledger.snapshot().offers == {"gpu": (30, 30)}, "who would ask now"
    bench.ask("grace", **IDLE)
    bench.pass_time()
    wanted = bench.lease(ada)
    assert (wanted.deadline_seconds, wanted.signal) == (30, "kernel")
    assert "1 GPU wanted by request" in wanted.verdict_reason
    assert until_over(bench, ada) == 30 / INTERVAL


def test_an_idle_kernel_keeps_nothing(bench: Bench) -> None:
    bench.sweep.prober = Asked(REST)  # type: ignore[assignment]
    ada = bench.ask("ada", **IDLE)
    bench.pass_time(8)
    assert bench.lease(ada).signal == "gpu"
    assert "; no cell is running" in bench.lease(ada).verdict_reason
    assert (8 + until_over(bench, ada)) * INTERVAL <= 60 + 30 + 2 * INTERVAL


def test_who_begins_to_work_at_the_last_moment_is_not_stopped(bench: Bench) -> None:
    asked = Asked(REST)
    asked.next = signals.silent("no answer")
    bench.sweep.prober = asked  # type: ignore[assignment]
    ada = bench.ask("ada", **IDLE)
    bench.pass_time(20)
    assert bench.lease(ada).state is State.ACTIVE
    asked.next = None
    assert until_over(bench, ada) == 1


def test_what_was_seen_before_a_window_without_samples_is_forgotten(bench: Bench) -> None:
    ada = bench.ask("ada", **IDLE)
    bench.pass_time(5)
    assert bench.lease(ada).idle_seconds > 0
    bench.unknown.add("ada")
    bench.pass_time(7)
    kept = bench.lease(ada).idle_seconds
    bench.unknown.clear()
    bench.pass_time()
    assert bench.lease(ada).idle_seconds == 0 < kept
    assert bench.lease(ada).idle_samples == 1
