"""The benchmark for real GPUs, on the stand-in for the driver: what it asks, and that it sees what is wrong."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from .conftest import MakeDevices, MakeMachine
from .scenario import FakeGPU, FakeInstance, FakeProcess, Machine, a100, h100, small

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PID = 4_100_000
"""No process of this machine: the kernel numbers them up to 4 194 304, and hardly so far."""


def module(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, made)
    spec.loader.exec_module(made)
    return made


class Load:
    """A workload that changes what the stand-in says of its GPU."""

    def __init__(self, machine: Machine, part: FakeInstance | None = None) -> None:
        self.machine, self.gpu, self.part, self.pid = machine, machine.gpus[0], part, PID
        self.done: list[str] = []

    def _now(self, use: int, word: str) -> None:
        self.done.append(word)
        for process in self.gpu.processes:
            process.sm = use
        if self.part is not None:
            self.part.use = float(use)
        else:
            # As the driver does it, which samples by itself: what was, is not forgotten by the next look.
            self.gpu.samples += [
                (int(time.time() * 1e6) - 1, self.gpu.rates or 0),
                (int(time.time() * 1e6), use),
            ]
            self.gpu.rates = use
        self.machine.write()

    def hold(self, mib: int) -> None:
        place = {"gi": self.part.gi, "ci": self.part.ci} if self.part else {}
        self.gpu.processes = [FakeProcess(self.pid, mib + 300, **place)]
        (self.part or self.gpu).used += mib + 300
        self._now(0, f"hold {mib}")

    def busy(self) -> None:
        self._now(97, "busy")

    def rest(self) -> None:
        self._now(0, "rest")

    def end(self) -> None:
        (self.part or self.gpu).used -= self.gpu.processes[0].memory or 0
        self.gpu.processes = []
        self._now(0, "end")


def smi(machine: Machine, gpu: FakeGPU, **wrong: str) -> Callable[[Sequence[str]], str]:
    """``nvidia-smi`` as it prints what the stand-in says."""

    def run(arguments: Sequence[str]) -> str:
        if arguments[0].startswith("--query-compute-apps"):
            return "".join(f"{gpu.uuid}, {one.pid}, {one.memory}\n" for one in gpu.processes)
        told = {
            "name": gpu.name,
            "memory": str(gpu.memory),
            "capability": f"{gpu.capability[0]}.{gpu.capability[1]}",
            "driver": machine.driver,
            "power": f"{(gpu.power or 0) / 1000:.2f}",
            "temperature": str(gpu.temperature),
            "utilization": "[N/A]" if gpu.mig == (1, 1) else str(gpu.rates),
            "errors": str(gpu.ecc),
        }
        return ", ".join({**told, **wrong}.values()) + "\n"

    return run


@pytest.fixture
def asked(machine: MakeMachine, devices: MakeDevices, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Ask all questions about a GPU; returns the rows by question, and the workload."""

    def ask(gpu: FakeGPU, part: FakeInstance | None = None, **wrong: str) -> tuple[dict[str, Any], Load]:
        truth = module("_truth", monkeypatch)
        there = machine(gpu)
        made, loads = devices(there), [Load(there, part)]
        [device] = made.devices()
        found = truth.Truth(
            made, device, truth.Smi(smi(there, gpu, **wrong)), lambda visible: loads[0], pause=0.2,
            sleep=lambda seconds: time.sleep(min(seconds, 0.2)),
        )  # fmt: skip
        return {row.asked: row for row in found.rows()}, loads[0]

    return ask


def test_a_whole_gpu_that_does_what_it_is_told(asked: Callable[..., Any]) -> None:
    rows, load = asked(a100(0, live=False, samples=[(int(time.time() * 1e6), 0)]))
    wrong = [row for row in rows.values() if row.verdict == "DIFFERS"]
    assert wrong == []
    agreed = {name for name, row in rows.items() if row.verdict == "agrees"}
    assert agreed >= {
        "UUID", "model", "memory that can be promised", "capability", "driver", "power", "temperature",
        "memory errors", "health", "idle: nothing runs", "idle: memory is held, nothing computes",
        "memory in use (at least 1024)", f"process {PID} is the session's",
        "busy: utilization by rates and samples", "share that computes", "share beside it",
        "busy: the pool's word", "burst of 1 s between two looks", "idle time counted (of what passed)",
        "a process of no session", "idle: the workload has ended", "health afterwards",
    }  # fmt: skip
    assert rows["GPM"].verdict == "not compared"
    assert load.done[0] == "hold 1024" and load.done[-1] == "end"


def test_a_mig_instance_is_asked_for_by_gpm(asked: Callable[..., Any]) -> None:
    part = small(1, 0)
    rows, _ = asked(h100(0, mig=(1, 1), instances={0: part}), part)
    assert [row for row in rows.values() if row.verdict == "DIFFERS"] == []
    assert rows["busy: utilization by GPM"].verdict == "agrees"
    assert "share that computes" not in rows and "GPM" not in rows


def test_what_is_wrong_is_said_and_ends_with_1(
    asked: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu = a100(0, live=False, samples=[(int(time.time() * 1e6), 0)])
    rows, _ = asked(gpu, memory="40960", power="300.0", driver="535.1", errors="[N/A]")
    differs = {name for name, row in rows.items() if row.verdict == "DIFFERS"}
    assert differs == {"memory that can be promised", "power", "driver"}
    assert rows["memory errors"].verdict == "not compared" and rows["memory errors"].smi == "unknown"
    bench = module("gpu_truth", monkeypatch)
    device = bench.Device("GPU-1", "here", 0, "A100", 81920)
    assert bench.report(device, list(rows.values())) == 1
    assert bench.report(device, [row for row in rows.values() if row.verdict != "DIFFERS"]) == 0
    assert "DIFFERS" in capsys.readouterr().out


def test_without_a_gpu_it_says_so_in_one_sentence_and_ends_with_2(
    tmp_path: Path, machine: MakeMachine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = module("gpu_truth", monkeypatch)
    for there in (machine(library=None), machine()):
        monkeypatch.setattr(sys, "argv", ["gpu_truth.py", "--library-dir", str(there.folder)])
        assert bench.main() == 2
        printed = capsys.readouterr().out
        assert printed.count("\n") == 1 and printed.startswith("There is no NVIDIA GPU to compare with here")


def test_the_workload_says_why_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    load = module("_cuda_load", monkeypatch)
    monkeypatch.setattr(load.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(
        load.ctypes, "CDLL", lambda name: (_ for _ in ()).throw(OSError(f"{name}: not there"))
    )
    with pytest.raises(OSError, match=r"libcuda\.so\.1: not there"):
        load.work()
