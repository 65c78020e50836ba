"""What the session asks for: the ``GPUPOOL_*`` variables, each checked before anything sees it.

They may come from anywhere (a spawner, Slurm, a shell), and TensorFlow ends the process on words that it does
not know.  A bad word is named in one sentence and counts as not given.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")

KINDS = ("cpu", "gpu", "mig", "share")
POLICIES = ("float32", "mixed_float16", "mixed_bfloat16")
PRECISIONS = ("auto", *POLICIES)
XLA = ("auto", "on", "off")
UUID = re.compile(r"(?:GPU|MIG)-[0-9A-Za-z][0-9A-Za-z/-]{0,120}")

LARGEST_RESERVE_MIB = 1024
"""Held back from the limit for what TensorFlow does not count: CUDA context, cuDNN, cuBLAS, XLA's programs."""

MAX_MIB = 2**30


@dataclass(frozen=True)
class Settings:
    """The asked settings; ``None`` where nothing was asked, or nothing that can be understood."""

    lease: str = ""
    kind: str | None = None
    simulated: bool = False
    expected: tuple[str, ...] = ()
    capability: tuple[int, int] | None = None
    memory_limit: int | None = None
    memory_reserve: int = 0
    memory_growth: bool = False
    precision: str | None = None
    precision_auto: str | None = None
    xla: str | None = None
    cores: int | None = None
    problems: tuple[str, ...] = field(default=())

    @property
    def has_gpu(self) -> bool:
        """Whether the session should see a real GPU."""
        return self.kind != "cpu" and not self.simulated

    @property
    def usable(self) -> int | None:
        """MiB that TensorFlow may take on each GPU: the limit without the reserve."""
        return None if self.memory_limit is None else self.memory_limit - self.memory_reserve


def read(environ: Mapping[str, str]) -> Settings:
    """Read the variables; what is wrong with them is in ``problems``, in sentences.  Never raises."""
    words = _Words(environ)
    kind = words.one_of("GPUPOOL_SLICE", KINDS)
    limit = words.take("GPUPOOL_MEMORY_LIMIT_MB", _mib(1, MAX_MIB), f"a whole number of MiB, 1 to {MAX_MIB}")
    reserve = _reserve(words, limit)
    gpus = "UUIDs (GPU-… or MIG-…), separated by commas"
    precision = words.one_of("GPUPOOL_PRECISION", PRECISIONS)
    auto = words.one_of("GPUPOOL_PRECISION_AUTO", POLICIES)
    if precision == "auto" and "GPUPOOL_PRECISION_AUTO" in words.bad:
        precision = None
    cores = words.take("CPU_LIMIT", _cores, "a number of cores above 0")
    return Settings(
        lease=words.text("GPUPOOL_LEASE"),
        kind=kind,
        simulated=words.one_of("GPUPOOL_SIMULATED", ("0", "1")) == "1",
        expected=words.take("GPUPOOL_VISIBLE", _uuids, gpus) or (),
        capability=words.take("GPUPOOL_COMPUTE_CAPABILITY", _capability, "a version such as 8.0"),
        memory_limit=limit,
        memory_reserve=reserve,
        memory_growth=kind != "cpu" and not words.text("GPUPOOL_MEMORY_LIMIT_MB"),
        precision=precision,
        precision_auto=auto,
        xla=words.one_of("GPUPOOL_XLA", XLA),
        cores=cores,
        problems=tuple(words.problems),
    )


class _Words:
    """Reads variables, and keeps a sentence for each that it does not understand."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ
        self.problems: list[str] = []
        self.bad: set[str] = set()

    def text(self, name: str) -> str:
        return self.environ.get(name, "").strip()

    def take(self, name: str, convert: Callable[[str], T | None], allowed: str) -> T | None:
        """The converted value; None when it is absent, empty or wrong."""
        text = self.text(name)
        value = convert(text) if text else None
        if text and value is None:
            shown = text if len(text) <= 60 else text[:60] + "…"
            self.problems.append(f"{name} is {shown!r}, which is not applied: it may be {allowed}.")
            self.bad.add(name)
        return value

    def one_of(self, name: str, allowed: tuple[str, ...]) -> str | None:
        words = f"{', '.join(allowed[:-1])} or {allowed[-1]}"
        return self.take(name, lambda text: text if text in allowed else None, words)


def _reserve(words: _Words, limit: int | None) -> int:
    if limit is None:
        return 0
    asked = words.take(
        "GPUPOOL_MEMORY_RESERVE_MB", _mib(0, limit - 1), f"a whole number of MiB, 0 to {limit - 1}"
    )
    return min(LARGEST_RESERVE_MIB, limit // 4) if asked is None else asked


def _mib(low: int, high: int) -> Callable[[str], int | None]:
    def convert(text: str) -> int | None:
        number = int(text) if re.fullmatch(r"[0-9]{1,10}", text) else -1
        return number if low <= number <= high else None

    return convert


def _cores(text: str) -> int | None:
    """Whole cores, rounded up, and never more than this process may run on."""
    try:
        number = float(text)
    except ValueError:
        return None
    if not math.isfinite(number) or number <= 0:
        return None
    return max(1, min(math.ceil(number), len(os.sched_getaffinity(0))))


def _capability(text: str) -> tuple[int, int] | None:
    found = re.fullmatch(r"([0-9]{1,2})\.([0-9])", text)
    return (int(found[1]), int(found[2])) if found else None


def _uuids(text: str) -> tuple[str, ...] | None:
    parts = tuple(part.strip() for part in text.split(","))
    return parts if all(UUID.fullmatch(part) for part in parts) else None
