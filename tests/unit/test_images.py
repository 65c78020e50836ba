"""Fetching an image: what a person is told meanwhile, and what when it fails."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import requests
from docker.errors import ImageNotFound

from jupyterhub_gpupool.errors import Unavailable
from jupyterhub_gpupool.spawners.images import fetch, image_id

DIGEST = "sha256:" + "a" * 64


class Engine:
    """An engine that answers a pull with these lines, and has the image afterwards."""

    def __init__(self, lines: Iterable[Any], *, there: bool = True) -> None:
        self.lines, self.there, self.asked = lines, there, ("", "")

    def pull(self, repository: str, tag: str, stream: bool, decode: bool) -> Iterator[dict[str, Any]]:
        self.asked = repository, tag
        for line in self.lines:
            if isinstance(line, Exception):
                raise line
            yield line

    def inspect_image(self, image: str) -> dict[str, str]:
        if not self.there:
            raise ImageNotFound("no such image")
        return {"Id": DIGEST}


def layer(key: str, status: str, current: int = 0, total: int = 0) -> dict[str, Any]:
    detail = {"current": current, "total": total} if total else {}
    return {"id": key, "status": status, "progressDetail": detail}


def test_progress_is_told_in_layers_and_megabytes() -> None:
    told: list[str] = []
    lines = [
        {"status": "Pulling from lab/tensorflow", "id": "1"},
        layer("base", "Already exists"),
        layer("one", "Downloading", 50_000_000, 200_000_000),
        layer("two", "Downloading", 100_000_000, 100_000_000),
        layer("two", "Pull complete"),
        layer("one", "Pull complete"),
        {"status": "Digest: " + DIGEST},
    ]
    assert fetch(Engine(lines), "lab/tensorflow:1", told.append) == DIGEST
    assert told == [
        "Fetching the image lab/tensorflow:1; it is kept for the next time",
        "Fetching the image lab/tensorflow:1: 1 of 1 layers",
        "Fetching the image lab/tensorflow:1: 1 of 2 layers, 50 of 200 MB",
        "Fetching the image lab/tensorflow:1: 1 of 3 layers, 150 of 300 MB",
        "Fetching the image lab/tensorflow:1: 2 of 3 layers, 150 of 300 MB",
        "Fetching the image lab/tensorflow:1: 3 of 3 layers, 300 of 300 MB",
    ]


@pytest.mark.parametrize(
    ("image", "asked"),
    [
        ("tensorflow", ("tensorflow", "latest")),
        ("lab/tensorflow:1", ("lab/tensorflow", "1")),
        ("registry:5000/lab/tensorflow", ("registry:5000/lab/tensorflow", "latest")),
        ("registry:5000/lab/tensorflow:1", ("registry:5000/lab/tensorflow", "1")),
        (f"lab/tensorflow@{DIGEST}", ("lab/tensorflow", DIGEST)),
    ],
)
def test_the_registry_is_asked_for_the_very_image(image: str, asked: tuple[str, str]) -> None:
    engine = Engine([])
    fetch(engine, image, lambda _: None)
    assert engine.asked == asked


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        (Engine([{"error": "manifest unknown"}]), "cannot be fetched: manifest unknown"),
        (Engine([requests.ConnectionError("gone")]), "cannot be fetched: gone"),
        (Engine([], there=False), "the engine does not have it"),
    ],
)
def test_a_failure_has_the_reason(engine: Engine, said: str) -> None:
    with pytest.raises(Unavailable, match=said):
        fetch(engine, "lab/tensorflow:1", lambda _: None)


def test_an_image_that_is_not_there_has_no_id() -> None:
    assert image_id(Engine([]), "x") == DIGEST
    assert image_id(Engine([], there=False), "x") is None
