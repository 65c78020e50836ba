"""How somebody stands, in words, for the form and the pages: budget, limits that are exceeded, waits.  Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ..fairness import POOL, Budget, BudgetState
from ..fairness.words import figure, span

UNKNOWN = "unknown"
"""A wait for which there is no ground."""


def budget_in_words(budget: Budget) -> str:
    """What is left of a budget; empty where nobody limits.  Of a used-up one, when a start works again."""
    if not budget.scope:
        return ""
    if budget.state is BudgetState.EXHAUSTED:
        return budget.message
    hours = f"{figure(budget.left)} of {figure(budget.hours)} GPU-hours left"
    whose = f"{_whose(budget.scope)}, in any {span(budget.window)}"
    if budget.state is BudgetState.WARNED:
        return f"Only {hours} ({whose}). When they are used up, nothing with a GPU starts any more."
    return f"{hours} ({whose})."


def over_in_words(over: Mapping[str, str], user: str, groups: Collection[str]) -> list[str]:
    """The limits of a person that are exceeded, a sentence each; ``over`` is by scope, as a snapshot says it."""
    scopes = (f"user:{user}", *(f"group:{name}" for name in sorted(set(groups))), POOL)
    return [over_limit(scope, over[scope]) for scope in scopes if scope in over]


def over_limit(scope: str, why: str) -> str:
    """Say that a scope is over its limit, and what follows from it."""
    return (
        f"Over limit: {_whose(scope)} {why.removeprefix('over limit: ')}. "
        "Nothing more is granted against this limit until it fits again; no session is ended for it."
    )


def wait_in_words(wait: tuple[float, float] | None) -> str:
    """An expected wait as a range; ``unknown`` where there is no ground for one."""
    if wait is None:
        return UNKNOWN
    low, high = (_roughly(seconds) for seconds in wait)
    return f"about {high}" if low == high else f"{low} to {high}"


def _roughly(seconds: float) -> str:
    """A duration no more exact than an estimate can be."""
    for unit, length, step in (("s", 1, 10), ("min", 60, 1), ("h", 3600, 0.5)):
        if seconds < 120 * length:
            return f"{max(step, round(seconds / length / step) * step):.3g} {unit}"
    return f"{seconds / 86400:.0f} days"


def _whose(scope: str) -> str:
    return "the pool" if scope == POOL else scope.replace(":", " ", 1)
