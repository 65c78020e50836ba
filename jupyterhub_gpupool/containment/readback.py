"""What a container is asked for, and what the engine says that it got: pure, so that the two can be compared."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..cells import ranges
from ..model import Lease, Owner
from .names import LABEL, MPS_SHARED, NO_DEVICE
from .rules import dangers as dangers_in

CDI_KIND = "nvidia.com/gpu="
ACCESS, UNSAFE, PORT = LABEL + "access", LABEL + "unsafe", LABEL + "port"
"""Labels of what only the launch knew: how the GPUs were to get in, the dangers accepted, the notebook's port."""


def labels_of(lease: Lease, pool: str) -> dict[str, str]:
    """The labels that a lease alone decides."""
    cells = {item.device: ranges(item.cells) for item in lease.slices}
    said = {
        "pool": pool,
        "session": lease.session,
        "lease": lease.id,
        "epoch": str(lease.epoch),
        "user": lease.user,
        "server": lease.server,
        "profile": lease.profile,
        "devices": ",".join(item.visible for item in lease.slices),
        "cells": json.dumps(cells, separators=(",", ":")),
    }
    return {LABEL + key: value for key, value in said.items()}


def labels_for(lease: Lease, *, pool: str, owner: Owner, port: int) -> dict[str, str]:
    """The labels by which a session is found again, and known for what it holds."""
    return labels_of(lease, pool) | {LABEL + "owner": owner.mark(), PORT: str(port)}


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
    asked_host["Binds"] = [line for line in host.get("Binds") or () if not _is_mps(line, labels)]
    has = {"host_config": asked_host, "user": config.get("User")}
    there = dangers_in({"extra_create_kwargs": has, "port": port})
    wrong += [f"it has the danger {name}, which nobody accepted" for name in there if name not in dangers]
    return wrong


def _is_mps(bind: str, labels: Mapping[str, str]) -> bool:
    """Whether a session was given this by the pool itself: what it shares with the MPS daemon of its own GPU."""
    devices = labels.get(LABEL + "devices", "").split(",")
    return bind.partition(":")[0] in [f"{MPS_SHARED}{device}/shm" for device in devices if device]


def seen_differently(environ: str, *, visible: Sequence[str], access: str) -> str:
    """Compare what a session is told of its GPUs with the lease; empty when it is right or not known.

    ``environ`` is the ``/proc/1/environ`` of its first process, where the engine has written what it made of
    the device request, or what the container was created with.  Under CDI the engine writes ``void``, because
    the devices come another way.
    """
    found = dict(entry.partition("=")[::2] for entry in environ.split("\0"))
    seen = found.get("NVIDIA_VISIBLE_DEVICES")
    right = {",".join(visible), NO_DEVICE} if access == "cdi" else {",".join(visible)}
    if access == "none":
        right = {NO_DEVICE}
    if not environ or seen in right:
        return ""
    return f"inside, NVIDIA_VISIBLE_DEVICES is {seen!r}"


def unlike(found: Mapping[str, Any], lease: Lease, pool: str) -> list[str]:
    """Say in words where an inspected container is not what its lease says, for whoever has not launched it.

    What only the launch knew is read from the labels, which nobody can change.  The image is not compared.
    """
    labels = found["Config"].get("Labels") or {}
    visible = [item.visible for item in lease.slices]
    access, port = labels.get(ACCESS, ""), labels.get(PORT, "")
    wrong = differences(
        found,
        labels=labels_of(lease, pool),
        image="",
        visible=visible,
        access=access,
        dangers=labels.get(UNSAFE, "").split(","),
        port=int(port) if port.isdecimal() else 0,
    )
    told = "\0".join(found["Config"].get("Env") or ())
    inside = seen_differently(told, visible=visible, access=access)
    return [*wrong, inside] if inside else wrong
