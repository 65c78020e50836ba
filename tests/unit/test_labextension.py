"""The JupyterLab extension as it is shipped: built from its sources, small, and where JupyterLab looks for it."""

from __future__ import annotations

import configparser
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from jupyterhub_gpupool import __version__

ROOT = Path(__file__).parents[2]
BUILT = ROOT / "jupyterhub_gpupool" / "labextension"
SOURCES = ROOT / "labextension"
NAME = "jupyterhub-gpupool"


def test_the_built_extension_is_of_today() -> None:
    script = str(ROOT / "scripts" / "labextension.py")
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "changed", ["labextension/src/index.ts", "jupyterhub_gpupool/labextension/static/x.js"]
)
def test_a_change_on_either_side_is_seen(tmp_path: Path, changed: str) -> None:
    stamp = runpy.run_path(str(ROOT / "scripts" / "labextension.py"))["stamp"]
    sources, built = tmp_path / "labextension", tmp_path / "jupyterhub_gpupool" / "labextension"
    for folder in (sources / "src", built / "static"):
        folder.mkdir(parents=True)
    (sources / "src" / "index.ts").write_text("one")
    (built / "static" / "x.js").write_text("one")
    before = stamp(sources, built)
    assert stamp(sources, built) == before
    (tmp_path / changed).write_text("two")
    assert stamp(sources, built) != before


def test_it_has_the_version_of_the_package() -> None:
    for path in (SOURCES / "package.json", BUILT / "package.json"):
        found = json.loads(path.read_text(encoding="utf-8"))
        assert (found["name"], found["version"]) == (NAME, __version__)


def test_it_is_small_and_brings_nothing_of_jupyterlab_along() -> None:
    files = [path for path in BUILT.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 100_000
    assert not [path for path in files if path.suffix == ".map"]
    licenses = json.loads((BUILT / "static" / "third-party-licenses.json").read_text(encoding="utf-8"))
    # What webpack itself puts in: the loaders of the style sheet.
    assert {package["name"] for package in licenses["packages"]} <= {"css-loader", "style-loader"}
    package = json.loads((BUILT / "package.json").read_text(encoding="utf-8"))
    assert (BUILT / package["jupyterlab"]["_build"]["load"]).exists()


def test_what_is_installed_is_all_of_it() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    section = {key: value.split() for key, value in setup["options.data_files"].items()}
    folder = f"share/jupyter/labextensions/{NAME}"
    assert set(section) == {folder, f"{folder}/static"}
    found = {pattern: set(ROOT.glob(pattern)) for patterns in section.values() for pattern in patterns}
    assert [pattern for pattern, files in found.items() if not files] == []
    built = {path for path in BUILT.rglob("*") if path.is_file() and path.name != "built-from"}
    assert set().union(*found.values()) == built | {SOURCES / "install.json"}
    assert json.loads((SOURCES / "install.json").read_text(encoding="utf-8"))["packageName"] == NAME


def test_the_lock_file_pins_everything_and_names_no_mirror() -> None:
    packages = json.loads((SOURCES / "package-lock.json").read_text(encoding="utf-8"))["packages"]
    found = {name: entry for name, entry in packages.items() if name}
    assert len(found) > 50
    for name, entry in found.items():
        assert entry["integrity"].startswith("sha512-"), name
        assert "resolved" not in entry, name


def test_no_text_becomes_markup() -> None:
    """What people and the service have written is only ever set as text."""
    files = list((SOURCES / "src").glob("*.ts"))
    assert files
    for path in files:
        source = path.read_text(encoding="utf-8")
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert word not in source, f"{path.name}: {word}"
