"""Checks of the container engine, NVIDIA's toolkit beside it, and the images of the sessions.  Pure."""

from __future__ import annotations

import re

from ..containment import image_problem
from .facts import Books, Engine, Images, Network, Pool, Reach, Smi, Toolkit
from .model import Result, Unknown, check, error, listed, ok, skipped, warning

ENGINE_FLOOR = (20, 10)

TOOLKIT_FLOOR = (1, 17, 8)
"""Below it there are known ways out of a container: CVE-2024-0132, CVE-2025-23359, CVE-2025-23266."""
TOOLKIT_ADVISED = (1, 18, 2)
"""From it on, ``NVIDIA_VISIBLE_DEVICES=none`` really is none."""

TOOLKIT_FIX = "apt-get install --only-upgrade nvidia-container-toolkit, then systemctl restart docker"

NVIDIA = "nvidia"
PLAIN = ("runc", "io.containerd.runc.v2", "crun")


def numbers(version: str) -> tuple[int, ...]:
    """The numbers of a version, for comparing; a release candidate comes before its release."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    parts = tuple(int(part) for part in found[0].split(".")) if found else ()
    candidate = re.search(r"[-~.]?(?:rc|alpha|beta)", version, re.IGNORECASE)
    return (*parts, -1) if candidate else parts


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _below(version: str, floor: tuple[int, ...]) -> bool:
    found = numbers(version)
    if found[-1:] == (-1,):
        return found[:-1] <= floor
    return found < floor


@check(
    "engine-answers",
    "engine",
    "The container engine answers, and is not too old.",
    "engine",
    reports="engine",
)
def engine_answers(engine: Engine) -> Result:
    if numbers(engine.version)[:2] < ENGINE_FLOOR:
        return error(
            f"The engine is {engine.version}; the pool needs {ENGINE_FLOOR[0]}.{ENGINE_FLOOR[1]} or later.",
            "apt-get install --only-upgrade docker.io (or docker-ce)",
        )
    if any("rootless" in one for one in engine.security):
        return error(
            "The engine is rootless: its containers do not reach a hub on this machine.",
            "use the machine's own engine: unset DOCKER_HOST; or backend='local'",
        )
    return ok(f"Docker Engine {engine.version}.")


@check(
    "engine-exposed",
    "engine",
    "The engine cannot be reached over the network without a certificate.",
    "engine",
)
def engine_exposed(engine: Engine) -> Result:
    if open_to := [one for one in engine.warnings if "API is accessible" in one]:
        return error(
            f"Whoever reaches the engine is root on this machine, and it says: {open_to[0][:200]}",
            "take -H tcp://… out of dockerd's options, or set up TLS; then systemctl restart docker",
        )
    return ok("The engine says of no address that it is open.")


@check("live-restore", "engine", "Sessions outlive a restart of the engine.", "engine")
def live_restore(engine: Engine) -> Result:
    if engine.live_restore:
        return ok("live-restore is on.")
    return warning(
        "A restart of the engine, as an upgrade does it, ends all sessions: live-restore is off.",
        'put "live-restore": true into /etc/docker/daemon.json, then systemctl reload docker',
    )


@check(
    "toolkit-version",
    "engine",
    "NVIDIA's container toolkit has no known way out.",
    "toolkit",
    "gpus",
    optional=("pool",),
)
def toolkit_version(toolkit: Toolkit, gpus: str, pool: Pool | Unknown) -> Result:
    if not isinstance(pool, Unknown) and pool.backend != "docker":
        return skipped(f"Sessions are no containers here (backend {pool.backend}).")
    if not toolkit.version:
        if gpus == "real":
            return error(
                "NVIDIA's container toolkit is not installed, so no container gets a GPU.",
                "apt-get install nvidia-container-toolkit, then systemctl restart docker",
            )
        return skipped("NVIDIA's container toolkit is not installed, and nothing here needs it.")
    if _below(toolkit.version, TOOLKIT_FLOOR):
        return error(
            f"NVIDIA's container toolkit {toolkit.version} lets a crafted image out of its container "
            f"(CVE-2024-0132, CVE-2025-23359, CVE-2025-23266); {_dotted(TOOLKIT_FLOOR)} or later does not.",
            TOOLKIT_FIX,
        )
    if _below(toolkit.version, TOOLKIT_ADVISED):
        return warning(
            f"NVIDIA's container toolkit is {toolkit.version}; before {_dotted(TOOLKIT_ADVISED)} an image that sets "
            "NVIDIA_VISIBLE_DEVICES=none may see every GPU.",
            TOOLKIT_FIX,
        )
    return ok(f"NVIDIA's container toolkit is {toolkit.version}.")


def _by_cdi(engine: Engine) -> bool:
    return any(name.startswith("nvidia.com/gpu=") for name in engine.cdi)


@check("gpu-registration", "engine", "The engine can give a container a GPU.", "engine", "toolkit", "gpus")
def gpu_registration(engine: Engine, toolkit: Toolkit, gpus: str) -> Result:
    if _by_cdi(engine):
        return ok(f"The engine knows {len(engine.cdi)} device names under CDI.")
    if toolkit.hook_changed is None and NVIDIA not in engine.runtimes:
        if gpus != "real":
            return skipped("The engine knows no NVIDIA GPUs, and nothing here needs them.")
        return error(
            "The engine can give no container a GPU: it has neither NVIDIA's runtime hook nor its devices under CDI.",
            "nvidia-ctk runtime configure --runtime=docker, then systemctl restart docker",
        )
    late = engine.started is not None and (toolkit.hook_changed or 0.0) > engine.started
    if late and NVIDIA not in engine.runtimes:
        return warning(
            "NVIDIA's runtime hook was installed or upgraded after the engine had started, which looks for it only "
            "at its start.",
            "systemctl restart docker (this ends sessions unless live-restore is on)",
        )
    return ok("GPUs come by NVIDIA's runtime hook.")


@check("cdi-fresh", "engine", "The CDI files name every GPU and MIG instance.", "engine", "toolkit", "smi")
def cdi_fresh(engine: Engine, toolkit: Toolkit, smi: Smi) -> Result:
    if not _by_cdi(engine):
        return skipped("GPUs do not come by CDI.")
    if smi.status != 0:
        return skipped("The driver does not say which GPUs there are.")
    known = {name.partition("=")[2] for name in engine.cdi} | set(toolkit.described)
    # A GPU that is cut up is handed out by its instances alone.
    wanted = [card.uuid for card in smi.cards if card.mig != "Enabled"] + list(smi.instances)
    if missing := [uuid for uuid in wanted if uuid not in known]:
        return error(
            f"The CDI files do not name {listed(missing, 3)}: they were made before MIG was laid out as it is now.",
            "nvidia-ctk cdi generate --output=/var/run/cdi/nvidia.yaml",
        )
    return ok(f"The CDI files name all {len(wanted)} GPUs and MIG instances.")


@check("default-runtime", "engine", "A container that asks for no GPU gets none.", "engine")
def default_runtime(engine: Engine) -> Result:
    if engine.default_runtime == NVIDIA:
        return error(
            "The engine's default runtime is nvidia: every container whose image sets NVIDIA_VISIBLE_DEVICES gets "
            "GPUs, whatever its lease says.",
            "nvidia-ctk runtime configure --runtime=docker --set-as-default=false, then systemctl restart docker",
        )
    if engine.default_runtime not in PLAIN:
        return warning(
            f"The engine's default runtime is {engine.default_runtime}, of which nothing is known here.",
            'take "default-runtime" out of /etc/docker/daemon.json, then systemctl restart docker',
        )
    return ok(f"The default runtime is {engine.default_runtime}.")


@check(
    "visible-devices-variable",
    "engine",
    "`accept-nvidia-visible-devices-envvar-when-unprivileged` fits how GPUs reach a container.",
    "toolkit",
    "engine",
)
def visible_devices_variable(toolkit: Toolkit, engine: Engine) -> Result:
    name = "accept-nvidia-visible-devices-envvar-when-unprivileged"
    if not toolkit.version:
        return skipped("NVIDIA's container toolkit is not installed.")
    if toolkit.accepts_variable is None:
        return skipped("The toolkit's config.toml cannot be read by this account.")
    if toolkit.accepts_variable and engine.default_runtime == NVIDIA:
        return error(
            f"{name} is true, and NVIDIA's runtime is the default: any image, and any variable that a person sets, "
            "opens all GPUs.",
            f"nvidia-ctk config --in-place --set {name}=false; and the check default-runtime",
        )
    if not toolkit.accepts_variable and not _by_cdi(engine):
        return warning(
            f"{name} is false, and the engine has no CDI devices: the pool's own requests reach NVIDIA's hook as "
            "that variable, and it may refuse them.",
            "nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml, and the engine's feature cdi; or set it to true",
        )
    if toolkit.accepts_variable:
        return ok("Only containers that ask for GPUs meet NVIDIA's hook, so the variable opens nothing.")
    return ok(f"{name} is false, and GPUs come by CDI.")


@check(
    "daemon-reload",
    "engine",
    "A `systemctl daemon-reload` takes no GPU away from a session.",
    "engine",
    "toolkit",
)
def daemon_reload(engine: Engine, toolkit: Toolkit) -> Result:
    if engine.cgroup_driver != "systemd":
        return ok(
            f"The engine's cgroup driver is {engine.cgroup_driver}, so systemd does not touch its rules."
        )
    if not toolkit.version:
        return skipped("NVIDIA's container toolkit is not installed.")
    if _by_cdi(engine):
        return ok("GPUs come by CDI, so the engine itself knows their device nodes.")
    if toolkit.nodes_without_link:
        return error(
            "The next `systemctl daemon-reload`, which upgrades do, takes the GPUs out of running sessions: "
            f"/dev/char has no link to {listed(toolkit.nodes_without_link)}.",
            "nvidia-ctk system create-dev-char-symlinks --create-all, at each boot (a udev rule)",
        )
    return ok("/dev/char has links to all device nodes of NVIDIA.")


@check("image-present", "engine", "The engine has the images of all profiles.", "images")
def image_present(images: Images) -> Result:
    missing = [name for name, key in images.found.items() if key is None]
    ids = [name for name in missing if name.startswith("sha256:")]
    if ids:
        return error(
            f"The engine has no image {_short(ids[0])}, which {images.used_by[ids[0]]} names by its id; no registry "
            "knows that one.",
            "make image, and write the line it prints into the configuration",
        )
    if missing:
        return warning(
            f"The engine has not got {listed(map(_short, missing), 3)} yet: the first session waits for it.",
            f"docker pull {missing[0]}",
        )
    return (
        ok(f"The engine has all {len(images.found)} image(s).")
        if images.found
        else skipped("No image is named.")
    )


@check("image-digest", "engine", "Images are named so that they are the same tomorrow.", "images")
def image_digest(images: Images) -> Result:
    if not images.found:
        return skipped("No image is named.")
    loose = [name for name in images.found if image_problem(name, "*")]
    if loose:
        return error(f"{image_problem(loose[0], '*')}", "docker image ls --digests")
    tags = [name for name in images.found if "sha256:" not in name]
    if tags:
        return warning(
            f"{listed(map(_short, tags), 3)} ({images.used_by[tags[0]]}) has no digest, so it may be another image "
            "tomorrow.",
            f"docker image inspect --format '{{{{.Id}}}}' {tags[0]}, and name that",
        )
    return ok("All images are named by digest or id.")


def _short(image: str) -> str:
    return re.sub(r"(sha256:[0-9a-f]{12})[0-9a-f]+", r"\1…", image)


@check("network", "engine", "Sessions have a network of their own and cannot talk to each other.", "network")
def network(network: Network) -> Result:
    if not network.isolated:
        return error(
            f"The network {network.name} lets sessions talk to each other.",
            f"docker network rm {network.name}, while no session runs; the hub makes it anew at its next start",
        )
    return ok(f"The network {network.name} keeps its containers apart.")


@check(
    "container-network", "engine", "A container on the pool's network reaches the hub.", "reach", "network"
)
def container_network(reach: Reach, network: Network) -> Result:
    if reach.status is None:
        return error(
            f"A container on the network {network.name} does not reach the hub at {reach.url}: {reach.why}. Every "
            "session would be given up after a minute.",
            "let it in: iptables -I INPUT -s $(docker network inspect -f '{{(index .IPAM.Config 0).Subnet}}' "
            f"{network.name}) -j ACCEPT (or your firewall's rule); or set c.JupyterHub.hub_connect_ip",
        )
    if reach.status != 200:
        return warning(
            f"At {reach.url}, where containers look for the hub, something answers with status {reach.status}.",
            "look at c.JupyterHub.hub_ip, hub_port and hub_connect_ip",
        )
    return ok(f"A container on the network {network.name} reaches the hub at {reach.url}.")


@check("gpus-foreign", "engine", "No container that is not the pool's uses its GPUs.", "books")
def gpus_foreign(books: Books) -> Result:
    if taken := [device for device in books.devices if device.foreign]:
        return warning(
            f"On GPU {listed(device.index for device in taken)}: {taken[0].foreign}",
            "docker ps; stop it, or take the GPU out of the pool: gpupool drain DEVICE",
        )
    return ok("The service sees no container of others on the pool's GPUs.")
