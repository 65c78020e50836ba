"""One process of this machine, as ``/proc`` tells of it.

Not through psutil, because its creation time is a time of day, which a change of the clock moves, and because
its wait reaps the hub's children behind the back of the hub.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Stat:
    """What ``/proc/PID/stat`` says.  CPU in seconds, ``reaped`` of children that were waited for."""

    pid: int
    parent: int
    created: float
    gone: bool
    cpu: float
    reaped: float
    memory_mib: int
    kernel: bool


AGE = attrgetter("created", "pid")


def created(pid: int, proc: Path = Path("/proc")) -> float | None:
    """Say when the process was created, in seconds since the machine's start; None if none lives there.

    Together with the pid it is the identity of a process.  A zombie does not live.
    """
    found = stat_of(proc, pid)
    return None if found is None or found.gone else found.created


def alive(pid: int, since: float) -> bool:
    """Say whether this very process lives: not missing, not a zombie, not another with the same pid."""
    return created(pid) == since


def _bytes(path: str) -> bytes:
    """Read a whole file; ``pathlib`` takes twice the time, and a scan reads two for each process."""
    with open(path, "rb", buffering=0) as file:
        return file.readall()


def stat_of(proc: Path, pid: int) -> Stat | None:
    """Read the state of a process; None when it is gone."""
    try:
        text = _bytes(f"{proc}/{pid}/stat")
    except (FileNotFoundError, ProcessLookupError):
        return None
    if not text:
        return None
    words = text.rpartition(b")")[2].split()  # the program's name, in brackets, may hold anything
    # A zombie with more threads than one is a process that runs on although its first thread has ended.
    return Stat(
        pid=pid,
        parent=int(words[1]),
        created=int(words[19]) / TICKS,
        gone=words[0] in b"ZXx" and int(words[17]) <= 1,
        cpu=(int(words[11]) + int(words[12])) / TICKS,
        reaped=(int(words[13]) + int(words[14])) / TICKS,
        memory_mib=int(words[21]) * PAGE // MIB,
        kernel=words[20] == b"0",
    )


def read(proc: Path, stat: Stat, name: str) -> bytes:
    """Read a file of a process; empty when the process is gone or hides it.  Other errors are raised."""
    try:
        return _bytes(f"{proc}/{stat.pid}/{name}")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""
