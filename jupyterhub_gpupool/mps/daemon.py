"""The MPS control daemon of one GPU: started, asked whether it answers, adopted, ended."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import Unavailable
from ..sessions import proc
from .places import Place

CONTROL = "nvidia-cuda-mps-control"
ANSWER = 3.0
"""Seconds that a daemon has to answer, to be ready after its start, and to end."""
LOOK = 0.05
ISOLATED = (
    "unshare", "--mount", "--propagation", "private",
    "sh", "-c", 'mount --bind "$1" /dev/shm && shift && exec "$@"', "sh",
)  # fmt: skip
"""Runs a program whose ``/dev/shm`` is the folder that is named first: there it meets its clients alone."""


class Daemon:
    """One daemon.  It outlives the service that starts it, as sessions do, and is adopted by the next."""

    def __init__(self, device: str, place: Place, logs: Path, isolated: Sequence[str] = ISOLATED) -> None:
        self.device, self.place, self.logs = device, place, logs
        self._isolated = isolated
        self._child: subprocess.Popen[bytes] | None = None

    def lives(self) -> bool:
        """Whether its process is there."""
        if self._child is not None:
            self._child.poll()  # one that has ended is not kept as a zombie
        return self.place.daemon() is not None

    def answers(self) -> bool:
        """Whether it is there and says what it serves."""
        return self.lives() and self._tell("get_server_list")

    def start(self) -> None:
        """Start it and wait until it answers.  Only where it does not live and nobody is on its GPU.

        Raises Unavailable with the reason when it does not come up.
        """
        try:
            self.place.make()
            self._clear()
            self.logs.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open(self.logs / "output.log", "ab") as output:
                self._child = subprocess.Popen(
                    [*self._isolated, str(self.place.shm), CONTROL, "-f"]
                    if self._isolated
                    else [CONTROL, "-f"],
                    env=self._environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
        except OSError as problem:
            raise Unavailable(
                f"its MPS daemon cannot be started: {problem.strerror}", reason="mps"
            ) from problem
        self.place.pid.write_text(f"{self._child.pid} {proc.created(self._child.pid)}")
        give_up_at = time.monotonic() + ANSWER
        while not self.answers():
            ended = self._child.poll()
            if ended is not None or time.monotonic() > give_up_at:
                self.end()
                what = "does not answer" if ended is None else f"ended at once with status {ended}"
                raise Unavailable(
                    f"its MPS daemon {what}, see the files in {self.logs}; it needs root and the program {CONTROL}",
                    reason="mps",
                )
            time.sleep(LOOK)

    def end(self) -> None:
        """End it, by its own command or by signals.  Only where nobody is on its GPU."""
        found = self.place.daemon()
        if found is None:
            return
        self._tell("quit")
        for sent in (None, signal.SIGTERM, signal.SIGKILL):
            if sent is not None and proc.alive(*found):
                os.killpg(found[0], sent)  # with the servers that it has started
            give_up_at = time.monotonic() + ANSWER
            while self.lives():
                if time.monotonic() > give_up_at:
                    break
                time.sleep(LOOK)
            else:
                break

    def _tell(self, command: str) -> bool:
        """Give it a command; whether it took it in time."""
        try:
            done = subprocess.run(
                [CONTROL],
                env=self._environment(),
                input=f"{command}\n".encode(),
                capture_output=True,
                timeout=ANSWER,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return False
        return done.returncode == 0

    def _environment(self) -> Mapping[str, str]:
        """Nothing of the service's own, whose tokens a server has no use for."""
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "CUDA_VISIBLE_DEVICES": self.device,
            "CUDA_MPS_PIPE_DIRECTORY": str(self.place.pipe),
            "CUDA_MPS_LOG_DIRECTORY": str(self.logs),
        }

    def _clear(self) -> None:
        """Take away what sessions have left in the memory that they shared, and the pipes of a dead daemon."""
        for folder in (self.place.shm, self.place.pipe):
            for entry in folder.iterdir():
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry, ignore_errors=True)
                else:
                    entry.unlink(missing_ok=True)
