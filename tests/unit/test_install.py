"""``make install`` brings the extension to JupyterLab, also into an environment that is older than that."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from ..installed import BUILT, ROOT, install, jupyter_path, make_project

NAME = "labextensions/jupyterhub-gpupool"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_project(tmp_path)


def brought(project: Path) -> bool:
    """Whether JupyterLab finds the whole extension of this very project."""
    place = jupyter_path(project) / NAME
    if not (place / "package.json").is_file():
        return False
    load = json.loads((place / "package.json").read_text(encoding="utf-8"))["jupyterlab"]["_build"]["load"]
    return place.resolve() == (project / BUILT).resolve() and (place / load).is_file()


def test_the_first_install_brings_the_extension(project: Path) -> None:
    done = install(project, "hub", "demo")
    assert done.returncode == 0, done.stderr
    assert [line.split()[-1] for line in (project / "pip.log").read_text().splitlines()] == [
        ".[hub]",
        ".[demo]",
    ]
    assert brought(project)


@pytest.mark.parametrize("before", ["nothing", "a dangling link", "another tree's"])
def test_an_environment_without_it_gets_it_though_all_is_installed(project: Path, before: str) -> None:
    assert install(project, "hub").returncode == 0
    place = jupyter_path(project) / NAME
    place.unlink()
    if before == "nothing":
        shutil.rmtree(jupyter_path(project))
    else:
        place.symlink_to(ROOT / BUILT if before == "another tree's" else project / "gone")
    again = install(project, "hub")
    assert again.returncode == 0 and "Installed already: JupyterHub" in again.stdout
    assert len((project / "pip.log").read_text().splitlines()) == 1
    assert brought(project)


def test_a_failed_install_ends_with_a_sentence(project: Path) -> None:
    done = install(project, "hub", PIP_FAILS="1")
    assert done.returncode != 0
    assert done.stderr.startswith("gpupool: JupyterHub, its proxy and JupyterLab could not be installed")
    assert install(project, "hub").returncode == 0
    assert len((project / "pip.log").read_text().splitlines()) == 2


@pytest.mark.skipif(Path(sys.prefix) != ROOT / ".venv", reason="not run in the environment of `make install`")
def test_the_environment_of_this_run_has_it() -> None:
    assert brought(ROOT)
