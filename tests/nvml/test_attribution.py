"""Whatever the driver and the backend say: a share is a definite zero only where that is proved."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from jupyterhub_gpupool.devices.nvidia.attribution import BASE_MIB, Attribution, Shown
from jupyterhub_gpupool.idleness import is_busy
from jupyterhub_gpupool.model import Device, Kind, Mode, Process, Slice

UUID = "GPU-1"
DEVICE = Device(UUID, "n", 0, "A100", 80000, mode=Mode.ANY)
SHARE = (Slice(UUID, Kind.SHARE, tuple(range(30)), 120, 20000, 0),)
WHOLE = (Slice(UUID, Kind.GPU, tuple(range(120)), 120, 80000, 100),)
PIDS = st.integers(1, 6)
MEMORY = st.one_of(st.none(), st.integers(0, 500))
PERCENT = st.one_of(st.none(), st.integers(0, 100))
LISTED = st.one_of(
    st.none(), st.lists(st.tuples(PIDS, MEMORY, st.just(0)), max_size=4, unique_by=lambda one: one[0])
)
SESSION = st.one_of(st.none(), st.sets(PIDS, max_size=3))


@st.composite
def gpus(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "uuid": UUID,
        "used": draw(MEMORY),
        "reserved": draw(st.sampled_from([None, 600])),
        "processes": draw(LISTED),
        "now": draw(PERCENT),
        "peak": draw(PERCENT),
        "uses": draw(st.one_of(st.none(), st.dictionaries(PIDS.map(str), st.integers(0, 100), max_size=4))),
        "power": None,
        "temperature": None,
        "ecc": None,
    }


def session(pids: set[int] | None) -> tuple[Process, ...] | None:
    return None if pids is None else tuple(Process(pid, 1.0, 0.0, 1) for pid in sorted(pids))


@given(st.lists(gpus(), min_size=1, max_size=4), SESSION, SESSION, st.sets(PIDS))
def test_a_share_is_idle_only_where_that_is_sure(
    looks: list[dict[str, Any]], mine: set[int] | None, others: set[int] | None, visible: set[int]
) -> None:
    others = None if others is None else others - (mine or set())
    made = Attribution(("x*",), lambda pid: Shown("python", 1.0) if pid in visible else None)
    for gpu in looks:
        slices = {"mine": SHARE, "others": SHARE}
        processes = {"mine": session(mine), "others": session(others)}
        found = made.look([gpu], {UUID: DEVICE}, slices, processes).leases["mine"]
        listed, uses = gpu["processes"], gpu["uses"] or {}
        own = [one for one in listed or () if one[0] in (mine or ())]
        assert found.utilization is None or 0 <= found.utilization <= 100
        if is_busy(found, 5) is False:
            assert mine is not None and listed is not None
            assert sum(uses.get(str(pid), 0) for pid in mine) * 4 < 5
            assert listed or gpu["used"] is None or gpu["reserved"] is None or gpu["used"] <= BASE_MIB
        if found.processes == 0:
            assert not own
            assert all(one[0] in visible | mine | (others or set()) for one in listed)


@given(st.lists(gpus(), min_size=1, max_size=4))
def test_a_whole_gpu_is_idle_only_where_it_is_measured_or_empty(looks: list[dict[str, Any]]) -> None:
    made = Attribution((), lambda _: None)
    for gpu in looks:
        found = made.look([gpu], {UUID: DEVICE}, {"a": WHOLE}, {}).leases["a"]
        if is_busy(found, 5) is False and gpu["processes"]:
            assert gpu["peak"] is not None and gpu["peak"] < 5
        if found.processes == 0:
            assert gpu["processes"] == []
