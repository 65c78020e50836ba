"""``python -m gpupool_tensorflow check``: one JSON object, as the real one prints it.

``TEST_CHECK_ANSWER`` in the environment, or the file ``~/.check``, holds a JSON object that is laid over the
answer.  Two more keys are for the test alone: ``"wait"`` (seconds before the answer) and ``"dies"`` (the text
that it prints instead of an answer, with exit status 3).
"""

import json
import os
import sys
import time
from pathlib import Path


def main(words: list[str]) -> int:
    if words[:1] != ["check"]:
        print(f"this stand-in knows only check, not {words}", file=sys.stderr)
        return 2
    began = time.monotonic()
    told = Path.home() / ".check"
    changes = json.loads(told.read_text() if told.exists() else os.environ.get("TEST_CHECK_ANSWER") or "{}")
    time.sleep(changes.pop("wait", 0))
    if dies := changes.pop("dies", ""):
        print(dies, file=sys.stderr)
        return 3
    visible = [one for one in os.environ.get("GPUPOOL_VISIBLE", "").split(",") if one]
    limit = os.environ.get("GPUPOOL_MEMORY_LIMIT_MB")
    asked = os.environ.get("GPUPOOL_PRECISION", "auto")
    answer = {
        "passed": True,
        "problems": [],
        "visible": visible,
        "expected": visible,
        "simulated": os.environ.get("GPUPOOL_SIMULATED") == "1",
        "driver": None,
        "cuda": None,
        "cudnn": None,
        "tensorflow": "2.21.0",
        "keras": "3.15.1",
        "precision": os.environ.get("GPUPOOL_PRECISION_AUTO", "float32") if asked == "auto" else asked,
        "memory_limit_mib": int(limit) if limit else None,
        "memory_growth": None if limit else bool(visible),
        "xla": os.environ.get("GPUPOOL_XLA", "auto"),
        "xla_compiles": True,
        "gpu": False,
        "seconds": round(time.monotonic() - began, 1),
        **changes,
    }
    print("the check has begun", file=sys.stderr)
    print(json.dumps(answer))
    return 0 if answer["passed"] else 1


sys.exit(main(sys.argv[1:]))
