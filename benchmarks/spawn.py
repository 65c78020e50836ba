"""Spawn with the pool against the stock SimpleLocalProcessSpawner, and against the stock DockerSpawner.

Two real hubs run side by side, the same but for the pool: same JupyterHub, proxy, database and notebook
server.  Users start their server in one and in the other by turns.  A start is measured from the request
to the answer that the server is ready; hub CPU is that of the hub process with all its threads meanwhile.
Both hubs ask a server that starts every 50 ms whether it answers: the stock pauses are drawn at random from
up to five seconds, and would be most of what is measured.
First with a notebook server in miniature that is up in a moment, then with JupyterLab, then in containers of
the same image (the launch check is remembered by then).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import docker
from _hub import MINIATURE, ROOT, VERDICTS, Hub, folder, load_note, parser, spread, table, until, verdict

from jupyterhub_gpupool.sessions.docker import connect
from jupyterhub_gpupool.spawners.network import ensure_network

ARMS = ("stock", "pool")
NETWORK = "gpupool-benchmark"
"""Network of the containers, and how the names of their volumes begin."""


@dataclass
class Figures:
    """Milliseconds of every start and stop of one arm."""

    start_wall: list[float] = field(default_factory=list)
    start_cpu: list[float] = field(default_factory=list)
    stop_wall: list[float] = field(default_factory=list)
    stop_cpu: list[float] = field(default_factory=list)


def one(hub: Hub, user: str, figures: Figures | None) -> None:
    """Start and stop one server."""
    wall, cpu = time.perf_counter(), hub.cpu()
    answer = hub.api("POST", f"users/{user}/server", json={})
    started = (time.perf_counter() - wall) * 1000, (hub.cpu() - cpu) * 1000
    if answer.status_code != 201:
        raise SystemExit(f"{user} got {answer.status_code}: {answer.text}\n{hub.tail()}")
    wall, cpu = time.perf_counter(), hub.cpu()
    if hub.api("DELETE", f"users/{user}/server").status_code == 202:
        until(lambda: not hub.api("GET", f"users/{user}").json()["servers"], "the server to stop")
    stopped = (time.perf_counter() - wall) * 1000, (hub.cpu() - cpu) * 1000
    if figures is not None:
        figures.start_wall.append(started[0])
        figures.start_cpu.append(started[1])
        figures.stop_wall.append(stopped[0])
        figures.stop_cpu.append(stopped[1])


def measure(parent: Path, session: str, spawns: int, warm: int, image: str = "") -> dict[str, Figures]:
    """Start servers by turns in two hubs; the first ``warm`` of each are not counted."""
    figures = {arm: Figures() for arm in ARMS}
    users = [f"user{n}" for n in range(spawns + warm)]
    with ExitStack() as stack:
        # A start's request is answered when the server is ready, so no figure depends on asking again.
        given = {
            "session": session,
            "miniature": str(MINIATURE),
            "image": image,
            "network": NETWORK,
            "slow_spawn_timeout": 120,
            "longest_pause": 0.1,
        }
        if image:
            given["hub_ip"] = ensure_network(connect(), NETWORK, "benchmark")
        hubs = {arm: stack.enter_context(Hub(parent, arm=arm, **given)) for arm in ARMS}
        for hub in hubs.values():
            hub.add_users(users)
        for number, user in enumerate(users):
            for arm in ARMS if number % 2 else reversed(ARMS):
                one(hubs[arm], user, figures[arm] if number >= warm else None)
    return figures


def report(session: str, figures: dict[str, Figures], *, judge_cpu: bool = True) -> None:
    """Print the figures; in containers, hub CPU has no goal: the pool reads back what each of them got."""
    stock, pool = figures["stock"], figures["pool"]
    lines = []
    for name in ("start_wall", "start_cpu", "stop_wall", "stop_cpu"):
        a, b = getattr(stock, name), getattr(pool, name)
        more = [y - x for x, y in zip(a, b, strict=True)]
        ratio = statistics.median(b) / statistics.median(a)
        lines.append((name.replace("_", ", ") + ", ms", spread(a), spread(b), f"{ratio:.3f}", spread(more)))
    title = f"{session} notebook server, {len(stock.start_wall)} starts by turns: median (middle half)"
    table(title, ("", "stock", "pool", "ratio", "pool − stock"), lines)
    wall = statistics.median(pool.start_wall) / statistics.median(stock.start_wall)
    cpu = [statistics.median(arm.start_cpu) for arm in (stock, pool)]
    # By turns, so that each pair met the same machine: the median of the differences, not their medians' difference.
    more = statistics.median(y - x for x, y in zip(stock.start_cpu, pool.start_cpu, strict=True))
    lines = [
        verdict(
            f"(a) spawn, {session}: wall",
            f"{statistics.median(pool.start_wall):.0f} ms",
            f"{statistics.median(stock.start_wall):.0f} ms",
            f"{wall:.3f}",
            "≤ 1.05",
            wall <= 1.05,
        ),
    ]
    if judge_cpu:
        lines.append(
            verdict(
                f"(a) spawn, {session}: hub CPU",
                f"{cpu[1]:.1f} ms",
                f"{cpu[0]:.1f} ms",
                f"{more:+.2f} ms (pairs)",
                "≤ 1 ms more",
                more <= 1,
            )
        )
    table("", VERDICTS, lines)


def built() -> str:
    """What `make image` built last, for CPUs before GPUs; empty when nothing."""
    for variant in ("cpu", "gpu"):
        file = ROOT / "images" / "tensorflow" / f"digest-{variant}"
        if file.exists():
            return file.read_text().strip()
    return ""


@contextmanager
def engine() -> Iterator[None]:
    """Remove what the containers' hubs leave on the engine: a benchmark's hubs are killed."""
    client = docker.from_env()
    try:
        yield
    finally:
        for container in client.containers.list(all=True, filters={"network": NETWORK}):
            container.remove(force=True, v=True)
        for network in client.networks.list(names=[NETWORK]):
            network.remove()
        for volume in client.volumes.list():
            if volume.name.startswith(NETWORK):
                volume.remove()


def main() -> None:
    line = parser(__doc__)
    line.add_argument(
        "--spawns", type=int, default=30, help="starts in each hub with the miniature server; 0: none (30)"
    )
    line.add_argument("--real", type=int, default=4, help="starts in each hub with JupyterLab; 0: none (4)")
    line.add_argument(
        "--containers", type=int, default=10, help="starts in each hub in containers; 0: none (10)"
    )
    line.add_argument("--image", help="image of the containers (default: what `make image` built)")
    options = line.parse_args()
    image = options.image or built()
    with folder(options.dir) as parent:
        if options.spawns >= 2:
            report("miniature", measure(parent, "miniature", options.spawns, 3))
        if options.real >= 2:
            report("JupyterLab", measure(parent, "real", options.real, 1))
        if options.containers >= 2 and image:
            with engine():
                figures = measure(parent, "container", options.containers, 2, image)
            report("in containers", figures, judge_cpu=False)
        elif options.containers:
            print("\nNo figure for containers: `make image VARIANT=cpu` builds the image for it.")
    print(load_note())


if __name__ == "__main__":
    main()
