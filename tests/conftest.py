"""What all tests share: the markers of what a test needs, and ``--require`` for a run that must have it."""

from __future__ import annotations

import shutil

import pytest

NEEDS = {"browser": ("chromium", "Debian's package chromium is not installed")}
"""Marker → the program that its tests need, and what to say where it is missing."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require",
        default="",
        metavar="MARKERS",
        help="comma-separated markers whose tests fail, not skip, where what they need is missing",
    )


def pytest_configure(config: pytest.Config) -> None:
    unknown = _required(config) - set(NEEDS)
    if unknown:
        raise pytest.UsageError(f"--require: {sorted(unknown)} is not among {sorted(NEEDS)}.")


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker, (program, reason) in NEEDS.items():
        if item.get_closest_marker(marker) and shutil.which(program) is None:
            if marker in _required(item.config):
                pytest.fail(f"{reason}, and --require {marker} was given")
            pytest.skip(reason)


def _required(config: pytest.Config) -> set[str]:
    return {name for name in config.getoption("--require").split(",") if name}
