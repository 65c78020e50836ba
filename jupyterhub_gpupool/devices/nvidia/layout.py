"""What a GPU is to the pool: from what the driver says, and what the admin has configured.  Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from ...model import CELLS_PER_GPU, Device, Health, Instance, Mode

Facts = Mapping[str, Any]

EIGHT = 8
FEWER = {"A30*": 4}
"""Memory slices of models that have fewer than eight, where the driver does not say."""
GIB_IN_MIB = 1024
PROFILE = re.compile(r" MIG (\S+)$")
VENDOR = re.compile(r"^(NVIDIA |Tesla )+")
"""Left out of a model's name, so that ``A100*`` and ``T4`` name what everybody calls so."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the admin has configured: patterns of GPUs to leave out, of modes and of groups, in order."""

    exclude: Sequence[str] = ()
    modes: Mapping[str, str] = field(default_factory=dict)
    mps: Mapping[str, str] = field(default_factory=dict)

    def leaves_out(self, gpu: Facts) -> bool:
        """Whether the pool has nothing to do with this GPU."""
        return any(_means(pattern, gpu) for pattern in self.exclude)

    def mode(self, gpu: Facts) -> Mode | None:
        """The mode of a GPU by the first pattern that means it; None: none does."""
        return next((Mode(mode) for pattern, mode in self.modes.items() if _means(pattern, gpu)), None)

    def trust(self, gpu: Facts) -> str:
        """The group whose shares of a GPU go through MPS, by the first pattern that means it; empty: none."""
        return next((group for pattern, group in self.mps.items() if _means(pattern, gpu)), "")

    def unmet(self, gpus: Sequence[Facts]) -> tuple[str, ...]:
        """Sentences about patterns of ``mps`` that mean no GPU there is: a slip that would share without MPS."""
        return tuple(
            f"NvidiaDevices.mps names {pattern!r:.80}, and no GPU here is called so: it has no effect."
            for pattern in self.mps
            if not any(_means(pattern, gpu) for gpu in gpus)
        )


def _means(pattern: str, gpu: Facts) -> bool:
    names = str(gpu["index"]), str(gpu.get("uuid") or ""), model_of(gpu.get("name") or "")
    return any(fnmatchcase(name.lower(), pattern.lower()) for name in names if name)


def model_of(name: str) -> str:
    """The model in a product name: ``A100-SXM4-80GB`` of ``NVIDIA A100-SXM4-80GB``."""
    return VENDOR.sub("", name)


def device_of(gpu: Facts, node: str, driver: str, wanted: Wanted) -> tuple[Device, tuple[str, ...]]:
    """Make the device of a GPU that answers, with sentences about what of it cannot be offered."""
    model, mig = model_of(gpu["name"]), gpu["instances"] is not None
    cells, instances, problems = _instances(gpu, model) if mig else (CELLS_PER_GPU, (), ())
    mode, barred = _mode(gpu, wanted.mode(gpu), mig)
    trust = wanted.trust(gpu)
    if trust:
        mode, barred = _with_mps(mode, barred)
    device = Device(
        id=gpu["uuid"],
        node=node,
        index=gpu["index"],
        model=model,
        memory_mib=gpu["memory"] or 0,
        compute_capability=gpu["capability"],
        mode=mode,
        cells=cells,
        health=Health.BARRED if barred else Health.OK,
        health_reason=barred,
        instances=instances,
        driver=driver,
        examined=True,
        numa=gpu["numa"],
        cpus=gpu["cpus"],
        links=tuple(sorted(gpu["links"].items())),
        trust=trust,
    )
    return device, problems


def _mode(gpu: Facts, wanted: Mode | None, mig: bool) -> tuple[Mode, str]:
    """The mode of a GPU, and why nothing of it can be granted; empty where it can."""
    if gpu["mig"] is not None and gpu["mig"][0] != gpu["mig"][1]:
        switched = "on" if gpu["mig"][1] else "off"
        return (
            Mode.MIG if mig else wanted or Mode.ANY,
            f"MIG is being switched {switched}: the GPU has to be reset",
        )
    if mig:
        if wanted in (None, Mode.ANY, Mode.MIG):
            return Mode.MIG, ""
        off = f"`nvidia-smi -i {gpu['index']} -mig 0` switches it off"
        return Mode.MIG, f"it is configured for the mode {wanted}, but MIG is on; {off}"
    if wanted is Mode.MIG:
        on = (
            f"`nvidia-smi -i {gpu['index']} -mig 1` switches it on" if gpu["mig"] else "this model has no MIG"
        )
        return Mode.MIG, f"it is configured for the mode mig, but MIG is off; {on}"
    return wanted or Mode.ANY, ""


def _with_mps(mode: Mode, barred: str) -> tuple[Mode, str]:
    """A GPU with MPS is handed out in shares, and in nothing else."""
    if mode in (Mode.ANY, Mode.SHARE):
        return Mode.SHARE, barred
    why = f"it is configured for MPS, which serves shares alone, and its mode is {mode}"
    return mode, barred or f"{why}; allowed are share and any"


def _instances(gpu: Facts, model: str) -> tuple[int, tuple[Instance, ...], tuple[str, ...]]:
    """Memory slices of a GPU in MIG mode, its instances by place, and what of them cannot be offered.

    The driver tells places only to root.  Without them the instances are put in the order of their numbers,
    which keeps them apart and is all that the pool needs of a place.
    """
    slices = gpu["slices"] or next((n for name, n in FEWER.items() if fnmatchcase(model, name)), EIGHT)
    split = {number for number, count in Counter(one["gi"] for one in gpu["instances"]).items() if count > 1}
    problems = tuple(
        f"GPU instance {number} of {gpu['uuid']} is divided into compute instances, which share its memory: "
        "only undivided ones are offered"
        for number in sorted(split)
    )
    listed = sorted(
        (one for one in gpu["instances"] if one["gi"] not in split), key=lambda one: int(one["gi"])
    )
    told = all(one["placement"] for one in listed)
    found, first = [], 0
    for one in listed:
        first, cells = one["placement"] if told else (first, _cells(one, gpu, slices))
        found.append(
            Instance(
                id=one["uuid"],
                profile=_profile(one, gpu),
                first=first,
                cells=cells,
                memory_mib=one["memory"] or (gpu["memory"] or 0) * cells // slices,
            )
        )
        first += cells
    found.sort(key=lambda one: one.first)
    return max([slices, *(one.first + one.cells for one in found)]), tuple(found), problems


def _cells(one: Facts, gpu: Facts, slices: int) -> int:
    """Memory slices of an instance by its memory; a slice holds a little less than its part of the GPU."""
    if one["memory"] and gpu["memory"]:
        return max(1, round(one["memory"] * slices / gpu["memory"]))
    return max(1, one["compute"] or 1)


def _profile(one: Facts, gpu: Facts) -> str:
    """The profile of an instance, ``1g.10gb``: from its name, or made of its figures as NVIDIA does it."""
    if named := PROFILE.search(one["name"]):
        return named[1]
    if not (one["memory"] and gpu["memory"]):
        return f"{one['compute'] or 1}g"
    eighths = -(-one["memory"] * EIGHT // gpu["memory"])
    gigabytes = round(eighths * -(-gpu["memory"] // GIB_IN_MIB) / EIGHT)
    return f"{one['compute']}g.{gigabytes}gb"
