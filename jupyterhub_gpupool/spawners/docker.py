"""Sessions as containers that see exactly their slice: the pool's main form."""

from __future__ import annotations

import asyncio
import inspect
import json
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from typing import Any, ClassVar

from jupyterhub.traitlets import ByteSpecification, Callable
from traitlets import (
    Bool,
    CaselessStrEnum,
    Float,
    Integer,
    List,
    TraitError,
    Unicode,
    Union,
    default,
    validate,
)

from .. import containment, profiles, topology
from ..containment.readback import ACCESS, UNSAFE, access_for, labels_for, request_for, with_labels
from ..errors import GPUPoolError, Rejected, Unavailable
from ..model import Lease, Session, Slice
from ..mps import client as mps
from ..sessions.docker import ENGINE_ERRORS, DockerSessions, connect
from . import images
from .base import GPUPoolMixin
from .container import Container
from .verification import Verification

INFO_AGE = 60.0
"""Seconds for which what the engine says of itself is believed."""

MEMORY_PART = 0.75
"""Of the machine's memory: what a session may take at most where its profile does not say."""

DATASETS = "/datasets"


class GPUPoolDockerSpawner(Verification, GPUPoolMixin, Container):
    """Containers of a Docker Engine on this machine, each with the GPUs of its lease and no others."""

    gpu_access = CaselessStrEnum(
        ["auto", "runtime", "cdi", "none"],
        "auto",
        help="""How a container gets its GPUs. ``runtime``: by a device request to NVIDIA's container runtime.
        ``cdi``: by the names of the Container Device Interface. ``auto``: CDI where the engine lists the GPU under
        it, else the runtime, and nothing for simulated GPUs. ``none``: never. ``runtime`` and ``cdi`` also ask for
        simulated GPUs, for tests of a runtime.""",
    ).tag(config=True)

    check = CaselessStrEnum(
        ["auto", "required", "off"],
        "auto",
        help="""The launch check: once for each image, GPU and driver the image's ``gpupool_tensorflow`` says
        whether it sees the right GPUs and can use them; the result is remembered. On real GPUs every launch also
        asks CUDA which ones it sees. ``auto``: images without it are not checked, and the session page says so.
        ``required``: they are refused. ``off``: no check.""",
    ).tag(config=True)

    check_timeout = Float(
        300, help="""Seconds that a launch check may take. Must be positive. Example: ``120``."""
    ).tag(config=True)

    pull_timeout = Float(
        3600,
        help="""Seconds by which the start of a session may last longer because its image is fetched first. Must
        be positive. Example: ``1800``.""",
    ).tag(config=True)

    unsafe = List(
        Unicode(),
        help="""Dangers that are accepted for every profile, by their names in ``docs/docker.md``. A profile's own key
        ``unsafe`` accepts them for one. Example: ``["host-network"]``.""",
    ).tag(config=True)

    run_as = Union(
        [Unicode(), Callable()],
        default_value="1000:100",
        help="""Account that a session runs under in its container, as ``uid:gid``; never root. A function of the
        spawner may give each person their own, for homes on NFS. Example:
        ``lambda spawner: f"{pwd.getpwnam(spawner.user.name).pw_uid}:100"``.""",
    ).tag(config=True)

    pids_limit = Integer(
        containment.PIDS,
        min=64,
        help="""Processes and threads that a session may have at once. Example: ``2048``.""",
    ).tag(config=True)

    shm_size = ByteSpecification(
        containment.SHM_SIZE,
        help="""Size of a session's own ``/dev/shm``, in bytes or with a unit K, M, G; at most half of its memory.
        Example: ``"8G"``.""",
    ).tag(config=True)

    tmp_size = ByteSpecification(
        containment.TMP_SIZE,
        help="""Size of a session's ``/tmp``, in bytes or with a unit K, M, G: it is memory and counts as such; at
        most half of it. Example: ``"1G"``.""",
    ).tag(config=True)

    home = Unicode(
        "/home/jovyan",
        help="""Where the home volume is mounted in the container. Empty: no home volume. Not used where ``volumes``
        or ``mounts`` are set: then the homes are theirs. Example: ``"/home/jovyan"``.""",
    ).tag(config=True)

    end_timeout = Float(
        20,
        help="""Seconds in which a session must be gone after it was told to stop; half of them it has to end by
        itself before it is killed. Must be positive. Example: ``60``.""",
    ).tag(config=True)

    use_internal_ip = Bool(
        False,
        help="""Reach sessions by their address in the containers' network, for a hub that is itself a container on
        it. False: by a port that is published on ``host_ip``, which is loopback.""",
    ).tag(config=True)

    cpu_limit: Any
    api_token: str  # traits of the stock spawner, named here for the type checker
    mem_limit: Any
    mounts: list[Any]
    read_only_volumes: dict[str, Any]
    volumes: dict[str, Any]

    _slow: ClassVar[ThreadPoolExecutor] = ThreadPoolExecutor(32, thread_name_prefix="gpupool-slow")
    """For what takes minutes: pulls and checks never hold the threads that look, stop and prove."""

    _image_id: str | None = None  # of the image at hand
    _access = "none"  # how its GPUs get into the container
    _through: Slice | None = None  # what of its lease goes through MPS
    _shared: ClassVar[dict[tuple[str, str], DockerSessions]] = {}
    _info: ClassVar[tuple[float, Mapping[str, Any]]] = (float("-inf"), {})

    @validate("check_timeout", "pull_timeout", "end_timeout")
    def _valid_seconds(self, proposal: Any) -> float:
        if not 0 < proposal.value <= 86400:
            raise TraitError(
                f"{type(self).__name__}.{proposal.trait.name} is {proposal.value!r}; allowed are seconds above 0, "
                "up to a day."
            )
        return float(proposal.value)

    @default("network_name")
    def _default_network_name(self) -> str:
        return network_of(self.pool.name)

    # --- the engine ------------------------------------------------------------------------------

    @cached_property
    def _sessions(self) -> DockerSessions:
        settings = engine_settings(self.client_kwargs, self.tls_config)
        key = self.pool.name, json.dumps(settings, sort_keys=True, default=str)
        if key not in self._shared:
            self._shared[key] = DockerSessions(self.pool.name, settings)
        return self._shared[key]

    async def _slowly(self, verb: Any, *args: Any, **kwargs: Any) -> Any:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._slow, partial(verb, *args, **kwargs))

    @property
    def _more_time(self) -> float:
        return self.pull_timeout + (0 if self.check == "off" else self.check_timeout)

    async def _engine_info(self) -> Mapping[str, Any]:
        at, info = GPUPoolDockerSpawner._info
        if time.monotonic() - at > INFO_AGE:
            info = await self.docker("info")
            GPUPoolDockerSpawner._info = time.monotonic(), info
        return info

    # --- before the grant ------------------------------------------------------------------------

    @cached_property
    def _own_image(self) -> str:
        return str(self.image)  # before a choice changes it

    @cached_property
    def _offered(self) -> dict[str, str]:
        """Images that need not be named by digest: the configured one, and the admin's list."""
        listed = self._get_allowed_images()
        return {self._own_image: self._own_image, **(listed if isinstance(listed, Mapping) else {})}

    def _image_of(self, choice: profiles.Choice) -> str:
        image = choice.image or self._own_image
        return self._offered.get(image, image)

    def _resolve(self, options: Any) -> profiles.Choice:
        choice = super()._resolve(options)
        image = choice.image or self._own_image
        offered = "*" if self.allowed_images == "*" else self._offered
        if problem := containment.image_problem(image, offered):
            raise Rejected(problem, reason="bad-image")
        written = {layer.get("image") for _, layer in profiles.variants(self.pool.offer[choice.profile])}
        if offered != "*" and image not in {*written, *self._offered, *self._offered.values()}:
            raise Rejected(
                f"The image {image[:80]!r} was typed, and an admin has not listed it. "
                f"Allowed: {', '.join(sorted(self._offered))[:300]}.",
                reason="bad-image",
            )
        if problem := containment.user_problem(self.user.name):
            raise Rejected(problem, reason="bad-user")
        return choice

    async def _provide(self, choice: profiles.Choice) -> None:
        """Fetch the image if the engine has not got it: a pull may take long, and holds nothing."""
        image = self._image_of(choice)
        try:
            self._image_id = await self._backend(lambda: images.image_id(self.client, image))
        except ENGINE_ERRORS as problem:
            raise Unavailable(
                "The container engine does not answer. Try again in a minute.", reason="engine"
            ) from problem
        pinned = image.startswith("sha256:")  # the engine's own name for what it has; no registry knows it
        if self._image_id is not None and (pinned or self.pull_policy != "always"):
            return
        if pinned or self.pull_policy in ("never", "skip"):
            raise Unavailable(
                f"The image {image[:80]} is not on this machine, and may not be fetched: please tell an admin.",
                reason="no-image",
            )
        loop = asyncio.get_running_loop()

        def tell(sentence: str) -> None:
            loop.call_soon_threadsafe(partial(self._steps.add, 4, sentence, replaces="image"))

        engine = await self._backend(lambda: connect(**self._sessions.settings | {"timeout": images.SILENCE}))
        self._image_id = await self._slowly(images.fetch, engine, image, tell)

    # --- the launch ------------------------------------------------------------------------------

    def _apply(self, choice: profiles.Choice) -> None:
        super()._apply(choice)
        self.image = self._image_of(choice)

    def _prepare(self, lease: Lease) -> dict[str, Any]:
        self.object_id = ""
        self.object_name = lease.session
        self.labels = labels_for(lease, pool=self.pool.name, owner=self._owner, port=self.port)
        return {"container": lease.session}

    async def compose(self) -> None:
        """Put together what the container is made of: the pool's rules under, the pool's own on top."""
        assert self._lease is not None
        visible = [item.visible for item in self._lease.slices]
        simulated = any(device.simulated for device in self._devices)
        info = await self._engine_info()
        self._access = access_for(self.gpu_access, visible, simulated, info)
        accepted = ",".join(sorted({*self.unsafe, *self._choice.unsafe}))
        self.labels = {**self.labels, ACCESS: self._access, UNSAFE: accepted}
        self._through = mps.shared(self._lease.slices, self._devices)
        if not self.mem_limit:  # 0 is the stock default, too
            self.mem_limit = int(info["MemTotal"] * MEMORY_PART)
        host, create = await self._given("extra_host_config"), await self._given("extra_create_kwargs")
        if not self.volumes and not self.mounts and self.home:
            self.volumes = {containment.volume_name(self.pool.name, self.user.name): self.home}
        self.read_only_volumes = {
            **self.read_only_volumes,
            **{source: f"{DATASETS}/{name}" for name, source in self.pool.datasets.items()},
        }
        self._refuse(host, create)
        if self._through is not None:
            self._join(self._through, create)
        rules = containment.host_config(
            mem_limit=int(self.mem_limit),
            pids_limit=self.pids_limit,
            shm_size=self.shm_size,
            tmp_size=self.tmp_size,
            cpuset=topology.cpuset(
                self._choice.cpuset,
                self._devices,
                limit=float(self.cpu_limit or 0),
                there=int(info.get("NCPU") or 0),
                bound=containment.binds_cpus({**host, **create}),
            ),
        )
        own = {
            "auto_remove": False,
            "restart_policy": {"Name": "no"},
            "device_requests": request_for(visible, self._access),
        }
        self.extra_host_config = containment.combine(rules, host) | own
        self.extra_create_kwargs = {
            "user": str(self._eval_if_callable(self.run_as)),
            **create,
            "labels": with_labels(create.get("labels") or {}, self.labels),
        }

    def _join(self, part: Slice, create: Mapping[str, Any]) -> None:
        """Have the session meet the MPS daemon of its GPU.  Raises Unavailable where it would not."""
        account = str(create.get("user") or self._eval_if_callable(self.run_as))
        mps.check(part, account=account, common=None if callable(self.run_as) else self.run_as)
        self.volumes = {**self.volumes, **mps.volumes(part)}

    async def _given(self, name: str) -> dict[str, Any]:
        """A setting of the admin or of the profile that may be a function."""
        found = self._eval_if_callable(getattr(self, name))
        return dict(await found if inspect.isawaitable(found) else found)

    def _refuse(self, host: Mapping[str, Any], create: Mapping[str, Any]) -> None:
        """Look once more at what a function or a typed text may have made of the settings."""
        settings = {
            "extra_host_config": host,
            "extra_create_kwargs": {"user": str(self._eval_if_callable(self.run_as)), **create},
            "volumes": self.volumes,
            "read_only_volumes": self.read_only_volumes,
            "mounts": self.mounts,
            "network_name": self.network_name,
            "links": self.links,
            "host_ip": self.host_ip,
            "port": self.port,
            "use_internal_ip": self.use_internal_ip,
        }
        if wrong := containment.refusals(settings, (*self.unsafe, *self._choice.unsafe)):
            raise Rejected(f"This session may not be started. {' '.join(wrong)}", reason="unsafe")

    def get_env(self) -> dict[str, str]:
        env: dict[str, str] = super().get_env()
        if self.home:
            env.setdefault("HOME", self.home)
        if self._lease is not None and self._access == "none":
            env |= {"NVIDIA_VISIBLE_DEVICES": containment.NO_DEVICE, "CUDA_VISIBLE_DEVICES": "-1"}
        if self._through is not None:
            env |= mps.environment(self._through)
        return env

    # --- adoption and end ------------------------------------------------------------------------

    async def _attach(self, session: Session) -> None:
        self.object_id = str(session.runtime.get("id", ""))
        self.object_name = session.name
        # Without its token the session's rights would outlive it in the hub's database.
        self.api_token = await self._backend(self._sessions.token, session.name) or self.api_token

    async def _end(self, lease: Lease, now: bool) -> bool:
        lines: list[str] = []
        timeout = 2.0 if now else self.end_timeout
        gone = await self._backend(
            partial(self._sessions.remove, lease.session, timeout=timeout, keep=lines.append)
        )
        for text in lines:
            try:
                await self.pool.ask("keep_log", lease.id, text)
            except GPUPoolError as problem:  # the proof counts all the same
                self.log.warning("lease=%s: its last lines are not kept: %s", lease.id, problem.message)
        if gone:
            self.object_id = ""
        return bool(gone)


def network_of(pool: str) -> str:
    """The name of the pool's own network."""
    return f"gpupool-{pool}"


def engine_settings(client_kwargs: Mapping[str, Any], tls_config: Mapping[str, Any]) -> dict[str, Any]:
    """The spawner's way to the engine as arguments of :func:`connect`, for the service too."""
    return {**client_kwargs, **({"tls": dict(tls_config)} if tls_config else {})}
