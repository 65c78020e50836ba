"""Try the image out from the inside, as a session: `make image` feeds this to the image's own Python.

    python3 smoke.py [CHECK…]      all, or those named: user, tools, locked, tensorflow, cuda, defaults, pip, server

Run it in a container with the hardening of a session and without a network; each check prints one line.  The exit
status is 0 when all hold, and 1 with the reason after the first that does not.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import json
import os
import shutil
import site
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

HOME = Path.home()
SHARE = Path("/usr/local/share/gpupool")
WHEELS = sorted((SHARE / "wheels").glob("*.whl"))
# Directories that anybody may write to, on every Debian: emptied with the container.
SHARED = {"/tmp", "/var/tmp", "/run/lock", "/dev/shm", "/dev/mqueue"}
COMPILERS = ("cc", "gcc", "g++", "c++", "clang", "clang++", "tcc", "nvcc", "ld", "as", "make")
# The libraries that TensorFlow opens by name when it looks for a GPU, and what those open in turn.
CUDA = (
    "libcudart.so.12",
    "libcublas.so.12",
    "libcublasLt.so.12",
    "libcudnn.so.9",
    "libcufft.so.11",
    "libcurand.so.10",
    "libcusolver.so.11",
    "libcusparse.so.12",
    "libcupti.so.12",
    "libnvJitLink.so.12",
    "libnvrtc.so.12",
    "libnccl.so.2",
)
# They belong to the driver, which the container runtime brings.
DRIVER = ("libcuda.so", "libnvidia-ml.so")


class Failed(Exception):
    """A check that does not hold; the text says what and what was expected."""


def need(holds: object, sentence: str) -> None:
    if not holds:
        raise Failed(sentence)


def run(*command: str, **environment: str) -> str:
    """Run a command, give back what it wrote to stdout; raises Failed with its last lines when it fails."""
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, env={**os.environ, **environment}, check=False
    )
    tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
    need(done.returncode == 0, f"{' '.join(command)} ended with {done.returncode}:\n{tail}")
    return done.stdout


def has(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def check_user() -> None:
    """The session is not root, its home can be written to, nothing else can, and no file keeps a set-uid bit."""
    need(os.getuid() != 0, "the session runs as root")
    need(str(HOME) == "/home/jovyan", f"the home is {HOME}, not /home/jovyan")
    (HOME / "probe").touch()
    (HOME / "probe").unlink()
    listed = subprocess.run(
        ["find", "/", "-xdev", "-path", HOME, "-prune", "-o", "-type", "d", "-writable", "-print"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.splitlines()
    surprising = set(listed) - SHARED
    need(not surprising, f"these can be written to outside the home: {', '.join(sorted(surprising))}")
    command = ["find", "/", "-xdev", "-type", "f", "-perm", "/6000"]
    privileged = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    need(not privileged, f"these keep a set-uid or set-gid bit: {', '.join(privileged)}")


def check_tools() -> None:
    """No compiler and no installer's cache is in the image; what people work with is."""
    found = [tool for tool in COMPILERS if shutil.which(tool)]
    need(not found, f"these have no place in the final image: {', '.join(found)}")
    for cache in (Path("/root/.cache"), HOME / ".cache/pip", Path("/var/lib/apt/lists/partial")):
        need(not (os.access(cache.parent, os.X_OK) and cache.exists()), f"{cache} was left in the image")
    for tool in ("git", "jupyterhub-singleuser", "jupyter", "less", "pip", "python", "tensorboard"):
        need(shutil.which(tool), f"there is no {tool} on the path")
    need(os.environ.get("NVIDIA_VISIBLE_DEVICES") == "void", "without a request the image would show a GPU")


def check_locked() -> None:
    """What is installed is what the lock files name, and it fits together."""
    import packaging.requirements as requirements

    locked: dict[str, str] = {}
    for path in (SHARE / "requirements").glob("*.lock"):
        if path.name == "cuda.lock" and not has("tensorflow"):
            continue
        for line in path.read_text().splitlines():
            if line[:1].isalpha():
                requirement = requirements.Requirement(line.rstrip(" \\"))
                if requirement.marker is None or requirement.marker.evaluate():
                    locked[requirement.name] = str(requirement.specifier).removeprefix("==")
    differing = [
        f"{name} {version}" for name, version in locked.items() if importlib.metadata.version(name) != version
    ]
    need(locked and not differing, f"not installed as locked: {', '.join(differing) or 'nothing is locked'}")
    run("python3", "-m", "pip", "check")


def check_tensorflow() -> None:
    """TensorFlow computes, compiles with XLA, trains with Keras and writes what TensorBoard reads."""
    code = """if True:
        import keras, tempfile, tensorflow as tf
        assert float(tf.function(lambda x: tf.reduce_sum(x * 2), jit_compile=True)(tf.ones([3]))) == 6
        model = keras.Sequential([keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        with tempfile.TemporaryDirectory() as logs:
            model.fit(tf.ones([8, 2]), tf.ones([8, 1]), verbose=0, callbacks=[keras.callbacks.TensorBoard(logs)])
            assert tf.io.gfile.glob(logs + "/train/events*")
    """
    run("python3", "-c", code, TF_CPP_MIN_LOG_LEVEL="2")


def check_cuda() -> None:
    """The loader finds every CUDA library, and all that those and TensorFlow were linked with."""
    for name in CUDA:
        try:
            ctypes.CDLL(name)
        except OSError as error:
            raise Failed(f"the loader does not find {name}: {error}") from None
    packages = Path(sysconfig.get_path("platlib"))
    libraries = [*packages.glob("tensorflow/libtensorflow_*.so.2"), *packages.glob("nvidia/*/lib/*.so*")]
    need(len(libraries) > len(CUDA), f"there are hardly any CUDA libraries below {packages}")
    listed = subprocess.run(["ldd", *libraries], capture_output=True, text=True, check=False).stdout
    missing = {line.split()[0] for line in listed.splitlines() if "not found" in line}
    missing = {name for name in missing if not name.startswith(DRIVER)}
    need(not missing, f"the loader does not find {', '.join(sorted(missing))}")
    ptxas = packages / "nvidia/cuda_nvcc/bin/ptxas"
    need(os.access(ptxas, os.X_OK), f"XLA needs {ptxas} to compile for a GPU")
    bitcode = packages / "nvidia/cuda_nvcc/nvvm/libdevice/libdevice.10.bc"
    need(bitcode.is_file(), f"XLA needs {bitcode} to compile for a GPU")


def check_defaults() -> None:
    """The defaults are installed, and prove themselves on a session without a GPU."""
    armed = {"GPUPOOL_LEASE": "smoke", "GPUPOOL_SLICE": "cpu", "GPUPOOL_DEVICES": "", "GPUPOOL_VISIBLE": ""}
    answer = json.loads(run("python3", "-m", "gpupool_tensorflow", "check", **armed).splitlines()[-1])
    need(answer["passed"] and not answer["gpu"], f"the defaults' own check says {answer}")


def check_pip() -> None:
    """What people install goes to their home and wins in kernels, but cannot keep the server from starting."""
    need(Path(site.getusersitepackages()).is_relative_to(HOME), "pip's user packages are not in the home")
    # In the home: /tmp may be mounted so that nothing in it can be executed.
    with tempfile.TemporaryDirectory(dir=HOME) as scratch:
        package = Path(scratch) / "package"
        package.mkdir()
        (package / "traitlets.py").write_text("mine = True\n")  # the server could not live with it
        (package / "setup.py").write_text(
            "import setuptools\nsetuptools.setup(name='traitlets', version='999', py_modules=['traitlets'])\n"
        )
        try:
            run("pip", "install", "--quiet", "--no-index", "--no-build-isolation", "--no-deps", str(package))
            where = run("python3", "-c", "import traitlets; print(traitlets.mine, traitlets.__file__)")
            need(where.startswith(f"True {HOME}/"), f"what pip installed is not what is imported: {where}")
            run("jupyterhub-singleuser", "--version")
        finally:
            run("pip", "uninstall", "--quiet", "--yes", "traitlets")
        run("python3", "-m", "venv", f"{scratch}/venv")
        run(f"{scratch}/venv/bin/pip", "install", "--quiet", "--no-index", "--no-deps", *map(str, WHEELS))


@contextmanager
def server() -> Iterator[str]:
    """A Jupyter server as the hub starts one, without the hub: yields its address."""
    options = ["--ServerApp.token=smoke", "--ServerApp.base_url=/user/smoke/", "--port=8888", "--no-browser"]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(["jupyter", "lab", *options], stdout=log, stderr=log)
        try:
            address = "http://127.0.0.1:8888/user/smoke/"
            deadline = time.monotonic() + 300
            while get(address + "api", token=False)[0] != 200:
                log.seek(0)
                if process.poll() is not None or time.monotonic() > deadline:
                    raise Failed(f"the Jupyter server does not answer:\n{log.read()[-2000:]}")
                time.sleep(0.2)  # a server under way answers nothing that could be waited for
            yield address
        finally:
            process.terminate()
            process.wait(30)


class Plain(urllib.request.HTTPRedirectHandler):
    """Follows nothing, so that a redirection to the log-in is seen."""

    def redirect_request(self, *args: object) -> None:
        return None


def get(address: str, token: bool = True) -> tuple[int, str]:
    """Status and body of a page; 0 when nobody answers."""
    request = urllib.request.Request(address, headers={"Authorization": "token smoke"} if token else {})
    try:
        with urllib.request.build_opener(Plain).open(request, timeout=150) as answer:
            return answer.status, answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, ""
    except (urllib.error.URLError, OSError):
        return 0, ""


def check_server() -> None:
    """JupyterLab answers with the pool's extension, TensorBoard behind the log-in only; the note is in the home."""
    major = run("jupyterhub-singleuser", "--version").strip().split(".")[0]
    locked = importlib.metadata.version("jupyterhub").split(".")[0]
    need(major == locked, f"jupyterhub-singleuser is of version {major}, and the lock file names {locked}")
    with server() as address:
        status, page = get(address + "lab")
        need(status == 200, "JupyterLab does not answer")
        need('"jupyterhub-gpupool"' in page, "JupyterLab would not load the pool's extension")
        status, _ = get(address + "tensorboard/", token=False)
        need(status in (302, 403), f"TensorBoard answers {status} without a log-in")
        status, page = get(address + "tensorboard/")
        need(status == 200 and "<title>TensorBoard</title>" in page, f"TensorBoard answers {status}")
        settings = json.loads(
            get(address + "lab/api/settings/@jupyterlab/apputils-extension:notification")[1]
        )
        news = settings["schema"]["properties"]["fetchNews"]["default"]
        need(news == "false", "JupyterLab would fetch news from the network")
    need((HOME / ".gpupool/tensorboard").is_dir(), "TensorBoard's directory is not in the home")
    need((HOME / "About this session.md").is_file(), "no note in the home says what is kept")
    need(
        "Only files in your home are kept" in run("bash", "-ic", "true"), "terminals do not say what is kept"
    )


CHECKS: dict[str, Callable[[], None]] = {
    "user": check_user,
    "tools": check_tools,
    "locked": check_locked,
    "tensorflow": check_tensorflow,
    "cuda": check_cuda,
    "defaults": check_defaults,
    "pip": check_pip,
    "server": check_server,
}


def main(wanted: list[str]) -> int:
    """Run the checks named, or all; 0 when they hold."""
    skipped = set() if has("tensorflow") else {"cuda"}  # tensorflow-cpu has no CUDA libraries
    print(f"      As user {os.getuid()}:{os.getgid()}, Python {sys.version.split()[0]}", flush=True)
    for name in wanted or [name for name in CHECKS if name not in skipped]:
        started = time.monotonic()
        try:
            CHECKS[name]()
        except Failed as failed:
            print(f"gpupool: {name}: {failed}", file=sys.stderr)
            return 1
        title = (CHECKS[name].__doc__ or name).splitlines()[0]
        print(f"      ok {time.monotonic() - started:5.1f} s  {title}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
