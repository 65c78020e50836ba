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
"""Bytes that a command may write whose whole output is read: it is under a person's control."""

HEAD = struct.Struct(">BxxxL")
"""What each frame of the engine's stream begins with: where the command wrote it, and how many bytes it is."""

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


class Tail:
    """The end of what a command writes, in the order in which it comes, however much that is."""

    def __init__(self, size: int = TAIL) -> None:
        self._size, self._end = size, b""
        self._head, self._left = b"", 0  # of the frame that is being read

    def add(self, piece: bytes) -> None:
        """Take a piece of the engine's stream of frames; its borders are not those of the frames."""
        while piece:
            if self._left:
                text, piece = piece[: self._left], piece[self._left :]
                self._left -= len(text)
                self._end = (self._end + text)[-self._size :]
            else:
                missing = HEAD.size - len(self._head)
                self._head, piece = self._head + piece[:missing], piece[missing:]
                if len(self._head) == HEAD.size:
                    self._left, self._head = HEAD.unpack(self._head)[1], b""

    def __str__(self) -> str:
        return self._end.decode("utf-8", "replace")


def execute(
    engine: docker.APIClient,
    name: str,
    command: Sequence[str],
    *,
    timeout: float,
    user: str = "",
    environment: Mapping[str, str] | None = None,
) -> Ran:
    """Run a command in a container to its end, under the container's account or another ``uid:gid``.

    Raises the errors of engine and requests, :class:`requests.Timeout` when nothing was written for ``timeout``
    seconds, or when it writes too much.
    """
    raw = bytearray()
    key, pieces = _start(engine, name, command, timeout, user, environment)
    for piece in pieces:
        raw += piece
        if len(raw) > MOST_OUTPUT:
            raise requests.ReadTimeout(f"{command[0]} wrote more than {MOST_OUTPUT} bytes")
    texts = (text.decode("utf-8", "replace") for text in _apart(bytes(raw)))
    return Ran(_status(engine, key), *texts)


def follow(
    engine: docker.APIClient,
    name: str,
    command: Sequence[str],
    *,
    timeout: float,
    environment: Mapping[str, str],
    tail: Tail,
) -> int:
    """Run a command in a container to its end, whatever it writes, and return its exit status.

    ``tail`` takes the end of what it writes, also where this raises: as :func:`execute`, and also
    :class:`requests.Timeout` where it writes on after ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    key, pieces = _start(engine, name, command, timeout, "", environment)
    try:
        for piece in pieces:
            tail.add(piece)
            if time.monotonic() > deadline:
                raise requests.ReadTimeout(f"{command[0]} took more than {timeout:g} s")
    except requests.Timeout:
        if engine.exec_inspect(key)["Running"]:
            raise  # else it has ended, and only what it started holds its output open
    return _status(engine, key)


def _start(
    engine: docker.APIClient,
    name: str,
    command: Sequence[str],
    timeout: float,
    user: str,
    environment: Mapping[str, str] | None,
) -> tuple[str, Iterator[bytes]]:
    """Start a command; its key at the engine, and what it writes as a stream of frames."""
    made = engine.exec_create(
        name, list(command), stdin=False, user=user, environment=dict(environment or {})
    )
    # Not by exec_start(): that waits for the output without any limit.
    url = f"{engine.base_url}/v{engine.api_version}/exec/{made['Id']}/start"
    answer = engine.post(url, json={"Detach": False, "Tty": False}, timeout=timeout, stream=True)
    answer.raise_for_status()
    return made["Id"], _pieces(answer, command[0], timeout)


def _status(engine: docker.APIClient, key: str) -> int:
    status = engine.exec_inspect(key)["ExitCode"]
    return -1 if status is None else int(status)


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
    while at + HEAD.size <= len(raw):
        kind, size = HEAD.unpack_from(raw, at)
        parts.setdefault(kind, []).append(raw[at + HEAD.size : at + HEAD.size + size])
        at += HEAD.size + size
    return b"".join(parts[1]), b"".join(parts[2])


def opens(ran: Ran) -> bool | None:
    """Whether :data:`OPEN` could; None where it failed for anything else than the rules of the container."""
    if ran.status == 0:
        return True
    return False if FORBIDDEN in ran.err else None


def is_script(engine: docker.APIClient, key: str, path: str) -> bool:
    """Whether there is a script at this place in a container, as the engine sees its files."""
    url = f"{engine.base_url}/v{engine.api_version}/containers/{key}/archive"
    said = engine.head(url, params={"path": path}, timeout=engine.timeout)
    if said.status_code != requests.codes.ok:
        return False
    mode = int(json.loads(base64.b64decode(said.headers["X-Docker-Container-Path-Stat"]))["mode"])
    return may_run(mode & 0o777 | (0 if mode & GO_SPECIAL else stat.S_IFREG))
