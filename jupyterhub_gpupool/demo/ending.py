"""How the demo ends: whatever stops it stops all of it, and what a killed hub left behind does not stay."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import NoReturn

import psutil

from .backend import sessions_of
from .model import Demo

END_TIMEOUT = 10.0
"""Seconds that a stale process or a session has to end."""


def end_leftovers(demo: Demo) -> None:
    """End the proxy and the service of this demo's hub, not its sessions: they are adopted.

    Only for when no hub serves them: it was killed, or is ending.
    """
    found = [process for process in psutil.process_iter() if _is_leftover(process, demo)]
    for process in found:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(found, timeout=END_TIMEOUT)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=END_TIMEOUT)


def _is_leftover(process: psutil.Process, demo: Demo) -> bool:
    """Know the proxy and the service by the file that they were started with."""
    try:
        if process.pid == os.getpid() or process.uids().real != os.getuid():
            return False
        command = process.cmdline()
    except psutil.Error:  # gone in the meantime, or not ours to read
        return False
    if command and Path(command[0]).name == "traefik":
        return str(demo.proxy_file) in command
    return "jupyterhub_gpupool" in command and str(demo.service_file) in command


def end_sessions(demo: Demo) -> None:
    """End all sessions of this demo; says so where the backend does not prove that none is left."""
    sessions = sessions_of(demo.backend.name, demo.pool)
    found = sessions.list() if sessions else None
    if sessions is None or found is None:
        _say("whether sessions are left is not known; the next start goes on with them")
        return
    for one in found:
        if not sessions.remove(one.name, timeout=END_TIMEOUT):
            _say(f"session {one.name} of {one.user} may be left; the next start goes on with it")


def prepare_signals(demo: Demo) -> None:
    """See to it that whatever stops the demo stops all of it.

    The hub handles SIGINT and SIGTERM itself, but only once it is up.  A closed terminal is one more way.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell handed them down as ignored
        signal.signal(number, partial(_stop_while_starting, demo))
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        signal.signal(signal.SIGHUP, lambda *_: os.kill(os.getpid(), signal.SIGTERM))


def _stop_while_starting(demo: Demo, number: int, _frame: object) -> NoReturn:
    _say("interrupted while starting; ending what runs already")
    end_leftovers(demo)
    end_sessions(demo)
    # Once more when the hub's threads have ended: one of them may be launching a session.
    atexit.register(end_sessions, demo)
    raise SystemExit(128 + number)


def _say(sentence: str) -> None:
    with contextlib.suppress(OSError):  # the terminal may have gone
        print(f"gpupool: {sentence}", file=sys.stderr, flush=True)
