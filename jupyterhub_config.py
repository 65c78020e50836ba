"""A GPU pool on this machine, with simulated GPUs: what `make demo` starts, and an example for your own.

Run it with `make demo`, or with `jupyterhub -f jupyterhub_config.py` where the extra `demo` is installed.
For a hub of your own: copy it, leave out what has to do with `demo`, put in your authenticator and proxy,
name your backend in the last line, and change profiles and limits to what your lab has.
"""

from pathlib import Path

from jupyterhub_gpupool import configure, demo

c = get_config()  # noqa: F821

# --- The GPUs: simulated here, one dictionary for each kind ---------------------------------------
# mode "any": handed out whole or in shares, as asked for. With "mig": just these MIG instances.
c.SimulatedDevices.gpus = [
    {
        "model": "A100-SXM4-80GB",
        "memory": "80G",
        "compute_capability": "8.0",
        "count": 2,
        "mode": "any",
        "numa": 0,
        "links": "NV12",  # where they sit, as `nvidia-smi topo -m` shows it of real ones
    },
    {
        "model": "H100",
        "memory": "80G",
        "compute_capability": "9.0",
        "numa": 1,
        "mig": ["3g.40gb", "1g.10gb", "1g.10gb"],
    },
    {"model": "T4", "memory": "16G", "compute_capability": "7.5", "numa": 1},
]

# --- When an idle session is taken back, in seconds -----------------------------------------------
# Short, so that one sees it happen. In earnest, half an hour ("window": 1800) and ten minutes ("warn": 600).
idle = {"window": 60, "warn": 30, "extend": 60, "extend_max": 180, "min_age": 30}

# --- What a session may take of the machine: for the demo what a laptop can bear --------------------
# Only containers are held to it; processes of the backend "local" are told it.
size = {"cpu_limit": 2, "mem_limit": "4G"}

# --- What people may choose -----------------------------------------------------------------------
# The names are KubeSpawner's; "gpu" says which slice the session gets. Without "gpu" it gets none.
c.GPUPool.profiles = [
    {
        "slug": "quarter-a100",
        "display_name": "Quarter of an A100",
        "description": "20 GB and a quarter of the compute. For most of the work.",
        "default": True,
        "gpu": {"memory": "20G", "compute": 25, "model": "A100*"},
        "idle": idle,
        **size,
        "profile_options": {
            "threads": {
                "display_name": "CPU threads for TensorFlow",
                "choices": {
                    "two": {
                        "display_name": "2",
                        "default": True,
                        "spawner_override": {"environment": {"TF_NUM_INTRAOP_THREADS": "2"}},
                    },
                    "four": {
                        "display_name": "4",
                        "spawner_override": {"environment": {"TF_NUM_INTRAOP_THREADS": "4"}},
                    },
                },
                "unlisted_choice": {
                    "enabled": True,
                    "display_name": "Another number",
                    "display_name_in_choices": "Another number…",
                    "validation_regex": "[1-9][0-9]?",
                    "validation_message": "A whole number from 1 to 99",
                    "spawner_override": {"environment": {"TF_NUM_INTRAOP_THREADS": "{value}"}},
                },
            },
        },
    },
    {
        "slug": "third-a100",
        "display_name": "Third of an A100",
        "description": "A third of the memory and of the compute.",
        "gpu": {"memory": "1/3", "model": "A100*"},
        "idle": idle,
        **size,
    },
    {
        "slug": "half-a100",
        "display_name": "Half an A100",
        "description": "40 GB and half of the compute.",
        "gpu": {"memory": "1/2", "compute": 50, "model": "A100*"},
        "idle": idle,
        **size,
    },
    {
        "slug": "whole-a100",
        "display_name": "A whole A100",
        "description": "80 GB, nobody else on it.",
        "gpu": {"count": 1, "model": "A100*"},
        "idle": idle,
        **size,
    },
    {
        "slug": "two-a100",
        "display_name": "Two whole A100s",
        "description": "For training on several GPUs. Only for the group vision.",
        "gpu": {"count": 2, "model": "A100*"},
        "idle": idle,
        **size,
        "allowed_groups": ["vision"],
    },
    {
        "slug": "mig-small",
        "display_name": "MIG instance 1g.10gb",
        "description": "A seventh of an H100, kept apart by the hardware.",
        "gpu": {"mig": "1g.10gb"},
        "idle": idle,
        **size,
    },
    {
        "slug": "mig-large",
        "display_name": "MIG instance 3g.40gb",
        "description": "Three sevenths of an H100, kept apart by the hardware.",
        "gpu": {"mig": "3g.40gb"},
        "idle": idle,
        **size,
    },
    {
        "slug": "t4",
        "display_name": "A whole T4",
        "description": "16 GB. For trying things out.",
        "gpu": {"count": 1, "model": "T4"},
        "idle": idle,
        **size,
    },
    {
        "slug": "cpu",
        "display_name": "CPU only",
        "description": "No GPU and no queue. For writing and plotting.",
        **size,
    },
]

# --- What people may have at the same time ("gpus" counts whole ones: a quarter is 0.25) ----------
c.GPUPool.limits = {
    "pool": {"queued": 50},
    "group:vision": {"sessions": 6, "gpus": 4},
    "group:students": {"sessions": 4, "gpus": 1.5},
    "user:*": {"sessions": 2, "gpus": 2, "queued": 2},
}

# --- The service: looks at the GPUs, warns, and takes idle ones back ------------------------------
c.GPUPoolService.mode = "reclaim"  # or "warn", or "observe": only say what it would do
c.GPUPoolService.sweep_interval = 2
# A warning counts from when a page has shown it, or after this time without; in earnest some hours.
c.GPUPoolService.undelivered_max = 60

# --- Users, login, proxy, ports and files of the demo; processes or containers (GPUPOOL_BACKEND) ---
# In earnest, for containers: c.GPUPoolDockerSpawner.image = "sha256:…", as `make image` prints it.
backend = demo.setup(c, images=Path(__file__).parent / "images" / "tensorflow")

configure(c, backend=backend)
