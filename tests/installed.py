"""What ``scripts/install.sh`` leaves in the environment of a project's copy; ``venv`` and ``pip`` only pretend."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BUILT = "jupyterhub_gpupool/labextension"
NEEDED = ("scripts/install.sh", "setup.cfg", "pyproject.toml")
PYTHON = f"""#!/bin/sh
case "$*" in
    "-m venv "*) mkdir -p .venv/bin && cp "$0" .venv/bin/python && cp "$0" .venv/bin/pip ;;
    "-m pip "*) echo "$*" >>"$PIP_LOG"; [ -z "${{PIP_FAILS:-}}" ] ;;
    *) exec '{sys.executable}' "$@" ;;
esac
"""


def make_project(folder: Path) -> Path:
    """Copy what an install needs of the project."""
    for name in NEEDED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / BUILT, folder / BUILT)
    python = folder / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    return folder


def install(project: Path, *extras: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the project's own script as ``make install`` does."""
    return subprocess.run(
        ["sh", str(project / "scripts/install.sh"), *extras],
        env={**os.environ, "PYTHON": str(project / "python"), "PIP_LOG": str(project / "pip.log"), **environ},
        capture_output=True,
        text=True,
        timeout=60,
    )


def jupyter_path(project: Path) -> Path:
    """Where the Jupyter of the project's environment looks for what is installed there."""
    return project / ".venv" / "share" / "jupyter"
