"""What the commands that are run in a session have answered: pure, and whatever an image writes, it is bounded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ..sessions.docker import Ran

NOT_THERE = (126, 127)
"""The engine's word for a command that is not in the image."""

NO_MODULE = "No module named"

LONGEST_REPORT = 64 * 1024


LONGEST_REASON = 200


def read_check(ran: Ran) -> tuple[bool | None, dict[str, Any]]:
    """What the last line of a check's output comes to; whatever an image writes, it is bounded."""
    line = (ran.out.strip().splitlines() or [""])[-1]
    try:
        report = json.loads(line[:LONGEST_REPORT])
    except (ValueError, RecursionError):
        report = None
    if isinstance(report, dict) and isinstance(report.get("passed"), bool):
        problems = report.get("problems")
        report["problems"] = [str(one)[:300] for one in problems][:10] if isinstance(problems, list) else []
        return report["passed"], report
    if ran.status in NOT_THERE or NO_MODULE in ran.err:
        return None, {"problems": ["The image has no launch check (gpupool_tensorflow)."]}
    return False, {"problems": [f"The check ended with status {ran.status} and without a result."]}


def read_seen(ran: Ran, visible: Sequence[str]) -> list[str]:
    """What is wrong with the GPUs that CUDA shows in a session, next to those of its lease, in sentences.

    Empty when they are the same, and for an image without :mod:`gpupool_tensorflow`.  An answer that does not
    say which GPUs there are is a problem too: unknown is no pass.
    """
    try:
        said = json.loads((ran.out.strip().splitlines() or [""])[-1][:LONGEST_REPORT])
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        if ran.status in NOT_THERE or NO_MODULE in ran.err:
            return []
        return [
            f"CUDA was asked which GPUs it sees, and ended with status {ran.status} and without an answer."
        ]
    seen = said.get("visible")
    if not isinstance(seen, list):
        why = str(said.get("reason") or "it gives no reason")[:LONGEST_REASON]
        return [f"Which GPUs CUDA sees is not known: {why}."]
    shown = [str(one)[:LONGEST_REASON] for one in seen][: len(visible) + 8]
    if sorted(map(_bare, shown)) == sorted(map(_bare, visible)):
        return []
    return [f"Inside, CUDA sees {', '.join(shown) or 'no GPU'}, and the lease holds {', '.join(visible)}."]


def _bare(uuid: str) -> str:
    """A UUID without its prefix: CUDA gives sixteen bytes, of a GPU or of a MIG instance."""
    return uuid.partition("-")[2].lower()
