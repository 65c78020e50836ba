"""How near GPUs are to each other and to the processor's cores: which of them belong together.  Pure.

Of several sets of GPUs the best is the one whose worst pair is nearest, then the one whose pairs are nearer in
all.  What the driver does not say of a pair counts as farther than anything that it says.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import combinations

from .cells import cell_numbers, ranges
from .model import Device, Mode

LEVELS = ("SYS", "NODE", "PHB", "PXB", "PIX")
"""What two GPUs have in common, from the farthest on, in the words of ``nvidia-smi topo``; NVLinks are nearer."""

NVLINKS = re.compile(r"NV([1-9][0-9]?)")

EXACT = 200
"""Sets of which each is looked at: all of 8 GPUs, and all pairs of 16.  Where there are more they are grown."""

MOST = 32
"""GPUs among which is searched, those that come first: this is done while the queue is served."""

NEAR, ALL = "near", "all"
"""What a profile can say instead of a list of CPUs."""

Nearness = tuple[int, int]
"""Of a set of GPUs: that of its worst pair, and the sum of all its pairs.  More is nearer."""


def rank(link: str) -> int:
    """How near a pair of GPUs is; 0: nobody says.

    >>> [rank(word) for word in ("", "SYS", "PIX", "NV1", "NV12")]
    [0, 1, 5, 6, 17]
    """
    if told := NVLINKS.fullmatch(link):
        return len(LEVELS) + int(told[1])
    return LEVELS.index(link) + 1 if link in LEVELS else 0


@lru_cache(maxsize=1024)
def _ranks(links: tuple[tuple[str, str], ...]) -> Mapping[str, int]:
    return {other: rank(link) for other, link in links}


def between(one: Device, other: Device) -> int:
    """How near two GPUs are, by what either of them says."""
    return max(_ranks(one.links).get(other.id, 0), _ranks(other.links).get(one.id, 0))


def nearness(devices: Sequence[Device]) -> Nearness:
    """How near these GPUs are to each other."""
    return _worth([between(one, other) for one, other in combinations(devices, 2)])


def _worth(pairs: Sequence[int]) -> Nearness:
    return min(pairs, default=0), sum(pairs)


def _likeness(device: Device) -> tuple[bool, int]:
    """What makes one GPU of a node preferable to another: free for any use, and its GiB.

    In GiB, because what the driver keeps for itself differs a little between cards of one model.
    """
    return device.mode is Mode.ANY, round(device.memory_mib / 1024)


def together(devices: Sequence[Device], count: int) -> tuple[tuple[int, int, int, int], list[int]]:
    """Choose ``count`` of at least as many GPUs, with what they are worth (less is better) and their places.

    Those kept for whole use come first, then the smallest.  Where there are more of the same, the choice
    among them is the one whose GPUs are nearest to each other; of equal ones the first in the order given.
    """
    ranked = sorted(range(len(devices)), key=lambda place: _likeness(devices[place]))
    last = _likeness(devices[ranked[count - 1]])
    fixed = [place for place in ranked[:count] if _likeness(devices[place]) != last]
    alike = [place for place in ranked if _likeness(devices[place]) == last]
    near = nearest(
        [devices[place] for place in fixed], [devices[place] for place in alike], count - len(fixed)
    )
    chosen = [*fixed, *(alike[place] for place in near)]
    kinds = [_likeness(devices[place]) for place in chosen]
    worst, all_pairs = nearness([devices[place] for place in chosen])
    return (sum(kind[0] for kind in kinds), sum(kind[1] for kind in kinds), -worst, -all_pairs), chosen


def nearest(fixed: Sequence[Device], among: Sequence[Device], count: int) -> tuple[int, ...]:
    """Choose ``count`` places of ``among`` whose GPUs are, with the fixed ones, nearest to each other.

    Of equal sets the first in the order of ``among`` is taken.  Where the sets are too many to look at each,
    one is grown from each GPU, and the best of these is taken; it need not be the best of all.
    """
    first = tuple(range(count))
    among = among[: max(MOST, count)]
    everything = [*fixed, *among]
    if count >= len(among) or not any(device.links for device in everything):
        return first[: len(among)]
    size, start = len(everything), len(fixed)
    near = [[0] * size for _ in range(size)]
    for one, other in combinations(range(size), 2):
        near[one][other] = near[other][one] = between(everything[one], everything[other])
    given = tuple(range(start))
    if math.comb(len(among), count) <= EXACT:
        sets = ((*given, *chosen) for chosen in combinations(range(start, size), count))
        best = max(sets, key=lambda chosen: _of(near, chosen))  # the first of equal ones
    else:
        best = max(
            (_grown(near, (*given, seed), start + count, range(start, size)) for seed in range(start, size)),
            key=lambda chosen: _of(near, chosen),
        )
    return tuple(sorted(place - start for place in best[start:]))


def _of(near: Sequence[Sequence[int]], chosen: Sequence[int]) -> Nearness:
    return _worth([near[one][other] for one, other in combinations(chosen, 2)])


def _grown(
    near: Sequence[Sequence[int]], chosen: tuple[int, ...], size: int, places: Sequence[int]
) -> tuple[int, ...]:
    """Take the GPU that is nearest to those that are chosen, until there are enough."""
    left = {
        place: _worth([near[place][other] for other in chosen]) for place in places if place not in chosen
    }
    while len(chosen) < size:
        one = max(left, key=left.__getitem__)
        del left[one]
        chosen = (*chosen, one)
        for place, (worst, total) in left.items():
            left[place] = min(worst, near[place][one]), total + near[place][one]
    return chosen


def cpus_near(devices: Sequence[Device]) -> str:
    """The CPUs of the NUMA nodes of these GPUs as the kernel lists them; empty where one is unknown."""
    if not devices or not all(device.numa is not None and device.cpus for device in devices):
        return ""
    return ranges({cpu for device in devices for cpu in cell_numbers(device.cpus)})


def cpuset(wish: str, devices: Sequence[Device], *, limit: float, there: int, bound: bool) -> str:
    """The CPUs that a session on these GPUs is to see, as the kernel lists them; empty: all there are.

    ``wish`` is the profile's word: a list of CPUs stands as it is, :data:`NEAR` asks for those of the GPUs' NUMA
    nodes and :data:`ALL` for no choice; without a word sessions of several GPUs get those that are near.  They
    never get fewer than the cores of their ``limit`` (0: none is set), none that the engine, which has ``there``
    of them, could refuse, and none at all where an admin's own settings bind the session (``bound``).
    """
    if wish not in ("", NEAR, ALL):
        return wish
    if bound or wish == ALL or (not wish and len(devices) < 2):
        return ""
    found = cpus_near(devices)
    numbers = cell_numbers(found)
    return found if numbers and numbers[-1] < there and len(numbers) >= limit else ""
