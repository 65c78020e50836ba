"""What a person could have at this moment: pure, from one view of the ledger."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from typing import Protocol

from .. import fairness, placement, trust
from ..errors import GPUPoolError
from ..ledger import Snapshot, devices_until
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
    admin: bool,
    budget: fairness.Budget,
) -> dict[str, Availability]:
    """What a person could have at this moment, by profile; ``budget`` is how theirs stands."""
    occupancy, known = snapshot.occupancy, trust.open_to(snapshot.devices, groups)
    queued = Counter(lease.profile for lease in snapshot.queue)
    rights = fairness.profiles(user, groups, snapshot.limits)
    found: dict[str, Availability] = {}
    for profile in pool.offer.values():
        allowed, reason = may_use(profile, list(groups), admin)
        if allowed and not rights.allows(profile.slug):
            allowed, reason = False, "the limits in force do not allow it"
        gpu = profile.wish.kind is not Kind.CPU
        free: int | None = None
        if snapshot.settled and snapshot.devices:
            try:
                placement.check_possible(profile.wish, known)
                gpus = placement.cost(profile.wish, known)
                fairness.check_ever(user, groups, gpus, snapshot.limits)
            except GPUPoolError as never:
                allowed, reason = False, reason or never.message
            if gpu:
                age = fairness.max_age(user, groups, snapshot.limits, profile.terms.max_age).seconds
                devices = devices_until(known, snapshot.now, age)
                free = placement.count_free(profile.wish, devices, occupancy)
        if allowed and gpu and budget.state is fairness.BudgetState.EXHAUSTED:
            allowed, reason = False, budget.message
        found[profile.slug] = Availability(
            allowed=allowed,
            reason=reason,
            free=free,
            queued=queued[profile.slug],
            place_wait=_wait(snapshot, profile.slug, free),
            budget_left_hours=budget.left if gpu and math.isfinite(budget.left) else None,
        )
    return found


def _wait(snapshot: Snapshot, slug: str, free: int | None) -> tuple[float, float] | None:
    """How long a new request would wait: nothing is said where it would not, or where there is no ground."""
    wait = snapshot.offers.get(slug)
    if wait is None or wait[1] <= 0 or (free and not snapshot.queue):
        return None
    return wait
