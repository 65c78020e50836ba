"""Named points between two side effects at which a test can make the process fail.

``GPUPOOL_FAULT=<name>:<kill|raise>:<n>`` arms one point (several are separated by commas): at its n-th
passing the process kills itself with SIGKILL or raises.  ``GPUPOOL_FAULT=@<file>`` reads the same from a
file whenever a point is passed: so a process is armed that runs already, and whoever fails removes the file.
Without the variable a point does nothing.
The idea is SQLite's fault injection and FoundationDB's *buggify*.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

POINTS: dict[str, str] = {
    "enqueue.done": "the request is in the queue, nobody waits for it yet",
    "grant.seen": "the hub has read the grant, the session's port is not chosen",
    "launch.intent": "port and session name are written, nothing runs",
    "create.done": "the session's container is there, and was not started",
    "launch.done": "the session runs, its pid is not written",
    "check.done": "the launch check is recorded, the lease is not active",
    "activate.done": "the lease is active, the hub does not know the server's address",
    "stop.intent": "the lease is stopping, the session runs",
    "stop.done": "the session is gone, its slices are held",
    "close.done": "the slices are free, the hub does not know that the server has stopped",
    "sweep.sampled": "the samples are taken, nothing is judged",
    "sweep.judged": "the verdicts are stored, nothing is stopped",
    "sweep.intent": "an idle lease is stopping, the hub was not told",
    "sweep.told": "the hub was told to stop a server, nothing is proved",
    "sweep.tidied": "left-overs are closed, the sweep is not marked as done",
}
"""Every point with what is true there.  A test names them all."""

_hook: Callable[[str], None] | None = None
_passed: Counter[str] = Counter()


class InjectedFault(RuntimeError):
    """What an armed point raises."""


def install(hook: Callable[[str], None] | None) -> None:
    """Let a test see every point that is passed; ``None`` takes the hook away again."""
    global _hook
    _hook = hook


def point(name: str) -> None:
    """Fail here if a test asked for it.  Raises KeyError for a name that :data:`POINTS` lacks."""
    POINTS[name]
    if _hook is not None:
        _hook(name)
    armed, file = os.environ.get("GPUPOOL_FAULT", ""), None
    if armed.startswith("@"):
        file = Path(armed[1:])
        try:
            armed = file.read_text()
        except FileNotFoundError:
            return
    if not armed:
        return
    _passed[name] += 1
    for spec in armed.split(","):
        wanted, action, count = ([*spec.split(":"), "kill", "1"])[:3]
        if wanted == name and _passed[name] == int(count):
            if file is not None:
                file.unlink(missing_ok=True)
            if action == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise InjectedFault(f"fault point {name}")
