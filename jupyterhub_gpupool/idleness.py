"""Is a slice used, and what follows from it: samples are folded into idle time, leases are judged.

Pure: times, samples and rules come in as arguments, nothing is read and nothing is stored.  The method is
that of Backend.AI's idle checkers (a session without a measurement is skipped, not idle; judging is one
pure function, acting a separate stage) and of jupyterhub-idle-culler (the one who judges keeps no state).
The warning with its countdown, which must be over before anything is taken back, is the pool's own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from .model import Decision, Kind, Lease, Sample, Terms, Verdict, When
from .signals import GPU, PROCESSES, Work, span

IDLE = "idle"
MAX_AGE = "max_age"
SHARE = "share"
"""A guaranteed share that it borrows from is wanted back."""
DRAIN = "drain"
BUDGET = "budget"
CALLED = (SHARE, DRAIN, BUDGET)
"""Rules that end a session whether it is used or not."""
IMPLAUSIBLE = 1000.0
"""Utilization in percent above which a reading says nothing (busy GPUs can add up to some hundred)."""

LOW = 1.0
"""Utilization in percent from which a use below the threshold is use all the same, if it is steady."""
STEADY = 6
"""Looks in a row at :data:`LOW` or above that make a use steady; fewer are noise."""
ENOUGH = 3
"""Looks without use that it takes to call a slice idle, however short its window."""
GAP_LEAST = 60.0
"""Seconds without any measurement that are never a gap; see :func:`look`."""
PATIENCE = 4
"""Windows without use after which a session ends whose kernels or terminals are at work beside an idle GPU."""

_UNSEEN = Sample()
_UNASKED = Work()


@dataclass(frozen=True, slots=True)
class Idle:
    """What the looks at a slice since its last use add up to."""

    seconds: float = 0.0
    samples: int = 0
    """Looks that saw no use."""
    low: int = 0
    """Looks in a row, up to the last one, that saw little use."""
    unseen: float = 0.0
    """Seconds, up to the last look, for which looks have seen nothing."""

    @classmethod
    def of(cls, lease: Lease) -> Idle:
        """What the ledger keeps of a lease."""
        return cls(lease.idle_seconds, lease.idle_samples, lease.low_samples, lease.unseen_seconds)

    @property
    def steady(self) -> bool:
        """Whether the use is low but steady."""
        return self.low >= STEADY


@dataclass(frozen=True, slots=True)
class Call:
    """Something other than idleness and age that asks for the end of a lease."""

    rule: str
    """One of :data:`CALLED`."""
    reason: str
    seconds: float = 0.0
    """Until it may end at the earliest; nor does it before its warning has run out and, but for a drain, before
    ``min_age``."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of an active lease at this look; durations in seconds."""

    terms: Terms
    kind: Kind
    age: float
    """Since the lease became active, by the database's clock; negative after a clock jump, taken as 0."""
    idle_seconds: float
    busy: bool | None
    """What :func:`is_busy` says of the latest sample."""
    grace_seconds: float = 0
    """Left of an extension."""
    deadline_seconds: float | None = None
    """Left of the warning, counted down by :func:`count_down`; None: not warned."""
    warned_for: str = ""
    """Which rule the warning stands for."""
    counting: bool = True
    """Whether the countdown of the warning runs, see :func:`counts`; nothing is reclaimed while it does not."""
    wanted: bool = False
    """Whether somebody waits who would get this slice."""
    wanted_why: str = ""
    """Why this lease was chosen for it."""
    calls: tuple[Call, ...] = ()
    sample: Sample = _UNSEEN
    """The latest sample; only named in the reasons."""
    samples: int = ENOUGH
    """Looks that make up ``idle_seconds``."""
    low: int = 0
    """Looks in a row that saw little use, see :class:`Idle`."""
    work: Work = _UNASKED
    """What the session's kernels and terminals, and the hub, say."""


def is_busy(sample: Sample, threshold: float) -> bool | None:
    """Say whether the sample shows use of the slice; None when it does not say.

    No process on the slice is a definite zero, whatever the utilization.  A utilization that is missing,
    negative, not a number or above :data:`IMPLAUSIBLE` is unknown.  At the threshold (percent) is busy.
    """
    if sample.processes == 0:
        return False
    used = sample.utilization
    if used is None or not 0 <= used <= IMPLAUSIBLE:
        return None
    return not used < threshold


def tick(elapsed: float, interval: float) -> float:
    """Bound the seconds between two looks: never negative, at most two sweep intervals.

    So neither a suspended machine nor an outage nor a clock jump becomes idleness.
    """
    if math.isnan(elapsed) or math.isnan(interval):
        return 0.0
    return max(0.0, min(elapsed, 2 * interval))


def fold(idle_seconds: float, busy: bool | None, elapsed: float, interval: float) -> float:
    """Add one look to the idle time: busy starts again at 0, idle adds a tick, unknown changes nothing."""
    before = max(0.0, idle_seconds)
    if busy is None:
        return before
    return 0.0 if busy else before + tick(elapsed, interval)


def is_low(sample: Sample, threshold: float) -> bool:
    """Say whether the sample shows use that is below the threshold, but no mere trace."""
    return is_busy(sample, threshold) is False and sample.processes != 0 and (sample.utilization or 0) >= LOW


def is_quiet(sample: Sample, threshold: float) -> bool:
    """Say whether the sample shows no use for certain, not even a little."""
    return is_busy(sample, threshold) is False and not is_low(sample, threshold)


def look(before: Idle, sample: Sample, terms: Terms, elapsed: float, interval: float) -> Idle:
    """Add one look to what is known of the idleness of a slice: the peak over the window, look by look.

    Use at the threshold begins anew, and so does the :data:`STEADY`-th look in a row with little use.  Unknown
    adds no idle time; after a whole window of it, and no less than :data:`GAP_LEAST`, what was seen before is
    forgotten.  While nobody looks at all is no such gap: after that, a whole warning is given again.
    """
    busy = is_busy(sample, terms.threshold)
    if busy is None:
        return replace(
            before, seconds=max(0.0, before.seconds), unseen=before.unseen + tick(elapsed, interval)
        )
    if busy:
        return Idle()
    if before.unseen >= max(terms.window, GAP_LEAST):
        before, elapsed = Idle(), 0.0
    low = before.low + 1 if is_low(sample, terms.threshold) else 0
    if low >= STEADY:
        return Idle(low=low)
    return Idle(fold(before.seconds, False, elapsed, interval), before.samples + 1, low)


def counts(delivered: bool, undelivered_seconds: float, warn: float, limit: float | None) -> bool:
    """Say whether the countdown of a warning runs: once it was delivered, or its time without that is up.

    One that has reached nobody runs out ``limit`` seconds after it was given, and not before ``warn``; with
    None it never does, with 0 a delivery is not waited for.
    """
    if delivered or limit is None:
        return delivered
    return undelivered_seconds >= limit - max(0.0, warn)


def count_down(
    deadline_seconds: float | None,
    warned_for: str,
    busy: bool | None,
    elapsed: float,
    interval: float,
    *,
    counting: bool = True,
) -> float | None:
    """Take one look's tick off a warning.

    It stands still while it is not ``counting``; one for idleness also while nothing is known.
    """
    if not counting or deadline_seconds is None or (busy is None and warned_for not in (MAX_AGE, *CALLED)):
        return deadline_seconds
    return max(0.0, deadline_seconds - tick(elapsed, interval))


def judge(facts: Facts) -> Verdict:
    """Decide about an active lease: KEEP, WARN with the seconds left, or RECLAIM.

    RECLAIM comes only after a WARN for the same rule whose countdown ran out: for idleness never before
    ``min_age`` and never on an unknown sample; for age whatever the samples say.  Where both rules apply, the
    one that ends sooner is named.  KEEP takes a standing warning back.
    """
    age = facts.age if facts.age > 0 else 0.0
    by_idle = _judge_idle(facts, age)
    sure = [
        found
        for found in (_judge_age(facts, age), *(_called(facts, call, age) for call in facts.calls))
        if found
    ]
    if not sure:
        return by_idle
    surest = min(sure, key=_left)
    if by_idle.decision is Decision.RECLAIM:
        return by_idle
    # An idle warning stands still while nothing is known, and use takes it back: neither may keep an end that
    # is sure from coming nearer.  A share's bound counts from its own warning.
    if by_idle.decision is Decision.KEEP or facts.busy is None or surest.warned_for == SHARE:
        return surest
    return by_idle if _left(by_idle) < _left(surest) else surest


def _called(facts: Facts, call: Call, age: float) -> Verdict:
    """The end that something else asks for: after a warning of its own, whatever the samples say."""
    warn = max(0.0, facts.terms.warn)
    early = max(call.seconds, 0.0 if call.rule == DRAIN else facts.terms.min_age - age)
    if facts.warned_for != call.rule or facts.deadline_seconds is None:
        return Verdict(Decision.WARN, call.reason, max(warn, early), warned_for=call.rule)
    left = max(facts.deadline_seconds, early)
    if left <= 0 and facts.counting:
        return Verdict(Decision.RECLAIM, f"{call.reason}; the warning has run out", 0.0, warned_for=call.rule)
    return Verdict(Decision.WARN, call.reason, left, warned_for=call.rule)


def _left(verdict: Verdict) -> float:
    return -1.0 if verdict.decision is Decision.RECLAIM else verdict.deadline_seconds or 0.0


def _keep(reason: str, signal: str = "") -> Verdict:
    return Verdict(Decision.KEEP, reason, signal=signal)


def _judge_age(facts: Facts, age: float) -> Verdict | None:
    """The end by age; None while it is not near."""
    terms = facts.terms
    if terms.max_age <= 0 or age < terms.max_age - terms.warn:
        return None
    reason = f"open for {age:.0f} s, at most {terms.max_age:g} s are allowed (max_age)"
    if facts.warned_for != MAX_AGE or facts.deadline_seconds is None:
        return Verdict(Decision.WARN, reason, max(0.0, terms.warn), warned_for=MAX_AGE)
    if facts.deadline_seconds <= 0 and facts.counting:
        return Verdict(Decision.RECLAIM, f"{reason}; the warning has run out", 0.0, warned_for=MAX_AGE)
    return Verdict(Decision.WARN, reason, facts.deadline_seconds, warned_for=MAX_AGE)


def _kept(facts: Facts) -> Verdict | None:
    """KEEP where the rule on idleness spares this lease whatever its idle time; None when it does not."""
    terms = facts.terms
    if facts.kind is Kind.CPU:
        return _keep("no GPU to give back")
    if not terms.window > 0:
        return _keep("idle reclaim is off for this lease (window 0 s)")
    if facts.busy:
        return _keep(f"GPU in use, {_activity(facts)}", GPU)
    if facts.low >= STEADY:
        end = "it ends by its age (max_age)" if terms.max_age > 0 else "no max_age ends it"
        return _keep(f"GPU use is low but steady, {_activity(facts)}; {end}", GPU)
    if facts.grace_seconds > 0:
        return _keep(f"extended, {facts.grace_seconds:.0f} s left")
    if terms.when is When.WANTED and not facts.wanted:
        return _keep("nobody who waits needs this slice")
    return None


def _judge_idle(facts: Facts, age: float) -> Verdict:
    terms, left = facts.terms, facts.deadline_seconds
    warned = facts.warned_for == IDLE and left is not None
    spared = _kept(facts)
    if spared:
        return spared
    if facts.busy is None:
        if warned and left is not None:
            reason = "GPU activity is unknown; the warning stands and does not run out"
            return Verdict(Decision.WARN, reason, max(0.0, left), warned_for=IDLE, signal=GPU)
        return _keep("GPU activity is unknown", GPU)
    decided = PROCESSES if facts.sample.processes == 0 else GPU
    if not facts.idle_seconds >= terms.window:
        return _keep(f"no GPU activity for {span(facts.idle_seconds)} of {span(terms.window)}", decided)
    if facts.samples < ENOUGH:
        return _keep(f"no GPU activity in {facts.samples} of at least {ENOUGH} looks", decided)
    return _idle_for_long(facts, age, left if warned else None, decided)


def _idle_for_long(facts: Facts, age: float, left: float | None, decided: str) -> Verdict:
    """The whole window has passed: a warning, with what is left of it, and the end when that has run out."""
    terms, work = facts.terms, facts.work.decisive
    reason = (
        f"no GPU activity for {span(facts.idle_seconds)} (window {span(terms.window)}), {_activity(facts)}"
    )
    if facts.work.signals:
        reason = f"{reason}; {facts.work.grounds}"
    if facts.wanted_why:
        reason = f"{reason}; {facts.wanted_why}"
    young = terms.min_age - age
    soon = max(0.0, terms.warn, young)
    patience = PATIENCE * terms.window - facts.idle_seconds
    if work is not None and patience > 0:
        decided = work.name
        if not facts.wanted:
            until = f"it is stopped after {span(PATIENCE * terms.window)} without use, or when somebody waits"
            left = max(soon if left is None else left, patience)
            return Verdict(Decision.WARN, f"{reason}; {until}", left, warned_for=IDLE, signal=decided)
    if left is None:
        return Verdict(Decision.WARN, reason, soon, warned_for=IDLE, signal=decided)
    # What was put off is put off no longer, but not without a whole warning, and a look that saw it run out.
    stood, left = left, max(min(left, soon), young)
    if max(stood, left) <= 0 and facts.counting and not facts.low:
        why, decided = f"{reason}; the warning has run out", decided if work is None else GPU
        return Verdict(Decision.RECLAIM, why, 0.0, warned_for=IDLE, signal=decided)
    return Verdict(Decision.WARN, reason, max(0.0, left), warned_for=IDLE, signal=decided)


def _activity(facts: Facts) -> str:
    """The figures of the latest sample beside the rule."""
    used, threshold = facts.sample.utilization, facts.terms.threshold
    if not facts.busy and facts.sample.processes == 0:
        return "no process on the slice"
    if used is None:
        return f"threshold {threshold:g} %"
    side = "at or above" if facts.busy else "below"
    return f"utilization {used:.3g} % {side} {threshold:g} %"
