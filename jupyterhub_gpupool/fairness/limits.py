"""Read, check and write limits: what a scope may name, and which figures make sense.

A limit belongs to a scope: ``pool``, ``group:NAME``, ``user:NAME``, or ``user:*`` for every user.  Whatever is
odd raises ValueError with one sentence that names scope and key and says what is allowed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

from ..model import Limit
from .words import figure, gpus_of, moment, short

POOL = "pool"
EVERY_USER = "user:*"
MOST = 1_000_000
"""Largest figure a limit may name; who wants no limit leaves the key out."""
MOST_SECONDS = 10 * 365 * 86400
MOST_PRIORITY = 100
USUAL_PRIORITY = 10
"""The priority of whom no limit gives another: there is room above it and below."""
LONGEST_NAME = 255
TOLERANCE = 1e-9
"""GPU-equivalents are sums of fractions: three thirds must fit into one."""

NO_LIMIT = Limit()


class _Odd(Exception):
    """The value is not what the key takes; with a text, why."""


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST:
        raise _Odd
    return value


def _number(value: object) -> float:
    # NaN fails the comparison, so the range is asked for, not its opposite.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MOST:
        raise _Odd
    return value


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= MOST_SECONDS:
        raise _Odd
    return value


def _priority(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_PRIORITY:
        raise _Odd
    return value


def _truth(value: object) -> bool:
    if not isinstance(value, bool):
        raise _Odd
    return value


def _slugs(value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(slug, str) and slug for slug in value):
        raise _Odd
    return tuple(dict.fromkeys(value))


def _reservations(value: object) -> tuple[tuple[float, float, float], ...]:
    if not isinstance(value, list | tuple):
        raise _Odd
    found = sorted((_reservation(item) for item in value), key=lambda item: item[1])
    for one, other in pairwise(found):
        if other[1] < one[2]:
            raise _Odd(
                f"two of its reservations overlap: one ends {moment(one[2])}, "
                f"the next starts {moment(other[1])}"
            )
    return tuple(found)


def _reservation(value: object) -> tuple[float, float, float]:
    if not isinstance(value, Mapping) or set(value) != {"gpus", "start", "end"}:
        raise _Odd(f"the reservation {short(value)} does not have exactly the keys gpus, start, end")
    try:
        gpus = _number(value["gpus"])
    except _Odd:
        raise _Odd(
            f"gpus of a reservation is {short(value['gpus'])}; it must be a number from 0 to {MOST}"
        ) from None
    start, end = _time(value, "start"), _time(value, "end")
    if end <= start:
        raise _Odd(f"a reservation ends {moment(end)}, which is not after its start {moment(start)}")
    return gpus, start, end


def _time(value: Mapping[str, object], key: str) -> float:
    text = value[key]
    try:
        at = datetime.fromisoformat(text) if isinstance(text, str) else None
        if at is not None and at.tzinfo is not None:
            return at.astimezone(UTC).timestamp()  # a year that UTC has not could not be written again
    except (ValueError, OverflowError):
        at = None
    raise _Odd(
        f"{key} of a reservation is {short(text)}; it must be an ISO 8601 time with its zone, "
        "such as 2026-06-01T09:00+02:00"
    )


@dataclass(frozen=True, slots=True)
class _Key:
    allowed: str
    read: Callable[[object], Any]
    kinds: tuple[str, ...] = ("pool", "user", "group")


_WHOLE = f"a whole number from 0 to {MOST}"
_GPUS = f"a number from 0 to {MOST} (GPU-equivalents)"
_SECONDS = f"a number of seconds from 1 to {MOST_SECONDS}"
KEYS: Mapping[str, _Key] = {
    "sessions": _Key(_WHOLE, _whole),
    "gpus": _Key(_GPUS, _number),
    "queued": _Key(_WHOLE, _whole),
    "gpu_hours": _Key(f"a number from 0 to {MOST} (GPU-hours in each window)", _number),
    "window": _Key(_SECONDS, _seconds),
    "max_age": _Key(_SECONDS, _seconds),
    "profiles": _Key("a list of profiles' slugs", _slugs),
    "priority": _Key(f"a whole number from 1 to {MOST_PRIORITY}", _priority, ("user", "group")),
    "strict": _Key("True or False", _truth, ("group",)),
    "guaranteed_gpus": _Key(_GPUS, _number, ("group",)),
    "reservations": _Key('a list of {"gpus": …, "start": …, "end": …}', _reservations, ("group",)),
}
"""What a limit may name."""


def read_limits(raw: Mapping[str, Mapping[str, Any]]) -> dict[str, Limit]:
    """Read the setting ``GPUPool.limits``.

    Raises ValueError with a sentence that names scope and key and says what is allowed.
    """
    if not isinstance(raw, Mapping):
        raise ValueError(f"GPUPool.limits: {short(raw)} is not a dictionary from scope to limits.")
    return {scope: read_limit(scope, keys) for scope, keys in raw.items()}


def read_limit(scope: str, keys: Mapping[str, Any]) -> Limit:
    """Read the limit of one scope; raises ValueError as :func:`read_limits` does."""
    check_scope(scope)
    where = f"GPUPool.limits[{short(scope)}]"
    if not isinstance(keys, Mapping):
        raise ValueError(f"{where}: {short(keys)} is not a dictionary; its keys are {', '.join(KEYS)}.")
    found: dict[str, Any] = {}
    for key, value in keys.items():
        found[key] = _read_key(where, scope.partition(":")[0], key, value)
    if "window" in found and "gpu_hours" not in found:
        raise ValueError(f"{where}: window says for how long gpu_hours are counted, and there are none.")
    limit = Limit(**found)
    most = most_guaranteed(limit)
    if limit.gpus is not None and most > limit.gpus + TOLERANCE:
        raise ValueError(
            f"{where}: {gpus_of(most)} are guaranteed, more than the {gpus_of(limit.gpus)} that it allows."
        )
    return limit


def _read_key(where: str, kind: str, key: object, value: object) -> Any:
    if not isinstance(key, str) or key not in KEYS:
        raise ValueError(f"{where}: unknown key {short(key)}; keys are {', '.join(KEYS)}.")
    rule = KEYS[key]
    if kind not in rule.kinds:
        raise ValueError(f"{where}: {key} belongs to the scopes of a {' or a '.join(rule.kinds)}.")
    try:
        return rule.read(value)
    except _Odd as odd:
        if str(odd):
            raise ValueError(f"{where}: {odd}.") from None
        raise ValueError(
            f"{where}: {key} is {short(value)}; it must be {rule.allowed}. Leave the key out for no limit."
        ) from None


def check_scope(scope: object) -> None:
    """Raise ValueError for what is no scope, or names somebody with odd characters."""
    if isinstance(scope, str):
        kind, _, name = scope.partition(":")
        named = bool(name) and name == name.strip() and name.isprintable() and len(name) <= LONGEST_NAME
        if scope == POOL or (kind == "user" and named) or (kind == "group" and named and name != "*"):
            return
    raise ValueError(
        f"GPUPool.limits: {short(scope)} is not a scope; scopes are pool, group:NAME, user:NAME, user:*, "
        f"where NAME has 1 to {LONGEST_NAME} printable characters."
    )


def write_limit(limit: Limit) -> dict[str, Any]:
    """Write a limit as :func:`read_limit` reads it; what is not set is left out."""
    written: dict[str, Any] = {}
    for item in fields(limit):
        value = getattr(limit, item.name)
        if value != item.default and value is not None:
            written[item.name] = list(value) if isinstance(value, tuple) else value
    if limit.reservations:
        written["reservations"] = [
            {"gpus": gpus, "start": _iso(start), "end": _iso(end)} for gpus, start, end in limit.reservations
        ]
    if limit.gpu_hours is None:
        written.pop("window", None)
    return written


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat()


def guarantees(limits: Mapping[str, Limit], now: float) -> dict[str, float]:
    """Say how many GPU-equivalents each group is guaranteed now: its own, and its reservation while it runs."""
    found: dict[str, float] = {}
    for scope, limit in limits.items():
        kind, _, name = scope.partition(":")
        if kind == "group":
            booked = sum(gpus for gpus, start, end in limit.reservations if start <= now < end)
            if limit.guaranteed_gpus is not None or booked:
                found[name] = (limit.guaranteed_gpus or 0.0) + booked
    return found


def changes_guarantees(scope: str, limit: Limit) -> bool:
    """Whether a limit adds to what the pool must have, or takes from what it has.

    Any other is possible also while more is guaranteed than there is.
    """
    return bool(limit.guaranteed_gpus or limit.reservations) or (scope == POOL and limit.gpus is not None)


def most_guaranteed(limit: Limit) -> float:
    """GPU-equivalents that a group's limit guarantees it at most, at whatever time."""
    return (limit.guaranteed_gpus or 0.0) + max((gpus for gpus, _, _ in limit.reservations), default=0.0)


def next_change(limits: Mapping[str, Limit], now: float) -> float | None:
    """Say when the guarantees change next: a reservation starts or ends; None: never by themselves."""
    times = [at for limit in limits.values() for _, start, end in limit.reservations for at in (start, end)]
    return min((at for at in times if at > now), default=None)


def check_shares(limits: Mapping[str, Limit], pool_gpus: float, now: float = -math.inf) -> None:
    """Raise ValueError, with the sum, when more is guaranteed at some time than the pool has.

    ``pool_gpus`` are GPU-equivalents of all its devices; what the pool's own limit allows counts where it
    is less.  Reservations that have ended by ``now`` do not count.
    """
    allowed = limits.get(POOL, NO_LIMIT).gpus
    most = pool_gpus if allowed is None else min(pool_gpus, allowed)
    starts = [start for limit in limits.values() for _, start, end in limit.reservations if end > now]
    for at in sorted({now, *(max(now, start) for start in starts)}):
        named = {group: gpus for group, gpus in sorted(guarantees(limits, at).items()) if gpus}
        total = sum(named.values())
        if total > most + TOLERANCE:
            parts = ", ".join(f"{figure(gpus)} to {group}" for group, gpus in named.items())
            then = f" from {moment(at)} on" if at > now else ""
            raise ValueError(
                f"GPUPool.limits: {gpus_of(total)} are guaranteed{then} ({parts}), "
                f"and the pool has {gpus_of(most)}."
            )


def warnings(
    limits: Mapping[str, Limit],
    groups: Collection[str] | None = None,
    slugs: Collection[str] | None = None,
    now: float = -math.inf,
) -> list[str]:
    """Name what is probably a slip, and is no error since it may become right later; a sentence each.

    ``groups`` and ``slugs`` are those that there are; None: not known, nothing is said about them.
    """
    found = []
    for scope, limit in limits.items():
        kind, _, name = scope.partition(":")
        if groups is not None and kind == "group" and name not in groups:
            found.append(f"{scope}: there is no group {name} yet.")
        for slug in limit.profiles or ():
            if slugs is not None and slug not in slugs:
                found.append(f"{scope}: there is no profile {slug}.")
        over = [item for item in limit.reservations if item[2] <= now]
        if over:
            found.append(f"{scope}: a reservation is over since {moment(over[-1][2])}.")
    return found


def user_limit(user: str, limits: Mapping[str, Limit]) -> Limit:
    """The limit of a user: ``user:NAME`` over ``user:*``, key by key (``window`` goes with its hours)."""
    own, every = limits.get(f"user:{user}"), limits.get(EVERY_USER)
    if own is None or every is None:
        return own or every or NO_LIMIT
    set_here = {
        item.name: getattr(own, item.name)
        for item in fields(own)
        if item.name != "window" and getattr(own, item.name) != item.default
    }
    window = own.window if own.gpu_hours is not None else every.window
    return replace(every, **set_here, window=window)


def groups_with(key: str, groups: Iterable[str], limits: Mapping[str, Limit]) -> list[tuple[str, Limit]]:
    """The groups whose limit names the key, by name; the others have no say in it."""
    found = ((group, limits.get(f"group:{group}")) for group in sorted(set(groups)))
    return [(group, limit) for group, limit in found if limit is not None and getattr(limit, key) is not None]
