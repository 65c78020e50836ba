"""Commands inside containers, through the engine: run to their end, with an end to every wait."""

from __future__ import annotations

import base64
import json
import stat
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import docker
import requests
from urllib3.exceptions import HTTPError, ReadTimeoutError

from .script import TAIL, may_run

CHUNK = 64 * 1024
MOST_OUTPUT = 1024 * 1024
"""Bytes that a command in a session may write: it is under a person's control."""

GO_SPECIAL = 0x8F280000
"""Bits of a mode as Go writes it for all that is no plain file: folder, link, device, pipe, socket, …"""


OPEN = ("sh", "-c", ": < /dev/nvidiactl")
"""Opens the driver and does nothing with it."""
OPEN_TIMEOUT = 5.0
FORBIDDEN = "not permitted"
"""How the kernel's refusal is called that the rules of a container's devices make; one for its mode is another."""


class Ran(NamedTuple):
    """How a command in a session ended, and what it wrote."""

    status: int
    out: str
    err: str


def execute(
    engine: docker.APIClient,
    name: str,
    command: Sequence[str],
    *,
    timeout: float,
    within: float | None = None,
    user: str = "",
    environment: Mapping[str, str] | None = None,
    raw: bytearray | None = None,
) -> Ran:
    """Run a command in a container to its end, under the container's account or another ``uid:gid``.

    Raises the errors of engine and requests, :class:`requests.Timeout` when nothing was written for ``timeout``
    seconds, or when it writes on after ``within`` seconds.  ``raw`` takes what it wrote, also until then.
    """
    deadline = None if within is None else time.monotonic() + within
    made = engine.exec_create(
        name, list(command), stdin=False, user=user, environment=dict(environment or {})
    )
    # Not by exec_start(): that waits for the output without any limit.
    url = f"{engine.base_url}/v{engine.api_version}/exec/{made['Id']}/start"
    answer = engine.post(url, json={"Detach": False, "Tty": False}, timeout=timeout, stream=True)
    answer.raise_for_status()
    raw = bytearray() if raw is None else raw
    for piece in _pieces(answer, command[0], timeout):
        raw += piece
        if len(raw) > MOST_OUTPUT:
            raise requests.ReadTimeout(f"{command[0]} wrote more than {MOST_OUTPUT} bytes")
        if deadline is not None and time.monotonic() > deadline:
            raise requests.ReadTimeout(f"{command[0]} took more than {within:g} s")
    status = engine.exec_inspect(made["Id"])["ExitCode"]
    texts = (text.decode("utf-8", "replace") for text in _apart(bytes(raw)))
    return Ran(-1 if status is None else int(status), *texts)


def _pieces(answer: requests.Response, what: str, timeout: float) -> Iterator[bytes]:
    """What comes, as it comes: ``iter_content()`` gathers, so that little that was written is not seen in time."""
    try:
        while piece := answer.raw.read1(CHUNK):
            yield piece
    except ReadTimeoutError as problem:
        raise requests.ReadTimeout(f"{what} was silent for {timeout:g} s") from problem
    except HTTPError as problem:
        raise requests.ConnectionError(problem) from problem


def _apart(raw: bytes) -> tuple[bytes, bytes]:
    """What a command wrote to stdout and to stderr, from the engine's stream of frames."""
    parts: dict[int, list[bytes]] = {1: [], 2: []}
    at = 0
    while at + 8 <= len(raw):
        kind, size = struct.unpack_from(">BxxxL", raw, at)
        parts.setdefault(kind, []).append(raw[at + 8 : at + 8 + size])
        at += 8 + size
    return b"".join(parts[1]), b"".join(parts[2])


def opens(ran: Ran) -> bool | None:
    """Whether :data:`OPEN` could; None where it failed for anything else than the rules of the container."""
    if ran.status == 0:
        return True
    return False if FORBIDDEN in ran.err else None


def tail_of(raw: bytearray) -> str:
    """The end of what a command wrote, from the engine's stream of frames."""
    out, err = _apart(bytes(raw))
    return (out + err)[-TAIL:].decode("utf-8", "replace")


def is_script(engine: docker.APIClient, key: str, path: str) -> bool:
    """Whether there is a script at this place in a container, as the engine sees its files."""
    url = f"{engine.base_url}/v{engine.api_version}/containers/{key}/archive"
    said = engine.head(url, params={"path": path}, timeout=engine.timeout)
    if said.status_code != requests.codes.ok:
        return False
    mode = int(json.loads(base64.b64decode(said.headers["X-Docker-Container-Path-Stat"]))["mode"])
    return may_run(mode & 0o777 | (0 if mode & GO_SPECIAL else stat.S_IFREG))
