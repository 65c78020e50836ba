"""What the console says: what runs, where, how to log in, how to stop it and how to be rid of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path
from typing import Any

from tornado.httpclient import AsyncHTTPClient, HTTPClientError

from .model import ADMIN, GROUPS, LOOPBACK, Demo

SIMULATED = "simulated: the pool shares out GPUs that are not there; TensorFlow uses the CPU"
REAL = "those of this machine (c.GPUPoolService.devices is 'nvidia')"
LEFT_ALONE = (
    "The NVIDIA GPUs of this machine are left alone; c.GPUPoolService.devices = 'nvidia' shares them out"
)
DRIVER = Path("/proc/driver/nvidia/version")
"""Is there while NVIDIA's driver is loaded."""

_tasks: list[Any] = []  # a task that nobody holds may vanish


def banner(demo: Demo) -> str:
    """Say in plain words what runs, where, how to log in, and how to stop it."""
    groups = "; ".join(f"{', '.join(users)} (group {group})" for group, users in GROUPS.items())
    source = "the one in GPUPOOL_PASSWORD" if demo.password_given else f"{demo.password}"
    where = "" if demo.password_given else f"   (kept in {demo.state / 'password'})"
    backend = _containers(demo) if demo.backend.name == "docker" else _processes(demo)
    lines = [
        f"GPU pool demo at http://{LOOPBACK}:{demo.port}   (this machine only)",
        "",
        f"  Users      {groups}; {ADMIN} (admin)",
        f"  Password   {source}{where}",
        *backend,
        "  Stop       Ctrl-C ends the hub, the proxy, the service and all sessions",
    ]
    width = max(map(len, lines))
    return "\n".join(["", "─" * width, *lines, "─" * width, ""])


def _gpus(demo: Demo) -> list[str]:
    """Which GPUs are shared out.  Simulated ones never take the place of real ones without a word."""
    if demo.devices() == "nvidia":
        return [f"  GPUs       {REAL}"]
    return [f"  GPUs       {SIMULATED}", *([f"             {LEFT_ALONE}"] if DRIVER.exists() else [])]


def _processes(demo: Demo) -> list[str]:
    account = ["  Account    root, the sessions too (--allow-root): an ordinary account is better"]
    return [
        "  Backend    local: sessions are ordinary processes of this account; nothing isolates",
        "             one user from another, so let in only people whom you trust",
        *_gpus(demo),
        f"  State      {demo.state}   (remove it to start afresh)",
        *(account if os.geteuid() == 0 else []),
    ]


def _containers(demo: Demo) -> list[str]:
    # Imported here: the packages of the engine are there only where sessions are containers.
    from ..containment import volume_name
    from ..spawners.docker import network_of

    homes = volume_name(demo.pool, ADMIN).partition(f"-{ADMIN}-")[0]
    return [
        "  Backend    docker: sessions are containers on this machine; they reach the hub and the",
        f"             world, but not each other (network {network_of(demo.pool)})",
        f"  Image      {demo.backend.image}",
        *_gpus(demo),
        f"  Homes      volumes {homes}-…   (they stay; all else in a session ends with it)",
        f"  State      {demo.state}",
        f"  Remove     docker volume rm $(docker volume ls -q -f name={homes}-)",
        f"             docker network rm {network_of(demo.pool)}",
        f"             rm -r {demo.state}",
    ]


def announce(demo: Demo) -> None:
    """Print the banner once the hub answers, below the log of its start; at once where no hub is starting."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        print(banner(demo), flush=True)
        return
    print(f"Starting the hub; its state is in {demo.state}", flush=True)
    _tasks.append(loop.create_task(_announce(demo)))


async def _announce(demo: Demo) -> None:
    client, url = AsyncHTTPClient(), f"http://{LOOPBACK}:{demo.port}/hub/health"
    while True:
        with contextlib.suppress(HTTPClientError, OSError):
            await client.fetch(url, request_timeout=2)
            break
        await asyncio.sleep(0.2)
    print(banner(demo), flush=True)
