"""The hubs of the benchmarks: the demo's hub with the pool, and the same hub without it.

Read from ``GPUPOOL_BENCH``: ``arm`` (``pool``, ``stock``), ``session`` (``miniature``, ``real``, ``null``,
``waiting``, ``container``), ``image`` and ``network`` of containers, ``gpus``, ``first`` (sections of settings
that `configure` reads), ``config`` (sections of settings that are to stand after it),
``trace`` (a file for what holds the event loop), ``longest_pause`` (seconds, before the next look at a server
that starts).
"""

import functools
import json
import os
import sys
from pathlib import Path

import _spawners
import _trace
import jupyterhub.utils
from jupyterhub.spawner import SimpleLocalProcessSpawner

from jupyterhub_gpupool import configure, demo

c = get_config()  # noqa: F821
given = json.loads(os.environ["GPUPOOL_BENCH"])
pooled = given["arm"] == "pool"
state = Path(os.environ["GPUPOOL_STATE_DIR"])

c.SimulatedDevices.gpus = [
    {"model": "A100-SXM4-80GB", "memory": "80G", "compute_capability": "8.0", "count": given.get("gpus", 4)}
]
c.GPUPool.profiles = [{"slug": "whole", "display_name": "A whole A100", "gpu": {"count": 1}, "default": True}]
backend = demo.setup(c)

c.JupyterHub.concurrent_spawn_limit = given.get("concurrent_spawn_limit", 0)
c.JupyterHub.active_server_limit = 0
if "slow_spawn_timeout" in given:
    c.JupyterHub.tornado_settings = {"slow_spawn_timeout": given["slow_spawn_timeout"]}
c.JupyterHub.load_roles = [
    {"name": "bench", "scopes": ["admin:users", "admin:servers", "access:servers"], "services": ["bench"]}
]
c.JupyterHub.services = [{"name": "bench", "api_token": given["token"]}]
c.JupyterHub.spawner_class = SimpleLocalProcessSpawner
c.SimpleLocalProcessSpawner.home_dir_template = str(state / "homes" / "{username}")
c.Spawner.env_keep = ["PATH", "LANG", "TEST_HUB_VERSION", "GPUPOOL_STATE_DIR"]
if given["session"] == "miniature":
    c.Spawner.cmd = [sys.executable, given["miniature"]]
    if not pooled:
        c.Spawner.environment = {"GPUPOOL_LEASE": "none", "NVIDIA_VISIBLE_DEVICES": "void"}

if given["session"] == "container":
    backend = "docker"
    # Both arms on the same network, with a home that stays.
    c.JupyterHub.hub_ip = given["hub_ip"]
    c.DockerSpawner.image = given["image"]
    c.DockerSpawner.network_name = given["network"]
    c.DockerSpawner.use_internal_ip = False
    c.DockerSpawner.volumes = {f"{given['network']}-{{username}}": "/home/jovyan"}
    c.Spawner.env_keep = []
    if not pooled:
        c.JupyterHub.spawner_class = "dockerspawner.DockerSpawner"
        c.DockerSpawner.remove = True
for section, values in given.get("first", {}).items():
    c[section].update(values)
if pooled:
    configure(c, backend=backend)
if given["session"] == "null":
    c.JupyterHub.spawner_class = _spawners.PooledNull if pooled else _spawners.Null
    c.Null.address = given["address"]
elif given["session"] == "waiting" and not pooled:
    c.JupyterHub.spawner_class = _spawners.Waiting
if given.get("proxy") == "none":
    c.JupyterHub.proxy_class = _spawners.NoProxy
for section, values in given.get("config", {}).items():
    c[section].update(values)
if "longest_pause" in given:
    patient = jupyterhub.utils.exponential_backoff
    jupyterhub.utils.exponential_backoff = functools.partial(patient, max_wait=given["longest_pause"])
if given.get("trace"):
    _trace.install(given["trace"])
