"""``python -m gpupool_tensorflow._cuda``: what the driver would show, as the real one prints it.

It shows what the session is told of its GPUs.  ``TEST_CUDA_ANSWER`` in the environment, a JSON object, is laid
over the answer; ``"wait"`` in it is for the test alone: seconds before the answer.
"""

import json
import os
import time

changes = json.loads(os.environ.get("TEST_CUDA_ANSWER") or "{}")
time.sleep(changes.pop("wait", 0))
hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
answer = {
    "visible": [one for one in os.environ["NVIDIA_VISIBLE_DEVICES"].split(",") if one != "void"],
    "cuda": [12, 8],
    "driver": "570.86",
    "reason": "",
    **changes,
}
if hidden is not None and answer["visible"]:
    answer["visible"] = [one for one in answer["visible"] if one in hidden.split(",")]
print(json.dumps(answer))
