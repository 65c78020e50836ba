"""Who may have how much: limits on sessions, GPU-equivalents and waiting requests.

Pure: limits and usage come in as arguments.  A limit belongs to a scope: ``pool``, ``group:NAME``,
``user:NAME``, or ``user:*`` for every user.  The pool's and the user's limits must both hold; of a user's
groups the most generous one with room is charged.  The queue itself is first come, first served.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import Rejected, Unavailable
from .model import Limit

POOL = "pool"
EVERY_USER = "user:*"
MOST = 1_000_000
"""Largest figure a limit may name; who wants no limit leaves the key out."""

_TOLERANCE = 1e-9  # GPU-equivalents are sums of fractions: three thirds must fit into one
_WHOLE = f"a whole number from 0 to {MOST}"
_ALLOWED = {"sessions": _WHOLE, "gpus": f"a number from 0 to {MOST} (GPU-equivalents)", "queued": _WHOLE}
_NONE = Limit()


@dataclass(frozen=True, slots=True)
class Usage:
    """What a scope has now: sessions and GPU-equivalents held, requests in the queue."""

    sessions: int = 0
    gpus: float = 0.0
    queued: int = 0


@dataclass(frozen=True, slots=True)
class Admission:
    """Whether the limits let a lease be granted now, against which group, or why not."""

    allowed: bool
    group: str = ""
    why: str = ""
    room: float = math.inf
    """GPU-equivalents that the limits would let this one lease hold; 0 when it is not allowed."""


def read_limits(raw: Mapping[str, Mapping[str, Any]]) -> dict[str, Limit]:
    """Read the setting ``GPUPool.limits``.

    Raises ValueError with a sentence that names scope and key and says what is allowed.
    """
    if not isinstance(raw, Mapping):
        raise ValueError(f"GPUPool.limits: {_short(raw)} is not a dictionary from scope to limits.")
    found: dict[str, Limit] = {}
    for scope, keys in raw.items():
        _check_scope(scope)
        if not isinstance(keys, Mapping):
            raise ValueError(
                f"GPUPool.limits[{scope!r}]: {_short(keys)} is not a dictionary; "
                f"its keys are {', '.join(_ALLOWED)}."
            )
        for key, value in keys.items():
            _check_value(scope, key, value)
        found[scope] = Limit(**keys)
    return found


def _check_scope(scope: object) -> None:
    if isinstance(scope, str):
        kind, _, name = scope.partition(":")
        named = bool(name) and name == name.strip()
        if scope == POOL or (kind == "user" and named) or (kind == "group" and named and name != "*"):
            return
    raise ValueError(
        f"GPUPool.limits: {_short(scope)} is not a scope; scopes are pool, group:NAME, user:NAME, user:*."
    )


def _check_value(scope: str, key: object, value: object) -> None:
    if not isinstance(key, str) or key not in _ALLOWED:
        raise ValueError(
            f"GPUPool.limits[{scope!r}]: unknown key {_short(key)}; keys are {', '.join(_ALLOWED)}."
        )
    kinds = (int, float) if key == "gpus" else int
    good = isinstance(value, kinds) and not isinstance(value, bool)
    # NaN fails the comparison, so the range is asked for, not its opposite.
    if not (good and isinstance(value, int | float) and 0 <= value <= MOST):
        raise ValueError(
            f"GPUPool.limits[{scope!r}]: {key} is {_short(value)}; it must be {_ALLOWED[key]}. "
            "Leave the key out for no limit."
        )


def _short(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**30:
        return "a huge number"  # Python refuses to print the largest ones
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def user_limit(user: str, limits: Mapping[str, Limit]) -> Limit:
    """The limit of a user: ``user:NAME`` over ``user:*``, key by key."""
    own, every = limits.get(f"user:{user}", _NONE), limits.get(EVERY_USER, _NONE)
    return Limit(
        sessions=every.sessions if own.sessions is None else own.sessions,
        gpus=every.gpus if own.gpus is None else own.gpus,
        queued=every.queued if own.queued is None else own.queued,
    )


def check_ever(user: str, groups: Collection[str], gpus: float, limits: Mapping[str, Limit]) -> None:
    """Raise Rejected (``over-limit``, 403) when even an empty pool would not let the user have ``gpus``."""
    nothing = Usage()
    reasons = []
    for name, limit in (("the pool", limits.get(POOL, _NONE)), (_whose(user), user_limit(user, limits))):
        if _blocked(limit, nothing, gpus):
            reasons.append(_never(name, limit, gpus))
            break
    charged = _charged(groups, limits)
    if not reasons and charged and all(_blocked(limits[f"group:{g}"], nothing, gpus) for g in charged):
        reasons = [_never(f"group {g}", limits[f"group:{g}"], gpus) for g in charged]
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

    Only groups with a limit on waiting requests count.
    """
    own = user_limit(user, limits)
    full = ""
    if _full(limits.get(POOL, _NONE), usage, POOL):
        full = f"the pool lets at most {_requests(limits[POOL].queued)} wait"
    elif _full(own, usage, f"user:{user}"):
        full = f"{_whose(user)} may have at most {_requests(own.queued)} waiting"
    else:
        limited = [g for g in sorted(set(groups)) if limits.get(f"group:{g}", _NONE).queued is not None]
        if limited and all(_full(limits[f"group:{g}"], usage, f"group:{g}") for g in limited):
            full = ", and ".join(
                f"group {g} may have at most {_requests(limits[f'group:{g}'].queued)} waiting"
                for g in limited
            )
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
) -> Admission:
    """Say whether the limits let a lease of ``gpus`` GPU-equivalents be granted now.

    ``usage`` is by scope (``pool``, ``user:ada``, ``group:vision``); a scope that is missing holds nothing.
    Among the user's groups that limit sessions or GPUs, the one with the most GPUs left is charged (then
    most sessions left, then by name); a user without such a group is charged to none.
    """
    room = math.inf
    own = user_limit(user, limits)
    for scope, limit in ((POOL, limits.get(POOL, _NONE)), (f"user:{user}", own)):
        used = usage.get(scope, Usage())
        what = _blocked(limit, used, gpus)
        if what and scope == POOL:
            return Admission(False, why=f"the pool {_holds(what, limit, used, gpus)}", room=0.0)
        if what:
            return Admission(False, why=_waits(what, limit, used, gpus), room=0.0)
        room = min(room, _left(limit, used)[0])
    charged = _charged(groups, limits)
    if not charged:
        return Admission(True, room=room)
    best, blocked = None, []
    for name in charged:
        limit, used = limits[f"group:{name}"], usage.get(f"group:{name}", Usage())
        what = _blocked(limit, used, gpus)
        if what:
            blocked.append(f"group {name} {_holds(what, limit, used, gpus)}")
        elif best is None or _left(limit, used) > best[0]:
            best = (_left(limit, used), name)
    if best is None:
        return Admission(False, why=" and ".join(blocked), room=0.0)
    return Admission(True, group=best[1], room=min(room, best[0][0]))


def _charged(groups: Collection[str], limits: Mapping[str, Limit]) -> list[str]:
    """The user's groups that limit sessions or GPUs, by name."""
    found = []
    for group in sorted(set(groups)):
        limit = limits.get(f"group:{group}")
        if limit is not None and (limit.sessions is not None or limit.gpus is not None):
            found.append(group)
    return found


def _blocked(limit: Limit, used: Usage, gpus: float) -> str:
    """Which key of the limit stands in the way of one more session with ``gpus``; empty when none does."""
    if limit.sessions is not None and used.sessions + 1 > limit.sessions:
        return "sessions"
    if limit.gpus is not None and used.gpus + gpus > limit.gpus + _TOLERANCE and gpus > 0:
        return "gpus"
    return ""


def _left(limit: Limit, used: Usage) -> tuple[float, float]:
    """GPU-equivalents and sessions left under a limit; inf where it names none."""
    gpus = math.inf if limit.gpus is None else max(0.0, limit.gpus - used.gpus)
    return gpus, math.inf if limit.sessions is None else limit.sessions - used.sessions


def _full(limit: Limit, usage: Mapping[str, Usage], scope: str) -> bool:
    return limit.queued is not None and usage.get(scope, Usage()).queued >= limit.queued


def _whose(user: str) -> str:
    return f"user {user}"


def _figure(value: float) -> str:
    return f"{round(value, 2):g}"


def _gpus(value: float | None) -> str:
    text = _figure(value or 0.0)
    return f"{text} GPU" if text == "1" else f"{text} GPUs"


def _sessions(value: int | None) -> str:
    return "1 session" if value == 1 else f"{value} sessions"


def _requests(value: int | None) -> str:
    return "1 request" if value == 1 else f"{value} requests"


def _never(name: str, limit: Limit, gpus: float) -> str:
    if _blocked(limit, Usage(), gpus) == "sessions":
        return f"{name} is allowed no session at all"
    return f"{name} is allowed {_gpus(limit.gpus)} at once, and this needs {_gpus(gpus)}"


def _holds(what: str, limit: Limit, used: Usage, gpus: float) -> str:
    if what == "sessions":
        return f"holds {used.sessions} of its {_sessions(limit.sessions)}"
    text = f"holds {_figure(used.gpus)} of its {_gpus(limit.gpus)}"
    partly = used.gpus < (limit.gpus or 0.0) - _TOLERANCE
    return f"{text}, and this needs {_gpus(gpus)}" if partly else text


def _waits(what: str, limit: Limit, used: Usage, gpus: float) -> str:
    if what == "sessions":
        return f"waits for your own limit of {_sessions(limit.sessions)}"
    return (
        f"waits for your own limit of {_gpus(limit.gpus)}: you hold {_figure(used.gpus)}, "
        f"and this needs {_gpus(gpus)}"
    )
