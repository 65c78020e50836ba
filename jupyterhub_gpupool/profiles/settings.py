"""What the layers of a choice come to: merge them as KubeSpawner does, then make slice and terms of them.

Also the way from ``kubespawner_override`` to the pool's own keys.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ..model import Kind, Terms, When, Wish
from .keys import OWNED, SETTINGS
from .schema import PLACEHOLDER, Where, listed, read_section, shown

SPAWNER_NAMES = frozenset(
    {
        "args",
        "cmd",
        "cpu_guarantee",
        "debug",
        "default_url",
        "disable_user_config",
        "env_keep",
        "environment",
        "http_timeout",
        "mem_guarantee",
        "notebook_dir",
    }
)
"""Names of KubeSpawner that mean the same in every spawner of JupyterHub."""

_RENAMED = {"image": "image", "image_spec": "image", "cpu_limit": "cpu_limit", "mem_limit": "mem_limit"}
_RESOURCES = ("extra_resource_limits", "extra_resource_guarantees")
_KINDS = {"count": Kind.GPU, "mig": Kind.MIG, "memory": Kind.SHARE, "compute": Kind.SHARE}


@dataclass(frozen=True, slots=True)
class Settings:
    """What a session gets, in its final form.  ``mem_limit`` in bytes; None: the spawner's own."""

    wish: Wish
    terms: Terms
    image: str
    cpu_limit: float | None
    mem_limit: int | None
    cpuset: str
    tensorflow: Mapping[str, str]
    unsafe: tuple[str, ...]
    spawner_override: Mapping[str, Any]


# --- layers -----------------------------------------------------------------------------------------


def merge(base: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Lay ``new`` over ``base`` deeply, as KubeSpawner does: dictionaries are merged, None removes a key.

    Both stay as they are.  Use it also to lay ``spawner_override`` over a dictionary of the spawner.
    """
    found: dict[str, Any] = copy.deepcopy(dict(base))
    for name, value in new.items():
        if value is None:
            found.pop(name, None)
        elif isinstance(value, Mapping):
            below = found.get(name)
            found[name] = merge(below if isinstance(below, Mapping) else {}, value)
        else:
            found[name] = copy.deepcopy(value)
    return found


def overlay(base: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one override over another; None is kept, because it must still remove what the spawner has."""
    found: dict[str, Any] = copy.deepcopy(dict(base))
    for name, value in new.items():
        below = found.get(name)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            found[name] = overlay(below, value)
        else:
            found[name] = copy.deepcopy(value)
    return found


def lay_over(base: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Lay the settings of a choice over those of its profile.

    A ``gpu`` that names another kind of slice replaces the kind below and keeps the model: a choice
    ``{"count": 1}`` over a profile's ``{"memory": "20G"}`` is a whole GPU, not a contradiction.
    """
    below = dict(base)
    gpu = new.get("gpu")
    if isinstance(gpu, Mapping) and isinstance(below.get("gpu"), Mapping):
        kinds = {_KINDS[name] for name, value in gpu.items() if name in _KINDS and value is not None}
        below["gpu"] = {n: v for n, v in below["gpu"].items() if not kinds or _KINDS.get(n) in (*kinds, None)}
    override = overlay(below.pop("spawner_override", None) or {}, new.get("spawner_override") or {})
    found = merge(below, {name: value for name, value in new.items() if name != "spawner_override"})
    return found | {"spawner_override": override}


def read_layer(
    entry: Mapping[str, Any], where: Where, names: Collection[str]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The settings of a profile or a choice, read, and the names of KubeSpawner that have no meaning here.

    The pool's own keys win over what ``kubespawner_override`` says in the same place.
    """
    taken, missing = from_kubespawner(entry.get("kubespawner_override") or {}, where, names)
    own = {name: value for name, value in entry.items() if name in SETTINGS}
    override = overlay(taken.pop("spawner_override"), own.pop("spawner_override", None) or {})
    return read_section(taken | own | {"spawner_override": override}, where, SETTINGS), missing


# --- KubeSpawner's names ----------------------------------------------------------------------------


def from_kubespawner(
    override: Mapping[str, Any], where: Where, names: Collection[str]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Turn a ``kubespawner_override`` into settings; ``names`` are those the backend has.

    Returns the settings, unread, and the names that are left out.  Raises ProfileError for resources that
    ask for something which cannot be a slice.
    """
    inside = where.at("kubespawner_override")
    found: dict[str, Any] = {"spawner_override": {}}
    missing: list[str] = []
    gpus: dict[str, Any] = {}
    for name, value in override.items():
        if name in _RENAMED:
            found[_RENAMED[name]] = value
        elif name in _RESOURCES:
            if not isinstance(value, Mapping):
                raise inside.at(name).error(f"is {shown(value)}; allowed is a dictionary of resources")
            missing += _take_gpus(value, inside.at(name), gpus)
        elif name in names and name not in OWNED:
            found["spawner_override"][name] = value
        else:
            missing.append(name)
    if len(gpus) > 1:
        raise inside.error(f"asks for {listed(gpus)} at once; allowed is one kind of slice")
    for resource, count in gpus.items():
        found["gpu"] = _gpu(resource, count)
    return found, tuple(missing)


def _take_gpus(resources: Mapping[str, Any], where: Where, gpus: dict[str, Any]) -> list[str]:
    """Collect the GPU resources; returns the names of the other ones."""
    missing = []
    for resource, value in resources.items():
        if resource != "nvidia.com/gpu" and not str(resource).startswith("nvidia.com/mig-"):
            missing.append(f"{where.path[-1]}.{resource}")
            continue
        count = int(value) if isinstance(value, str) and re.fullmatch(r"[0-9]{1,3}", value) else value
        if not (count is None or (isinstance(count, int) and not isinstance(count, bool) and count >= 0)):
            if not (where.placeholders and resource == "nvidia.com/gpu" and count == PLACEHOLDER):
                raise where.at(resource).error(f"is {shown(value)}; allowed is a whole number from 0 on")
        elif resource != "nvidia.com/gpu" and count is not None and count > 1:
            raise where.at(resource).error(f"is {count}; allowed is 1, as a session has one MIG instance")
        if gpus.get(resource, count) != count:
            raise where.at(resource).error(f"is {count} in one place and {gpus[resource]} in another")
        gpus[resource] = count
    return missing


def _gpu(resource: str, count: Any) -> dict[str, Any] | None:
    if not count:
        return None
    return (
        {"count": count}
        if resource == "nvidia.com/gpu"
        else {"mig": resource.removeprefix("nvidia.com/mig-")}
    )


# --- the typed text ---------------------------------------------------------------------------------


def fill(value: Any, typed: str) -> Any:
    """Put the typed text for ``{value}`` in every text, as KubeSpawner does; ``{{`` stands for ``{``.

    Other names in braces stay.  The typed text itself is never looked into.
    """
    if isinstance(value, str):
        signs = {"{{": "{", "}}": "}", PLACEHOLDER: typed}
        return re.sub(r"\{\{|\}\}|\{value\}", lambda found: signs[found[0]], value)
    if isinstance(value, Mapping):
        return {fill(name, typed): fill(item, typed) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [fill(item, typed) for item in value]
    return value


# --- the result -------------------------------------------------------------------------------------


def build(layer: Mapping[str, Any], where: Where) -> Settings:
    """Make slice, terms and the rest of merged settings.

    Raises ProfileError where keys of ``gpu`` contradict each other or say too little.
    """
    idle = {name: value for name, value in (layer.get("idle") or {}).items() if value is not None}
    if "when" in idle:
        idle["when"] = When(idle["when"])
    tensorflow = {"precision": "auto", "xla": "auto", "memory": "limit"}
    tensorflow |= {
        name: value for name, value in (layer.get("tensorflow") or {}).items() if value is not None
    }
    return Settings(
        wish=_wish(layer.get("gpu"), where.at("gpu")),
        terms=Terms(**idle, max_age=layer.get("max_age") or 0),
        image=layer.get("image") or "",
        cpu_limit=layer.get("cpu_limit"),
        mem_limit=layer.get("mem_limit"),
        cpuset=layer.get("cpuset") or "",
        tensorflow=tensorflow,
        unsafe=tuple(layer.get("unsafe") or ()),
        spawner_override=layer.get("spawner_override") or {},
    )


def _wish(gpu: Mapping[str, Any] | None, where: Where) -> Wish:
    if gpu is None:
        return Wish()
    said = {name: value for name, value in gpu.items() if value is not None}
    kinds = {_KINDS[name] for name in said if name in _KINDS}
    if len(kinds) != 1:
        names = " and ".join(name for name in said if name in _KINDS)
        wrong = f"has {names}" if names else "names no slice"
        raise where.error(f"{wrong}; allowed is one of count, mig, or memory with or without compute")
    memory = said.pop("memory", 0)
    share = {"fraction": memory} if isinstance(memory, str) else {"memory_mib": memory}
    return Wish(kind=kinds.pop(), **share, **said)
