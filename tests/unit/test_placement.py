"""Placement: tables for what is chosen and why not, properties for what must never happen."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyterhub_gpupool.errors import Rejected
from jupyterhub_gpupool.model import Device, Health, Instance, Kind, Mode, Wish
from jupyterhub_gpupool.placement import (
    Holding,
    Occupancy,
    Placed,
    Reserved,
    cells_for,
    check_possible,
    choose,
    cost,
    count_free,
    reserve,
)

GIB = 1024
EMPTY = Occupancy({}, frozenset())


def gpu(
    name: str, memory: int = 80, mode: Mode = Mode.ANY, model: str = "A100-SXM4-80GB", **more: object
) -> Device:
    """A device called like its index: ``a0`` is GPU 0 of node ``a``."""
    device = Device(
        id=name, node=name[0], index=int(name[1:]), model=model, memory_mib=memory * GIB, mode=mode
    )
    return replace(device, **more)  # type: ignore[arg-type]


def mig(name: str, *profiles: str) -> Device:
    """A MIG GPU of eight memory slices with these instances in a row."""
    size = {"1g.10gb": 1, "2g.20gb": 2, "3g.40gb": 4}
    found, first = [], 0
    for profile in profiles:
        cells = size[profile]
        found.append(Instance(f"{name}-{first}", profile, first, cells, cells * 10 * GIB))
        first += cells
    return gpu(name, mode=Mode.MIG, model="H100", cells=8, instances=tuple(found))


def whole(count: int = 1, model: str = "*") -> Wish:
    return Wish(Kind.GPU, count=count, model=model)


def share(memory: int = 0, compute: int = 0, fraction: str = "", model: str = "*") -> Wish:
    return Wish(Kind.SHARE, memory_mib=memory * GIB, compute=compute, fraction=fraction, model=model)


def ids(found: Sequence[Placed] | None) -> list[str] | None:
    """What was chosen, as device ids, or instance ids where there is one."""
    return None if found is None else [item.instance or item.device.id for item in found]


def grant(occupancy: Occupancy, found: Sequence[Placed]) -> Occupancy:
    """The occupancy after these placements."""
    used = Counter(occupancy.used)
    for item in found:
        used[item.device.id] += item.cells
    taken = {*occupancy.instances, *(item.instance for item in found if item.instance)}
    return Occupancy(dict(used), frozenset(taken))


# --- one slice --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wish", "cells", "memory"),
    [
        (share(fraction="1/2"), 60, 40 * GIB),
        (share(fraction="1/3"), 40, 80 * GIB // 3),
        (share(fraction="1/12"), 10, 80 * GIB // 12),
        (share(fraction="1/7"), 17, 80 * GIB * 17 // 120),  # nearest cells hold less than the wish
        (share(fraction="1/11"), 11, 80 * GIB // 11),  # and here more: the wish is the limit
        (share(memory=20, compute=25), 30, 20 * GIB),
        (share(memory=20, compute=50), 60, 20 * GIB),  # the larger one decides the cells
        (share(memory=40, compute=10), 60, 40 * GIB),
        (share(compute=10), 12, 8 * GIB),  # no memory named: what the cells hold
        (Wish(Kind.SHARE, memory_mib=1), 1, 1),
        (share(memory=80, compute=100), 120, 80 * GIB),
    ],
)
def test_cells_and_memory_of_a_share(wish: Wish, cells: int, memory: int) -> None:
    device = gpu("a0")
    assert cells_for(wish, device) == cells
    assert cost(wish, [device]) == pytest.approx(cells / 120)
    assert choose(wish, [device], EMPTY) == (Placed(device, Kind.SHARE, cells, None, memory, wish.compute),)


def test_a_whole_gpu_and_a_mig_instance_are_all_of_themselves() -> None:
    device, card = gpu("a0"), mig("a1", "3g.40gb", "1g.10gb")
    assert choose(whole(), [device], EMPTY) == (Placed(device, Kind.GPU, 120, 0, 80 * GIB, 100),)
    wish = Wish(Kind.MIG, mig="1g.10gb")
    assert choose(wish, [card], EMPTY) == (Placed(card, Kind.MIG, 1, 4, 10 * GIB, 100, "a1-4"),)
    assert cells_for(wish, card) == 1
    assert cost(wish, [card]) == 1 / 8
    with pytest.raises(ValueError, match=r"GPU a0 has no MIG instance 1g\.10gb"):
        cells_for(wish, device)


def test_no_gpu_is_served_by_nothing() -> None:
    assert choose(Wish(), [], EMPTY) == ()
    assert cost(Wish(), []) == 0
    assert count_free(Wish(), [], EMPTY, at_most=7) == 7
    assert reserve(Wish(), [gpu("a0")], EMPTY, {}) == Reserved()
    check_possible(Wish(), [])


def test_memory_that_is_unknown_is_not_promised() -> None:
    assert choose(share(memory=1), [gpu("a0", memory=0)], EMPTY) is None


# --- which device -----------------------------------------------------------------------------------

T4 = gpu("a9", memory=16, model="T4")


@pytest.mark.parametrize(
    ("why", "wish", "devices", "used", "expected"),
    [
        ("used with least room", share(20), [gpu("a0"), gpu("a1"), gpu("a2")], {"a1": 30, "a2": 60}, "a2"),
        ("used with too little room", share(20), [gpu("a0"), gpu("a1")], {"a0": 110, "a1": 20}, "a1"),
        ("used before mode share", share(20), [gpu("a0", mode=Mode.SHARE), gpu("a1")], {"a1": 10}, "a1"),
        ("mode share before any", share(20), [gpu("a0", 40), gpu("a1", mode=Mode.SHARE)], {}, "a1"),
        ("the smallest that fits", share(10), [gpu("a0"), T4], {}, "a9"),
        ("the smallest is too small", share(20), [gpu("a0"), T4], {}, "a0"),
        ("tie: node, then index", share(10), [gpu("b0"), gpu("a1"), gpu("a0")], {}, "a0"),
        ("index is a number", share(10), [gpu("a10"), gpu("a9")], {}, "a9"),
        ("never on a whole one", share(10), [gpu("a0", mode=Mode.WHOLE)], {}, None),
        ("never where whole is held", share(fraction="1/120"), [gpu("a0")], {"a0": 120}, None),
        ("whole before any", whole(), [gpu("a0", 40), gpu("a1", mode=Mode.WHOLE)], {}, "a1"),
        ("the smallest whole", whole(), [gpu("a0"), T4], {}, "a9"),
        ("never on a shared one", whole(), [gpu("a0")], {"a0": 1}, None),
        ("never on one kept for shares", whole(), [gpu("a0", mode=Mode.SHARE)], {}, None),
        ("never a MIG one", whole(), [mig("a0", "1g.10gb")], {}, None),
        ("no share of a MIG one", share(1), [mig("a0", "1g.10gb")], {}, None),
        ("drained", whole(), [gpu("a0", drained=True)], {}, None),
        ("sick", whole(), [gpu("a0", health=Health.SICK), gpu("a1")], {}, "a1"),
        ("lost", share(1), [gpu("a0", health=Health.LOST)], {}, None),
        ("model in any case", whole(model="a100*"), [T4, gpu("a0")], {}, "a0"),
        ("model in another case", whole(model="H10?"), [gpu("a0", model="h100")], {}, "a0"),
        ("model not there", whole(model="B*"), [gpu("a0")], {}, None),
    ],
)
def test_choice(
    why: str, wish: Wish, devices: list[Device], used: dict[str, int], expected: str | None
) -> None:
    for order in (devices, devices[::-1]):
        found = ids(choose(wish, order, Occupancy(used)))
        assert found == (None if expected is None else [expected]), why


@pytest.mark.parametrize(
    ("why", "count", "devices", "used", "expected"),
    [
        ("one node", 2, [gpu("a0"), gpu("b0"), gpu("b1")], {}, ["b0", "b1"]),
        ("not across nodes", 2, [gpu("a0"), gpu("b0")], {}, None),
        ("one is in use", 2, [gpu("a0"), gpu("a1"), gpu("a2")], {"a1": 1}, ["a0", "a2"]),
        ("one model", 2, [T4, gpu("a0"), gpu("a1")], {}, ["a0", "a1"]),
        ("mixed models if it must be", 3, [T4, gpu("a0"), gpu("a1")], {}, ["a9", "a0", "a1"]),
        ("unnamed models", 2, [gpu("a0", model="")], {}, None),
        (
            "kept whole first",
            2,
            [gpu("a0"), gpu("a1"), *(gpu(f"b{n}", mode=Mode.WHOLE) for n in (0, 1))],
            {},
            ["b0", "b1"],
        ),
        ("smallest node", 2, [gpu("a0"), gpu("a1"), gpu("b0", 40), gpu("b1", 40)], {}, ["b0", "b1"]),
    ],
)
def test_several_gpus(
    why: str, count: int, devices: list[Device], used: dict[str, int], expected: list[str] | None
) -> None:
    assert ids(choose(whole(count), devices, Occupancy(used))) == expected, why


def test_mig_instances_go_one_by_one_and_only_by_their_exact_name() -> None:
    devices = [mig("a0", "3g.40gb", "1g.10gb", "1g.10gb")]
    wish = Wish(Kind.MIG, mig="1g.10gb")
    assert ids(choose(wish, devices, EMPTY)) == ["a0-4"]
    assert ids(choose(wish, devices, Occupancy({"a0": 1}, {"a0-4"}))) == ["a0-5"]
    assert choose(wish, devices, Occupancy({"a0": 2}, {"a0-4", "a0-5"})) is None
    assert choose(Wish(Kind.MIG, mig="1G.10GB"), devices, EMPTY) is None
    assert choose(Wish(Kind.MIG, mig="1g.10gb", model="A*"), devices, EMPTY) is None
    assert ids(choose(wish, devices, EMPTY, Reserved(instances=frozenset({"a0-4"})))) == ["a0-5"]


def test_later_requests_keep_off_what_is_reserved() -> None:
    devices = [gpu("a0"), gpu("a1")]
    kept = Reserved(devices=frozenset({"a0"}))
    assert ids(choose(whole(), devices, EMPTY, kept)) == ["a1"]
    assert ids(choose(share(10), devices, Occupancy({"a0": 60}), kept)) == ["a1"]
    assert choose(whole(2), devices, EMPTY, kept) is None


def test_room_under_the_limits_decides_between_a_dear_and_a_cheap_share() -> None:
    devices = [T4, gpu("a0")]
    assert ids(choose(share(10), devices, EMPTY)) == ["a9"]  # 75 cells of the T4
    assert cost(share(10), devices) == 15 / 120
    assert ids(choose(share(10), devices, EMPTY, room=0.5)) == ["a0"]
    assert choose(share(10), devices, EMPTY, room=0.1) is None
    assert choose(whole(2), [gpu("a0"), gpu("a1")], EMPTY, room=1) is None
    assert choose(whole(2), [gpu("a0"), gpu("a1")], EMPTY, room=2) is not None


def test_a_list_that_changes_is_read_again_and_a_tuple_is_remembered() -> None:
    devices = [gpu("a0")]
    assert ids(choose(whole(), devices, EMPTY)) == ["a0"]
    devices[0] = gpu("a1")
    assert ids(choose(whole(), devices, EMPTY)) == ["a1"]
    for n in range(300):  # more than are remembered, and each its own inventory
        assert ids(choose(whole(), (gpu(f"b{n}"),), EMPTY)) == [f"b{n}"]


# --- never possible ---------------------------------------------------------------------------------

POOL = (gpu("a0"), gpu("a1"), mig("a2", "3g.40gb", "1g.10gb", "1g.10gb"), replace(T4, mode=Mode.SHARE))


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        (whole(3), "can never serve 3 × GPU: one node has at most 2 such GPUs to be had whole"),
        (whole(1, "T4"), "at most 0 such GPUs to be had whole"),
        (whole(0), "at least 1 GPU has to be asked for"),
        (
            whole(1, "B200*"),
            r"no GPU here matches B200\*; there are A100-SXM4-80GB \(2\), H100 \(1\), T4 \(1\)",
        ),
        (share(81), "the largest share is 81920 MiB and 100 % of the compute, on A100-SXM4-80GB"),
        (share(20, model="T4"), "the largest share is 16384 MiB"),
        (share(10, model="H100"), r"open to shares; those that are: A100-SXM4-80GB \(2\), T4 \(1\)"),
        (share(fraction="3/2"), "the largest share is"),
        (share(compute=101), "the largest share is"),
        (Wish(Kind.MIG, mig="7g.80gb"), r"the MIG profiles there are: 1g.10gb \(2\), 3g.40gb \(1\)"),
        (Wish(Kind.MIG, mig="1g.10gb", model="A100*"), "the MIG profiles there are: none"),
    ],
)
def test_never_possible_says_what_would_be(wish: Wish, says: str) -> None:
    with pytest.raises(Rejected, match=says) as caught:
        check_possible(wish, POOL)
    assert (caught.value.reason, caught.value.status) == ("impossible", 400)
    assert choose(wish, POOL, EMPTY) is None
    assert count_free(wish, POOL, EMPTY) == 0
    assert reserve(wish, POOL, EMPTY, {}) == Reserved()
    assert cost(wish, POOL) == 0


def test_a_pool_without_a_gpu_says_so() -> None:
    with pytest.raises(Rejected, match="it has no GPU"):
        check_possible(whole(), [])


@pytest.mark.parametrize("wish", [whole(2), share(80), share(16, model="t4"), Wish(Kind.MIG, mig="3g.40gb")])
def test_what_is_sick_or_drained_may_come_back(wish: Wish) -> None:
    away = tuple(replace(device, health=Health.LOST, drained=True) for device in POOL)
    check_possible(wish, away)
    assert cost(wish, away) == cost(wish, POOL) > 0
    assert choose(wish, away, EMPTY) is None


# --- reservations -----------------------------------------------------------------------------------


def hold(*parts: tuple[int, float]) -> list[Holding]:
    return [Holding(cells, ends) for cells, ends in parts]


@pytest.mark.parametrize(
    ("why", "wish", "names", "holders", "expected"),
    [
        ("ends first", whole(), "a0 a1", {"a0": hold((120, 50)), "a1": hold((120, 40))}, {"a1"}),
        ("stopping is soonest", whole(), "a0 a1", {"a0": hold((120, 50)), "a1": hold((120, 0))}, {"a1"}),
        (
            "the last share counts",
            whole(),
            "a0 a1",
            {"a0": hold((30, 10), (30, 90)), "a1": hold((120, 80))},
            {"a1"},
        ),
        (
            "no end is known",
            whole(),
            "a0 a1",
            {"a0": hold((120, math.inf)), "a1": hold((60, math.inf))},
            {"a1"},
        ),
        ("free now", whole(2), "a0 a1 a2", {"a1": hold((120, 9)), "a2": hold((120, 5))}, {"a0", "a2"}),
        (
            "the node that is free soonest",
            whole(2),
            "a0 a1 b0 b1",
            {"a0": hold((120, 9)), "a1": hold((120, 90)), "b0": hold((120, 50)), "b1": hold((120, 60))},
            {"b0", "b1"},
        ),
        ("tie: node, index", whole(), "b0 a1 a0", {n: hold((120, 5)) for n in ("a0", "a1", "b0")}, {"a0"}),
        (
            "a share needs only enough cells",
            share(40),
            "a0 a1",
            {"a0": hold((60, 10), (60, 90)), "a1": hold((120, 20))},
            {"a0"},
        ),
        (
            "fewest cells to be vacated",
            share(40),
            "a0 a1",
            {"a0": hold((120, 10)), "a1": hold((80, 10), (10, 90))},
            {"a1"},
        ),
    ],
)
def test_reserve(
    why: str, wish: Wish, names: str, holders: Mapping[str, Sequence[Holding]], expected: set[str]
) -> None:
    devices = [gpu(name) for name in names.split()]
    used = {name: sum(item.cells for item in items) for name, items in holders.items()}
    assert choose(wish, devices, Occupancy(used)) is None
    assert reserve(wish, devices, Occupancy(used), holders) == Reserved(devices=frozenset(expected)), why


def test_reserve_the_mig_instance_that_is_free_soonest() -> None:
    devices = [mig("a0", "1g.10gb", "1g.10gb", "3g.40gb")]
    taken = Occupancy({"a0": 6}, {"a0-0", "a0-1", "a0-2"})
    holders = {"a0": [Holding(1, 50, "a0-0"), Holding(1, 40, "a0-1"), Holding(4, 0, "a0-2")]}
    found = reserve(Wish(Kind.MIG, mig="1g.10gb"), devices, taken, holders)
    assert found == Reserved(instances=frozenset({"a0-1"}))


def test_nothing_well_is_kept_empty_for_what_may_never_come_back() -> None:
    sick = gpu("a0", health=Health.SICK)
    busy = {"a1": hold((120, math.inf))}
    assert reserve(whole(), [sick, gpu("a1")], Occupancy({"a1": 120}), busy).devices == {"a1"}
    assert reserve(whole(), [sick], EMPTY, {}).devices == {"a0"}
    assert reserve(whole(2), [sick, gpu("a1")], EMPTY, {}).devices == {"a0"}


# --- properties -------------------------------------------------------------------------------------

devices_of_a_pool = st.lists(
    st.tuples(
        st.sampled_from("ab"),
        st.sampled_from([(80, "A100"), (16, "T4")]),
        st.sampled_from([Mode.ANY, Mode.ANY, Mode.WHOLE, Mode.SHARE, Mode.MIG]),
        st.booleans(),
    ),
    max_size=6,
).map(
    lambda rows: tuple(
        mig(f"{node}{n}", "3g.40gb", "2g.20gb", "1g.10gb", "1g.10gb")
        if mode is Mode.MIG
        else gpu(f"{node}{n}", card[0], mode, card[1], drained=drained)
        for n, (node, card, mode, drained) in enumerate(rows)
    )
)
wishes = st.one_of(
    st.builds(whole, st.integers(1, 3), st.sampled_from(["*", "a100", "T?"])),
    st.builds(share, st.integers(1, 80), st.integers(0, 100)),
    st.builds(lambda n: share(fraction=f"1/{n}"), st.integers(1, 12)),
    st.builds(lambda name: Wish(Kind.MIG, mig=name), st.sampled_from(["1g.10gb", "2g.20gb", "3g.40gb"])),
)


@given(devices_of_a_pool, st.lists(st.tuples(wishes, st.booleans()), max_size=25))
def test_no_sequence_of_placements_breaks_the_rules(
    devices: tuple[Device, ...], steps: list[tuple[Wish, bool]]
) -> None:
    """Cells never exceeded, whole only on empty ones, kinds never mixed, each instance once."""
    occupancy, held = EMPTY, []
    for wish, release in steps:
        if release and held:
            gone = held.pop(0)
            used = Counter(occupancy.used)
            used.subtract({item.device.id: item.cells for item in gone})
            left = set(occupancy.instances) - {item.instance for item in gone}
            occupancy = Occupancy(dict(used), frozenset(left))
        found = choose(wish, devices, occupancy)
        if found is None:
            continue
        check_possible(wish, devices)
        assert len({(item.device.id, item.instance) for item in found}) == len(found) >= 1
        assert len({item.device.node for item in found}) == 1
        assert sum(item.cells / item.device.cells for item in found) >= cost(wish, devices) - 1e-9
        for item in found:
            assert item.device.usable
            if item.kind is Kind.GPU:
                assert not occupancy.used.get(item.device.id)
                assert item.cells == item.device.cells
            assert not item.instance or item.instance not in occupancy.instances
            assert 0 < item.memory_mib <= item.device.memory_mib
        occupancy = grant(occupancy, found)
        held.append(found)
    kinds: dict[str, set[Kind]] = {}
    for item in (item for found in held for item in found):
        kinds.setdefault(item.device.id, set()).add(item.kind)
    assert all(len(found) == 1 for found in kinds.values())
    assert all(occupancy.used.get(device.id, 0) <= device.cells for device in devices)


@given(devices_of_a_pool, wishes, st.lists(wishes, max_size=6))
def test_count_free_is_how_often_choose_succeeds(
    devices: tuple[Device, ...], wish: Wish, before: list[Wish]
) -> None:
    occupancy = EMPTY
    for other in before:
        occupancy = grant(occupancy, choose(other, devices, occupancy) or ())
    expected = count_free(wish, devices, occupancy, at_most=1000)
    times = 0
    while (found := choose(wish, devices, occupancy)) is not None:
        occupancy = grant(occupancy, found)
        times += 1
    assert times == expected
    assert count_free(wish, devices, EMPTY, at_most=1) <= 1


@given(devices_of_a_pool, wishes)
def test_impossible_is_exactly_what_an_empty_and_well_pool_cannot_serve(
    devices: tuple[Device, ...], wish: Wish
) -> None:
    well = tuple(replace(device, drained=False) for device in devices)
    if choose(wish, well, EMPTY) is None:
        with pytest.raises(Rejected):
            check_possible(wish, devices)
    else:
        check_possible(wish, devices)


@given(devices_of_a_pool, wishes, st.lists(wishes, max_size=8), wishes)
def test_the_head_of_the_queue_is_served_when_what_it_reserved_is_free(
    devices: tuple[Device, ...], head: Wish, before: list[Wish], later: Wish
) -> None:
    occupancy = EMPTY
    holders: dict[str, list[Holding]] = {}
    for n, other in enumerate(before):
        for item in choose(other, devices, occupancy) or ():
            occupancy = grant(occupancy, [item])
            holders.setdefault(item.device.id, []).append(Holding(item.cells, float(n), item.instance))
    kept = reserve(head, devices, occupancy, holders)
    for item in choose(later, devices, occupancy, kept) or ():
        assert item.device.id not in kept.devices
        assert not item.instance or item.instance not in kept.instances
        occupancy = grant(occupancy, [item])
    vacated = Occupancy(
        {key: 0 if key in kept.devices else cells for key, cells in occupancy.used.items()},
        frozenset(occupancy.instances) - kept.instances,
    )
    if head.kind is Kind.MIG and kept.instances:
        freed = {
            item.id: (device.id, item.cells)
            for device in devices
            for item in device.instances
            if item.id in kept.instances and item.id in occupancy.instances
        }
        used = Counter(vacated.used)
        for device, cells in freed.values():
            used[device] -= cells
        vacated = Occupancy(dict(used), vacated.instances)
    usable = [d for d in devices if d.usable]
    could = choose(head, usable, EMPTY) is not None
    assert (choose(head, devices, vacated) is not None) == could
