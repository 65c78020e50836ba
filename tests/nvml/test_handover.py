"""What a session has left on real devices, as the driver tells it: through the real sweep and ledger."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jupyterhub_gpupool.devices import Examiner, Residue
from jupyterhub_gpupool.devices.nvidia.inventory import NvidiaDevices
from jupyterhub_gpupool.devices.nvidia.remains import Remains
from jupyterhub_gpupool.devices.simulated import SimulatedDevices
from jupyterhub_gpupool.model import Health, Kind, Lease, Process, State, Wish
from tests.ledger.conftest import HALF, memory

from .conftest import MakeDevices, MakeMachine
from .scenario import IS_LOST, MISMATCH, XID, FakeGPU, FakeProcess, Machine, a100, h100, small
from .test_service import Pool

MINE, PARENT = os.getpid(), os.getppid()


@pytest.fixture
def pool(tmp_path: Path, devices: MakeDevices) -> Iterator[Any]:
    made: list[Pool] = []

    with memory(tmp_path) as folder:

        def make(machine: Machine, **given: Any) -> Pool:
            made.append(Examined(folder, devices(machine, **given)))
            made[-1].pass_time()
            return made[-1]

        yield make
        for one in made:
            one.close()


class Examined(Pool):
    """A pool whose sessions end when their owners stop them; what they leave is in the driver's scenario."""

    def leave(self, lease: Lease) -> None:
        self.ledger.begin_stop(lease.id, actor=lease.user, reason="stopped")
        self.ledger.close(lease.id, actor=lease.user)

    def after(self, sweeps: int, lease: Lease) -> tuple[State, str]:
        self.pass_time(sweeps)
        found = self.lease(lease)
        return found.state, found.doubt


def test_only_real_devices_are_examined(machine: MakeMachine, devices: MakeDevices) -> None:
    seen = devices(machine(a100(0)))
    assert isinstance(seen, Examiner) and all(one.examined for one in seen.devices())
    pretended = SimulatedDevices(gpus=[{"model": "A100", "memory": "80G", "count": 1}])
    assert not isinstance(pretended, Examiner) and not any(one.examined for one in pretended.devices())


@pytest.mark.parametrize(
    ("left", "words"),
    [
        ({"processes": [FakeProcess(MINE, 2900)], "used": 3000}, f"pid {MINE}"),
        ({"used": 3000}, "2996 MiB"),
    ],
    ids=["process", "memory"],
)
def test_a_gpu_is_given_again_once_it_is_clean(
    machine: MakeMachine, pool: Any, left: dict[str, Any], words: str
) -> None:
    gpu = a100(0)
    there = machine(gpu)
    bench = pool(there)
    first = bench.ask("ada")
    waiting = bench.ask("grace")
    bench.pass_time()
    for name, value in left.items():
        setattr(gpu, name, value)
    there.write()
    bench.leave(first)
    state, doubt = bench.after(2, first)
    assert state is State.STOPPING and words in doubt
    assert bench.lease(waiting).state is State.QUEUED
    gpu.processes, gpu.used = [], 4
    there.write()
    bench.pass_time(2)
    assert bench.lease(first).state is State.CLOSED and bench.lease(waiting).state is State.ACTIVE


def test_a_critical_xid_of_the_session_holds_its_gpu_until_it_is_well(
    machine: MakeMachine, pool: Any
) -> None:
    gpu = a100(0)
    there = machine(gpu)
    bench = pool(there, heal_after=300)
    bench.real._clock = bench.clock
    first = bench.ask("ada")
    bench.pass_time()
    there.happen(0, XID, 48)
    bench.leave(first)
    bench.pass_time()
    assert bench.lease(first).state is State.CLOSED, "its owner may have another GPU"
    device = bench.device(gpu.uuid)
    assert device.health is Health.SICK and "XID 48" in device.unclean
    waiting = bench.ask("grace")
    assert bench.after(25, waiting)[0] is State.QUEUED
    bench.pass_time(8)
    assert bench.lease(waiting).state is State.ACTIVE and bench.device(gpu.uuid).unclean == ""


def test_a_sick_card_tells_its_users_and_comes_back_by_itself(machine: MakeMachine, pool: Any) -> None:
    sick, well = a100(0), a100(1)
    there = machine(sick, well)
    bench = pool(there, heal_after=60)
    bench.real._clock = bench.clock
    leases = [bench.ask("ada"), bench.ask("grace")]
    ada = next(one for one in leases if one.slices[0].device == sick.uuid)
    there.happen(0, XID, 79)
    bench.pass_time()
    told = {one.id: [event.reason for event in bench.events(one, "unwell")] for one in leases}
    assert [key for key, reasons in told.items() if reasons] == [ada.id]
    assert "XID 79 (the GPU has fallen off the bus)" in told[ada.id][0]
    assert bench.lease(ada).state is State.ACTIVE and bench.device(well.uuid).usable
    bench.pass_time(6)
    assert bench.device(sick.uuid).usable


@pytest.mark.parametrize("code", [IS_LOST, None], ids=["lost", "hangs"])
def test_a_device_that_does_not_answer_is_given_to_nobody(
    machine: MakeMachine, pool: Any, code: int | None
) -> None:
    gpu = a100(0)
    there = machine(gpu)
    bench = pool(there)
    first = bench.ask("ada")
    bench.leave(first)
    if code is None:
        gpu.hangs = ["nvmlDeviceGetUUID"]
        bench.real._helper._timeout = 0.2
    else:
        gpu.fails = {"*": code}
    there.write()
    bench.pass_time()
    found = bench.lease(first)
    if code is None:
        assert found.state is State.STOPPING and "not known" in found.doubt
    else:
        assert found.state is State.CLOSED and bench.device(gpu.uuid).health is Health.LOST
    waiting = bench.ask("grace")
    assert bench.lease(waiting).state is State.QUEUED


def test_of_a_share_its_neighbours_processes_are_not_what_is_left(machine: MakeMachine, pool: Any) -> None:
    gpu = a100(0)
    there = machine(gpu)
    bench = pool(there)
    first, neighbour = bench.ask("ada", wish=HALF), bench.ask("grace", wish=HALF)
    bench.processes |= {"ada": (MINE,), "grace": (PARENT,)}
    gpu.processes, gpu.used = [FakeProcess(MINE, 900), FakeProcess(PARENT, 900)], 1900
    there.write()
    bench.pass_time()
    bench.leave(first)
    state, doubt = bench.after(1, first)
    assert state is State.STOPPING and f"pid {MINE})" in doubt
    gpu.processes, gpu.used = [FakeProcess(PARENT, 900)], 1000
    there.write()
    assert bench.after(1, first)[0] is State.CLOSED
    assert bench.lease(neighbour).state is State.ACTIVE


def test_a_mig_instance_is_examined_by_itself(machine: MakeMachine, pool: Any) -> None:
    gpu = h100(0, mig=(1, 1), instances={0: small(1, 0), 2: small(2, 1)})
    there = machine(gpu)
    bench = pool(there)
    wish = Wish(kind=Kind.MIG, mig="1g.10gb")
    first, other = bench.ask("ada", wish=wish), bench.ask("grace", wish=wish)
    held = {one.uuid: one for one in gpu.instances.values()}
    held[other.slices[0].instance].used = 5000  # the neighbour works
    mine = held[first.slices[0].instance]
    mine.used = 900
    there.write()
    bench.leave(first)
    state, doubt = bench.after(1, first)
    assert state is State.STOPPING and "MiB of its memory" in doubt
    mine.used = 12
    there.write()
    assert bench.after(1, first)[0] is State.CLOSED
    second = bench.ask("linus", wish=wish)
    bench.leave(second)
    gpu.instances = {slot: one for slot, one in gpu.instances.items() if one is not mine}
    there.write()
    assert bench.after(1, second)[0] is State.CLOSED, "an instance that is no more holds nothing"


def part(used: int, reserved: int | None = 600, processes: Any = ()) -> dict[str, Any]:
    return {"uuid": "u", "used": used, "reserved": reserved, "processes": list(processes)}


def test_the_base_is_what_was_in_use_when_nothing_ran() -> None:
    remains = Remains(["Xorg"], lambda _: None)

    def above(found: dict[str, Any]) -> int:
        return remains.of(found, shared=False, ours=()).memory_mib

    assert above(part(400)) == 400, "the driver says apart what it keeps"
    assert above(part(1000, reserved=None)) == 0, "an old driver does not, so this cannot be told"
    remains.learn([part(300)], {"u"})
    remains.learn([part(310, processes=[[1, 2, 3]])], ())
    assert above(part(400)) == 400, "a part that is held, or used, is no base"
    remains.learn([part(300)], ())
    remains.learn([part(420)], ())
    assert above(part(420)) == 0 and above(part(429)) == 129, "the lowest counts, and some slack"
    assert above(part(429, processes=[[1, 2, 3]])) == 129
    assert remains.of(part(900), shared=True, ours=()) == Residue(True)


def test_ignored_programs_and_sessions_that_run_have_left_nothing() -> None:
    from jupyterhub_gpupool.devices.nvidia.attribution import Shown

    remains = Remains(["nv-*"], {1: Shown("nv-hostengine", 9.0), 2: Shown("python", 9.0)}.get)
    listed = [[pid, 5, 0] for pid in (1, 2, 3)]
    assert remains.of(part(1, processes=listed), shared=True, ours=(3,)).processes == (2,)


def test_a_driver_that_cannot_tell_holds_nothing_up(machine: MakeMachine, pool: Any) -> None:
    unsupported = dict.fromkeys(
        ("nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetComputeRunningProcesses_v2"), 3
    )
    bench = pool(machine(a100(0, fails=unsupported)))
    first = bench.ask("ada")
    bench.leave(first)
    assert bench.after(1, first)[0] is State.CLOSED


def test_looking_at_what_is_left_takes_nothing_from_the_measurement(
    machine: MakeMachine, devices: MakeDevices
) -> None:
    """Bursts are counted from sample to sample."""
    gpu = a100(0)
    there = machine(gpu)
    seen = devices(there)
    seen.devices()
    seen.sample({}, {})
    gpu.rates = 70
    there.write()
    seen.residues([(gpu.uuid, gpu.uuid)], (), {})
    gpu.rates, gpu.live = 0, True
    there.write()
    assert seen._helper.ask("sample")["gpus"][0]["uuid"] == gpu.uuid
    assert seen.residues([(gpu.uuid, gpu.uuid)], (), {}) == {gpu.uuid: Residue(True)}


# --- after a start -------------------------------------------------------------------------------------


def test_a_start_on_a_broken_driver_says_what_is_wrong(machine: MakeMachine, pool: Any) -> None:
    gpu = a100(0)
    there = machine(gpu)
    bench = pool(there)
    there.fails, there.init = {"*": MISMATCH}, MISMATCH
    there.write()
    bench.real.close()
    bench.real = NvidiaDevices(library_dir=str(there.folder), node="node", timeout=20)
    bench.sweep._leading = False
    bench.pass_time()
    found = bench.device(gpu.uuid)
    assert found.health is Health.SICK and "upgraded while it was in use" in found.health_reason
    bench.real.close()


def test_a_start_forgets_no_event_of_before(machine: MakeMachine, devices: MakeDevices) -> None:
    gpu = a100(0)
    there = machine(gpu)
    before = devices(there)
    before.devices()
    there.happen(0, XID, 79)
    kept = before.devices()
    assert kept[0].health is Health.SICK
    after = devices(there)
    after.recall(kept)
    assert after.devices()[0].health_reason == kept[0].health_reason
    excluded = devices(there, exclude=["0"])
    excluded.recall(kept)
    assert excluded._known == {}


def test_rows_that_were_replaced_while_nobody_looked_fence(
    machine: MakeMachine, devices: MakeDevices
) -> None:
    gpu = a100(0, remapped=(0, 1, 0, 0))
    there = machine(gpu)
    seen = devices(there)
    assert seen.devices()[0].usable, "of before"
    seen._helper.close()  # its events go with it
    gpu.remapped = (0, 2, 0, 0)
    there.write()
    found = seen.devices()[0]
    assert found.health is Health.SICK and "1 rows of its memory were replaced" in found.health_reason
    after = NvidiaDevices(library_dir=str(there.folder), node="node", timeout=20)
    after.recall((found,))
    assert after.devices()[0].health_reason == found.health_reason, "a start makes nothing well"
    after.close()


def test_processes_of_sessions_are_named_by_the_backend(machine: MakeMachine, devices: MakeDevices) -> None:
    gpu: FakeGPU = a100(0, processes=[FakeProcess(MINE, 400)], used=500)
    seen = devices(machine(gpu))
    seen.devices()
    asked = [(gpu.uuid, gpu.uuid)]
    runs = {"l": (Process(MINE, 1.0, 0.0, 1),)}
    assert seen.residues(asked, {gpu.uuid}, runs)[gpu.uuid] == Residue(True)
    assert seen.residues(asked, {gpu.uuid}, {**runs, "m": None})[gpu.uuid] == Residue()
    assert seen.residues(asked, (), {"m": None})[gpu.uuid].processes == (MINE,)
