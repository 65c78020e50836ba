"""What pages say in words where a shape has figures: a slice, a device's condition, a launch check.  Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from .. import topology
from ..idleness import BUDGET, CALLED, DRAIN, IDLE, MAX_AGE, SHARE
from ..model import Device, Health, Kind, Lease, Slice, State
from ..trust import MPS
from ..watchdog import MEMORY

UNEXTENDABLE = (MAX_AGE, *CALLED, MEMORY, MPS)
"""Rules of warnings that no extension puts off."""

VERSIONS = {"tensorflow": "TensorFlow", "cuda": "CUDA", "driver": "driver"}
"""What a launch check's report names that a person wants to know, with what it is called."""


def slice_in_words(item: Lease, devices: Mapping[str, Device]) -> str:
    """The slice of a lease for a person: what it holds, or what it waits for."""
    if not item.slices:
        return item.wish.describe()
    several = len({device.node for device in devices.values()}) > 1
    return "; ".join(_part_in_words(part, devices.get(part.device), several) for part in item.slices)


def _part_in_words(part: Slice, device: Device | None, several: bool) -> str:
    where = part.device
    if device is not None:
        where = f"GPU {device.index} ({device.model})" + (f" on {device.node}" if several else "")
    match part.kind:
        case Kind.MIG:
            profile = ""
            if device is not None:
                profile = next((f"{i.profile} " for i in device.instances if i.id == part.instance), "")
            return f"MIG instance {profile}of {where}"
        case Kind.SHARE:
            compute = f", {part.compute} % of the compute" if part.compute else ""
            return f"share of {where}: {len(part.cells)} of {part.of} cells{compute}"
        case _:
            return f"all of {where}"


def device_in_words(shape: Mapping[str, Any]) -> str:
    """The condition of a device of ``api/pool`` in one phrase."""
    words = str(shape["health"])
    if shape["health"] != Health.OK.value and shape["health_reason"]:
        words += f": {shape['health_reason']}"
    return f"{words}, drained" if shape["drained"] else words


def links_in_words(device: Device, devices: Sequence[Device]) -> str:
    """How near the other GPUs of its node are, the nearest first; empty: it has no other."""
    if not device.links:
        alone = all(one.node != device.node or one.id == device.id for one in devices)
        return "" if alone else "unknown"
    found: dict[str, list[int]] = defaultdict(list)
    told = dict(device.links)
    for other in devices:
        if other.node == device.node and other.id != device.id:
            found[told.get(other.id, "unknown")].append(other.index)
    nearest = sorted(found, key=topology.rank, reverse=True)
    return "; ".join(f"{link} to GPU {', '.join(map(str, sorted(found[link])))}" for link in nearest)


RULES = {
    IDLE: "its GPU is not used. Use it, or press Extend, and the session goes on",
    MAX_AGE: "it reaches the age at which sessions of this kind end",
    SHARE: "it borrows GPUs that another group is guaranteed and now wants back",
    DRAIN: "its GPU is taken out of service",
    BUDGET: "the GPU-hours that pay for it are used up",
    MEMORY: "it holds more GPU memory than its share. Free some, or end one of several notebooks, and it goes on",
    MPS: "its GPU is shared through MPS, and it runs programs that go past that",
}
"""Why a session is warned, by the rule."""


def rule_in_words(item: Lease) -> str:
    """The rule behind a warning for its reader; empty: there is none."""
    return RULES.get(item.warned_for, "")


def stands_in_words(item: Lease) -> str:
    """Why the countdown of a warning does not run, and when it does."""
    if item.warned_for == MEMORY:
        return "the countdown runs only while it holds more than is tolerated"
    return "the countdown starts when its owner is told"


def extension_in_words(item: Lease) -> str:
    """Whether Extend works and how far; empty for a session that does not run."""
    if item.state is not State.ACTIVE:
        return ""
    if item.warned_for == MEMORY:
        return "Extend does not help here: free memory on the GPU, and the session goes on."
    if item.warned_for in UNEXTENDABLE:
        return "Extend does not put this end off: save your work in the home folder."
    if item.extendable_seconds <= 0:
        return "It was extended as far as its profile allows."
    return f"It can be extended by up to {duration(item.extendable_seconds)} more."


def duration(seconds: float | None) -> str:
    """Seconds in words."""
    if seconds is None:
        return "unknown"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def check_in_words(item: Lease) -> tuple[str, float | None, str] | None:
    """The launch check for a person: its outcome, its time where there is one, and what it has seen.

    None for a session that has neither an image nor a check.  The report is the session's own word, so
    nothing is taken for granted of it.
    """
    if not item.checked:
        if not item.image:
            return None
        starting = item.state is State.STARTING
        why = "the session is still starting" if starting else "no launch check is recorded"
        return "not checked:", None, f" {why}"
    passed, report = item.checked["passed"], item.checked["report"]
    problems = [text for text in _listed(report.get("problems")) if text] or ["no reason was given"]
    if passed is None:
        return "not checked:", None, f" {problems[0]}"
    at = float(item.checked["at"])
    if not passed:
        return "failed on", at, f": {'; '.join(problems)}"
    outcome = "passed, remembered from" if item.checked["remembered"] else "passed on"
    return outcome, at, "".join(f"; {fact}" for fact in _facts(report))


def _facts(report: Mapping[str, Any]) -> list[str]:
    """What a passed check has seen, as far as it says so."""
    facts = [
        f"{title} {report[name]}" for name, title in VERSIONS.items() if isinstance(report.get(name), str)
    ]
    if isinstance(report.get("visible"), list):
        facts.append(f"sees {', '.join(_listed(report['visible'])) or 'no GPU'}")
    return facts + ["the GPU is simulated"] * (report.get("simulated") is True)


def _listed(value: Any) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []
