"""Programs that have gone past the daemon of their GPU, where nothing holds them to their share.

Pure but for the count of looks.  What the driver does not say is never taken for a program that goes past.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..model import Decision, Verdict
from ..trust import MPS

LOOKS = 2
"""Looks in a row after which a session is stopped: at the first one a program may just be about to connect."""


class Strays:
    """Counts, for each lease, at how many looks in a row it had such programs."""

    def __init__(self) -> None:
        self._looks: dict[str, int] = {}
        self._pids: Mapping[str, tuple[int, ...]] = {}

    def note(self, seen: Mapping[str, tuple[int, ...] | None]) -> None:
        """Take one look: by lease, the processes that are no clients; None: not known, and it counts anew."""
        self._pids = {lease: pids for lease, pids in seen.items() if pids}
        for lease in {*self._looks, *seen}:
            if lease in self._pids:
                self._looks[lease] = self._looks.get(lease, 0) + 1
            else:
                self._looks.pop(lease, None)

    def join(self, lease: str, found: Verdict) -> Verdict:
        """The verdict of a lease with this rule; whichever stops the session stops it."""
        pids = self._pids.get(lease, ())
        if found.decision is Decision.RECLAIM or not pids or self._looks.get(lease, 0) < LOOKS:
            return found
        listed = ", ".join(map(str, pids[:5]))
        reason = (
            f"its GPU is shared through MPS, and it runs programs that go past the MPS daemon (pid {listed}), "
            "where nothing holds them to their share"
        )
        return Verdict(Decision.RECLAIM, reason, 0.0, warned_for=MPS)
