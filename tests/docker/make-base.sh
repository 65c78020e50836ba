#!/bin/sh
# Make the base image that the tests build the TensorFlow image on, where no registry can be reached: Debian 12 with
# Python, made by mmdebstrap (Debian's package of that name) out of Debian's own archive.
#
#   tests/docker/make-base.sh [NAME]      NAME: what to call the image (gpupool-test-base)
#
# Does nothing when the image is there: `docker rmi gpupool-test-base` has it made anew.  What a build needs to reach the
# network from here comes along: this machine's own certificate authorities, its proxies for apt and its package index
# for pip.  So this is also an example of a base behind a proxy that looks into TLS.
set -eu
name=${1:-gpupool-test-base}
suite=bookworm

fail() { echo "gpupool: $1" >&2; exit 1; }

command -v docker >/dev/null 2>&1 || fail "there is no docker command here. Install Docker (Debian's package docker.io, from Debian 13 on docker-cli too)."
reason=$(docker version --format '{{.Server.Version}}' 2>&1 >/dev/null) ||
    fail "the Docker Engine does not answer: $(echo "$reason" | tail -n 1)"
if docker image inspect "$name" >/dev/null 2>&1; then
    echo "The base image $name is there"
    exit
fi
command -v mmdebstrap >/dev/null 2>&1 || fail "there is no mmdebstrap here. Install Debian's package mmdebstrap."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
chmod 755 "$work"

echo "[1/3] Collecting what this machine needs to reach the network"
mkdir -p "$work/ca" "$work/apt"
for file in /usr/local/share/ca-certificates/*.crt; do
    if [ -e "$file" ]; then cp "$file" "$work/ca/"; fi
done
apt-config dump 2>/dev/null | grep -E '^Acquire::(https?::Proxy|Check-)' >"$work/apt/90host" || true
echo '[global]' >"$work/pip.conf"
echo 'cert = /etc/ssl/certs/ca-certificates.crt' >>"$work/pip.conf"
for key in index-url trusted-host proxy; do
    value=$(python3 -m pip config get "global.$key" 2>/dev/null) || continue
    echo "$key = $value" >>"$work/pip.conf"
done

echo "[2/3] Making a Debian $suite with Python (a download of about 80 MB)"
# No manuals and no translations: nobody reads them in a container.
mmdebstrap --variant=minbase --include=ca-certificates,python3,python3-venv,tzdata \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    --customize-hook="sync-in '$work/ca' /usr/local/share/ca-certificates" \
    --customize-hook="sync-in '$work/apt' /etc/apt/apt.conf.d" \
    --customize-hook="upload '$work/pip.conf' /etc/pip.conf" \
    --customize-hook='chroot "$1" update-ca-certificates' \
    "$suite" "$work/base.tar" || fail "mmdebstrap could not make the base image: its reason is above."

echo "[3/3] Giving it to the Docker Engine"
docker import --change 'ENV LANG=C.UTF-8' --change 'CMD ["bash"]' "$work/base.tar" "$name" >/dev/null ||
    fail "the Docker Engine did not take the base image: its reason is above."
echo "The base image is $name ($(docker image inspect --format '{{.Id}}' "$name"))"
