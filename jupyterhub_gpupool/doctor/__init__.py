"""``gpupool doctor``: what an administrator gets wrong, why it matters, and the command that mends it.

Probes (``*_probes``) look, each within its time, and hand over plain facts; checks (``*_checks``) are small pure
functions over these; ``report`` shows what they say.  Nothing is changed: the one thing that is made, a container
that tries the network, is removed again.
"""

from __future__ import annotations

from . import engine_checks, gpu_checks, hub_checks, pool_checks, report
from .model import CHECKS, Failed, Finding, Level, Result, Unknown, examine

__all__ = [
    "CHECKS",
    "Failed",
    "Finding",
    "Level",
    "Result",
    "Unknown",
    "engine_checks",
    "examine",
    "gpu_checks",
    "hub_checks",
    "pool_checks",
    "report",
]
