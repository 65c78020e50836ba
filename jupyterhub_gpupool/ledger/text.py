"""Words that come out of sessions, made fit to be kept and shown: no control characters, no tokens, bounded.

Whoever owns a session can make its image say anything, so nothing of it is taken as it is.  Pure.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

LOG_LINES = 200
LOG_BYTES = 64 * 1024
"""How much of the end of a log is kept, in UTF-8."""

SENTENCE = 300
"""Characters of a sentence in an event or beside a device."""

VALUE = 500
ENTRIES = 50
DEPTH = 3
"""What a report may hold: characters of a text, entries of a list or an object, levels of them."""

_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[@-Z\\^_]")
# C0 but tab and newline, C1, what turns the direction of text, and halves of surrogate pairs.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_SECRETS = (
    (re.compile(r"(token[\"'\])]{0,3}\s*(?:=|%3D)\s*[\"']?)[^\s\"'&;,)]+", re.I), r"\1…"),
    (re.compile(r"(token[\"'\])]{0,3}\s*:\s*[\"']?)[\w.~+/-]{16,}", re.I), r"\1…"),
    (
        re.compile(r"(authorization[\"']?\s*[=:]\s*[\"']?(?:(?:token|bearer|basic)\s+)?)[^\s\"',}]+", re.I),
        r"\1…",
    ),
    (re.compile(r"(\b(?:bearer|token)\s+)[\w.~+/-]{16,}=*", re.I), r"\1…"),
    (re.compile(r"([?&](?:code|state|_xsrf)=)[^\s\"'&]+"), r"\1…"),
)


def clean(text: str) -> str:
    """The text without escape sequences and control characters; newlines and tabs stay."""
    return _CONTROLS.sub("", _ESCAPES.sub("", text))


def redact(line: str) -> str:
    """The line with ``…`` for what looks like a secret: tokens, ``Authorization``, a login's code and state."""
    for pattern, put in _SECRETS:
        line = pattern.sub(put, line)
    return line


def sentence(text: str) -> str:
    """The text on one line of at most ``SENTENCE`` characters, without secrets."""
    line = redact(" ".join(clean(text).split()))
    return line if len(line) <= SENTENCE else line[: SENTENCE - 1] + "…"


def short_image(image: str) -> str:
    """An image with its digest cut to what people compare."""
    return re.sub(r"(sha256:[0-9a-f]{12})[0-9a-f]+", r"\1…", image)


def last_lines(text: str) -> str:
    """The last ``LOG_LINES`` lines of a log within ``LOG_BYTES``, clean and without secrets.

    Of a line that was written over, as progress bars do, the last state counts.  A line too long for the rest
    of the room keeps its beginning; it is redacted first, so that no cut leaves half a secret.
    """
    kept: list[str] = []
    room = LOG_BYTES
    for raw in reversed(text.rstrip().split("\n")[-LOG_LINES:]):
        line = redact(clean(raw.rstrip("\r").rpartition("\r")[2])).rstrip()
        size = len(line.encode()) + 1
        if size > room:
            line = line.encode()[: max(0, room - 4)].decode(errors="ignore") + "…"
            kept.append(line)
            break
        room -= size
        kept.append(line)
    return "\n".join(reversed(kept)).strip("\n")


def bounded(value: Any, depth: int = DEPTH) -> Any:
    """A report as strict JSON of bounded size; what does not fit in becomes None, which is unknown."""
    match value:
        case None | bool():
            return value
        case int():
            return value if abs(value) < 2**53 else None
        case float():
            return value if math.isfinite(value) else None
        case str():
            return redact(clean(value))[:VALUE]
        case Mapping() if depth:
            listed = list(value.items())[:ENTRIES]
            return {clean(str(key))[:VALUE]: bounded(item, depth - 1) for key, item in listed}
        case list() | tuple() if depth:
            return [bounded(item, depth - 1) for item in value[:ENTRIES]]
        case _:
            return None
