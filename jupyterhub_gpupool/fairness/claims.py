"""Which waiting requests are claims of a guaranteed share: together never more than the share has left.

A person of two groups can claim either share, and two requests can claim the same one.  So they are dealt out
once, in order of arrival, and each then is admitted with what the others' claims leave of the shares.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from ..model import Limit
from .admission import Admission, Usage, admit


@dataclass(frozen=True, slots=True)
class Asking:
    """A waiting request, as far as limits depend on it."""

    lease: str
    user: str
    groups: Collection[str]
    gpus: float


class Claims:
    """Who claims what of which share, kept up while the queue is served.

    ``asked`` are all waiting requests in order of arrival, the other arguments those of
    :func:`~.admission.admit`.  Changes of ``usage`` are the caller's to make and to pass on.
    """

    def __init__(
        self,
        asked: Iterable[Asking],
        usage: Mapping[str, Usage],
        limits: Mapping[str, Limit],
        guaranteed: Mapping[str, float],
    ) -> None:
        self._limits, self._guaranteed = limits, guaranteed
        self._claimed: dict[str, float] = {}
        self._own: dict[str, tuple[str, float]] = {}
        self.admissions: dict[str, Admission] = {}
        """By lease: what was said of each when the claims were dealt out."""
        for item in asked:
            said = self.admissions[item.lease] = self.admit(item, usage)
            if said.own:
                self._own[item.lease] = (said.group, item.gpus)
                self._claimed[said.group] = self._claimed.get(said.group, 0.0) + item.gpus

    def admit(self, item: Asking, usage: Mapping[str, Usage]) -> Admission:
        """Admit a request, leaving to all others what they claim."""
        left = self._guaranteed
        if self._claimed:
            group, gpus = self._own.get(item.lease, ("", 0.0))
            left = {
                name: share - self._claimed.get(name, 0.0) + (gpus if name == group else 0.0)
                for name, share in left.items()
            }
        return admit(item.user, item.groups, item.gpus, usage, self._limits, left)

    def granted(self, lease: str) -> None:
        """Note that a request holds what it claimed: from now on ``usage`` counts it."""
        group, gpus = self._own.pop(lease, ("", 0.0))
        if group:
            self._claimed[group] -= gpus
