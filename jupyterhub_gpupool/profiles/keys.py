"""The keys of a profile: what each may hold and what it means.

The tables are the one list of keys: reading checks against them, and :func:`reference` makes the
documentation of them.  What belongs together across keys is checked in :mod:`.settings`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

from ..containment import DANGERS
from ..model import When
from .schema import (
    DEEPEST_DATA,
    LONGEST_ECHO,
    PLACEHOLDER,
    Key,
    Where,
    listed,
    read_between,
    read_bytes,
    read_cpus,
    read_flag,
    read_gpu_memory,
    read_groups,
    read_mapping,
    read_mig,
    read_model,
    read_one_of,
    read_plain_data,
    read_regex,
    read_section,
    read_slug,
    read_text,
    read_words,
    shown,
)

TYPED_SETTINGS = ("environment",)
"""Settings of a spawner in which a typed text may stand.  All others name paths, commands or rights, or are
templates that would be filled in once more."""


def _spawner_override(value: Any, where: Where) -> dict[str, Any]:
    for name in read_mapping(value, where):
        if name in SETTINGS:
            raise where.error(f"names {name!r}, which is a key of its own; write it beside spawner_override")
        if name in OWNED:
            raise where.error(f"names {name!r}, which belongs to the pool; allowed is any other setting")
        if callable(value[name]):
            raise where.at(name).error("is a function; allowed are plain values")
        may_hold = name in TYPED_SETTINGS and isinstance(value[name], Mapping)
        if where.placeholders and not may_hold and _has_placeholder(value[name]):
            raise where.at(name).error(
                f"has {PLACEHOLDER} in it; a typed text may only be a value in {' or '.join(TYPED_SETTINGS)}"
            )
    found: dict[str, Any] = read_plain_data(value)
    return found


def _has_placeholder(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_has_placeholder(item) for item in (*value, *value.values()))
    if isinstance(value, list | tuple):
        return any(_has_placeholder(item) for item in value)
    return isinstance(value, str) and PLACEHOLDER in value


def refuse_typed_names(value: Any, where: Where, depth: int = 0) -> None:
    """Raise ProfileError where a typed text would become the name of a key, at any depth."""
    for name, item in value.items() if isinstance(value, Mapping) else ():
        if isinstance(name, str) and PLACEHOLDER in name:
            raise where.error(f"has the key {shown(name)}; a typed text may be a value, never a name")
        if depth < DEEPEST_DATA:
            refuse_typed_names(item, where.at(str(name)), depth + 1)
    for item in value if isinstance(value, list | tuple) else ():
        if depth < DEEPEST_DATA:
            refuse_typed_names(item, where, depth + 1)


def _unsafe(value: Any, where: Where) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise ValueError
    for name in value:
        if name not in DANGERS:
            near = difflib.get_close_matches(name[:LONGEST_ECHO], DANGERS, 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise where.error(f"names {shown(name)}{hint}; allowed are {listed(DANGERS, len(DANGERS))}")
    return tuple(dict.fromkeys(value))


def _of(table: Callable[[], Mapping[str, Key]]) -> Callable[[Any, Where], dict[str, Any]]:
    def read(value: Any, where: Where) -> dict[str, Any]:
        return read_section(value, where, table())

    return read


# --- the tables -------------------------------------------------------------------------------------

OWNED = frozenset(
    {
        "allowed_images",
        "api_token",
        "apply_user_options",
        "auth_state_hook",
        "client_kwargs",
        "escape",
        "format_volume_name",
        "group_overrides",
        "hub",
        "ip",
        "image_whitelist",
        "isolation_note",
        "name",
        "name_template",
        "object_id",
        "object_name",
        "options_form",
        "options_from_form",
        "poll_interval",
        "pool",
        "port",
        "remove",
        "remove_containers",
        "server",
        "start_timeout",
        "state",
        "tls_config",
        "user",
        "user_options",
    }
)
"""Settings of a spawner that no profile may touch: the pool stands on them."""

MOST_SECONDS = 366 * 86400
_SECONDS = "a number of seconds from 0 to a year"

GPU: dict[str, Key] = {
    "count": Key(read_between(1, 64, whole=True), "a whole number from 1 to 64", "so many whole GPUs"),
    "mig": Key(read_mig, 'the name of a MIG profile such as "1g.10gb"', "one MIG instance of this profile"),
    "memory": Key(
        read_gpu_memory,
        'a size such as "20G" (units K, M, G, T of 1024) or a fraction such as "1/3"',
        "a share with so much of a GPU's memory",
    ),
    "compute": Key(
        read_between(1, 100, whole=True),
        "a whole number of percent from 1 to 100",
        "a share with so much of the compute guaranteed",
    ),
    "model": Key(read_model, 'a shell pattern such as "A100*"', "only GPUs of these models", '"*"'),
}

TENSORFLOW: dict[str, Key] = {
    "precision": Key(
        read_one_of("auto", "float32", "mixed_float16", "mixed_bfloat16"),
        '"auto", "float32", "mixed_float16" or "mixed_bfloat16"',
        "Keras' precision policy; auto: what the GPU is fast with",
        '"auto"',
    ),
    "xla": Key(
        read_one_of("auto", "on", "off"), '"auto", "on" or "off"', "just-in-time compilation by XLA", '"auto"'
    ),
    "memory": Key(
        read_one_of("limit", "growth"),
        '"limit" or "growth"',
        "limit: TensorFlow takes no more than the slice has; growth: it takes what it needs",
        '"limit"',
    ),
}

IDLE: dict[str, Key] = {
    "window": Key(
        read_between(0, MOST_SECONDS), _SECONDS, "so long without use is idle; 0: never idle", "1800"
    ),
    "threshold": Key(
        read_between(0, 100), "a number of percent from 0 to 100", "utilization from this on is use", "5"
    ),
    "warn": Key(
        read_between(0, MOST_SECONDS, above=True),
        "a number of seconds above 0, up to a year",
        "the warning is delivered so long before the slice is taken back",
        "600",
    ),
    "extend": Key(read_between(0, MOST_SECONDS), _SECONDS, "what one press of Extend gives", "1800"),
    "extend_max": Key(read_between(0, MOST_SECONDS), _SECONDS, "what Extend gives in all", "14400"),
    "min_age": Key(read_between(0, MOST_SECONDS), _SECONDS, "no younger session is taken back", "600"),
    "when": Key(
        read_one_of(*When),
        '"always" or "wanted"',
        "wanted: an idle slice is taken back only while somebody waits",
        '"always"',
    ),
}

SETTINGS: dict[str, Key] = {
    "gpu": Key(_of(lambda: GPU), "a dictionary, see below", "the slice; without it the session has no GPU"),
    "image": Key(
        read_text, "the name of an image", "the container's image, where the backend has containers"
    ),
    "cpu_limit": Key(
        read_between(0, 4096, above=True), "a number of cores above 0, up to 4096", "cores of the processor"
    ),
    "mem_limit": Key(
        read_bytes, 'a size such as "32G" (units K, M, G, T of 1024)', "the session's main memory"
    ),
    "cpuset": Key(
        read_cpus,
        'a list of CPUs such as "0-7,16", "near" or "all"',
        "the session sees these CPUs only, where the backend has containers; TensorFlow starts as many threads; "
        "near: those of the NUMA nodes of its GPUs, where they are known and no fewer than `cpu_limit`",
        "near for several GPUs, else all",
        typed=False,
    ),
    "tensorflow": Key(_of(lambda: TENSORFLOW), "a dictionary, see below", "TensorFlow's settings"),
    "idle": Key(_of(lambda: IDLE), "a dictionary, see below", "when an idle slice is taken back"),
    "max_age": Key(
        read_between(0, MOST_SECONDS), _SECONDS, "the session ends at this age, with a warning; 0: never", "0"
    ),
    "unsafe": Key(
        _unsafe,
        "a list of names of dangers, see [Docker](docker.md)",
        "what the container may do although it is dangerous; everything else dangerous is refused",
        typed=False,
    ),
    "spawner_override": Key(
        _spawner_override,
        "a dictionary of settings and plain values (text, numbers, lists, dictionaries, None)",
        "further settings of the spawner; dictionaries are merged, None removes a key",
        typed=False,
    ),
}
"""Keys that a profile, a choice and an unlisted choice may have; those of a choice win."""

_KUBE = Key(
    read_mapping,
    "a dictionary",
    "settings in KubeSpawner's names, taken over as far as they have a meaning here",
)
_TITLE = Key(read_text, "text that is not empty", "what people read", required=True)
_DEFAULT = Key(read_flag, "True or False", "chosen when nothing else is", "the first")

PROFILE: dict[str, Key] = {
    "display_name": _TITLE,
    "slug": Key(
        read_slug,
        "1 to 63 letters, digits, '.', '_' and single '-', the first and last a letter or digit",
        "its name in links, in the REST interface and in the books",
        "made of display_name",
    ),
    "description": Key(read_words, "text", "shown under the title"),
    "default": _DEFAULT,
    "allowed_groups": Key(
        read_groups,
        "a list of one or more names of groups",
        "who may use it; an admin always may",
        "everybody",
    ),
    "profile_options": Key(read_mapping, "a dictionary of options by name", "what else may be chosen"),
    "kubespawner_override": _KUBE,
    **SETTINGS,
}

OPTION: dict[str, Key] = {
    "display_name": Key(read_text, "text that is not empty", "what people read", "the option's name"),
    "choices": Key(read_mapping, "a dictionary of choices by name", "what may be chosen"),
    "unlisted_choice": Key(read_mapping, "a dictionary, see below", "a field for a text of one's own"),
}

CHOICE: dict[str, Key] = {
    "display_name": Key(read_text, "text that is not empty", "what people read", "the choice's name"),
    "default": _DEFAULT,
    "kubespawner_override": _KUBE,
    **SETTINGS,
}

UNLISTED: dict[str, Key] = {
    "enabled": Key(read_flag, "True or False", "whether the field is there", "False"),
    "display_name": Key(read_text, "text that is not empty", "the field's label", "the option's title"),
    "display_name_in_choices": Key(read_text, "text that is not empty", "its name in the list", '"Other..."'),
    "validation_regex": Key(
        read_regex, "a regular expression of Python", "the whole text must match it, not only its beginning"
    ),
    "validation_message": Key(read_words, "text", "what the text must look like, in words"),
    "kubespawner_override": _KUBE,
    **SETTINGS,
}


def reference() -> str:
    """All keys as Markdown tables, for the documentation."""
    sections: list[tuple[str, Mapping[str, Key]]] = [
        ("A profile", PROFILE),
        ("`gpu`: `count`, `mig`, or `memory` with `compute`", GPU),
        ("`idle`", IDLE),
        ("`tensorflow`", TENSORFLOW),
        ("An option, in `profile_options`", OPTION),
        ("A choice, in `choices`: these, and the keys from `gpu` on of a profile", CHOICE),
        ("`unlisted_choice`: these, and the keys from `gpu` on of a profile", UNLISTED),
    ]
    lines: list[str] = []
    for title, keys in sections:
        lines += [f"**{title}**", "", "| key | allowed | default | meaning |", "| --- | --- | --- | --- |"]
        for name, key in keys.items():
            if keys in (CHOICE, UNLISTED) and name in SETTINGS:
                continue
            default = "must be given" if key.required else key.default or "none"
            lines.append(f"| `{name}` | {key.allowed} | {default} | {key.meaning} |")
        lines.append("")
    return "\n".join(lines)
