"""The wheel, the arming, the import hook and the checked words: all that needs no TensorFlow.

Where an import is needed, small stand-ins take the place of TensorFlow and Keras: each shows one shape that
the package must cope with.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
from gpupool_tensorflow import _precision, _settings, _xla
from gpupool_tensorflow._state import State

from .conftest import CARD, Run

OURS = "print(__import__('json').dumps(sorted(m for m in __import__('sys').modules if 'gpupool' in m)))"
ARMED = ["gpupool_tensorflow", "gpupool_tensorflow._hook"]


def test_the_wheel_carries_the_startup_files_beside_the_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        names = set(opened.namelist())
        start = opened.read("gpupool_tensorflow.start").decode()
        record = next(name for name in names if name.endswith("RECORD"))
        listed = opened.read(record).decode()
    assert {"gpupool_tensorflow.pth", "gpupool_tensorflow.start", "gpupool_tensorflow/py.typed"} <= names
    assert "gpupool_tensorflow.pth" in listed, "pip removes what RECORD names"
    assert [line for line in start.splitlines() if not line.startswith("#")] == [
        "gpupool_tensorflow._hook:start"
    ]


@pytest.mark.parametrize("flags", [(), ("-I",), ("-E", "-s")], ids=lambda flags: " ".join(flags) or "plain")
def test_the_lease_arms_every_interpreter_and_nothing_else_does(run: Run, flags: tuple[str, ...]) -> None:
    assert run(OURS, *flags, env={"GPUPOOL_LEASE": "7"}).found == ARMED
    assert run(OURS, *flags, env={"GPUPOOL_LEASE": ""}).found == []
    assert run(OURS, *flags, env={"GPUPOOL_XLA": "on"}).found == []


def test_an_interpreter_without_site_is_left_alone(run: Run) -> None:
    assert run(OURS, "-S", env={"GPUPOOL_LEASE": "7"}).found == []


def test_arming_loads_nothing_but_the_hook(run: Run) -> None:
    code = "print(__import__('json').dumps(sorted(__import__('sys').modules)))"
    plain, armed = run(code).found, run(code, env={"GPUPOOL_LEASE": "7"}).found
    assert sorted(set(armed) - set(plain)) == ARMED


def test_the_start_entry_arms_once_and_only_with_the_lease(run: Run) -> None:
    code = """
import json, os, pkgutil, sys
start = pkgutil.resolve_name("gpupool_tensorflow._hook:start")
count = lambda: sum(type(finder).__name__ == "Finder" for finder in sys.meta_path)
start(); before = count()
os.environ["GPUPOOL_LEASE"] = "7"
start(); start()
print(json.dumps([before, count()]))
"""
    assert run(code).found == [0, 1]


# --- the hook, over stand-ins ----------------------------------------------------------------------------


def stand_in(folder: Path, name: str, text: str) -> None:
    (folder / name).mkdir(exist_ok=True)
    (folder / name / "__init__.py").write_text(text)


def test_a_missing_tensorflow_stays_pythons_own_error(run: Run) -> None:
    code = """
import json, sys
sys.path[:] = [p for p in sys.path if "site-packages" not in p or "gpupool" in p]
sys.path_importer_cache.clear()
import importlib.util
probe = importlib.util.find_spec("tensorflow")
try:
    import tensorflow
except ModuleNotFoundError as error:
    print(json.dumps([str(error), error.name, probe is None]))
"""
    done = run(code, env=CARD)
    assert done.found == ["No module named 'tensorflow'", "tensorflow", True]
    assert done.said == []


def test_an_error_of_the_import_stays_the_users_own_and_a_second_try_is_served(
    run: Run, tmp_path: Path
) -> None:
    stand_in(
        tmp_path, "tensorflow", "import os\nif 'BROKEN' in os.environ: raise OSError(5, 'a disk is broken')\n"
    )
    code = """
import json, os
os.environ["BROKEN"] = "1"
try:
    import tensorflow
except OSError as error:
    first = [type(error).__name__, error.args, error.__cause__ is None, error.__context__ is None]
del os.environ["BROKEN"]
import tensorflow
print(json.dumps(first))
"""
    done = run(code, env=CARD)
    assert done.found == ["OSError", [5, "a disk is broken"], True, True]
    assert (
        len(done.said) == 1 and "memory limit of 20480 MiB" in done.said[0]
    )  # a TensorFlow of unknown shape


UNKNOWN = {
    "an unknown TensorFlow": (
        {"tensorflow": "__version__ = '9.9'"},
        {"GPUPOOL_XLA": "on"},
        ["not applied: memory limit of 20480 MiB, XLA autoclustering. TensorFlow 9.9 is not known"],
    ),
    "an unknown TensorFlow, nothing to apply": (
        {"tensorflow": "__version__ = '9.9'"},
        {"GPUPOOL_SLICE": "cpu", "GPUPOOL_MEMORY_LIMIT_MB": ""},
        [],
    ),
    "a Keras of before": ({"keras": "__version__ = '2.15.0'"}, {}, ["Keras 2.15.0 is not known"]),
    "a Keras of later": ({"keras": "__version__ = '4.0'"}, {}, ["Keras 4.0 is not known"]),
    "tf_keras": ({"tf_keras": "__version__ = '2.21.0'"}, {}, ["not applied to tf_keras"]),
    "Keras without its config": (
        {"keras": "__version__ = '3.99'\nclass Model: pass"},
        {"GPUPOOL_XLA": "off"},
        ["XLA is not off: Keras 3.99 is not known"],
    ),
    "Keras that breaks us": (
        {
            "keras": "__version__ = '3.99'\nclass config:\n    def backend(): raise RuntimeError('two\\nlines')"
        },
        {},
        ["TensorFlow defaults were not applied: RuntimeError: two lines"],
    ),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_cannot_be_applied_is_one_line_and_the_import_goes_on(
    run: Run, tmp_path: Path, name: str
) -> None:
    modules, env, lines = UNKNOWN[name]
    for module, text in modules.items():
        stand_in(tmp_path, module, text)
    code = "".join(f"import {module}\n" for module in modules) + "print('true')"
    done = run(code, env={**CARD, **env})
    assert done.found is True and "Traceback" not in done.err
    assert len(done.said) == len(lines), done.err
    assert all(words in said for words, said in zip(lines, done.said, strict=True))


PLAIN_KERAS = """
__version__ = "3.99"
class Policy:
    def __init__(self, name): self.name = name
DTypePolicy = Policy
held = Policy("float32")
def dtype_policy(): return held
def set_dtype_policy(name):
    global held
    held = Policy(name)
class Config: pass
config = Config()
config.backend = lambda: "tensorflow"
config.floatx = lambda: "float32"
config.dtype_policy, config.set_dtype_policy = dtype_policy, set_dtype_policy
"""


def test_a_keras_made_otherwise_is_set_as_a_user_would_and_the_limits_are_said(
    run: Run, tmp_path: Path
) -> None:
    stand_in(tmp_path, "keras", PLAIN_KERAS)
    code = "import json, keras; print(json.dumps(keras.config.dtype_policy().name))"
    done = run(code, env={**CARD, "GPUPOOL_PRECISION": "mixed_float16"})
    assert done.found == "mixed_float16"
    assert len(done.said) == 2 and "in the thread of the import only" in done.said[0]


def test_probes_threads_and_reloads_do_not_use_the_hook_up(run: Run, tmp_path: Path) -> None:
    stand_in(tmp_path, "keras", PLAIN_KERAS)
    code = """
import importlib, importlib.util, json, sys, threading
calls = []
from gpupool_tensorflow import _apply
real = _apply.after_import
_apply.after_import = lambda *args: (calls.append(args[0]), real(*args))
for _ in range(3):
    assert importlib.util.find_spec("keras").loader.__class__.__name__ == "SourceFileLoader"
threads = [threading.Thread(target=__import__, args=("keras",)) for _ in range(16)]
[thread.start() for thread in threads]; [thread.join() for thread in threads]
first = list(calls)
importlib.reload(sys.modules["keras"])
del sys.modules["keras"]
import keras
print(json.dumps([first, calls]))
"""
    assert run(code, env=CARD).found == [["keras"], ["keras"] * 3]


@pytest.mark.parametrize(
    "closing", ["sys.stderr = None", "sys.stderr.close()", "sys.stderr = open('/dev/full', 'w')"]
)
def test_a_stderr_that_is_gone_does_not_fail_the_import(run: Run, tmp_path: Path, closing: str) -> None:
    stand_in(tmp_path, "tensorflow", "__version__ = '9.9'")
    stand_in(tmp_path, "keras", UNKNOWN["Keras that breaks us"][0]["keras"])
    done = run(f"import sys; {closing}; import tensorflow, keras; print('true')", env=CARD)
    assert done.out.splitlines()[-1] == "true"


def test_a_home_that_cannot_be_written_costs_the_cache_only(run: Run, tmp_path: Path) -> None:
    stand_in(tmp_path, "tensorflow", "")
    (tmp_path / "file").touch()
    code = "import tensorflow, json, os; print(json.dumps(os.environ.get('CUDA_CACHE_PATH')))"
    done = run(code, env={**CARD, "HOME": str(tmp_path / "file")})
    assert done.found is None
    assert [line for line in done.said if "compute cache" in line and "Not a directory" in line]


# --- words and decisions ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "bad", "good"),
    [
        ("GPUPOOL_SLICE", ["GPU", "half", "cpu gpu"], ["cpu", "gpu", "mig", "share", " share "]),
        ("GPUPOOL_XLA", ["ON", "true", "--tf_xla_auto_jit=2", "o" * 500], ["auto", "on", "off"]),
        ("GPUPOOL_PRECISION", ["bfloat16", "fp16", "mixed"], [*_settings.PRECISIONS]),
        ("GPUPOOL_PRECISION_AUTO", ["auto", "float16"], [*_settings.POLICIES]),
        ("GPUPOOL_MEMORY_LIMIT_MB", ["0", "-5", "20G", "1e3", "1_000", "9" * 30, "²"], ["1", "20480"]),
        ("GPUPOOL_COMPUTE_CAPABILITY", ["8", "sm_80", "8.0.1", "x.y"], ["7.5", "12.0"]),
        ("GPUPOOL_SIMULATED", ["yes", "2"], ["0", "1"]),
        (
            "GPUPOOL_VISIBLE",
            ["0,1", "GPU-", "GPU-a,,GPU-b", "GPU-a;rm"],
            ["GPU-a", "GPU-a, MIG-b", "MIG-GPU-a/1/0"],
        ),
        ("CPU_LIMIT", ["0", "-1", "nan", "inf", "four"], ["0.1", "2", "1e3"]),
    ],
)
def test_a_bad_word_is_named_with_what_is_allowed_and_counts_as_not_given(
    name: str, bad: list[str], good: list[str]
) -> None:
    nothing = _settings.read({})
    for word in bad:
        found = _settings.read({name: word})
        assert len(found.problems) == 1 and name in found.problems[0] and "it may be" in found.problems[0]
        assert len(found.problems[0]) < 250
        if name != "GPUPOOL_MEMORY_LIMIT_MB":
            assert found == type(found)(**{**vars(nothing), "problems": found.problems})
        else:
            assert found.memory_limit is None and not found.memory_growth, "neither limit nor growth"
    for word in good:
        assert _settings.read({name: word}).problems == ()
    assert _settings.read({name: "  "}) == nothing


def test_nothing_is_asked_where_nothing_is_said() -> None:
    assert _settings.read({}) == _settings.Settings(memory_growth=True)
    assert _settings.read({"GPUPOOL_SLICE": "cpu"}).memory_growth is False


@pytest.mark.parametrize(
    ("limit", "reserve", "usable"),
    [
        ("20480", "", 19456),
        ("81920", "", 80896),
        ("2000", "", 1500),
        ("1", "", 1),
        ("2000", "0", 2000),
        ("2000", "1999", 1),
        ("2000", "2000", 1500),  # a bad word: the usual reserve
    ],
)
def test_the_reserve_is_a_quarter_and_at_most_a_gibibyte(limit: str, reserve: str, usable: int) -> None:
    found = _settings.read({"GPUPOOL_MEMORY_LIMIT_MB": limit, "GPUPOOL_MEMORY_RESERVE_MB": reserve})
    assert found.usable == usable
    assert len(found.problems) == (1 if reserve == limit else 0)


def test_cores_are_rounded_up_and_never_more_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_settings.os, "sched_getaffinity", lambda pid: set(range(4)))
    cores = {word: _settings.read({"CPU_LIMIT": word}).cores for word in ("0.2", "1", "2.01", "64")}
    assert cores == {"0.2": 1, "1": 1, "2.01": 3, "64": 4}


def test_a_bad_meaning_of_auto_applies_no_precision() -> None:
    found = _settings.read({"GPUPOOL_PRECISION": "auto", "GPUPOOL_PRECISION_AUTO": "best"})
    assert found.precision is None and _precision.decide(found)[0] is None


@pytest.mark.parametrize(
    ("nodes", "variables", "policy", "words"),
    [
        (["nvidia0", "nvidiactl"], {}, "mixed_bfloat16", "compute capability 8.0"),
        (["dxg"], {}, "mixed_bfloat16", "compute capability 8.0"),
        (["null"], {}, "float32", "no GPU is here"),
        (["nvidia0"], {"CUDA_VISIBLE_DEVICES": ""}, "float32", "CUDA_VISIBLE_DEVICES hides"),
        (["nvidia0"], {"CUDA_VISIBLE_DEVICES": "-1"}, "float32", "CUDA_VISIBLE_DEVICES hides"),
        (["nvidia0"], {"CUDA_VISIBLE_DEVICES": "GPU-a"}, "mixed_bfloat16", "auto"),
        (["nvidia0"], {"GPUPOOL_SLICE": "cpu"}, "float32", "this session has no GPU"),
        (["nvidia0"], {"GPUPOOL_SIMULATED": "1"}, "float32", "simulated"),
        (["nvidia0"], {"GPUPOOL_PRECISION_AUTO": ""}, "float32", "unknown"),
        (["null"], {"GPUPOOL_PRECISION": "mixed_float16"}, "mixed_float16", "asked by the profile"),
    ],
)
def test_what_auto_means_is_decided_without_cuda(
    nodes: list[str],
    variables: dict[str, str],
    policy: str,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for node in nodes:
        (tmp_path / node).touch()
    monkeypatch.setattr(_precision, "DEV", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found, why = _precision.decide(_settings.read({**CARD, **variables}))
    assert found == policy and words in why


@pytest.mark.parametrize(
    ("capability", "asked", "chosen"),
    [
        ("8.0", "auto", "auto"),
        ("9.0", "on", "on"),
        ("10.0", "auto", "off"),
        ("12.0", "on", "off"),
        ("12.0", "off", "off"),
        ("", "on", "on"),
    ],
)
def test_xla_is_off_where_the_wheel_is_older_than_the_card(
    capability: str, asked: str, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from . import fake_gpu

    class Build:
        build_info = fake_gpu.BUILD

    monkeypatch.setitem(_xla.sys.modules, "tensorflow.python.platform.build_info", Build)  # type: ignore[arg-type]
    settings = _settings.read({**CARD, "GPUPOOL_COMPUTE_CAPABILITY": capability, "GPUPOOL_XLA": asked})
    found, why = _xla.decide(State(settings))
    assert found == chosen and bool(why) is (asked != chosen)


def test_the_newest_card_of_a_build_is_found_in_all_its_spellings() -> None:
    assert _xla.newest_major(["sm_60", "sm_90a", "compute_90"]) == 9
    assert _xla.newest_major(["sm_90", "compute_120"]) == 12
    assert _xla.newest_major([]) is None
    assert _xla.autoclusters({"TF_XLA_FLAGS": "--tf_xla_cpu_global_jit"}) == ""
    assert json.dumps(_xla.autoclusters({"TF_XLA_FLAGS": "--tf_xla_auto_jit=2"})) != '""'
