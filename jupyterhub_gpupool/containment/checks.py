"""One value of the host configuration or of the container, and what is dangerous about it."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from .names import shown
from .paths import plain_key

Found = Iterator[tuple[str, str]]
"""The name of a danger, and what is wrong with the value, in words that follow the name of its key."""

LOOPBACK_NAMES = ("localhost", "ip6-localhost")
PLAIN_RUNTIMES = ("", "runc", "io.containerd.runc.v2")
FIRST_PERSONS_ID = 1000
USERS_GROUP = 100
"""Debian's and the Jupyter images' group for everybody; the other numbers below 1000 are the system's."""

GROUPS = frozenset(
    {
        "root",
        "docker",
        "podman",
        "containerd",
        "lxd",
        "libvirt",
        "disk",
        "kmem",
        "shadow",
        "sudo",
        "wheel",
        "adm",
    }
)
MASKED = frozenset({"/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"})
READ_ONLY = frozenset({"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"})
SECRET = re.compile(r"TOKEN|SECRET|PASSW|CRYPT|KEY", re.IGNORECASE)
ENGINE_VARIABLES = ("DOCKER_HOST", "CONTAINER_HOST", "CONTAINERD_ADDRESS")


def lines(value: Any) -> list[str]:
    """A list, a dictionary or one text, as texts."""
    if value is None or value == "":
        return []
    if isinstance(value, Mapping):
        return [str(item) for pair in value.items() for item in pair]
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return [
            text for item in value for text in (lines(item) if isinstance(item, Mapping) else [str(item)])
        ]
    return [str(value)]


def named(value: Any) -> list[str]:
    """The names in a dictionary, or in a list such as ``["A=1", "B"]``."""
    if isinstance(value, Mapping):
        return [str(name) for name in value]
    return [line.partition("=")[0] for line in lines(value)]


def nothing(value: Any) -> Found:
    yield from ()


def _if_set(danger: str) -> Callable[[Any], Found]:
    def check(value: Any) -> Found:
        if value:
            yield danger, f"is {shown(value)}"

    return check


def _namespace(danger: str) -> Callable[[Any], Found]:
    def check(value: Any) -> Found:
        text = str(value or "").strip().lower()
        if text == "host":
            yield danger, "is 'host'"
        elif text.startswith("container:"):
            yield "other-container", f"is {shown(value)}"
        elif "{" in text:
            yield danger, f"is {shown(value)}, which may come to be 'host'"

    return check


def _runtime(value: Any) -> Found:
    if value and str(value) not in PLAIN_RUNTIMES:
        yield "runtime", f"is {shown(value)}"


def _security(value: Any) -> Found:
    for line in lines(value):
        name, _, said = re.sub(r"[=:]", "\0", line.strip().lower(), count=1).partition("\0")
        if name == "no-new-privileges" and said not in ("", "1", "t", "true"):
            yield "new-privileges", f"has {shown(line)}"
        elif name == "seccomp" and said not in ("builtin", "default"):
            yield "seccomp-unconfined", f"has {shown(line)}"
        elif name == "apparmor" and (said == "unconfined" or "{" in said):
            yield "apparmor-unconfined", f"has {shown(line)}"
        elif name == "disable" or (name == "label" and re.search(r"disable|spc_t|unconfined|\{", said)):
            yield "selinux-disabled", f"has {shown(line)}"
        elif name == "systempaths":
            yield "unmasked-paths", f"has {shown(line)}"
        elif name == "writable-cgroups" and said not in ("0", "f", "false"):
            yield "cgroup", f"has {shown(line)}"


def _keeps(paths: frozenset[str]) -> Callable[[Any], Found]:
    def check(value: Any) -> Found:
        if value is not None and not paths <= set(lines(value)):
            yield "unmasked-paths", f"lacks {', '.join(sorted(paths - set(lines(value))))}"

    return check


def _user(value: Any) -> Found:
    text = "" if value is None else str(value).strip()
    user, _, group = text.partition(":")
    if re.fullmatch(r"[+-]?[0-9]+", user):
        if int(user) == 0:
            yield "root-user", f"is {shown(value)}"
    elif not text:
        yield "root-user", "is empty, and only the image says who that is"
    else:  # only the image's own files say which number a name has
        why = "" if user == "root" else ", and only a number shows that it is not root's"
        yield "root-user", f"is {shown(value)}{why}"
    if group:
        yield from _groups([group])


def _groups(value: Any) -> Found:
    for group in lines(value):
        name = group.strip().lower()
        number = int(name) if re.fullmatch(r"[+-]?[0-9]+", name) else None
        if number is None:
            is_systems = name in GROUPS or "{" in name
        else:
            is_systems = number < FIRST_PERSONS_ID and number != USERS_GROUP
        if is_systems:
            yield "group-add", f"names the group {shown(group)}"


def _pids(value: Any) -> Found:
    if value is None or (isinstance(value, int) and value <= 0):
        yield "no-pids-limit", f"is {shown(value)}"


def _oom_score(value: Any) -> Found:
    if isinstance(value, int) and value < 0:
        yield "oom-exempt", f"is {value}"


def _variables(value: Any) -> Found:
    for name in named(value):
        if name in ENGINE_VARIABLES:
            yield "engine-socket", f"sets {shown(name)}"


def _kept(value: Any) -> Found:
    for name in named(value):
        if SECRET.search(name):
            yield "hub-secrets", f"keeps {shown(name)}"


def _endpoints(value: Any) -> Found:
    if re.search(r"'links': *[\[{(]['\"]", repr(value).lower()):
        yield "links", "has links"


def ports(value: Any, notebook: Any) -> Found:
    """Ports that are published: only the notebook's, and only on loopback, is none."""
    for inner, outer in value.items() if isinstance(value, Mapping) else ():
        if str(inner).removesuffix("/tcp") != str(notebook):
            yield "published", f"publishes port {shown(inner)}"
            continue
        for binding in outer if isinstance(outer, list) else [outer]:
            if not _is_loopback(_address(binding)):
                yield "published", f"publishes port {inner} on {shown(binding)}"


def _address(binding: Any) -> str:
    if isinstance(binding, Mapping):
        return next((str(item) for name, item in binding.items() if plain_key(name) == "hostip"), "")
    if isinstance(binding, tuple) and binding:
        return str(binding[0])
    return ""


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address in LOOPBACK_NAMES


CHECKS: dict[str, Callable[[Any], Found]] = {
    "host.privileged": _if_set("privileged"),
    "host.capadd": _if_set("cap-add"),
    "host.networkmode": _namespace("host-network"),
    "trait.networkname": _namespace("host-network"),
    "host.pidmode": _namespace("host-pid"),
    "host.ipcmode": _namespace("host-ipc"),
    "host.utsmode": _namespace("host-uts"),
    "host.usernsmode": _namespace("host-userns"),
    "host.cgroup": _namespace("cgroup"),
    "host.cgroupparent": _if_set("cgroup"),
    "host.volumesfrom": _if_set("other-container"),
    "host.devices": _if_set("devices"),
    "host.devicecgrouprules": _if_set("devices"),
    "host.securityopt": _security,
    "host.maskedpaths": _keeps(MASKED),
    "host.readonlypaths": _keeps(READ_ONLY),
    "host.runtime": _runtime,
    "create.runtime": _runtime,
    "host.sysctls": _if_set("sysctls"),
    "host.groupadd": _groups,
    "create.user": _user,
    "trait.runas": _user,
    "host.publishallports": _if_set("published"),
    "host.links": _if_set("links"),
    "trait.links": _if_set("links"),
    "create.networkingconfig": _endpoints,
    "host.pidslimit": _pids,
    "host.oomkilldisable": _if_set("oom-exempt"),
    "host.oomscoreadj": _oom_score,
    "trait.environment": _variables,
    "create.environment": _variables,
    "trait.envkeep": _kept,
}
