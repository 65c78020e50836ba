"""What the tests on the stand-in for the driver library share: it is built once for each run."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jupyterhub_gpupool.devices.nvidia.inventory import NvidiaDevices

from .scenario import FakeGPU, Machine, build

MakeMachine = Callable[..., Machine]
MakeDevices = Callable[..., NvidiaDevices]


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The stand-in of today, and the one of an old driver."""
    pytest.importorskip("pynvml", reason="the package nvidia-ml-py is not installed")
    if not shutil.which("cc"):
        pytest.skip("there is no C compiler")
    folder = tmp_path_factory.mktemp("nvml")
    return {"new": build(folder), "old": build(folder, "-DOLD_DRIVER")}


@pytest.fixture
def machine(libraries: dict[str, Path], tmp_path: Path) -> MakeMachine:
    """Make a machine with these GPUs; ``library``: ``new``, ``old`` or None for no driver at all."""

    def make(*gpus: FakeGPU, library: str | None = "new") -> Machine:
        return Machine(tmp_path / "driver", libraries[library] if library else None, list(gpus))

    return make


@pytest.fixture
def devices() -> Iterator[MakeDevices]:
    """Make the devices of a machine as the service sees them."""
    made: list[NvidiaDevices] = []

    def make(machine: Machine, **given: Any) -> NvidiaDevices:
        made.append(NvidiaDevices(library_dir=str(machine.folder), node="node", **{"timeout": 20, **given}))
        return made[-1]

    yield make
    for one in made:
        one.close()
