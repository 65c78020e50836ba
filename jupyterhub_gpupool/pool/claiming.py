"""One hub serves a pool: this process's claim to it, and what is known here of another's.

A hub that was killed must be able to start again at once, and one on another machine must be able to take over
when the first is gone.  So a claim names the process.  Where that can be looked up, which is on the same machine
since its last start, it is looked up; of any other process only silence tells that it is gone.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

from ..errors import Unavailable
from ..ledger import OTHER_HUB, HubRow, Ledger
from ..sessions import proc

LOOK = 0.5
"""Seconds between two looks at whether another hub still says that it lives."""


def this_process() -> str:
    """Name this process: its number, when it was created, and where both are known."""
    return f"{os.getpid()} {proc.created(os.getpid())} {_here()}"


def _here() -> str:
    """The boot of this machine and the namespace of process numbers; empty where the kernel tells neither."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def lives(process: str) -> bool | None:
    """Say whether a process lives; None where that cannot be seen from here."""
    pid, created, here = (*process.split(" ", 2), "", "")[:3]
    if not here or here != _here() or not pid.isdecimal():
        return None
    return str(proc.created(int(pid))) == created


def claim(
    ledger: Ledger, name: str, *, patience: float = 0.0, waits: Callable[[HubRow], None] = lambda hub: None
) -> None:
    """Register this process as the hub of the pool.  Blocks for up to ``patience`` seconds.

    That long another hub is watched of which only the ledger tells (``waits`` is called for it): once it says
    that it lives, or when the time is over, Unavailable is raised.  It is raised at once for one that is seen
    to live, and not at all for one that is seen to be gone.
    """
    process, host = this_process(), socket.gethostname()[:255]
    give_up_at = time.monotonic() + patience
    heard: dict[str, float] = {}
    while True:
        others = [hub for hub in ledger.hubs() if hub.process != process]
        seen = {hub.process: lives(hub.process) for hub in others}
        gone = [key for key, alive in seen.items() if alive is False]
        try:
            ledger.register_hub(name, host=host, process=process, gone=gone)
            return
        except Unavailable as problem:
            spoke = any(hub.silent < heard.get(hub.process, 0.0) for hub in others)
            if (
                problem.reason != OTHER_HUB
                or spoke
                or True in seen.values()
                or time.monotonic() >= give_up_at
            ):
                raise
        for hub in others:
            if hub.process not in heard:
                waits(hub)
            heard[hub.process] = hub.silent
        time.sleep(LOOK)
