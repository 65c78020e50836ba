"""The defaults against the real TensorFlow and Keras, in fresh interpreters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .conftest import CARD, Run, needs_tensorflow

pytestmark = needs_tensorflow

ORDERS = {
    "import tensorflow": "import tensorflow",
    "import keras": "import keras",
    "from tensorflow import keras": "from tensorflow import keras",
    "from keras import layers": "from keras import layers",
    "a class of tf.keras": "from tensorflow.keras.models import Sequential",
    "probes first": "from importlib.util import find_spec; find_spec('tensorflow'); find_spec('keras'); import keras",
    "in a thread": (
        "import threading; t = threading.Thread(target=__import__, args=('tensorflow',)); t.start(); t.join()"
    ),
    "in many threads": (
        "import threading; ts = [threading.Thread(target=__import__, args=('tensorflow',)) for _ in range(8)]\n"
        "[t.start() for t in ts]; [t.join() for t in ts]"
    ),
}

LOOK = """
import fake_gpu, json, os, threading
fake_gpu.card()
{order}
fake_gpu.devices(2)
import keras, tensorflow as tf
from tensorflow.python.eager import context
found = {{"early": context._context is not None, "here": keras.config.dtype_policy().name,
    "layer": keras.layers.Dense(1).compute_dtype}}
def look():
    found["thread"] = keras.layers.Dense(1).compute_dtype
thread = threading.Thread(target=look); thread.start(); thread.join()
keras.utils.clear_session()
found["cleared"] = keras.config.dtype_policy().name
model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(2)])
model.compile("sgd", "mse"); found["auto"] = model.jit_compile
model.compile("sgd", "mse", jit_compile=True); found["asked"] = model.jit_compile
model.compile("sgd", "mse")
found["loss"] = float(model.fit(tf.ones((8, 4)), tf.zeros((8, 2)), verbose=0).history["loss"][0])
found["config"] = fake_gpu.config()
found["wrapped"] = hasattr(context.Context.ensure_initialized, "gpupool")
found["env"] = {{n: os.environ.get(n) for n in
    ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "CUDA_CACHE_PATH", "CUDA_CACHE_MAXSIZE")}}
found["loader"] = type(keras.__spec__.loader).__name__
print(json.dumps(found))
"""


@pytest.mark.parametrize("order", ORDERS)
def test_every_setting_holds_in_every_import_order(run: Run, order: str, home: Path, tmp_path: Path) -> None:
    code = LOOK.format(order=ORDERS[order])
    env = {**CARD, "GPUPOOL_XLA": "off", "CPU_LIMIT": "0.5"}
    if order == "import keras":
        done = run(code, "-I", env=env)  # cut off from the environment and the home, as a strict script is
    elif order == "import tensorflow":
        (tmp_path / "train.py").write_text(code)
        done = run(env=env, command=("train.py",))
    else:
        done = run(code, env=env)
    found = done.found
    assert {found[name] for name in ("here", "cleared")} == {"mixed_bfloat16"}
    assert {found[name] for name in ("layer", "thread")} == {"bfloat16"}
    assert (found["auto"], found["asked"]) == (False, True)
    assert not found["early"], "an import must not make TensorFlow's context, let alone touch CUDA"
    assert found["config"] == {
        "limits": [[19456], [19456]],
        "growth": False,
        "jit": 0,
        "intra": 0,
        "visible": "0,1",
    }
    assert not found["wrapped"]
    assert 0 <= found["loss"] < 1e3
    assert found["env"] == {
        "TF_NUM_INTRAOP_THREADS": "1",
        "TF_NUM_INTEROP_THREADS": "1",
        "CUDA_CACHE_PATH": str(home / ".gpupool" / "cuda-cache"),
        "CUDA_CACHE_MAXSIZE": str(2**31),
    }
    assert (home / ".gpupool" / "cuda-cache").is_dir()
    assert found["loader"] == "SourceFileLoader"
    assert len(done.said) == 1, done.said
    line = done.said[0]
    assert "mixed_bfloat16" in line and "compute capability 8.0" in line
    assert "set_dtype_policy('float32')" in line and "GPUPOOL_PRECISION=float32" in line


def test_without_the_lease_nothing_is_touched(run: Run, home: Path) -> None:
    rest = {name: value for name, value in CARD.items() if name != "GPUPOOL_LEASE"}
    code = LOOK.format(order="import tensorflow").replace("fake_gpu.card()", "")
    done = run(code, env={**rest, "GPUPOOL_XLA": "off", "CPU_LIMIT": "1"})
    found = done.found
    assert (found["here"], found["thread"], found["auto"]) == ("float32", "float32", True)
    assert found["config"]["limits"] == [] and found["config"]["growth"] is False
    assert set(found["env"].values()) == {None}
    assert done.said == [] and not (home / ".gpupool").exists()


CARDS = """
import fake_gpu, json, os
fake_gpu.card()
import keras, tensorflow as tf
fake_gpu.devices(1)
model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(2)])
model.compile("sgd", "mse")
found = {"auto": model.jit_compile, "optimizer": type(model.optimizer).__name__}
found["loss"] = float(model.fit(tf.ones((8, 4)), tf.zeros((8, 2)), verbose=0).history["loss"][0])
found["variables"] = model.layers[0].kernel.dtype
print(json.dumps({**found, **fake_gpu.config()}))
"""


def test_a_card_that_the_wheel_does_not_know_has_no_xla_even_where_it_is_asked(run: Run) -> None:
    blackwell = {**CARD, "GPUPOOL_COMPUTE_CAPABILITY": "12.0", "GPUPOOL_XLA": "on", "CPU_LIMIT": "1"}
    done = run(CARDS, env=blackwell)
    assert (done.found["auto"], done.found["jit"]) == (False, 0)
    assert len(done.said) == 2 and "XLA is off" in done.said[1] and "does not support 12.0" in done.said[1]


def test_float16_scales_the_loss_and_hopper_keeps_xla(run: Run) -> None:
    volta = {"GPUPOOL_PRECISION": "mixed_float16", "GPUPOOL_COMPUTE_CAPABILITY": "9.0", "GPUPOOL_XLA": "auto"}
    code = CARDS.replace("found = {", "assert model.jit_compile; model.jit_compile = False; found = {")
    done = run(code, env={**CARD, **volta})
    assert (done.found["optimizer"], done.found["variables"]) == ("LossScaleOptimizer", "float32")
    assert len(done.said) == 1 and "asked by the profile" in done.said[0]


CHILDREN = """
import json, os, subprocess, sys
import tensorflow
assert os.environ.pop("GPUPOOL_LEASE")
off = subprocess.run([sys.executable, "-c", "import keras; print(keras.config.dtype_policy().name)"],
    capture_output=True, text=True)
os.environ["GPUPOOL_LEASE"] = "7"
look = "import keras, os; print(keras.config.dtype_policy().name, os.environ['TF_NUM_INTRAOP_THREADS'])"
on = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True)
mine = lambda done: [line for line in done.stderr.splitlines() if line.startswith("gpupool")]
print(json.dumps({"off": [off.stdout.split()[-1], mine(off)], "on": [*on.stdout.split()[-2:], mine(on)]}))
"""


def test_children_have_the_defaults_and_repeat_nothing(run: Run) -> None:
    env = {**CARD, "GPUPOOL_PRECISION": "mixed_bfloat16", "CPU_LIMIT": "1"}
    done = run(CHILDREN, env=env)
    assert done.found == {"off": ["float32", []], "on": ["mixed_bfloat16", "1", []]}
    assert len(done.said) == 1


def test_the_pools_really_have_the_size_of_the_limit(run: Run) -> None:
    code = """
import json, threading, pathlib, os
import tensorflow as tf
def pool():
    return len(list(pathlib.Path("/proc/self/task").iterdir()))
before = pool()
tf.function(lambda x: x @ x)(tf.ones((600, 600)))
print(json.dumps({"threads": pool() - before, "intra": tf.config.threading.get_intra_op_parallelism_threads()}))
"""
    sizes = {}
    for cores in ("1", "7"):
        # Set as a user would: the package never goes above the cores of the machine, which may be one.
        env = {"TF_NUM_INTRAOP_THREADS": cores, "TF_NUM_INTEROP_THREADS": cores}
        sizes[cores] = run(code, env={**CARD, **env}).found["threads"]
    ours = run(code, env={**CARD, "CPU_LIMIT": "0.3"}).found["threads"]
    assert ours == sizes["1"] < sizes["7"]


def test_auto_without_a_gpu_stays_float32_and_says_why_but_a_policy_is_a_policy(run: Run) -> None:
    look = "import keras, json; print(json.dumps(keras.config.dtype_policy().name))"
    simulated = run(look, env={**CARD, "GPUPOOL_SIMULATED": "1"})
    assert simulated.found == "float32"
    assert len(simulated.said) == 1 and "are simulated" in simulated.said[0] and "CPU" in simulated.said[0]
    explicit = run(look, env={**CARD, "GPUPOOL_SIMULATED": "1", "GPUPOOL_PRECISION": "mixed_bfloat16"})
    assert explicit.found == "mixed_bfloat16"


def test_the_report_reads_back_and_the_check_passes_on_simulated_gpus(run: Run) -> None:
    env = {
        **CARD,
        "GPUPOOL_SIMULATED": "1",
        "GPUPOOL_VISIBLE": "GPU-1",
        "GPUPOOL_XLA": "on",
        "CPU_LIMIT": "1",
    }
    report = run(env=env, command=("-m", "gpupool_tensorflow", "report", "--json"))
    found = json.loads(report.out)
    rows = {row["setting"]: row for row in found["settings"]}
    assert found["armed"] and found["problems"] == []
    assert rows["xla"]["applied"] == "on" and rows["xla"]["in_force"].startswith("autoclustering on")
    assert (
        rows["memory"]["applied"] is None
        and rows["memory"]["note"] == "the GPUs of this session are simulated"
    )
    assert rows["precision"]["in_force"] == "float32" and rows["threads"]["in_force"] == "1"
    check = run("", "-I", env=env, command=("-m", "gpupool_tensorflow", "check"))
    answer = check.found
    assert answer["passed"] and answer["problems"] == [] and answer["simulated"] and answer["visible"] is None
    assert answer["expected"] == ["GPU-1"] and answer["xla_compiles"] and answer["xla"] == "on"
    assert answer["precision"] == "float32" and answer["tensorflow"].startswith("2.") and not answer["gpu"]


def test_the_check_finds_a_gpu_missing_and_still_answers_when_tensorflow_aborts(run: Run) -> None:
    env = {**CARD, "GPUPOOL_VISIBLE": "GPU-1", "TF_XLA_FLAGS": "--no_such_flag"}
    done = run(env=env, command=("-m", "gpupool_tensorflow", "check"))
    assert done.code == 1
    answer = json.loads(done.out.splitlines()[-1])
    assert not answer["passed"] and answer["tensorflow"] is None
    assert any("Unknown flag in TF_XLA_FLAGS: --no_such_flag" in problem for problem in answer["problems"])
    assert any(problem.startswith("expected GPU-1, CUDA sees none") for problem in answer["problems"])


TRIAL = """
import fake_gpu, json, os
fake_gpu.card()
import tensorflow as tf
fake_gpu.devices(1)
from gpupool_tensorflow import _trial
read, write = os.pipe()
if os.fork() == 0:
    gpu = tf.config.list_physical_devices("GPU")[0]
    tf.config.set_logical_device_configuration(gpu, [tf.config.LogicalDeviceConfiguration(memory_limit=30000)])
    tf.keras.config.set_dtype_policy("float32")
    os.write(write, json.dumps(_trial.trial()).encode())
    os._exit(0)
os.close(write)
with os.fdopen(read) as stream:
    changed = json.loads(stream.read())
print(json.dumps([_trial.trial(), changed]))
"""


def test_the_trial_reads_back_and_is_not_deceived(run: Run) -> None:
    """The GPU of this test is none: what TensorFlow puts on the CPU instead must not pass for it."""
    done = run(TRIAL, env={**CARD, "GPUPOOL_XLA": "on"})
    found, changed = done.found
    assert (found["precision"], found["xla"], found["gpu"], found["gpus"]) == (
        "mixed_bfloat16",
        "on",
        True,
        1,
    )
    assert (found["memory_limit_mib"], found["memory_growth"]) == (19456, False)
    assert found["xla_compiles"] is False and len(found["problems"]) == 2
    assert all("function on /GPU:0" in problem for problem in found["problems"]), found["problems"]
    said = " ".join(changed["problems"])
    assert "memory limit should be 19456 MiB for each GPU, in force: 30000 MiB" in said
    assert "precision should be mixed_bfloat16" in said and "Keras has float32" in said
