"""What the demo keeps: its state directory, and the ports that its sessions know."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import socket
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from .model import LOOPBACK, Demo, fail

KEPT_PORTS = ("hub", "proxy_api", "service")
# Below the range from which Linux takes ports for outgoing connections (32768 and up): a port from that range
# may be taken by a connection of a session while the hub is down.
PORT_RANGE = range(10_000, 32_768)
EVERYWHERE = "0.0.0.0"
ANOTHER_STATE = "name one of your own with GPUPOOL_STATE_DIR"

_locks: list[Any] = []  # open for as long as this process lives


def read_port(environ: Mapping[str, str]) -> int:
    """Read GPUPOOL_PORT, at which people reach the hub (8000)."""
    text = environ.get("GPUPOOL_PORT") or "8000"
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 65535):
        fail(f"GPUPOOL_PORT={text!r} is no port; use a whole number from 1 to 65535.")
    return int(text)


def open_state(path: Path) -> Path:
    """Make the state directory, for its owner alone, and return its absolute path."""
    path = path.expanduser().absolute()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = path.resolve()
        mode, owner = path.stat().st_mode, path.stat().st_uid
        if owner != os.geteuid():
            fail(f"The state directory {path} belongs to another account; {ANOTHER_STATE}.")
        if mode & 0o077:
            if any(path.iterdir()):
                fail(
                    f"The state directory {path} is open to other accounts, and it is not empty. "
                    f"If it is the demo's, run `chmod 700 {path}`; if not, {ANOTHER_STATE}."
                )
            path.chmod(0o700)
        if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
            fail(f"The state directory {path} cannot be written; {ANOTHER_STATE}.")
    except OSError as error:
        fail(f"The state directory {path} cannot be used ({error.strerror}); {ANOTHER_STATE}.")
    return path


def lock(state: Path) -> None:
    """Hold the state directory while this process lives, or end with a sentence if another hub does."""
    file = open(os.open(state / "hub.lock", os.O_RDWR | os.O_CREAT, 0o600), "r+")  # noqa: SIM115
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = file.read().strip() or "unknown"
        file.close()
        fail(
            f"Another hub (process {holder}) runs on the state directory {state}: stop it first, "
            "or name another directory (GPUPOOL_STATE_DIR) and another port (GPUPOOL_PORT)."
        )
    file.truncate()
    file.write(f"{os.getpid()}\n")
    file.flush()
    _locks.append(file)


def kept(path: Path) -> str:
    """Return what the file holds; empty where there is none."""
    with contextlib.suppress(FileNotFoundError):
        return path.read_text().strip()
    return ""


def write(path: Path, text: str) -> str:
    """Keep ``text`` in the file, with mode 0600, and return it."""
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text + "\n")
    fresh.replace(path)
    return text


def keep(path: Path, make: Callable[[], str]) -> str:
    """Return what the file holds; where that is nothing, what ``make`` returns, and keep it."""
    return kept(path) or write(path, make())


def is_free(port: int, address: str = LOOPBACK) -> bool:
    """Tell whether this process could listen on ``port``."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True


def choose_ports(names: Iterable[str], public: int) -> dict[str, int]:
    """Find a free port for every name, none of them the public one."""
    ports: dict[str, int] = {}
    for name in names:
        while True:
            port = secrets.choice(PORT_RANGE)
            if port != public and port not in ports.values() and is_free(port, EVERYWHERE):
                break
        ports[name] = port
    return ports


def check_ports(demo: Demo) -> None:
    """End with a sentence that names the port where one of the demo's ports is taken."""
    if demo.port in demo.ports.values() or not is_free(demo.port):
        fail(
            f"Port {demo.port} of {LOOPBACK} cannot be had: something else listens there, or only root may. "
            f"Choose another one: GPUPOOL_PORT={next(p for p in range(8001, 65536) if is_free(p))} make demo"
        )
    for name, port in demo.ports.items():
        # Everywhere: for containers the hub listens on an address of their network, not on loopback.
        if not is_free(port, EVERYWHERE):
            fail(
                f"Port {port}, which this demo keeps for its {name.replace('_', ' ')}, is "
                f"taken by another program. Stop that one; or, if no session of the demo runs any more, "
                f"remove {demo.state / 'ports.json'}. (GPUPOOL_PORT only moves the address that people use.)"
            )
