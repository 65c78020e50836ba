"""What the parts of the demo know of it: its users, its files, and how it refuses."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

GROUPS = {"vision": ["ada", "grace"], "students": ["linus", "alan"]}
ADMIN = "admin"
USERS = [*(user for users in GROUPS.values() for user in users), ADMIN]

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Backend:
    """How the demo runs its sessions: ``image`` is the id of theirs, empty where they are no containers."""

    name: str
    image: str = ""


@dataclass(frozen=True, slots=True)
class Demo:
    """What the environment and the state directory say about this demo."""

    state: Path
    backend: Backend
    port: int
    ports: Mapping[str, int]
    password: str
    password_given: bool
    devices: Callable[[], str] = lambda: "simulated"
    """Which GPUs are shared out: it is known when the configuration is complete."""

    @property
    def pool(self) -> str:
        """The pool's name: two demos on one machine know their own sessions by it."""
        return pool_of(self.state)

    @property
    def proxy_file(self) -> Path:
        return self.state / "traefik.toml"

    @property
    def service_file(self) -> Path:
        """The configuration of the service, as ``configure`` names it."""
        return self.state / "service.json"


def pool_of(state: Path) -> str:
    """Name the pool of a state directory."""
    return f"demo-{hashlib.sha256(str(state).encode()).hexdigest()[:8]}"


def fail(message: str) -> NoReturn:
    """End the process with one sentence."""
    print(f"gpupool: {message}", file=sys.stderr, flush=True)
    raise SystemExit(1)
