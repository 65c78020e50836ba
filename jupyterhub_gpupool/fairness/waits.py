"""How long a place in the queue will take: a range, from what is held and how long such sessions last.

The remaining time of a session is drawn from the past sessions of its kind that lived longer than it has
(the empirical survival function given its age), cut off at its deadline.  Where idle sessions end only when
somebody waits, and borrowed ones when they are claimed, a session lasts longer while nobody does: what was seen
while somebody waited counts first (:func:`watched`).  Each draw plays the queue once:
one after the other each request is given the devices on which it could start soonest, and those behind it
keep off them until it has (conservative backfilling, Mu'alem and Feitelson 2001).  The range is taken from
the draws.  They are the same in every call, so the range moves only when the pool does.  Nobody is taken to
come later with a better right.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from operator import mul

LEAST_PAST = 8
"""Past sessions that must have lived longer than a session for its remaining time to be guessed."""
LOW, HIGH = 0.1, 0.9
DRAWS = 100
LEAST_DRAWS = 20
STEPS = 200_000
"""Placings in all draws together: with more in the queue there are fewer draws."""
_SEED = 0


@dataclass(frozen=True, slots=True)
class Running:
    """A session that holds cells."""

    cells: Mapping[str, int]
    """By device."""
    age: float
    kind: str = ""
    """Sessions of one kind last alike; usually the profile."""
    ends_within: float = math.inf
    """Seconds after which it ends at the latest: warning, ``max_age``; 0: it is stopping."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A request: ``count`` devices of one node, on each of which it takes as many cells as ``cells`` says."""

    cells: Mapping[str, int]
    kind: str = ""
    count: int = 1
    ends_within: float = math.inf
    """Seconds after which its own session ends at the latest."""
    until: Mapping[str, float] = field(default_factory=dict)
    """Seconds by device, for those on which it may start no later than that: they will be drained."""


@dataclass(frozen=True, slots=True)
class Wait:
    """The expected wait in seconds; ``low`` None: there is no ground; ``high`` None: no end can be named."""

    low: float | None
    high: float | None
    likely: float | None = None
    why: str = ""
    """In words, where one of them is missing."""


@dataclass(frozen=True, slots=True)
class Lasting:
    """How long sessions last that are this old: durations in order, and the chance of at most each.

    The chances end below 1 where some may outlast all that are known.
    """

    durations: Sequence[float]
    chances: Sequence[float]

    def draw(self, u: float) -> float:
        """The duration at a part ``u`` (0 to 1) of the distribution; inf: longer than all that are known."""
        n = bisect_right(self.chances, u)
        return self.durations[n] if n < len(self.durations) else math.inf


Spell = tuple[float, float, bool]
"""Part of a session's life that was watched: from which age to which, and whether it ended then."""
Span = tuple[float, float]


def together(spans: Iterable[Span]) -> list[Span]:
    """The times that lie in any of the spans, in order and apart: from the waits, when somebody waited."""
    found: list[Span] = []
    for start, end in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((start, end))
    return found


def watched(
    start: float, end: float, demand: Sequence[Span], settle: float, *, ended: bool = True
) -> list[Spell]:
    """The spells of a session's life in which somebody waited.  ``demand`` is in order and apart.

    The first ``settle`` seconds of each are left out: then those go that were idle when the first one came,
    which says nothing on those that are not.
    """
    found = []
    for since, until in demand[max(0, bisect_right(demand, (start, math.inf)) - 1) :]:
        if since >= end:
            break
        first, last = max(since + settle, start), min(until, end)
        if first < last:
            found.append((first - start, last - start, ended and end <= until))
    return found


class Past:
    """How long sessions have lasted, by kind, and how old those are that have not ended.

    What has not ended counts: were it left out, a pool whose long sessions all still run would look quick.
    The estimate is that of Kaplan and Meier (1958); for ``seen``, the spells in which somebody waited, it is
    theirs with delayed entry (Klein and Moeschberger 2003, 4.6): a session is at risk only while it is watched.
    A kind of which too few are known is taken to last as all sessions do, first as those that were watched.
    """

    def __init__(
        self,
        lasted: Mapping[str, Sequence[float]],
        ages: Mapping[str, Sequence[float]] | None = None,
        least: int = LEAST_PAST,
        seen: Mapping[str, Sequence[Spell]] | None = None,
    ) -> None:
        self.least = least
        self.known = sum(map(len, lasted.values()))
        whole: dict[str, list[Spell]] = {}
        for of, ended in ((lasted, True), (ages or {}, False)):
            for kind, some in of.items():
                whole.setdefault(kind, []).extend((0.0, seconds, ended) for seconds in some)
        self._sources = [_by_kind(spells) for spells in (seen or {}, whole)]

    def lasting(self, age: float, kind: str) -> Lasting | None:
        """How long sessions of a kind last in all that are so old; None: too few have lasted longer."""
        for of, every in self._sources:
            for durations, kept in (of.get(kind, ((), ())), every):
                first = bisect_right(durations, age)
                if len(durations) - first >= self.least:
                    left = accumulate(kept[first:], mul)
                    return Lasting(durations[first:], [1 - part for part in left])
        return None


Masses = tuple[list[float], list[float]]


def _by_kind(spells: Mapping[str, Sequence[Spell]]) -> tuple[dict[str, Masses], Masses]:
    every = [spell for some in spells.values() for spell in some]
    return {kind: _masses(some) for kind, some in spells.items()}, _masses(every)


def _masses(spells: Sequence[Spell]) -> Masses:
    """The ages at which sessions ended, in order, and at each the part of those watched that went on."""
    ends, goes_on, begins = 0, 1, 2  # of like ages in this order
    changes = [(left, ends if ended else goes_on) for _, left, ended in spells]
    changes += [(entered, begins) for entered, _, _ in spells if entered > 0]
    durations, kept = list[float](), list[float]()
    at_risk = sum(entered <= 0 for entered, _, _ in spells)
    for age, what in sorted(changes):
        if what == ends:
            durations.append(age)
            kept.append(1 - 1 / at_risk)
        at_risk += 1 if what == begins else -1
    return durations, kept


@dataclass(slots=True)
class _Room:
    """One device in one draw: which cells are taken until when."""

    cells: int
    taken: list[tuple[float, int]] = field(default_factory=list)
    since: float = 0.0
    """When the last request that was given it starts: nobody behind that one starts sooner."""

    def free_at(self, cells: int) -> float:
        """When so many cells are free for the next request."""
        if cells == self.cells and self.taken:
            return max(self.since, self.taken[-1][0])  # they are in order of their ends
        free = self.cells
        for _, held in self.taken:
            free -= held
        if free >= cells:
            return self.since
        for ends, held in self.taken:
            free += held
            if free >= cells:
                return max(self.since, ends)
        return math.inf

    def take(self, cells: int, start: float, ends: float) -> None:
        """Take cells from ``start`` on; what has ended by then is forgotten."""
        self.since = start
        self.taken = sorted([*(item for item in self.taken if item[0] > start), (ends, cells)])


def expected_waits(
    queue: Sequence[Wanted],
    running: Sequence[Running],
    devices: Mapping[str, tuple[str, int]],
    past: Past,
    *,
    draws: int = DRAWS,
) -> list[Wait]:
    """Say for each request, in the order of the queue, within which range its wait is expected to be.

    ``devices`` are node and cells of those that may be granted.  Of like requests a later one never waits
    less than an earlier one.  To ask for a profile, put its request at the end of the queue.
    """
    draws = max(LEAST_DRAWS, min(draws, STEPS // max(1, len(queue) * max(1, len(devices)))))
    chance = random.Random(_SEED)
    ground = [past.lasting(item.age, item.kind) for item in running]
    lasts = {item.kind: past.lasting(0.0, item.kind) for item in queue}
    starts: list[list[float]] = [[] for _ in queue]
    for _ in range(draws):
        rooms = _rooms(running, ground, devices, chance)
        _play(queue, rooms, devices, lasts, chance, starts)
    return [_range(item, sorted(found), devices, past) for item, found in zip(queue, starts, strict=True)]


def _rooms(
    running: Sequence[Running],
    ground: Sequence[Lasting | None],
    devices: Mapping[str, tuple[str, int]],
    chance: random.Random,
) -> dict[str, _Room]:
    """The devices with an end drawn for every session."""
    rooms = {device: _Room(cells) for device, (_, cells) in devices.items()}
    for item, lasted in zip(running, ground, strict=True):
        u = chance.random()  # drawn for each, so that one session more does not shift the others' luck
        left = math.inf if lasted is None else lasted.draw(u) - item.age
        ends = max(0.0, min(left, item.ends_within))
        for device, cells in item.cells.items():
            if device in rooms:
                rooms[device].taken.append((ends, cells))
    for room in rooms.values():
        room.taken.sort()
    return rooms


def _play(
    queue: Sequence[Wanted],
    rooms: Mapping[str, _Room],
    devices: Mapping[str, tuple[str, int]],
    lasts: Mapping[str, Lasting | None],
    chance: random.Random,
    starts: Sequence[list[float]],
) -> None:
    """Give each request of the queue its devices in one draw, and note when it starts."""
    for item, found in zip(queue, starts, strict=True):
        u = chance.random()
        start, chosen = _earliest(item, rooms, devices)
        found.append(start)
        lasted = lasts[item.kind]
        life = math.inf if lasted is None else lasted.draw(u)
        for device in chosen:
            rooms[device].take(item.cells[device], start, start + min(life, item.ends_within))


def _earliest(
    item: Wanted, rooms: Mapping[str, _Room], devices: Mapping[str, tuple[str, int]]
) -> tuple[float, list[str]]:
    """When and where the request starts; inf and nowhere when no end of what is in its way is known."""
    if not item.cells:
        return 0.0, []
    free_at = (
        (at, device)
        for device, cells in item.cells.items()
        if device in rooms and (at := rooms[device].free_at(cells)) <= item.until.get(device, math.inf)
    )
    if item.count == 1:
        at, device = min(free_at, default=(math.inf, ""))
        return (at, [device]) if at < math.inf else (at, [])
    nodes: dict[str, list[tuple[float, str]]] = {}
    for at, device in free_at:
        if at < math.inf:
            nodes.setdefault(devices[device][0], []).append((at, device))
    options = [sorted(free)[: item.count] for free in nodes.values() if len(free) >= item.count]
    soonest = min(options, key=lambda free: free[-1][0], default=[])
    return (soonest[-1][0], [device for _, device in soonest]) if soonest else (math.inf, [])


def _range(item: Wanted, found: Sequence[float], devices: Mapping[str, tuple[str, int]], past: Past) -> Wait:
    low, likely, high = (_quantile(found, part) for part in (LOW, 0.5, HIGH))
    why = ""
    if high is None:
        empty = {device: _Room(cells) for device, (_, cells) in devices.items()}
        if _earliest(item, empty, devices)[0] == math.inf:
            why = "no device is there that could serve it"
        elif past.known < past.least:
            why = f"only {past.known} past sessions are known, {past.least} are needed"
        else:
            why = f"sessions ahead have lasted longer than nearly all of {past.known} past ones"
    return Wait(low, high, likely, why)


def _quantile(found: Sequence[float], part: float) -> float | None:
    value = found[min(len(found) - 1, int(part * len(found)))]
    return value if value < math.inf else None
