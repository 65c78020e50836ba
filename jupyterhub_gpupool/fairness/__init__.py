"""Who may have what, and who is next: limits, rights, budgets, order, shares, victims and waits.

Pure: limits, usage, leases and the clock come in as arguments.

==============  =========================================================================
``limits``      read, check and write limits; what is guaranteed when
``admission``   caps on sessions, GPU-equivalents and waiting requests
``claims``      which waiting requests claim a guaranteed share
``rights``      profiles, the age of a session, priority
``budgets``     GPU-hours in a sliding window
``orders``      the order of the queue, by name
``shares``      guaranteed shares: what is a group's own, who borrows
``room``        who makes room for a share, or for who waits while GPUs idle
``waits``       how long a place in the queue will take
==============  =========================================================================
"""

from .admission import (
    Admission,
    Holds,
    Usage,
    admit,
    among_groups,
    check_ever,
    check_queue,
    over_limits,
    tally,
    within,
)
from .budgets import Budget, BudgetState, Span, budget, check_budget, hours_in, pays
from .claims import Asking, Claims
from .limits import (
    EVERY_USER,
    MOST,
    POOL,
    changes_guarantees,
    check_scope,
    check_shares,
    guarantees,
    next_change,
    read_limit,
    read_limits,
    user_limit,
    warnings,
    write_limit,
)
from .orders import ORDERS, Context, Queued, check_order, decayed, order, scope_of, weights
from .rights import MaxAge, Profiles, check_profile, max_age, priority, profiles, remaining
from .room import Fits, Room, Victim, make_room, victims
from .shares import Held, Share, borrowed, may_claim, portions, standing
from .waits import Past, Running, Wait, Wanted, expected_waits

__all__ = [
    "EVERY_USER",
    "MOST",
    "ORDERS",
    "POOL",
    "Admission",
    "Asking",
    "Budget",
    "BudgetState",
    "Claims",
    "Context",
    "Fits",
    "Held",
    "Holds",
    "MaxAge",
    "Past",
    "Profiles",
    "Queued",
    "Room",
    "Running",
    "Share",
    "Span",
    "Usage",
    "Victim",
    "Wait",
    "Wanted",
    "admit",
    "among_groups",
    "borrowed",
    "budget",
    "changes_guarantees",
    "check_budget",
    "check_ever",
    "check_order",
    "check_profile",
    "check_queue",
    "check_scope",
    "check_shares",
    "decayed",
    "expected_waits",
    "guarantees",
    "hours_in",
    "make_room",
    "max_age",
    "may_claim",
    "next_change",
    "order",
    "over_limits",
    "pays",
    "portions",
    "priority",
    "profiles",
    "read_limit",
    "read_limits",
    "remaining",
    "scope_of",
    "standing",
    "tally",
    "user_limit",
    "victims",
    "warnings",
    "weights",
    "within",
    "write_limit",
]
