"""What the stand-in for the driver library says: a machine's GPUs as objects, written to the file that it reads."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

SOURCE = Path(__file__).with_name("fake_nvml.c")
SONAME = "libnvidia-ml.so.1"
XID, DOUBLE_BIT = 0x8, 0x2
NOWHERE = 0xFFFFFFFF
"""What an event names as its MIG instance where it concerns the whole GPU."""

UNINITIALIZED, NOT_SUPPORTED, NO_PERMISSION, NOT_FOUND = 1, 3, 4, 6
DRIVER_NOT_LOADED, IS_LOST, MISMATCH, UNKNOWN = 9, 15, 18, 999


@dataclass
class FakeProcess:
    """A compute process: GPU memory in MiB (None: the driver does not say), SM use in percent."""

    pid: int
    memory: int | None = 400
    sm: int = 0
    gi: int = NOWHERE
    ci: int = NOWHERE
    mps: bool = False


@dataclass
class FakeInstance:
    """A MIG instance in a slot of its GPU; ``use`` is what GPM says of it, in percent."""

    uuid: str
    profile: str = "1g.10gb"
    gi: int = 7
    ci: int = 0
    memory: int = 9984
    used: int = 12
    compute: int = 1
    start: int = 0
    size: int = 1
    use: float = 0.0


@dataclass
class FakeGPU:
    """A GPU.  What is None, the driver does not support on it."""

    uuid: str
    name: str = "NVIDIA A100-SXM4-80GB"
    memory: int = 81920
    used: int = 4
    reserved: int = 600
    capability: tuple[int, int] = (8, 0)
    bus: str = "00000000:07:00.0"
    rates: int | None = 0
    live: bool = True
    """Whether the driver samples the rates by itself, up to this moment."""
    samples: list[tuple[int, int]] = field(default_factory=list)
    power: int | None = 62000
    temperature: int | None = 31
    ecc: int | None = 0
    remapped: tuple[int, int, int, int] | None = (0, 0, 0, 0)
    retired: int | None = None
    recovery: int | None = 0
    gpm: bool = False
    mig: tuple[int, int] | None = (0, 0)
    slices: int = 8
    instances: dict[int, FakeInstance] = field(default_factory=dict)
    processes: list[FakeProcess] = field(default_factory=list)
    topology: dict[int, int] = field(default_factory=dict)
    links: list[str] = field(default_factory=list)
    """Where each active NVLink ends: the other GPU's place on the bus, or ``switch``."""
    fails: dict[str, int] = field(default_factory=dict)
    """Function → error code; ``*`` is every function."""
    hangs: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        found = [
            f"gpu {self.uuid}",
            f"name {self.name}",
            f"memory {self.memory} {self.used} {self.reserved}",
            f"capability {self.capability[0]} {self.capability[1]}",
            f"bus {self.bus}",
            f"live {int(self.live)}",
            f"gpm {int(self.gpm)}",
            f"slices {self.slices}",
        ]
        for name in ("power", "temperature", "ecc", "retired", "recovery"):
            if (value := getattr(self, name)) is not None:
                found.append(f"{name} {value}")
        if self.rates is not None:
            found.append(f"rates {self.rates} 0")
        for name in ("remapped", "mig"):
            if (values := getattr(self, name)) is not None:
                found.append(f"{name} {' '.join(map(str, values))}")
        for slot, one in self.instances.items():
            numbers = f"{one.memory} {one.used} {one.compute} {one.start} {one.size} {one.use}"
            found.append(f"instance {slot} {one.uuid} {one.profile} {one.gi} {one.ci} {numbers}")
        for process in self.processes:
            memory = -1 if process.memory is None else process.memory
            word = "mps" if process.mps else "process"
            found.append(f"{word} {process.pid} {memory} {process.sm} {process.gi} {process.ci}")
        found += [f"sample {at} {value}" for at, value in self.samples]
        found += [f"topology {other} {level}" for other, level in self.topology.items()]
        found += [f"link {number} {bus}" for number, bus in enumerate(self.links)]
        return found + rules(self.fails, self.hangs)


def rules(fails: dict[str, int], hangs: list[str]) -> list[str]:
    return [f"fail {name} {code}" for name, code in fails.items()] + [f"hang {name}" for name in hangs]


class Machine:
    """The GPUs of a machine, with its driver library in ``folder``; :meth:`write` makes a change known."""

    def __init__(self, folder: Path, library: Path | None, gpus: list[FakeGPU] | None = None) -> None:
        self.folder = folder
        self.gpus = gpus or []
        self.driver = "570.124.06"
        self.init = 0
        self.root = True
        self.fails: dict[str, int] = {}
        self.hangs: list[str] = []
        self.events: list[tuple[int, int, int, int]] = []
        folder.mkdir(parents=True, exist_ok=True)
        if library is not None:
            (folder / SONAME).write_bytes(library.read_bytes())
        self.write()

    def happen(self, gpu: int, kind: int, data: int, gi: int = NOWHERE) -> None:
        """Let an event happen now: on this GPU, of this kind, with this number (the XID)."""
        self.events.append((gpu, kind, data, gi))
        self.write()

    def write(self) -> None:
        lines = [f"driver {self.driver}", f"init {self.init}", f"root {int(self.root)}"]
        lines += rules(self.fails, self.hangs)
        for number, (gpu, kind, data, gi) in enumerate(self.events, 1):
            lines.append(f"event {number} {gpu} {kind} {data} {gi} {NOWHERE}")
        for one in self.gpus:
            lines += one.lines()
        part = self.folder / "scenario.part"
        part.write_text("\n".join(lines) + "\n")
        os.replace(part, self.folder / "scenario")


def build(folder: Path, *options: str) -> Path:
    """Build the stand-in with the system's compiler."""
    library = folder / f"fake{''.join(options)}.so"
    flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", f"-Wl,-soname,{SONAME}"]
    subprocess.run(["cc", *flags, *options, "-o", str(library), str(SOURCE), "-lm"], check=True)
    return library


# --- machines -----------------------------------------------------------------------------------------


def a100(number: int = 0, **given: object) -> FakeGPU:
    """An A100 whose UUID tells its number."""
    uuid = f"GPU-a1000000-0000-4000-8000-{number:012x}"
    return FakeGPU(**{"uuid": uuid, "bus": f"00000000:{7 + number:02x}:00.0", **given})  # type: ignore[arg-type]


def h100(number: int = 0, **given: object) -> FakeGPU:
    """An H100 whose UUID tells its number; it has GPM."""
    values = {
        "uuid": f"GPU-b1000000-0000-4000-8000-{number:012x}",
        "name": "NVIDIA H100 80GB HBM3",
        "memory": 81559,
        "capability": (9, 0),
        "bus": f"00000000:{0x40 + number:02x}:00.0",
        "gpm": True,
    }
    return FakeGPU(**{**values, **given})  # type: ignore[arg-type]


def t4(number: int = 0, **given: object) -> FakeGPU:
    """A T4: no MIG, no GPM, retired pages instead of remapped rows."""
    values = {
        "uuid": f"GPU-c4000000-0000-4000-8000-{number:012x}",
        "name": "Tesla T4",
        "memory": 15360,
        "reserved": 430,
        "capability": (7, 5),
        "bus": f"00000000:{0x80 + number:02x}:00.0",
        "mig": None,
        "remapped": None,
        "retired": 0,
        "recovery": None,
    }
    return FakeGPU(**{**values, **given})  # type: ignore[arg-type]


def instance(number: int, **given: object) -> FakeInstance:
    """A MIG instance whose UUID tells its number."""
    uuid = f"MIG-00000000-0000-5000-8000-{number:012x}"
    return FakeInstance(**{"uuid": uuid, **given})  # type: ignore[arg-type]


def small(number: int, place: int, **given: object) -> FakeInstance:
    """A 1g.10gb instance at a memory slice; its GPU instance has the id 7 + place, as real ones mostly do."""
    return instance(number, gi=7 + place, start=place, **given)


def large(number: int, place: int = 4, **given: object) -> FakeInstance:
    """A 3g.40gb instance at the first or the second half."""
    values = {"profile": "3g.40gb", "gi": 1 + place // 4, "memory": 40448, "compute": 3, "size": 4}
    return instance(number, **{**values, "start": place, **given})
