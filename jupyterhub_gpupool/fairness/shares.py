"""Guaranteed shares: what is a group's own, who borrows, and what it may still claim.

What a group does not use, others may borrow: a grant never asks whether a share is eaten, so no GPU stands
empty for somebody who may not come.  When the group wants it back, borrowed sessions make room (``room``).
That is reclaim within quotas as KAI and Kueue do it, with a warning where they end at once.

Which sessions borrow is decided by when they were granted: in each group the oldest that fit into its share
are its own, the rest borrow.  So nobody begins to borrow because of what somebody else does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..model import Lease, State, When
from ..signals import AT_WORK
from .limits import TOLERANCE
from .orders import scope_of, weights


@dataclass(frozen=True, slots=True)
class Held:
    """A lease that holds slices, as far as shares and victims depend on it."""

    lease: str
    user: str
    group: str
    """The group that was charged; empty: none."""
    gpus: float
    granted_at: float
    active_at: float | None
    """None: it is still starting, or it is ending: nothing is to be taken from it."""
    idle_seconds: float = 0.0
    min_age: float = 0.0
    warn: float = 0.0
    window: float = math.inf
    """Idle seconds from which it may be taken while somebody waits; inf: never for being idle."""

    @property
    def scope(self) -> str:
        """Whose share it counts against."""
        return scope_of(self.user, self.group)

    @classmethod
    def of(cls, lease: Lease) -> Held:
        """The facts of a lease."""
        terms = lease.terms
        # Who is at work beside an idle GPU keeps it for a while, but not from those who wait.
        wanted = (terms.when is When.WANTED or lease.signal in AT_WORK) and terms.window > 0
        return cls(
            lease=lease.id,
            user=lease.user,
            group=lease.group,
            gpus=lease.gpus,
            granted_at=lease.requested_at if lease.granted_at is None else lease.granted_at,
            active_at=lease.active_at if lease.state is State.ACTIVE else None,
            idle_seconds=lease.idle_seconds,
            min_age=terms.min_age,
            warn=terms.warn,
            window=terms.window if wanted else math.inf,
        )


@dataclass(frozen=True, slots=True)
class Share:
    """A group's guaranteed share and what it holds, in GPU-equivalents."""

    guaranteed: float = 0.0
    held: float = 0.0

    @property
    def left(self) -> float:
        """What it may still claim."""
        return max(0.0, self.guaranteed - self.held)

    @property
    def over(self) -> float:
        """What it holds beyond its share: borrowed."""
        return max(0.0, self.held - self.guaranteed)


def standing(held: Iterable[Held], guaranteed: Mapping[str, float]) -> dict[str, Share]:
    """Say how each scope stands that holds something or is guaranteed something.

    ``guaranteed`` is by group, as :func:`~.limits.guarantees` says it; who is guaranteed nothing borrows all.
    """
    sums = {f"group:{group}": 0.0 for group in guaranteed}
    for item in held:
        sums[item.scope] = sums.get(item.scope, 0.0) + item.gpus
    return {
        scope: Share(guaranteed.get(scope[6:], 0.0) if scope.startswith("group:") else 0.0, gpus)
        for scope, gpus in sums.items()
    }


def borrowed(held: Iterable[Held], guaranteed: Mapping[str, float]) -> frozenset[str]:
    """Name the leases that borrow.  What holds no GPU borrows none."""
    used: dict[str, float] = {}
    found = set()
    for item in sorted(held, key=lambda item: (item.granted_at, item.lease)):
        share = guaranteed.get(item.group, 0.0) if item.group else 0.0
        if used.get(item.scope, 0.0) + item.gpus <= share + TOLERANCE:
            used[item.scope] = used.get(item.scope, 0.0) + item.gpus
        elif item.gpus > 0:
            found.add(item.lease)
    return frozenset(found)


def may_claim(group: str, gpus: float, by_scope: Mapping[str, Share]) -> bool:
    """Whether a request of this group is its own: with it the group still holds no more than its share."""
    share = by_scope.get(f"group:{group}", Share()) if group else Share()
    return 0 < gpus <= share.left + TOLERANCE


def portions(
    held: Sequence[Held],
    guaranteed: Mapping[str, float],
    pool_gpus: float,
    priorities: Mapping[str, float] | None = None,
    waiting: Iterable[str] = (),
) -> dict[str, float]:
    """Say what part of the pool, in GPU-equivalents, is each scope's that holds or waits.

    The pool is divided by priority (missing: all alike); nobody's part is less than the guaranteed share.
    """
    scopes = {*(item.scope for item in held), *waiting}
    parts = weights({scope: (priorities or {}).get(scope, 1.0) for scope in sorted(scopes)}, {})
    return {
        scope: max(part * pool_gpus, guaranteed.get(scope[6:], 0.0) if scope.startswith("group:") else 0.0)
        for scope, part in parts.items()
    }
