"""An HTTP proxy on a unix socket between a client and the Docker engine that fails as it is told to.

Streams pass through as they come (pulls, builds, logs), and a connection that is upgraded (attach, exec)
becomes a plain pipe.  Rules are set from the test's thread; the proxy has a thread and an event loop of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import threading
import time
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Action = Literal["delay", "status", "drop_before", "drop_after", "hang"]
Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Client = tuple[asyncio.StreamReader, asyncio.StreamWriter | None]

VERSION = re.compile(r"^/v[0-9.]+")
BLOCK, HEAD = 65536, 1 << 20
END = (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError)


@dataclass(slots=True, eq=False)
class Rule:
    """What happens to the next ``count`` requests (None: all) whose method and path both match.

    ``path`` is searched in the path with its query, without the API version.  ``delay`` waits and then
    forwards, even if the client has gone; ``status`` answers without forwarding; ``drop_before`` closes the
    connection without forwarding; ``drop_after`` once the engine has done what was asked; ``hang`` never
    answers and never forwards.
    """

    action: Action
    method: str
    path: str
    count: int | None = None
    seconds: float = 0
    status: int = 500
    message: str = "told to fail"
    hits: int = 0


@dataclass(slots=True)
class Seen:
    """A request that came by; ``answer`` is the engine's status, or what the proxy did instead."""

    method: str
    path: str
    answer: str = ""
    at: float = field(default_factory=time.time)


class FaultProxy:
    """The proxy; it listens from ``start()`` to ``close()``."""

    def __init__(self, socket: Path, upstream: Path) -> None:
        self.socket, self.upstream = socket, upstream
        self.host = f"unix://{socket}"
        self._rules: list[Rule] = []
        self._seen: list[Seen] = []
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="fault-proxy")
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    # --- from the test's thread ----------------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()
        self.accept()

    def close(self) -> None:
        self.refuse()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
        self.socket.unlink(missing_ok=True)

    def rule(self, action: Action, method: str, path: str, count: int | None = None, **given: Any) -> Rule:
        """Add a rule; the first that matches and is not used up counts."""
        made = Rule(action, method, path, count, **given)
        with self._lock:
            self._rules.append(made)
        return made

    def clear(self) -> None:
        """Forget all rules.  What hangs or waits goes on doing so."""
        with self._lock:
            self._rules.clear()

    @contextlib.contextmanager
    def fault(self, action: Action, method: str, path: str, **given: Any) -> Iterator[Rule]:
        """Have a rule for as long as the block runs."""
        made = self.rule(action, method, path, **given)
        try:
            yield made
        finally:
            with self._lock, contextlib.suppress(ValueError):
                self._rules.remove(made)

    def refuse(self) -> None:
        """Refuse new connections and break those that are open, as while no engine runs."""
        self._call(self._refuse())

    def accept(self) -> None:
        """Listen again."""
        self._call(self._accept())

    @contextlib.contextmanager
    def refusing(self) -> Iterator[None]:
        """Refuse connections for as long as the block runs."""
        self.refuse()
        try:
            yield
        finally:
            self.accept()

    def seen(self, method: str = "", path: str = "") -> list[Seen]:
        """The requests that came by and match, in their order."""
        with self._lock:
            return [one for one in self._seen if method in ("", one.method) and re.search(path, one.path)]

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    # --- in the proxy's thread -----------------------------------------------------------------------

    async def _accept(self) -> None:
        self.socket.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._connected, self.socket, limit=HEAD, backlog=1024)

    async def _refuse(self) -> None:
        """Leave the socket in place: to connect is refused, as with an engine that was killed."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, *client: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while await self._request(client):
                continue
        except (*END, asyncio.CancelledError):
            return  # a broken connection is what this proxy is for
        finally:
            self._tasks.discard(task)
            client[1].close()

    async def _request(self, client: Pair) -> bool:
        """Serve one request; True when the connection can take another one."""
        reader, writer = client
        head = await reader.readuntil(b"\r\n\r\n")
        method, target, _ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)
        seen = Seen(method, VERSION.sub("", target))
        rule = self._match(seen)
        action = seen.answer = rule.action if rule else ""
        if action == "hang":
            await reader.read()  # until the client gives up, or the proxy is closed
        if action in ("hang", "drop_before"):
            return False
        if rule is not None and action == "status":
            async for _ in _body(head, reader, request=True):
                continue
            writer.write(_failure(rule))
            await writer.drain()
            return True
        await asyncio.sleep(rule.seconds if rule else 0)
        engine = await asyncio.open_unix_connection(self.upstream, limit=HEAD)
        try:
            answered = await _forward(
                head, seen, (reader, None if action == "drop_after" else writer), engine
            )
            return answered and action != "drop_after"
        finally:
            engine[1].close()

    def _match(self, seen: Seen) -> Rule | None:
        with self._lock:
            self._seen.append(seen)
            for rule in self._rules:
                left = rule.count is None or rule.hits < rule.count
                if left and re.fullmatch(rule.method, seen.method) and re.search(rule.path, seen.path):
                    rule.hits += 1
                    return rule
        return None


async def _forward(head: bytes, seen: Seen, client: Client, engine: Pair) -> bool:
    """Pass a request on and its answer back; True when its end was seen.  A mute client gets no answer."""
    sending = asyncio.create_task(_send(head, client[0], engine[1]))
    try:
        answer = await engine[0].readuntil(b"\r\n\r\n")
        status = int(answer.split(b" ", 2)[1])
        seen.answer = seen.answer or str(status)
        await _write(client, answer)
        empty = seen.method == "HEAD" or status in (204, 304)
        framed = bool(_header(answer, b"transfer-encoding") or _header(answer, b"content-length"))
        if status == 101 or (b"docker.raw-stream" in answer and not framed):
            await sending
            await _pipe(client, engine)
            return False
        if not empty:
            async for block in _body(answer, engine[0], request=False):
                await _write(client, block)
        await sending
        return empty or framed
    finally:
        sending.cancel()


async def _write(client: Client, block: bytes) -> None:
    if client[1] is not None:
        client[1].write(block)
        await client[1].drain()


def _header(head: bytes, name: bytes) -> bytes:
    found = re.search(rb"\r\n" + name + rb":[ \t]*([^\r\n]*)", head, re.IGNORECASE)
    return found.group(1).strip().lower() if found else b""


async def _body(head: bytes, reader: asyncio.StreamReader, *, request: bool) -> Any:
    """Yield the raw blocks of a body as they come, chunk marks included."""
    if b"chunked" in _header(head, b"transfer-encoding"):
        size = -1
        while size != 0:
            line = await reader.readuntil(b"\r\n")
            size = int(line.split(b";")[0], 16)
            yield line + await reader.readexactly(size + 2)
    elif length := _header(head, b"content-length"):
        left = int(length)
        while left:
            block = await reader.read(min(left, BLOCK))
            if not block:
                raise asyncio.IncompleteReadError(b"", left)
            left -= len(block)
            yield block
    elif not request:
        while block := await reader.read(BLOCK):
            yield block


async def _send(head: bytes, reader: asyncio.StreamReader, engine: asyncio.StreamWriter) -> None:
    engine.write(head)
    async for block in _body(head, reader, request=True):
        engine.write(block)
        await engine.drain()
    await engine.drain()


async def _pipe(client: Client, engine: Pair) -> None:
    """Pass bytes both ways until the engine is at its end; the client may close its half before."""

    async def copy(source: asyncio.StreamReader, sink: Client) -> None:
        with contextlib.suppress(*END):
            while block := await source.read(BLOCK):
                await _write(sink, block)
            if sink[1] is not None:
                sink[1].write_eof()

    asking = asyncio.create_task(copy(client[0], engine))
    try:
        await copy(engine[0], client)
    finally:
        asking.cancel()


def _failure(rule: Rule) -> bytes:
    body = json.dumps({"message": rule.message})
    head = f"HTTP/1.1 {rule.status} Told\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return (head + body).encode()
