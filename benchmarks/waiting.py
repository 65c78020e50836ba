"""The longest time for which the pool's code holds the hub's event loop while 300 spawns wait.

Two real hubs, one after the other, get the same users: the stock hub with a spawner that waits in its start,
and the hub with the pool, where everybody waits for one busy GPU.  A hook in the hub times every pass of its
event loop, and in it every step of the pool's code (see _trace.py).  A pass is what everybody else has to wait
for; the pool's part of it is summed over all tasks that ran in that pass, so 300 that wake together count as
one.  What the stock spawner does inside the pool's calls is not counted.  The phases:

  arrive    one start after the other is asked for, until all wait
  wait      nothing else happens
  pages     each opens its progress page
  watched   all pages are open, nothing else happens
  move      the session that holds the GPU ends, the next one gets it, everybody's place changes; some times
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _hub import VERDICTS, Hub, folder, load_note, parser, table, until, verdict
from burst import Client, session

PHASES = ("arrive", "wait", "pages", "watched", "move")
WHAT = ("pass", "ours", "ours_cpu")


@dataclass
class Phases:
    """When each phase began and ended."""

    spans: dict[str, tuple[float, float]] = field(default_factory=dict)

    def worst(self, trace: Path, phase: str) -> dict[str, float]:
        """Milliseconds of the longest pass of a phase, and of the pool's longest part of one."""
        begin, end = self.spans[phase]
        found = dict.fromkeys(WHAT, 0.0)
        for line in trace.read_text().splitlines():
            said: dict[str, float] = json.loads(line)
            if begin < said["at"] <= end + 1:  # a line tells of the half second before it
                found = {key: max(found[key], said[key] * 1000) for key in WHAT}
        return found


def ready(hub: Hub, user: str) -> bool:
    servers: dict[str, Any] = hub.api("GET", f"users/{user}").json().get("servers") or {}
    return bool(servers.get("", {}).get("ready"))


async def run(hub: Hub, users: list[str], moves: int, pause: float) -> Phases:
    """Take one hub through the phases; the first user holds the GPU where there is one to hold."""
    made, client = Phases(), Client(hub, "stream")
    pooled = hub.given["arm"] == "pool"

    async def span(phase: str, work: Any) -> None:
        await asyncio.sleep(1.5)  # what the last phase left ends, and its last line is written
        began = time.time()
        await work
        made.spans[phase] = began, time.time()

    async def arrive() -> None:
        for user in users:
            answer = await client.ask("POST", f"users/{user}/server")
            if answer.code not in (201, 202):
                raise SystemExit(f"{user} got {answer.code}: {answer.body!r}\n{hub.tail()}")

    pages: list[asyncio.Task[bool]] = []
    seen: set[str] = set()

    def page(user: str) -> asyncio.Task[bool]:
        def read(chunk: bytes) -> None:
            seen.add(user)

        return asyncio.create_task(client.follow(user, read))

    async def open_pages() -> None:
        pages.extend(page(user) for user in users[1:])
        await asyncio.to_thread(until, lambda: len(seen) >= len(users) - 1, "every page to open")

    async def move() -> None:
        for holder, after in itertools.islice(itertools.pairwise(users), moves):
            await client.ask("DELETE", f"users/{holder}/server")
            await asyncio.to_thread(until, functools.partial(ready, hub, after), "the next session")
            await asyncio.sleep(pause / 2)  # until every page has been told

    await span("arrive", arrive())
    if pooled:
        await asyncio.to_thread(until, lambda: ready(hub, users[0]), "the first session")
    await span("wait", asyncio.sleep(pause))
    await span("pages", open_pages())
    await span("watched", asyncio.sleep(pause))
    if pooled:
        await span("move", move())
    await asyncio.sleep(1.5)
    for task in pages:
        task.cancel()
    await asyncio.gather(*pages, return_exceptions=True)
    return made


def measure(
    parent: Path, arm: str, users: list[str], moves: int, pause: float
) -> dict[str, dict[str, float]]:
    """The worst of each phase in one hub."""
    trace = parent / f"{arm}.trace"
    with session() as address:
        given = {"session": "null" if arm == "pool" else "waiting", "address": address, "gpus": 1}
        with Hub(parent, arm=arm, trace=str(trace), slow_spawn_timeout=0, **given) as hub:
            hub.add_users(users)
            made = asyncio.run(run(hub, users, moves, pause))
    return {phase: made.worst(trace, phase) for phase in PHASES if phase in made.spans}


def main() -> None:
    line = parser(__doc__)
    line.add_argument("--users", type=int, default=300, help="users who wait (300)")
    line.add_argument("--moves", type=int, default=3, help="moves of the queue (3)")
    line.add_argument(
        "--pause", type=float, default=6, help="seconds of the phases in which nothing happens (6)"
    )
    options = line.parse_args()
    users = [f"user{n}" for n in range(options.users + 1)]
    with folder(options.dir) as parent:
        stock, pool = (measure(parent, arm, users, options.moves, options.pause) for arm in ("stock", "pool"))
    lines = []
    for phase, found in pool.items():
        before = stock.get(phase)
        lines.append(
            (
                phase,
                f"{before['pass']:.1f}" if before else "-",
                f"{found['pass']:.1f}",
                f"{found['ours']:.1f}",
                f"{found['ours_cpu']:.1f}",
            )
        )
    head = ("", "stock: a pass", "pool: a pass", "of it ours", "ours, CPU")
    table(f"longest hold of the event loop while {options.users} spawns wait, ms", head, lines)
    passes = [max(found["pass"] for phase, found in arm.items() if phase != "move") for arm in (stock, pool)]
    ratio = f"{passes[1] / passes[0]:.2f} (passes)"
    summary = []
    for key, clock in (("ours", "wall"), ("ours_cpu", "CPU")):
        ours = max(found[key] for found in pool.values())
        what = f"(c) our longest hold, {options.users} waiting, {clock}"
        summary.append(
            verdict(what, f"{ours:.1f} ms", f"{passes[0]:.1f} ms (a pass)", ratio, "< 20 ms", ours < 20)
        )
    table("", VERDICTS, summary)
    print(load_note())


if __name__ == "__main__":
    main()
