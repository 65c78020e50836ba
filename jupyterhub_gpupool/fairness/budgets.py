"""Budgets: GPU-hours in a sliding window, who has how many left, and when a start will work again.

The window slides: what was used leaves the sum when it is older than the window, so a budget comes back bit
by bit and not at midnight.  Slurm's ``GrpTRESMins`` counts GPU time in the same way but lets it decay; the
window is what a person can check with a calendar.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from ..errors import Unavailable
from ..model import Limit
from .limits import NO_LIMIT, POOL, TOLERANCE, groups_with, most_guaranteed, user_limit
from .words import figure, moment, span

HOUR = 3600.0
WARN_AT = 0.8
"""Part of a budget that is used when its owner is warned."""


@dataclass(frozen=True, slots=True)
class Span:
    """GPU-equivalents held from ``start`` to ``end`` (None: still held)."""

    start: float
    end: float | None
    gpus: float


Used = float | Sequence[Span]
"""GPU-hours used in the window as a sum, or what they are made of: only this tells when some come back."""


class BudgetState(StrEnum):
    """How a budget stands."""

    OK = "ok"
    WARNED = "warned"
    EXHAUSTED = "exhausted"


@dataclass(frozen=True, slots=True)
class Budget:
    """What is left of the budget that decides for a person; hours are GPU-hours."""

    state: BudgetState = BudgetState.OK
    scope: str = ""
    """Whose budget it is; empty: nobody limits."""
    hours: float = math.inf
    used: float = 0.0
    window: float = 0.0
    again_at: float | None = None
    """When an exhausted budget has hours again, if what runs ends now; None: not exhausted, or unknown."""
    message: str = ""
    """For the person; empty while all is well."""

    @property
    def left(self) -> float:
        """GPU-hours left; inf where nobody limits."""
        return max(0.0, self.hours - self.used)


def hours_in(spans: Sequence[Span], now: float, window: float) -> float:
    """Sum the GPU-hours of the last ``window`` seconds; spans that go on count until now."""
    since = now - window
    return sum(_seconds(item, since, now) * item.gpus for item in spans) / HOUR


def _seconds(item: Span, since: float, now: float) -> float:
    end = now if item.end is None else min(item.end, now)
    return max(0.0, end - max(item.start, since))


def again_at(spans: Sequence[Span], hours: float, now: float, window: float) -> float | None:
    """Say when less than ``hours`` are used again, if nothing more is; None: never, as none are allowed.

    What still runs is taken to end now; so it is the earliest time.
    """
    if hours <= 0:
        return None
    over = hours_in(spans, now, window) - hours
    if over < -TOLERANCE:
        return now
    # The sum falls by each span's GPUs while the window's edge passes over it.
    since = now - window
    edges: list[tuple[float, float]] = []
    for item in spans:
        start, end = max(item.start, since), now if item.end is None else min(item.end, now)
        if end > start:
            edges += [(start, item.gpus), (end, -item.gpus)]
    at, rate, to_leave = since, 0.0, max(0.0, over) * HOUR
    for edge, change in sorted(edges):
        leaves = rate * (edge - at)
        if rate > TOLERANCE and leaves > to_leave:
            break
        to_leave, at, rate = max(0.0, to_leave - leaves), edge, rate + change
    return window + (at + to_leave / rate if rate > TOLERANCE else at)


def asked(groups: Collection[str], limits: Mapping[str, Limit]) -> list[tuple[str, Limit]]:
    """The groups whose budgets are asked, by name: strict ones, and of the others those that can be charged.

    A group that caps or guarantees is charged before one that does neither; so where one of these has a budget,
    only such budgets count.
    """
    named = groups_with("gpu_hours", groups, limits)
    charged = [item for item in named if not item[1].strict and _is_charged_first(item[1])]
    return [item for item in named if item[1].strict or item in charged or not charged]


def _is_charged_first(limit: Limit) -> bool:
    return limit.sessions is not None or limit.gpus is not None or most_guaranteed(limit) > 0


def pays(group: str, groups: Collection[str], limits: Mapping[str, Limit]) -> list[str]:
    """The groups whose budgets a lease counts against that was charged to ``group`` (empty: to none).

    Each strict one of its person's groups, and the one charged.  Where that one has no budget, every other
    budget that is asked: whichever allowed the session, it counts there.
    """
    named = groups_with("gpu_hours", {*groups, group} - {""}, limits)
    charged = [name for name, limit in named if limit.strict or name == group]
    return charged if group in charged else [name for name, _ in asked(groups, limits)]


def budget(
    user: str, groups: Collection[str], used: Mapping[str, Used], limits: Mapping[str, Limit], now: float
) -> Budget:
    """Say which budget decides for a person, and how it stands.

    ``used`` is by scope; a scope that is missing has used nothing.  The pool's and the user's budgets must
    both have hours left, and every strict group's; of the other groups' (:func:`asked`) the one with the most
    left counts.  The one that is exhausted decides, else the one with the least left.
    """
    must = [
        _stand(scope, limit, used, now)
        for scope, limit in ((POOL, limits.get(POOL, NO_LIMIT)), (f"user:{user}", user_limit(user, limits)))
        if limit.gpu_hours is not None
    ]
    named = asked(groups, limits)
    of_groups = [_stand(f"group:{name}", limit, used, now) for name, limit in named]
    must += [item for item, (_, limit) in zip(of_groups, named, strict=True) if limit.strict]
    if of_groups:
        must.append(max(of_groups, key=_generosity))
    return max(must, key=_severity, default=Budget())


def _generosity(item: Budget) -> tuple[float, float]:
    # Of several that are exhausted, the one that comes back first.
    return item.left, -(math.inf if item.again_at is None else item.again_at)


_ORDER = list(BudgetState)


def _severity(item: Budget) -> tuple[int, float, float]:
    back = math.inf if item.again_at is None else item.again_at
    return _ORDER.index(item.state), back if item.state is BudgetState.EXHAUSTED else 0.0, -item.left


def _stand(scope: str, limit: Limit, used: Mapping[str, Used], now: float) -> Budget:
    hours, window, what = limit.gpu_hours or 0.0, limit.window, used.get(scope, 0.0)
    spans = () if isinstance(what, int | float) else what
    gone = float(what) if isinstance(what, int | float) else hours_in(spans, now, window)
    if gone >= hours - TOLERANCE:
        again = again_at(spans, hours, now, window) if spans else None
        message = _exhausted(scope, hours, window, again, now)
        return Budget(BudgetState.EXHAUSTED, scope, hours, gone, window, again, message)
    if gone >= WARN_AT * hours:
        message = (
            f"{_owner(scope)} has used {figure(gone)} of {figure(hours)} GPU-hours in {span(window)}; "
            f"{figure(hours - gone)} are left."
        )
        return Budget(BudgetState.WARNED, scope, hours, gone, window, message=message)
    return Budget(BudgetState.OK, scope, hours, gone, window)


def _owner(scope: str) -> str:
    kind, _, name = scope.partition(":")
    return f"{kind.capitalize()} {name}" if name else "The pool"


def _exhausted(scope: str, hours: float, window: float, again: float | None, now: float) -> str:
    if hours <= 0:
        return f"{_owner(scope)} is allowed no GPU-hours at all."
    text = f"{_owner(scope)} has used all of its {figure(hours)} GPU-hours in {span(window)}"
    if again is None:
        return f"{text}; a start works again when enough of it is older than {span(window)}."
    return f"{text}; a start works again in {span(max(0.0, again - now))} ({moment(again)}) at the earliest."


def check_budget(
    user: str,
    groups: Collection[str],
    gpus: float,
    used: Mapping[str, Used],
    limits: Mapping[str, Limit],
    now: float,
) -> Budget:
    """Return the budget that decides; raise Unavailable (``budget``, 429) when it is exhausted.

    What needs no GPU needs no budget.
    """
    found = budget(user, groups, used, limits, now)
    if found.state is BudgetState.EXHAUSTED and gpus > 0:
        raise Unavailable(found.message, reason="budget", status=429)
    return found
