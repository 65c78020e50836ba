"""A burst of users who all start their server at once, with a session that costs nothing.

The spawner returns a server that runs already, so hub, proxy and pool are all there is to measure.  One real
hub after the other gets the same burst: the stock hub as it comes, with a limit on concurrent spawns, which
turns users away, who ask again when its ``Retry-After`` says; the same with users who ask again every second
instead; the stock hub without that limit; and the hub with the pool, which lets everybody in and bounds the
launches under way.  A user asks for the server, then follows it as the page does, by its progress stream, or as
scripts do, by asking for the user's model twice a second (--watch).
The rate is the servers that became ready divided by the time from the first request until the last one; a
start that fails, because the hub is held for longer than it waits for a server to answer, counts for nothing.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from _hub import HERE, VERDICTS, Hub, folder, load_note, parser, table, until, verdict
from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest, HTTPResponse

POLL_INTERVAL = 0.5
AGAIN = 1.0
"""Seconds after which an impatient user who was turned away asks again."""

IMPATIENT = "stock, asked again each second"
ARMS = {
    "stock, as it comes": {"arm": "stock", "concurrent_spawn_limit": 100},
    IMPATIENT: {"arm": "stock", "concurrent_spawn_limit": 100},
    "stock, no limit": {"arm": "stock", "concurrent_spawn_limit": 0},
    "pool": {"arm": "pool"},
}


@dataclass
class Burst:
    """What a burst took: seconds of each user, of all of them, and of the hub's CPU."""

    waits: list[float] = field(default_factory=list)
    seconds: float = 0.0
    cpu: float = 0.0
    turned_away: int = 0
    failed: int = 0

    @property
    def rate(self) -> float:
        """Servers that became ready, by second of the whole burst."""
        return len(self.waits) / self.seconds


class Client:
    """The users of one hub."""

    def __init__(self, hub: Hub, watch: str, patient: bool = True) -> None:
        self.hub, self.watch, self.patient = hub, watch, patient
        self.burst = Burst()
        # A page that is closed while its stream is open is an error to the client, and none to us.
        logging.getLogger("tornado.application").setLevel(logging.CRITICAL)
        self._http = AsyncHTTPClient(force_instance=True, max_clients=2000)

    async def ask(self, method: str, path: str, **kwargs: object) -> HTTPResponse:
        request = HTTPRequest(
            f"{self.hub.address}/{path}",
            method=method,
            headers={"Authorization": f"token {self.hub.token}"},
            body="{}" if method == "POST" else None,
            connect_timeout=2,
            request_timeout=300,
            **kwargs,  # type: ignore[arg-type]
        )
        while True:
            try:
                return await self._http.fetch(request, raise_error=False)
            except (OSError, HTTPClientError):
                if self.hub.process.poll() is not None:
                    raise SystemExit(f"the hub has ended:\n{self.hub.tail()}") from None
                # More connections than the hub's socket keeps waiting; the kernel would try again after minutes.
                await asyncio.sleep(AGAIN / 10)

    async def follow(self, user: str, seen: Callable[[bytes], None] = lambda chunk: None) -> bool:
        """Read the progress stream until the server is ready or has failed; ``seen`` gets what arrives."""
        ended: list[dict[str, object]] = []

        def read(chunk: bytes) -> None:
            seen(chunk)
            for line in chunk.splitlines():
                if line.startswith(b"data:") and (b'"ready": true' in line or b'"failed": true' in line):
                    ended.append(json.loads(line[5:]))

        while not ended:
            await self.ask("GET", f"users/{user}/server/progress", streaming_callback=read)
        return bool(ended[-1].get("ready"))

    async def _poll(self, user: str) -> bool:
        """Ask until the server is ready, or until its start has failed."""
        while True:
            answer = await self.ask("GET", f"users/{user}")
            if answer.code == 200:
                server = json.loads(answer.body)["servers"].get("")
                if server is None or server["ready"]:
                    return server is not None
            await asyncio.sleep(POLL_INTERVAL)

    async def one(self, user: str) -> None:
        began = time.monotonic()
        while (answer := await self.ask("POST", f"users/{user}/server")).code == 429:
            self.burst.turned_away += 1
            await asyncio.sleep(float(answer.headers["Retry-After"]) if self.patient else AGAIN)
        if answer.code not in (201, 202, 500):
            raise SystemExit(f"{user} got {answer.code}: {answer.body!r}\n{self.hub.tail()}")
        ready = answer.code == 201
        if answer.code == 202:
            ready = await (self.follow(user) if self.watch == "stream" else self._poll(user))
        if ready:
            self.burst.waits.append(time.monotonic() - began)
        else:
            self.burst.failed += 1

    async def run(self, users: list[str]) -> Burst:
        cpu, began = self.hub.cpu(), time.monotonic()
        await asyncio.gather(*(self.one(user) for user in users))
        self.burst.seconds = time.monotonic() - began
        self.burst.cpu = self.hub.cpu() - cpu
        if len(self.burst.waits) < 2:
            raise SystemExit(f"nobody's server started:\n{self.hub.tail()}")
        return self.burst


@contextmanager
def session() -> Iterator[str]:
    """The one notebook server that everybody gets."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    address = f"http://127.0.0.1:{port}"
    process = subprocess.Popen([sys.executable, str(HERE / "_session.py"), str(port)])

    def listens() -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) == 0

    try:
        until(listens, "the notebook server")
        yield address
    finally:
        process.kill()
        process.wait()


def burst(parent: Path, name: str, users: int, watch: str, proxy: str) -> Burst:
    """Send the burst to a fresh hub."""
    names = [f"user{n}" for n in range(users)]
    with session() as address:
        given = {**ARMS[name], "session": "null", "address": address, "gpus": users, "proxy": proxy}
        with Hub(parent, **given) as hub:
            hub.add_users(names)
            return asyncio.run(Client(hub, watch, patient=name != IMPATIENT).run(names))


def main() -> None:
    line = parser(__doc__)
    line.add_argument("--users", type=int, default=400, help="users who start at once (400)")
    line.add_argument(
        "--watch", choices=("stream", "poll"), default="stream", help="how users follow (stream)"
    )
    line.add_argument(
        "--proxy",
        choices=("traefik", "none"),
        default="none",
        help="none, the default: one that does nothing",
    )
    line.add_argument("--only", choices=tuple(ARMS), action="append", help="only this hub (repeatable)")
    options = line.parse_args()
    found: dict[str, Burst] = {}
    with folder(options.dir) as parent:
        for name in options.only or ARMS:
            found[name] = burst(parent, name, options.users, options.watch, options.proxy)
    lines = []
    for name, made in found.items():
        waits = sorted(made.waits)
        lines.append(
            (
                name,
                f"{made.rate:.1f}/s",
                f"{statistics.median(waits):.1f} s",
                f"{waits[int(len(waits) * 0.99)]:.1f} s",
                f"{1000 * made.cpu / len(waits):.0f} ms",
                str(made.turned_away),
                str(made.failed),
            )
        )
    title = f"{options.users} users at once, null session, followed by {options.watch}, proxy {options.proxy}"
    table(title, ("", "rate", "p50", "p99", "hub CPU a spawn", "turned away", "failed"), lines)
    summary = []
    for name in found:
        if "pool" in found and name != "pool":
            pool, stock = found["pool"].rate, found[name].rate
            what = f"(d) burst, rate against: {name}"
            met = pool >= 2 * stock
            summary.append(
                verdict(what, f"{pool:.1f}/s", f"{stock:.1f}/s", f"{pool / stock:.2f}", "≥ 2", met)
            )
    table("", VERDICTS, summary)
    print(load_note())


if __name__ == "__main__":
    main()
