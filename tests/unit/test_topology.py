"""Which GPUs belong together, and which CPUs are near them: tables, and the best set found by looking at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyterhub_gpupool import topology
from jupyterhub_gpupool.containment import binds_cpus
from jupyterhub_gpupool.model import Device, Kind, Mode, Wish
from jupyterhub_gpupool.placement import Occupancy, choose
from jupyterhub_gpupool.topology import between, cpus_near, cpuset, nearest, nearness, rank, together

GIB = 1024
WORDS = ["", "SYS", "NODE", "PHB", "PXB", "PIX", "NV1", "NV2", "NV12"]
EMPTY = Occupancy({}, frozenset())


def gpu(index: int, node: str = "a", mode: Mode = Mode.ANY, gib: int = 80, **more: object) -> Device:
    device = Device(f"{node}{index}", node, index, "A100", gib * GIB, mode=mode)
    return replace(device, **more)  # type: ignore[arg-type]


def linked(devices: Sequence[Device], links: dict[tuple[int, int], str]) -> tuple[Device, ...]:
    """The devices with these links between places; each is told by both ends."""
    told: dict[int, list[tuple[str, str]]] = {n: [] for n in range(len(devices))}
    for (one, other), word in links.items():
        told[one].append((devices[other].id, word))
        told[other].append((devices[one].id, word))
    return tuple(replace(device, links=tuple(told[n])) for n, device in enumerate(devices))


def chosen(devices: Sequence[Device], count: int, used: dict[str, int] | None = None) -> list[int] | None:
    found = choose(Wish(Kind.GPU, count=count), devices, Occupancy(used or {}))
    return None if found is None else sorted(item.device.index for item in found)


# --- links ----------------------------------------------------------------------------------------------


def test_words_of_links_are_in_order_and_others_are_unknown() -> None:
    assert [rank(word) for word in WORDS] == sorted({rank(word) for word in WORDS})
    assert [rank(word) for word in ("X", "NV", "NV0", "nv4", "NV1x", "SYS ")] == [0] * 6


def test_a_pair_is_as_near_as_either_side_says() -> None:
    one, other = gpu(0, links=(("a1", "PIX"),)), gpu(1)
    assert between(one, other) == between(other, one) == rank("PIX")
    assert nearness([one]) == (0, 0) and nearness([one, other]) == (5, 5)


PAIRS = {(0, 3): "NV4", (1, 2): "NV4"}
HALVES = {pair: "NODE" if pair[0] // 4 == pair[1] // 4 else "SYS" for pair in combinations(range(8), 2)}


@pytest.mark.parametrize(
    ("why", "count", "size", "links", "used", "expected"),
    [
        ("NVLinks before what is first", 2, 4, {(0, 1): "PHB", **PAIRS}, [], [0, 3]),
        ("the pair that is free", 2, 4, PAIRS, [0], [1, 2]),
        ("more NVLinks before fewer", 2, 3, {(0, 1): "NV2", (1, 2): "NV4"}, [], [1, 2]),
        ("a bridge before the processor", 2, 3, {(0, 1): "SYS", (0, 2): "PHB", (1, 2): "PIX"}, [], [1, 2]),
        ("said before unsaid", 2, 3, {(1, 2): "SYS"}, [], [1, 2]),
        ("the worst pair decides", 3, 4, {(0, 1): "NV4", (0, 2): "SYS", (1, 2): "NV4", (1, 3): "PHB",
                                          (2, 3): "PHB", (0, 3): "SYS"}, [], [1, 2, 3]),
        ("then the sum", 3, 4, {**dict.fromkeys(combinations(range(4), 2), "PHB"), (2, 3): "NV4"}, [], [0, 2, 3]),
        ("one NUMA node", 4, 8, HALVES, [1], [4, 5, 6, 7]),
        ("two nodes if it must be", 4, 8, HALVES, [0, 4], [1, 2, 3, 5]),
        ("nothing is said", 2, 4, {}, [], [0, 1]),
        ("all the same", 3, 4, dict.fromkeys(combinations(range(4), 2), "NV12"), [], [0, 1, 2]),
        ("all of them", 4, 4, PAIRS, [], [0, 1, 2, 3]),
    ],
)  # fmt: skip
def test_the_nearest_gpus_are_chosen(
    why: str,
    count: int,
    size: int,
    links: dict[tuple[int, int], str],
    used: list[int],
    expected: list[int],
) -> None:
    devices = linked([gpu(n) for n in range(size)], links)
    assert chosen(devices, count, {f"a{n}": 1 for n in used}) == expected, why


def test_what_is_kept_for_whole_use_goes_before_links() -> None:
    """A GPU that shares could use is not taken for the sake of a link, and a smaller one goes first."""
    devices = [gpu(0), gpu(1), gpu(2, mode=Mode.WHOLE), gpu(3, mode=Mode.WHOLE)]
    assert chosen(linked(devices, {(0, 1): "NV12"}), 2) == [2, 3]
    devices = [gpu(0), gpu(1, mode=Mode.WHOLE), gpu(2)]
    assert chosen(linked(devices, {(0, 2): "NV12", (1, 2): "PIX"}), 2) == [1, 2]
    devices = [gpu(0), gpu(1), gpu(2, gib=40), gpu(3, gib=40)]
    assert chosen(linked(devices, {(0, 1): "NV12"}), 2) == [2, 3]


def test_a_little_less_memory_does_not_make_a_card_another_one() -> None:
    first = [gpu(0), gpu(1, memory_mib=80 * GIB - 90), gpu(2, memory_mib=80 * GIB - 60)]
    assert chosen(linked(first, {(0, 2): "NV12"}), 2) == [0, 2]


def test_the_node_with_the_better_links_is_chosen() -> None:
    near = linked([gpu(2, "b"), gpu(3, "b")], {(0, 1): "NV4"})
    assert chosen([gpu(0), gpu(1), *near], 2) == [2, 3]
    assert chosen([gpu(0), near[0]], 2) is None


@st.composite
def machines(draw: st.DrawFn) -> tuple[Device, ...]:
    """Up to seven GPUs on two nodes, in two modes and sizes, with any links."""
    kinds = st.tuples(
        st.sampled_from("ab"), st.sampled_from([Mode.ANY, Mode.WHOLE]), st.sampled_from([40, 80])
    )
    found = draw(st.lists(kinds, min_size=2, max_size=7))
    devices = [gpu(n, node, mode, gib) for n, (node, mode, gib) in enumerate(found)]
    pairs = combinations(range(len(devices)), 2)
    return linked(devices, {pair: draw(st.sampled_from(WORDS)) for pair in pairs})


def price(devices: Sequence[Device]) -> tuple[int, ...]:
    worst, near = nearness(devices)
    broken = sum(device.mode is Mode.ANY for device in devices)
    return broken, sum(device.memory_mib for device in devices), -worst, -near


@given(machines(), st.integers(2, 4), st.sets(st.integers(0, 6), max_size=3))
def test_no_set_of_one_node_is_better_than_the_one_that_is_chosen(
    devices: tuple[Device, ...], count: int, busy: set[int]
) -> None:
    found = choose(Wish(Kind.GPU, count=count), devices, Occupancy({f"{d.node}{d.index}": 1 for d in devices
                                                                    if d.index in busy}))  # fmt: skip
    free = [device for device in devices if device.index not in busy]
    sets = [part for part in combinations(free, count) if len({device.node for device in part}) == 1]
    if found is None:
        assert not sets
        return
    taken = [item.device for item in found]
    assert len({device.id for device in taken}) == count and {d.index for d in taken}.isdisjoint(busy)
    assert price(taken) == min(map(price, sets))


@given(st.integers(0, 8), st.integers(1, 8), st.randoms(use_true_random=False))
def test_of_sixteen_a_set_is_grown_that_no_exchange_of_islands_betters(
    n: int, count: int, random: object
) -> None:
    """Two islands of eight with NVLinks in each: whatever is asked for up to eight comes from one of them."""
    order = list(range(16))
    random.shuffle(order)  # type: ignore[attr-defined]
    island = {place: number // 8 for number, place in enumerate(order)}
    links = {
        pair: "NV12" if island[pair[0]] == island[pair[1]] else "SYS" for pair in combinations(range(16), 2)
    }
    devices = linked([gpu(place) for place in range(16)], links)
    free = [device for device in devices if not (island[device.index] == 0 and order.index(device.index) < n)]
    found = [free[place] for place in nearest([], free, count)]
    assert len(found) == count and len({island[device.index] for device in found}) == 1


def test_places_are_told_with_their_worth() -> None:
    devices = linked([gpu(0), gpu(1, mode=Mode.WHOLE), gpu(2)], {(1, 2): "NV2"})
    assert together(devices, 2) == ((1, 160, -7, -7), [1, 2])
    assert together(devices, 1) == ((0, 80, 0, 0), [1])


# --- CPUs -------------------------------------------------------------------------------------------------

LOW, HIGH = gpu(0, numa=0, cpus="0-7,16-23"), gpu(1, numa=1, cpus="8-15,24-31")
UNKNOWN, BARE = gpu(2), gpu(3, numa=2)


@pytest.mark.parametrize(
    ("why", "wish", "devices", "more", "expected"),
    [
        ("several", "", [LOW, replace(LOW, id="b")], {}, "0-7,16-23"),
        ("of two nodes", "", [LOW, HIGH], {}, "0-31"),
        ("one, without a word", "", [LOW], {}, ""),
        ("one, that asks", "near", [LOW], {}, "0-7,16-23"),
        ("no GPU", "near", [], {}, ""),
        ("an admin's list", "0-3", [LOW, HIGH], {"bound": True}, "0-3"),
        ("all, said", "all", [LOW, LOW], {}, ""),
        ("an admin's own setting", "near", [LOW], {"bound": True}, ""),
        ("one of them is unknown", "", [LOW, UNKNOWN], {}, ""),
        ("a node without CPUs", "near", [BARE], {}, ""),
        ("as many as promised", "near", [LOW], {"limit": 16.0}, "0-7,16-23"),
        ("fewer than promised", "near", [LOW], {"limit": 16.5}, ""),
        ("more than the engine has", "near", [LOW], {"there": 23}, ""),
    ],
)
def test_cpus(why: str, wish: str, devices: list[Device], more: dict[str, object], expected: str) -> None:
    given = {"limit": 0.0, "there": 32, "bound": False, **more}
    assert cpuset(wish, devices, **given) == expected, why  # type: ignore[arg-type]


def test_cpus_of_several_nodes_are_one_list() -> None:
    assert cpus_near([HIGH, LOW]) == "0-31"
    assert cpus_near([]) == cpus_near([LOW, BARE]) == ""


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, False),
        ({"shm_size": "1g", "cpu_shares": 512}, False),
        ({"cpuset_cpus": "0"}, True),
        ({"CpusetMems": "0"}, True),
        ({"cgroup_parent": "lab.slice"}, True),
        ({"cpuset_cpus": None}, True),
    ],
)
def test_an_admins_settings_that_name_cpus_are_seen(asked: dict[str, object], expected: bool) -> None:
    assert binds_cpus(asked) is expected


def test_words_for_cpus_are_those_of_the_profiles() -> None:
    from jupyterhub_gpupool import profiles

    offer = profiles.read([{"display_name": name, "cpuset": name} for name in (topology.NEAR, topology.ALL)])
    assert [profile.cpuset for profile in offer.values()] == ["near", "all"]
