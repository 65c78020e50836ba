"""Images on the engine: is one there, and fetch it with progress, before anything is claimed for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import docker
import requests
from docker.errors import APIError, ImageNotFound, NotFound

from ..errors import Unavailable

DONE = frozenset({"Already exists", "Pull complete"})
SILENCE = 300.0
"""Seconds without a word of the engine after which a pull counts as failed."""


def image_id(engine: docker.APIClient, image: str) -> str | None:
    """The id (``sha256:…``) of an image that the engine has; None when it has not."""
    try:
        return str(engine.inspect_image(image)["Id"])
    except (ImageNotFound, NotFound):
        return None


def fetch(engine: docker.APIClient, image: str, tell: Callable[[str], None]) -> str:
    """Have the engine pull an image; ``tell`` gets a sentence whenever there is something new.

    Returns the image's id.  Raises Unavailable with the registry's reason.
    """
    short = image.partition("@")[0]
    repository, tag = _parts(image)
    layers: dict[str, tuple[int, int]] = {}
    done: set[str] = set()
    tell(f"Fetching the image {short}; it is kept for the next time")
    try:
        for line in engine.pull(repository, tag=tag, stream=True, decode=True):
            if "error" in line:
                raise Unavailable(
                    f"The image {short} cannot be fetched: {str(line['error'])[:300]}", reason="no-image"
                )
            if text := _progress(line, layers, done):
                tell(f"Fetching the image {short}: {text}")
        found = image_id(engine, image)
    except (APIError, requests.RequestException) as problem:
        why = getattr(problem, "explanation", None) or problem
        raise Unavailable(
            f"The image {short} cannot be fetched: {str(why)[:300]}", reason="no-image"
        ) from problem
    if found is None:
        raise Unavailable(
            f"The image {short} was fetched, but the engine does not have it.", reason="no-image"
        )
    return found


def _parts(image: str) -> tuple[str, str]:
    """Repository and tag or digest, as the engine's pull takes them."""
    if "@" in image:
        repository, _, digest = image.partition("@")
        return repository, digest
    name = image.rpartition("/")[2]
    if ":" in name:
        repository, _, tag = image.rpartition(":")
        return repository, tag
    return image, "latest"


def _progress(line: dict[str, Any], layers: dict[str, tuple[int, int]], done: set[str]) -> str:
    """Fold one line of the engine into the sums; what to tell, empty for nothing new."""
    key, status = str(line.get("id", "")), str(line.get("status", ""))
    detail = line.get("progressDetail") or {}
    if status == "Downloading" and detail.get("total"):
        layers[key] = int(detail.get("current", 0)), int(detail["total"])
    elif status in DONE:
        done.add(key)
        if key in layers:
            layers[key] = layers[key][1], layers[key][1]
    else:
        return ""
    have, total = (sum(part) for part in zip(*layers.values(), strict=True)) if layers else (0, 0)
    size = f", {have / 1e6:.0f} of {total / 1e6:.0f} MB" if total else ""
    return f"{len(done)} of {len(done | set(layers))} layers{size}"
