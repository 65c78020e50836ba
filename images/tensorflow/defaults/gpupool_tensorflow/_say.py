"""One line to the person, once: in a kernel for each kernel, else for each tree of processes."""

from __future__ import annotations

import os
import sys
from binascii import crc32

TOLD = "GPUPOOL_TOLD"
"""Variable with the marks of the lines said so far, inherited: a pool of worker processes says nothing again."""

_said_here: set[str] = set()


def note(text: str) -> None:
    """Say what is so: under the cell in a kernel (in its plain output, not as an error), else on stderr."""
    _say(text, sys.stdout if in_kernel() else sys.stderr)


def warn(text: str) -> None:
    """Say on stderr what could not be done."""
    _say(text, sys.stderr)


def in_kernel() -> bool:
    """Whether this is a Jupyter kernel."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None and hasattr(ipython, "get_ipython") else None
    return getattr(shell, "kernel", None) is not None


def _say(text: str, stream: object) -> None:
    line = "gpupool: " + " ".join(text.split())
    mark = f"{crc32(line.encode(errors='replace')):08x}"
    told = os.environ.get(TOLD, "").split(",")
    if mark in _said_here or (mark in told and not in_kernel()):
        return
    _said_here.add(mark)
    os.environ[TOLD] = ",".join(item for item in dict.fromkeys([*told, mark]) if item)
    try:
        if stream is not None:
            print(line, file=stream, flush=True)  # type: ignore[call-overload]
    except (OSError, ValueError):  # the stream is closed: there is nobody left to tell
        return
