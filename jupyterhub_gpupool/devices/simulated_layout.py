"""How simulated GPUs are laid out: their MIG instances, and where they sit in the machine.  Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from traitlets import TraitError

from .. import topology
from ..model import Device

GIB_IN_MIB = 1024
PLACES = ("numa", "cpus", "links")
"""Keys of an entry that say where its GPUs sit."""

MOST_NODES, MOST_CPU = 1024, 4095
CPU = r"[0-9]{1,4}(-[0-9]{1,4})?"

EIGHT = 8
OF_EIGHT = ((1, 1), (1, 2), (2, 2), (3, 4), (4, 4), (7, 8))
"""Instances of a GPU with eight memory slices as (compute, memory) slices: 3g.40gb of 80 GB is (3, 4)."""

OF_FEWER = ((1, 1), (2, 2), (4, 4))
"""Instances of a GPU with fewer memory slices."""

STARTS = {(1, 1): range(7), (2, 2): range(0, 6, 2), (4, 4): range(1)}
"""Where NVIDIA lets an instance of (compute, memory) slices begin on a GPU with eight memory slices, where
that is not every multiple of its size."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the GPUs of one entry sit; ``link`` is how near they are to each other.  Each may be unknown."""

    numa: int | None = None
    cpus: str = ""
    link: str = ""


def place_of(where: str, entry: Mapping[str, Any]) -> Place:
    """Read where the GPUs of an entry sit.  Raises TraitError with a sentence."""
    numa, cpus, link = entry.get("numa"), entry.get("cpus", ""), entry.get("links", "")
    if numa is not None and (type(numa) is not int or not 0 <= numa < MOST_NODES):
        raise TraitError(
            f"{where}: 'numa' must be a whole number from 0 to {MOST_NODES - 1}; it is {numa!r}."
        )
    if cpus != "" and (numa is None or not isinstance(cpus, str) or not _are_cpus(cpus)):
        raise TraitError(
            f"{where}: 'cpus' must be a list of CPUs such as \"0-15,32\", of the node that 'numa' names; "
            f"it is {cpus!r}."
        )
    if link != "" and (not isinstance(link, str) or not topology.rank(link)):
        known = ", ".join(topology.LEVELS)
        raise TraitError(
            f"{where}: 'links' must be {known} or NV with a number such as NV12; it is {link!r}."
        )
    return Place(numa, cpus, link)


def _are_cpus(text: str) -> bool:
    if not re.fullmatch(f"{CPU}(,{CPU})*", text):
        return False
    pairs = [[int(number) for number in part.split("-")] for part in text.split(",")]
    return all(pair[0] <= pair[-1] <= MOST_CPU for pair in pairs)


def connected(devices: Sequence[Device], places: Sequence[tuple[int, Place]]) -> tuple[Device, ...]:
    """Put devices in their places; ``places`` names for each its entry and that one's place.

    GPUs of different entries have what their NUMA nodes say in common, and nothing that is known where one is not.
    """
    if all(place == Place() for _, place in places):
        return tuple(devices)
    found = []
    for device, (entry, place) in zip(devices, places, strict=True):
        links = []
        for other, (its_entry, its_place) in zip(devices, places, strict=True):
            word = place.link if entry == its_entry and place.link else _by_numa(place.numa, its_place.numa)
            if other is not device and word:
                links.append((other.id, word))
        found.append(replace(device, numa=place.numa, cpus=place.cpus, links=tuple(sorted(links))))
    return tuple(found)


def _by_numa(one: int | None, other: int | None) -> str:
    if one is None or other is None:
        return ""
    return "NODE" if one == other else "SYS"


def instance(where: str, name: Any, memory_mib: int, slices: int) -> tuple[int, int]:
    """The (compute, memory) slices of an instance by its name, such as 3g.40gb."""
    legal = {
        f"{compute}g.{int(memory_mib * size / slices / GIB_IN_MIB + 0.5)}gb": (compute, size)
        for compute, size in (OF_EIGHT if slices == EIGHT else OF_FEWER)
        if size <= slices
    }
    if not isinstance(name, str) or name not in legal:
        raise TraitError(f"{where}: MIG instance {name!r} is not known here; allowed: {', '.join(legal)}.")
    return legal[name]


def layout(where: str, wanted: Sequence[tuple[int, int]], slices: int) -> list[tuple[int, int]]:
    """Put instances in order at the first places that NVIDIA allows, as (first, cells)."""
    placed = _place(wanted, slices, frozenset())
    if placed is None:
        raise TraitError(
            f"{where}: the instances of 'mig' do not fit together on one GPU with {slices} memory slices; "
            "take fewer or smaller ones."
        )
    return placed


def _place(
    wanted: Sequence[tuple[int, int]], slices: int, taken: frozenset[int]
) -> list[tuple[int, int]] | None:
    """Try every legal place of the first, then the rest: a small one in front must not bar a large one."""
    if not wanted:
        return []
    compute, size = wanted[0]
    starts = STARTS.get((compute, size)) if slices == EIGHT else None
    for first in starts or range(0, slices - size + 1, size):
        cells = frozenset(range(first, first + size))
        if not cells & taken and (rest := _place(wanted[1:], slices, taken | cells)) is not None:
            return [(first, size), *rest]
    return None
