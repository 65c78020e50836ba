#!/bin/sh
# Make .venv and install the named extras of setup.cfg into it, with a line for each step.
#
#   scripts/install.sh [-l STEP] EXTRA…      STEP: the caller's own last step, said when the others are done
#
# The extra "backend" stands for what the demo needs for its sessions: `demo` (TensorFlow) where they are processes, `docker`
# where they are containers, as GPUPOOL_BACKEND says; both where that is open and a container engine answers.
#
# What is there already is skipped: a stamp in .venv holds what an extra was installed from.  Any failure ends with one
# sentence and a status other than 0.  PYTHON names the Python to use (python3).
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
last=
if [ "${1:-}" = -l ]; then last=$2; shift 2; fi
step=0

fail() { echo "gpupool: $1" >&2; exit 1; }

say() { step=$((step + 1)); echo "[$step/$steps] $1"; }

title() {
    case $1 in
        hub) echo "JupyterHub, its proxy and JupyterLab" ;;
        docker) echo "the Docker backend (it talks to the container engine)" ;;
        nvidia) echo "the Python binding of NVIDIA's driver" ;;
        demo) echo "TensorFlow (by far the largest download)" ;;
        test) echo "what the tests need" ;;
        dev) echo "the checkers" ;;
        *) fail "setup.cfg has no extra \"$1\" that this script knows." ;;
    esac
}

engine_answers() { command -v docker >/dev/null 2>&1 && timeout 10 docker version >/dev/null 2>&1; }

for extra in "$@"; do
    shift
    if [ "$extra" != backend ]; then
        set -- "$@" "$extra"
        continue
    fi
    case ${GPUPOOL_BACKEND:-auto} in
        docker) set -- "$@" docker ;;
        auto) if engine_answers; then set -- "$@" demo docker; else set -- "$@" demo; fi ;;
        *) set -- "$@" demo ;;
    esac
done
steps=$(($# + 1))
if [ -n "$last" ]; then steps=$((steps + 1)); fi

command -v "$python" >/dev/null 2>&1 ||
    fail "there is no $python here. Install Debian's packages python3 and python3-venv, or name another: make PYTHON=…"
version=$("$python" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])') || fail "$python does not run."
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "Python 3.11 or later is needed, and $python is $version. Name a later one: make PYTHON=…"

# An environment that was moved, or whose Python has gone, does not work any more.
here="$version $(pwd -P)"
if [ -e .venv/gpupool-made-for ] && { [ "$(cat .venv/gpupool-made-for)" != "$here" ] || ! .venv/bin/python -c ''; }; then
    echo "The virtual environment .venv was made elsewhere or by another Python: it is made anew."
    rm -rf .venv
fi
if [ -x .venv/bin/pip ] && .venv/bin/python -c '' 2>/dev/null; then
    say "The virtual environment .venv is there"
else
    say "Making the virtual environment .venv with Python $version"
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$python cannot make virtual environments. Install Debian's package python3-venv, then run make again."
    "$python" -m venv --clear .venv || fail "the virtual environment could not be made in $(pwd): see the message above."
    echo "$here" >.venv/gpupool-made-for
fi

# The built extension for JupyterLab is copied when the package is installed; its package.json names what was built last.
source=$(cat setup.cfg pyproject.toml jupyterhub_gpupool/labextension/package.json | cksum)
for extra in "$@"; do
    title=$(title "$extra")
    stamp=.venv/gpupool-installed-$extra
    if [ -e "$stamp" ] && [ "$(cat "$stamp")" = "$source" ]; then
        say "Installed already: $title"
        continue
    fi
    say "Installing $title"
    .venv/bin/python -m pip install --no-input --disable-pip-version-check --progress-bar on -e ".[$extra]" ||
        fail "$title could not be installed: pip's reason is above. Without a network it cannot work; what is there is kept."
    echo "$source" >"$stamp"
done
# An editable install leaves out data files, so JupyterLab is shown the built extension where it lies.
mkdir -p .venv/share/jupyter/labextensions &&
    ln -sfn "$(pwd)/jupyterhub_gpupool/labextension" .venv/share/jupyter/labextensions/jupyterhub-gpupool ||
    fail "JupyterLab cannot be shown its extension: the link in .venv/share/jupyter/labextensions cannot be made."
if [ -n "$last" ]; then say "$last"; fi
