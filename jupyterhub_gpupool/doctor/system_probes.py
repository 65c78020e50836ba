"""What the machine says: its files, its processes, NVIDIA's commands.  Each returns a fact or why there is none."""

from __future__ import annotations

import os
import re
import shutil
import stat
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil

from ..configuration.hub import CULLER
from .asking import command, which
from .facts import Card, Disk, Driver, Kept, Processes, Smi, Toolkit
from .model import Unknown

SMI_SECONDS = 20.0
"""Without persistence mode the driver wakes every GPU first."""
COMMAND_SECONDS = 5.0

NVIDIA_VENDOR = "0x10de"
DISPLAY_CLASS = "0x03"

LIBRARIES = ("lib", "lib64", "lib/*", "lib/*/nvidia/current", "lib/nvidia*")
"""Where under /usr distributions put the driver's library."""

FIELDS = ("index", "uuid", "name", "compute_mode", "persistence_mode")
MIG_FIELDS = ("mig.mode.current", "mig.mode.pending")

UUID = re.compile(r"(?:GPU|MIG)-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_OCTAL = re.compile(r"\\([0-7]{3})")
"""How the kernel writes a space in the name of a mount point."""

MOST_CDI = 4 * 1024 * 1024

HOOK = "nvidia-container-runtime-hook"
VERSIONS = (("nvidia-ctk", "--version"), ("nvidia-container-cli", "--version"), (HOOK, "--version"))
ACCEPTS = "accept-nvidia-visible-devices-envvar-when-unprivileged"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


# --- the driver ------------------------------------------------------------------------------------


def driver(root: Path) -> Driver:
    """Look for the driver in the system's files."""
    said = re.search(
        r"Kernel Module\b.*?\s(\d+\.\d+(?:\.\d+)*)\s", _text(root / "proc/driver/nvidia/version")
    )
    module = said[1] if said else _text(root / "sys/module/nvidia/version").strip()
    return Driver(
        cards=_cards(root / "sys/bus/pci/devices"),
        module=module,
        libraries=tuple(sorted(set(_libraries(root / "usr")))),
        nouveau=(root / "sys/module/nouveau").exists(),
    )


def _cards(bus: Path) -> int | None:
    try:
        devices = list(bus.iterdir())
    except OSError:
        return None
    return sum(
        _text(one / "vendor").strip() == NVIDIA_VENDOR and _text(one / "class").startswith(DISPLAY_CLASS)
        for one in devices
    )


def _libraries(usr: Path) -> Iterator[str]:
    for folder in LIBRARIES:
        for path in usr.glob(f"{folder}/libnvidia-ml.so.*"):
            version = path.name.removeprefix("libnvidia-ml.so.")
            if "." in version:  # .so.1 is a link to it
                yield version


def smi() -> Smi | Unknown:
    """Ask ``nvidia-smi`` for the GPUs and MIG instances."""
    program = which("nvidia-smi")
    if program is None:
        return Unknown("nvidia-smi is not installed.")
    said = command(program, _query(*FIELDS, *MIG_FIELDS), "--format=csv,noheader", seconds=SMI_SECONDS)
    if said.status and "valid field" in said.out + said.err:  # a driver that knows no MIG
        said = command(program, _query(*FIELDS), "--format=csv,noheader", seconds=SMI_SECONDS)
    if said.status != 0:
        return Smi(said.status, said.last)
    rows = [[cell.strip() for cell in line.split(",")] for line in said.out.splitlines()]
    cards = tuple(Card(*row) for row in rows if len(row) in (len(FIELDS), len(FIELDS + MIG_FIELDS)))
    parts = command(program, "-L", seconds=SMI_SECONDS)
    instances = tuple(one for one in UUID.findall(parts.out) if one.startswith("MIG-"))
    return Smi(parts.status, "" if cards else said.last, cards, instances)


def _query(*fields: str) -> str:
    return f"--query-gpu={','.join(fields)}"


# --- the container toolkit ---------------------------------------------------------------------------


def toolkit(root: Path) -> Toolkit:
    """Look for NVIDIA's container toolkit, its settings and what it has described."""
    hook = which(HOOK)
    return Toolkit(
        version=_toolkit_version(),
        hook_changed=os.stat(hook).st_ctime if hook else None,
        accepts_variable=_accepts(root / "etc/nvidia-container-runtime/config.toml"),
        described=tuple(_described(root)),
        nodes_without_link=tuple(_unlinked(root / "dev")),
    )


def _toolkit_version() -> str:
    for program, option in VERSIONS:
        path = which(program)
        said = command(path, option, seconds=COMMAND_SECONDS) if path else None
        if said and (found := re.search(r"(\d+\.\d+\.\d+\S*)", said.out)):
            return found[1].rstrip(",")
    return ""


def _accepts(path: Path) -> bool | None:
    try:
        return bool(tomllib.loads(path.read_text(encoding="utf-8")).get(ACCEPTS, True))
    except FileNotFoundError:
        return True  # the toolkit's own default
    except (OSError, ValueError):
        return None


def _described(root: Path) -> Iterator[str]:
    for folder in ("etc/cdi", "var/run/cdi", "run/cdi"):
        for path in sorted((root / folder).glob("*.*")):
            try:
                with path.open(encoding="utf-8", errors="replace") as file:
                    yield from dict.fromkeys(UUID.findall(file.read(MOST_CDI)))
            except OSError:
                continue


def _unlinked(dev: Path) -> Iterator[str]:
    for pattern in ("nvidia*", "nvidia-caps/*"):
        for path in sorted(dev.glob(pattern)):
            try:
                found = path.stat()
            except OSError:
                continue
            name = f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"
            if stat.S_ISCHR(found.st_mode) and not (dev / "char" / name).exists():
                yield f"/dev/{path.relative_to(dev)}"


# --- processes, disks, clock, files ---------------------------------------------------------------------


def processes() -> Processes:
    """Look at what runs on this machine, as far as this account may."""
    cullers = proxies = daemons = 0
    for one in psutil.process_iter(["name", "cmdline"]):
        words = [word for word in (one.info["cmdline"] or ())[:6] if word]
        names = [os.path.basename(word) for word in words]
        is_python = bool(names) and names[0].startswith("python")
        cullers += is_python and any(CULLER.search(name) for name in names[1:4])
        proxies += is_python and any(
            name in ("configurable-http-proxy", "configurable_http_proxy") for name in names[1:4]
        )
        daemons += one.info["name"] == "nvidia-cuda-mps-control"[:15] or names[:1] == [
            "nvidia-cuda-mps-control"
        ]
    return Processes(cullers, proxies, daemons)


def disk(what: str, path: Path, mounts: Path = Path("/proc/self/mounts")) -> Disk | Unknown:
    """Measure the file system that a folder lies on."""
    try:
        use, nodes = shutil.disk_usage(path), os.statvfs(path)
    except OSError as problem:
        return Unknown(f"{path} cannot be looked at: {problem.strerror}.")
    left = nodes.f_favail / nodes.f_files if nodes.f_files else 1.0
    return Disk(what, str(path), _kind(path.resolve(), mounts), use.free, use.total, left)


def _kind(path: Path, mounts: Path) -> str:
    best, kind = -1, ""
    for line in _text(mounts).splitlines():
        fields = line.split()
        if len(fields) < 3:
            continue
        point = Path(_OCTAL.sub(lambda found: chr(int(found[1], 8)), fields[1]))
        if path.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), fields[2]
    return kind


def clock() -> bool | Unknown:
    """Ask whether the machine's clock is synchronized."""
    program = which("timedatectl")
    if program is None:
        return Unknown("timedatectl is not installed, so nothing says whether the clock is synchronized.")
    said = command(program, "show", "--property=NTPSynchronized", "--value", seconds=COMMAND_SECONDS)
    if said.status != 0 or said.out.strip() not in ("yes", "no"):
        return Unknown("timedatectl does not say whether the clock is synchronized.")
    return said.out.strip() == "yes"


def kept(folder: Path, files: Iterable[Path]) -> tuple[Kept, ...] | Unknown:
    """Look at the modes of a folder and of those of these files that are there."""
    found: list[Kept] = []
    try:
        found.append(Kept(str(folder), stat.S_IMODE(folder.stat().st_mode), folder=True))
        for path in dict.fromkeys(files):
            try:
                found.append(Kept(str(path), stat.S_IMODE(path.stat().st_mode), shielded=_shielded(path)))
            except FileNotFoundError:
                continue
    except FileNotFoundError:
        return Unknown(f"There is no folder {folder} yet.")
    except OSError as problem:
        return Unknown(f"This account may not look into {folder}: {problem.strerror}.")
    return tuple(found)


def _shielded(path: Path) -> bool:
    return any(not folder.stat().st_mode & 0o011 for folder in path.resolve().parents)
