"""What the service's mode makes of a verdict."""

from __future__ import annotations

from dataclasses import replace

from ..model import Decision, Verdict


def in_mode(verdict: Verdict, mode: str) -> tuple[Verdict, float | None, str]:
    """What a verdict comes to: itself as it is kept, the deadline of the warning, and the rule behind that."""
    if mode == "observe":
        return _only_seen(verdict), None, ""
    if verdict.decision is not Decision.RECLAIM:
        return verdict, verdict.deadline_seconds, verdict.warned_for
    if mode == "warn":
        why = f"{verdict.reason}; mode warn stops nothing"
        verdict = replace(verdict, decision=Decision.WARN, reason=why)
    return verdict, 0.0, verdict.warned_for


def _only_seen(verdict: Verdict) -> Verdict:
    """A verdict in mode ``observe``: kept for the admin, without consequence."""
    if verdict.decision is Decision.KEEP:
        return verdict
    why = f"{verdict.reason}; in mode observe nobody is warned and nothing is stopped"
    return replace(verdict, reason=why, deadline_seconds=None)
