"""Which paths of the machine a session may see, and how a template for one may look.

Judged as the engine reads them: ``//``, ``/./`` and ``/x/../`` are folded, nothing is looked up.  A template
such as ``/{username}`` is judged by all that it could come to, as a user may be called ``etc``.  A symbolic
link on the machine is the admin's own and is not seen here.
"""

from __future__ import annotations

import posixpath
import re
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .names import shown

FIELDS = ("imagename", "prefix", "safe_username", "servername", "username")
"""What a template for a path may name: DockerSpawner escapes these so that none has a slash or a colon."""

ENGINE = (
    "/run/docker.sock",
    "/run/docker",
    "/run/containerd",
    "/run/podman",
    "/run/crio",
    "/run/buildkit",
    "/run/k3s",
    "/run/user/*/docker.sock",
    "/run/user/*/podman",
    "/var/lib/docker",
    "/var/lib/containerd",
    "/var/lib/containers",
)
"""Where engines listen and keep their containers: these, what is in them, and the folders that hold them."""

SOCKET = re.compile(
    r"(?:docker|containerd|podman|crio|cri-dockerd|dockershim|buildkitd?)[\w.-]*\.(?:sock|socket)"
)

MACHINE = ("/boot", "/dev", "/proc", "/root", "/run/dbus", "/run/systemd", "/sys")
"""What the machine itself runs on: these, what is in them, and the folders that hold them, even read-only."""

SYSTEM = ("/bin", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/sbin", "/usr", "/var/spool/cron")
"""Read-only they show nothing to a session that is not root but what everybody may read; /etc as a whole
tells too much of the machine."""

_FIELD = "\0"


@dataclass(frozen=True, slots=True)
class Mounted:
    """One thing that is mounted into the session.  ``source``: a path, or a volume's name."""

    where: str
    source: str
    target: str
    writable: bool
    propagation: str = ""


def path_problem(template: str) -> str | None:
    """Return why a text may not be the source or the target of a mount, or None when it may.

    Only escaped names may stand in it: what people choose themselves, a raw user name or server name, could
    hold ``/../`` or a colon.
    """
    try:
        fields = [(name, spec, how) for _, name, spec, how in string.Formatter().parse(template)]
    except ValueError as problem:
        return f"The path {shown(template)} is no template that can be filled in: {problem}."
    for name, spec, how in fields:
        if name is not None and (name not in FIELDS or spec or how):
            allowed = ", ".join(f"{{{field}}}" for field in FIELDS)
            return (
                f"The path {shown(template)} has {{{name}}} in it, which is not safe in a path; "
                f"allowed are {allowed} as they are."
            )
    if any(char < " " or char == "\x7f" for char in template):
        return f"The path {shown(template)} has a control character; allowed are printable ones."
    return None


def judge(source: str, *, writable: bool) -> Iterator[str]:
    """Yield the dangers of mounting a path of the machine; a volume's name has none."""
    if "/" not in source:
        return
    forms = _forms(source)
    if any(SOCKET.fullmatch(parts[-1]) for parts in forms if parts) or _touches(forms, ENGINE):
        yield "engine-socket"
    if _touches(forms, MACHINE) or _holds(forms, "/etc") or (writable and _touches(forms, SYSTEM)):
        yield "host-path"


def mounted(where: str, value: Any, *, mode: str = "rw") -> Iterator[Mounted]:
    """Read binds and mounts in all their spellings; ``mode`` is that of an entry that names none."""
    if isinstance(value, Mapping):
        for source, target in value.items():
            yield _bind(where, _text(source), target, mode)
    elif isinstance(value, str):
        yield _line(where, value, mode)
    elif isinstance(value, list | tuple):
        for entry in value:
            if isinstance(entry, Mapping):
                yield from _mount(where, entry)
            else:
                yield _line(where, _text(entry), mode)


def plain_key(name: Any) -> str:
    """One spelling for ``pid_mode``, ``PidMode`` and ``PIDMODE``: the engine reads names in any case."""
    return str(name).replace("_", "").lower()


# --- the path -----------------------------------------------------------------------------------------


def _forms(source: str) -> list[list[str]]:
    """The parts of a path, in each form that it may have on the machine; fields of a template are marked."""
    marked = re.sub(
        r"\{\{|\}\}|\{[^{}]*\}", lambda sign: sign[0][0] if sign[0] in ("{{", "}}") else _FIELD, source
    )
    parts = [part for part in posixpath.normpath("/" + marked.strip().lstrip("/")).split("/") if part]
    forms = [parts]
    if len(parts) > 1 and _could_be(parts[0], "var") and _could_be(parts[1], "run"):
        forms.append(parts[1:])  # /var/run is a link to /run
    return forms


def _could_be(part: str, name: str) -> bool:
    if name == "*":
        return True
    return re.fullmatch(".*".join(map(re.escape, part.split(_FIELD))), name, re.DOTALL) is not None


def _touches(forms: list[list[str]], places: tuple[str, ...]) -> bool:
    """Whether the path may be one of the places, in one of them, or a folder that holds one."""
    return any(
        all(_could_be(part, name) for part, name in zip(parts, place.strip("/").split("/"), strict=False))
        for parts in forms
        for place in places
    )


def _holds(forms: list[list[str]], place: str) -> bool:
    return any(len(parts) <= place.count("/") for parts in forms if _touches([parts], (place,)))


# --- the spellings of a mount ---------------------------------------------------------------------------


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _bind(where: str, source: str, target: Any, mode: str) -> Mounted:
    if not isinstance(target, Mapping):
        return Mounted(where, source, _text(target), _is_writable(mode))
    keys = {plain_key(name): item for name, item in target.items()}
    if "ro" in keys:
        mode = "ro" if keys["ro"] else "rw"
    mode = _text(keys.get("mode", mode))
    propagation = _text(keys.get("propagation") or "")
    return Mounted(
        where, source, _text(keys.get("bind", "")), _is_writable(mode), propagation or _shared_by(mode)
    )


def _line(where: str, line: str, mode: str) -> Mounted:
    """``source:target:mode``."""
    source, _, rest = line.partition(":")
    target, _, said = rest.partition(":")
    mode = said or mode
    return Mounted(where, source, target, _is_writable(mode), _shared_by(mode))


def _mount(where: str, entry: Mapping[Any, Any]) -> Iterator[Mounted]:
    keys = {plain_key(name): item for name, item in entry.items()}
    if keys.get("type") == "tmpfs":
        return
    options = _below(keys, "bindoptions")
    source = _text(keys.get("source") or keys.get("src") or "")
    target = _text(keys.get("target") or keys.get("dst") or keys.get("destination") or "")
    writable = not (keys.get("readonly") or keys.get("ro"))
    propagation = _text(keys.get("propagation") or options.get("propagation") or "")
    yield Mounted(where, source, target, writable, propagation)
    driver = _below(keys, "driverconfig") or _below(_below(keys, "volumeoptions"), "driverconfig")
    device = _text(_below(driver, "options").get("device") or "")
    if device.startswith("/"):  # a named volume that is a path, or a disk, of the machine
        yield Mounted(where, device, target, writable)


def _below(keys: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = keys.get(name)
    return {plain_key(key): item for key, item in found.items()} if isinstance(found, Mapping) else {}


def _is_writable(mode: str) -> bool:
    return "ro" not in mode.split(",")


def _shared_by(mode: str) -> str:
    return next((word for word in mode.split(",") if word.endswith(("shared", "slave", "private"))), "")
