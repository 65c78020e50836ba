"""Where the daemon of a GPU keeps its pipes, and the memory that it shares with its clients.

They are in the machine's ``/run`` and ``/dev/shm``, so that hub and service find them by the GPU alone, that they end
with the machine as the daemon does, and that the path of a socket stays short.  The pipes are not in ``/dev/shm``,
because the daemon has another one.  The outer folders are root's, so nobody on the machine reaches what is in
them; a session gets ``pipe`` and ``shm``, and those of no other GPU.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from ..containment import MPS_SHARED
from ..errors import Unavailable
from ..sessions import proc

PIPES = "/run/gpupool-mps-"


@dataclass(frozen=True, slots=True)
class Place:
    """The folders of one GPU's daemon."""

    root: Path
    memory: Path

    @property
    def pipe(self) -> Path:
        """The daemon's sockets: every session on the GPU may connect to them."""
        return self.root / "pipe"

    @property
    def shm(self) -> Path:
        """What is ``/dev/shm`` for the daemon and for every session on the GPU."""
        return self.memory / "shm"

    @property
    def pid(self) -> Path:
        """Which process the daemon is."""
        return self.root / "daemon"

    def make(self) -> None:
        """Make the folders.  Raises Unavailable where somebody else has taken the place."""
        for root in (self.root, self.memory):
            root.mkdir(mode=0o700, exist_ok=True)
            found = root.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
                raise Unavailable(
                    f"{root} is not a folder of this service's account alone, so no MPS daemon is started in it: "
                    "remove it.",
                    reason="mps",
                )
        # What is made in them is the sessions': their account is another one.
        for folder, mode in ((self.pipe, 0o755), (self.shm, 0o1777)):
            folder.mkdir(exist_ok=True)
            folder.chmod(mode)

    def daemon(self) -> tuple[int, float] | None:
        """The daemon that was started last, as number and creation of its process, while it lives."""
        try:
            pid, created = self.pid.read_text().split()
            found = int(pid), float(created)
        except (OSError, ValueError):  # none was started, or by an account that hides it: then it is not ours
            return None
        return found if proc.alive(*found) else None


def place_of(device: str) -> Place:
    """The place of a GPU, by its UUID."""
    return Place(Path(f"{PIPES}{device}"), Path(f"{MPS_SHARED}{device}"))
