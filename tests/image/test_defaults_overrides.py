"""The user's own settings win, each of them, over the real TensorFlow and Keras."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .conftest import CARD, Done, Run, needs_tensorflow

pytestmark = needs_tensorflow

FORKS = """
import fake_gpu, json, os
fake_gpu.card()
import tensorflow as tf, keras
fake_gpu.devices(2)
import gpupool_tensorflow._report as report
def rows():
    return {row["setting"]: row for row in report.rows()}
SCENES = %r
pipes = {}
for name, code in SCENES.items():  # each in a child of its own: TensorFlow is imported once, and used by none yet
    read, write = os.pipe()
    if os.fork() == 0:
        seen = {}
        try:
            gpus = tf.config.list_physical_devices("GPU")
            exec(code)
            seen["config"] = fake_gpu.config()
            seen["rows"] = rows()
        except Exception as error:
            seen["error"] = f"{type(error).__name__}: {error}"
        os.write(write, json.dumps(seen).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as stream:
        pipes[name] = json.loads(stream.read())
    os.wait()
print(json.dumps(pipes))
"""

MINE = "[tf.config.LogicalDeviceConfiguration(memory_limit=n) for n in (1000, 2000, 3000)]"

WITH_LIMIT = {
    "nothing": "",
    "logical": f"tf.config.set_logical_device_configuration(gpus[0], {MINE})",
    "growth": "[tf.config.experimental.set_memory_growth(gpu, True) for gpu in gpus]",
    "no growth": "[tf.config.experimental.set_memory_growth(gpu, False) for gpu in gpus]",
    "one GPU": "tf.config.set_visible_devices(gpus[1], 'GPU')",
    "hidden": "tf.config.set_visible_devices([], 'GPU')",
    "growth again": (
        "[tf.config.experimental.set_memory_growth(gpu, True) for gpu in gpus]; tf.ones(1)\n"
        "[tf.config.experimental.set_memory_growth(gpu, True) for gpu in gpus]"
    ),
    "threads": "tf.config.threading.set_intra_op_parallelism_threads(2)",
    "jit off": "tf.config.optimizer.set_jit(False)",
    "jit off late": "tf.ones(1); tf.config.optimizer.set_jit(False)",
    "waiting": "seen['before'] = rows()",
    "async": "os.environ['TF_GPU_ALLOCATOR'] = 'cuda_malloc_async'",
    "policy": "keras.config.set_dtype_policy('mixed_float16'); seen['policy'] = keras.layers.Dense(1).compute_dtype",
    "float32": (
        "import threading; keras.mixed_precision.set_dtype_policy('float32')\n"
        "t = threading.Thread(target=lambda: seen.update(thread=keras.config.dtype_policy().name))\n"
        "t.start(); t.join()\n"
        "keras.utils.clear_session(); seen['policy'] = keras.config.dtype_policy().name"
    ),
    "floatx": "keras.config.set_floatx('float64'); seen['policy'] = keras.config.dtype_policy().name",
    "a layer": "seen['policy'] = keras.layers.Dense(1, dtype='float32').compute_dtype",
}


def forks(run: Run, scenes: dict[str, str], **env: str) -> tuple[dict[str, Any], Done]:
    given = {name: value for name, value in {**CARD, **env}.items() if value}
    done = run(FORKS % scenes, env=given)
    found = done.found
    assert {name: seen["error"] for name, seen in found.items() if "error" in seen} == {}
    return found, done


def test_what_the_user_sets_wins_over_the_limit_policy_and_xla(run: Run) -> None:
    found, done = forks(run, WITH_LIMIT, GPUPOOL_XLA="on", CPU_LIMIT="1")

    limits = {name: seen["config"]["limits"] for name, seen in found.items()}
    assert limits["nothing"] == [[19456], [19456]]
    assert limits["logical"] == [[1000, 2000, 3000], [19456]]
    assert limits["growth"] == limits["growth again"] == [] and found["growth"]["config"]["growth"] is True
    assert limits["no growth"] == [[19456], [19456]]
    assert (limits["one GPU"], found["one GPU"]["config"]["visible"]) == ([[19456]], "1")
    assert limits["hidden"] == []

    memory = {name: seen["rows"]["memory"] for name, seen in found.items()}
    assert (memory["nothing"]["applied"], memory["nothing"]["in_force"]) == ("limit of 19456 MiB",) * 2
    assert not memory["nothing"]["changed"] and "1024 MiB of 20480" in memory["nothing"]["note"]
    assert memory["logical"]["changed"] and "1000 MiB + 2000 MiB" in memory["logical"]["in_force"]
    assert memory["growth"]["changed"] and memory["growth"]["in_force"] == "growth"
    assert memory["hidden"]["in_force"] == "no GPU" and memory["hidden"]["note"] == "you hid the GPUs"
    assert memory["async"]["note"].endswith("does not hold to a limit")
    before = found["waiting"]["before"]
    assert before["memory"]["in_force"] == "not decided yet" and before["memory"]["note"].startswith(
        "waits for"
    )
    assert before["xla"]["note"].startswith("waits for") and not before["xla"]["changed"]

    jit = {name: seen["config"]["jit"] for name, seen in found.items()}
    assert jit["nothing"] == 1  # OptimizerOptions.ON_1
    assert jit["jit off"] == jit["jit off late"] == -1  # OptimizerOptions.OFF
    assert found["nothing"]["rows"]["xla"]["in_force"] == "autoclustering on, Keras' auto is on"
    assert found["jit off"]["rows"]["xla"]["changed"] and found["jit off late"]["rows"]["xla"]["changed"]

    assert found["threads"]["config"]["intra"] == 2
    threads = found["threads"]["rows"]["threads"]
    assert (threads["applied"], threads["in_force"], threads["changed"]) == ("1", "intra 2, inter 1", True)
    assert found["nothing"]["rows"]["threads"]["changed"] is False

    assert found["policy"]["policy"] == "float16" and found["policy"]["rows"]["precision"]["changed"]
    assert (found["float32"]["policy"], found["float32"]["thread"]) == ("float32", "float32")
    assert found["floatx"]["policy"] == "float64" and found["a layer"]["policy"] == "float32"
    assert found["nothing"]["rows"]["precision"]["changed"] is False
    lines = "\n".join(done.said)
    assert "since you set memory growth" in lines and "cuda_malloc_async" in lines
    assert len(done.said) == len(set(done.said)) + 1  # "growth again" sets it as "growth" does


WITHOUT_LIMIT = {
    "nothing": "",
    "no growth": "[tf.config.experimental.set_memory_growth(gpu, False) for gpu in gpus]",
    "logical": f"tf.config.set_logical_device_configuration(gpus[0], {MINE})",
    "variable": "os.environ['TF_FORCE_GPU_ALLOW_GROWTH'] = 'false'",
    "one GPU": "tf.config.set_visible_devices(gpus[1], 'GPU')",
}


def test_memory_grows_where_no_limit_is_asked_and_the_user_has_no_other_wish(run: Run) -> None:
    found, done = forks(
        run, WITHOUT_LIMIT, GPUPOOL_MEMORY_LIMIT_MB="", GPUPOOL_PRECISION="float32", GPUPOOL_XLA="auto"
    )
    growth = {name: seen["config"]["growth"] for name, seen in found.items()}
    assert growth == {
        "nothing": True,
        "no growth": False,
        "logical": False,
        "variable": False,
        "one GPU": True,
    }
    assert [name for name, seen in found.items() if seen["config"]["limits"]] == ["logical"]
    rows = {name: seen["rows"]["memory"] for name, seen in found.items()}
    assert (rows["nothing"]["applied"], rows["nothing"]["changed"]) == ("growth", False)
    assert [rows[name]["applied"] for name in ("no growth", "logical", "variable")] == [None] * 3
    assert "TF_FORCE_GPU_ALLOW_GROWTH=false" in rows["variable"]["note"]
    assert found["nothing"]["rows"]["xla"]["in_force"] == "autoclustering off, Keras' auto is on"
    assert done.said == []  # an explicit float32 changes nothing, so there is nothing to say


def test_what_was_in_the_environment_before_wins(run: Run, home: Path) -> None:
    (home / ".keras").mkdir()
    (home / ".keras" / "keras.json").write_text('{"floatx": "float64", "backend": "tensorflow"}')
    mine = {
        "TF_NUM_INTRAOP_THREADS": "2",
        "CUDA_CACHE_PATH": str(home / "mine"),
        "TF_XLA_FLAGS": "--tf_xla_auto_jit=2",
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
    }
    found, done = forks(
        run, {"nothing": "seen['env'] = dict(os.environ)"}, GPUPOOL_XLA="on", CPU_LIMIT="1", **mine
    )
    seen = found["nothing"]
    assert {name: seen["env"][name] for name in mine} == mine
    assert seen["env"]["TF_NUM_INTEROP_THREADS"] == "1" and "CUDA_CACHE_MAXSIZE" not in seen["env"]
    assert seen["config"]["jit"] == 0  # the flags decide, not a call of ours
    assert seen["config"]["limits"] == [[19456], [19456]]  # the variable grows up to the limit
    rows = seen["rows"]
    assert rows["precision"]["in_force"] == "float64" and rows["precision"]["applied"] is None
    assert rows["threads"]["in_force"] == "intra 2, inter 1"
    assert all(rows[name]["changed"] for name in ("precision", "xla", "threads", "cache"))
    assert done.said == []


def test_bad_words_are_named_once_each_and_nothing_is_applied_for_them(run: Run) -> None:
    bad = {
        "GPUPOOL_PRECISION": "bf16",
        "GPUPOOL_XLA": "--tf_xla_nonsense",
        "GPUPOOL_MEMORY_LIMIT_MB": "20G",
        "CPU_LIMIT": "four",
    }
    found, done = forks(run, {"nothing": "seen['env'] = dict(os.environ)"}, **bad)
    seen = found["nothing"]
    assert seen["config"] == {"limits": [], "growth": False, "jit": 0, "intra": 0, "visible": "0,1"}
    assert "TF_NUM_INTRAOP_THREADS" not in seen["env"] and "TF_XLA_FLAGS" not in seen["env"]
    assert seen["rows"]["precision"]["in_force"] == "float32"
    assert len(done.said) == len(bad)
    for name, word in bad.items():
        assert [line for line in done.said if name in line and repr(word) in line and "it may be" in line]
