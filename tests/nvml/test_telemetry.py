"""How slices are used, tier by tier: real NVML answers, attributed to the processes of sessions."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from jupyterhub_gpupool.devices import Readings
from jupyterhub_gpupool.devices.nvidia.attribution import LONG_THERE, Attribution, Shown
from jupyterhub_gpupool.devices.nvidia.inventory import NvidiaDevices
from jupyterhub_gpupool.idleness import is_busy
from jupyterhub_gpupool.model import Health, Kind, Process, Sample, Slice

from .conftest import MakeDevices, MakeMachine
from .scenario import (
    NO_PERMISSION,
    NOT_SUPPORTED,
    UNKNOWN,
    FakeGPU,
    FakeInstance,
    FakeProcess,
    Machine,
    a100,
    h100,
    large,
    small,
    t4,
)

MINE = os.getpid()


@pytest.fixture
def stranger() -> Iterator[int]:
    """A process that is no session's."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process.pid
        process.kill()


def whole(gpu: FakeGPU) -> tuple[Slice, ...]:
    return (Slice(gpu.uuid, Kind.GPU, tuple(range(120)), 120, gpu.memory, 100),)


def share(gpu: FakeGPU, cells: int = 30) -> tuple[Slice, ...]:
    return (Slice(gpu.uuid, Kind.SHARE, tuple(range(cells)), 120, 20000, 0),)


def mig(gpu: FakeGPU, one: FakeInstance) -> tuple[Slice, ...]:
    return (Slice(gpu.uuid, Kind.MIG, (one.start,), 8, one.memory, 100, one.uuid),)


def session(*pids: int) -> tuple[Process, ...]:
    return tuple(Process(pid, 1.0, 0.0, 10) for pid in pids)


def look(
    devices: NvidiaDevices,
    slices: Mapping[str, tuple[Slice, ...]] | None = None,
    processes: Mapping[str, tuple[Process, ...] | None] | None = None,
) -> Readings:
    return devices.sample(slices or {}, processes if processes is not None else dict.fromkeys(slices or {}))


def opened(devices: MakeDevices, machine: Machine, **given: object) -> NvidiaDevices:
    made = devices(machine, **given)
    made.devices()
    return made


# --- a whole GPU ----------------------------------------------------------------------------------------


def test_a_whole_gpu_is_as_busy_as_its_rates(machine: MakeMachine, devices: MakeDevices) -> None:
    gpu = a100(0, rates=73, used=5000, processes=[FakeProcess(MINE, 4000, 70)])
    there = machine(gpu)
    seen = opened(devices, there)
    found = look(seen, {"a": whole(gpu)}, {"a": session(MINE)})
    assert found.leases == {"a": Sample(73.0, 5000, 1)}
    assert found.devices[gpu.uuid] == found.leases["a"]
    [condition] = found.conditions.values()
    assert (condition.power_watts, condition.temperature_celsius, condition.ecc_errors) == (62.0, 31, 0)
    gpu.rates = 0
    gpu.live = False
    there.write()
    assert look(seen, {"a": whole(gpu)}, {"a": session(MINE)}).leases["a"].utilization == 0


def test_a_burst_between_two_looks_counts(machine: MakeMachine, devices: MakeDevices) -> None:
    gpu = a100(
        0, live=False, used=900, samples=[(1_000_000, 99), (2_000_000, 0)], processes=[FakeProcess(MINE)]
    )
    there = machine(gpu)
    seen = opened(devices, there)
    first = look(seen, {"a": whole(gpu)}).leases["a"]
    assert first.utilization == 0  # what was before anybody looked is not of this session
    gpu.samples += [(3_000_000, 0), (4_000_000, 88), (5_000_000, 0)]
    there.write()
    assert look(seen, {"a": whole(gpu)}).leases["a"].utilization == 88
    assert look(seen, {"a": whole(gpu)}).leases["a"].utilization == 0  # and only once


def test_a_burst_of_a_process_that_has_ended_counts(machine: MakeMachine, devices: MakeDevices) -> None:
    gpu = a100(0, live=False, samples=[(1_000_000, 0)])
    there = machine(gpu)
    seen = opened(devices, there)
    assert look(seen, {"a": whole(gpu)}).leases["a"] == Sample(0.0, 4, 0)
    gpu.samples += [(2_000_000, 95), (3_000_000, 0)]
    there.write()
    burst = look(seen, {"a": whole(gpu)}).leases["a"]
    assert burst.utilization == 95 and is_busy(burst, 5)


def test_no_process_is_a_definite_zero(machine: MakeMachine, devices: MakeDevices) -> None:
    gpu = a100(0, rates=0)
    found = look(opened(devices, machine(gpu)), {"a": whole(gpu), "b": share(gpu)}, {"a": (), "b": ()})
    assert found.leases == {"a": Sample(0.0, 4, 0), "b": Sample(0.0, 0, 0)}


def test_a_gpu_that_hangs_at_100_with_nobody_on_it_is_not_believed(
    machine: MakeMachine, devices: MakeDevices
) -> None:
    gpu = a100(0, rates=100)
    seen = opened(devices, machine(gpu))
    busy = [is_busy(look(seen, {"a": whole(gpu)}).leases["a"], 5) for _ in range(4)]
    assert busy == [True, True, False, False]


def test_an_empty_list_is_not_believed_where_memory_is_held(
    machine: MakeMachine, devices: MakeDevices
) -> None:
    """As in a container that may not see the machine's processes."""
    gpu = a100(0, rates=0, used=3000)
    found = look(opened(devices, machine(gpu)), {"a": whole(gpu), "b": share(gpu)}, {"a": (), "b": ()})
    assert found.leases["a"] == Sample(0.0, 3000, None)
    assert found.leases["b"] == Sample()


def test_what_is_not_supported_is_unknown(machine: MakeMachine, devices: MakeDevices) -> None:
    gpu = a100(0, rates=None, power=None, temperature=None, ecc=None, used=500, processes=[FakeProcess(MINE)])
    found = look(opened(devices, machine(gpu)), {"a": whole(gpu)}, {"a": session(MINE)})
    assert found.leases["a"] == Sample(None, 500, 1)
    assert is_busy(found.leases["a"], 5) is None
    [condition] = found.conditions.values()
    assert condition.power_watts is condition.temperature_celsius is condition.ecc_errors is None


@pytest.mark.parametrize("code", [NOT_SUPPORTED, NO_PERMISSION, UNKNOWN])
def test_an_error_of_one_call_leaves_only_that_unknown(
    machine: MakeMachine, devices: MakeDevices, code: int
) -> None:
    fails = {f"nvmlDeviceGetComputeRunningProcesses_v{version}": code for version in (2, 3)}
    gpu = a100(0, rates=60, used=700, fails=fails)
    found = look(opened(devices, machine(gpu)), {"a": whole(gpu), "b": share(gpu)}, {"a": (), "b": ()})
    assert found.leases == {"a": Sample(60.0, 700, None), "b": Sample()}


def test_figures_that_stand_still_are_unknown(libraries: object) -> None:
    from jupyterhub_gpupool.devices.nvidia import binding, measure  # import the package nvidia-ml-py

    now = 0.0
    meter = measure.Meter(lambda: now)
    answers = iter([[(7, 40)], [], [], [(8, 0)]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(binding, "samples", lambda *_: next(answers))
        patch.setattr(measure, "maybe", lambda *_: type("Rates", (), {"gpu": 40}))
        assert meter._utilization("u", None) == (40, 40)
        now = measure.STALE
        assert meter._utilization("u", None) == (40, 40)
        now = measure.STALE + 1
        assert meter._utilization("u", None) == (None, None)
        assert meter._utilization("u", None) == (40, 40)


def test_a_clock_that_is_set_back_hides_no_use(libraries: object) -> None:
    """The driver's times are the machine's: what is new would be older than the last look."""
    from jupyterhub_gpupool.devices.nvidia import binding, measure  # import the package nvidia-ml-py

    wall, second = 5000.0, 1_000_000
    meter = measure.Meter(lambda: 0.0, lambda: wall)
    samples, uses = [(4999 * second, 10)], [(7, 10, 4999 * second)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(binding, "samples", lambda _, since: [one for one in samples if one[0] > since])
        patch.setattr(binding, "process_use", lambda _, since: [one for one in uses if one[2] > since])
        patch.setattr(measure, "maybe", lambda *_: type("Rates", (), {"gpu": 0}))
        assert meter._utilization("u", None) == (0, 10) and meter._process_use("u", None) == {7: 10}
        assert meter._utilization("u", None) == (0, 0) and meter._process_use("u", None) == {}
        wall -= 3600.0
        for value in (80, 60):
            wall += 10
            samples.append((int(wall * second), value))
            uses.append((8, value, int(wall * second)))
            assert meter._utilization("u", None) == (0, value)
            used = meter._process_use("u", None)
            assert used is not None and used[8] == value


def test_several_gpus_are_as_busy_as_the_busiest(machine: MakeMachine, devices: MakeDevices) -> None:
    one, other = a100(0, rates=0), a100(1, rates=30, used=900, processes=[FakeProcess(MINE)])
    there = machine(one, other)
    seen = opened(devices, there)
    held = {"a": (*whole(one), *whole(other))}
    assert look(seen, held).leases["a"] == Sample(30.0, 904, 1)
    other.rates = None
    there.write()
    assert look(seen, held).leases["a"].utilization is None


def test_a_lost_gpu_leaves_its_lease_unknown_and_no_other(machine: MakeMachine, devices: MakeDevices) -> None:
    one, other = a100(0), a100(1, rates=30, processes=[FakeProcess(MINE)])
    there = machine(one, other)
    seen = opened(devices, there)
    one.fails = {"*": 15}
    there.write()
    found = look(seen, {"a": whole(one), "b": whole(other)})
    assert found.leases["a"] == Sample() and found.leases["b"].utilization == 30
    assert set(found.devices) == {other.uuid}


# --- MIG ------------------------------------------------------------------------------------------------


def test_mig_on_hopper_is_measured_by_gpm(machine: MakeMachine, devices: MakeDevices) -> None:
    busy = small(1, 0, use=64.5, used=3000)
    calm = large(2)
    gpu = h100(0, mig=(1, 1), instances={0: busy, 5: calm}, processes=[FakeProcess(MINE, 2900, gi=7, ci=0)])
    there = machine(gpu)
    seen = opened(devices, there)
    held = {"a": mig(gpu, busy), "b": mig(gpu, calm)}
    assert look(seen, held).leases["a"] == Sample(None, 3000, 1)  # one sample measures nothing
    time.sleep(0.2)
    found = look(seen, held)
    assert found.leases == {"a": Sample(64.5, 3000, 1), "b": Sample(0.0, 12, 0)}
    assert found.devices[gpu.uuid] == Sample(64.5 / 8, gpu.used, 1)
    assert look(seen, held).leases["a"].utilization == 64.5  # asked again at once: what was just measured


def test_an_instance_that_was_made_again_is_not_measured_from_the_old_one(
    machine: MakeMachine, devices: MakeDevices
) -> None:
    gpu = h100(0, mig=(1, 1), instances={0: small(1, 0, use=90)}, processes=[FakeProcess(MINE, gi=7, ci=0)])
    there = machine(gpu)
    seen = opened(devices, there)
    look(seen)
    time.sleep(0.2)
    new = small(2, 0, use=10)  # the same number, place and profile
    gpu.instances = {0: new}
    there.write()
    seen.devices()
    assert look(seen, {"a": mig(gpu, new)}).leases["a"].utilization is None
    time.sleep(0.2)
    assert look(seen, {"a": mig(gpu, new)}).leases["a"].utilization == 10


def test_mig_on_an_a100_is_unknown_unless_nobody_is_on_it(machine: MakeMachine, devices: MakeDevices) -> None:
    busy, empty = small(1, 0, used=900), small(2, 1)
    gpu = a100(0, mig=(1, 1), instances={0: busy, 1: empty}, processes=[FakeProcess(MINE, 800, gi=7, ci=0)])
    there = machine(gpu)
    seen = opened(devices, there)
    for _ in range(2):
        found = look(seen, {"a": mig(gpu, busy), "b": mig(gpu, empty)})
        assert found.leases == {"a": Sample(None, 900, 1), "b": Sample(0.0, 12, 0)}
        assert found.devices[gpu.uuid].utilization is None
        time.sleep(0.2)


def test_a_lease_on_an_instance_that_is_gone_is_unknown(machine: MakeMachine, devices: MakeDevices) -> None:
    gone = small(9, 0)
    gpu = h100(0, mig=(1, 1), instances={0: small(1, 0)})
    assert look(opened(devices, machine(gpu)), {"a": mig(gpu, gone)}).leases["a"] == Sample()


# --- shares ---------------------------------------------------------------------------------------------


def test_shares_are_told_apart_by_their_processes(
    machine: MakeMachine, devices: MakeDevices, stranger: int
) -> None:
    on_it = [FakeProcess(MINE, 1000, 20), FakeProcess(stranger, 300, 0)]
    gpu = a100(0, rates=25, used=1400, processes=on_it)
    seen = opened(devices, machine(gpu))
    held = {"a": share(gpu), "b": share(gpu, 60), "c": share(gpu)}
    found = look(seen, held, {"a": session(MINE), "b": session(stranger), "c": ()})
    # 20 % of the GPU are 80 % of a quarter of it.
    assert found.leases == {"a": Sample(80.0, 1000, 1), "b": Sample(0.0, 300, 1), "c": Sample(0.0, 0, 0)}
    assert found.devices[gpu.uuid] == Sample(25.0, 1400, 2)


def test_a_share_whose_session_is_unknown_is_unknown(machine: MakeMachine, devices: MakeDevices) -> None:
    gpu = a100(0, rates=50, used=900, processes=[FakeProcess(MINE, 800, 50)])
    seen = opened(devices, machine(gpu))
    assert look(seen, {"a": share(gpu)}, {"a": None}).leases["a"] == Sample()
    assert look(seen, {"a": share(gpu)}, {}).leases["a"] == Sample()


def test_a_share_is_unknown_where_a_process_cannot_be_seen(
    machine: MakeMachine, devices: MakeDevices
) -> None:
    """A number of another PID namespace: it may be anybody's."""
    gpu = a100(0, rates=50, used=900, processes=[FakeProcess(2**22 + 1, 800, 50)])
    found = look(opened(devices, machine(gpu)), {"a": share(gpu)}, {"a": session(MINE)})
    assert found.leases["a"] == Sample()


def test_a_share_is_idle_beside_a_foreign_process(
    machine: MakeMachine, devices: MakeDevices, stranger: int
) -> None:
    gpu = a100(0, rates=50, used=900, processes=[FakeProcess(stranger, 800, 50)])
    found = look(opened(devices, machine(gpu)), {"a": share(gpu)}, {"a": session(MINE)})
    assert found.leases["a"] == Sample(0.0, 0, 0)


def test_a_job_that_ended_since_the_last_look_counts(machine: MakeMachine, devices: MakeDevices) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as job:
        gpu = a100(0, rates=5, used=900, processes=[FakeProcess(job.pid, 800, 0)])
        there = machine(gpu)
        seen = opened(devices, there)
        look(seen, {"a": share(gpu, 120)}, {"a": session(MINE, job.pid)})
        gpu.processes[0].sm = 40
        there.write()
        job.kill()
    found = look(seen, {"a": share(gpu, 120)}, {"a": session(MINE)}).leases["a"]
    assert found.utilization == 40 and is_busy(found, 5)


def test_shares_under_mps_are_unknown(machine: MakeMachine, devices: MakeDevices, tmp_path: Path) -> None:
    """The driver books what clients do on the server."""
    server = tmp_path / "nvidia-cuda-mps-server"
    server.symlink_to("/bin/sleep")
    with subprocess.Popen([str(server), "60"]) as process:
        gpu = a100(0, rates=50, used=900, processes=[FakeProcess(process.pid, 800, 50)])
        seen = opened(devices, machine(gpu))
        for _ in range(2):
            assert look(seen, {"a": share(gpu)}, {"a": session(MINE)}).leases["a"] == Sample()
        assert seen.devices()[0].usable  # the server itself is no stranger
        process.kill()


def test_clients_of_mps_are_processes_too(machine: MakeMachine, devices: MakeDevices) -> None:
    gpu = a100(0, rates=50, used=900, processes=[FakeProcess(MINE, 800, mps=True)])
    assert look(opened(devices, machine(gpu)), {"a": whole(gpu)}).leases["a"].processes == 1


def test_memory_that_the_driver_does_not_say_is_unknown(machine: MakeMachine, devices: MakeDevices) -> None:
    gpu = a100(0, rates=50, used=900, processes=[FakeProcess(MINE, None, 50)])
    found = look(opened(devices, machine(gpu)), {"a": share(gpu)}, {"a": session(MINE)})
    assert found.leases["a"] == Sample(100.0, None, 1)


def test_where_uses_are_not_told_a_quiet_gpu_is_quiet_for_all(
    machine: MakeMachine, devices: MakeDevices
) -> None:
    gpu = t4(0, rates=0, used=900, processes=[FakeProcess(MINE, 800)])
    gpu.fails = {"nvmlDeviceGetProcessUtilization": NOT_SUPPORTED}
    there = machine(gpu)
    seen = opened(devices, there)
    assert look(seen, {"a": share(gpu)}, {"a": session(MINE)}).leases["a"] == Sample(0.0, 800, 1)
    gpu.rates = 20
    there.write()
    assert look(seen, {"a": share(gpu)}, {"a": session(MINE)}).leases["a"] == Sample(None, 800, 1)


def test_a_share_of_a_card_that_is_in_mig_mode_by_now_is_unknown(
    machine: MakeMachine, devices: MakeDevices
) -> None:
    gpu = h100(0, mig=(1, 1), instances={0: small(1, 0)}, processes=[FakeProcess(MINE, 800, gi=7, ci=0)])
    found = look(opened(devices, machine(gpu)), {"a": share(gpu)}, {"a": session(MINE)})
    assert found.leases["a"].utilization is None


# --- what is not ours -----------------------------------------------------------------------------------


def test_a_foreign_process_bars_the_gpu_until_it_has_ended(
    machine: MakeMachine, devices: MakeDevices, stranger: int, caplog: pytest.LogCaptureFixture
) -> None:
    gpu = a100(0, used=900, processes=[FakeProcess(stranger, 800)])
    there = machine(gpu, a100(1, used=900, processes=[FakeProcess(MINE)]))
    seen = opened(devices, there)
    look(seen, {}, {"a": session(MINE)})
    assert seen.devices()[0].usable  # it may be a session's and have started a moment ago
    look(seen, {}, {"a": session(MINE)})
    first, second = seen.devices()
    assert first.health is Health.BARRED and not first.usable and second.usable
    assert str(stranger) in first.health_reason and "python" not in first.health_reason
    assert [record.message for record in caplog.records if f"process {stranger} (python" in record.message]
    look(seen, {}, {"a": None})  # sessions are unknown: nothing changes
    assert not seen.devices()[0].usable
    gpu.processes = []
    there.write()
    look(seen, {}, {"a": session(MINE)})
    assert seen.devices()[0].usable


def test_a_foreign_process_that_is_long_there_is_told_at_once(
    machine: MakeMachine, devices: MakeDevices
) -> None:
    gpu = a100(0, used=900, processes=[FakeProcess(MINE, 800)])
    seen = opened(devices, machine(gpu))
    seen._attribution = Attribution((), lambda pid: Shown("python", LONG_THERE))
    look(seen)
    assert not seen.devices()[0].usable


def test_a_process_on_an_instance_bars_the_card(
    machine: MakeMachine, devices: MakeDevices, stranger: int
) -> None:
    gpu = h100(0, mig=(1, 1), instances={0: small(1, 0)}, processes=[FakeProcess(stranger, 800, gi=7, ci=0)])
    there = machine(gpu)
    there.root = False  # the parent's own list is for root
    there.write()
    seen = opened(devices, there)
    look(seen)
    look(seen)
    assert seen.devices()[0].health is Health.BARRED


def test_programs_that_may_be_there_bar_nothing(machine: MakeMachine, devices: MakeDevices) -> None:
    gpu = a100(0, used=900, processes=[FakeProcess(MINE, 800)])
    seen = opened(devices, machine(gpu), ignored_programs=["py*"])
    look(seen)
    look(seen)
    assert seen.devices()[0].usable


def test_an_old_driver_tells_less_and_is_used(
    machine: MakeMachine, devices: MakeDevices, caplog: pytest.LogCaptureFixture
) -> None:
    one = small(1, 0)
    gpu, other = (
        a100(0, rates=40, used=900, processes=[FakeProcess(MINE, 800)]),
        h100(1, mig=(1, 1), instances={0: one}),
    )
    there = machine(gpu, other, library="old")
    there.driver = "470.57.02"
    there.write()
    seen = devices(there)
    first, second = seen.devices()
    assert first.usable and second.usable and first.memory_mib == 81920
    for _ in range(2):
        found = look(seen, {"a": whole(gpu), "b": mig(other, one)}, {"a": session(MINE), "b": ()})
        time.sleep(0.2)
    assert found.leases["a"] == Sample(40.0, 900 + 600, 1)  # it counts what it reserves among the used
    assert found.leases["b"] == Sample(0.0, 12, 0)
    said = [record.message for record in caplog.records]
    assert len(said) == 2 and all("470.57.02" in one for one in said)
