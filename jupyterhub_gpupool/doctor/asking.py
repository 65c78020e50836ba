"""How probes ask: each within its time, none of them able to hold the doctor up or to end it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .model import Unknown

MORE_PATH = ("/usr/local/sbin", "/usr/sbin", "/sbin")
"""Where programs of the system lie that are not on everybody's PATH."""

MOST_SAID = 200


@dataclass(frozen=True, slots=True)
class Said:
    """What a command wrote, and how it ended; ``status`` None: it did not end in time."""

    status: int | None
    out: str = ""
    err: str = ""

    @property
    def last(self) -> str:
        """The last line that it wrote, bounded, for a sentence."""
        lines = (self.err.strip() or self.out.strip()).splitlines()
        return lines[-1].strip().rstrip(".")[:MOST_SAID] if lines else ""


def which(name: str) -> str | None:
    """The path of a program, as whoever runs it finds it."""
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), *MORE_PATH]))


def command(program: str, *arguments: str, seconds: float) -> Said:
    """Run a command for so long at most.  A program that cannot be run is status 127."""
    try:
        process = subprocess.Popen(
            [program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={**os.environ, "LC_ALL": "C"},
            start_new_session=True,
        )
    except OSError as problem:
        return Said(127, err=problem.strerror or "")
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        # Not waited for: one that hangs in the driver does not even end when it is killed.
        os.killpg(process.pid, signal.SIGKILL)
        return Said(None)
    return Said(process.returncode, out, err)


@dataclass(frozen=True, slots=True)
class Probe:
    """A question, and for how many seconds its answer is waited for."""

    ask: Callable[[], Any]
    seconds: float = 10.0


def together(probes: Mapping[str, Probe]) -> dict[str, Any]:
    """Ask all of them at once; who is silent or fails is Unknown.

    The threads are daemons: one that hangs in the kernel is left behind, and does not hold the exit up.
    """
    found: dict[str, Any] = {}

    def run(name: str, probe: Probe) -> None:
        try:
            found[name] = probe.ask()
        except Exception as problem:  # whatever it is, the others count; its text might hold a secret
            found[name] = Unknown(f"The doctor could not find out: {type(problem).__name__}.")

    began = time.monotonic()
    threads = {
        name: threading.Thread(target=run, args=(name, probe), daemon=True) for name, probe in probes.items()
    }
    for thread in threads.values():
        thread.start()
    for name, thread in threads.items():
        thread.join(max(0.0, began + probes[name].seconds - time.monotonic()))
    late = {name: Unknown(f"No answer within {probes[name].seconds:g} s.") for name in probes}
    return {name: found.get(name, late[name]) for name in probes}
