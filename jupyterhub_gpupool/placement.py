"""Which slices serve a wish: pure functions over devices and what is used of them.

Whole GPUs stay whole as long as possible: shares fill the devices that are in share use already, then those
kept for shares, and only then open another GPU.  Whole and shared use never meet on one device.  What can
*never* be had raises; what cannot be had *now* is None.  The ledger calls this inside its transaction, so
everything that depends on wish and inventory alone is worked out once and remembered.
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import islice

from . import topology
from .errors import Rejected
from .model import Device, Instance, Kind, Mode, Wish


@dataclass(frozen=True, slots=True)
class Occupancy:
    """What is used now: cells claimed by device (absent: none) and the MIG instances that are claimed."""

    used: Mapping[str, int]
    instances: Collection[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Reserved:
    """What the head of the queue waits for; later requests keep off it."""

    devices: frozenset[str] = frozenset()
    instances: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Placed:
    """One slice to be.  ``first`` None: the lowest free cells; the ledger picks the numbers."""

    device: Device
    kind: Kind
    cells: int
    first: int | None
    memory_mib: int
    compute: int
    """Guaranteed compute in percent of what the session sees; 0: none is guaranteed."""
    instance: str = ""


@dataclass(frozen=True, slots=True)
class Holding:
    """Cells that a lease holds on a device until ``ends_at`` (inf: unknown, 0: it is stopping)."""

    cells: int
    ends_at: float
    instance: str = ""


@dataclass(frozen=True, slots=True)
class _Option:
    """A device, or a MIG instance of one, that serves the wish when enough of it is free."""

    id: str  # of the device: looked up for every candidate of every choice
    device: Device
    cells: int
    gpus: float
    instance: Instance | None = None


@dataclass(frozen=True, slots=True)
class _Plan:
    """What follows from a wish and the inventory alone; options in the order of preference."""

    devices: Sequence[Device]
    ever: tuple[_Option, ...]
    usable: tuple[_Option, ...]
    cost: float


_NOTHING_RESERVED = Reserved()
_TOLERANCE = 1e-9  # GPU-equivalents are sums of fractions
_SERVES = {
    Kind.GPU: (Mode.WHOLE, Mode.ANY),
    Kind.SHARE: (Mode.SHARE, Mode.ANY),
    Kind.MIG: (Mode.MIG,),
    Kind.CPU: (),
}
_plans: dict[tuple[int, Wish], _Plan] = {}
_PLANS_KEPT = 64


@lru_cache(maxsize=256)
def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(text.lower()))


@lru_cache(maxsize=4096)
def _matches(pattern: str, model: str) -> bool:
    """Whether a model's name matches the shell pattern, without regard to case."""
    return _pattern(pattern).match(model.lower()) is not None


@lru_cache(maxsize=4096)
def _share_cells(wish: Wish, memory_mib: int, cells: int) -> int:
    by_memory = 0
    if wish.fraction:
        part = Fraction(wish.fraction)
        by_memory = _nearest(part.numerator * cells, part.denominator)
    elif wish.memory_mib and memory_mib > 0:
        by_memory = _nearest(wish.memory_mib * cells, memory_mib)
    elif wish.memory_mib:
        by_memory = cells + 1  # a GPU whose memory is unknown promises none
    return max(1, by_memory, _nearest(wish.compute * cells, 100))


def _nearest(above: int, below: int) -> int:
    """The whole number nearest to a fraction, halves upwards, without floating point."""
    return (2 * above + below) // (2 * below)


def cells_for(wish: Wish, device: Device) -> int:
    """Count the cells that one slice of this wish takes on the device (more than it has: it cannot).

    A share takes the cells nearest to the larger of its memory and its guaranteed compute, at least one.
    Raises ValueError for a MIG profile that the device does not have.
    """
    match wish.kind:
        case Kind.CPU:
            return 0
        case Kind.GPU:
            return device.cells
        case Kind.SHARE:
            return _share_cells(wish, device.memory_mib, device.cells)
        case Kind.MIG:
            for item in device.instances:
                if item.profile == wish.mig:
                    return item.cells
            raise ValueError(f"GPU {device.id} has no MIG instance {wish.mig}.")


def _options(wish: Wish, devices: Iterable[Device]) -> Iterator[_Option]:
    """Everything that could serve the wish if it were empty, healthy and not drained."""
    serves, model, kind = _SERVES[wish.kind], wish.model, wish.kind
    for device in devices:
        if device.mode not in serves or not _matches(model, device.model):
            continue
        if kind is Kind.MIG:
            for item in device.instances:
                if item.profile == wish.mig:
                    yield _Option(device.id, device, item.cells, item.cells / device.cells, item)
        else:
            cells = cells_for(wish, device)
            if cells <= device.cells:
                yield _Option(device.id, device, cells, cells / device.cells)


def _preference(option: _Option) -> tuple[bool, float, int, int, str, int, int]:
    """Kept for this use before free for any, then the smallest; node and index make it definite."""
    device, item = option.device, option.instance
    if item is None:
        return device.mode is Mode.ANY, 0.0, 0, device.memory_mib, device.node, device.index, 0
    smallest = option.gpus, item.memory_mib, device.memory_mib
    return False, *smallest, device.node, device.index, item.first


def _on_enough_nodes(wish: Wish, options: Sequence[_Option]) -> bool:
    """Whether one node has as many of the options as the wish counts."""
    needed = wish.count if wish.kind is Kind.GPU else 1
    return any(n >= needed for n in Counter(option.device.node for option in options).values())


def _plan(wish: Wish, devices: Sequence[Device]) -> _Plan:
    """Work out the plan, or take the remembered one: only a tuple is sure not to have changed."""
    key = (id(devices), wish)
    known = _plans.get(key)
    if known is not None:
        return known  # it holds on to its devices, so nothing else can have their id
    ever = tuple(sorted(_options(wish, devices), key=_preference))
    possible = wish.count >= 1 and _on_enough_nodes(wish, ever)
    ever = ever if possible else ()
    least = min((option.gpus for option in ever), default=0.0) * (wish.count if wish.kind is Kind.GPU else 1)
    plan = _Plan(devices, ever, tuple(option for option in ever if option.device.usable), least)
    if isinstance(devices, tuple):
        if len(_plans) >= _PLANS_KEPT:
            _plans.clear()
        _plans[key] = plan
    return plan


def cost(wish: Wish, devices: Sequence[Device]) -> float:
    """Say what the wish costs at least, in GPU-equivalents, where it could ever be served; else 0."""
    return 0.0 if wish.kind is Kind.CPU else _plan(wish, devices).cost


def choose(
    wish: Wish,
    devices: Sequence[Device],
    occupancy: Occupancy,
    reserved: Reserved = _NOTHING_RESERVED,
    *,
    room: float = math.inf,
) -> tuple[Placed, ...] | None:
    """Choose the slices that serve the wish now; None: it has to wait.  A wish without a GPU gets ``()``.

    ``room`` is what the limits leave, in GPU-equivalents: a share may cost more on a smaller GPU.
    """
    if wish.kind is Kind.CPU:
        return ()
    free = _free(_plan(wish, devices), occupancy, reserved, room + _TOLERANCE)
    match wish.kind:
        case Kind.SHARE:
            found = _choose_share(free, occupancy.used)
        case Kind.GPU if wish.count > 1:
            found = _choose_together(free, wish.count) if wish.count <= room + _TOLERANCE else ()
        case _:
            found = tuple(islice(free, 1))
    return tuple(_placed(wish, option) for option in found) or None


def _free(plan: _Plan, occupancy: Occupancy, reserved: Reserved, room: float) -> Iterator[_Option]:
    """The options of which enough is free now, in the order of preference."""
    used, taken, kept_off = occupancy.used, occupancy.instances, reserved.devices
    for option in plan.usable:
        free = option.device.cells - used.get(option.id, 0)
        if option.cells > free or option.gpus > room or option.id in kept_off:
            continue
        item = option.instance
        if item is not None and (item.id in taken or item.id in reserved.instances):
            continue
        yield option


def _choose_share(free: Iterator[_Option], used: Mapping[str, int]) -> tuple[_Option, ...]:
    """The device in share use with the least room (in memory), else the first that is empty."""
    best, least, empty = None, math.inf, None
    for option in free:
        taken = used.get(option.id, 0)
        if not taken:
            empty = empty or option
            continue
        device = option.device
        left = (device.cells - taken) * device.memory_mib / device.cells
        if left < least:
            best, least = option, left
    chosen = best or empty
    return (chosen,) if chosen else ()


def _choose_together(free: Iterator[_Option], count: int) -> tuple[_Option, ...]:
    """Several GPUs of one node: of one model where possible, as a single one is preferred, then the nearest."""
    groups: dict[tuple[str, str | None], list[_Option]] = {}
    for option in free:
        node = option.device.node
        for key in ((node, option.device.model), (node, None)):
            groups.setdefault(key, []).append(option)
    worth = []
    for n, ((node, model), group) in enumerate(groups.items()):
        if len(group) >= count:
            price, places = topology.together([option.device for option in group], count)
            worth.append((model is None, price, node, n, [group[place] for place in places]))
    return tuple(min(worth)[4]) if worth else ()


def _placed(wish: Wish, option: _Option) -> Placed:
    device, item = option.device, option.instance
    if item is not None:
        return Placed(device, Kind.MIG, item.cells, item.first, item.memory_mib, 100, item.id)
    if wish.kind is Kind.GPU:
        return Placed(device, Kind.GPU, device.cells, 0, device.memory_mib, 100)
    holds = device.memory_mib * option.cells // device.cells
    limit = min(wish.memory_on(device) or holds, holds)
    return Placed(device, Kind.SHARE, option.cells, None, limit, wish.compute)


def count_free(wish: Wish, devices: Sequence[Device], occupancy: Occupancy, *, at_most: int = 99) -> int:
    """Count how many such slices could start now, one after the other; never more than ``at_most``."""
    if wish.kind is Kind.CPU:
        return at_most
    free = _free(_plan(wish, devices), occupancy, _NOTHING_RESERVED, math.inf)
    if wish.kind is Kind.GPU:
        found = sum(n // wish.count for n in Counter(option.device.node for option in free).values())
    elif wish.kind is Kind.SHARE:
        used = occupancy.used
        found = sum((option.device.cells - used.get(option.id, 0)) // option.cells for option in free)
    else:
        found = sum(1 for _ in free)
    return min(found, at_most)


def reserve(
    wish: Wish,
    devices: Sequence[Device],
    occupancy: Occupancy,
    holders: Mapping[str, Sequence[Holding]],
) -> Reserved:
    """Name the devices (for MIG the instance) that would serve the wish soonest, by the known ends.

    Ties go to the fewest cells to be vacated, then as :func:`choose` prefers.  What no usable devices could
    serve reserves unusable ones only: a healthy GPU is not kept empty for one that may never come back.
    """
    plan = _plan(wish, devices)
    if wish.kind is Kind.CPU or not plan.ever:
        return _NOTHING_RESERVED
    hopeful = _on_enough_nodes(wish, plan.usable)
    options = plan.usable if hopeful else plan.ever
    waits = [(*_wait(option, occupancy, holders.get(option.id, ())), n) for n, option in enumerate(options)]
    if wish.kind is Kind.GPU and wish.count > 1:
        chosen = _soonest_together(wish.count, options, waits)
    else:
        chosen = [options[min(waits)[2]]]
    if not hopeful:
        chosen = [option for option in chosen if not option.device.usable]
    if wish.kind is Kind.MIG:
        return Reserved(instances=frozenset(option.instance.id for option in chosen if option.instance))
    return Reserved(devices=frozenset(option.id for option in chosen))


def _wait(option: _Option, occupancy: Occupancy, holders: Sequence[Holding]) -> tuple[float, int]:
    """When the option is free (0: now, inf: unknown) and how many cells have to be vacated for it."""
    if option.instance is not None:
        instance = option.instance.id
        ends = [item.ends_at for item in holders if item.instance == instance]
        if not ends and instance not in occupancy.instances:
            return 0.0, 0
        return max(ends, default=math.inf), option.cells
    lacking = option.cells - (option.device.cells - occupancy.used.get(option.id, 0))
    if lacking <= 0:
        return 0.0, 0
    vacated = 0
    for item in sorted(holders, key=lambda item: item.ends_at):
        vacated += item.cells
        if vacated >= lacking:
            return item.ends_at, lacking
    return math.inf, lacking


def _soonest_together(
    count: int, options: Sequence[_Option], waits: Iterable[tuple[float, int, int]]
) -> list[_Option]:
    """The ``count`` options of one node that are all free soonest; some node has as many."""
    nodes: dict[str, list[tuple[float, int, int]]] = {}
    for wait in sorted(waits):
        nodes.setdefault(options[wait[2]].device.node, []).append(wait)
    best = min(
        (group[count - 1][0], sum(wait[1] for wait in group[:count]), node)
        for node, group in nodes.items()
        if len(group) >= count
    )
    return [options[wait[2]] for wait in nodes[best[2]][:count]]


def check_possible(wish: Wish, devices: Sequence[Device]) -> None:
    """Raise Rejected (``impossible``) for what these devices could not serve even if all were empty and well.

    Health and drain do not count: such devices may come back.  The sentence says what would be possible.
    """
    if wish.kind is not Kind.CPU and not _plan(wish, devices).ever:
        sentence = f"This pool can never serve {wish.describe()}: {_instead(wish, devices)}."
        raise Rejected(sentence, reason="impossible", status=400)


def _instead(wish: Wish, devices: Sequence[Device]) -> str:
    """What would be possible on these devices instead."""
    if wish.kind is Kind.GPU and wish.count < 1:
        return "at least 1 GPU has to be asked for"
    if not devices:
        return "it has no GPU"
    models = [device for device in devices if _matches(wish.model, device.model)]
    if not models:
        return f"no GPU here matches {wish.model}; there are {_models(devices)}"
    fitting = [device for device in models if device.mode in _SERVES[wish.kind]]
    match wish.kind:
        case Kind.MIG:
            profiles = Counter(item.profile for device in fitting for item in device.instances)
            there = ", ".join(f"{name} ({n})" for name, n in sorted(profiles.items())) or "none"
            return f"the MIG profiles there are: {there}"
        case Kind.GPU:
            most = max(Counter(device.node for device in fitting).values(), default=0)
            return f"one node has at most {most} such {'GPU' if most == 1 else 'GPUs'} to be had whole"
        case _ if not fitting:
            shared = [device for device in devices if device.mode in _SERVES[wish.kind]]
            return f"no such GPU is open to shares; those that are: {_models(shared)}"
        case _:
            largest = max(fitting, key=lambda device: device.memory_mib)
            return (
                f"the largest share is {largest.memory_mib} MiB and 100 % of the compute, on {largest.model}"
            )


def _models(devices: Iterable[Device]) -> str:
    counted = Counter(device.model for device in devices)
    return ", ".join(f"{model} ({n})" for model, n in sorted(counted.items())) or "none"
