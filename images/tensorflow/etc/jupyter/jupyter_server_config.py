"""The Jupyter server of a session: TensorBoard behind its log-in, and a word on what is kept."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

c = get_config()  # type: ignore[name-defined]  # noqa: F821

home = Path.home()
logs = Path(os.environ.get("GPUPOOL_TB_DIR") or home / ".gpupool" / "tensorboard")


def welcome() -> None:
    """Make TensorBoard's directory and, in the first session of a home, leave a note on what is kept."""
    logs.mkdir(parents=True, exist_ok=True)
    done = home / ".gpupool" / "welcomed"
    if not done.exists():
        done.parent.mkdir(exist_ok=True)
        shutil.copyfile(Path(__file__).parents[1] / "gpupool" / "about.md", home / "About this session.md")
        done.touch()


try:
    welcome()
except OSError as error:  # a full or read-only home must not keep the session from starting
    print(f"gpupool: the home cannot be written to: {error}", file=sys.stderr)

# Bound to the container's own loopback, and reached only through the server's log-in, at <base_url>tensorboard/.
# It reads files and needs no GPU: TensorFlow inside it must not take memory of the slice.
c.ServerProxy.servers = {
    "tensorboard": {
        "command": ["tensorboard", "--logdir", str(logs), "--host", "127.0.0.1", "--port", "{port}"],
        "environment": {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2"},
        "timeout": 120,
        "launcher_entry": {"title": "TensorBoard"},
    }
}

# A bin inside the container would be gone with it, and one in the home fills it unseen.
c.FileContentsManager.delete_to_trash = False
