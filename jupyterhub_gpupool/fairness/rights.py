"""What a person may have by their limits besides GPUs: profiles, the age of a session, priority.

The pool's and the user's own word hold.  Of the groups that say something the most generous one wins, unless
one is strict: then the strictest of these holds.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ..errors import Rejected
from ..model import Limit
from .limits import EVERY_USER, NO_LIMIT, POOL, USUAL_PRIORITY, groups_with, user_limit
from .words import whose


@dataclass(frozen=True, slots=True)
class MaxAge:
    """How old a session may get; ``seconds`` 0: no end by age.  ``decided`` names the scope that says so."""

    seconds: float
    decided: str = ""


@dataclass(frozen=True, slots=True)
class Profiles:
    """Which profiles a person may have; ``slugs`` None: all.  ``decided`` names the scopes that say so."""

    slugs: frozenset[str] | None = None
    decided: tuple[str, ...] = ()

    def allows(self, slug: str) -> bool:
        """Whether a profile is among them."""
        return self.slugs is None or slug in self.slugs


def max_age(
    user: str, groups: Collection[str], limits: Mapping[str, Limit], of_profile: float = 0.0
) -> MaxAge:
    """Say how old a session may get, where its profile says ``of_profile`` (0: no end)."""
    said = [(of_profile, "profile")] if of_profile > 0 else []
    for scope, limit in ((POOL, limits.get(POOL, NO_LIMIT)), (f"user:{user}", user_limit(user, limits))):
        if limit.max_age is not None:
            said.append((limit.max_age, scope))
    ages = [
        (limit.max_age or 0.0, f"group:{name}", limit.strict)
        for name, limit in groups_with("max_age", groups, limits)
    ]
    strict = [(age, scope) for age, scope, held in ages if held]
    if ages:
        said.append(min(strict) if strict else max((age, scope) for age, scope, _ in ages))
    seconds, decided = min(said, default=(0.0, ""))
    return MaxAge(seconds, decided)


def profiles(user: str, groups: Collection[str], limits: Mapping[str, Limit]) -> Profiles:
    """Say which profiles the limits leave a person: what the pool, the user and the groups all allow.

    The groups together allow what any of them does; a strict one takes away what it does not name.
    """
    allowed, decided = None, []
    pool_and_user = ((POOL, limits.get(POOL, NO_LIMIT)), (f"user:{user}", user_limit(user, limits)))
    said = [(scope, limit.profiles) for scope, limit in pool_and_user]
    named = groups_with("profiles", groups, limits)
    said += [(f"group:{name}", limit.profiles) for name, limit in named if limit.strict]
    for scope, slugs in said:
        if slugs is not None:
            allowed = frozenset(slugs) if allowed is None else allowed.intersection(slugs)
            decided.append(scope)
    if named:
        together = frozenset(slug for _, limit in named for slug in limit.profiles or ())
        allowed = together if allowed is None else allowed & together
        decided += [f"group:{name}" for name, limit in named if not limit.strict]
    return Profiles(allowed, tuple(decided))


def check_profile(user: str, groups: Collection[str], slug: str, limits: Mapping[str, Limit]) -> None:
    """Raise Rejected (``not-allowed``, 403) when the limits do not leave this person the profile."""
    found = profiles(user, groups, limits)
    if not found.allows(slug):
        left = ", ".join(sorted(found.slugs or ())) or "none"
        raise Rejected(
            f"The profile {slug} is not open to {whose(user)}: {' and '.join(map(_named, found.decided))} "
            f"{'allows' if len(found.decided) == 1 else 'allow'} {left}.",
            reason="not-allowed",
            status=403,
        )


def _named(scope: str) -> str:
    return "the pool" if scope == POOL else scope.replace(":", " ", 1)


def priority(user: str, groups: Collection[str], limits: Mapping[str, Limit]) -> int:
    """Say a person's priority: their own, else their groups' highest (a strict one's lowest), else usual.

    ``user:*`` gives the priority of whom neither a limit of their own nor a group gives another.
    """
    own = limits.get(f"user:{user}", NO_LIMIT).priority
    if own is not None:
        return own
    named = [limit for _, limit in groups_with("priority", groups, limits)]
    strict = [limit.priority or USUAL_PRIORITY for limit in named if limit.strict]
    if named:
        return min(strict) if strict else max(limit.priority or USUAL_PRIORITY for limit in named)
    return limits.get(EVERY_USER, NO_LIMIT).priority or USUAL_PRIORITY


def remaining(scope: str, limits: Mapping[str, Limit], held: float, pool_gpus: float) -> float:
    """GPU-equivalents that a scope may still hold: what its cap leaves, at most the whole pool's rest."""
    limit = user_limit(scope[5:], limits) if scope.startswith("user:") else limits.get(scope, NO_LIMIT)
    most = pool_gpus if limit.gpus is None else min(pool_gpus, limit.gpus)
    return max(0.0, most - held)
