"""The embedded default: sessions as processes of the hub's own account.  No engine, and no isolation."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import time
from functools import cached_property
from typing import Any

from jupyterhub.spawner import SimpleLocalProcessSpawner
from jupyterhub.utils import random_port
from traitlets import Unicode, default

from ..model import Lease, Session
from ..sessions.local import LocalSessions
from ..sessions.proc import alive, created
from .base import GPUPoolMixin


class GPUPoolLocalSpawner(GPUPoolMixin, SimpleLocalProcessSpawner):
    """Processes on this machine, over simulated or real GPUs."""

    popen_kwargs: dict[str, Any]  # traits of the stock spawner, named here for the type checker
    api_token: str

    isolation_note = (
        "This hub runs everybody's sessions under one account: they are not isolated from each other, and nothing "
        "holds them to the CPU cores and the memory of their profile. Use it to try the pool out, not for data that "
        "others must not see."
    )

    homes = Unicode(
        "homes",
        help="""Folder that holds a home for each user, named by their escaped name and a hash of it. A relative
        path is below the hub's working directory. Example: ``"/srv/gpupool/homes"``.""",
    ).tag(config=True)

    proc: Any
    end_timeout = 10.0
    """Seconds that the processes of a session have to end by themselves before they are killed."""

    @default("home_dir")
    def _default_home_dir(self) -> str:
        return os.path.join(os.path.abspath(self.homes), home_name(self.user.name))

    def make_preexec_fn(self, name: str) -> None:
        """Nothing runs between fork and exec; the working directory is given to Popen instead."""

    @cached_property
    def _sessions(self) -> LocalSessions:
        return LocalSessions(self.pool.name)

    def _prepare(self, lease: Lease) -> dict[str, Any]:
        # The random port that the hub took is free only at the moment it looked: take one now.
        os.makedirs(self.home_dir, mode=0o700, exist_ok=True)
        self.popen_kwargs = {**self.popen_kwargs, "cwd": self.home_dir}
        self.port = random_port()
        return {"port": self.port}

    async def _launched(self, lease: Lease) -> tuple[dict[str, Any], list[str]]:
        found = await self._backend(self._sessions.environment_of, lease.session, self.pid)
        wanted = self.get_env()
        names = ("GPUPOOL_LEASE", "GPUPOOL_CELLS", "GPUPOOL_DEVICES", "NVIDIA_VISIBLE_DEVICES")
        differences = [
            f"{name} is {found.get(name)!r}"
            for name in names
            if found and found.get(name) != wanted.get(name)
        ]
        return {"pid": self.pid}, differences

    async def _attach(self, session: Session) -> None:
        self.proc = None
        self.pid = int(session.runtime.get("pid", 0))
        self.port = int(session.runtime.get("port", 0))
        # Without its token the session's rights would outlive it in the hub's database.
        self.api_token = await self._backend(self._sessions.token, session.name) or self.api_token

    async def _end(self, lease: Lease, now: bool) -> bool:
        known = await self._backend(self._sessions.members, lease.session)
        since = created(self.pid) if self.pid else None
        if not now and (self.pid, since) in known:
            # The notebook server first, and alone: it ends its kernels in order.  Not by the stock stop(),
            # which waits by poll(): that says "running" while anything of the session is left.
            await self._signal(signal.SIGINT)
            await self._backend(_wait_gone, self.pid, since, self.interrupt_timeout)
        gone = await self._backend(
            self._sessions.remove, lease.session, timeout=self.end_timeout, known=known
        )
        if self.proc is not None:
            self.proc.poll()  # no zombie stays
        self.pid = 0 if gone else self.pid
        return bool(gone)


def _wait_gone(pid: int, since: float, timeout: float) -> None:
    """Wait for the end of this very process, at most ``timeout`` seconds.  A zombie has ended."""
    deadline = time.monotonic() + timeout
    while alive(pid, since) and time.monotonic() < deadline:
        time.sleep(0.05)


def home_name(user: str) -> str:
    """A folder name for a user: readable, bounded, and different for different users whatever they are called."""
    readable = re.sub(r"[^a-z0-9_-]+", "-", user.lower())[:32].strip("-") or "user"
    return f"{readable}-{hashlib.sha256(user.encode()).hexdigest()[:12]}"
