"""Checks of the hub around the pool: what was configured, and what runs.  Pure."""

from __future__ import annotations

from ..configuration import SCOPES
from .engine_checks import numbers
from .facts import Answer, Hub, Processes
from .model import Result, Unknown, check, error, listed, ok, skipped, warning

HUB_FLOOR = (5, 3)
ACCESS = "access:services!service=gpupool"
EVERY_ACCESS = ("access:services", ACCESS)

STOCK = "configurable-http-proxy"
STOCK_CLASSES = (STOCK, "jupyterhub.proxy.ConfigurableHTTPProxy")

SHORT_START, LONG_START = 30, 3600
SHORT_HTTP, LONG_HTTP = 30, 600
"""Seconds that are sane for ``start_timeout`` and ``http_timeout``."""


@check("hub-version", "hub", "JupyterHub is not too old.", "jupyterhub")
def hub_version(version: str) -> Result:
    if numbers(version)[:2] < HUB_FLOOR:
        return error(
            f"JupyterHub is {version}; the pool needs 5.3 or later.",
            "pip install --upgrade 'jupyterhub>=5.3'",
        )
    return ok(f"JupyterHub {version}.")


@check("hub-answers", "hub", "The hub's REST API answers on this machine.", "answer")
def hub_answers(answer: Answer) -> Result:
    if not answer.version:
        return warning(
            f"The hub does not answer at {answer.url}: {answer.why}.", "start it; or look at its log"
        )
    return ok(f"JupyterHub {answer.version} answers at {answer.url}.")


@check("cleanup-servers", "hub", "Sessions outlive a stop of the hub.", "hub")
def cleanup_servers(hub: Hub) -> Result:
    if hub.cleanup_servers:
        return warning(
            "c.JupyterHub.cleanup_servers is True: each orderly stop or restart of the hub ends all sessions. That "
            "is right for a demo only.",
            "c.JupyterHub.cleanup_servers = False",
        )
    return ok("cleanup_servers is False: sessions are adopted by the next hub.")


@check("idle-culler", "hub", "Nobody else ends idle servers.", "processes", optional=("hub",))
def idle_culler(processes: Processes, hub: Hub | Unknown) -> Result:
    if not isinstance(hub, Unknown) and hub.cullers:
        name, seconds = hub.cullers[0]
        after = f" after {seconds} s" if seconds else ""
        return error(
            f"The service {name} ends servers{after} without activity in the browser. It does not see GPUs, so it "
            "ends a training that runs alone; the pool ends idle sessions itself.",
            "take it out of c.JupyterHub.services, or let it cull users only",
        )
    if not isinstance(hub, Unknown) and hub.inner_cullers:
        return error(
            f"Sessions are started with {listed(hub.inner_cullers)}: they end kernels, or themselves, without a look "
            "at the GPU.",
            "take it out of c.Spawner.args; idle sessions are the pool's business (GPUPool.profiles, idle)",
        )
    if processes.cullers:
        return warning(
            "An idle culler runs on this machine, and this hub does not start it. If it is for this hub, it ends a "
            "training that runs alone.",
            "pgrep -af 'idle.culler|cull.idle'",
        )
    if isinstance(hub, Unknown):
        return skipped(f"No idle culler runs here. {hub.why}")
    return ok("No idle culler is configured, and none runs here.")


@check("service-scopes", "hub", "The service may do what it must, and no more.", "hub")
def service_scopes(hub: Hub) -> Result:
    if hub.service_admin:
        return error(
            "The service gpupool is an admin of the hub: a mistake in it reaches everything.",
            'take "admin" out of its entry in c.JupyterHub.services',
        )
    if missing := set(SCOPES) - hub.scopes:
        return error(
            f"The service gpupool lacks {listed(sorted(missing))}: it can take nothing back.",
            "c.JupyterHub.load_roles: " + str({"name": "gpupool", "services": ["gpupool"], "scopes": SCOPES}),
        )
    if more := hub.scopes - set(SCOPES):
        return warning(
            f"The service gpupool may do more than it needs: {listed(sorted(more))}.",
            f"leave it with {', '.join(SCOPES)} in c.JupyterHub.load_roles",
        )
    return ok(f"The service has {', '.join(SCOPES)}, and no more.")


@check("service-access", "hub", "People may see the status page.", "hub")
def service_access(hub: Hub) -> Result:
    if not hub.user_scopes.intersection(EVERY_ACCESS):
        return warning(
            f"The role user lacks {ACCESS}: people cannot see the status page, nor extend a session there.",
            f'c.JupyterHub.load_roles: {{"name": "user", "scopes": ["self", "{ACCESS}"]}}',
        )
    return ok("The role user has access to the service.")


@check(
    "proxy-streams",
    "hub",
    "The proxy passes events on at once.",
    "hub",
    "processes",
    optional=("proxy_program",),
)
def proxy_streams(hub: Hub, processes: Processes, program: str | Unknown) -> Result:
    fix = (
        "npm install -g configurable-http-proxy, or pip install jupyterhub-traefik-proxy and set proxy_class"
    )
    bad = "holds events back until they are complete, so places in the queue and steps of a launch never arrive."
    if "traefik" in hub.proxy.lower():
        return ok(f"{hub.proxy} streams.")
    if hub.proxy not in STOCK_CLASSES:
        return skipped(
            f"Of the proxy {hub.proxy} nothing is known; places in the queue need one that streams."
        )
    if hub.proxy_command == "python" or processes.python_proxies:
        return error(f"The Python configurable-http-proxy {bad}", fix)
    if not hub.proxy_started:
        return skipped("The proxy is started by somebody else; places in the queue need one that streams.")
    if isinstance(program, Unknown):
        return skipped(program.why)
    if program == "python":
        return error(f"{STOCK} on the PATH is the Python program of that name. It {bad}", fix)
    return ok(f"{STOCK} on the PATH is the Node program, which streams.")


@check("timeouts", "hub", "Launches have time enough, and not too much.", "hub")
def timeouts(hub: Hub) -> Result:
    bounds = {
        "start_timeout": (hub.start_timeout, SHORT_START, LONG_START),
        "http_timeout": (hub.http_timeout, SHORT_HTTP, LONG_HTTP),
    }
    for name, (value, short, long) in bounds.items():
        if value is None:
            continue
        if value < short:
            return warning(
                f"{name} is {value:g} s: a container with a GPU, or a busy one after a restart of the hub, takes "
                "longer and is ended.",
                f"c.Spawner.{name} = {60 if name == 'http_timeout' else 120}",
            )
        if value > long:
            return warning(
                f"{name} is {value:g} s: a launch that hangs holds its GPU for so long. Waiting in the queue does "
                "not count, the clock runs from the grant.",
                f"c.Spawner.{name} = {60 if name == 'http_timeout' else 300}",
            )
    return ok(f"start_timeout {_seconds(hub.start_timeout)}, http_timeout {_seconds(hub.http_timeout)}.")


def _seconds(value: float | None) -> str:
    return "is set by a function" if value is None else f"{value:g} s"


@check("failure-limit", "hub", "Failed launches do not stop the hub.", "hub", "jupyterhub")
def failure_limit(hub: Hub, version: str) -> Result:
    if hub.failure_limit and numbers(version) < (6,):
        return warning(
            f"Spawner.consecutive_failure_limit is {hub.failure_limit}: on JupyterHub {version} people who leave the "
            "queue count as failures, and the hub stops.",
            "c.Spawner.consecutive_failure_limit = 0",
        )
    return ok("Refusals and cancelled waits stop nothing.")
