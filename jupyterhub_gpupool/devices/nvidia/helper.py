"""The service's side of the helper process: requests with a deadline, and a new process when one is lost."""

from __future__ import annotations

import json
import logging
import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...errors import Unavailable
from .codes import state_of

ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "TZ", "PYTHONPATH", "LD_LIBRARY_PATH")
"""All that the helper process inherits: no token of the hub, no setting that changes how NVML answers."""

ROOT = Path(__file__).parents[3]
OPENING = 90.0
"""Seconds that opening the driver may take: on a machine with many GPUs and no persistence mode, long."""
LONGEST_PAUSE = 60.0
DYING = 1.0
"""Seconds that a killed process gets to end."""
CHUNK = 1 << 16
LONGEST_ANSWER = 1 << 26
COMMAND = (sys.executable, "-m", "jupyterhub_gpupool.devices.nvidia.worker")


class Silent(Unavailable):
    """The driver does not answer: nothing is known.  The message is a sentence for the admin."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason="driver")


class Broken(Silent):
    """The driver answers that it does not work; ``code`` is NVML's."""

    def __init__(self, code: int) -> None:
        super().__init__(state_of(code))
        self.code = code


class Helper:
    """One helper process at a time.  Its methods may be called from any thread; one request is under way at most.

    ``timeout`` is the seconds that an answer may take.  A process that does not answer is killed, and another
    one is started only when it is gone and after a pause that doubles with each failure: a driver that hangs
    holds at most one process.
    """

    def __init__(
        self,
        library_dir: str = "",
        timeout: float = 5.0,
        *,
        clock: Callable[[], float] = time.monotonic,
        log: logging.Logger | None = None,
        command: tuple[str, ...] = COMMAND,
        opening: float = OPENING,
        least_pause: float = 1.0,
    ) -> None:
        self._library_dir, self._timeout, self._clock = library_dir, timeout, clock
        self._log = log or logging.getLogger(__name__)
        self._command, self._opening, self._least_pause = command, opening, least_pause
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._dying: subprocess.Popen[bytes] | None = None
        self._buffer = bytearray()
        self._ready = False
        self._started_at = 0.0
        self._failures = 0
        self._not_before = 0.0
        self._last: Silent | None = None
        self._number = 0

    def ask(self, what: str) -> dict[str, Any]:
        """Ask for ``inventory`` or ``sample``.  Raises Silent, and Broken where the driver says why."""
        if not self._lock.acquire(timeout=self._timeout):
            raise Silent("The NVIDIA driver is still being asked by an earlier request.")
        try:
            return self._ask(what, self._clock() + self._timeout)
        finally:
            self._lock.release()

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._kill()
            if self._dying is not None:
                self._dying.wait(self._timeout)

    # --- the request -----------------------------------------------------------------------------------

    def _ask(self, what: str, deadline: float) -> dict[str, Any]:
        self._start()
        if not self._ready:
            self._open(deadline)
        self._number += 1
        self._write({"id": self._number, "do": what})
        found = self._read(deadline)
        if found is None:
            raise self._fail(
                Silent(
                    f"The NVIDIA driver has not answered for {self._timeout:g} s: it hangs. Nothing is known of "
                    "the GPUs until it answers again."
                )
            )
        if "fault" in found:
            raise self._fail(Broken(int(found["fault"])))
        if found.get("id") != self._number:
            raise self._fail(Silent("The process that asks the NVIDIA driver has answered something else."))
        self._failures, self._last = 0, None
        return found

    def _start(self) -> None:
        if self._process is not None:
            return
        if self._clock() < self._not_before and self._last is not None:
            raise self._last
        if self._dying is not None:
            try:
                self._dying.wait(DYING)
            except subprocess.TimeoutExpired:
                raise Silent(
                    "The NVIDIA driver hangs so that even the process that asks it cannot be ended."
                ) from None
        self._dying = None
        given = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        given["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [given.get("PYTHONPATH")])])
        if self._library_dir:
            given["LD_LIBRARY_PATH"] = self._library_dir
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=given, bufsize=0
        )
        self._buffer.clear()
        self._ready, self._started_at = False, self._clock()

    def _open(self, deadline: float) -> None:
        """Wait until the process has opened the driver."""
        found = self._read(deadline)
        if found is not None and "fault" in found:
            raise self._fail(Broken(int(found["fault"])))
        if found is None:
            if self._clock() - self._started_at < self._opening:
                raise Silent("The NVIDIA driver is being opened, which has not ended yet.")
            raise self._fail(
                Silent(f"The NVIDIA driver could not be opened within {self._opening:g} s: it hangs.")
            )
        self._ready = True

    # --- the pipe ----------------------------------------------------------------------------------------

    def _write(self, request: dict[str, Any]) -> None:
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
        except BrokenPipeError as gone:
            raise self._fail(self._ended()) from gone

    def _read(self, deadline: float) -> dict[str, Any] | None:
        """The next line of the process; None when it does not come in time."""
        assert self._process is not None and self._process.stdout is not None
        source = self._process.stdout.fileno()
        with selectors.DefaultSelector() as selector:
            selector.register(source, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if not selector.select(max(0.0, deadline - self._clock())):
                    return None
                chunk = os.read(source, CHUNK)
                if not chunk or len(self._buffer) > LONGEST_ANSWER:
                    raise self._fail(self._ended())
                self._buffer += chunk
        line, _, rest = bytes(self._buffer).partition(b"\n")
        self._buffer = bytearray(rest)
        try:
            found = json.loads(line)
        except ValueError as error:
            raise self._fail(
                Silent("The process that asks the NVIDIA driver has answered something else.")
            ) from error
        return found if isinstance(found, dict) else {}

    # --- failures ------------------------------------------------------------------------------------------

    def _ended(self) -> Silent:
        assert self._process is not None
        try:
            status: object = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            status = "unknown"
        return Silent(f"The process that asks the NVIDIA driver has ended by itself (exit status {status}).")

    def _fail(self, problem: Silent) -> Silent:
        """End the process, and let the next one wait; returns what is to be raised."""
        self._kill()
        pause = min(LONGEST_PAUSE, self._least_pause * 2**self._failures)
        self._failures = min(self._failures + 1, 16)
        self._not_before, self._last = self._clock() + pause, problem
        return problem

    def _kill(self) -> None:
        if self._process is None:
            return
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        # Not waited for: in a system call of the driver it may not be able to end.
        self._dying, self._process = self._process, None
        self._ready = False
