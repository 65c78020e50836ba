"""What the inventory makes of real NVML answers: identity, layout, modes, and what is not offered."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from traitlets import TraitError

from jupyterhub_gpupool.devices.nvidia.inventory import NvidiaDevices
from jupyterhub_gpupool.model import Device, Health, Mode

from .conftest import MakeDevices, MakeMachine
from .scenario import NO_PERMISSION, a100, h100, instance, large, small, t4


def by_index(devices: NvidiaDevices) -> list[Device]:
    return sorted(devices.devices(), key=lambda one: one.index)


def test_gpus_are_what_the_driver_says(machine: MakeMachine, devices: MakeDevices) -> None:
    links = ["00000000:08:00.0"] * 12
    there = machine(a100(0, topology={1: 20, 2: 50}, links=links), a100(1, topology={0: 20}), t4(2))
    first, second, last = by_index(devices(there))
    assert first.id == "GPU-a1000000-0000-4000-8000-000000000000"
    assert (first.node, first.index, first.model) == ("node", 0, "A100-SXM4-80GB")
    assert first.memory_mib == 81920 - 600  # what the driver reserves for itself cannot be promised
    assert (first.compute_capability, first.driver) == ("8.0", "570.124.06")
    assert first.mode is Mode.ANY and first.cells == 120 and first.usable and not first.simulated
    assert dict(first.links) == {second.id: "NV12", last.id: "SYS"}
    assert (last.model, last.compute_capability, last.instances) == ("T4", "7.5", ())
    assert last.mode is Mode.ANY and last.usable


def test_gpus_on_a_switch_are_as_near_as_they_have_links_to_it(
    machine: MakeMachine, devices: MakeDevices
) -> None:
    there = machine(
        h100(0, topology={1: 50, 2: 50}, links=["switch"] * 18),
        h100(1, topology={0: 50, 2: 40}, links=["switch"] * 12),
        h100(2, topology={0: 50, 1: 40}),
    )
    first, second, last = by_index(devices(there))
    assert dict(first.links) == {second.id: "NV12", last.id: "SYS"}
    assert dict(second.links) == {first.id: "NV12", last.id: "NODE"}
    assert dict(last.links) == {first.id: "SYS", second.id: "NODE"}


def test_numa_node_and_its_cpus_come_from_the_kernel(
    machine: MakeMachine, devices: MakeDevices, tmp_path: Path
) -> None:
    from jupyterhub_gpupool.devices.nvidia import describe  # imports the package nvidia-ml-py

    (tmp_path / "0000:c4:00.0").mkdir()
    for text, node in (("3\n", 3), ("-1\n", None), ("", None)):
        (tmp_path / "0000:c4:00.0" / "numa_node").write_text(text)
        assert describe._numa("00000000:C4:00.0", tmp_path) == node
    assert describe._numa("00000000:C5:00.0", tmp_path) is None
    assert describe._numa("", tmp_path) is None
    (tmp_path / "node3").mkdir()
    for text, cpus in (("0-15,64-79\n", "0-15,64-79"), ("7\n", "7"), ("\n", ""), ("all\n", "")):
        (tmp_path / "node3" / "cpulist").write_text(text)
        assert describe._cpus(3, tmp_path) == cpus
    assert describe._cpus(4, tmp_path) == describe._cpus(None, tmp_path) == ""
    [gpu] = devices(machine(a100(0, bus="0000ffff:1f:00.0"))).devices()  # a place where no kernel has one
    assert (gpu.numa, gpu.cpus) == (None, "")


def test_mig_instances_are_found_behind_holes(machine: MakeMachine, devices: MakeDevices) -> None:
    instances = {0: small(1, 0), 3: small(2, 2), 6: large(3)}
    there = machine(h100(0, mig=(1, 1), instances=instances), t4(1))
    gpu, other = by_index(devices(there))
    assert (gpu.mode, gpu.cells, other.mode) == (Mode.MIG, 8, Mode.ANY)
    assert [(one.profile, one.first, one.cells, one.memory_mib) for one in gpu.instances] == [
        ("1g.10gb", 0, 1, 9984),
        ("1g.10gb", 2, 1, 9984),
        ("3g.40gb", 4, 4, 40448),
    ]
    assert [one.id for one in gpu.instances] == [one.uuid for one in instances.values()]


def test_instances_without_root_are_kept_apart(machine: MakeMachine, devices: MakeDevices) -> None:
    """The driver tells places to root only."""
    there = machine(a100(0, mig=(1, 1), instances={0: small(1, 3), 1: large(2), 2: small(3, 0)}))
    there.root = False
    there.write()
    [gpu] = devices(there).devices()
    assert gpu.cells == 8
    cells = [cell for one in gpu.instances for cell in range(one.first, one.first + one.cells)]
    assert sorted(one.cells for one in gpu.instances) == [1, 1, 4]
    assert len(cells) == len(set(cells)) and max(cells) < 8


def test_an_a30_has_four_memory_slices(machine: MakeMachine, devices: MakeDevices) -> None:
    parts = {
        n: instance(n, profile="1g.6gb", gi=3 + n, memory=5952, start=n, size=1, compute=1) for n in range(4)
    }
    a30 = a100(0, name="NVIDIA A30", memory=24576, slices=4, mig=(1, 1), instances=parts)
    there = machine(a30)
    for root in (True, False):
        there.root = root
        there.write()
        [gpu] = devices(there).devices()
        assert (gpu.cells, [one.first for one in gpu.instances]) == (4, [0, 1, 2, 3])


def test_the_profile_of_an_instance_without_a_name(machine: MakeMachine, devices: MakeDevices) -> None:
    there = machine(a100(0, mig=(1, 1), instances={0: small(1, 0), 1: large(2)}))
    there.fails = {"nvmlDeviceGetName": 3}
    there.write()
    [gpu] = devices(there).devices()
    assert [one.profile for one in gpu.instances] == ["1g.10gb", "3g.40gb"]


def test_a_divided_gpu_instance_is_not_offered(
    machine: MakeMachine, devices: MakeDevices, caplog: pytest.LogCaptureFixture
) -> None:
    """Its compute instances share memory: no hardware keeps them apart."""
    parts = {0: large(1, 0, ci=0), 1: large(2, 0, ci=1), 2: small(3, 4)}
    there = machine(a100(0, mig=(1, 1), instances=parts))
    seen = devices(there)
    [gpu] = seen.devices()
    seen.devices()
    assert [one.id for one in gpu.instances] == [parts[2].uuid]
    said = [record.message for record in caplog.records if "divided" in record.message]
    assert len(said) == 1 and gpu.id in said[0]


def test_instances_that_are_made_again_are_others(machine: MakeMachine, devices: MakeDevices) -> None:
    there = machine(h100(0, mig=(1, 1), instances={0: small(1, 0), 1: small(2, 1)}))
    seen = devices(there)
    [before] = seen.devices()
    there.gpus[0].instances = {0: small(8, 0), 1: small(9, 1)}  # the same numbers, profiles and places
    there.write()
    [after] = seen.devices()
    assert {one.id for one in before.instances} & {one.id for one in after.instances} == set()
    assert [one.first for one in after.instances] == [0, 1]
    there.gpus[0].instances = {}
    there.write()
    assert seen.devices()[0].instances == ()


def test_a_new_order_of_gpus_changes_only_indices(machine: MakeMachine, devices: MakeDevices) -> None:
    there = machine(a100(0), a100(1), t4(2))
    before = {one.id: one for one in devices(there).devices()}
    there.gpus.reverse()
    there.write()
    after = {one.id: one for one in devices(there).devices()}  # as after a reboot: another process asks
    assert {key: one.model for key, one in before.items()} == {key: one.model for key, one in after.items()}
    assert [after[one.uuid].index for one in there.gpus] == [0, 1, 2]


def test_modes_are_the_admins(machine: MakeMachine, devices: MakeDevices) -> None:
    there = machine(a100(0), a100(1), a100(2), t4(3))
    modes = {"1": "whole", a100(2).uuid.upper(): "share", "t4": "any", "A100*": "share"}
    found = by_index(devices(there, modes=modes))
    assert [one.mode for one in found] == [Mode.SHARE, Mode.WHOLE, Mode.SHARE, Mode.ANY]
    assert all(one.usable for one in found)


def test_a_mode_that_is_not_so_bars_the_gpu_with_the_command(
    machine: MakeMachine, devices: MakeDevices
) -> None:
    there = machine(h100(0, mig=(1, 1), instances={0: small(1, 0)}), a100(1), t4(2))
    found = by_index(devices(there, modes={"0": "whole", "1": "mig", "2": "mig"}))
    assert [one.health for one in found] == [Health.BARRED] * 3 and not any(one.usable for one in found)
    assert "nvidia-smi -i 0 -mig 0" in found[0].health_reason
    assert "nvidia-smi -i 1 -mig 1" in found[1].health_reason
    assert "no MIG" in found[2].health_reason
    assert not any("nvidia" in one.health_reason for one in by_index(devices(there, modes={"0": "any"})))


def test_a_mode_that_waits_for_a_reset_bars_the_gpu(machine: MakeMachine, devices: MakeDevices) -> None:
    [gpu] = devices(machine(a100(0, mig=(0, 1)))).devices()
    assert gpu.health is Health.BARRED and "switched on" in gpu.health_reason


def test_excluded_gpus_are_not_there(machine: MakeMachine, devices: MakeDevices) -> None:
    there = machine(a100(0), a100(1), t4(2))
    assert [one.index for one in by_index(devices(there, exclude=["1"]))] == [0, 2]
    assert [one.index for one in by_index(devices(there, exclude=[a100(0).uuid, "t4"]))] == [1]
    [kept] = devices(there, exclude=["a100*"]).devices()
    assert kept.model == "T4"


@pytest.mark.parametrize(
    ("name", "value"),
    [("modes", {"0": "half"}), ("timeout", 0), ("timeout", 60), ("heal_after", -1), ("exclude", [1])],
)
def test_settings_are_checked(name: str, value: object) -> None:
    with pytest.raises(TraitError, match=name):
        NvidiaDevices(**{name: value})


def test_a_gpu_without_the_rights_to_its_figures_is_still_there(
    machine: MakeMachine, devices: MakeDevices
) -> None:
    gpu = a100(
        0, fails={"nvmlDeviceGetMemoryInfo": NO_PERMISSION, "nvmlDeviceGetMemoryInfo_v2": NO_PERMISSION}
    )
    [found] = devices(machine(gpu)).devices()
    assert found.memory_mib == 0 and found.usable


def test_the_driver_says_nothing_of_what_it_need_not(
    machine: MakeMachine, devices: MakeDevices, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    seen = devices(machine(a100(0)))
    seen.devices()
    seen.devices()
    assert [record.message for record in caplog.records] == []
