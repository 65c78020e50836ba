"""The pool in Prometheus' text format, on a listener of its own: behind the proxy everybody is loopback."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ..conditions import Condition
from ..ledger import Snapshot
from ..model import Decision, Health
from . import shapes
from .stream import Feed

OLD = 60.0
"""Seconds after which a state is no longer reported: a figure that stands still looks like a measured one."""

_ANYBODY = shapes.Person(None)
_DEVICE = ["device", "node", "model"]


class Counters(Protocol):
    """What a sweep counts."""

    def verdict(self, decision: str) -> None: ...

    def reclaim(self, reason: str) -> None: ...

    def swept(self, seconds: float) -> None: ...

    def waited(self, seconds: float) -> None: ...

    def gpu_seconds(self, group: str, state: str, seconds: float) -> None: ...

    def measured(self, conditions: Mapping[str, Condition]) -> None: ...


class Metrics:
    """What the sweep counts, and the present state of the pool."""

    def __init__(self, registry: CollectorRegistry, feed: Feed | None = None) -> None:
        self._registry = registry
        self._verdicts = Counter(
            "gpupool_verdicts", "Verdicts on active leases, by decision", ["verdict"], registry=registry
        )
        self._reclaims = Counter(
            "gpupool_reclaims", "Sessions that the service stopped, by reason", ["reason"], registry=registry
        )
        self._duration = Histogram(
            "gpupool_sweep_duration_seconds",
            "Duration of whole sweeps",
            buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
            registry=registry,
        )
        self._success = Gauge(
            "gpupool_sweep_last_success_timestamp_seconds",
            "When the last whole sweep ended",
            registry=registry,
        )
        self._waits = Histogram(
            "gpupool_queue_wait_seconds",
            "How long granted requests had waited",
            buckets=(1, 10, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 24 * 3600, 72 * 3600),
            registry=registry,
        )
        self._seconds = Counter(
            "gpupool_gpu_seconds", "GPU-seconds used, idle and waiting", ["group", "state"], registry=registry
        )
        self._notices = Counter(
            "gpupool_notices",
            "Notices by channel and what became of them",
            ["channel", "outcome"],
            registry=registry,
        )
        for decision in Decision:
            self._verdicts.labels(decision.value)
        for reason in ("idle", "max_age", "share", "drain", "budget"):
            self._reclaims.labels(reason)
        self._conditions = ConditionCollector()
        registry.register(self._conditions)
        if feed is not None:
            registry.register(PoolCollector(feed))

    def verdict(self, decision: str) -> None:
        """Count a verdict."""
        self._verdicts.labels(decision).inc()

    def reclaim(self, reason: str) -> None:
        """Count a session that the service stopped; ``reason`` is from a small fixed set."""
        self._reclaims.labels(reason).inc()

    def notice(self, channel: str, outcome: str) -> None:
        """Count a notice that was ``delivered``, ``retried`` or ``failed`` for good."""
        self._notices.labels(channel, outcome).inc()

    def waited(self, seconds: float) -> None:
        """Note how long a request had waited that was granted."""
        self._waits.observe(seconds)

    def gpu_seconds(self, group: str, state: str, seconds: float) -> None:
        """Count GPU-seconds of a group (empty: none was charged) by state: used, idle or waiting."""
        self._seconds.labels(group, state).inc(max(0.0, seconds))

    def measured(self, conditions: Mapping[str, Condition]) -> None:
        """Note what the devices tell of themselves; what they do not tell has no sample."""
        self._conditions.latest = conditions, time.monotonic()

    def swept(self, seconds: float) -> None:
        """Note a whole sweep that ends now."""
        self._duration.observe(seconds)
        self._success.set_to_current_time()

    def listen(self, port: int, address: str = "127.0.0.1") -> int:
        """Serve the text on a thread of its own; returns the port.  Raises OSError when it is taken."""
        server: Any
        server, _ = start_http_server(port, address, registry=self._registry)
        return int(server.server_port)


class ConditionCollector(Collector):
    """What the devices told of themselves in the last look; nothing at all when that is old."""

    def __init__(self) -> None:
        self.latest: tuple[Mapping[str, Condition], float] = {}, 0.0

    def describe(self) -> list[Metric]:
        """Name the metrics without looking."""
        return list(_condition_families().values())

    def collect(self) -> Iterator[Metric]:
        """Report each figure that is known."""
        conditions, at = self.latest
        families = _condition_families()
        for device, condition in conditions.items() if time.monotonic() - at <= OLD else ():
            for name, family in families.items():
                if (value := getattr(condition, name)) is not None:
                    family.add_metric([device], value)
        yield from families.values()


def _condition_families() -> dict[str, GaugeMetricFamily | CounterMetricFamily]:
    """The metric of each field of :class:`Condition`."""
    label = ["device"]
    return {
        "power_watts": GaugeMetricFamily("gpupool_device_power_watts", "Power that it draws", labels=label),
        "temperature_celsius": GaugeMetricFamily(
            "gpupool_device_temperature_celsius", "Temperature of the GPU", labels=label
        ),
        "ecc_errors": CounterMetricFamily(  # the name in the text ends in _total
            "gpupool_device_ecc_errors",
            "Memory errors since the driver was loaded that could not be corrected",
            labels=label,
        ),
    }


class PoolCollector(Collector):
    """The last state that the feed has read; nothing at all when that is old."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed

    def describe(self) -> list[Metric]:
        """Name the metrics without asking for the state."""
        return list(_families().values())

    def collect(self) -> Iterator[Metric]:
        """Report the state; what the driver did not say has no sample."""
        snapshot, age = self._feed.latest, self._feed.age
        if snapshot is None or age is None or age > OLD:
            return
        families = _families()
        families["queue"].add_metric([], len(snapshot.queue))
        _add_devices(families, snapshot)
        families["doubt"].add_metric([], sum(bool(lease.doubt) for lease in snapshot.leases))
        for lease in snapshot.leases:
            held = [(shapes.slice_id(part), part.device) for part in lease.slices]
            for part, device in held or [("", "")]:
                families["lease"].add_metric([lease.id, lease.user, lease.profile, part, device], 1)
        yield from families.values()


def _families() -> dict[str, GaugeMetricFamily]:
    return {
        "queue": GaugeMetricFamily("gpupool_queue_length", "Requests that wait"),
        "doubt": GaugeMetricFamily(
            "gpupool_leases_in_doubt",
            "Leases of which the truth is unknown, or whose slices are not clean yet",
        ),
        "health": GaugeMetricFamily(
            "gpupool_device_health",
            "1 for a device that may be granted, 0 for one that is sick, suspect, barred or lost",
            labels=_DEVICE,
        ),
        "utilization": GaugeMetricFamily(
            "gpupool_device_utilization_percent", "Utilization as the driver says it", labels=_DEVICE
        ),
        "memory": GaugeMetricFamily(
            "gpupool_device_memory_used_mib", "Memory in use as the driver says it", labels=_DEVICE
        ),
        "lease": GaugeMetricFamily(
            "gpupool_lease_info",
            "Open leases: who holds which slice",
            labels=["lease", "user", "profile", "slice", "device"],
        ),
    }


def _add_devices(families: dict[str, GaugeMetricFamily], snapshot: Snapshot) -> None:
    for device in shapes.pool(snapshot, _ANYBODY)["devices"]:
        labels = [device["id"], device["node"], device["model"]]
        families["health"].add_metric(labels, float(device["health"] == Health.OK.value))
        if device["utilization"] is not None:
            families["utilization"].add_metric(labels, device["utilization"])
        if device["memory_used_mib"] is not None:
            families["memory"].add_metric(labels, device["memory_used_mib"])
