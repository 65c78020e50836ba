"""The processes of containers, as this machine shows them."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

from ..model import Process
from .proc import AGE, Stat, read, stat_of

CONTAINER = re.compile(r"[0-9a-f]{64}")
INITS = frozenset({"docker-init", "tini", "dumb-init", "catatonit"})
"""Programs that a container may have as its first process in front of the notebook server."""


def processes_of(containers: Collection[str], proc: Path = Path("/proc")) -> dict[str, tuple[Process, ...]]:
    """Find the processes of these containers on this machine, by their control group.

    Containers of an engine elsewhere, or whose processes this account cannot see, are missing.
    """
    wanted = frozenset(containers)
    found: dict[str, list[Stat]] = {}
    for entry in proc.iterdir() if wanted else ():
        with suppress(OSError):  # gone in the meantime, or another account's
            groups = (entry / "cgroup").read_text() if entry.name.isdecimal() else ""
            for key in wanted.intersection(CONTAINER.findall(groups)):
                stat = stat_of(proc, int(entry.name))
                if stat is not None and not stat.gone:
                    found.setdefault(key, []).append(stat)
    return {key: _sorted_out(members, proc) for key, members in found.items()}


def _sorted_out(members: Sequence[Stat], proc: Path) -> tuple[Process, ...]:
    """Telemetry of a container's processes.  The first is the notebook server, or an init with the server as
    its oldest child.

    What its children used before they ended is part of a job's use, but the server's children are the
    kernels: counting them there would count them twice.
    """
    inside = {stat.pid for stat in members}
    first = min((stat for stat in members if stat.parent not in inside), key=AGE)
    servers = {first.pid}
    if read(proc, first, "comm").decode("utf-8", "replace").strip() in INITS:
        children = sorted((stat for stat in members if stat.parent == first.pid), key=AGE)
        servers |= {stat.pid for stat in children[:1]}
    return tuple(
        Process(
            pid=stat.pid,
            created=stat.created,
            cpu_seconds=stat.cpu + (0 if stat.pid in servers else stat.reaped),
            memory_mib=stat.memory_mib,
            server=stat.pid in servers,
        )
        for stat in sorted(members, key=AGE)
    )
