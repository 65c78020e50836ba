"""The launch check: does this session see the GPUs that it holds, and does TensorFlow work on them as asked?

Three processes: this one always answers; ``_cuda`` asks the driver, and ``_trial`` uses TensorFlow.  What dies
or hangs there (a driver at fault, a word that TensorFlow aborts on) becomes a sentence here.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from typing import Any, cast

from gpupool_tensorflow import _cuda, _settings
from gpupool_tensorflow._settings import Settings

CUDA_SECONDS, TRIAL_SECONDS = 60, 300
"""How long the driver, and TensorFlow with its import on a slow disk, may take."""

LOG_PREFIX = re.compile(r"^[IWEF][0-9]{4} [^\]]*\] ")
"""What TensorFlow's C++ writes before a line of its log: level, time, thread, place."""

UNKNOWN: dict[str, Any] = {
    "cuda": None,
    "cudnn": None,
    "tensorflow": None,
    "keras": None,
    "precision": None,
    "memory_limit_mib": None,
    "memory_growth": None,
    "xla": None,
    "xla_compiles": False,
    "gpu": False,
}


def check() -> dict[str, Any]:
    """Run the check and return the report; what is wrong is in ``problems``, in sentences.  Never raises."""
    started = time.monotonic()
    settings = _settings.read(os.environ)
    problems = [*settings.problems]
    if not settings.lease:
        problems.append("GPUPOOL_LEASE is not set, so no defaults are applied here.")
    with _start("_trial") as trial:  # TensorFlow takes seconds to import: the driver is asked meanwhile
        seen = None if settings.simulated else _look(problems)
        found = {**UNKNOWN, **_answer(trial, TRIAL_SECONDS, "TensorFlow", problems)}
    problems += found.pop("problems", [])
    gpus = found.pop("gpus", 0)
    visible = None
    if seen is not None:
        visible = None if seen["visible"] is None else _named(seen["visible"], settings.expected)
        problems += compare(settings, visible, seen["reason"])
        problems += fit(seen, found["cuda"]) if settings.has_gpu else []
    if settings.has_gpu and visible and found["tensorflow"] and gpus != len(visible):
        problems.append(
            f"CUDA sees {len(visible)} GPU(s), TensorFlow uses {gpus}: its log says which library it lacks."
        )
    return {
        "passed": not problems,
        "problems": problems,
        "visible": visible,
        "expected": list(settings.expected),
        "simulated": settings.simulated,
        "driver": seen["driver"] if seen else None,
        **found,
        "seconds": round(time.monotonic() - started, 1),
    }


def compare(settings: Settings, visible: list[str] | None, reason: str) -> list[str]:
    """What is wrong with the devices that CUDA sees, next to those that the session holds."""
    seen = visible or []
    shown = ", ".join(seen) or "none"
    because = f" ({reason})" if reason and not seen else ""
    if settings.expected and sorted(seen) != sorted(settings.expected):
        return [f"expected {', '.join(settings.expected)}, CUDA sees {shown}{because}."]
    if settings.has_gpu and settings.kind and not seen:
        return [f"expected a GPU, CUDA sees none{because}."]
    if settings.kind == "cpu" and seen:
        return [f"expected no GPU, CUDA sees {shown}."]
    return []


def fit(seen: _cuda.Seen, build: str | None) -> list[str]:
    """Whether the driver runs what TensorFlow was built with: the same major version of CUDA, or a newer one."""
    if build is None or seen["cuda"] is None:
        return []
    newest = ".".join(map(str, seen["cuda"]))
    if seen["cuda"][0] >= int(build.partition(".")[0]):
        return []
    return [
        f"the driver {seen['driver'] or 'of this machine'} runs CUDA up to {newest}, and this TensorFlow needs "
        f"CUDA {build}: a newer driver, or an image with an older TensorFlow, is needed."
    ]


def _named(visible: list[str], expected: tuple[str, ...]) -> list[str]:
    """The UUIDs with the prefix that the session uses: CUDA gives sixteen bytes, MIG or not."""
    bare = {_bare(uuid): uuid for uuid in expected}
    return [bare.get(_bare(uuid), uuid) for uuid in visible]


def _bare(uuid: str) -> str:
    return uuid.partition("-")[2].lower()


def _start(module: str) -> subprocess.Popen[str]:
    # What was asked of this interpreter holds for its children: -I keeps the user's own packages out.
    alone = ["-I"] if sys.flags.isolated else []
    command = [sys.executable, *alone, "-m", f"gpupool_tensorflow.{module}"]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace"
    )


def _look(problems: list[str]) -> _cuda.Seen:
    with _start("_cuda") as process:
        answer = _answer(process, CUDA_SECONDS, "CUDA", problems)
    empty = _cuda.Seen(visible=None, cuda=None, driver=_cuda.driver_version(), reason="it could not be asked")
    return cast(_cuda.Seen, answer) if answer else empty


def _answer(process: subprocess.Popen[str], seconds: int, what: str, problems: list[str]) -> dict[str, Any]:
    """The JSON object on the last line of a process; when there is none, a sentence says what became of it."""
    try:
        out, log = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        problems.append(f"{what} did not answer within {seconds} s.")
        return {}
    sys.stderr.write(log)
    try:
        answer = json.loads(out.splitlines()[-1])
    except (IndexError, ValueError):
        answer = None
    if process.returncode == 0 and isinstance(answer, dict):
        return answer
    last = next((line.strip() for line in reversed(log.splitlines()) if line.strip()), "nothing in its log")
    problems.append(f"{what} {_ended(process.returncode)}: {LOG_PREFIX.sub('', last)[:300]}")
    return {}


def _ended(code: int) -> str:
    if code >= 0:
        return f"ended with status {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
