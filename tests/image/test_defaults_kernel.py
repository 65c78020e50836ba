"""The defaults in a real Jupyter kernel: what a person sees under the first cell, and only there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import CARD, SECONDS, needs_tensorflow

pytestmark = needs_tensorflow
manager = pytest.importorskip("jupyter_client.manager")
kernelspec = pytest.importorskip("jupyter_client.kernelspec")

FIRST = "import fake_gpu; fake_gpu.card(); import tensorflow as tf"
CHILD = "import subprocess, sys; print(subprocess.run([sys.executable, '-c', 'import keras'], capture_output=True))"
LAYER = "tf.keras.layers.Dense(1).compute_dtype"


class Kernel:
    """One kernel of the environment with the package; ``run`` gives what a cell shows."""

    def __init__(self, python: Path, env: dict[str, str], folder: Path) -> None:
        spec = folder / "spec" / "gpupool"
        spec.mkdir(parents=True)
        argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        (spec / "kernel.json").write_text(
            json.dumps({"argv": argv, "display_name": "x", "language": "python"})
        )
        specs = kernelspec.KernelSpecManager(kernel_dirs=[str(folder / "spec")])
        self.manager = manager.KernelManager(kernel_name="gpupool", kernel_spec_manager=specs)
        self.manager.start_kernel(env=env, cwd=str(folder))
        self.client: Any = None
        self.connect()

    def connect(self) -> None:
        if self.client is not None:
            self.client.stop_channels()
        self.client = self.manager.blocking_client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=SECONDS)

    def run(self, code: str) -> dict[str, str]:
        shown = {"stdout": "", "stderr": "", "result": ""}

        def output(message: dict[str, Any]) -> None:
            content = message["content"]
            if message["msg_type"] == "stream":
                shown[content["name"]] += content["text"]
            elif message["msg_type"] == "execute_result":
                shown["result"] += content["data"]["text/plain"]
            elif message["msg_type"] == "error":
                raise AssertionError("\n".join(content["traceback"]))

        self.client.execute_interactive(code, timeout=SECONDS, output_hook=output)
        return shown

    def restart(self) -> None:
        self.manager.restart_kernel(now=True)
        self.connect()

    def end(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture
def kernel(python: Path, environ: dict[str, str], tmp_path: Path) -> Iterator[Kernel]:
    pytest.importorskip("ipykernel")
    made = Kernel(python, {**environ, **CARD, "GPUPOOL_XLA": "yes"}, tmp_path)
    try:
        yield made
    finally:
        made.end()


def test_each_kernel_says_it_once_in_plain_output_and_faults_on_stderr(kernel: Kernel) -> None:
    for _ in range(2):  # the second time in a new kernel, after a restart
        shown = kernel.run(FIRST)
        lines = [line for line in shown["stdout"].splitlines() if line.startswith("gpupool: ")]
        assert len(lines) == 1 and "mixed_bfloat16" in lines[0] and "To turn it off" in lines[0]
        assert "GPUPOOL_XLA is 'yes'" in shown["stderr"] and "mixed_bfloat16" not in shown["stderr"]
        again = kernel.run("import keras, importlib; importlib.reload(keras)\n" + LAYER)
        assert again["result"] == "'bfloat16'" and "gpupool" not in again["stdout"] + again["stderr"]
        kernel.restart()


def test_a_kernel_reports_and_its_children_are_silent(kernel: Kernel) -> None:
    kernel.run(FIRST)
    table = kernel.run("import gpupool_tensorflow; gpupool_tensorflow.report()")
    assert table["result"] == "" and "GPUPOOL_XLA is 'yes'" in table["stdout"]
    rows = {line.split()[0]: line for line in table["stdout"].splitlines() if line.strip()}
    assert rows["precision"].count("mixed_bfloat16") == 2 and "changed by you" not in rows["precision"]
    kernel.run("tf.keras.config.set_dtype_policy('float32')")
    told = kernel.run("gpupool_tensorflow.report(json=True)")
    settings = {row["setting"]: row for row in json.loads(told["stdout"])["settings"]}
    assert settings["precision"]["changed"] and settings["precision"]["in_force"] == "float32"
    assert "gpupool: GPUPOOL_XLA" not in kernel.run(CHILD)["stdout"]
