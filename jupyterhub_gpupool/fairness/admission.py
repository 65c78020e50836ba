"""Who may have how much now: caps on sessions, GPU-equivalents and waiting requests.

The pool's and the user's caps must both hold.  Of a user's groups that cap, the most generous one with room
decides; one whose limit says ``strict`` must hold as well.  What fits into the guaranteed share of one of the
groups needs no room under another one's cap: the share is the group's own.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ..errors import Rejected, Unavailable
from ..model import Limit
from .limits import NO_LIMIT, POOL, TOLERANCE, USUAL_PRIORITY, groups_with, most_guaranteed, user_limit
from .words import count_of, figure, gpus_of, whose


@dataclass(frozen=True, slots=True)
class Usage:
    """What a scope has now: sessions and GPU-equivalents held, requests in the queue."""

    sessions: int = 0
    gpus: float = 0.0
    queued: int = 0


class Admission(NamedTuple):
    """Whether the limits let a lease be granted now, against which group, or why not."""

    allowed: bool
    group: str = ""
    """The group that is charged; empty: none."""
    why: str = ""
    room: float = math.inf
    """GPU-equivalents that the limits would let this one lease hold; 0 when it is not allowed."""
    decided: str = ""
    """The group whose limit decided; empty: no group has a say."""
    own: bool = False
    """Whether it fits into the guaranteed share of ``group``, even where the pool's cap is in the way."""


@dataclass(frozen=True, slots=True)
class Holds:
    """A lease that holds slices, as far as limits count it."""

    user: str
    groups: Collection[str]
    group: str
    """The group that was charged."""
    gpus: float


_NOTHING = Usage()
_REFUSED = Admission(False)


def tally(
    held: Iterable[Holds], limits: Mapping[str, Limit], queued: Iterable[tuple[str, Collection[str]]] = ()
) -> dict[str, Usage]:
    """Count what each scope has, as :func:`admit` and :func:`check_queue` want it.

    A session counts for the pool, its user and the group that was charged; for a strict group each session
    of a member counts, whichever group was charged.  ``queued`` are (user, groups) of those who wait; they
    count for each of their groups.
    """
    found: dict[str, Usage] = {}

    def add(scope: str, sessions: int, gpus: float, waiting: int) -> None:
        was = found.get(scope, _NOTHING)
        found[scope] = Usage(was.sessions + sessions, was.gpus + gpus, was.queued + waiting)

    strict = {scope[6:] for scope, limit in limits.items() if limit.strict and scope.startswith("group:")}
    for item in held:
        counted = {item.group, *strict.intersection(item.groups)} - {""}
        for scope in (POOL, f"user:{item.user}", *(f"group:{name}" for name in counted)):
            add(scope, 1, item.gpus, 0)
    for user, groups in queued:
        for scope in (POOL, f"user:{user}", *(f"group:{name}" for name in set(groups))):
            add(scope, 0, 0.0, 1)
    return found


def over_limits(usage: Mapping[str, Usage], limits: Mapping[str, Limit]) -> dict[str, str]:
    """Name the scopes that hold more than they may, in words: a limit was lowered below use.

    Nobody is ended for it; nothing more is granted until it fits again.
    """
    found = {}
    for scope, used in usage.items():
        limit = limits.get(scope, NO_LIMIT)
        if scope.startswith("user:"):
            limit = user_limit(scope[5:], limits)
        if limit.sessions is not None and used.sessions > limit.sessions:
            found[scope] = f"over limit: {_holds('sessions', limit, used, 0.0)}"
        elif limit.gpus is not None and used.gpus > limit.gpus + TOLERANCE:
            found[scope] = f"over limit: {_holds('gpus', limit, used, 0.0)}"
    return found


def check_ever(user: str, groups: Collection[str], gpus: float, limits: Mapping[str, Limit]) -> None:
    """Raise Rejected (``over-limit``, 403) when even an empty pool would not let the user have ``gpus``."""
    reasons = []
    must = [("the pool", limits.get(POOL, NO_LIMIT)), (whose(user), user_limit(user, limits))]
    must += [(f"group {name}", limit) for name, limit in _strict(groups, limits)]
    for name, limit in must:
        if _blocked(limit, _NOTHING, gpus):
            reasons.append(_never(name, limit, gpus))
            break
    capping = _capping(groups, limits)
    shared = any(
        gpus <= most_guaranteed(limit) + TOLERANCE and not _blocked(limit, _NOTHING, gpus)
        for _, limit in _guaranteed(groups, limits)
    )
    if not reasons and not shared and capping and all(_blocked(item, _NOTHING, gpus) for _, item in capping):
        reasons = [_never(f"group {name}", limit, gpus) for name, limit in capping]
    if reasons:
        raise Rejected(
            f"This can never start under the limits in force: {', and '.join(reasons)}.",
            reason="over-limit",
            status=403,
        )


def check_queue(
    user: str, groups: Collection[str], usage: Mapping[str, Usage], limits: Mapping[str, Limit]
) -> None:
    """Raise Unavailable (``queue-full``, 429) when the pool, the user or all their groups may not ask more.

    Only groups with a limit on waiting requests count; a strict one that is full is enough.
    """
    own = user_limit(user, limits)
    full = ""
    limited = groups_with("queued", groups, limits)
    strict = [(name, limit) for name, limit in limited if limit.strict]
    if _full(limits.get(POOL, NO_LIMIT), usage, POOL):
        full = f"the pool lets at most {count_of(limits[POOL].queued, 'request')} wait"
    elif _full(own, usage, f"user:{user}"):
        full = f"{whose(user)} may have at most {count_of(own.queued, 'request')} waiting"
    elif blocking := [item for item in strict if _full(item[1], usage, f"group:{item[0]}")]:
        full = _each_full(blocking[:1])
    elif limited and all(_full(limit, usage, f"group:{name}") for name, limit in limited):
        full = _each_full(limited)
    if full:
        raise Unavailable(
            f"The queue is full: {full}. Try again when one has started or was given up.",
            reason="queue-full",
            status=429,
        )


def admit(
    user: str,
    groups: Collection[str],
    gpus: float,
    usage: Mapping[str, Usage],
    limits: Mapping[str, Limit],
    guaranteed: Mapping[str, float] | None = None,
    hours: Mapping[str, float] | None = None,
) -> Admission:
    """Say whether the limits let a lease of ``gpus`` GPU-equivalents be granted now.

    ``usage`` is by scope (``pool``, ``user:ada``, ``group:vision``), as :func:`tally` counts it; a scope that
    is missing holds nothing.  ``guaranteed`` is what :func:`~.limits.guarantees` says for this time.

    Charged is: the group in whose guaranteed share it fits (the most left first); else the group that
    decided; else, where no group caps, the one with the largest guarantee, from which it then borrows.
    Among the groups that cap sessions or GPUs, the one with the most GPUs left decides (then most sessions
    left, then by name); where there are strict ones, the one of them with the fewest left.  A request that
    only the pool's cap keeps from its group's share is ``own`` all the same: borrowers can make room for it.
    """
    said = among_groups(groups, gpus, usage, limits, guaranteed or {}, hours or {})
    return within(said, user, gpus, usage, limits)


def within(
    said: Admission, user: str, gpus: float, usage: Mapping[str, Usage], limits: Mapping[str, Limit]
) -> Admission:
    """Say what the user's own limit and the pool's leave of what the groups allow."""
    own, used = user_limit(user, limits), usage.get(f"user:{user}", _NOTHING)
    what = _blocked(own, used, gpus)
    if what:
        return Admission(False, why=_waits(what, own, used, gpus), room=0.0)
    room = _left(own, used)[0]
    pool, used = limits.get(POOL, NO_LIMIT), usage.get(POOL, _NOTHING)
    what = _blocked(pool, used, gpus)
    if what:
        why = f"the pool {_holds(what, pool, used, gpus)}"
        return (said if said.own else _REFUSED)._replace(allowed=False, why=why, room=0.0)
    room = min(room, _left(pool, used)[0])
    return said._replace(room=room) if room < said.room else said


def among_groups(
    groups: Collection[str],
    gpus: float,
    usage: Mapping[str, Usage],
    limits: Mapping[str, Limit],
    guaranteed: Mapping[str, float],
    hours: Mapping[str, float],
) -> Admission:
    """Say what the groups allow: the strict ones, then their shares, then the most generous."""
    spent = {name for name in groups if gpus > 0 and hours.get(name, math.inf) <= TOLERANCE}
    strictest, strict_room = "", math.inf
    capping = _capping(groups, limits)
    for name, limit in capping:
        if not limit.strict:
            continue
        used = usage.get(f"group:{name}", _NOTHING)
        what = _blocked(limit, used, gpus)
        if what:
            why = f"group {name} {_holds(what, limit, used, gpus)}"
            return _REFUSED._replace(why=why, room=0.0, decided=name)
        if not strictest or _left(limit, used)[0] < strict_room:
            strictest, strict_room = name, _left(limit, used)[0]
    shares = [
        (guaranteed[name] - usage.get(f"group:{name}", _NOTHING).gpus, name)
        for name in sorted(set(groups).intersection(guaranteed))
    ]
    best, blocked = _most_generous(capping, gpus, usage, spent)
    for left, name in sorted(shares, key=lambda item: -item[0]):
        if name in spent:
            continue
        limit, used = limits.get(f"group:{name}", NO_LIMIT), usage.get(f"group:{name}", _NOTHING)
        if gpus <= left + TOLERANCE and left > 0 and not _blocked(limit, used, gpus):
            # A lease that outgrows the share must find its room under the caps like any other.
            wider = best[0][0] if best else 0.0 if blocked else math.inf
            room = min(_left(limit, used)[0], max(left, wider), strict_room)
            return Admission(True, name, room=room, decided=strictest or name, own=gpus > 0)
    if blocked and best is None:
        return Admission(False, why=" and ".join(blocked), room=0.0)
    if best is not None:
        decided = strictest or best[1]
        return Admission(True, decided, room=min(best[0][0], strict_room), decided=decided)
    if shares:
        return Admission(True, max((name not in spent, guaranteed[name], name) for _, name in shares)[2])
    return _without_caps(groups, limits, hours)


def _without_caps(
    groups: Collection[str], limits: Mapping[str, Limit], hours: Mapping[str, float]
) -> Admission:
    """Charge somebody although no group caps or guarantees: for budgets, books and the order ``fair``."""
    budgets = [name for name, _ in groups_with("gpu_hours", groups, limits)]
    if budgets:
        payer = max(budgets, key=lambda name: hours.get(name, math.inf))
        return Admission(True, payer, decided=payer)
    named = [name for name in sorted(set(groups)) if f"group:{name}" in limits]
    weights = {name: limits[f"group:{name}"].priority or USUAL_PRIORITY for name in named}
    return Admission(True, max(named, key=weights.__getitem__, default=""))


def _most_generous(
    capping: Iterable[tuple[str, Limit]], gpus: float, usage: Mapping[str, Usage], spent: Collection[str]
) -> tuple[tuple[tuple[float, float], str] | None, list[str]]:
    """What the most generous group with room has left, and its name; and why the others have no room."""
    best: tuple[tuple[float, float], str] | None = None
    blocked = []
    for name, limit in capping:
        used = usage.get(f"group:{name}", _NOTHING)
        what = _blocked(limit, used, gpus)
        if what:
            blocked.append(f"group {name} {_holds(what, limit, used, gpus)}")
        elif name in spent:
            blocked.append(f"group {name} has no GPU-hours left")
        elif best is None or _left(limit, used) > best[0]:
            best = (_left(limit, used), name)
    return best, blocked


def _capping(groups: Collection[str], limits: Mapping[str, Limit]) -> list[tuple[str, Limit]]:
    """The user's groups that cap sessions or GPUs, by name."""
    found = ((name, limits.get(f"group:{name}", NO_LIMIT)) for name in sorted(set(groups)))
    return [(name, limit) for name, limit in found if limit.sessions is not None or limit.gpus is not None]


def _strict(groups: Collection[str], limits: Mapping[str, Limit]) -> list[tuple[str, Limit]]:
    return [(name, limit) for name, limit in _capping(groups, limits) if limit.strict]


def _guaranteed(groups: Collection[str], limits: Mapping[str, Limit]) -> list[tuple[str, Limit]]:
    found = ((name, limits.get(f"group:{name}", NO_LIMIT)) for name in sorted(set(groups)))
    return [(name, limit) for name, limit in found if most_guaranteed(limit) > 0]


def _blocked(limit: Limit, used: Usage, gpus: float) -> str:
    """Which key of the limit stands in the way of one more session with ``gpus``; empty when none does."""
    if limit.sessions is not None and used.sessions + 1 > limit.sessions:
        return "sessions"
    if limit.gpus is not None and used.gpus + gpus > limit.gpus + TOLERANCE and gpus > 0:
        return "gpus"
    return ""


def _left(limit: Limit, used: Usage) -> tuple[float, float]:
    """GPU-equivalents and sessions left under a limit; inf where it names none."""
    gpus = math.inf if limit.gpus is None else max(0.0, limit.gpus - used.gpus)
    return gpus, math.inf if limit.sessions is None else limit.sessions - used.sessions


def _full(limit: Limit, usage: Mapping[str, Usage], scope: str) -> bool:
    return limit.queued is not None and usage.get(scope, _NOTHING).queued >= limit.queued


def _each_full(limited: Iterable[tuple[str, Limit]]) -> str:
    return ", and ".join(
        f"group {name} may have at most {count_of(limit.queued, 'request')} waiting"
        for name, limit in limited
    )


def _never(name: str, limit: Limit, gpus: float) -> str:
    if _blocked(limit, _NOTHING, gpus) == "sessions":
        return f"{name} is allowed no session at all"
    return f"{name} is allowed {gpus_of(limit.gpus)} at once, and this needs {gpus_of(gpus)}"


def _holds(what: str, limit: Limit, used: Usage, gpus: float) -> str:
    if what == "sessions":
        return f"holds {used.sessions} of its {count_of(limit.sessions, 'session')}"
    text = f"holds {figure(used.gpus)} of its {gpus_of(limit.gpus)}"
    partly = used.gpus < (limit.gpus or 0.0) - TOLERANCE
    return f"{text}, and this needs {gpus_of(gpus)}" if partly else text


def _waits(what: str, limit: Limit, used: Usage, gpus: float) -> str:
    if what == "sessions":
        return f"waits for your own limit of {count_of(limit.sessions, 'session')}"
    return (
        f"waits for your own limit of {gpus_of(limit.gpus)}: you hold {figure(used.gpus)}, "
        f"and this needs {gpus_of(gpus)}"
    )
