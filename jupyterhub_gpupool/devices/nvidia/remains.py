"""What is left on a GPU or a MIG instance after a session: processes, and memory beyond the base.

The base is what is in use while nothing runs.  It was measured when the part was last seen empty; before that it
is nothing at all where the driver tells apart what it keeps for itself, and else unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from .. import Residue
from .attribution import BASE_MIB, MPS_SERVER, Shown

Facts = Mapping[str, Any]


class Remains:
    """Keeps the base of every part, and judges what lies above it."""

    def __init__(self, ignored: Sequence[str], shown: Callable[[int], Shown | None]) -> None:
        self._ignored, self._shown = ignored, shown
        self._base: dict[str, int] = {}

    def learn(self, gpus: Sequence[Facts], occupied: Collection[str]) -> None:
        """Measure the base of the parts on which there is no lease and no process.

        The lowest figure counts: were it the last one, what is lost bit by bit would become the base.
        """
        for part in _parts(gpus):
            key, used = part["uuid"], part["used"]
            if key not in occupied and part["processes"] == [] and used is not None:
                self._base[key] = min(used, self._base.get(key, used))

    def of(self, part: Facts, *, shared: bool, ours: Collection[int]) -> Residue:
        """What is left on a part; ``ours`` are the processes of sessions that run, ``shared``: some may be there."""
        pids = sorted(int(one[0]) for one in part["processes"] or () if int(one[0]) not in ours)
        left = tuple(pid for pid in pids if not self._is_ignored(pid))
        return Residue(True, processes=left, memory_mib=0 if shared else self._above(part))

    def _above(self, part: Facts) -> int:
        base = self._base.get(part["uuid"], None if part["reserved"] is None else 0)
        if base is None or part["used"] is None:
            return 0
        served = [one[1] for one in part["processes"] or () if self._serves(int(one[0]))]
        if None in served:
            return 0
        above = int(part["used"]) - base - sum(map(int, served))
        return above if above > BASE_MIB else 0

    def _serves(self, pid: int) -> bool:
        """Whether a process is a server of MPS: it stays when its clients go, with memory of its own."""
        shown = self._shown(pid)
        return shown is not None and fnmatchcase(shown.name, MPS_SERVER)

    def _is_ignored(self, pid: int) -> bool:
        shown = self._shown(pid)
        return shown is not None and any(fnmatchcase(shown.name, name) for name in self._ignored)


def find(gpus: Sequence[Facts], key: str) -> Facts | None:
    """The facts of a part; None where there is none of this name."""
    return next((part for part in _parts(gpus) if part["uuid"] == key), None)


def _parts(gpus: Sequence[Facts]) -> Iterator[Facts]:
    for gpu in gpus:
        if "fault" not in gpu:
            yield gpu
            yield from gpu.get("instances") or ()
