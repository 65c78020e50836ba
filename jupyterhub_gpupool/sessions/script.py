"""The owner's own script, which is run in a session before the pool takes it back.

It runs under the session's account and with the session's environment, so it can do nothing there that its
owner could not.  What it writes is under a person's control: only the end of it is kept, and nothing of it is
believed.
"""

from __future__ import annotations

import os
import select
import signal
import stat
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCRIPT = ".gpupool/before-reclaim"
"""Where the script is, below the home."""

TAIL = 8 * 1024
"""Bytes of the end of what it wrote that are kept."""

LOOK = 0.2  # seconds between two looks for the end of the script, whose children may hold its output open


@dataclass(frozen=True, slots=True)
class ScriptEnd:
    """What became of the script: ``done`` with its exit status, ``timeout``, or ``failed`` to run."""

    state: str
    status: int | None = None
    tail: str = ""


@dataclass(frozen=True, slots=True)
class Account:
    """Whom a process runs as."""

    uid: int
    gid: int


def may_run(mode: int) -> bool:
    """Whether a file with this mode is a script to be run: a plain file that somebody may execute."""
    return stat.S_ISREG(mode) and bool(mode & 0o111)


def account_of(status: str) -> Account:
    """The account in the text of ``/proc/PID/status``; the folder's owner says root for who hides from others.

    Raises ValueError where it is not there.
    """
    found = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    try:
        return Account(int(found["Uid"].split()[0]), int(found["Gid"].split()[0]))
    except (KeyError, IndexError) as error:
        raise ValueError("the status of the process names no account") from error


def run(path: Path, environment: Mapping[str, str], account: Account, *, timeout: float) -> ScriptEnd | None:
    """Run a script under an account for at most ``timeout`` seconds; None where there is none to be run."""
    try:
        if not may_run(path.stat().st_mode):
            return None
    except OSError:
        return None
    change: dict[str, Any] = {}
    if account.uid != os.geteuid():
        if os.geteuid() != 0:
            return ScriptEnd("failed", tail="The session runs under an account that the service may not use.")
        change = {"user": account.uid, "group": account.gid, "extra_groups": [account.gid]}
    try:
        process = subprocess.Popen(
            [str(path)],
            env=dict(environment),
            cwd=path.parent.parent,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **change,
        )
    except (OSError, ValueError) as problem:
        return ScriptEnd("failed", tail=f"It cannot be run: {getattr(problem, 'strerror', None) or problem}.")
    with process:
        return _follow(process, timeout)


def _follow(process: subprocess.Popen[bytes], timeout: float) -> ScriptEnd:
    """Read what a script writes until it has ended, whoever else holds its output; kill it when time is up."""
    assert process.stdout is not None
    output = process.stdout.fileno()
    os.set_blocking(output, False)
    deadline, tail = time.monotonic() + timeout, b""
    while True:
        ended = process.poll() is not None  # before reading: what it has written is there by now
        while chunk := _read(output):
            tail = (tail + chunk)[-TAIL:]
            if time.monotonic() >= deadline:
                break  # what writes on and on must not keep us from seeing that its time is up
        left = deadline - time.monotonic()
        if ended or left <= 0:
            break
        select.select([output], [], [], min(left, LOOK))
        if chunk is not None:
            # The output was closed, so nothing wakes us before the end.
            _wait(process, min(left, LOOK))
    text = tail.decode("utf-8", "replace")
    if ended:
        return ScriptEnd("done", process.returncode, text)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return ScriptEnd("timeout", None, text)


def _read(output: int) -> bytes | None:
    """What is there to read: empty at the end, None when there is nothing yet."""
    try:
        return os.read(output, TAIL)
    except BlockingIOError:
        return None


def _wait(process: subprocess.Popen[bytes], seconds: float) -> None:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return
