"""What every container gets on top of what DockerSpawner asks for, and why; an admin's own values win."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from .paths import plain_key
from .rules import DANGERS

PIDS = 4096
SHM_SIZE = 1 << 30
TMP_SIZE = 2 << 30
LOG_SIZE = 10 << 20
LOG_FILES = 3

GIVEN = {
    "cap_drop": "No capability of root is left, so even a program that becomes root inside can do little outside.",
    "security_opt": "`no-new-privileges`: no setuid program inside makes anybody root. The engine's own seccomp and "
    "AppArmor profiles stay as they are.",
    "pids_limit": "A fork bomb fills the session, not the machine.",
    "ipc_mode": "`/dev/shm` is the session's own: what one writes there nobody else reads. On a GPU shared through "
    "MPS it is that of all sessions on it, and grows as far as the machine's own.",
    "shm_size": "Room for programs that share data between their processes; the engine's 64 MiB end in a bus "
    "error. What is written there counts as the session's memory.",
    "tmpfs": "`/tmp` is in the session's memory, cannot fill the machine's disk and is gone at the end. Programs may "
    "run from it, as compilers do that build there, but neither setuid programs nor devices work.",
    "init": "A small first process takes in orphans and hands signals on, so that ended processes do not pile up.",
    "restart_policy": "A session that the engine restarts by itself would run without a lease.",
    "log_config": "What the session prints is cut to a few files, so that it cannot fill the machine's disk.",
    "memswap_limit": "The memory limit holds for memory and swap together; otherwise a session swaps for everybody. "
    "Where a profile says nothing, three quarters of the machine's memory.",
    "cpuset_cpus": "TensorFlow starts as many threads as it sees CPUs, and `cpu_limit` alone hides none. Only where "
    "the profile's `cpuset` names CPUs, and for several GPUs those of their NUMA nodes.",
}
"""Each key that :func:`host_config` gives, and its reason."""

_UNITED = ("cap_drop", "security_opt")
"""Lists to which an admin's own entries are added."""

_WHOLE = ("log_config", "restart_policy")
"""Dictionaries whose parts make no sense under another one's."""


_BINDS = ("cpuset", "cpusetcpus", "cpusetmems", "cgroupparent")
"""Settings of a container that say on which CPUs it runs, as :func:`.paths.plain_key` writes them."""


def host_config(
    *,
    mem_limit: int | None = None,
    cpuset: str = "",
    pids_limit: int = PIDS,
    shm_size: int = SHM_SIZE,
    tmp_size: int = TMP_SIZE,
    log_size: int = LOG_SIZE,
    log_files: int = LOG_FILES,
) -> dict[str, Any]:
    """Return the keyword arguments for docker-py's ``create_host_config`` that every container gets.

    All sizes in bytes; ``log_size`` is that of each of the ``log_files`` files.  ``shm_size`` and ``tmp_size``
    are at most half of ``mem_limit`` (None: no limit), because what is written there counts against it.
    ``cpuset`` lists CPUs (``0-7,16``; empty: all).  How the kernel ends programs that run out of memory is
    left alone.
    """
    most = mem_limit // 2 if mem_limit else max(shm_size, tmp_size)
    found: dict[str, Any] = {
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "pids_limit": pids_limit,
        "ipc_mode": "private",
        "shm_size": min(shm_size, most),
        "tmpfs": {"/tmp": f"rw,exec,nosuid,nodev,mode=1777,size={min(tmp_size, most)}"},
        "init": True,
        "restart_policy": {"Name": "no"},
        "log_config": {
            "type": "json-file",
            "config": {"max-size": str(log_size), "max-file": str(log_files)},
        },
    }
    if mem_limit:
        found["memswap_limit"] = mem_limit
    if cpuset:
        found["cpuset_cpus"] = cpuset
    return found


def binds_cpus(asked: Mapping[str, Any]) -> bool:
    """Whether an admin's own settings decide on which CPUs a container runs."""
    return any(plain_key(name) in _BINDS for name in asked)


def combine(given: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """Lay an admin's ``extra_host_config`` over what every container gets.

    The admin's values win and None takes a value away, but what is dropped stays dropped: ``cap_drop`` and
    ``security_opt`` of both are kept (``cap_add`` and ``no-new-privileges:false`` are the ways out, and
    dangers).  A ``mem_limit`` of the admin's without ``memswap_limit`` is one for both.  Nothing is checked.
    """
    ours = {plain_key(name): name for name in given}
    found: dict[str, Any] = copy.deepcopy(dict(given))
    for name, value in asked.items():
        key = ours.get(plain_key(name), name)
        if key in _UNITED:
            found[key] = _united(key, found.get(key) or [], value)
        elif isinstance(value, Mapping) and isinstance(found.get(key), dict) and key not in _WHOLE:
            found[key] |= copy.deepcopy(dict(value))
        else:
            found[key] = copy.deepcopy(value)
    if found.get("mem_limit") is not None and not any(plain_key(name) == "memswaplimit" for name in asked):
        found["memswap_limit"] = found["mem_limit"]
    return {name: value for name, value in found.items() if value is not None}


def _united(key: str, mine: list[str], theirs: Any) -> list[str]:
    more = [theirs] if isinstance(theirs, str) else list(theirs or [])
    if key == "security_opt" and any(str(item).startswith("no-new-privileges") for item in more):
        mine = [item for item in mine if item != "no-new-privileges"]
    return [*mine, *(item for item in more if item not in mine)]


def reference() -> str:
    """What every container gets and what is refused, as Markdown, for the documentation."""
    lines = ["| every container gets | why |", "| --- | --- |"]
    example = host_config(mem_limit=32 << 30, cpuset="0-7,16")
    for name, why in GIVEN.items():
        lines.append(f"| `{name}`: {_in_words(name, example[name])} | {why} |")
    lines += ["", "| name in `unsafe` | what the session could do then |", "| --- | --- |"]
    lines += [f"| `{name}` | {why[0].upper()}{why[1:]}. |" for name, why in DANGERS.items()]
    return "\n".join(lines)


def _in_words(name: str, value: Any) -> str:
    if name in ("memswap_limit", "cpuset_cpus"):
        return {"memswap_limit": "the profile's `mem_limit`", "cpuset_cpus": "the profile's `cpuset`"}[name]
    if name == "shm_size":
        return f"{value >> 20} MiB, at most half of `mem_limit`"
    if name == "tmpfs":
        return f"`/tmp` of {TMP_SIZE >> 20} MiB, at most half of `mem_limit`"
    if name == "log_config":
        return f"`json-file`, {LOG_FILES} files of {LOG_SIZE >> 20} MiB"
    if isinstance(value, list):
        return ", ".join(f"`{item}`" for item in value)
    return f"`{value.get('Name') if isinstance(value, dict) else value}`"
