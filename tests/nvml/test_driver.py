"""The driver as a whole: missing, not loaded, upgraded, hanging, crashing.  Nothing of it reaches the service."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from jupyterhub_gpupool.devices import Readings
from jupyterhub_gpupool.devices.nvidia.helper import ENVIRONMENT, Broken, Helper, Silent
from jupyterhub_gpupool.devices.nvidia.inventory import NO_GPU, NvidiaDevices
from jupyterhub_gpupool.model import Health
from tests.hub.conftest import until

from .conftest import MakeDevices, MakeMachine
from .scenario import DRIVER_NOT_LOADED, MISMATCH, NO_PERMISSION, UNKNOWN, Machine, a100

PAUSE = 0.05


def quick(machine: Machine, **given: object) -> NvidiaDevices:
    """Devices that try again after a short pause."""
    made = NvidiaDevices(library_dir=str(machine.folder), node="node", **{"timeout": 20, **given})
    made._helper._least_pause = PAUSE
    return made


def ended(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True


def helper_of(devices: NvidiaDevices) -> int:
    process = devices._helper._process
    assert process is not None
    return process.pid


def test_no_driver_is_a_state_and_no_error(
    machine: MakeMachine, devices: MakeDevices, caplog: pytest.LogCaptureFixture
) -> None:
    seen = devices(machine(a100(0), library=None))
    assert seen.devices() == () and seen.devices() == ()
    assert "no NVIDIA driver on this machine" in seen.state
    assert seen.sample({}, {}) == Readings()
    assert [record.message for record in caplog.records] == [seen.state]  # said once


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (DRIVER_NOT_LOADED, "not loaded"),
        (MISMATCH, "upgraded"),
        (NO_PERMISSION, "/dev/nvidiactl"),
        (UNKNOWN, "error 999"),
    ],
)
def test_a_driver_that_does_not_open_says_why(machine: MakeMachine, code: int, words: str) -> None:
    there = machine(a100(0))
    there.init = code
    there.write()
    seen = quick(there)
    assert seen.devices() == () and words in seen.state
    there.init = 0
    there.write()
    found = until(seen.devices, "the driver to be tried again")
    assert found[0].usable and seen.state == ""
    seen.close()


def test_a_driver_without_gpus_is_a_state(machine: MakeMachine, devices: MakeDevices) -> None:
    seen = devices(machine())
    assert seen.devices() == () and seen.state == NO_GPU
    assert seen.sample({}, {}) == Readings()


def test_a_driver_that_is_upgraded_under_us_fences_its_gpus_until_it_works(machine: MakeMachine) -> None:
    there = machine(a100(0))
    seen = quick(there)
    [gpu] = seen.devices()
    first = helper_of(seen)
    there.fails, there.init = {"*": MISMATCH}, MISMATCH
    there.write()
    [sick] = seen.devices()
    assert (sick.id, sick.health) == (gpu.id, Health.SICK) and "upgraded" in sick.health_reason
    assert seen.sample({}, {}) == Readings()
    there.fails, there.init, there.driver = {}, 0, "580.65.06"
    there.write()
    until(lambda: seen.devices()[0].usable, "the new driver")
    assert seen.devices()[0].driver == "580.65.06"
    assert helper_of(seen) != first  # the library of before is loaded in that one for good
    seen.close()


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("raise ImportError('no module')\n", r"pip install 'jupyterhub-gpupool\[nvidia\]'"),
        ("def nvmlInit(): ...\n", "pip uninstall pynvml"),  # what old versions of another package put there
    ],
)
def test_a_missing_or_wrong_package_is_a_state(tmp_path: Path, module: str, words: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "pynvml.py").write_text(module)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); "
        "from jupyterhub_gpupool.devices.nvidia.worker import main; main()"
    )
    helper = Helper(timeout=20, command=(sys.executable, "-c", code, str(tmp_path / "empty")))
    with pytest.raises(Broken, match=words):
        helper.ask("inventory")
    helper.close()


# --- a driver that hangs ----------------------------------------------------------------------------------


def test_a_hanging_call_makes_everything_unknown_and_the_next_helper_goes_on(machine: MakeMachine) -> None:
    gpu = a100(0, rates=50)
    there = machine(gpu)
    seen = quick(there, timeout=0.5)
    until(lambda: quietly(seen), "the driver to be opened")
    first = helper_of(seen)
    gpu.hangs = ["nvmlDeviceGetUtilizationRates"]
    there.write()
    began = time.monotonic()
    assert seen.sample({}, {}) == Readings()
    assert 0.4 < time.monotonic() - began < 15
    assert "hangs" in seen.state
    until(lambda: ended(first), "the helper to be killed")
    assert until(lambda: quietly(seen), "the inventory, which does not hang")[0].usable
    gpu.hangs = []
    there.write()
    until(lambda: seen.sample({}, {}).devices, "samples again")
    assert seen.state == "" or seen.devices()
    seen.close()


def quietly(devices: NvidiaDevices) -> tuple[object, ...]:
    with contextlib.suppress(Silent):
        return devices.devices()
    return ()


def test_pauses_grow_with_each_failure() -> None:
    now = 0.0
    fails = "print('{\"fault\": 9}')"
    helper = Helper(timeout=20, command=(sys.executable, "-c", fails), clock=lambda: now)
    pauses = []
    for _ in range(8):
        with pytest.raises(Broken, match="not loaded"):
            helper.ask("inventory")
        tried = helper._dying
        with pytest.raises(Broken, match="not loaded"):
            helper.ask("sample")
        assert helper._process is None and helper._dying is tried  # it was not tried again
        pauses.append(helper._not_before - now)
        now = helper._not_before
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    helper.close()


def test_a_helper_that_cannot_be_ended_has_no_successor(machine: MakeMachine) -> None:
    """In a system call of the driver a process may not even be killed."""

    class Stuck:
        def wait(self, timeout: float) -> int:
            raise subprocess.TimeoutExpired("helper", timeout)

    helper = Helper(str(machine(a100(0)).folder))
    helper._dying = Stuck()  # type: ignore[assignment]
    with pytest.raises(Silent, match="cannot be ended"):
        helper.ask("inventory")
    assert helper._process is None


def test_opening_the_driver_may_take_longer_than_an_answer(machine: MakeMachine) -> None:
    there = machine(a100(0))
    there.hangs = ["nvmlInitWithFlags"]
    there.write()
    helper = Helper(str(there.folder), 0.3)
    for _ in range(2):
        with pytest.raises(Silent, match="being opened"):
            helper.ask("inventory")
    there.hangs = []
    there.write()

    def answer() -> object:
        with contextlib.suppress(Silent):
            return helper.ask("inventory")["gpus"]
        return None

    assert until(answer, "the driver to be open")
    helper.close()


def test_opening_the_driver_does_not_take_for_ever(machine: MakeMachine) -> None:
    there = machine(a100(0))
    there.hangs = ["nvmlInitWithFlags"]
    there.write()
    helper = Helper(str(there.folder), 0.2, opening=0.3)
    with pytest.raises(
        Silent, match="opened"
    ):  # being opened; or, where this process was held up, already given up
        helper.ask("inventory")
    with pytest.raises(Silent, match=r"could not be opened within 0\.3 s"):
        helper.ask("inventory")
    helper.close()


def test_requests_of_two_threads_wait_for_each_other_and_not_for_ever(machine: MakeMachine) -> None:
    there = machine(a100(0))
    helper = Helper(str(there.folder), 20)
    helper.ask("inventory")
    answers: list[object] = []
    threads = [threading.Thread(target=lambda: answers.append(helper.ask("sample"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(answers) == 8
    helper._timeout = 0.2
    with helper._lock, pytest.raises(Silent, match="earlier request"):
        helper.ask("sample")
    helper.close()


# --- the helper itself ------------------------------------------------------------------------------------


def test_a_helper_that_crashes_is_replaced(machine: MakeMachine) -> None:
    seen = quick(machine(a100(0)))
    seen.devices()
    psutil.Process(helper_of(seen)).kill()
    with pytest.raises(Silent, match="ended by itself"):
        seen.devices()
    assert until(lambda: quietly(seen), "another helper")
    seen.close()


@pytest.mark.parametrize("said", ["not json", '{"id": 7}', "[]"])
def test_an_answer_that_is_none_is_a_failure(said: str) -> None:
    code = f"print('{{\"ready\": true}}', flush=True); print({said!r}, flush=True); input(); input()"
    helper = Helper(timeout=20, command=(sys.executable, "-c", code))
    with pytest.raises(Silent, match="something else"):
        helper.ask("inventory")
    helper.close()


def test_the_helper_inherits_no_secret(machine: MakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUPYTERHUB_API_TOKEN", "secret")
    monkeypatch.setenv("NVML_MPS_DEVICE_ENUMERATION", "1")
    seen = quick(machine(a100(0)))
    assert seen.devices()
    inside = psutil.Process(helper_of(seen))
    assert set(inside.environ()) <= {*ENVIRONMENT, "LC_CTYPE"}
    assert "secret" not in " ".join(inside.environ().values())
    seen.close()


def test_a_close_leaves_no_process(machine: MakeMachine) -> None:
    seen = quick(machine(a100(0)))
    seen.devices()
    pid = helper_of(seen)
    seen.close()
    assert not psutil.pid_exists(pid) or ended(pid)


def test_the_helper_ends_with_a_service_that_is_killed_while_the_driver_hangs(machine: MakeMachine) -> None:
    gpu = a100(0)
    there = machine(gpu)
    code = (
        "import sys\n"
        "from jupyterhub_gpupool.devices.nvidia.helper import Helper\n"
        "helper = Helper(sys.argv[1], 60)\n"
        "helper.ask('inventory')\n"
        "print(helper._process.pid, flush=True)\n"
        "input()\n"
        "write = helper._write\n"
        "helper._write = lambda request: (write(request), print('asked', flush=True))\n"
        "helper.ask('inventory')\n"
    )
    command = [sys.executable, "-c", code, str(there.folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as service:
        assert service.stdin is not None and service.stdout is not None
        helper = int(service.stdout.readline())
        gpu.hangs = ["nvmlDeviceGetUUID"]
        there.write()
        service.stdin.write("\n")
        service.stdin.flush()
        assert service.stdout.readline() == "asked\n"
        service.kill()
    until(lambda: ended(helper), "the helper to end")


def test_the_service_loads_no_driver_library(machine: MakeMachine) -> None:
    code = (
        "import sys\n"
        "from jupyterhub_gpupool.devices.nvidia.inventory import NvidiaDevices\n"
        "devices = NvidiaDevices(library_dir=sys.argv[1])\n"
        "assert devices.devices()\n"
        "devices.sample({}, {})\n"
        "devices.close()\n"
        "assert 'pynvml' not in sys.modules\n"
        "assert 'nvidia-ml' not in open('/proc/self/maps').read()\n"
    )
    there = machine(a100(0))
    subprocess.run([sys.executable, "-c", code, str(there.folder)], check=True, env=dict(os.environ))


def test_what_the_driver_prints_is_no_answer(machine: MakeMachine, caplog: pytest.LogCaptureFixture) -> None:
    """Standard output belongs to the answers alone."""
    caplog.set_level(logging.INFO)
    code = (
        "import os, ctypes\n"
        "from jupyterhub_gpupool.devices.nvidia import worker\n"
        "serve = worker.serve\n"
        "def noisy(*args):\n"
        "    os.write(1, b'NVRM: something\\n')\n"
        "    serve(*args)\n"
        "worker.serve = noisy\n"
        "worker.main()\n"
    )
    helper = Helper(str(machine(a100(0)).folder), 20, command=(sys.executable, "-c", code))
    assert helper.ask("inventory")["gpus"]
    helper.close()
