"""A month of notebook sessions: read from a trace, or made up where none is given."""

from __future__ import annotations

import csv
import gzip
import itertools
import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
MONTH = 30 * DAY
LONGEST = 7 * DAY
"""Sessions with more pure compute than this are left out: they are no notebooks."""
COLUMNS = ("session", "gpus", "start_min", "dur_min")
GROUPS = {"vision": 0.4, "speech": 0.3, "robots": 0.2, "students": 0.1}
"""Groups, and which part of all people is in each; what they ask for follows from that."""
USERS = 40


Session = tuple[int, float, tuple[tuple[float, float], ...]]
"""GPUs, start, and when it computes (begin and end since its start)."""


@dataclass(frozen=True)
class Notebook:
    """A session: whose, how many GPUs, from when, and when it computes (begin and end since its start)."""

    user: str
    group: str
    gpus: int
    start: float
    cells: tuple[tuple[float, float], ...]

    @property
    def life(self) -> float:
        return self.cells[-1][1]

    @property
    def busy(self) -> float:
        return sum(end - begin for begin, end in self.cells)


def read(path: Path) -> list[Session]:
    """Sessions of a trace as (GPUs, start, cells), in seconds since the first of them.

    The file has a line for each execution with at least the columns session, gpus, start_min and dur_min.
    """
    found: dict[str, list[tuple[float, float, int]]] = defaultdict(list)
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        lines = csv.DictReader(file)
        missing = set(COLUMNS).difference(lines.fieldnames or ())
        if missing:
            raise SystemExit(f"{path.name} has no column {', '.join(sorted(missing))}.")
        for line in lines:
            at, lasts = float(line["start_min"]) * MINUTE, float(line["dur_min"]) * MINUTE
            found[line["session"]].append((at, at + lasts, int(line["gpus"])))
    first = min(cells[0][0] for cells in found.values())
    made = []
    for cells in found.values():
        cells.sort()
        start, ends = cells[0][0], 0.0
        spans = []
        for begin, end, _ in cells:  # what overlaps runs one after the other
            begin = max(begin - start, ends)
            ends = max(begin, end - start)
            spans.append((begin, ends))
        made.append((max(gpus for _, _, gpus in cells), start - first, tuple(spans)))
    return made


def make_up(seed: int, sessions: int = 700) -> list[Session]:
    """Sessions of the same shape as those of a real trace: many short ones, and few that last for days."""
    chance = random.Random(seed)
    made = []
    for _ in range(sessions):
        at, spans = 0.0, []
        for _ in range(max(1, int(chance.lognormvariate(3.2, 1.6)))):
            lasts = chance.lognormvariate(2.2, 1.6) * MINUTE
            spans.append((at, at + lasts))
            at += lasts + chance.lognormvariate(1.6, 1.5) * MINUTE
        made.append((chance.choice((1, 4, 8)), chance.uniform(0, MONTH), tuple(spans)))
    return made


def month(sessions: list[Session], gpus: int, load: float, seed: int) -> list[Notebook]:
    """A month in a pool of so many GPUs: sessions by chance until they ask for ``load`` times what it has.

    The trace knows no people: sessions are dealt out to users, of whom a few have many and many have few,
    and users to groups.
    """
    chance = random.Random(seed)
    users = [f"user{n}" for n in range(USERS)]
    group_of = {user: chance.choices(list(GROUPS), list(GROUPS.values()))[0] for user in users}
    often = [1 / (n + 1) for n in range(USERS)]
    picked, asked = [], 0.0
    for count, start, cells in itertools.cycle(chance.sample(sessions, len(sessions))):
        if asked >= load * gpus * MONTH:
            break
        user = chance.choices(users, often)[0]
        found = Notebook(user, group_of[user], count, start, cells)
        if found.busy <= LONGEST and start < MONTH:
            picked.append(found)
            asked += count * min(found.life, MONTH - start)
    return sorted(picked, key=lambda item: item.start)
