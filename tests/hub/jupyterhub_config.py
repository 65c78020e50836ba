"""The hub of the tests: as the demo, with small GPUs, short times and a notebook server in miniature."""

import json
import os
import sys
from pathlib import Path

from jupyterhub.services.service import _ServiceSpawner

from jupyterhub_gpupool import configure, demo

c = get_config()  # noqa: F821
given = json.loads(os.environ["GPUPOOL_TEST"])

idle = {"window": 3600, "warn": 2, "extend": 5, "extend_max": 8, "min_age": 0, **given.get("idle", {})}
c.SimulatedDevices.gpus = [
    {"model": "A100-SXM4-80GB", "memory": "80G", "compute_capability": "8.0", "count": 1},
    {"model": "H100", "memory": "80G", "compute_capability": "9.0", "mig": ["3g.40gb", "1g.10gb"]},
]
c.GPUPool.profiles = [
    {"slug": "whole", "display_name": "A whole A100", "default": True, "gpu": {"count": 1}, "idle": idle},
    {
        "slug": "half",
        "display_name": "Half an A100",
        "gpu": {"memory": "1/2"},
        "idle": idle,
        "profile_options": {
            "note": {
                "display_name": "A note",
                "choices": {"a": {"display_name": "A", "default": True}, "b": {"display_name": "B"}},
                "unlisted_choice": {
                    "enabled": True,
                    "display_name": "Another",
                    "validation_regex": "[a-z]{1,8}",
                    "validation_message": "up to 8 small letters",
                },
            }
        },
    },
    {"slug": "mig", "display_name": "A MIG instance", "gpu": {"mig": "1g.10gb"}, "idle": idle},
    {"slug": "vision", "display_name": "For vision", "gpu": {"count": 1}, "allowed_groups": ["vision"]},
    {"slug": "cpu", "display_name": "CPU only"},
]
c.GPUPool.profiles += given.get("profiles", [])
c.GPUPool.limits = given.get("limits", {})
c.GPUPool.watch_interval = 0.1
c.GPUPoolService.mode = given.get("mode", "reclaim")
c.GPUPoolService.sweep_interval = 0.5
c.GPUPoolService.absence_interval = 1.0
c.GPUPoolService.undelivered_max = 0  # most stories have nobody who looks
for section, values in given.get("sections", {}).items():
    c[section].update(values)

backend = demo.setup(c)

c.JupyterHub.cleanup_servers = given.get("cleanup", False)
c.JupyterHub.allow_named_servers = True
c.JupyterHub.load_roles = [
    {
        "name": "tester",
        "scopes": [
            "admin:users",
            "admin:servers",
            "tokens",
            "access:services",
            "access:servers",
            "list:users",
        ],
        "services": ["tester"],
    }
]
c.JupyterHub.services = [{"name": "tester", "api_token": given["token"]}]
c.Spawner.cmd = [sys.executable, str(Path(__file__).parent / "bin" / "jupyterhub-singleuser")]
c.Spawner.poll_interval = 2
c.Spawner.setdefault("http_timeout", 15)
c.Spawner.env_keep = [*("PATH", "LANG"), "TEST_HUB_VERSION"]

configure(c, backend=backend)

# The service has an environment of its own; its points are armed like the hub's.
service = next(one for one in c.JupyterHub.services if one["name"] == "gpupool")
service["environment"]["GPUPOOL_FAULT"] = os.environ.get("GPUPOOL_FAULT", "")
start_polling = _ServiceSpawner.start_polling


def poll_soon(self: _ServiceSpawner) -> None:
    """Let the hub look after its service every second: the stock 30 s cannot be configured."""
    self.poll_interval = 1
    start_polling(self)


_ServiceSpawner.start_polling = poll_soon
