"""What the pool says of a real GPU, beside nvidia-smi, while a real CUDA workload uses it.

For a machine with an NVIDIA GPU that nobody uses now, in the machine's own process namespace.  It asks for inventory,
power, temperature, errors, utilization, the process's attribution, shares, GPM (where the GPU is in MIG mode), health
and idle detection, and prints one line for each: what was asked, what the pool says by NVML, what nvidia-smi
says, and whether that is right.  The workload is TensorFlow where it is installed and sees the GPU, else a small
kernel; it takes 1 GiB of the GPU's memory.  Ends with 0 where nothing differs, 1 where something does, and 2 without
a GPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from _hub import ROOT, parser, table

sys.path.insert(0, str(ROOT))

from _truth import DIFFERS, NODE, Row, Smi, Truth, nvidia_smi

from jupyterhub_gpupool.devices.nvidia.helper import Silent
from jupyterhub_gpupool.devices.nvidia.inventory import NvidiaDevices
from jupyterhub_gpupool.model import Device

NOTHING = 2
WORKLOAD = Path(__file__).with_name("_cuda_load.py")


class Workload:
    """The process of the workload, on this GPU or MIG instance alone."""

    def __init__(self, visible: str) -> None:
        env = {**os.environ, "CUDA_VISIBLE_DEVICES": visible}
        self._process = subprocess.Popen(
            [sys.executable, str(WORKLOAD)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, text=True
        )
        self.pid = self._process.pid
        self.name = ""

    def _tell(self, command: str) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            print(command, file=self._process.stdin, flush=True)
        except BrokenPipeError:
            self.name = ""  # the reason is in what it has answered
        word, _, rest = self._process.stdout.readline().strip().partition(" ")
        if word != "ok":
            raise SystemExit(f"The workload does not run: {rest or 'it has ended without a word'}.")
        self.name = rest

    def hold(self, mib: int) -> None:
        self._tell(f"hold {mib}")
        print(f"The workload is {self.name}, process {self.pid}.")

    def busy(self) -> None:
        self._tell("busy")

    def rest(self) -> None:
        self._tell("rest")

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def chosen(devices: NvidiaDevices, index: int | None) -> Device | str:
    """The GPU to look at, or a sentence why there is none."""
    try:
        found = devices.devices()
    except Silent as problem:
        return problem.message
    if not found:
        return devices.state or "The driver sees no GPU."
    usable = [one for one in found if one.usable and index in (None, one.index)]
    return (
        usable[0] if usable else f"No GPU of this machine is free: {found[0].health_reason or 'see --gpu'}."
    )


def report(device: Device, rows: list[Row]) -> int:
    """Print the table; returns the exit status."""
    lines = [(row.asked, row.pool, row.smi, row.verdict) for row in rows]
    title = f"{device.model}, driver {device.driver}, mode {device.mode}"
    table(title, ("asked", "pool, by NVML", "nvidia-smi", "verdict"), lines)
    return int(any(row.verdict == DIFFERS for row in rows))


def main() -> int:
    line = parser(__doc__)
    line.add_argument("--gpu", type=int, help="index of the GPU (default: the first that is free)")
    line.add_argument("--library-dir", default="", help="folder of libnvidia-ml.so.1 (default: the system's)")
    options = line.parse_args()
    devices = NvidiaDevices(node=NODE, library_dir=options.library_dir, timeout=20)
    try:
        device = chosen(devices, options.gpu)
        if isinstance(device, str):
            print(f"There is no NVIDIA GPU to compare with here, and nothing was measured: {device}")
            return NOTHING
        return report(device, list(Truth(devices, device, Smi(nvidia_smi), Workload).rows()))
    finally:
        devices.close()


if __name__ == "__main__":
    sys.exit(main())
