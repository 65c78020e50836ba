"""What the defaults package costs at the start and at the import, and what its defaults bring in training.

Interpreters take turns, in one run: without the package (twice, so that the noise is seen), with it unarmed, and
with it armed.  The start is an empty program, many times.  What is judged is measured inside it: two clocks, one
just before our start-up file and one just after, less what the same two clocks show without the package; other
work on the machine blurs so short a time less than that of a whole process.  Then `import tensorflow`, and Keras
`fit` of a small convolutional net and of one with large matrices: defaults off (no lease) against on (`auto`), and
against mixed_bfloat16 asked for by the profile.  On a machine without a GPU `auto` changes nothing but the sizes
of the pools: the ratios say so.
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
CLOCKS = {
    "c_began.pth": "import sys, time; sys.gpupool_began = time.perf_counter_ns()",
    "z_ended.pth": (
        "import sys, time; "
        "sys.gpupool_took = getattr(sys, 'gpupool_took', 0) + time.perf_counter_ns() - sys.gpupool_began"
    ),
}
"""Start-up files around ours.  Python takes them in the order of their names, and in a venv twice: the sum counts."""

GOALS = {"unarmed": 0.2, "armed": 3.0}  # ms more than bare
IMPORT_GOAL = 1.02
MODELS = ("convolutional", "matrices")
Times = dict[str, list[float]]


def environments(parent: Path) -> dict[str, Path]:
    """Interpreters that borrow TensorFlow from this one; pip installs the package into those called package.

    The clocks are in environments of their own.
    """
    made = {}
    for name in ("bare", "package", "bare-clocks", "package-clocks"):
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(parent / name)], check=True)
        made[name] = parent / name / "bin" / "python"
        site = next((parent / name).glob("lib/python*/site-packages"))
        borrowed = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
        (site / "borrowed.pth").write_text("".join(f"{path}\n" for path in borrowed))
        for file, text in CLOCKS.items() if name.endswith("clocks") else ():
            (site / file).write_text(text + "\n")
    copy = parent / "source"  # setuptools leaves folders in what it builds
    shutil.copytree(SOURCE, copy, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    here = [importlib.util.find_spec(name) is not None for name in ("setuptools", "wheel")]
    alone = ["--no-build-isolation"] if all(here) else []
    for name in ("package", "package-clocks"):
        install = [
            "-m",
            "pip",
            "--python",
            str(made[name]),
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
        "bare again": (pythons["bare"], plain),
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


def start_cost(pythons: Mapping[str, Path], chosen: Mapping[str, Any], rounds: int) -> Times:
    """Milliseconds between the two clocks, in turns: with nothing between them, unarmed, and armed."""
    turns = {name: (pythons["package-clocks"], chosen[name][1]) for name in ("unarmed", "armed")}
    turns["bare"] = (pythons["bare-clocks"], chosen["bare"][1])
    took: Times = {name: [] for name in turns}
    for number in range(rounds + 1):
        for name, (python, env) in turns.items():
            code = "import sys; print(sys.gpupool_took)"
            shown = subprocess.run(
                [str(python), "-c", code], env=env, stdout=subprocess.PIPE, check=True
            ).stdout
            if number:
                took[name].append(int(shown) / 1e6)
    return took


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
    def middle(runs: list[Any], clock: str) -> float:
        return statistics.median(seconds for run in runs for seconds in run[clock])

    lines = []
    for model, runs in found.items():
        off = runs["unarmed"]
        for name, title in (("unarmed", "off"), ("armed", "on, auto"), ("mixed_bfloat16", "on, bfloat16")):
            wall, cpu, last = middle(runs[name], "wall"), middle(runs[name], "cpu"), runs[name][-1]
            lines.append(
                (
                    f"{model}, defaults {title}",
                    f"{wall:.2f}",
                    f"{middle(off, 'wall') / wall:.2f}",
                    f"{cpu:.2f}",
                    f"{middle(off, 'cpu') / cpu:.2f}",
                    last["policy"],
                    "yes" if last["xla"] else "no",
                    f"{last['loss']:.3f}",
                )
            )
    head = ("Keras fit", "wall s", "off / this", "CPU s", "off / this", "policy in force", "XLA", "last loss")
    table(
        "Training: median of an epoch after the first; above 1 is faster than without the defaults",
        head,
        lines,
    )


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
    line.add_argument(
        "--imports",
        type=int,
        default=7,
        help="rounds of import tensorflow (7; 0: none of it, and no training)",
    )
    line.add_argument("--fits", type=int, default=3, help="rounds of training (3)")
    options = line.parse_args()
    summary, last = [], None
    with folder(options.dir) as parent:
        pythons = environments(parent)
        chosen = arms(pythons, parent)
        starts = {name: chosen[name] for name in ("bare", "bare again", "unarmed", "armed")}
        show("Start of an interpreter", *take_turns(starts, options.starts, "pass"))
        took = {
            name: statistics.median(found)
            for name, found in start_cost(pythons, chosen, options.starts).items()
        }
        for name, goal in GOALS.items():
            cost = took[name] - took["bare"]
            figures = (
                f"{took[name]:.3f} ms",
                f"{took['bare']:.3f} ms",
                f"{cost:+.3f} ms",
                f"≤ {goal:g} ms more",
            )
            summary.append(verdict(f"start, {name}", *figures, cost <= goal))
        if importlib.util.find_spec("tensorflow") is None:
            print("TensorFlow is not installed: its import and training are not measured.")
        elif options.imports:
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
    table("Against the goals: the start between the two clocks, the import in CPU time", VERDICTS, summary)
    print(machine(last))


if __name__ == "__main__":
    main()
