"""How somebody stands: what is left of their budget, which limits they exceed.  Pure, as :mod:`.shapes`."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ..fairness import Budget, Usage
from ..profiles import budget_in_words, over_in_words
from .shapes import Person, Shape, iso

HOUR = 3600.0


def standing(
    person: Person, budget: Budget, over: Mapping[str, str], usage: Mapping[str, Usage], now: float
) -> Shape:
    """``me`` of the stream.  ``over`` and ``usage`` are by scope, of the pool as it is ``now``.

    ``lasts_until`` is when what the budget's owner holds now uses it up at the earliest; None: it does not.
    """
    found = None
    if budget.scope and math.isfinite(budget.left):
        found = {
            "scope": budget.scope,
            "hours": round(budget.hours, 4),
            "left": round(budget.left, 2),
            "window": budget.window,
            "state": budget.state.value,
            "again_at": iso(budget.again_at),
            "lasts_until": iso(_lasts_until(budget, usage, now)),
            "words": budget_in_words(budget),
        }
    return {"budget": found, "over": over_in_words(over, person.name or "", person.groups)}


def _lasts_until(budget: Budget, usage: Mapping[str, Usage], now: float) -> float | None:
    held = usage[budget.scope].gpus if budget.scope in usage else 0.0
    seconds = budget.left / held * HOUR if held > 0 else math.inf
    if not 0 < seconds < budget.window:  # in a whole window all that was used before has left it
        return None
    return round((now + seconds) / 60) * 60.0  # so that a page is told only what it would show
