"""What a session's own server and the hub say of it, as signals with three values.  Pure.

Whether a GPU is used is told by its telemetry alone.  These signals say whether somebody is at work *beside*
an idle GPU: kernels and terminals of the session can put its end off, what the hub has seen is only told,
because an open browser tab is activity to the hub.  The answers come from a server that a person controls, so
nothing is taken for granted: what is not as expected is unknown, and unknown is never idle.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

GPU = "gpu"
PROCESSES = "processes"
KERNEL = "kernel"
TERMINAL = "terminal"
SESSION = "session"
"""Its server as a whole: it did not answer."""
HUB = "hub"

AT_WORK = frozenset({KERNEL, TERMINAL, SESSION})
"""Signals that put the end of an idle GPU off: by being active, or by being unknown."""

WORDS = {
    GPU: "GPU activity",
    PROCESSES: "processes on the GPU",
    KERNEL: "kernels",
    TERMINAL: "terminals",
    SESSION: "the session's server, which does not say",
    HUB: "the hub",
}
"""What pages call a signal."""

MOST = 500
"""Kernels or terminals of one session; a list that is longer is not read."""

RUNNING = "busy"
RESTING = frozenset({"idle", "starting", "restarting", "autorestarting", "terminating", "dead"})
"""States of a kernel, as Jupyter calls them, in which no cell runs.  Any other word is unknown."""


class Level(StrEnum):
    """What a signal says.  UNKNOWN is neither: nothing follows from it."""

    ACTIVE = "active"
    QUIET = "quiet"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Signal:
    """One signal, with its ground in words."""

    name: str
    level: Level
    ground: str


@dataclass(frozen=True, slots=True)
class Work:
    """The signals of one session beside its GPU; without any nobody was asked, and the GPU decides alone."""

    signals: tuple[Signal, ...] = ()

    @property
    def decisive(self) -> Signal | None:
        """The signal that puts an end off: an active one before an unknown one; None: nothing does."""
        found = [one for one in self.signals if one.name in AT_WORK and one.level is not Level.QUIET]
        return min(found, key=lambda one: one.level is not Level.ACTIVE, default=None)

    @property
    def grounds(self) -> str:
        """All that was said, in words; empty when nobody was asked."""
        return ", ".join(one.ground for one in self.signals)


def silent(why: str) -> Work:
    """What is known of a session whose server could not be asked."""
    return Work((Signal(SESSION, Level.UNKNOWN, f"what its kernels do is unknown ({why})"),))


def kernels(answer: object) -> Signal:
    """Read the answer to ``GET api/kernels``: is a cell running?"""
    listed = _listed(answer)
    states: list[object] = [None] if listed is None else [one.get("execution_state") for one in listed]
    if not states:
        return Signal(KERNEL, Level.QUIET, "no kernel is open")
    running = states.count(RUNNING)
    if running:
        many = "a cell is" if running == 1 else f"{running} cells are"
        return Signal(KERNEL, Level.ACTIVE, f"{many} running")
    if all(isinstance(state, str) and state in RESTING for state in states):
        return Signal(KERNEL, Level.QUIET, "no cell is running")
    return Signal(KERNEL, Level.UNKNOWN, "whether a cell is running is unknown")


def terminals(answer: object, now: float, recent: float) -> Signal:
    """Read the answer to ``GET api/terminals``: was one used within ``recent`` seconds?

    ``now`` is in seconds since 1970.  A terminal is used when something is typed or written there.
    """
    listed = _listed(answer)
    if listed == []:
        return Signal(TERMINAL, Level.QUIET, "no terminal is open")
    times = [moment(one.get("last_activity")) for one in listed or ()]
    known = [at for at in times if at is not None]
    ago = max(0.0, now - max(known)) if known else math.inf
    if ago < recent:
        return Signal(TERMINAL, Level.ACTIVE, f"a terminal was in use {span(ago)} ago")
    if listed is None or len(known) < len(times):
        return Signal(TERMINAL, Level.UNKNOWN, "whether a terminal is in use is unknown")
    return Signal(TERMINAL, Level.QUIET, f"no terminal was in use for {span(ago)}")


def hub(last_activity: float | None, now: float, recent: float) -> Signal:
    """What the hub has seen of a server; never a reason to keep a GPU."""
    if last_activity is None:
        return Signal(HUB, Level.UNKNOWN, "the hub has seen no activity")
    ago = max(0.0, now - last_activity)
    level = Level.ACTIVE if ago < recent else Level.QUIET
    return Signal(HUB, level, f"the hub saw activity {span(ago)} ago")


def moment(text: object) -> float | None:
    """An ISO 8601 time as seconds since 1970, UTC where it has no zone; None where it is none."""
    if not isinstance(text, str) or len(text) > 64:
        return None
    try:
        found = datetime.fromisoformat(text.replace("Z", "+00:00"))
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def span(seconds: float) -> str:
    """Seconds in words, coarser the longer it is."""
    if not seconds >= 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    hours, minutes = divmod(round(min(seconds, 1e9) / 60), 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def _listed(answer: object) -> list[Mapping[str, object]] | None:
    """The entries of an answer; None for what is no list of objects, or too long to be one."""
    if not isinstance(answer, list) or len(answer) > MOST:
        return None
    return answer if all(isinstance(one, dict) for one in answer) else None
