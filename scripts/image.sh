#!/bin/sh
# The TensorFlow image: what `make image` and `make image-lock` run.
#
#   scripts/image.sh build      build images/tensorflow, try it out, and write its digest where profiles can take it from
#   scripts/image.sh lock       write the lock files of images/tensorflow/requirements from the .in files beside them
#
# Read from the environment, all optional:
#   VARIANT      gpu or cpu (gpu)
#   BASE         the image to build on instead of the pinned one: a Debian or Ubuntu with Python 3.11 to 3.13
#   BUILD_ARGS   more options for docker build, such as "--network host" or "--no-cache"
#   TAG          the name to give the image (gpupool/tensorflow:<version>-<variant>)
#   LOCK_ARGS    more options for uv pip compile, such as "--upgrade" or "--upgrade-package keras"
#   PYTHON       the Python that runs uv (python3)
# Any failure ends with one sentence and a status other than 0.
set -eu
cd "$(dirname "$0")/.."
image=images/tensorflow
variant=${VARIANT:-gpu}
base=${BASE:-}
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' jupyterhub_gpupool/__init__.py)
tag=${TAG:-gpupool/tensorflow:$version-$variant}

fail() { echo "gpupool: $1" >&2; exit 1; }

# Sizes as people read them; docker counts in powers of ten.
human() { awk -v bytes="$1" 'BEGIN { if (bytes < 1e9) printf "%d MB\n", bytes / 1e6; else printf "%.1f GB\n", bytes / 1e9 }'; }

need_docker() {
    command -v docker >/dev/null 2>&1 ||
        fail "there is no docker command here. Install Docker (Debian's package docker.io, from Debian 13 on docker-cli too), then try again."
    reason=$(docker version --format '{{.Server.Version}}' 2>&1 >/dev/null) ||
        fail "the Docker Engine does not answer: $(echo "$reason" | tail -n 1)"
}

# Only where the engine's own directory can be seen from here; a remote engine has to know for itself.
need_disk() {
    case $variant in gpu) needed=16 ;; *) needed=5 ;; esac
    root=$(docker info --format '{{.DockerRootDir}}' 2>/dev/null) || return 0
    if [ ! -d "$root" ]; then return 0; fi
    free=$(df -Pk "$root" | awk 'NR == 2 { printf "%d", $4 / 1048576 }')
    [ "$free" -ge "$needed" ] ||
        fail "the $variant image needs about $needed GiB of disk while it is built, and $root has $free GiB free. Make room there, then try again."
}

# A session's hardening, and no network: what the image needs must be in it.
try_out() {
    user=$1
    shift
    docker run --rm --interactive --init --network none --cap-drop ALL --security-opt no-new-privileges \
        --pids-limit 1024 --tmpfs /tmp --user "$user" "$tag" python3 - "$@" <"$image/smoke.py" ||
        fail "the image was built, but does not do what a session needs: see above. Its digest was not written."
}

# The layers as the Dockerfile names them; what it does not name is the base.
report_layers() {
    docker history --no-trunc --human=false --format '{{.Size}} {{.CreatedBy}}' "$1" | awk '
        { size[match($0, /layer=[a-z]+/) ? substr($0, RSTART + 6, RLENGTH - 6) : "base"] += $1 }
        END { count = split("base python cuda framework jupyter defaults", name)
              for (i = 1; i <= count; i++) print name[i], size[name[i]] + 0 }' |
        while read -r name bytes; do printf '      %-10s %8s\n' "$name" "$(human "$bytes")"; done
}

build() {
    case $variant in gpu | cpu) ;; *) fail "VARIANT is \"$variant\", and can be gpu or cpu." ;; esac
    echo "[1/4] Looking for the Docker Engine and for room on its disk"
    need_docker
    need_disk
    echo "[2/4] Building $tag${base:+ on $base}"
    started=$(date +%s)
    # The engine is sent the image's own directory and nothing else of the project.
    rm -rf "$image/labextension"
    cp -R jupyterhub_gpupool/labextension "$image/labextension"
    # shellcheck disable=SC2086 # BUILD_ARGS is a list of options
    docker build --build-arg "VARIANT=$variant" --build-arg "VERSION=$version" ${base:+--build-arg "BASE=$base"} \
        ${BUILD_ARGS:-} --tag "$tag" "$image" || fail "the image could not be built: docker's reason is above."
    took=$(($(date +%s) - started))
    echo "[3/4] Trying it out, as sessions run it"
    try_out 1000:100
    # Homes on NFS want the person's own user id, which the image does not know.
    try_out 12345:100 user pip server
    digest=$(docker image inspect --format '{{.Id}}' "$tag")
    echo "$digest" >"$image/digest-$variant"
    echo "[4/4] Built in $took s: $tag, $(human "$(docker image inspect --format '{{.Size}}' "$tag")")"
    report_layers "$tag"
    echo "      Its digest is in $image/digest-$variant. In a profile:"
    echo "      \"image\": \"$digest\","
}

# One file for each layer.  All hold for Python 3.11 to 3.13, and none contradicts another: each is resolved within those
# before it.  What is locked already stays as it is, unless LOCK_ARGS says --upgrade.
lock() {
    cd "$image/requirements"
    export UV_CUSTOM_COMPILE_COMMAND="make image-lock"
    compile python
    compile tensorflow-gpu
    compile tensorflow-cpu --constraint tensorflow-gpu.lock
    # The CUDA libraries are a layer of their own: by far the largest, and it changes least.
    awk '/^#/ { print } /^[a-z]/ { cuda = /^nvidia-/ } /^[^#]/ && cuda' tensorflow-gpu.lock >cuda.lock
    compile jupyter --constraint tensorflow-gpu.lock --constraint tensorflow-cpu.lock
    echo "Written: $image/requirements/*.lock. Build with \`make image\`, and commit them when it passes."
}

compile() {
    name=$1
    shift
    echo "Locking $name"
    # shellcheck disable=SC2086 # LOCK_ARGS is a list of options
    uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-build "$@" ${LOCK_ARGS:-} \
        --output-file "$name.lock" "$name.in" || fail "$name.in could not be resolved: uv's reason is above."
}

case ${1:-} in
    build) build ;;
    lock) lock ;;
    *) fail "say what to do: scripts/image.sh build, or scripts/image.sh lock." ;;
esac
