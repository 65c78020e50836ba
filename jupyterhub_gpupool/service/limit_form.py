"""A limit as the fields of a form and as words: what is typed becomes keys, or a sentence beside its field.  Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .. import fairness
from ..fairness.limits import KEYS
from ..fairness.words import figure, short, span
from ..model import Limit

SCOPE = "scope"
"""The field that names whose limit it is."""

UNLIMITED = "no limit"

_UNITS = {"": 1, "s": 1, "min": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)\s*(s|min|h|d|)", re.ASCII)
_NUMBER = re.compile(r"-?\d{1,30}(\.\d{1,30})?([eE][-+]?\d{1,3})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Field:
    """A field of the form, named as the key of the limit."""

    name: str
    label: str
    hint: str
    control: str = "text"
    """``text``, ``area`` for several lines, ``check`` for yes or no."""
    empty: str = UNLIMITED
    """What holds where nothing is typed."""

    def belongs_to(self, scope: str) -> bool:
        """Whether a scope of this kind may have the key."""
        return scope.partition(":")[0] in KEYS[self.name].kinds


FIELDS = (
    Field("sessions", "Sessions at once", "a whole number; 0: none"),
    Field("gpus", "GPU-equivalents at once", "a quarter of a GPU is 0.25"),
    Field("queued", "Requests that may wait", "a whole number; 0: none"),
    Field("gpu_hours", "GPU-hours", "held within the window, used or not"),
    Field("window", "Window of the GPU-hours", "such as 7 d, 12 h or 30 min; it slides", empty="7 d"),
    Field("max_age", "Longest session", "such as 12 h; it is warned and then ended"),
    Field(
        "profiles",
        "Profiles",
        "slugs with commas between, no others may be chosen; [] is none at all",
        empty="all",
    ),
    Field("priority", "Priority", "1 to 100, counts in the orders priority and fair", empty="10"),
    Field(
        "guaranteed_gpus", "Guaranteed GPU-equivalents", "its own: who borrows them makes room", empty="none"
    ),
    Field(
        "reservations",
        "Reservations",
        "one on a line: GPU-equivalents, start, end, such as 2 2026-06-01T09:00+02:00 2026-06-05T18:00+02:00",
        "area",
        empty="none",
    ),
    Field("strict", "Strict", "also holds for members whose session another group is charged for", "check"),
)
LABELS = {field.name: field.label for field in FIELDS}


def fields_of(scope: str) -> list[Field]:
    """The fields that a scope's form has."""
    return [field for field in FIELDS if field.belongs_to(scope)]


# --- from keys to text -----------------------------------------------------------------------------------


def typed(limit: Limit | None) -> dict[str, str]:
    """A limit as somebody would have typed it."""
    keys = {} if limit is None else fairness.write_limit(limit)
    return {name: _text(name, value) for name, value in keys.items()}


def _text(name: str, value: Any) -> str:
    match name:
        case "window" | "max_age":
            return _duration(value)
        case "profiles":
            plain = value and all(
                slug == slug.strip() and "," not in slug and slug[0] != "[" for slug in value
            )
            return ", ".join(value) if plain else json.dumps(value)
        case "reservations":
            return "\n".join(f"{_number(item['gpus'])} {item['start']} {item['end']}" for item in value)
        case "strict":
            return "yes"
        case _:
            return _number(value)


def _number(value: float) -> str:
    text = f"{value:.12g}"
    return text if float(text) == value else repr(value)


def _duration(seconds: float) -> str:
    for unit in ("d", "h", "min"):
        if seconds % _UNITS[unit] == 0:
            return f"{seconds / _UNITS[unit]:.12g} {unit}"
    return f"{seconds:.12g} s"


def words(name: str, limit: Limit | None) -> str:
    """The value of one key for a reader."""
    value = None if limit is None else getattr(limit, name)
    if limit is None or value is None:
        return UNLIMITED if name != "strict" else ""
    match name:
        case "gpu_hours":
            return f"{figure(value)} in {span(limit.window)}"
        case "max_age":
            return span(value)
        case "profiles":
            return ", ".join(value) or "none"
        case "reservations":
            return _text(name, fairness.write_limit(limit)[name]) if value else "none"
        case "strict":
            return "yes" if value else "no"
        case _:
            return figure(value)


# --- from text to keys -----------------------------------------------------------------------------------


def read(scope: str, given: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Read what was typed: the keys of the limit, and a sentence for each field that is wrong."""
    keys: dict[str, Any] = {}
    wrong: dict[str, str] = {}
    for field in fields_of(scope):
        text = given.get(field.name, "").strip()
        if not text:
            continue
        keys[field.name] = value = _value(field.name, text)
        with_it = {"gpu_hours": 0} if field.name == "window" else {}
        problem = problem_of(scope, {**with_it, field.name: value})
        if problem:
            wrong[field.name] = problem
    if not wrong:
        problem = problem_of(scope, keys)
        if problem:
            wrong["window" if "window" in keys and "gpu_hours" not in keys else "guaranteed_gpus"] = problem
    return keys, wrong


def problem_of(scope: str, keys: Mapping[str, Any]) -> str:
    """What is wrong with a limit, in the words of a form; empty: nothing."""
    try:
        fairness.read_limit(scope, keys)
    except ValueError as problem:
        return in_a_form(scope, str(problem))
    return ""


def in_a_form(scope: str, problem: str) -> str:
    """A sentence on the setting ``GPUPool.limits``, for somebody before a form."""
    found = problem.removeprefix(f"GPUPool.limits[{short(scope)}]: ").removeprefix("GPUPool.limits: ")
    found = found.replace("Leave the key out for no limit.", "Leave it empty for no limit.")
    return found[:1].upper() + found[1:]


def _value(name: str, text: str) -> Any:
    """What was typed as the value of a key; what makes no sense stays text, and is refused as such."""
    match name:
        case "window" | "max_age":
            found = _DURATION.fullmatch(text)
            return text if found is None else float(found[1]) * _UNITS[found[2]]
        case "profiles":
            return _slugs(text)
        case "reservations":
            return [_reservation(line) for line in text.splitlines() if line.strip()]
        case "strict":
            return text == "yes" or text
        case _:
            return json.loads(text) if _NUMBER.fullmatch(text) and _plain(text) else text


def _plain(text: str) -> bool:
    """Whether JSON takes it for a number: no needless zeros before it."""
    return not re.match(r"-?0\d", text)


def _slugs(text: str) -> Any:
    if not text.startswith("["):
        return [slug.strip() for slug in text.split(",") if slug.strip()]
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _reservation(line: str) -> Any:
    parts = line.split()
    if len(parts) != 3:
        return line.strip()
    gpus, start, end = parts
    return {"gpus": _value("gpus", gpus), "start": start, "end": end}
