"""What a container is asked for, and what the engine says that it got: pure, so that the two can be compared."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from .. import containment
from ..cells import ranges
from ..containment import LABEL
from ..model import Lease, Owner
from ..runtime import NO_DEVICE
from ..sessions.docker import Ran

CDI_KIND = "nvidia.com/gpu="

NOT_THERE = (126, 127)
"""The engine's word for a command that is not in the image."""

NO_MODULE = "No module named"

LONGEST_REPORT = 64 * 1024


def labels_for(lease: Lease, *, pool: str, owner: Owner, port: int) -> dict[str, str]:
    """The labels by which a session is found again, and known for what it holds."""
    cells = {item.device: ranges(item.cells) for item in lease.slices}
    said = {
        "pool": pool,
        "session": lease.session,
        "lease": lease.id,
        "epoch": str(lease.epoch),
        "user": lease.user,
        "server": lease.server,
        "profile": lease.profile,
        "owner": owner.mark(),
        "port": str(port),
        "devices": ",".join(item.visible for item in lease.slices),
        "cells": json.dumps(cells, separators=(",", ":")),
    }
    return {LABEL + key: value for key, value in said.items()}


def with_labels(given: Mapping[str, str] | Sequence[str], own: Mapping[str, str]) -> dict[str, str]:
    """An admin's labels, a dictionary or a list of names, with the pool's own over them.

    DockerSpawner takes every text for a template; a person's name is none, so its braces are doubled.
    """
    theirs = dict(given) if isinstance(given, Mapping) else dict.fromkeys(given, "")
    return theirs | {key: value.replace("{", "{{").replace("}", "}}") for key, value in own.items()}


def cdi_name(uuid: str) -> str:
    """The name of a GPU or MIG instance in the Container Device Interface.  Never by index: that shifts."""
    return CDI_KIND + uuid


def access_for(wish: str, visible: Sequence[str], simulated: bool, info: Mapping[str, Any]) -> str:
    """How these GPUs get into a container: ``none``, ``runtime`` or ``cdi``.

    ``wish`` is the setting ``gpu_access``, ``info`` what the engine says of itself.
    """
    if not visible or (simulated and wish == "auto"):
        return "none"
    if wish != "auto":
        return wish
    known = {str(one.get("ID", "")) for one in info.get("DiscoveredDevices") or ()}
    return "cdi" if all(cdi_name(uuid) in known for uuid in visible) else "runtime"


def request_for(visible: Sequence[str], access: str) -> list[dict[str, Any]]:
    """The device requests of a container; never an empty one, which gets every GPU on some engines."""
    if access == "none" or not visible:
        return []
    if access == "cdi":
        return [{"Driver": "cdi", "DeviceIDs": [cdi_name(uuid) for uuid in visible]}]
    return [{"Driver": "nvidia", "DeviceIDs": list(visible), "Capabilities": [["gpu"]]}]


def differences(
    found: Mapping[str, Any],
    *,
    labels: Mapping[str, str],
    image: str,
    visible: Sequence[str],
    access: str,
    dangers: Collection[str] = (),
    port: int = 8888,
) -> list[str]:
    """Say in words where an inspected container is not what was asked for; empty when it is.

    ``dangers`` are the accepted ones; any other is a difference.
    """
    host, config = found["HostConfig"], found["Config"]
    wrong = []
    theirs = config.get("Labels") or {}
    other = [key for key in labels if theirs.get(key) != labels[key]]
    wrong += [f"its label {other[0]} is {theirs.get(other[0])!r}"] if other else []
    if image and found.get("Image") != image:
        wrong.append(f"it runs image {found.get('Image')!r}")
    asked = sorted(name for one in host.get("DeviceRequests") or () for name in one.get("DeviceIDs") or ())
    names = [cdi_name(uuid) for uuid in visible] if access == "cdi" else list(visible)
    if asked != sorted(names if access != "none" else []):
        wrong.append(f"it was given the devices {', '.join(asked) or 'none'}")
    if any(one.get("Count") for one in host.get("DeviceRequests") or ()):
        wrong.append("it was given devices by number")
    # An engine on cgroup v1 has no namespace for them, whatever it was asked for.
    asked_host = {key: value for key, value in host.items() if key not in ("DeviceRequests", "CgroupnsMode")}
    has = {"host_config": asked_host, "user": config.get("User")}
    found_dangers = containment.dangers({"extra_create_kwargs": has, "port": port})
    wrong += [
        f"it has the danger {name}, which nobody accepted" for name in found_dangers if name not in dangers
    ]
    return wrong


def seen_differently(environ: str, *, visible: Sequence[str], access: str) -> str:
    """Compare what the first process of a session sees with the lease; empty when it is right or not known.

    ``environ`` is its ``/proc/1/environ``: there stands what the engine made of the device request.  Under
    CDI the engine writes ``void``, because the devices come another way.
    """
    found = dict(entry.partition("=")[::2] for entry in environ.split("\0"))
    seen = found.get("NVIDIA_VISIBLE_DEVICES")
    right = {",".join(visible), NO_DEVICE} if access == "cdi" else {",".join(visible)}
    if access == "none":
        right = {NO_DEVICE}
    if not environ or seen in right:
        return ""
    return f"inside, NVIDIA_VISIBLE_DEVICES is {seen!r}"


def read_check(ran: Ran) -> tuple[bool | None, dict[str, Any]]:
    """What the last line of a check's output comes to; whatever an image writes, it is bounded."""
    line = (ran.out.strip().splitlines() or [""])[-1]
    try:
        report = json.loads(line[:LONGEST_REPORT])
    except (ValueError, RecursionError):
        report = None
    if isinstance(report, dict) and isinstance(report.get("passed"), bool):
        problems = report.get("problems")
        report["problems"] = [str(one)[:300] for one in problems][:10] if isinstance(problems, list) else []
        return report["passed"], report
    if ran.status in NOT_THERE or NO_MODULE in ran.err:
        return None, {"problems": ["The image has no launch check (gpupool_tensorflow)."]}
    return False, {"problems": [f"The check ended with status {ran.status} and without a result."]}
