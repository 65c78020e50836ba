"""Which GPUs may be handed out: events, errors and lost cards, and how they come back."""

from __future__ import annotations

import pytest

from jupyterhub_gpupool.devices.nvidia import worker
from jupyterhub_gpupool.devices.nvidia.health import APPLICATION_XIDS, Watch
from jupyterhub_gpupool.devices.nvidia.inventory import NvidiaDevices
from jupyterhub_gpupool.model import Device, Health

from .conftest import MakeDevices, MakeMachine
from .scenario import DOUBLE_BIT, IS_LOST, XID, FakeGPU, a100, h100, small, t4

RESET_REQUIRED, NO_SUCH_GPU, UNAVAILABLE = 16, 28, 0x4000


class Clock:
    """A clock that a test sets forward."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def one(devices: NvidiaDevices, gpu: FakeGPU) -> Device:
    return next(device for device in devices.devices() if device.id == gpu.uuid)


def test_a_critical_xid_fences_the_card_for_a_while(
    machine: MakeMachine, devices: MakeDevices, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    sick, well = a100(0), a100(1)
    there = machine(sick, well)
    seen = devices(there, clock=clock, heal_after=600)
    assert one(seen, sick).usable
    there.happen(0, XID, 48)
    found = one(seen, sick)
    assert found.health is Health.SICK and found.health_reason.startswith(
        "XID 48 (a memory error that could not"
    )
    assert one(seen, well).usable
    assert [r.message for r in caplog.records if sick.uuid in r.message and "XID 48" in r.message]
    clock.now += 599
    assert one(seen, sick).health_reason == found.health_reason  # nothing new to be written
    clock.now += 1
    assert one(seen, sick).usable


@pytest.mark.parametrize("number", APPLICATION_XIDS)
def test_xids_of_applications_are_none_of_the_cards(
    machine: MakeMachine, devices: MakeDevices, number: int
) -> None:
    gpu = a100(0)
    there = machine(gpu)
    seen = devices(there)
    seen.devices()
    there.happen(0, XID, number)
    assert one(seen, gpu).usable


def test_the_admin_says_which_xids_count(machine: MakeMachine, devices: MakeDevices) -> None:
    gpu = a100(0)
    there = machine(gpu)
    seen = devices(there, ignored_xids=[94])
    seen.devices()
    there.happen(0, XID, 94)
    assert one(seen, gpu).usable
    there.happen(0, XID, 13)
    assert one(seen, gpu).health is Health.SICK


@pytest.mark.parametrize(("kind", "words"), [(DOUBLE_BIT, "memory error"), (UNAVAILABLE, "unavailable")])
def test_other_events_fence_too(machine: MakeMachine, devices: MakeDevices, kind: int, words: str) -> None:
    gpu = a100(0)
    there = machine(gpu)
    seen = devices(there)
    seen.devices()
    there.happen(0, kind, 0)
    assert words in one(seen, gpu).health_reason


@pytest.mark.parametrize("instance", [7, 0xFFFFFFFF])
def test_an_event_of_one_instance_fences_the_whole_card(
    machine: MakeMachine, devices: MakeDevices, instance: int
) -> None:
    gpu = h100(0, mig=(1, 1), instances={0: small(1, 0), 1: small(2, 1)})
    there = machine(gpu)
    seen = devices(there)
    seen.devices()
    there.happen(0, XID, 95, instance)
    assert one(seen, gpu).health is Health.SICK


def test_what_happened_before_the_driver_was_opened_is_told_by_the_card_itself(
    machine: MakeMachine, devices: MakeDevices
) -> None:
    gpu = a100(0, recovery=1)
    there = machine(gpu)
    there.happen(0, XID, 48)
    seen = devices(there)
    assert one(seen, gpu).health_reason == "the driver asks for a reset of the GPU"
    gpu.recovery = 0
    there.write()
    assert one(seen, gpu).usable


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"recovery": 2}, "a reboot of the machine"),
        ({"recovery": 99}, "recovery action 99"),
        ({"remapped": (0, 1, 0, 1)}, "exchanged"),
        ({"remapped": (0, 1, 1, 0), "recovery": None}, "wait to be replaced"),
        ({"remapped": None, "retired": 1}, "wait to be retired"),
    ],
)
def test_what_the_card_keeps_of_its_condition(
    machine: MakeMachine, devices: MakeDevices, given: dict[str, object], words: str
) -> None:
    gpu = a100(0, **given)
    found = one(devices(machine(gpu)), gpu)
    assert found.health is Health.SICK and words in found.health_reason


@pytest.mark.parametrize(
    "given",
    [
        {"remapped": (3, 1, 0, 0)},
        {"remapped": (0, 1, 1, 0)},  # the driver says itself that nothing has to be done now
        {"remapped": (1, 0, 1, 0), "recovery": None},
        {"ecc": 17},  # of before
        {"remapped": None, "recovery": None, "ecc": None},
    ],
)
def test_what_speaks_against_nothing(
    machine: MakeMachine, devices: MakeDevices, given: dict[str, object]
) -> None:
    gpu = a100(0, **given)
    assert one(devices(machine(gpu)), gpu).usable


def test_memory_errors_count_also_without_their_event(
    machine: MakeMachine, devices: MakeDevices, clock: Clock
) -> None:
    gpu = a100(0, ecc=3)
    there = machine(gpu)
    seen = devices(there, clock=clock)
    assert one(seen, gpu).usable
    gpu.ecc = 5
    there.write()
    assert "2 memory errors" in one(seen, gpu).health_reason
    clock.now += 601
    assert one(seen, gpu).usable


@pytest.mark.parametrize(
    ("code", "health"), [(IS_LOST, Health.LOST), (NO_SUCH_GPU, Health.LOST), (RESET_REQUIRED, Health.SICK)]
)
def test_a_card_that_no_longer_answers(
    machine: MakeMachine, devices: MakeDevices, code: int, health: Health
) -> None:
    lost, well = t4(0), t4(1)
    there = machine(lost, well)
    seen = devices(there)
    assert {device.health for device in seen.devices()} == {Health.OK}
    lost.fails = {"*": code}
    there.write()
    found = one(seen, lost)
    assert found.health is health and found.health_reason and one(seen, well).usable
    lost.fails = {}
    there.write()
    assert one(seen, lost).usable  # back when well


def test_a_card_that_is_lost_from_the_start_is_told(
    machine: MakeMachine, devices: MakeDevices, caplog: pytest.LogCaptureFixture
) -> None:
    well = t4(1)
    seen = devices(machine(t4(0, fails={"*": IS_LOST}), well))
    assert [device.id for device in seen.devices()] == [well.uuid]
    seen.devices()
    assert len([r for r in caplog.records if "GPU 0 does not answer" in r.message]) == 1


def test_a_card_dies_in_the_midst_of_its_description(machine: MakeMachine, devices: MakeDevices) -> None:
    gpu = a100(0)
    there = machine(gpu)
    seen = devices(there)
    seen.devices()
    gpu.fails = {"nvmlDeviceGetTotalEccErrors": IS_LOST}
    there.write()
    assert one(seen, gpu).health is Health.LOST
    assert seen.sample({}, {}).devices == {}


def test_the_driver_is_opened_anew_for_a_lost_card(libraries: object, clock: Clock) -> None:
    """A card that was reset answers only those who have opened the driver since."""
    from jupyterhub_gpupool.devices.nvidia import binding  # imports the package nvidia-ml-py

    asked: list[str] = []

    class Driver:
        Refused = binding.Refused

        def ask(self, function: str, *_: object) -> object:
            asked.append(function)
            if function == "nvmlDeviceGetHandleByIndex":
                raise binding.Refused(IS_LOST)
            return 1

        def __getattr__(self, name: str) -> object:
            return lambda *_: None if name == "maybe" else []

    reader = worker.Reader(clock, Driver())
    reader._describer = reader._meter = Driver()  # type: ignore[assignment]
    asked.clear()
    for seconds, opened in ((1, 0), (worker.REOPEN, 1), (1, 1), (worker.REOPEN, 2)):
        clock.now += seconds
        assert [gpu["fault"] for gpu in reader.inventory()["gpus"]] == [IS_LOST]
        assert asked.count("nvmlInit") == opened


def test_a_helper_that_was_killed_takes_no_trouble_with_it() -> None:
    """What a card went through is remembered here, not in the helper."""
    watch = Watch(APPLICATION_XIDS, 600)
    gpu = {"uuid": "u", "health": {"recovery": None, "remapped": None, "retired": None, "ecc": None}}
    assert watch.note([{"uuid": "u", "kind": XID, "number": 79, "gi": 0}], 0.0)
    assert watch.judge(gpu, 1.0)[0] is Health.SICK
    assert watch.judge({**gpu, "uuid": "v"}, 1.0) == (Health.OK, "")
