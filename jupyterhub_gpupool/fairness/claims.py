"""Which waiting requests are claims of a guaranteed share: together never more than the share has left.

A person of two groups can claim either share, and two requests can claim the same one.  So they are dealt out
once, in order of arrival, and each then is admitted with what the others' claims leave of the shares.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple

from .admission import Admission


class Asking(NamedTuple):
    """A waiting request, as far as limits depend on it."""

    lease: str
    user: str
    groups: Collection[str]
    gpus: float


Admit = Callable[[Asking, Mapping[str, float]], Admission]
"""What the limits say of a request at this moment, where its groups are guaranteed so much.

That is :func:`~.admission.admit` with the usage of this moment; a change of usage is the caller's to know of.
"""


class Claims:
    """Who claims what of which share, kept up while the queue is served.

    ``asked`` are all waiting requests in order of arrival, ``guaranteed`` what :func:`~.limits.guarantees` says.
    """

    def __init__(self, asked: Iterable[Asking], guaranteed: Mapping[str, float], admit: Admit) -> None:
        self._guaranteed, self._admit = guaranteed, admit
        self._claimed: dict[str, float] = {}
        self._own: dict[str, tuple[str, float]] = {}
        self.admissions: dict[str, Admission] = {}
        """By lease: what was said of each when the claims were dealt out."""
        for item in asked:
            said = self.admissions[item.lease] = self.admit(item)
            if said.own:
                self._own[item.lease] = (said.group, item.gpus)
                self._claimed[said.group] = self._claimed.get(said.group, 0.0) + item.gpus

    def admit(self, item: Asking) -> Admission:
        """Admit a request, leaving to all others what they claim."""
        left = {}
        for name in item.groups:
            share = self._guaranteed.get(name)
            if share is not None:
                left[name] = share - self._claimed.get(name, 0.0)
        mine = self._own.get(item.lease)
        if mine is not None:
            left[mine[0]] += mine[1]
        return self._admit(item, left)

    def claims(self, lease: str) -> bool:
        """Whether a request claims something of a share."""
        return lease in self._own

    def granted(self, lease: str) -> None:
        """Note that a request holds what it claimed: from now on the usage counts it."""
        group, gpus = self._own.pop(lease, ("", 0.0))
        if group:
            self._claimed[group] -= gpus
