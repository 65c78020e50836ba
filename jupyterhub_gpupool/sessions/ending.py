"""Signals to processes that are meant, and to no others that come to have their pids."""

from __future__ import annotations

import logging
import os
import select
import signal
import time
from collections.abc import Collection
from contextlib import ExitStack

from .proc import created

log = logging.getLogger(__name__)

Identity = tuple[int, float]
"""A process for good: its pid, and when it was created in seconds since the machine's start."""

WATCHED = 64
"""Processes whose end is waited for at once; each takes a file descriptor of the hub."""


def end(fresh: Collection[Identity], asked: Collection[Identity], number: int, timeout: float) -> None:
    """Send a signal to ``fresh`` and wait until these and ``asked`` have ended, at most ``timeout`` seconds.

    A pidfd makes sure that the signal reaches this very process, and tells of its end without reaping it.
    Raises OSError where the kernel has no pidfd (before Linux 5.3) or no file descriptor is left.
    """
    deadline = time.monotonic() + timeout
    with ExitStack() as stack:
        waiting = select.poll()
        watched: set[int] = set()
        for pid, since in (*fresh, *asked):
            try:
                handle = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            with ExitStack() as brief:
                brief.callback(os.close, handle)
                if created(pid) != since:
                    continue
                try:
                    if (pid, since) in fresh:
                        signal.pidfd_send_signal(handle, number)
                except ProcessLookupError:
                    continue
                except PermissionError:
                    log.warning("Process %d of a session runs under another account and cannot be ended", pid)
                if len(watched) < WATCHED:
                    stack.push(brief.pop_all())
                    waiting.register(handle, select.POLLIN)
                    watched.add(handle)
        while watched and (left := deadline - time.monotonic()) > 0:
            for handle, _ in waiting.poll(left * 1000):
                waiting.unregister(handle)
                watched.discard(handle)
