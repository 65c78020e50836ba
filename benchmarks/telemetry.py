"""One look at a machine full of GPUs: seconds, and the share of a core that looking takes.

Eight GPUs with seven MIG instances each, a session with three processes on every instance; the devices, the
helper process and NVML's Python binding are the real ones.  The driver is the tests' stand-in, which answers
from memory: what a real driver takes for its own work comes on top, and is not in these figures.  A pass is
what a sweep does: the inventory with health and layout, then the measurement of every instance.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import time

import psutil
from _hub import ROOT, VERDICTS, folder, load_note, parser, table, verdict

sys.path.insert(0, str(ROOT))

from jupyterhub_gpupool.devices.nvidia.inventory import NvidiaDevices
from jupyterhub_gpupool.model import Kind, Process, Slice
from jupyterhub_gpupool.service.app import GPUPoolService
from tests.nvml.scenario import FakeGPU, FakeInstance, FakeProcess, Machine, build, h100

GPUS, INSTANCES, PROCESSES = 8, 7, 3
PAUSE = 0.2
"""Seconds between two passes: GPM measures nothing over less."""


def machine_of(number: int) -> FakeGPU:
    """An H100 whose memory slices but one are 1g.10gb instances, each with processes."""
    instances, processes = {}, []
    for place in range(INSTANCES):
        uuid = f"MIG-00000000-0000-5000-8000-{number:04x}{place:08x}"
        instances[place] = FakeInstance(uuid, gi=7 + place, start=place, used=3000, use=50.0)
        processes += [FakeProcess(pid(number, place, n), 900, gi=7 + place, ci=0) for n in range(PROCESSES)]
    return h100(number, mig=(1, 1), instances=instances, processes=processes, used=30000)


def pid(gpu: int, place: int, process: int) -> int:
    return 100_000 + (gpu * INSTANCES + place) * 100 + process


def cpu_of(process: psutil.Process) -> float:
    """CPU seconds of a process, to the nanosecond."""
    return time.clock_gettime((~process.pid << 3) | 2)


def main() -> None:
    line = parser(__doc__)
    line.add_argument("--passes", type=int, default=50, help="passes after the first two (50)")
    options = line.parse_args()
    if not shutil.which("cc"):
        print("There is no C compiler, which the stand-in for the driver needs: nothing was measured.")
        return
    with folder(options.dir) as parent:
        gpus = [machine_of(number) for number in range(GPUS)]
        devices = NvidiaDevices(library_dir=str(Machine(parent / "driver", build(parent), gpus).folder))
        slices, processes = {}, {}
        for number, gpu in enumerate(gpus):
            for place, part in gpu.instances.items():
                lease = f"lease-{number}-{place}"
                slices[lease] = (Slice(gpu.uuid, Kind.MIG, (place,), 8, part.memory, 100, part.uuid),)
                processes[lease] = tuple(
                    Process(pid(number, place, n), 1.0, 1.0, 900) for n in range(PROCESSES)
                )
        walls, own, helpers = [], [], []
        began = time.perf_counter()
        found = devices.devices()
        opening = time.perf_counter() - began
        helper = psutil.Process(next(child.pid for child in psutil.Process().children()))
        devices.sample(slices, processes)
        for _ in range(options.passes):
            time.sleep(PAUSE)
            wall, cpu, helped = time.perf_counter(), time.process_time(), cpu_of(helper)
            found = devices.devices()
            readings = devices.sample(slices, processes)
            walls.append(time.perf_counter() - wall)
            own.append(time.process_time() - cpu)
            helpers.append(cpu_of(helper) - helped)
            if len(found) != GPUS or any(readings.leases[lease].utilization != 50 for lease in slices):
                raise SystemExit("a pass did not measure every instance")
        devices.close()
    report(opening, walls, own, helpers)


def report(opening: float, walls: list[float], own: list[float], helpers: list[float]) -> None:
    low, middle, high = (1000 * value for value in statistics.quantiles(walls, n=4))
    lines = [
        ("first look, with the start of the helper", f"{1000 * opening:.0f} ms"),
        ("pass: median (middle half)", f"{middle:.1f} ms ({low:.1f}–{high:.1f})"),
        ("pass: longest", f"{1000 * max(walls):.1f} ms"),
        ("CPU of a pass: service", f"{1000 * statistics.median(own):.1f} ms"),
        ("CPU of a pass: helper", f"{1000 * statistics.median(helpers):.1f} ms"),
    ]
    what = f"{GPUS} GPUs, {GPUS * INSTANCES} MIG instances, {GPUS * INSTANCES * PROCESSES} processes"
    table(f"telemetry: {what}; the driver is a stand-in", ("", "measured"), lines)
    interval = float(GPUPoolService.class_traits()["sweep_interval"].default_value)
    share = (statistics.median(own) + statistics.median(helpers)) / interval
    seconds = verdict("one telemetry pass", f"{middle:.1f} ms", "", "", "< 50 ms", middle < 50)
    core = verdict(
        f"CPU at one pass in {interval:g} s", f"{share:.2%} of a core", "", "", "< 1 %", share < 0.01
    )
    table("", VERDICTS, [seconds, core])
    print(load_note())


if __name__ == "__main__":
    main()
