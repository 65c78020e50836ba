"""What every part of the ledger's front has: the store, the policy, and who serves the queue."""

from __future__ import annotations

from collections.abc import Callable

from ..model import Lease, State
from . import transitions
from .grants import Grants
from .store import Store, Transaction
from .turns import Policy


class Base:
    """A ledger that is open."""

    def __init__(
        self,
        url: str,
        policy: Policy | None = None,
        *,
        clock: Callable[[], float] | None = None,
        on_move: Callable[[Lease, str], None] | None = None,
        prepare: bool = True,
    ) -> None:
        self.policy = policy or Policy()
        self.store = Store(url, clock=clock, prepare=prepare)
        self._grants = Grants(self.policy)
        self._on_move = on_move or (lambda lease, before: None)

    def close_database(self) -> None:
        """Close the connections of this process."""
        self.store.close()

    def _serve(self, tx: Transaction) -> list[str]:
        served = self._grants.serve(tx)
        for lease in served:
            self._told(tx, lease, State.QUEUED)
        return served

    def _told(self, tx: Transaction, lease: str, before: str) -> Lease:
        """The lease as it is now, once whoever listens has heard where it came from."""
        moved = transitions.reread(tx, lease)
        self._on_move(moved, before)
        return moved
