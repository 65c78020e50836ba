"""What all tests share: the markers of what a test needs, and ``--require`` for a run that must have it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest

from . import postgres

# A busy machine is no failure.
hypothesis.settings.register_profile("unhurried", hypothesis.settings(), deadline=None)
hypothesis.settings.load_profile("unhurried")


def _no_browser() -> str:
    return "" if shutil.which("chromium") else "Debian's package chromium is not installed"


def _no_docker() -> str:
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    missing = [
        name for name in ("docker", "dockerd", "containerd", "runc") if not shutil.which(name, path=path)
    ]
    if missing:
        return f"Debian's package docker.io is not installed ({', '.join(missing)} not found)"
    return "" if os.geteuid() == 0 else "only root can start a Docker Engine of its own"


def _no_image() -> str:
    from jupyterhub_gpupool.demo.backend import find_image

    try:
        find_image(os.environ.get("GPUPOOL_IMAGE", ""), Path(__file__).parents[1] / "images" / "tensorflow")
    except ValueError as problem:
        return f"no session can run in the TensorFlow image here, because {problem}"
    return ""


def _no_postgresql() -> str:
    return postgres.lacking()


NEEDS: dict[str, Callable[[], str]] = {
    "browser": _no_browser,
    "docker": _no_docker,
    "image": _no_image,
    "postgresql": _no_postgresql,
}
"""Marker → what its tests lack on this machine, in words; empty when nothing."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require",
        default="",
        metavar="MARKERS",
        help="comma-separated markers whose tests fail, not skip, where what they need is missing",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin the file that takes longest first: it runs on one core, and at the end the others would wait for it."""
    items.sort(key=lambda item: item.path.name != "test_crashes.py")


def pytest_configure(config: pytest.Config) -> None:
    unknown = _required(config) - set(NEEDS)
    if unknown:
        raise pytest.UsageError(f"--require: {sorted(unknown)} is not among {sorted(NEEDS)}.")


def pytest_unconfigure() -> None:
    postgres.end_shared()


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker, lacking in NEEDS.items():
        if item.get_closest_marker(marker) and (reason := lacking()):
            if marker in _required(item.config):
                pytest.fail(f"{reason}, and --require {marker} was given")
            pytest.skip(reason)


def _required(config: pytest.Config) -> set[str]:
    return {name for name in config.getoption("--require").split(",") if name}
