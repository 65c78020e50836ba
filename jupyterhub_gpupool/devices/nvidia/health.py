"""May a GPU be handed out?  From its events, and from what the driver keeps about its condition.

A GPU is sick while the driver asks for something to be done about it, and for a while after a critical event;
then it is given again, because nothing speaks against it any more.  The rules on XIDs are those of NVIDIA's
device plugin for Kubernetes, but there a sick GPU never comes back.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterable, Mapping
from enum import IntEnum
from typing import Any

from ...model import Health
from .codes import GPU_IS_LOST, GPU_NOT_FOUND, RESET_REQUIRED

Facts = Mapping[str, Any]

APPLICATION_XIDS = (13, 31, 43, 45, 68, 109)
"""XIDs that a program causes, not the GPU."""


class _Kind(IntEnum):
    """Events that say something about a GPU's condition."""

    DOUBLE_BIT = 0x2
    XID = 0x8
    UNAVAILABLE = 0x4000


XIDS = {
    48: "a memory error that could not be corrected",
    63: "a row of the memory is replaced",
    64: "a row of the memory could not be replaced",
    74: "an error of NVLink",
    79: "the GPU has fallen off the bus",
    94: "a memory error that was contained",
    95: "a memory error that was not contained",
    119: "the GPU's own processor does not answer",
}
RECOVERY = {
    1: "a reset of the GPU",
    2: "a reboot of the machine",
    3: "that nothing more uses its links",
    4: "that nothing more uses its links, and a reset",
    5: "a recovery of the IMEX domain",
    6: "a reset of its bus",
    7: "a restart of the whole system",
}
"""What the driver can ask for, as the end of a sentence."""
FAULTS = {
    GPU_IS_LOST: (Health.LOST, "the driver has lost it: it no longer answers on the bus"),
    GPU_NOT_FOUND: (Health.LOST, "the driver no longer finds it"),
    RESET_REQUIRED: (Health.SICK, "the driver refuses it until it is reset"),
}


ERRORS = "{} memory errors that could not be corrected"
ROWS = "{} rows of its memory were replaced after errors that could not be corrected"
_EVENT = re.compile(
    "XID |a memory error that could not be corrected at|it became unavailable at"
    f"|{ERRORS.format('[0-9]+')}|{ROWS.format('[0-9]+')}"
)
"""How the reasons begin that rest on what has happened, or was counted, since: nobody can ask for it again."""


def judge_fault(code: int) -> tuple[Health, str]:
    """The health of a GPU whose own calls fail with this error."""
    return FAULTS.get(code, (Health.SICK, f"the driver answers with error {code}"))


class Watch:
    """Remembers what has happened to each GPU.  Times are seconds that never go back."""

    def __init__(self, ignored: Collection[int], heal_after: float) -> None:
        self._ignored, self._heal_after = frozenset(ignored), heal_after
        self._trouble: dict[str, tuple[float, str]] = {}
        self._counted: dict[tuple[str, str], int] = {}

    def note(self, events: Iterable[Facts], now: float) -> list[str]:
        """Take events; returns a sentence for each that makes a GPU sick."""
        said = []
        for event in events:
            reason = self._reason(event)
            if reason:
                self._trouble[event["uuid"]] = now, reason
                said.append(f"GPU {event['uuid']}: {reason}")
        return said

    def _reason(self, event: Facts) -> str:
        at = time.strftime("%H:%M UTC", time.gmtime())
        match event["kind"]:
            case _Kind.XID:
                number = int(event["number"])
                if number in self._ignored:
                    return ""
                words = f" ({XIDS[number]})" if number in XIDS else ""
                return f"XID {number}{words} at {at}"
            case _Kind.DOUBLE_BIT:
                return f"a memory error that could not be corrected at {at}"
            case _Kind.UNAVAILABLE:
                return f"it became unavailable at {at}"
        return ""

    def recall(self, uuid: str, reason: str, now: float) -> None:
        """Take an event that an earlier process has seen; anything else the card itself tells anew."""
        if _EVENT.match(reason):
            self._trouble.setdefault(uuid, (now, reason))

    def trouble(self, uuid: str, now: float) -> str:
        """The event for which a GPU is sick now; empty: none."""
        at, reason = self._trouble.get(uuid, (0.0, ""))
        return reason if reason and now - at < self._heal_after else ""

    def judge(self, gpu: Facts, now: float) -> tuple[Health, str]:
        """Say whether a GPU that answers is well, and if not, why."""
        kept, uuid = gpu["health"], gpu["uuid"]
        if kept["recovery"]:
            asked = RECOVERY.get(kept["recovery"], f"recovery action {kept['recovery']}")
            return Health.SICK, f"the driver asks for {asked}"
        if kept["remapped"] is not None:
            _, uncorrected, pending, failed = kept["remapped"]
            if failed:
                return Health.SICK, "a row of its memory could not be replaced: it has to be exchanged"
            # Where the driver has recovery actions it says by them whether what is pending matters now.
            if pending and uncorrected and kept["recovery"] is None:
                return Health.SICK, "rows of its memory wait to be replaced: it has to be reset"
        if kept["retired"]:
            return Health.SICK, "pages of its memory wait to be retired: it has to be reset"
        self._count(uuid, "ecc", kept["ecc"], ERRORS, now)
        if kept["remapped"] is not None:
            self._count(uuid, "rows", kept["remapped"][1], ROWS, now)
        if reason := self.trouble(uuid, now):
            return Health.SICK, reason
        self._trouble.pop(uuid, None)
        return Health.OK, ""

    def _count(self, uuid: str, what: str, count: int | None, words: str, now: float) -> None:
        """What the card counts tells of events that nobody took, as while the helper process was away."""
        if count is None:
            return
        before = self._counted.get((uuid, what), count)
        self._counted[uuid, what] = count
        if count > before and not self.trouble(uuid, now):
            self._trouble[uuid] = now, words.format(count - before)
