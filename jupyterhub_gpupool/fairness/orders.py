"""The order of the queue: small comparators by name, over the same facts.

Requests within a guaranteed share come first in every order: what they wait for is theirs, and there are
never more of them than the share holds (KAI serves queues within their quota before those over it).  Behind
them the named order decides.  Nobody starves in any of them:

``fifo``
    First come, first served.
``priority``
    Waiting ages a request: each ``step`` seconds are worth one level, as in Slurm's priority plugin.  All
    age alike, so a request of priority *p* is overtaken only by those of a priority *P* that came less than
    ``(P - p) × step`` seconds after it, at most 99 steps.
``fair``
    Who has had least for their weight is next: groups by their past GPU-hours, then users within a group,
    as Slurm's Fair Tree ranks accounts before users.  The past decays with a half-life (7 days in Backend.AI
    and Slurm), so nobody pays for ever.  The weights of groups are priority × remaining capacity, normalised
    over those that wait.  Each place given counts ahead as if it had been used for ``turn`` hours, so that
    waiting groups take turns (start-time fair queueing, Goyal et al. 1996).  Who has waited for ``patience``
    is before everybody who has not, in order of arrival.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import NamedTuple

from .budgets import HOUR, Span
from .limits import USUAL_PRIORITY

HALF_LIFE = 7 * 86400.0
PATIENCE = 86400.0
STEP = 600.0
LEVELS = 99
"""Steps between the lowest priority and the highest."""


class Queued(NamedTuple):
    """A request in the queue, as far as its turn depends on it."""

    lease: str
    user: str
    gpus: float
    since: float
    ticket: int
    """Place in order of arrival."""
    group: str = ""
    """The group it would be charged to."""
    priority: int = USUAL_PRIORITY
    own: bool = False
    """Whether it fits into the guaranteed share of ``group`` now."""

    @property
    def scope(self) -> str:
        """Whose past and share it counts for: the group, or the user whom no group is charged for."""
        return scope_of(self.user, self.group)


_ticket = attrgetter("ticket")


@dataclass(frozen=True, slots=True)
class Context:
    """What an order depends on besides the requests.  Times are in seconds."""

    now: float
    hours: Mapping[str, float] = field(default_factory=dict)
    """Decayed GPU-hours by scope (``group:vision``, ``user:ada``); missing: none."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """By scope, as :func:`weights` gives them; missing: all alike."""
    step: float = STEP
    patience: float = PATIENCE
    turn: float = 1.0
    """GPU-hours that a GPU is taken to be used for by a request ahead."""


def step_within(patience: float) -> float:
    """The usual step, or a shorter one with which the lowest priority is before all later ones in that time."""
    return min(STEP, patience / LEVELS)


def scope_of(user: str, group: str) -> str:
    """The group's scope, or the user's where no group is charged."""
    return f"group:{group}" if group else f"user:{user}"


def decayed(spans: Sequence[Span], now: float, half_life: float = HALF_LIFE) -> float:
    """Sum GPU-hours, each weighing half after ``half_life`` seconds; spans that go on count until now."""
    rate = math.log(2) / half_life
    total = 0.0
    for item in spans:
        end = now if item.end is None else min(item.end, now)
        if end > item.start:
            total += item.gpus * (math.exp(-rate * (now - end)) - math.exp(-rate * (now - item.start)))
    return total / rate / HOUR


def weights(priorities: Mapping[str, float], remaining: Mapping[str, float]) -> dict[str, float]:
    """Give each scope that waits its weight: priority × remaining capacity, summing to 1.

    Where nobody has capacity left, priority alone counts.
    """
    raw = {scope: value * remaining.get(scope, 0.0) for scope, value in priorities.items()}
    if not sum(raw.values()) > 0:
        raw = dict(priorities)
    total = sum(raw.values())
    return {scope: value / total for scope, value in raw.items()} if total > 0 else {}


def fifo(waiting: Sequence[Queued], context: Context) -> list[Queued]:
    """First come, first served."""
    return sorted(waiting, key=_ticket)


def priority(waiting: Sequence[Queued], context: Context) -> list[Queued]:
    """The highest priority first, where waiting makes up for priority."""
    return sorted(waiting, key=lambda item: (item.since - item.priority * context.step, item.ticket))


def fair(waiting: Sequence[Queued], context: Context) -> list[Queued]:
    """The group that has had least for its weight first, in it the user who has."""
    patient = [item for item in waiting if context.now - item.since >= context.patience]
    patient.sort(key=_ticket)
    long = {item.lease for item in patient}
    return patient + _in_turns([item for item in waiting if item.lease not in long], context)


def _in_turns(waiting: Sequence[Queued], context: Context) -> list[Queued]:
    """Take one request after the other from whoever has had least, counting what is ahead as had."""
    queues: dict[str, dict[str, deque[Queued]]] = defaultdict(lambda: defaultdict(deque))
    for item in sorted(waiting, key=_ticket):
        queues[item.scope][item.user].append(item)
    had = {scope: context.hours.get(scope, 0.0) for scope in queues}
    even = 1 / len(queues) if queues else 1.0
    turns: list[tuple[float, int, str]] = []  # by what was had for the weight, then by arrival
    users = {scope: _Users(members, context) for scope, members in queues.items()}

    def enter(scope: str) -> None:
        weight = context.weights.get(scope, 0.0) if context.weights else even
        score = had[scope] / weight if weight > 0 else math.inf
        heapq.heappush(turns, (score, users[scope].ticket, scope))

    for scope in queues:
        enter(scope)
    found = []
    while turns:
        scope = heapq.heappop(turns)[2]
        item = users[scope].take()
        had[scope] += item.gpus * context.turn
        found.append(item)
        if users[scope].turns:
            enter(scope)
    return found


class _Users:
    """The users of one group in their turns."""

    def __init__(self, queues: Mapping[str, deque[Queued]], context: Context) -> None:
        self._queues, self._context = queues, context
        self._had = {user: context.hours.get(f"user:{user}", 0.0) for user in queues}
        self.turns: list[tuple[float, int, str]] = []
        for user in queues:
            self._enter(user)

    def _enter(self, user: str) -> None:
        first = self._queues[user][0]
        heapq.heappush(self.turns, (self._had[user] / first.priority, first.ticket, user))

    @property
    def ticket(self) -> int:
        """Of the request whose turn it is."""
        return self.turns[0][1]

    def take(self) -> Queued:
        """Take the request whose turn it is."""
        user = heapq.heappop(self.turns)[2]
        item = self._queues[user].popleft()
        self._had[user] += item.gpus * self._context.turn
        if self._queues[user]:
            self._enter(user)
        return item


ORDERS: Mapping[str, Callable[[Sequence[Queued], Context], list[Queued]]] = {
    "fifo": fifo,
    "priority": priority,
    "fair": fair,
}


def check_order(name: object) -> str:
    """Return the name of an order; raise ValueError, naming those there are, for any other."""
    if not isinstance(name, str) or name not in ORDERS:
        raise ValueError(f"{name!r} is not an order of the queue; there are {', '.join(ORDERS)}.")
    return name


def order(name: str, waiting: Sequence[Queued], context: Context) -> list[Queued]:
    """Put the requests in the named order.  Raises ValueError for a name that does not exist."""
    compare = ORDERS[check_order(name)]
    own = [item for item in waiting if item.own]
    others = [item for item in waiting if not item.own] if own else waiting
    return compare(own, context) + compare(others, context)
