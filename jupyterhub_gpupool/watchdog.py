"""Does a session keep to the memory of its share: what its processes really hold, summed, against the limit.

Pure: figures and rules come in as arguments.  A whole GPU and a MIG instance are held by the hardware; of a
share TensorFlow's own limit knows one process only, and other programs know none.  The measure counts for
the session that is judged and for no other, so a neighbour is never stopped for it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from .model import Decision, Kind, Slice, Verdict

MEMORY = "memory"
"""The rule, as a lease, a metric and a notice name it."""

_PERCENT = re.compile(r"(\d{1,4}(?:\.\d{1,4})?)\s*%", re.ASCII)


@dataclass(frozen=True, slots=True)
class Patience:
    """How far and for how long a session may be over its limit before it is stopped."""

    fraction: float = 0.1
    """Of the limit; the larger of this and ``mib`` counts."""
    mib: int = 0
    seconds: float = 120.0

    def bound(self, limit_mib: int) -> int:
        """MiB up to which an overrun is only warned of."""
        return limit_mib + max(self.mib, math.floor(self.fraction * limit_mib))


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of an active lease at this look."""

    limit_mib: int | None
    """What it holds; None: the hardware holds it, nothing is to be watched."""
    memory_mib: int | None
    """What its processes hold, summed; None: unknown."""
    over_seconds: float | None = None
    """For how long it was over the bound since the warning, less for how long it has kept to its limit since; None:
    its owner has not been warned."""
    tick: float = 0.0
    """Seconds since the last look, bounded as for idleness."""


@dataclass(frozen=True, slots=True)
class Watch:
    """What follows from a look."""

    over_seconds: float | None = None
    verdict: Verdict | None = None
    """WARN with the seconds that are left, or RECLAIM; None: nothing is to be said."""
    counting: bool = False
    """Whether the countdown runs: not while the session is within what is tolerated, nor while nothing is known."""


def percent(text: str) -> float | None:
    """Read ``"10%"`` as a fraction; None for what is no such text."""
    found = _PERCENT.fullmatch(text.strip())
    return None if found is None else float(found[1]) / 100


def limit_of(slices: Sequence[Slice]) -> int | None:
    """MiB that a lease's processes may hold together; None where the hardware holds any part of it."""
    if not slices or any(part.kind is not Kind.SHARE for part in slices):
        return None
    return sum(part.memory_mib for part in slices)


def is_over(memory_mib: int | None, limit_mib: int | None, patience: Patience) -> bool:
    """Whether this is certainly more than is tolerated."""
    return limit_mib is not None and memory_mib is not None and memory_mib > patience.bound(limit_mib)


def watch(facts: Facts, patience: Patience) -> Watch:
    """Judge one look: warned above the limit, stopped after ``seconds`` above the bound, counted from the warning.

    Between limit and bound the time stands still; at the limit and below it runs back as fast as it ran up,
    so that a session that overruns every other moment gains nothing.  Unknown changes nothing.
    """
    limit, used = facts.limit_mib, facts.memory_mib
    if limit is None:
        return Watch()
    warned, tick = facts.over_seconds is not None, max(0.0, facts.tick)
    over = min(max(0.0, facts.over_seconds or 0.0), patience.seconds)
    if used is None or used < 0:
        unknown = "the GPU memory that its processes hold is unknown; the warning stands and does not run out"
        return Watch(over, _warn(unknown, patience.seconds - over)) if warned else Watch()
    bound = patience.bound(limit)
    if used <= limit:
        over = max(0.0, over - tick)
        if over <= 0:
            return Watch()
        back = f"its processes hold {used} MiB of GPU memory, again within its {limit} MiB"
        return Watch(over, _warn(back, patience.seconds - over))
    held = f"its processes hold {used} MiB of GPU memory together, its share is {limit} MiB"
    if used <= bound:
        tolerated = f"{held}; up to {bound} MiB are tolerated"
        return Watch(over, _warn(tolerated, patience.seconds - over))
    if warned:  # what was before the warning does not count
        over = min(patience.seconds, over + tick)
    reason = f"{held}; more than {bound} MiB for {over:.0f} s of {patience.seconds:g} s"
    if warned and over >= patience.seconds:
        return Watch(over, Verdict(Decision.RECLAIM, reason, 0.0, warned_for=MEMORY), counting=True)
    return Watch(over, _warn(reason, patience.seconds - over), counting=True)


def join(found: Verdict, seen: Watch) -> Verdict:
    """Bring this rule together with the verdict of all others.

    Whichever stops the session stops it.  A warning that stands for another rule keeps its countdown, and
    says this one beside it: else an overrun now and then would put every other end off for ever.
    """
    mine = seen.verdict
    if mine is None or found.decision is Decision.RECLAIM:
        return found
    if found.decision is Decision.KEEP or mine.decision is Decision.RECLAIM:
        return mine
    then = f", for which it ends in {mine.deadline_seconds:.0f} s" if seen.counting else ""
    return replace(found, reason=f"{found.reason}; besides, {mine.reason}{then}")


def _warn(reason: str, left: float) -> Verdict:
    return Verdict(Decision.WARN, reason, max(0.0, left), warned_for=MEMORY)
