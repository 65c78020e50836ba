"""Who makes room: for a guaranteed share that is claimed back, and for who waits while GPUs idle.

Both choose the same way: candidates in their order until what is wanted would fit, then all are let go again
who turned out not to be needed.  Whether it fits is asked of ``fits``, which the caller makes of placement.
Every choice is explained, for the audit trail.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from .limits import TOLERANCE
from .orders import Queued
from .shares import Held, Share, borrowed, standing
from .words import figure, gpus_of, span

Fits = Callable[[Sequence[Queued], frozenset[str]], bool]
"""Whether all these requests would be granted, in this order, if these leases were gone.

That is a question of limits and of placement; what is ending anyway counts as gone.
"""


@dataclass(frozen=True, slots=True)
class Victim:
    """A lease that is to make room."""

    lease: str
    wanted_by: str
    """The request that it is for."""
    not_before: float
    """When it may end at the earliest: warned now, and no younger than ``min_age``."""
    why: str


@dataclass(frozen=True, slots=True)
class Room:
    """Who makes room, and which requests nobody can make room for, with the reason."""

    victims: tuple[Victim, ...] = ()
    unmet: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class _Candidate:
    held: Held
    rank: tuple[float | bool | str, ...]
    why: str


def make_room(
    claims: Sequence[Queued],
    held: Sequence[Held],
    guaranteed: Mapping[str, float],
    now: float,
    fits: Fits,
    chosen: Collection[str] = frozenset(),
) -> Room:
    """Choose the borrowed sessions that make room for claims of guaranteed shares, in the claims' order.

    Only sessions that borrow and are active are taken; claims beyond a share are left out.  ``chosen`` are
    leases that have been warned for this already: they stay first, so that a sweep does not begin again
    with somebody else.  Then come those that can go soonest (``min_age``), among them the idlest, the
    furthest over its share, the youngest.  A victim that is not named again need not go any more.
    """
    by_scope = standing(held, guaranteed)
    lent = borrowed(held, guaranteed)
    candidates = [
        _lent(item, by_scope[item.scope], now, item.lease in chosen)
        for item in held
        if item.lease in lent and item.active_at is not None
    ]
    left = {scope: share.left for scope, share in by_scope.items()}
    rightful = []
    for claim in claims:
        if 0 < claim.gpus <= left.get(claim.scope, 0.0) + TOLERANCE:
            left[claim.scope] -= claim.gpus
            rightful.append(claim)
    return _choose(rightful, candidates, now, fits, "every session that borrows would not make it fit")


def _lent(item: Held, share: Share, now: float, chosen: bool) -> _Candidate:
    late = _not_before(item, now) > now + item.warn
    rank = (not chosen, late, -item.idle_seconds, -share.over, -item.granted_at, item.lease)
    whose = item.scope.replace(":", " ", 1)
    owns = f"its share of {gpus_of(share.guaranteed)}" if share.guaranteed else "no guaranteed share"
    why = (
        f"it borrows: {whose} holds {gpus_of(share.held)} of {owns}, {figure(share.over)} over; "
        f"{_idle(item)}{', and was warned already' if chosen else ''}"
    )
    return _Candidate(item, rank, why)


def victims(
    wants: Sequence[Queued],
    held: Sequence[Held],
    portion: Mapping[str, float],
    now: float,
    fits: Fits,
    chosen: Collection[str] = frozenset(),
) -> Room:
    """Choose which idle sessions end because somebody waits (``when: "wanted"``), in the queue's order.

    Only sessions idle for their whole ``window`` are taken, the highest score first: idle time × how far the
    scope is over its portion of the pool (held / portion, as :func:`~.shares.portions` gives it).
    """
    by_scope = standing(held, {})
    candidates = [
        _wanted(item, by_scope[item.scope].held, portion.get(item.scope, 0.0), item.lease in chosen)
        for item in held
        if item.gpus > 0 and item.active_at is not None and item.idle_seconds >= item.window
    ]
    return _choose(wants, candidates, now, fits, "every session that is idle would not make it fit")


def _wanted(item: Held, holds: float, portion: float, chosen: bool) -> _Candidate:
    over = holds / portion if portion > 0 else holds
    score = item.idle_seconds * over
    rank = (not chosen, -score, -item.granted_at, item.lease)
    whose = item.scope.replace(":", " ", 1)
    why = (
        f"{_idle(item)}, and {whose} holds {gpus_of(holds)} where its portion is {gpus_of(portion)}: "
        f"score {figure(item.idle_seconds)} s × {figure(over)} = {figure(score)}"
        f"{', and was warned already' if chosen else ''}"
    )
    return _Candidate(item, rank, why)


def _idle(item: Held) -> str:
    return f"idle for {span(item.idle_seconds)}" if item.idle_seconds > 0 else "not idle"


def _not_before(item: Held, now: float) -> float:
    return max(now + item.warn, (now if item.active_at is None else item.active_at) + item.min_age)


def _choose(
    wants: Sequence[Queued], candidates: Sequence[_Candidate], now: float, fits: Fits, why_not: str
) -> Room:
    """Serve the wants one by one, each with as few more victims as their order allows."""
    ranked = sorted(candidates, key=lambda item: item.rank)
    served: list[Queued] = []
    gone: list[_Candidate] = []
    found: list[Victim] = []
    unmet: list[tuple[str, str]] = []
    for want in wants:
        together = [*served, want]
        base = frozenset(item.held.lease for item in gone)
        rest = [item for item in ranked if item.held.lease not in base]
        picked = _fewest(together, base, rest, fits)
        if picked is None:
            unmet.append((want.lease, why_not))
            continue
        served.append(want)
        gone += picked
        for item in picked:
            # Its owner reads it too, and need not know who somebody else is: the audit trail has the request.
            why = f"{gpus_of(want.gpus)} wanted by request {want.lease}{_of_group(want)}: {item.why}"
            found.append(Victim(item.held.lease, want.lease, _not_before(item.held, now), why))
    return Room(tuple(found), tuple(unmet))


def _of_group(want: Queued) -> str:
    return f" for the share of {want.group}" if want.own else ""


def _fewest(
    wants: Sequence[Queued], base: frozenset[str], rest: Sequence[_Candidate], fits: Fits
) -> list[_Candidate] | None:
    """The shortest run of the candidates that makes it fit, less those it does not need; None: none does."""
    leases = [item.held.lease for item in rest]

    def enough(count: int) -> bool:
        return fits(wants, base.union(leases[:count]))

    count = bisect_left(range(len(rest) + 1), True, key=enough)
    if count > len(rest):
        return None
    kept = list(rest[:count])
    for item in reversed(rest[:count]):
        less = [other for other in kept if other is not item]
        if fits(wants, base.union(other.held.lease for other in less)):
            kept = less
    return kept
