"""Who stops what is used, and who leaves idle GPUs held: the pool's rule beside three others, in one table.

Each life of a session is a series of looks with a label of truth: is the GPU used.  Generated ones (seeded) are
of the shapes that rules get wrong.  Recorded ones come from traces: ``--cells`` is a CSV file (or .csv.gz) of
cells of notebooks (session, start_min, dur_min), ``--duty`` one of duty cycles (value in percent, a time in
seconds, who).  All rules have a window of 30 min and no warning: what a warning adds is the same for all.

  pool   the package's own: idleness.look, count_down and judge, with what kernels say where a life has that
  mean   the mean over the window is below the threshold
  hub    the hub has seen no activity for the window, as a culler does by ``last_activity``
  peak   the highest sample of the last 30 min is below the threshold; what is missing counts as nothing

A cell of the table is ``stopped in use / longest idle time left``.  Stopped in use: the label says used, or said
so within the window before, less two looks.  Idle time left: from the last use to the stop, in the window and
looks beyond it, without looks that saw nothing.  After a stop the next use is a new session.
"""

from __future__ import annotations

import csv
import gzip
import random
import sys
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

from _hub import ROOT, VERDICTS, load_note, parser, table, verdict

sys.path.insert(0, str(ROOT))

from jupyterhub_gpupool import idleness
from jupyterhub_gpupool.model import Decision, Kind, Sample, Terms
from jupyterhub_gpupool.signals import KERNEL, Level, Signal, Work

WINDOW, INTERVAL, THRESHOLD = 1800.0, 10.0, 5.0
MINUTE, HOUR = 60.0, 3600.0
DUTY_INTERVAL, DUTY_USED = 57.0, 1.0
CELL = Work((Signal(KERNEL, Level.ACTIVE, "a cell is running"),))
REST = Work((Signal(KERNEL, Level.QUIET, "no cell is running"),))


@dataclass(slots=True)
class Life:
    """A session, look by look: what was measured, what is true, and whether the hub saw activity."""

    interval: float = INTERVAL
    threshold: float = THRESHOLD
    work: Work = REST
    seen: list[float | None] = field(default_factory=list)
    used: list[bool] = field(default_factory=list)
    active: list[bool] = field(default_factory=list)

    def add(self, seconds: float, seen: float | None, used: bool, active: bool) -> None:
        """Go on like this for some time, at least for one look."""
        count = max(1, round(seconds / self.interval))
        self.seen += [seen] * count
        self.used += [used] * count
        self.active += [active] * count


# --- lives that are made up ----------------------------------------------------------------------------


def leaves(dice: random.Random) -> Life:
    """Cells with thinking between them, then nobody; every other page is left open."""
    life = Life()
    for _ in range(dice.randint(3, 20)):
        life.add(dice.expovariate(1 / 240), dice.uniform(5, 100), True, True)
        life.add(dice.uniform(10, 0.9 * WINDOW), 0.0, False, True)
    life.add(4 * HOUR, 0.0, False, dice.random() < 0.5)
    return life


def bursts(dice: random.Random) -> Life:
    """A training that loads data for longer than it computes."""
    life = Life()
    for _ in range(dice.randint(20, 60)):
        life.add(dice.uniform(10, 60), dice.uniform(20, 100), True, False)
        life.add(dice.uniform(5 * MINUTE, 25 * MINUTE), 0.0, False, False)
    life.add(2 * HOUR, 0.0, False, False)
    return life


def long_job(dice: random.Random) -> Life:
    """A job of hours with the browser closed."""
    life = Life()
    life.add(MINUTE, 0.0, False, True)
    for _ in range(dice.randint(60, 600)):
        life.add(dice.uniform(10, 120), dice.uniform(30, 100), True, False)
        life.add(10, dice.choice([0.0, 40.0]), True, False)
    life.add(3 * HOUR, 0.0, False, False)
    return life


def open_tab(dice: random.Random) -> Life:
    """A page that stays open over an idle GPU."""
    life = Life()
    life.add(dice.uniform(MINUTE, HOUR), 80.0, True, True)
    life.add(10 * HOUR, 0.0, False, True)
    return life


def noise(dice: random.Random) -> Life:
    """An idle GPU of which single looks see a little."""
    life = Life()
    life.add(10 * MINUTE, 60.0, True, True)
    for _ in range(60):
        life.add(dice.uniform(30, 600), 0.0, False, False)
        life.add(INTERVAL, dice.uniform(1, 4.9), False, False)
    return life


def burns(dice: random.Random) -> Life:
    """Little but steady use for hours, then none."""
    life = Life()
    life.add(5 * MINUTE, 50.0, True, True)
    for _ in range(400):
        life.add(dice.uniform(10, 60), dice.uniform(1, 3), True, False)
    life.add(2 * HOUR, 0.0, False, False)
    return life


def missing(dice: random.Random) -> Life:
    """A training with pauses, of which minutes to an hour are not measured."""
    life = Life()
    for _ in range(30):
        life.add(dice.uniform(1, 10) * MINUTE, 90.0, True, False)
        life.add(dice.uniform(1, 55) * MINUTE, None, True, False)
        life.add(dice.uniform(10, 600), 0.0, False, False)
    return life


def on_the_cpu(dice: random.Random) -> Life:
    """A cell that runs on after its last use of the GPU."""
    life = Life(work=CELL)
    life.add(dice.uniform(MINUTE, HOUR), 70.0, True, True)
    life.add(10 * HOUR, 0.0, False, False)
    return life


GENERATED = {
    "cells, then nobody": leaves,
    "bursts, long loading": bursts,
    "long job, closed browser": long_job,
    "idle, tab left open": open_tab,
    "idle, single traces": noise,
    "1–3 %, steady": burns,
    "samples missing": missing,
    "cell without GPU": on_the_cpu,
}
IRREGULAR = "samples missing"
PATIENT = "cell without GPU"


# --- lives that were recorded --------------------------------------------------------------------------


def opened(path: Path) -> IO[str]:
    return gzip.open(path, "rt") if path.suffix == ".gz" else path.open()


def of_cells(path: Path, most: int, dice: random.Random) -> Iterator[Life]:
    """Sessions of a notebook trace; what a cell does to its GPU is made up, and rests now and then for a look."""
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    with opened(path) as file:
        for row in csv.DictReader(file):
            start = float(row["start_min"]) * MINUTE
            found[row["session"]].append((start, start + float(row["dur_min"] or 0) * MINUTE))
    for name in dice.sample(sorted(found), min(most, len(found))):
        life, now = Life(), min(start for start, _ in found[name])
        for start, end in sorted(found[name]):
            if start > now:
                life.add(min(start - now, 3 * WINDOW), 0.0, False, False)
            while now < end:
                now = max(now, start)
                rested = bool(life.seen) and life.seen[-1] == 0.0
                seen = dice.choice([30.0, 60.0, 90.0] if rested else [0.0, 30.0, 60.0, 90.0])
                life.add(INTERVAL, seen, True, start == now)
                now += INTERVAL
        life.add(3 * WINDOW, 0.0, False, False)
        yield life


def of_duty(path: Path) -> Iterator[Life]:
    """Duty cycles as they were measured; what is missing is unknown."""
    found: dict[str, dict[int, float]] = defaultdict(dict)
    with opened(path) as file:
        for row in csv.DictReader(file):
            look = round(float(row["timestamp_anon"]) / DUTY_INTERVAL)
            found[row["container_ip"]][look] = float(row["value"])
    for samples in found.values():
        life = Life(DUTY_INTERVAL, DUTY_USED)
        for look in range(min(samples), max(samples) + 1):
            value = samples.get(look)
            life.add(0, value, (value or 0) >= DUTY_USED, False)
        yield life


# --- rules ---------------------------------------------------------------------------------------------


class Rule(Protocol):
    """Looks at a life, look after look; True stops the session."""

    def __init__(self, life: Life) -> None: ...

    def stops(self, look: int) -> bool: ...


class PoolRule:
    """The package's own judgement, as a sweep puts it together."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._terms = Terms(window=WINDOW, warn=0, min_age=0, threshold=life.threshold)
        self._idle = idleness.Idle()
        self._left: float | None = None
        self._rule, self._age = "", 0.0

    def stops(self, look: int) -> bool:
        value, pace = self._life.seen[look], self._life.interval
        sample = Sample(value, processes=1)
        busy = idleness.is_busy(sample, self._terms.threshold)
        self._age += pace
        self._idle = idleness.look(self._idle, sample, self._terms, pace, pace)
        found = idleness.judge(
            idleness.Facts(
                self._terms,
                Kind.GPU,
                self._age,
                self._idle.seconds,
                busy,
                deadline_seconds=idleness.count_down(self._left, self._rule, busy, pace, pace),
                warned_for=self._rule,
                sample=sample,
                samples=self._idle.samples,
                low=self._idle.low,
                work=self._life.work,
            )
        )
        self._left, self._rule = found.deadline_seconds, found.warned_for
        return found.decision is Decision.RECLAIM


class MeanRule:
    def __init__(self, life: Life) -> None:
        self._life, self._looks = life, round(WINDOW / life.interval)
        self._last: deque[float | None] = deque()
        self._sum = self._known = 0.0

    def stops(self, look: int) -> bool:
        value = self._life.seen[look]
        self._last.append(value)
        self._sum, self._known = self._sum + (value or 0.0), self._known + (value is not None)
        if len(self._last) < self._looks:
            return False
        if len(self._last) > self._looks:
            gone = self._last.popleft()
            self._sum, self._known = self._sum - (gone or 0.0), self._known - (gone is not None)
        return self._known > 0 and self._sum / self._known < self._life.threshold


class HubRule:
    def __init__(self, life: Life) -> None:
        self._life, self._since = life, 0.0

    def stops(self, look: int) -> bool:
        self._since = 0.0 if self._life.active[look] else self._since + self._life.interval
        return self._since >= WINDOW


class PeakRule:
    def __init__(self, life: Life) -> None:
        self._life, self._looks = life, round(WINDOW / life.interval)
        self._age = self._since = 0
        self._silent = 0

    def stops(self, look: int) -> bool:
        value = self._life.seen[look]
        self._age += 1
        self._since = 0 if value is not None and value >= self._life.threshold else self._since + 1
        self._silent = self._silent + 1 if value is None else 0
        return min(self._age, self._since) >= self._looks > self._silent


RULES: dict[str, type[Rule]] = {"pool": PoolRule, "mean": MeanRule, "hub": HubRule, "peak": PeakRule}


@dataclass(slots=True)
class Score:
    """What a rule did to lives of one kind."""

    wrong: int = 0
    stops: int = 0
    beyond: float = float("-inf")
    """Looks beyond the window of the longest idle time."""
    looks: int = 0

    def __str__(self) -> str:
        left = "–" if self.beyond == float("-inf") else f"window {self.beyond:+.0f} looks"
        return f"{self.wrong} of {self.stops} / {left}"


def play(rule: type[Rule], life: Life, score: Score) -> None:
    """Let a rule see a whole life, and count what it does."""
    run, stopped, idle, since_use = rule(life), False, 0, 0.0
    window = WINDOW / life.interval
    score.looks += len(life.seen)
    for look, used in enumerate(life.used):
        known = life.seen[look] is not None
        idle, since_use = (0, 0.0) if used else (idle + known, since_use + 1)
        if stopped and not used:
            continue
        if stopped:
            run, stopped = rule(life), False
        stopped = run.stops(look)
        if not used:
            score.beyond = max(score.beyond, idle - window)
        if stopped:
            score.stops += 1
            score.wrong += used or since_use < window - 2


def main() -> None:
    line = parser(__doc__)
    line.add_argument("--cells", type=Path, help="trace of notebook cells")
    line.add_argument("--duty", type=Path, help="trace of duty cycles")
    line.add_argument("--sessions", type=int, default=60, help="sessions of the trace of cells (60)")
    line.add_argument("--lives", type=int, default=30, help="generated lives of each kind (30)")
    line.add_argument("--seed", type=int, default=1, help="of all that is made up (1)")
    options = line.parse_args()
    dice = random.Random(options.seed)
    kinds = {name: [make(dice) for _ in range(options.lives)] for name, make in GENERATED.items()}
    if options.cells:
        kinds["recorded cells"] = list(of_cells(options.cells, options.sessions, dice))
    if options.duty:
        kinds["recorded duty cycles"] = list(of_duty(options.duty))
    scores: dict[tuple[str, str], Score] = defaultdict(Score)
    for kind, lives in kinds.items():
        for life in lives:
            for name, rule in RULES.items():
                play(rule, life, scores[kind, name])
    hours = {
        kind: sum(len(life.seen) * life.interval for life in lives) / HOUR for kind, lives in kinds.items()
    }
    table(
        "stopped in use, of all stops / longest idle time left",
        ("lives", "hours", *RULES),
        [(kind, f"{hours[kind]:.0f}", *(str(scores[kind, name]) for name in RULES)) for kind in kinds],
    )
    wrong = sum(scores[kind, "pool"].wrong for kind in kinds)
    regular = [scores[kind, "pool"].beyond for kind in kinds if kind not in (IRREGULAR, PATIENT)]
    patient = scores[PATIENT, "pool"].beyond - (idleness.PATIENCE - 1) * WINDOW / INTERVAL
    left, beside = f"window {max(regular):+.0f} looks", f"4 windows {patient:+.0f} looks"
    lines = [
        verdict("pool: stopped in use", str(wrong), "", "", "0", wrong == 0),
        verdict("pool: idle time left, regular samples", left, "", "", "window +2", max(regular) <= 2),
        verdict("pool: the same beside a running cell", beside, "", "", "4 windows +2", patient <= 2),
    ]
    table("", VERDICTS, lines)
    print(load_note())


if __name__ == "__main__":
    main()
