"""What the defaults package costs at the start and at the import, and what its defaults bring in training.

Three environments take turns, in one run: without the package, with it unarmed, and with it armed.  The start is
an empty program, many times; its CPU time is what counts for the verdict, since other work on the machine does
not blur it.  Then `import tensorflow`, and Keras `fit` of a small convolutional net and of one with large
matrices: defaults off (no lease) against on (`auto`), and against mixed_bfloat16 asked for by the profile.
On a machine without a GPU `auto` changes nothing but the sizes of the pools: the ratios say so.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _hub import HERE, ROOT, VERDICTS, folder, parser, spread, table, verdict

SOURCE = ROOT / "images" / "tensorflow" / "defaults"
GOALS = {"unarmed": 0.2, "armed": 3.0}  # ms more than bare
IMPORT_GOAL = 1.02
MODELS = ("convolutional", "matrices")
Times = dict[str, list[float]]


def environments(parent: Path) -> dict[str, Path]:
    """Two interpreters that borrow TensorFlow from this one; pip installs the package into the second."""
    made = {}
    for name in ("bare", "package"):
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(parent / name)], check=True)
        made[name] = parent / name / "bin" / "python"
        site = next((parent / name).glob("lib/python*/site-packages"))
        borrowed = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
        (site / "borrowed.pth").write_text("".join(f"{path}\n" for path in borrowed))
    copy = parent / "source"  # setuptools leaves folders in what it builds
    shutil.copytree(SOURCE, copy, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    here = [importlib.util.find_spec(name) is not None for name in ("setuptools", "wheel")]
    alone = ["--no-build-isolation"] if all(here) else []
    install = [
        "-m",
        "pip",
        "--python",
        str(made["package"]),
        "install",
        "--quiet",
        "--no-deps",
        *alone,
        str(copy),
    ]
    subprocess.run([sys.executable, *install], check=True)
    return made


def arms(pythons: Mapping[str, Path], home: Path) -> dict[str, tuple[Path, dict[str, str]]]:
    """Interpreter and environment of each arm."""
    plain = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    plain |= {"HOME": str(home), "TF_CPP_MIN_LOG_LEVEL": "3"}
    lease = {
        "GPUPOOL_LEASE": "bench",
        "GPUPOOL_PRECISION": "auto",
        "GPUPOOL_PRECISION_AUTO": "mixed_bfloat16",
        "GPUPOOL_XLA": "auto",
        "CPU_LIMIT": str(os.cpu_count()),
    }
    return {
        "bare": (pythons["bare"], plain),
        "unarmed": (pythons["package"], plain),
        "armed": (pythons["package"], {**plain, **lease}),
        "mixed_bfloat16": (pythons["package"], {**plain, **lease, "GPUPOOL_PRECISION": "mixed_bfloat16"}),
    }


def spent(python: Path, env: Mapping[str, str], *arguments: str) -> tuple[float, float]:
    """Wall and CPU time of one interpreter, in milliseconds."""
    command = [str(python), *arguments]
    closed = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1, 2)]
    began = time.perf_counter()
    child = os.posix_spawn(python, command, env, file_actions=closed)
    _, status, used = os.wait4(child, 0)
    wall = time.perf_counter() - began
    if status:
        raise SystemExit(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
    return 1000 * wall, 1000 * (used.ru_utime + used.ru_stime)


def take_turns(
    chosen: Mapping[str, tuple[Path, dict[str, str]]], rounds: int, code: str
) -> tuple[Times, Times]:
    """Run the code in each arm, in turns; the first round warms the caches and is not counted."""
    wall: Times = {name: [] for name in chosen}
    cpu: Times = {name: [] for name in chosen}
    for number in range(rounds + 1):
        for name, (python, env) in chosen.items():
            one = spent(python, env, "-c", code)
            if number:
                wall[name].append(one[0])
                cpu[name].append(one[1])
    return wall, cpu


def show(title: str, wall: Times, cpu: Times) -> None:
    middle = statistics.median
    lines = [
        (
            name,
            spread(wall[name]),
            f"{middle(wall[name]) / middle(wall['bare']):.3f}",
            spread(cpu[name]),
            f"{middle(cpu[name]) / middle(cpu['bare']):.3f}",
            f"{middle(cpu[name]) - middle(cpu['bare']):+.2f}",
        )
        for name in wall
    ]
    head = ("", "wall ms", "ratio", "CPU ms", "ratio", "CPU ms more than bare")
    table(f"{title}: median (middle half), {len(wall['bare'])} rounds in turns", head, lines)


def fit(chosen: Mapping[str, tuple[Path, dict[str, str]]], rounds: int) -> dict[str, dict[str, list[Any]]]:
    """Train each model in each arm, in turns; what each run printed."""
    found: dict[str, dict[str, list[Any]]] = {model: {name: [] for name in chosen} for model in MODELS}
    for _ in range(rounds):
        for model in MODELS:
            for name, (python, env) in chosen.items():
                done = subprocess.run(
                    [str(python), str(HERE / "_defaults_fit.py"), model],
                    env=env,
                    capture_output=True,
                    text=True,
                )
                if done.returncode:
                    raise SystemExit(done.stderr[-4000:])
                found[model][name].append(json.loads(done.stdout.splitlines()[-1]))
    return found


def show_fit(found: Mapping[str, Mapping[str, list[Any]]]) -> None:
    lines = []
    for model, runs in found.items():
        off = statistics.median(seconds for run in runs["unarmed"] for seconds in run["seconds"])
        for name, title in (("unarmed", "off"), ("armed", "on, auto"), ("mixed_bfloat16", "on, bfloat16")):
            seconds = [span for run in runs[name] for span in run["seconds"]]
            last = runs[name][-1]
            lines.append(
                (
                    f"{model}, defaults {title}",
                    f"{statistics.median(seconds):.3f}",
                    f"{min(seconds):.3f}",
                    f"{off / statistics.median(seconds):.2f}",
                    last["policy"],
                    "yes" if last["xla"] else "no",
                    f"{last['loss']:.3f}",
                )
            )
    head = ("Keras fit", "s an epoch", "best", "times as fast as off", "policy in force", "XLA", "last loss")
    table("Training, epochs after the first", head, lines)


def machine(last: Mapping[str, Any] | None) -> str:
    """The hardware, in words."""
    info = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    model = next(
        (line.partition(":")[2].strip() for line in info if line.startswith("model name")), "unknown CPU"
    )
    flags = next((line.split() for line in info if line.startswith("flags")), [])
    known = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    gpus = [gpu.get("device_name", "GPU") for gpu in last["gpus"]] if last else []
    versions = f", {last['versions']}" if last else ""
    one, five, _ = os.getloadavg()
    return (
        f"{model}, {os.cpu_count()} cores ({' '.join(known)}), {', '.join(gpus) or 'no GPU'}; "
        f"Python {sys.version.split()[0]}{versions}; load {one:.1f} (1 min), {five:.1f} (5 min)"
    )


def main() -> None:
    line = parser(__doc__)
    line.add_argument("--starts", type=int, default=200, help="rounds of the empty program (200)")
    line.add_argument("--imports", type=int, default=7, help="rounds of import tensorflow (7)")
    line.add_argument("--fits", type=int, default=3, help="rounds of training (3)")
    options = line.parse_args()
    summary, last = [], None
    with folder(options.dir) as parent:
        chosen = arms(environments(parent), parent)
        starts = {name: chosen[name] for name in ("bare", "unarmed", "armed")}
        wall, cpu = take_turns(starts, options.starts, "pass")
        show("Start of an interpreter", wall, cpu)
        bare = statistics.median(cpu["bare"])
        for name, goal in GOALS.items():
            own = statistics.median(cpu[name])
            cost = (f"{own:.2f} ms", f"{bare:.2f} ms", f"{own / bare:.3f}", f"≤ {goal:g} ms more")
            summary.append(verdict(f"start, {name}", *cost, own - bare <= goal))
        if importlib.util.find_spec("tensorflow") is None:
            print("TensorFlow is not installed: its import and training are not measured.")
        else:
            pair = {name: chosen[name] for name in ("bare", "armed")}
            wall, cpu = take_turns(pair, options.imports, "import tensorflow")
            show("import tensorflow", wall, cpu)
            own, bare = statistics.median(cpu["armed"]), statistics.median(cpu["bare"])
            figures = (f"{own:.0f} ms", f"{bare:.0f} ms", f"{own / bare:.3f}", f"≤ {IMPORT_GOAL} (noise)")
            summary.append(verdict("import tensorflow, armed", *figures, own / bare <= IMPORT_GOAL))
            trained = fit(
                {name: chosen[name] for name in ("unarmed", "armed", "mixed_bfloat16")}, options.fits
            )
            show_fit(trained)
            last = trained[MODELS[0]]["armed"][-1]
    table("CPU time against the goals", VERDICTS, summary)
    print(machine(last))


if __name__ == "__main__":
    main()
