"""How a value of the profile list is checked, and the sentence that refuses it.

A reader returns the value in its one form, or raises ValueError; :func:`read_section` makes the sentence
of it, which names profile and key and lists what is allowed.
"""

from __future__ import annotations

import difflib
import fnmatch
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from .. import topology
from ..cells import cell_numbers, ranges

LONGEST_ECHO = 60
"""Characters of a foreign text that a message repeats at most."""

PLACEHOLDER = "{value}"
"""What stands in an unlisted choice for the text that the person typed."""

MOST_BYTES = 1 << 60
MOST_CPU = 4095
CPU_WORDS = (topology.NEAR, topology.ALL)
DEEPEST_DATA = 20

_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")


class ProfileError(ValueError):
    """The profile list is wrong: one sentence that names the profile, the key and what is allowed."""


def shown(value: Any) -> str:
    """A foreign value for a message: bounded, control characters escaped, never a container's content."""
    if isinstance(value, str):
        text = repr(value[: LONGEST_ECHO + 1])
        return text if len(text) <= LONGEST_ECHO else text[: LONGEST_ECHO - 1] + "…" + text[0]
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value) if value.bit_length() <= 64 else "a very large number"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, Mapping):
        return "a dictionary"
    if isinstance(value, list | tuple):
        return "a list"
    return f"a {type(value).__name__[:LONGEST_ECHO]}"


def listed(names: Iterable[str], most: int = 20) -> str:
    """Names for a message, each bounded, not more than ``most`` of them."""
    found = [name if _NAME.fullmatch(name) else shown(name) for name in names]
    more = [f"and {len(found) - most} more"] if len(found) > most else []
    return ", ".join(found[:most] + more) or "none"


@dataclass(frozen=True, slots=True)
class Where:
    """The place of a value in the profile list, for the message that refuses it."""

    profile: str
    """Which profile, as the message names it."""
    path: tuple[str, ...] = ()
    placeholders: bool = False
    """Texts with ``{value}`` are left alone: they are read when the person's text is in them."""
    typed: bool = False
    """Values come from a text that a person typed, so numbers may be text."""

    def at(self, key: str) -> Where:
        return replace(self, path=(*self.path, key))

    def error(self, what: str) -> ProfileError:
        """The sentence: which profile, which key, what is wrong with it."""
        key = ".".join(part if is_name(part) else shown(part) for part in self.path)
        return ProfileError(f"Profile {self.profile}{': ' if key else ' '}{key}{' ' if key else ''}{what}.")


@dataclass(frozen=True, slots=True)
class Key:
    """One key: how it is read, what it may hold and what it means (both in words)."""

    read: Callable[[Any, Where], Any]
    allowed: str
    meaning: str
    default: str = ""
    required: bool = False
    typed: bool = True
    """Whether a text that a person typed may stand in it."""


def read_section(value: Any, where: Where, keys: Mapping[str, Key]) -> dict[str, Any]:
    """Read a dictionary by its table of keys.  None stays None: it removes what another layer set.

    Raises ProfileError for a key that the table lacks, or a value that its key does not allow.
    """
    if not isinstance(value, Mapping):
        raise where.error(f"is {shown(value)}; allowed is a dictionary with the keys {listed(keys)}")
    found: dict[str, Any] = {}
    for name, item in value.items():
        key = keys.get(name) if isinstance(name, str) else None
        if key is None:
            near = difflib.get_close_matches(str(name)[:LONGEST_ECHO], keys, 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise where.error(f"has the unknown key {shown(name)}{hint}; allowed are {listed(keys, 30)}")
        waits = where.placeholders and isinstance(item, str) and PLACEHOLDER in item
        if waits and not key.typed:
            raise where.at(name).error(f"has {PLACEHOLDER} in it; no typed text may reach this key")
        if item is None or waits:
            found[name] = item
            continue
        try:
            found[name] = key.read(item, where.at(name))
        except ProfileError:
            raise
        except (ValueError, OverflowError) as problem:
            raise where.at(name).error(f"is {shown(item)}; allowed is {key.allowed}") from problem
    for name, key in keys.items():
        if key.required and found.get(name) is None:
            raise where.error(f"lacks the key {name!r}; it must be {key.allowed}")
    return found


# --- readers: return the value in its one form, or raise ValueError -----------------------------------


def is_plain(text: str) -> bool:
    """Whether a text has neither control characters nor halves of characters, which no place can store."""
    return not any(char < " " or "\x7f" <= char <= "\x9f" or "\ud800" <= char <= "\udfff" for char in text)


def is_name(text: str) -> bool:
    """Whether a text can be a slug or the name of an option: ``--`` would make form fields ambiguous."""
    return bool(_NAME.fullmatch(text)) and "--" not in text


def read_text(value: Any, where: Where) -> str:
    if not value or not isinstance(value, str) or not value.strip():
        raise ValueError
    return read_words(value, where)


def read_words(value: Any, where: Where) -> str:
    """A text that may be empty and may have several lines."""
    if not isinstance(value, str) or not is_plain(re.sub(r"[\n\t]", " ", value)):
        raise ValueError
    return value


def read_slug(value: Any, where: Where) -> str:
    if not isinstance(value, str) or not is_name(value):
        raise ValueError
    return value


def read_flag(value: Any, where: Where) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def _number(value: Any, where: Where) -> float:
    if where.typed and isinstance(value, str) and re.fullmatch(r"[0-9]{1,15}(\.[0-9]{1,6})?", value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError
    return float(value)


def read_between(
    low: float, high: float, *, whole: bool = False, above: bool = False
) -> Callable[[Any, Where], Any]:
    def read(value: Any, where: Where) -> float:
        number = _number(value, where)
        if not low <= number <= high or (above and number == low) or (whole and number != int(number)):
            raise ValueError
        return int(number) if whole else number

    return read


def read_one_of(*words: str) -> Callable[[Any, Where], str]:
    def read(value: Any, where: Where) -> str:
        if value not in words:
            raise ValueError
        return str(value)

    return read


def read_bytes(value: Any, where: Where) -> int:
    """A size as JupyterHub's ByteSpecification reads it: bytes, or text with K, M, G or T of 1024."""
    if isinstance(value, str) and (found := re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,6})?)([KMGT])", value)):
        value = float(found[1]) * _UNITS[found[2]]
    size = int(_number(value, where))
    if not 0 < size <= MOST_BYTES:
        raise ValueError
    return size


def read_gpu_memory(value: Any, where: Where) -> int | str:
    """MiB as a number, or a fraction of the GPU as text."""
    if isinstance(value, str) and (found := re.fullmatch(r"([0-9]{1,3})/([0-9]{1,3})", value)):
        if not 0 < int(found[1]) <= int(found[2]):
            raise ValueError
        return f"{int(found[1])}/{int(found[2])}"
    if (mebibytes := read_bytes(value, where) >> 20) < 1:
        raise ValueError
    return mebibytes


def read_model(value: Any, where: Where) -> str:
    pattern = read_text(value, where)
    re.compile(fnmatch.translate(pattern))
    return pattern


def read_mig(value: Any, where: Where) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[0-9]{1,2}[cg]\.[0-9a-z.+]{1,30}", value):
        raise ValueError
    return value


def read_regex(value: Any, where: Where) -> str:
    try:
        re.compile(read_words(value, where))
    except re.error as problem:
        raise ValueError(str(problem)) from problem
    return str(value)


def read_cpus(value: Any, where: Where) -> str:
    """CPUs as the kernel lists them, in order and each once: ``0-7,16``; or a word that names them."""
    if value in CPU_WORDS:
        return str(value)
    if not isinstance(value, str) or not re.fullmatch(
        r"[0-9]{1,4}(-[0-9]{1,4})?(,[0-9]{1,4}(-[0-9]{1,4})?)*", value
    ):
        raise ValueError
    pairs = [part.split("-") for part in value.split(",")]
    if any(int(pair[0]) > int(pair[-1]) or int(pair[-1]) > MOST_CPU for pair in pairs):
        raise ValueError
    return ranges(set(cell_numbers(value)))


def read_groups(value: Any, where: Where) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not value:
        raise ValueError
    return tuple(read_text(name, where) for name in value)


def read_mapping(value: Any, where: Where) -> dict[str, Any]:
    """A dictionary whose own keys are read later."""
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise ValueError
    return dict(value)


def read_plain_data(value: Any, depth: int = 0) -> Any:
    if depth > DEEPEST_DATA:
        raise ValueError
    if isinstance(value, Mapping):
        if not all(isinstance(name, str) for name in value):
            raise ValueError
        return {name: read_plain_data(item, depth + 1) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [read_plain_data(item, depth + 1) for item in value]
    if not (value is None or isinstance(value, str | int | float)) or value != value:
        raise ValueError
    return value
