"""What a person could have at this moment: pure, from one view of the ledger."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Protocol

from .. import fairness, placement
from ..errors import GPUPoolError
from ..ledger import Snapshot
from ..model import Kind
from ..profiles import Availability, Profiles, may_use


class Offering(Protocol):
    """What is asked of the pool."""

    offer: Profiles


def available(
    pool: Offering,
    snapshot: Snapshot,
    user: str,
    groups: Collection[str],
    admin: bool = False,
    budget: fairness.Budget | None = None,
) -> dict[str, Availability]:
    """What a person could have at this moment, by profile.

    ``budget`` is as the ledger's verb says it, with the time when a start works again; without it the view's own.
    """
    occupancy = snapshot.occupancy
    queued: dict[str, int] = {}
    for lease in snapshot.queue:
        queued[lease.profile] = queued.get(lease.profile, 0) + 1
    rights = fairness.profiles(user, groups, snapshot.limits)
    budget = snapshot.budget(user, groups) if budget is None else budget
    found: dict[str, Availability] = {}
    for profile in pool.offer.values():
        allowed, reason = may_use(profile, list(groups), admin)
        if allowed and not rights.allows(profile.slug):
            allowed, reason = False, "the limits in force do not allow it"
        gpu = profile.wish.kind is not Kind.CPU
        free: int | None = None
        if snapshot.settled and snapshot.devices:
            try:
                placement.check_possible(profile.wish, snapshot.devices)
                gpus = placement.cost(profile.wish, snapshot.devices)
                fairness.check_ever(user, groups, gpus, snapshot.limits)
            except GPUPoolError as never:
                allowed, reason = False, reason or never.message
            if gpu:
                free = placement.count_free(profile.wish, snapshot.devices, occupancy)
        if allowed and gpu and budget.state is fairness.BudgetState.EXHAUSTED:
            allowed, reason = False, budget.message
        found[profile.slug] = Availability(
            allowed=allowed,
            reason=reason,
            free=free,
            queued=queued.get(profile.slug, 0),
            place_wait=snapshot.offers.get(profile.slug),
            budget_left_hours=budget.left if gpu and math.isfinite(budget.left) else None,
        )
    return found
