"""A hub like the demo, with short times, named servers, and this tree's own extension for JupyterLab."""

import os
from pathlib import Path

from jupyterhub_gpupool import configure, demo

c = get_config()  # noqa: F821
state = Path(os.environ["GPUPOOL_STATE_DIR"])
extensions = state.parent / "jupyter" / "labextensions"
extensions.mkdir(parents=True, exist_ok=True)
built = Path(demo.__file__).parents[1] / "labextension"
link = extensions / "jupyterhub-gpupool"
if not link.is_symlink():
    link.symlink_to(built)

c.SimulatedDevices.gpus = [
    {"model": "A100-SXM4-80GB", "memory": "80G", "compute_capability": "8.0", "count": 2},
]
calm = {"window": 3600, "warn": 600, "extend": 600, "extend_max": 1200, "min_age": 0}
short = {"window": 15, "warn": 25, "extend": 10, "extend_max": 20, "min_age": 0}
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
# Before what may be installed on this machine.
c.Spawner.environment = {"JUPYTER_PATH": str(state.parent / "jupyter")}
configure(c, backend=backend)
