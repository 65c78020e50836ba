"""What a profile or a spawner's settings ask for that would lead out of the container.

Each danger has a name: a profile that lists it in ``unsafe`` gets what it asks for.  What the pool itself
stands on (:func:`owned`) no ``unsafe`` can give away.  A setting that is a function is judged when its result
is at hand: give that in its place.
"""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from .checks import CHECKS, lines, named, nothing, ports
from .names import LABEL, is_owned_variable, shown
from .paths import Mounted, judge, mounted, path_problem, plain_key

DANGERS = {
    "privileged": "the session is root on the machine and reaches every GPU, whatever its lease says",
    "cap-add": "with a capability more, root inside can do to the machine what that capability is for",
    "host-network": "the session reaches everything that listens on the machine's loopback, parts of the hub among "
    "it, and everybody's TensorBoard",
    "host-pid": "the session sees the processes of the machine and of other people, and may end those of its user id",
    "host-ipc": "the session shares memory with the machine and with everybody else who does",
    "host-uts": "the session lives under the machine's own name, and may change it as root",
    "host-userns": "the engine's mapping of users is off: root inside is root outside",
    "other-container": "the session shares network, processes, memory or files with another container",
    "engine-socket": "whoever reaches the container engine, or its files, is root on the machine",
    "host-path": "the session reads, or changes, what the machine itself runs on",
    "mount-propagation": "what is mounted inside the session appears on the machine",
    "devices": "the session reaches hardware that its lease does not name",
    "seccomp-unconfined": "the engine's filter of system calls, which keeps many faults of the kernel out of reach, "
    "is off or another one",
    "apparmor-unconfined": "the engine's AppArmor profile is off",
    "selinux-disabled": "SELinux does not keep the session apart",
    "unmasked-paths": "files of the kernel that the engine hides or protects can be read or written",
    "new-privileges": "a setuid program inside makes the session root there",
    "root-user": "whoever finds a way out of the container is root outside",
    "group-add": "files and sockets of the machine that this group may use come within reach",
    "cgroup": "the session's limits are those of another place, or can be changed from inside",
    "runtime": "another runtime may contain less, or show GPUs that no lease names",
    "sysctls": "settings of the kernel change, some of them for more than the session",
    "published": "a port of the session is open to the network, past the proxy and its encryption",
    "links": "address and environment of another container, secrets among them, are told to the session",
    "hub-secrets": "what the hub keeps secret is in the session's environment",
    "no-pids-limit": "a fork bomb takes the machine down",
    "oom-exempt": "when memory runs out, the kernel ends others first",
}
"""Every danger by name, and what the session could do with it."""

NOTEBOOK_PORT = 8888


def dangers(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the dangers in these settings of DockerSpawner, by name, each as a sentence with its reason.

    ``settings`` holds what is set, or all traits with their values: ``extra_host_config``,
    ``extra_create_kwargs``, ``volumes``, ``read_only_volumes``, ``mounts``, ``network_name``, ``links``,
    ``host_ip``, ``use_internal_ip``, ``port``, ``environment``, ``env_keep``, ``run_as``; others are not
    looked at.
    """
    found: dict[str, list[str]] = {}
    port = settings.get("port", NOTEBOOK_PORT)
    for where, key, value in _entries(settings):
        if key == "host.portbindings":
            seen = ports(value, port)
        elif key == "trait.hostip":
            inside = settings.get("use_internal_ip")  # then no port is published
            seen = nothing(value) if inside else ports({port: (value,)}, port)
        else:
            seen = CHECKS.get(key, nothing)(value)
        for name, what in seen:
            found.setdefault(name, []).append(f"{where} {what}")
    for mount in _mounts(settings):
        for name in judge(mount.source, writable=mount.writable):
            found.setdefault(name, []).append(f"{mount.where} mounts {shown(mount.source)}")
        if mount.propagation.endswith("shared"):
            found.setdefault("mount-propagation", []).append(
                f"{mount.where} mounts {shown(mount.source)} as {mount.propagation}"
            )
    return {
        name: f"{'; '.join(dict.fromkeys(found[name]))}: {DANGERS[name]}."
        for name in DANGERS
        if name in found
    }


def owned(settings: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each setting that only the pool may make, and for each unsafe path template.

    ``settings`` holds only what somebody has set, no defaults.
    """
    found = []
    for where, key, value in _entries(settings):
        if key in OWNED:
            found.append(f"{where} belongs to the pool: {OWNED[key]}.")
        for name in named(value) if key in ("trait.environment", "create.environment") else ():
            if is_owned_variable(name):
                found.append(
                    f"{where} sets {shown(name)}, which only the pool may set: it goes with the lease."
                )
        for name in named(value) if key == "create.labels" else ():
            if name.lower().startswith(LABEL):
                found.append(
                    f"{where} sets {shown(name)}; the labels {LABEL}* are how the pool knows its sessions."
                )
        if key == "host.devices" and any(_is_gpu(line) for line in lines(value)):
            found.append(f"{where} names a GPU; which GPUs a session sees says its lease.")
    for mount in _mounts(settings):
        for template in (mount.source, mount.target):
            if problem := path_problem(template):
                found.append(f"{mount.where}: {problem}")
    return found


def refusals(settings: Mapping[str, Any], unsafe: Collection[str] = ()) -> list[str]:
    """Return why these settings cannot be had with what ``unsafe`` accepts, a sentence each; empty: they can."""
    found = owned(settings)
    for name, sentence in dangers(settings).items():
        if name not in unsafe:
            found.append(f'{sentence} Take it out, or name "{name}" in unsafe to accept that.')
    return found


_NAME = "the container of a session is called after its lease, and is found again by that name"
_REMOVE = "an ended container keeps its old devices, so it is never started again; the pool removes it"
_IMAGE = "the image is that of the profile, checked there"

OWNED = {
    "trait.nametemplate": _NAME,
    "trait.containernametemplate": _NAME,
    "trait.objectname": _NAME,
    "trait.objectid": _NAME,
    "create.name": _NAME,
    "trait.remove": _REMOVE,
    "trait.removecontainers": _REMOVE,
    "host.autoremove": _REMOVE,
    "host.restartpolicy": "a session that the engine restarts by itself would run without a lease",
    "host.devicerequests": "which GPUs a session sees says its lease",
    "create.image": _IMAGE,
}
"""What no ``unsafe`` can allow, and why."""


# --- walking through the settings ---------------------------------------------------------------------


def _entries(settings: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Each setting: where it stands, its key in one spelling with its place in front, its value."""
    for name, value in settings.items():
        key = plain_key(name)
        if callable(value):
            continue
        if key == "extrahostconfig":
            yield from _below(name, value, "host")
        elif key == "extracreatekwargs":
            for where, inner, item in _below(name, value, "create"):
                if inner == "create.hostconfig":
                    yield from _below(where, item, "host")
                else:
                    yield where, inner, item
        else:
            yield name, f"trait.{key}", value


def _is_gpu(device: str) -> bool:
    """Whether a device (``/dev/x:/dev/y:rwm``, or one path of it) is a GPU, or all of them."""
    paths = [posixpath.normpath("/" + part.lstrip("/")) for part in device.split(":") if "/" in part]
    return any(path == "/dev" or path.startswith(("/dev/nvidia", "/dev/dri")) for path in paths)


def _below(where: str, value: Any, place: str) -> Iterator[tuple[str, str, Any]]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield f"{where}.{name}", f"{place}.{plain_key(name)}", item


MOUNTS = {
    "trait.volumes": "rw",
    "trait.readonlyvolumes": "ro",
    "trait.mounts": "rw",
    "host.binds": "rw",
    "host.mounts": "rw",
}


def _mounts(settings: Mapping[str, Any]) -> Iterator[Mounted]:
    for where, key, value in _entries(settings):
        if key in MOUNTS:
            yield from mounted(where, value, mode=MOUNTS[key])
