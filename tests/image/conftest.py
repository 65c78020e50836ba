"""The defaults package as people have it: built into a wheel, installed by pip into an environment of its own.

The environment borrows TensorFlow and Jupyter from the one that runs the tests.  Its start-up files are
processed by Python itself, so a test sees what an interpreter of a session sees.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parent.parent / "images" / "tensorflow" / "defaults"
sys.path.insert(0, str(SOURCE))  # for tests of single functions, in this process

SECONDS = 240  # of one interpreter: the machine may be busy with other tests

CARD = {
    "GPUPOOL_LEASE": "7",
    "GPUPOOL_SLICE": "share",
    "GPUPOOL_COMPUTE_CAPABILITY": "8.0",
    "GPUPOOL_PRECISION": "auto",
    "GPUPOOL_PRECISION_AUTO": "mixed_bfloat16",
    "GPUPOOL_MEMORY_LIMIT_MB": "20480",
}
"""A session on a share of an A100, as the spawner describes it."""

needs_tensorflow = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None, reason="TensorFlow is not installed"
)


@dataclass
class Done:
    """What an interpreter left: the JSON on its last line, the lines of the package, and the rest."""

    code: int
    out: str
    err: str

    @property
    def found(self) -> Any:
        assert self.code == 0, self.err[-4000:]
        return json.loads(self.out.splitlines()[-1])

    @property
    def said(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("gpupool: ")]


Run = Callable[..., Done]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: setuptools leaves folders in what it builds."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(
        SOURCE, folder / "source", ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__")
    )
    here = [importlib.util.find_spec(name) is not None for name in ("setuptools", "wheel")]
    alone = ["--no-build-isolation"] if all(here) else []
    command = ["-m", "pip", "wheel", "--quiet", "--no-deps", *alone, "--wheel-dir", str(folder)]
    subprocess.run([sys.executable, *command, str(folder / "source")], check=True, timeout=SECONDS)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="session")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter whose environment has the package, and borrows everything else."""
    folder = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=SECONDS)
    made = folder / "bin" / "python"
    install = [
        "-m",
        "pip",
        "--python",
        str(made),
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        str(wheel),
    ]
    subprocess.run([sys.executable, *install], check=True, timeout=SECONDS)
    site = next(folder.glob("lib/python*/site-packages"))
    borrowed = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), str(HERE)])
    (site / "borrowed.pth").write_text("".join(f"{path}\n" for path in borrowed))
    return made


@pytest.fixture
def home(tmp_path: Path) -> Path:
    made = tmp_path / "home"
    made.mkdir()
    return made


@pytest.fixture
def environ(home: Path) -> dict[str, str]:
    """A plain environment: nothing of the pool, of TensorFlow or of CUDA from outside comes in."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
    return {**kept, "HOME": str(home), "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.fixture
def run(python: Path, environ: dict[str, str], tmp_path: Path) -> Run:
    """Run code in a fresh interpreter of that environment; flags go to Python."""

    def go(
        code: str = "", *flags: str, env: Mapping[str, str] | None = None, command: tuple[str, ...] = ()
    ) -> Done:
        done = subprocess.run(
            [str(python), *flags, *(command or ("-c", code))],
            env={**environ, **(env or {})},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    return go
