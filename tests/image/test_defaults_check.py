"""The launch check: what it says of a driver, of devices, and of a TensorFlow that fails or dies."""

from __future__ import annotations

import ctypes
import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from gpupool_tensorflow import _check, _cuda
from gpupool_tensorflow._settings import Settings

from jupyterhub_gpupool.sessions.docker import Ran
from jupyterhub_gpupool.spawners.answers import read_seen

from .conftest import CARD, Done, Run

ONE = "5f2d6a6c-1b1e-4b57-9c1d-2f3a4b5c6d7e"
TWO = "0f0e0d0c-0b0a-4908-8706-050403020100"


class Driver:
    """Answers as libcuda does, through the pointers it is given."""

    def __init__(
        self, *devices: tuple[str, str], version: int = 12080, init: int = 0, failing: str = ""
    ) -> None:
        self.devices, self.version, self.init, self.failing = devices, version, init, failing

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = self.version
        return 0

    def cuInit(self, flags: int) -> int:
        return self.init

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = len(self.devices)
        return 999 if self.failing == "count" else 0

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:
        device._obj.value = ordinal
        return 0

    def cuDeviceGetUuid_v2(self, made: Any, device: Any) -> int:
        ctypes.memmove(made._obj.bytes, uuid.UUID(self.devices[device.value][0]).bytes, 16)
        return 46 if self.failing == "uuid" else 0

    def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:
        name.value = self.devices[device.value][1].encode()
        return 0


def test_the_driver_is_asked_for_cards_and_for_mig_instances() -> None:
    seen = _cuda.look(Driver((ONE, "NVIDIA A100-SXM4-40GB"), (TWO, "NVIDIA A100-SXM4-40GB MIG 1g.5gb")))
    assert seen["visible"] == [f"GPU-{ONE}", f"MIG-{TWO}"]
    assert (seen["cuda"], seen["reason"]) == ([12, 8], "")


@pytest.mark.parametrize(
    ("driver", "visible", "words"),
    [
        (Driver(init=100), [], "finds no device"),
        (Driver(init=803), None, "error 803"),
        (Driver((ONE, "A100"), failing="count"), None, "error 999"),
        (Driver((ONE, "A100"), failing="uuid"), None, "error 46"),
    ],
)
def test_what_the_driver_refuses_is_said(driver: Driver, visible: list[str] | None, words: str) -> None:
    seen = _cuda.look(driver)
    assert seen["visible"] == visible and words in seen["reason"]


def test_the_pool_reads_what_is_seen() -> None:
    """Each launch compares this answer with the lease, on the side of the hub."""

    def read(driver: Driver) -> list[str]:
        return read_seen(Ran(0, json.dumps(_cuda.look(driver)), ""), [f"GPU-{ONE.upper()}", f"MIG-{TWO}"])

    assert read(Driver((TWO, "NVIDIA A100 MIG 1g.5gb"), (ONE, "NVIDIA A100"))) == []
    assert "CUDA sees GPU-" in read(Driver((ONE, "NVIDIA A100")))[0]
    assert "CUDA sees no GPU" in read(Driver(init=100))[0]
    assert "not known: cuInit answers with error 803" in read(Driver(init=803))[0]


def test_without_the_driver_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cuda, "LIBRARY", "libcuda-that-is-nowhere.so.1")
    seen = _cuda.look()
    assert seen["visible"] is None and "is not here" in seen["reason"]


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.06  Wed Jun 26\nGCC 12.2.0", "535.183.06"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65  Release Build", "580.65"),
        ("nothing of use", None),
    ],
)
def test_the_drivers_version_is_read(
    text: str, version: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "version").write_text(text)
    monkeypatch.setattr(_cuda, "DRIVER_FILE", tmp_path / "version")
    assert _cuda.driver_version() == version


GPU, MIG = f"GPU-{ONE}", f"MIG-{TWO}"


@pytest.mark.parametrize(
    ("settings", "visible", "reason", "problems"),
    [
        (Settings(kind="gpu", expected=(GPU,)), [GPU], "", []),
        (Settings(kind="gpu", expected=(GPU, MIG)), [MIG, GPU], "", []),
        (Settings(kind="gpu", expected=(GPU,)), [MIG], "", [f"expected {GPU}, CUDA sees {MIG}."]),
        (Settings(kind="gpu", expected=(GPU,)), [GPU, MIG], "", [f"expected {GPU}, CUDA sees {GPU}, {MIG}."]),
        (Settings(kind="gpu", expected=(GPU,)), None, "why", [f"expected {GPU}, CUDA sees none (why)."]),
        (Settings(kind="share"), [], "", ["expected a GPU, CUDA sees none."]),
        (Settings(kind="cpu"), [GPU], "", [f"expected no GPU, CUDA sees {GPU}."]),
        (Settings(kind="cpu"), None, "the driver is not here", []),
        (Settings(), None, "the driver is not here", []),
    ],
)
def test_the_devices_are_compared_with_those_of_the_session(
    settings: Settings, visible: list[str] | None, reason: str, problems: list[str]
) -> None:
    assert _check.compare(settings, visible, reason) == problems


def test_a_mig_instance_is_known_by_its_bytes() -> None:
    assert _check._named([f"GPU-{TWO}", f"GPU-{ONE}"], (MIG.upper(),)) == [
        f"MIG-{TWO.upper()}",
        f"GPU-{ONE}",
    ]


@pytest.mark.parametrize(
    ("driver", "build", "fits"),
    [([12, 2], "12.5.1", True), ([13, 0], "12.5", True), ([11, 8], "12.5.1", False), (None, "12.5", True)],
)
def test_the_driver_has_to_fit_the_cuda_of_tensorflow(
    driver: list[int] | None, build: str, fits: bool
) -> None:
    said = _check.fit(_cuda.Seen(visible=[], cuda=driver, driver="470.82.01", reason=""), build)
    assert (said == []) is fits
    assert fits or ("470.82.01" in said[0] and "11.8" in said[0] and "12.5.1" in said[0])


def answer(done: Done) -> dict[str, Any]:
    found = json.loads(done.out.splitlines()[-1])
    assert isinstance(found, dict) and done.code == (0 if found["passed"] else 1)
    return found


DEATHS = {
    "import os; os.abort()": "TensorFlow was ended by SIGABRT",
    "raise ImportError('libcudart.so.12: none')": "TensorFlow cannot be imported: ImportError: libcudart.so.12",
    "import sys; sys.stderr.write('E0000 00:00:1.5 12 x.cc:3] no such card\\n'); sys.exit(3)": (
        "TensorFlow ended with status 3: no such card"
    ),
    "print('noise on stdout'); raise ValueError('a\\nb')": "TensorFlow cannot be imported: ValueError: a",
}


@pytest.mark.parametrize("code", DEATHS)
def test_the_check_answers_whatever_becomes_of_tensorflow(run: Run, tmp_path: Path, code: str) -> None:
    (tmp_path / "tensorflow.py").write_text(code)
    (tmp_path / "keras.py").write_text("")
    found = answer(run(env={**CARD, "GPUPOOL_SLICE": "cpu"}, command=("-m", "gpupool_tensorflow", "check")))
    assert not found["passed"] and any(DEATHS[code] in problem for problem in found["problems"]), found
    assert found["tensorflow"] is None and found["xla_compiles"] is False and found["seconds"] >= 0


def test_a_driver_that_hangs_is_given_up_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_check, "CUDA_SECONDS", 0.2)
    real = _check.subprocess.Popen

    def asleep(command: list[str], **more: Any) -> Any:
        return real(["sleep", "600"], **more)

    monkeypatch.setattr(_check.subprocess, "Popen", asleep)
    problems: list[str] = []
    assert _check._look(problems)["visible"] is None
    assert problems == ["CUDA did not answer within 0.2 s."]


def test_bad_words_and_a_missing_lease_fail_the_check(run: Run, tmp_path: Path) -> None:
    (tmp_path / "tensorflow.py").write_text("raise ImportError('none')")
    env = {**CARD, "GPUPOOL_LEASE": "", "GPUPOOL_XLA": "yes", "GPUPOOL_VISIBLE": "0,1"}
    found = answer(run(env=env, command=("-m", "gpupool_tensorflow", "check")))
    said = " ".join(found["problems"])
    assert (
        "GPUPOOL_LEASE is not set" in said
        and "GPUPOOL_XLA is 'yes'" in said
        and "GPUPOOL_VISIBLE is '0,1'" in said
    )
