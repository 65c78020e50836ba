"""The service as a program: ``gpupool service``, started by the hub as a managed service."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from prometheus_client import CollectorRegistry
from tornado import web
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from traitlets import CaselessStrEnum, Dict, Float, Integer, TraitError, Unicode, validate
from traitlets.config import Application, Config

from .. import __version__
from ..devices.nvidia.inventory import NvidiaDevices
from ..devices.prometheus import PrometheusTelemetry
from ..devices.simulated import SimulatedDevices
from ..errors import GPUPoolError
from ..notices.settings import GPUPoolNotices
from ..pool import GPUPool
from ..sessions.local import LocalSessions
from .handlers import routes
from .hub import Hub
from .metrics import Metrics
from .notices import Post, ways_of
from .probing import Prober
from .sharing import daemons_of, fit_for
from .stream import Feed
from .sweep import Rules, Sweep
from .watching import patience_of

if TYPE_CHECKING:
    from ..sessions.docker import DockerSessions

BIND_TIMEOUT = 30.0
"""Seconds for which a port is tried that the service of an earlier hub may still hold."""

MAX_BODY = 64 * 1024
"""Bytes of a request's body; nothing that the service takes is larger."""


MOST_SECONDS = {
    "undelivered_max": 366 * 86400,
    "before_reclaim_timeout": 600,
    "session_timeout": 60,
    "hand_over_timeout": 86400,
    "memory_excess_time": 86400,
}
"""What is allowed, by trait."""


class GPUPoolService(Application):
    """Watches the GPUs, warns, takes idle slices back, and serves the pool's pages."""

    name = "gpupool-service"
    description = __doc__
    classes = [GPUPool, NvidiaDevices, PrometheusTelemetry, SimulatedDevices, GPUPoolNotices]

    sweep_interval = Float(
        10,
        help="""Seconds between two sweeps. Must be at least 0.5. Idle time grows by at most twice this at each
        sweep. Example: ``10``.""",
    ).tag(config=True)

    mode = CaselessStrEnum(
        ["observe", "warn", "reclaim"],
        "observe",
        help="""What follows from a verdict: ``observe`` shows what would happen and does nothing, ``warn`` also warns
        people, ``reclaim`` also stops sessions whose warning has run out.""",
    ).tag(config=True)

    absence_interval = Float(
        30,
        help="""Seconds between the two answers of the backend that prove a session gone which nobody stopped.
        Must be positive. Lower it only where a backend is known to answer reliably. Example: ``30``.""",
    ).tag(config=True)

    devices = CaselessStrEnum(
        ["nvidia", "simulated"],
        "nvidia",
        help="""Which GPUs the pool shares out: ``nvidia``, those of this machine (``c.NvidiaDevices``), or
        ``simulated``, those of ``c.SimulatedDevices.gpus``. ``configure`` takes the simulated ones where those are
        set and this is not. Example: ``"nvidia"``.""",
    ).tag(config=True)

    backend = CaselessStrEnum(
        ["local", "docker"],
        "local",
        help="""Which backend the sessions run on; ``configure`` sets it.""",
    ).tag(config=True)

    engine = Dict(
        help="""The service's own way to the container engine: arguments of ``docker.APIClient``. ``configure`` takes
        them from the spawner's ``client_kwargs`` and ``tls_config``; set it to lead the service over a socket
        proxy. Empty: as the environment says (``DOCKER_HOST``). Example:
        ``{"base_url": "unix:///run/engine-proxy.sock"}``.""",
    ).tag(config=True)

    port = Integer(
        0,
        min=0,
        max=65535,
        help="""Port on loopback on which the service answers the proxy. 0: ``configure`` takes a free one at the
        first start and keeps it. Example: ``10101``.""",
    ).tag(config=True)

    state_dir = Unicode(
        ".",
        help="""Folder for what the pool keeps beside its ledger: the service's configuration, cookie secret and port.
        ``configure`` sets it to the folder of a SQLite ledger; for one on a server it is the hub's working directory
        where nothing is set. Example: ``"/srv/jupyterhub/gpupool"``.""",
    ).tag(config=True)

    metrics_port = Integer(
        0,
        min=0,
        max=65535,
        help="""Port on which Prometheus text is served, without login. 0: none. Example: ``9495``.""",
    ).tag(config=True)

    metrics_address = Unicode(
        "127.0.0.1",
        help="""Address on which Prometheus text is served. Everybody who reaches it can read who holds what.""",
    ).tag(config=True)

    undelivered_max = Float(
        4 * 3600,
        allow_none=True,
        help="""Seconds after which a warning counts that has reached nobody: neither a page nor JupyterLab has shown
        it, and neither the mail server nor a webhook that counts for its person has taken it. Until then its
        countdown does not begin, and nothing is stopped for it, for whatever rule. It is never shorter than the
        profile's ``warn``. 0: deliveries are not waited for; None: who is not reached is never stopped.
        Example: ``3600``.""",
    ).tag(config=True)

    before_reclaim_timeout = Float(
        30,
        help="""Seconds that a person's own script ``~/.gpupool/before-reclaim`` may take in their session before it
        is taken back; then the session is stopped all the same. At most 600. 0: no such script is run.
        Example: ``60``.""",
    ).tag(config=True)

    session_timeout = Float(
        3,
        help="""Seconds that a session may take to say what its kernels and terminals do. It is asked, with its own
        token, once its GPU was not used for the profile's ``window``: who is at work beside an idle GPU keeps it for
        four windows, or until somebody waits. No answer counts as work. At most 60. 0: sessions are not asked, and
        the GPU decides alone. Example: ``5``.""",
    ).tag(config=True)

    hand_over_timeout = Float(
        120,
        help="""Seconds for which the slices of a session that has ended stay with its lease while something is left
        on them (a process, memory in use) or the driver is silent. After that the lease is closed, its GPU becomes
        suspect with the reason, admins are told, and nothing is granted on it until it is clean. At most 86400. 0: at
        once. Example: ``300``.""",
    ).tag(config=True)

    memory_excess = Unicode(
        "10%",
        help="""How much more GPU memory than its share a session's processes may hold together, for the watchdog over
        shares: of the share (``"10%"``) or a size (``"512M"``). Above the share its owner is warned, above share and
        excess the time of ``memory_excess_time`` runs. ``"0%"``: nothing more. It concerns no whole GPU and no MIG
        instance, and never another session than the one that overruns. Example: ``"1G"``.""",
    ).tag(config=True)

    memory_excess_time = Float(
        120,
        help="""Seconds above share and ``memory_excess`` after which a session is stopped in the mode ``reclaim``.
        They count from its warning, whether that was delivered or not, stand still while the session is within the
        excess or nothing is known, and run back while it keeps to its share. At most 86400. 0: at the look after the
        warning. Example: ``300``.""",
    ).tag(config=True)

    @validate("memory_excess")
    def _valid_excess(self, proposal: Any) -> str:
        patience_of(proposal.value, 0.0)
        return str(proposal.value)

    @validate("sweep_interval", "absence_interval")
    def _valid_seconds(self, proposal: Any) -> float:
        least = 0.5
        if not least <= proposal.value <= 3600:
            raise TraitError(
                f"GPUPoolService.{proposal.trait.name} is {proposal.value!r}; allowed are {least:g} to 3600 seconds."
            )
        return float(proposal.value)

    @validate(*MOST_SECONDS)
    def _valid_patience(self, proposal: Any) -> float | None:
        most = MOST_SECONDS[proposal.trait.name]
        if proposal.value is not None and not 0 <= proposal.value <= most:
            raise TraitError(
                f"GPUPoolService.{proposal.trait.name} is {proposal.value!r}; allowed are 0 to {most} seconds."
            )
        return None if proposal.value is None else float(proposal.value)

    def start(self) -> None:
        """Run until a signal, or until the hub that started this process is gone."""
        asyncio.run(self._run())

    async def _run(self) -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for name in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(name, stop.set)
        pool = GPUPool(parent=self)
        hub = Hub(os.environ["JUPYTERHUB_API_URL"], os.environ["JUPYTERHUB_API_TOKEN"])
        feed = Feed(pool)
        metrics = Metrics(CollectorRegistry(), feed)
        sessions = self._sessions(pool)
        sweep = Sweep(
            pool,
            self._devices(),
            sessions,
            hub,
            Rules(
                self.mode,
                self.sweep_interval,
                self.absence_interval,
                undelivered_max=self.undelivered_max,
                before_reclaim_timeout=self.before_reclaim_timeout,
                hand_over_timeout=self.hand_over_timeout,
                patience=patience_of(self.memory_excess, self.memory_excess_time),
            ),
            metrics,
            log=self.log,
            prober=self._prober(sessions, hub),
            daemons=daemons_of(self.state_dir, self.log),
        )
        notices = GPUPoolNotices(parent=self)
        post = self._post(pool, notices, metrics)
        server = await self._listen(self._application(pool, feed, sweep, notices, metrics), stop)
        if server is None:
            return
        if self.metrics_port:
            try:
                metrics.listen(self.metrics_port, self.metrics_address)
            except OSError as problem:  # the pool works without its figures
                self.log.error("No metrics on port %i: %s", self.metrics_port, problem.strerror)
        await feed.start()
        tasks = [asyncio.create_task(self._sweeps(sweep, post)), asyncio.create_task(self._with_parent(stop))]
        try:
            await stop.wait()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.gather(post.stop(), sweep.before.stop(), sweep.mps.end())
            if sweep.prober is not None:
                sweep.prober.close()
            server.stop()
            await feed.stop()
            await _resign(pool, sweep)

    def _devices(self) -> NvidiaDevices | SimulatedDevices:
        if self.devices == "simulated":
            return SimulatedDevices(parent=self)
        prometheus = PrometheusTelemetry(parent=self)
        found = NvidiaDevices(parent=self, elsewhere=prometheus.utilization if prometheus.url else None)
        return fit_for(found, self.backend)

    def _prober(self, sessions: LocalSessions | DockerSessions, hub: Hub) -> Prober | None:
        if not self.session_timeout:
            return None
        return Prober(sessions, hub, timeout=self.session_timeout, log=self.log)

    def _sessions(self, pool: GPUPool) -> LocalSessions | DockerSessions:
        if self.backend == "docker":
            from ..sessions.docker import DockerSessions  # needs the extra "docker"

            return DockerSessions(pool.name, self.engine)
        return LocalSessions(pool.name)

    def _post(self, pool: GPUPool, settings: GPUPoolNotices, metrics: Metrics) -> Post:
        rules = settings.rules(
            stops=self.mode == "reclaim",
            titles={slug: str(profile.display_name) for slug, profile in pool.offer.items()},
            link=public_link(settings.public_url, os.environ),
            pool=pool.name,
        )
        ways = ways_of(settings)
        return Post(pool, settings, metrics, rules=lambda: rules, ways=ways, log=self.log)

    def _application(
        self, pool: GPUPool, feed: Feed, sweep: Sweep, notices: GPUPoolNotices, metrics: Metrics
    ) -> web.Application:
        prefix = os.environ.get("JUPYTERHUB_SERVICE_PREFIX", "/services/gpupool/")
        return web.Application(
            routes(prefix),
            cookie_secret=self._cookie_secret(),
            pool=pool,
            feed=feed,
            release=sweep.release,
            notices=notices,
            count_notice=metrics.notice,
            health=lambda: self._health(sweep),
            version=__version__,
            # HubOAuth checks XSRF itself for every request that a cookie authorises, and only for those.
            xsrf_cookies=False,
        )

    def _health(self, sweep: Sweep) -> tuple[bool, str]:
        if sweep.last_success is None:
            return False, sweep.last_problem
        age = time.monotonic() - sweep.last_success
        if age > 3 * self.sweep_interval + 10:
            return False, f"the last whole sweep was {age:.0f} s ago: {sweep.last_problem or 'it hangs'}"
        state = getattr(sweep.inventory, "state", "")  # why there are no GPUs to be had; the pool goes on
        return True, f"the last whole sweep was {age:.0f} s ago" + (f". {state}" if state else "")

    async def _sweeps(self, sweep: Sweep, post: Post) -> None:
        while True:
            began = time.monotonic()
            try:
                if await sweep.run():
                    post.turn()
            except GPUPoolError as problem:
                sweep.last_problem = problem.message
                self.log.warning("This sweep was given up: %s", problem.message)
            except Exception:
                sweep.last_problem = "an error, see the log"
                self.log.exception("This sweep was given up")
            await asyncio.sleep(max(0.1, self.sweep_interval - (time.monotonic() - began)))

    async def _with_parent(self, stop: asyncio.Event) -> None:
        """End with the hub: an orphan would keep the port, with a token that no longer counts."""
        parent = int(os.environ.get("GPUPOOL_HUB_PID", "0")) or os.getppid()
        while os.getppid() == parent:  # noqa: ASYNC110 - nothing tells of a parent's end
            await asyncio.sleep(0.5)
        self.log.warning("The hub (process %i) is gone, the service ends with it", parent)
        stop.set()

    async def _listen(self, application: web.Application, stop: asyncio.Event) -> HTTPServer | None:
        address = urlparse(os.environ.get("JUPYTERHUB_SERVICE_URL", "http://127.0.0.1:10101"))
        give_up_at = time.monotonic() + BIND_TIMEOUT
        while not stop.is_set():
            try:
                sockets = bind_sockets(address.port or 80, address.hostname or "127.0.0.1", reuse_port=False)
            except OSError as problem:
                if time.monotonic() > give_up_at:
                    self.log.error("%s: port %s is taken by another program", problem.strerror, address.port)
                    self.exit(1)
                await asyncio.sleep(0.2)
            else:
                server = HTTPServer(application, max_body_size=MAX_BODY, max_buffer_size=2 * MAX_BODY)
                server.add_sockets(sockets)
                return server
        return None

    def _cookie_secret(self) -> bytes:
        """Kept on disk: with a new one at each start, pages that are open could not reconnect."""
        path = Path(self.state_dir) / "service-cookie-secret"
        try:
            return path.read_bytes()
        except FileNotFoundError:
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(secrets.token_bytes(32))
            return path.read_bytes()


def public_link(hub: str, environment: Mapping[str, str]) -> str:
    """Where people open the service, from the hub's address as it is configured and as the hub says; empty: unknown.

    With a domain for each user the service has one of its own, too, which only the hub knows.
    """
    own = environment.get("JUPYTERHUB_PUBLIC_URL", "")
    if environment.get("JUPYTERHUB_HOST") and own:
        return own
    public = urlparse(hub or own or environment.get("JUPYTERHUB_PUBLIC_HUB_URL", ""))
    prefix = environment.get("JUPYTERHUB_SERVICE_PREFIX", "/services/gpupool/")
    return f"{public.scheme}://{public.netloc}{prefix}" if public.netloc else ""


async def _resign(pool: GPUPool, sweep: Sweep) -> None:
    try:
        await pool.ask("resign", sweep.holder)
    except GPUPoolError as problem:
        pool.log.warning("%s", problem.message)


def main(config_file: str) -> None:
    """Run the service with the sections that ``configure`` handed over."""
    with open(config_file, encoding="utf-8") as file:
        config = Config(json.load(file))
    try:
        app = GPUPoolService.instance(config=config, log_level="INFO")
        app.start()
    except TraitError as problem:
        sys.exit(f"gpupool: {problem}")
