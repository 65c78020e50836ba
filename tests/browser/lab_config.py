"""A hub like the demo, with short times, named servers, and the extension for JupyterLab from the install."""

import json
import os
from pathlib import Path

from jupyterhub_gpupool import configure, demo

c = get_config()  # noqa: F821
state = Path(os.environ["GPUPOOL_STATE_DIR"])
c.SimulatedDevices.gpus = [
    {"model": "A100-SXM4-80GB", "memory": "80G", "compute_capability": "8.0", "count": 2},
]
calm = {"window": 3600, "warn": 600, "extend": 600, "extend_max": 1200, "min_age": 0}
short = {"window": 15, "warn": 25, "extend": 8, "extend_max": 16, "min_age": 0}
c.GPUPool.profiles = [
    {"slug": "calm", "display_name": "Half", "default": True, "gpu": {"memory": "1/2"}, "idle": calm},
    {"slug": "quarter", "display_name": "A quarter", "gpu": {"memory": "1/4"}, "idle": calm},
    {
        "slug": "short",
        "display_name": "Short",
        "gpu": {"count": 1},
        "idle": short,
        "profile_options": {
            "note": {
                "display_name": "A note",
                "choices": {"a": {"display_name": "A", "default": True}, "b": {"display_name": "B"}},
            }
        },
    },
]
c.GPUPoolService.mode = "reclaim"
c.GPUPoolService.sweep_interval = 1
c.GPUPoolService.undelivered_max = 3600  # only what somebody was told counts

backend = demo.setup(c)
c.JupyterHub.allow_named_servers = True
# What `make install` brings, before what else may be in the environment of this run.
c.Spawner.environment = {"JUPYTER_PATH": json.loads(os.environ["GPUPOOL_TEST"])["jupyter_path"]}
# So that a test can open a document without loading the page anew.
c.Spawner.args = [*(c.Spawner.get("args") or []), "--LabApp.expose_app_in_browser=True"]
configure(c, backend=backend)
