"""Names that reach the engine: images, volumes, users, labels, and variables of the environment."""

from __future__ import annotations

import hashlib
import re
import reprlib
import unicodedata
from collections.abc import Collection, Mapping
from typing import Any

LABEL = "org.jupyterhub.gpupool."
"""How the labels begin by which the pool knows its containers."""

NO_DEVICE = "void"
"""What NVIDIA_VISIBLE_DEVICES says so that the container runtime shows no GPU at all."""

MPS_SHARED = "/dev/shm/gpupool-mps-"
"""How the folders begin whose ``shm`` sessions on a GPU share with its MPS daemon; its UUID follows."""

LONGEST_IMAGE = 400
LONGEST_USER = 255
ANY_IMAGE = "*"
"""DockerSpawner's word for "every image is allowed"."""

_HOST = r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252}[A-Za-z0-9])?(?::[0-9]{1,5})?"
_PART = r"[a-z0-9](?:[a-z0-9._-]{0,126}[a-z0-9])?"
_DIGEST = r"sha256:[0-9a-f]{64}"
_IMAGE = re.compile(
    rf"(?:{_HOST}/)?{_PART}(?:/{_PART}){{0,15}}(?::[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}})?(?:@{_DIGEST})?"
)
_PINNED = re.compile(rf"(?:[^@]+@)?{_DIGEST}")

OWNED_VARIABLES = frozenset(
    {
        "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE",
        "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT",
        "CUDA_MPS_PIPE_DIRECTORY",
        "CUDA_VISIBLE_DEVICES",
        "LD_AUDIT",
        "LD_PRELOAD",
        "NVIDIA_DRIVER_CAPABILITIES",
        "NVIDIA_GPU_MEMORY_LIMIT",
        "NVIDIA_GPU_MEMORY_REQUEST",
        "NVIDIA_IMEX_CHANNELS",
        "NVIDIA_MIG_CONFIG_DEVICES",
        "NVIDIA_MIG_MONITOR_DEVICES",
        "NVIDIA_VISIBLE_DEVICES",
    }
)
"""They decide which GPUs are shown, or are read by a program of the machine before the container runs."""

OWNED_PREFIX = "GPUPOOL_"

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


def shown(value: Any) -> str:
    """A foreign value for a message: bounded, control characters escaped."""
    return _SHORT.repr(value)


def is_owned_variable(name: str) -> bool:
    """Whether only the pool may set this variable of the session's environment."""
    return name in OWNED_VARIABLES or name.startswith(OWNED_PREFIX)


def image_problem(image: str, allowed: Mapping[str, str] | Collection[str] = ()) -> str | None:
    """Return why an image may not be used, or None when it may.

    It may when it names a digest (``name@sha256:…``) or an image of the engine (``sha256:…``), or when the
    admin's list has it, as a name or, in a dictionary, as what a name stands for.  ``"*"`` allows every name.
    """
    names = {allowed} if isinstance(allowed, str) else set(allowed)
    names |= set(allowed.values()) if isinstance(allowed, Mapping) else set()
    if image in names - {ANY_IMAGE}:
        return None
    if len(image) > LONGEST_IMAGE or not (re.fullmatch(_DIGEST, image) or _IMAGE.fullmatch(image)):
        return (
            f"Image {shown(image)} is not the name of an image; allowed is name@sha256:… with a digest of 64 "
            "hexadecimal digits, the id sha256:… of an image, or an image of allowed_images."
        )
    if _PINNED.fullmatch(image) or allowed == ANY_IMAGE:
        return None
    listed = ", ".join(map(shown, sorted(names)[:20])) or "which is empty"
    return (
        f"Image {shown(image)} has no digest, so it may be another one tomorrow; allowed is name@sha256:…, "
        f"the id sha256:… of an image, or an image of allowed_images ({listed})."
    )


def user_problem(user: str) -> str | None:
    """Return why no container can be started for a user of this name, or None.

    The names of volumes and folders are made of it, and DockerSpawner writes ``a`` with the control character
    2, ``d`` and the plain ``a-`` the same way: two people would share one home.
    """
    if not user or len(user) > LONGEST_USER:
        return f"The user name {shown(user)} has {len(user)} characters; allowed are 1 to {LONGEST_USER}."
    if any(unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") for char in user):
        return (
            f"The user name {ascii(user)[:80]} has a control or invisible character, so no container can be "
            "started for it; allowed are names without one."
        )
    return None


def volume_name(pool: str, user: str) -> str:
    """Name the volume that is a user's home: readable, bounded, of ``[a-z0-9_.-]``.

    Different users have different ones whatever they are called, and so have users of two pools.
    """
    mark = hashlib.sha256(f"{pool}\0{user}".encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{_readable(pool, 'gpupool')}-home-{_readable(user, 'user')}-{mark}"


def _readable(text: str, otherwise: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower())[:32].strip("-") or otherwise
