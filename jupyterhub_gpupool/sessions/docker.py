"""Sessions that are containers, found by the labels that their launch put on them.

Labels are written by the engine and cannot be changed from inside, so what they say is trusted.  An engine
that errs, times out or has only just come back says nothing about absence.  A container that does not run is
no session, but it is removed before its slice is given to anybody: somebody could start it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

import docker
import requests
from docker.errors import APIError, DockerException, NotFound
from docker.utils import kwargs_from_env

from ..containment import LABEL
from ..containment.readback import unlike
from ..model import Lease, Presence, Process, Session
from . import Foreign, marked_cells
from .inside import OPEN, OPEN_TIMEOUT, Ran, Tail, execute, follow, is_script, opens
from .script import SCRIPT, ScriptEnd
from .telemetry import processes_of

log = logging.getLogger(__name__)
T = TypeVar("T")

RUNS = frozenset({"running", "paused", "restarting"})
ENDED = frozenset({"created", "exited", "dead"})
"""What the engine calls a container that is there; anything else, ``removing``, is on its way."""

RECOVERY = 5.0
"""Seconds after an error of the engine for which "there is no such container" is not believed."""

LOG_LINES = 200
LOG_BYTES = 64 * 1024
REMOVE_PAUSE = 0.1
GONE_QUICKLY = (404, 409)
"""Not there, or on its way already: the look afterwards says which."""

NO_GPU = frozenset({"", "void", "none"})
ENGINE_ERRORS = (DockerException, requests.RequestException, OSError)


def connect(timeout: float = 60, **given: Any) -> docker.APIClient:
    """Connect to the engine that the environment names (``DOCKER_HOST`` …); ``given`` wins.

    ``given`` are arguments of :class:`docker.APIClient`.  Raises one of :data:`ENGINE_ERRORS` when the engine
    does not answer within ``timeout`` seconds.
    """
    settings = {"version": "auto", "timeout": timeout, **kwargs_from_env(), **given}
    if isinstance(tls := settings.get("tls"), Mapping):
        settings["tls"] = docker.tls.TLSConfig(**tls)
    return docker.APIClient(**settings)


class DockerSessions:
    """The sessions of one pool on one engine.  Its methods may be called from any thread.

    ``settings`` are arguments of :func:`connect`; ``timeout`` bounds one answer in seconds.
    """

    trusted = True

    def __init__(
        self,
        pool: str,
        settings: Mapping[str, Any] | None = None,
        *,
        timeout: float = 20,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pool = pool
        self.settings: dict[str, Any] = {"timeout": timeout, **(settings or {})}
        self._clock = clock
        self._client: docker.APIClient | None = None
        self._failed_at: float | None = None
        self._foreign: dict[str, Foreign | None] = {}
        """What a container of somebody else holds, by its id: it cannot change while it is there."""

    # --- asking ----------------------------------------------------------------------------------

    def look(self, names: Collection[str]) -> dict[str, Presence]:
        """Say of each name whether its container runs; see :class:`Sessions`."""
        found = self._listed()
        if found is None:
            return dict.fromkeys(names, Presence.UNKNOWN)
        states = {_name(one): str(one.get("State", "")) for one in found}
        missing = Presence.ABSENT if self._sure() else Presence.UNKNOWN
        return {name: _presence(states[name]) if name in states else missing for name in names}

    def list(self) -> tuple[Session, ...] | None:
        """Find all containers of this pool; ``running`` says which are sessions.

        ``runtime`` holds ``id``, ``container`` and ``image``.  Processes are those that this machine shows;
        None where it shows none of a running container, because the engine is elsewhere.
        """
        found = self._listed()
        if found is None:
            return None
        running = [one for one in found if one.get("State") in RUNS]
        processes = processes_of([one["Id"] for one in running])
        sessions = []
        for one in found:
            session = self._session(one, processes.get(one["Id"]) or None)
            if session is not None:
                sessions.append(session)
        return tuple(sessions)

    def inspect(self, name: str) -> Mapping[str, Any] | None:
        """What the engine says of a container, whole; None when there is none.  Raises :data:`ENGINE_ERRORS`."""
        try:
            return dict(self._ask(lambda engine: engine.inspect_container(name)))
        except NotFound:
            return None

    def token(self, name: str) -> str | None:
        """Read the API token of a session's server, for its adoption.  Never log or store it."""
        try:
            found = self.inspect(name)
        except ENGINE_ERRORS as problem:
            log.warning("The engine does not say what container %s was started with: %s", name, problem)
            return None
        return environment_of(found or {}).get("JUPYTERHUB_API_TOKEN")

    def foreign(self) -> tuple[Foreign, ...] | None:
        """Running containers of others that were given GPUs; None where the engine does not say."""
        try:
            listed = self._ask(lambda engine: engine.containers(filters={"status": "running"}))
            kept = {}
            for one in listed:
                if one.get("Labels", {}).get(LABEL + "pool") != self._pool:
                    key = one["Id"]
                    kept[key] = self._foreign[key] if key in self._foreign else self._holds(key)
        except ENGINE_ERRORS as problem:
            log.warning("The engine does not say which other containers use GPUs: %s", problem)
            return None
        self._foreign = kept
        return tuple(one for one in kept.values() if one is not None)

    def differs(self, lease: Lease) -> tuple[str, ...] | None:
        """Compare a container with its lease, see :class:`Sessions`; which image it should run is not known."""
        try:
            found = self._of(lease.session)
        except ENGINE_ERRORS as problem:
            log.warning("The engine does not say what container %s got: %s", lease.session, problem)
            return None
        return None if found is None else tuple(unlike(found, lease, self._pool))

    # --- telling ---------------------------------------------------------------------------------

    def remove(self, name: str, *, timeout: float, keep: Callable[[str], None] | None = None) -> bool:
        """Stop and remove a container; see :class:`Sessions`.  One that is not this pool's is left alone."""
        deadline = self._clock() + timeout
        try:
            found = self._of(name)
            if found is None:
                return self._sure()
            if not self._mine(found):
                log.error("Container %s is not of pool %s; it is left alone", name, self._pool)
                return False
            self._stop(found, timeout / 2)
            if keep is not None:
                self._keep(found["Id"], keep)
            self._quietly(lambda engine: engine.remove_container(found["Id"], v=True, force=True))
            while self.inspect(found["Id"]) is not None or self._of(name) is not None:
                if self._clock() > deadline:
                    return False
                time.sleep(REMOVE_PAUSE)
        except ENGINE_ERRORS as problem:
            log.warning("Container %s cannot be proved gone: %s", name, problem)
            return False
        return True

    def _keep(self, key: str, keep: Callable[[str], None]) -> None:
        try:
            keep(self.log(key))
        except ENGINE_ERRORS as problem:  # no reason to keep the container
            log.warning("The last lines of container %s cannot be had: %s", key[:12], problem)

    def log(self, name: str) -> str:
        """The last lines that a container wrote.  Raises :data:`ENGINE_ERRORS`, but not when it is gone."""
        try:
            raw = self._ask(lambda engine: engine.logs(name, tail=LOG_LINES))
        except NotFound:
            return ""
        return bytes(raw)[-LOG_BYTES:].decode("utf-8", "replace")

    def run(
        self,
        name: str,
        command: Sequence[str],
        *,
        timeout: float,
        user: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> Ran:
        """Run a command in a session to its end, under the session's account or another ``uid:gid``.

        Raises :data:`ENGINE_ERRORS`, also when nothing was written for ``timeout`` seconds.
        """
        engine = connect(**{**self.settings, "timeout": timeout})
        try:
            return execute(engine, name, command, timeout=timeout, user=user, environment=environment)
        finally:
            engine.close()

    def before_reclaim(
        self, name: str, environment: Mapping[str, str], *, timeout: float
    ) -> ScriptEnd | None:
        """Run the owner's script through the engine, as the container's user; see :class:`Sessions`.

        What does not end in time ends with the container.
        """
        tail = Tail()
        try:
            found = self._of(name)
            home = environment_of(found or {}).get("HOME", "")
            if found is None or not home.startswith("/") or not self._mine(found):
                return None
            path = f"{home.rstrip('/')}/{SCRIPT}"
            if not self._ask(lambda engine: is_script(engine, found["Id"], path)):
                return None
            engine = connect(**{**self.settings, "timeout": timeout})
            try:
                status = follow(
                    engine, found["Id"], [path], timeout=timeout, environment=environment, tail=tail
                )
            finally:
                engine.close()
        except requests.Timeout:
            return ScriptEnd("timeout", None, str(tail))
        except ENGINE_ERRORS as problem:
            log.warning("The script %s of container %s cannot be run: %s", SCRIPT, name, problem)
            return ScriptEnd("failed", None, str(tail) or "The engine could not run it.")
        return ScriptEnd("done", status, str(tail))

    def reaches(self, name: str) -> bool | None:
        """See :class:`Sessions`; a session that is paused or does not answer tells nothing."""
        try:
            found = self._of(name)
            if found is None or not self._mine(found):
                return None
            return opens(self.run(found["Id"], OPEN, timeout=OPEN_TIMEOUT, environment={"LC_ALL": "C"}))
        except ENGINE_ERRORS as problem:
            log.warning("Container %s cannot be asked for its GPU: %s", name, problem)
            return None

    def _of(self, name: str) -> Mapping[str, Any] | None:
        """The container of a session: by its labels, which nobody can change, else by its name."""
        wanted = {"label": f"{LABEL}pool={self._pool}"}
        listed = self._ask(lambda engine: engine.containers(all=True, filters=wanted))
        key = next((str(one["Id"]) for one in listed if _name(one) == name), name)
        return self.inspect(key)

    def _mine(self, found: Mapping[str, Any]) -> bool:
        return bool((found["Config"].get("Labels") or {}).get(LABEL + "pool") == self._pool)

    def _stop(self, found: Mapping[str, Any], grace: float) -> None:
        """Ask the session to end, for at most ``grace`` seconds; the engine then kills it."""
        status = found["State"].get("Status")
        if status == "paused":  # a frozen process hears no signal
            self._quietly(lambda engine: engine.unpause(found["Id"]))
        if status in RUNS:
            self._quietly(lambda engine: engine.stop(found["Id"], timeout=max(1, int(grace))))

    # --- the engine ------------------------------------------------------------------------------

    def _ask(self, verb: Callable[[docker.APIClient], T]) -> T:
        """Ask the engine; remembers an error that leaves the truth unknown."""
        try:
            if self._client is None:
                self._client = connect(**self.settings)
            return verb(self._client)
        except NotFound:
            raise
        except ENGINE_ERRORS:
            self._failed_at = self._clock()
            raise

    def _quietly(self, verb: Callable[[docker.APIClient], Any]) -> None:
        """Tell the engine to do what may be done already."""
        try:
            self._ask(verb)
        except APIError as problem:
            if problem.status_code not in GONE_QUICKLY:
                raise

    def _sure(self) -> bool:
        """Whether "not there" can be believed: an engine that has just come back may not know all yet."""
        return self._failed_at is None or self._clock() - self._failed_at > RECOVERY

    def _listed(self) -> Sequence[Mapping[str, Any]] | None:
        wanted = {"label": f"{LABEL}pool={self._pool}"}
        try:
            return tuple(self._ask(lambda engine: engine.containers(all=True, filters=wanted)))
        except ENGINE_ERRORS as problem:
            log.warning("The engine does not say which sessions there are: %s", problem)
            return None

    def _session(self, one: Mapping[str, Any], processes: tuple[Process, ...] | None) -> Session | None:
        labels = {key.removeprefix(LABEL): value for key, value in (one.get("Labels") or {}).items()}
        try:
            cells = marked_cells(labels.get("cells") or "{}")
        except ValueError as error:
            log.warning("The labels of %s name no cells that can be read: %s", _name(one), error)
            cells = {}
        if not labels.get("lease"):
            log.warning("Container %s has the label of pool %s and no lease", _name(one), self._pool)
            return None
        running = one.get("State") in RUNS
        return Session(
            name=_name(one),
            lease=labels["lease"],
            user=labels.get("user", ""),
            server=labels.get("server", ""),
            profile=labels.get("profile", ""),
            cells=cells,
            owner=labels.get("owner", ""),
            runtime={
                "id": one["Id"],
                "container": _name(one),
                "image": one.get("ImageID", ""),
                "published": [port["PublicPort"] for port in _ports(one) if port.get("PublicPort")],
            },
            url=_url(one),
            processes=processes if running else (),
            running=running,
        )

    def _holds(self, key: str) -> Foreign | None:
        """What a container that is not ours was given, as far as the engine knows."""
        found = self.inspect(key)
        if found is None:
            return None
        host = found["HostConfig"]
        ids: set[str] = set()
        for asked in host.get("DeviceRequests") or ():
            names = asked.get("DeviceIDs") or ()
            ids |= {name.rpartition("=")[2] for name in names} if names else {"all"}
        seen = environment_of(found).get("NVIDIA_VISIBLE_DEVICES", "")
        if host.get("Runtime") == "nvidia" and seen not in NO_GPU:
            ids |= set(seen.split(","))
        return Foreign(found["Name"].lstrip("/"), frozenset(ids)) if ids else None


def _presence(state: str) -> Presence:
    if state in RUNS:
        return Presence.PRESENT
    return Presence.ABSENT if state in ENDED else Presence.UNKNOWN


def _name(one: Mapping[str, Any]) -> str:
    """The session's name: by its label, because a container can be renamed; else the engine's."""
    if said := (one.get("Labels") or {}).get(LABEL + "session"):
        return str(said)
    # A container that others link to has further names, with a slash inside.
    names = [name.removeprefix("/") for name in one.get("Names") or ()]
    return next((name for name in names if "/" not in name), str(one["Id"]))


def _ports(one: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The notebook's port among those of a container; all where its label does not say which."""
    wanted = (one.get("Labels") or {}).get(LABEL + "port")
    return [port for port in one.get("Ports") or () if wanted in (None, str(port.get("PrivatePort")))]


def _url(one: Mapping[str, Any]) -> str:
    """Where the notebook server answers: its published port, or its address in the containers' network."""
    ports = _ports(one)
    for port in ports:
        if port.get("PublicPort"):
            return f"http://{port.get('IP') or '127.0.0.1'}:{port['PublicPort']}"
    networks = (one.get("NetworkSettings") or {}).get("Networks") or {}
    inside = next((network["IPAddress"] for network in networks.values() if network.get("IPAddress")), "")
    return f"http://{inside}:{ports[0]['PrivatePort']}" if inside and ports else ""


def environment_of(found: Mapping[str, Any]) -> dict[str, str]:
    """The environment that an inspected container was created with.  It holds secrets: never log it."""
    given = (found.get("Config") or {}).get("Env") or ()
    return dict(entry.partition("=")[::2] for entry in given)
