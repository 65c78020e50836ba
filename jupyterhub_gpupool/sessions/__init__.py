"""The only code that asks or tells a backend about sessions: one small module for each backend.

Spawners and service use the same object.  All calls are synchronous; whoever has an event loop makes them
on a worker thread.  How a session is started does not belong here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from ..cells import cell_numbers
from ..model import CELLS_PER_GPU, Lease, Presence, Session
from .script import ScriptEnd

CELL_LIST = re.compile(r"[0-9]{1,3}(-[0-9]{1,3})?(,[0-9]{1,3}(-[0-9]{1,3})?)*", re.ASCII)
"""A list of cells as a marker may hold it.  Short numbers: people can change what a marker says."""


@dataclass(frozen=True, slots=True)
class Foreign:
    """Something on this machine that is not the pool's and was given GPUs: ``visible`` UUIDs, or ``all``."""

    name: str
    visible: frozenset[str]


class Sessions(Protocol):
    """What the pool asks of a backend."""

    trusted: bool
    """Whether nobody but the backend can write its markers: then an unknown session is adopted at any time."""

    def look(self, names: Collection[str]) -> dict[str, Presence]:
        """Say of each name whether its session is there.

        An error, a time-out or an incomplete answer is UNKNOWN, never ABSENT.  Does not raise.
        """
        ...

    def list(self) -> tuple[Session, ...] | None:
        """Find all sessions of this pool; None when the backend did not answer.  Does not raise."""
        ...

    def remove(self, name: str, *, timeout: float, keep: Callable[[str], None] | None = None) -> bool:
        """End a session with everything that belongs to it, within ``timeout`` seconds.

        True only on proof of absence: the backend answered, and nothing of the session is left.  ``keep`` is
        given the last lines that the session wrote, where the backend has them, before they are gone.
        """
        ...

    def differs(self, lease: Lease) -> tuple[str, ...] | None:
        """Say in words where the running session of a lease is not what the lease says; empty when it is.

        None when the backend did not answer, or the session is gone.  For sessions that nobody looked at
        after their launch.  Does not raise.
        """
        ...

    def before_reclaim(
        self, name: str, environment: Mapping[str, str], *, timeout: float
    ) -> ScriptEnd | None:
        """Run the owner's script ``~/.gpupool/before-reclaim`` in a session, as the session's own account.

        ``environment`` is added to the session's.  Within about ``timeout`` seconds it has ended or is killed.
        None where there is no such script.  Does not raise.
        """
        ...

    def reaches(self, name: str) -> bool | None:
        """Whether a session can still open the driver of its GPUs; None where nobody can say.  Does not raise."""
        ...

    def foreign(self) -> tuple[Foreign, ...] | None:
        """Find what others run on this machine's GPUs; None when the backend did not answer.  Does not raise."""
        ...


def marked_cells(text: str) -> dict[str, tuple[int, ...]]:
    """Read the cells that a marker names: ``{"GPU-…": "0-29,40"}`` as JSON text, by device.

    Raises ValueError for anything else, and for cells that no GPU has.
    """
    try:
        found = json.loads(text)
    except RecursionError as error:
        raise ValueError("the cells of a marker are nested too deep") from error
    if not isinstance(found, dict):
        raise ValueError("the cells of a marker are a JSON object of device to list of cells")
    cells: dict[str, tuple[int, ...]] = {}
    for device, listed in found.items():
        if not isinstance(listed, str) or not CELL_LIST.fullmatch(listed):
            raise ValueError('the cells of a marker are text such as "0-29,40"')
        numbers = cell_numbers(listed)
        if len(set(numbers)) < len(numbers) or max(numbers, default=CELLS_PER_GPU) >= CELLS_PER_GPU:
            raise ValueError(f"the cells of a marker are different numbers below {CELLS_PER_GPU}")
        cells[device] = numbers
    return cells
