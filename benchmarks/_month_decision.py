"""One decision with a long queue: the pure part, as it runs under the write lock."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from jupyterhub_gpupool import fairness, placement
from jupyterhub_gpupool.fairness import Asking, Claims, Context, Past, Queued, Running, Wanted
from jupyterhub_gpupool.model import Device, Kind, Limit, Wish

NOW = 5e3
GROUPS, USERS = 8, 200
ROUNDS = 30
GUARANTEED = {f"group:group{n}": Limit(gpus=16, guaranteed_gpus=4, gpu_hours=900) for n in range(GROUPS)}
LIMITS = {**GUARANTEED, "user:*": Limit(sessions=2)}
USAGE = {scope: fairness.Usage(3, 7.5) for scope in GUARANTEED}
USED_HOURS = dict.fromkeys(GUARANTEED, 100.0)
DEVICES = tuple(Device(f"g{n}", f"n{n // 8}", n % 8, "GPU", 81920) for n in range(64))
HELD = {device.id: 120 for device in DEVICES[:60]}


def cpu_ms(work: Callable[[], object]) -> float:
    """CPU milliseconds of this thread."""
    began = time.thread_time()
    work()
    return 1000 * (time.thread_time() - began)


class Long:
    """A queue of so many requests, of 200 people in eight groups, before 64 GPUs of which four are free."""

    def __init__(self, waiting: int) -> None:
        self.queue = [
            Queued(
                f"l{n}", f"user{n % USERS}", float(n % 8 + 1), float(n), n, f"group{n % GROUPS}", n % 50 + 1
            )
            for n in range(waiting)
        ]
        self.asked = [Asking(item.lease, item.user, (item.group,), item.gpus) for item in self.queue]
        hours = {f"group:group{n}": 10.0 * n for n in range(GROUPS)}
        hours |= {f"user:user{n}": float(n) for n in range(USERS)}
        even = fairness.weights(dict.fromkeys(GUARANTEED, 10.0), dict.fromkeys(GUARANTEED, 4.0))
        self.context = Context(NOW, hours, even)
        self.guaranteed = fairness.guarantees(LIMITS, 0.0)

    def order(self, name: str) -> list[Queued]:
        """The order alone."""
        return fairness.order(name, self.queue, self.context)

    def decide(self, name: str) -> None:
        """Limits and budgets of all, the order, and a grant for each until nothing that is asked for fits."""
        claims = Claims(self.asked, self.guaranteed, self._admit)
        owners = {(item.user, item.group) for item in self.queue}
        budgets = {key: fairness.budget(key[0], (key[1],), USED_HOURS, LIMITS, NOW) for key in owners}
        own = claims.admissions
        queued = [replace(item, own=True) if own[item.lease].own else item for item in self.queue]
        tried, used = set[Wish](), dict(HELD)
        for item in fairness.order(name, queued, self.context):
            wish = Wish(Kind.GPU, int(item.gpus))
            if wish in tried or not budgets[item.user, item.group].left:
                continue
            if not claims.admit(self.asked[item.ticket]).allowed:
                continue
            placed = placement.choose(wish, DEVICES, placement.Occupancy(used))
            if placed is None:
                tried.add(wish)
                continue
            used.update({one.device.id: one.cells for one in placed})
            claims.granted(item.lease)

    def _admit(self, item: Asking, left: Mapping[str, float]) -> fairness.Admission:
        return fairness.admit(item.user, item.groups, item.gpus, USAGE, LIMITS, left)

    def times(self, name: str) -> tuple[list[float], list[float]]:
        """CPU milliseconds of the order alone, and of the whole decision, in every round."""
        rounds = [
            (cpu_ms(lambda: self.order(name)), cpu_ms(lambda: self.decide(name))) for _ in range(ROUNDS)
        ]
        return [alone for alone, _ in rounds], [whole for _, whole in rounds]

    def waits_ms(self) -> float:
        """CPU milliseconds of the expected wait of every place."""
        serves = {device.id: 120 for device in DEVICES}
        wanted = [Wanted(serves, "p", int(item.gpus)) for item in self.queue]
        running = [Running({device.id: 120}, 600.0, "p") for device in DEVICES]
        past = Past({"p": [float(n) for n in range(100, 40000, 100)]})
        places = {device.id: (device.node, 120) for device in DEVICES}
        return cpu_ms(lambda: fairness.expected_waits(wanted, running, places, past))
