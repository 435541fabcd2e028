#!/bin/bash
# Builds the image, runs it as a production container would run, and checks what the image promises. Needs Linux.
#
#   scripts/container.sh [--install]
#
# Engine: the Docker engine that answers; if none does and this is root, one is started for the time of the script, with its
# state in target/container (so a second run finds its layers). --install, or CI=true, allows apt-get to install Docker.
# Build image: rust:1-bookworm if it can be pulled; else Debian from debootstrap with this machine's Rust toolchain, CA
# certificates and cargo configuration.
# Leaves the images `ndserve:dev` and `ndserve:server` in the engine; containers and a started engine are removed always.
set -euo pipefail
cd "$(dirname "$0")/.."

PUBLIC_IMAGE=rust:1-bookworm
SIZE_MAX=25000000      # bytes of the image without models; 15 MB is the aim
PULL_SECONDS=300       # a reachable registry delivers the build image in less; without one the pull fails at once
HEALTHY_SECONDS=30     # the image's own start period
STOP_SECONDS=20        # more than the default drain timeout, so that a kill is a failure and not the normal case

state=$PWD/target/container
run=$(mktemp -d "${TMPDIR:-/tmp}/ndserve-container.XXXXXX")  # short: a socket's path has at most 107 bytes
container=ndserve-check-$$
engine_pid=
install=${CI:-false}
[ "${1:-}" = --install ] && install=true

say() { printf 'container: %s\n' "$*"; }
die() { printf 'container: FAILED: %s\n' "$*" >&2; exit 1; }
now() { date +%s%N; }
since() { awk -v ns=$(($(now) - $1)) 'BEGIN { printf "%.1f s", ns / 1e9 }'; }
megabytes() { awk -v n="$1" 'BEGIN { printf "%.2f MB", n / 1e6 }'; }

cleanup() {
    local status=$?
    trap - EXIT
    if docker container inspect "$container" > "$run/inspect" 2> /dev/null; then
        if [ $status -ne 0 ]; then
            docker inspect -f '{{json .State}}' "$container" >&2 || true
            docker logs --tail 50 "$container" >&2 || true
        fi
        docker rm -f "$container" > /dev/null 2>&1 || true
    fi
    if [ -n "$engine_pid" ]; then
        [ $status -eq 0 ] || tail -n 20 "$run/dockerd.log" >&2
        kill "$engine_pid" 2> /dev/null || true
        # The engine unmounts its layers before it ends.
        for _ in $(seq 100); do kill -0 "$engine_pid" 2> /dev/null || break; sleep 0.1; done
        kill -KILL "$engine_pid" 2> /dev/null || true
        # It leaves the network namespace of containers without a network of their own mounted.
        umount "$run"/exec/netns/* 2> /dev/null || true
    fi
    rm -rf --one-file-system "$run"
    exit $status
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# install COMMAND PACKAGE: makes sure that there is the command.
install() {
    command -v "$1" > /dev/null && return
    [ "$install" = true ] && [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null ||
        die "there is no $1. As root: apt-get install $2 (or run this with --install)"
    say "installing $2"
    { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$2"; } \
        > "$run/apt.log" 2>&1 || { tail -n 20 "$run/apt.log" >&2; die "apt-get could not install $2"; }
}

start_engine() {
    if command -v docker > /dev/null && timeout 20 docker info > /dev/null 2>&1; then
        say "engine: the one that runs here"
        return
    fi
    [ "$(id -u)" = 0 ] || die "no Docker engine answers (docker info), and only root can start one"
    install dockerd docker.io
    mkdir -p "$state/engine"
    export DOCKER_HOST=unix://$run/docker.sock
    # Without a bridge it needs no iptables; builds and containers use the host's network.
    setsid dockerd --data-root "$state/engine" --exec-root "$run/exec" --pidfile "$run/pid" --host "$DOCKER_HOST" \
        --iptables=false --bridge=none > "$run/dockerd.log" 2>&1 &
    engine_pid=$!
    for _ in $(seq 300); do
        docker version > /dev/null 2>&1 && break
        kill -0 "$engine_pid" 2> /dev/null || die "the Docker engine does not start on this machine"
        sleep 0.1
    done
    docker version > /dev/null || die "the Docker engine does not answer within 30 s"
    say "engine: started, $(docker info -f '{{.ServerVersion}}, {{.Driver}}')"
}

# A build image made of Debian and this machine's toolchain, for where no registry of images is reached.
make_build_image() {
    local sysroot host version start rootfs=$run/rootfs
    sysroot=$(rustc --print sysroot)
    host=$(rustc -vV | sed -n 's/^host: //p')
    version=$(rustc -V | cut -d' ' -f2)
    build_image=ndserve-build:$version-bookworm
    if docker image inspect "$build_image" > /dev/null 2>&1; then
        say "build image: $build_image, made by an earlier run"
        return
    fi
    [ "$(id -u)" = 0 ] || die "$PUBLIC_IMAGE cannot be pulled, and only root can make a build image with debootstrap"
    [ -x "$sysroot/bin/cargo" ] || die "there is no cargo in $sysroot to put into a build image"
    install debootstrap debootstrap
    start=$(now)
    debootstrap --variant=minbase --include=gcc,libc6-dev,ca-certificates bookworm "$rootfs" ${DEBIAN_MIRROR:-} \
        > "$run/debootstrap.log" 2>&1 || { tail -n 20 "$run/debootstrap.log" >&2; die "debootstrap failed"; }
    rm -rf "$rootfs"/var/cache/apt/* "$rootfs"/var/lib/apt/lists/* "$rootfs"/usr/share/doc
    # Only what compiles: the documentation is larger than the compiler.
    cp -a "$sysroot/bin/cargo" "$sysroot/bin/rustc" "$rootfs/usr/local/bin/"
    mkdir -p "$rootfs/usr/local/lib/rustlib"
    find "$sysroot/lib" -maxdepth 1 -name '*.so*' -exec cp -a {} "$rootfs/usr/local/lib/" \;
    cp -a "$sysroot/lib/rustlib/$host" "$rootfs/usr/local/lib/rustlib/"
    # What this machine needs to reach crates.io, the image needs too. None of it enters the final image.
    local certificates=${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt} cargo_home=${CARGO_HOME:-$HOME/.cargo}
    [ ! -f "$certificates" ] || cp -L "$certificates" "$rootfs/etc/ssl/certs/ca-certificates.crt"
    mkdir -p "$rootfs/root/.cargo"
    [ ! -f "$cargo_home/config.toml" ] || cp "$cargo_home/config.toml" "$rootfs/root/.cargo/"
    tar -C "$rootfs" --numeric-owner -c . | docker import - "$build_image" > /dev/null
    rm -rf --one-file-system "$rootfs"
    say "build image: $build_image, made with debootstrap and the toolchain of this machine in $(since "$start")"
}

choose_build_image() {
    build_image=$PUBLIC_IMAGE
    if docker image inspect "$build_image" > /dev/null 2>&1; then
        say "build image: $build_image"
    elif timeout "$PULL_SECONDS" docker pull -q "$build_image" > /dev/null 2> "$run/pull.log"; then
        say "build image: $build_image, pulled"
    else
        say "$build_image cannot be pulled ($(tail -n 1 "$run/pull.log"))"
        make_build_image
    fi
}

# build TAG [TARGET]
build() {
    local start log=$run/build.log
    start=$(now)
    docker build --network host --build-arg BUILD_IMAGE="$build_image" --build-arg REVISION="$revision" \
        ${2:+--target "$2"} --tag "$1" . > "$log" 2>&1 || { tail -n 40 "$log" >&2; die "the image does not build"; }
    say "built $1 in $(since "$start")"
}

# Something must be free between asking and using it; a collision shows as a container that does not start.
free_port() {
    local port
    for port in $(shuf -i 20000-29999 -n 50); do
        (exec 3<> "/dev/tcp/127.0.0.1/$port") 2> /dev/null || { echo "$port"; return; }
    done
    die "no free port"
}

revision=$(git rev-parse --short=12 HEAD 2> /dev/null || echo unknown)
start_engine
choose_build_image
build ndserve:server server
build ndserve:dev

size=$(docker image inspect -f '{{.Size}}' ndserve:server)
whole=$(docker image inspect -f '{{.Size}}' ndserve:dev)
say "size: $(megabytes "$size") without models (at most $(megabytes $SIZE_MAX)), $(megabytes "$whole") with them"
[ "$size" -le $SIZE_MAX ] || die "the image is too large"

inspect() { docker image inspect -f "$1" ndserve:dev; }
user=$(inspect '{{.Config.User}}')
[[ $user =~ ^[1-9][0-9]*:[1-9][0-9]*$ ]] || die "the image's user is '$user', not the number of an ordinary user"
[ "$(inspect '{{.Config.StopSignal}}')" = SIGTERM ] || die "the image has no STOPSIGNAL"
inspect '{{json .Config.Env}}' | grep -q 'NDSERVE_LISTEN=0.0.0.0:8080' || die "the image would listen where nobody reaches it"

port=$(free_port)
start=$(now)
# The loopback address, because the host's network is used; everything else as the image says.
docker run --detach --name "$container" --network host --env NDSERVE_LISTEN="127.0.0.1:$port" --user "$user" \
    --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges --memory 512m ndserve:dev > /dev/null
for _ in $(seq $((HEALTHY_SECONDS * 10))); do
    health=$(docker inspect -f '{{.State.Status}} {{.State.Health.Status}}' "$container")
    [ "$health" != "running healthy" ] || break
    [[ $health == running* ]] || die "the container is '$health'"
    sleep 0.1
done
[ "$health" = "running healthy" ] || die "not healthy within $HEALTHY_SECONDS s but '$health'"
say "healthy after $(since "$start")"

ids=$(docker top "$container" -eo uid,gid,pid,args | awk 'NR > 1 { print $1 ":" $2 }' | sort -u)
[ "$ids" = "$user" ] || die "the server runs as $ids, not as $user"
say "runs as $ids, on a read-only file system, without capabilities"

scripts/docs-requests.sh "127.0.0.1:$port"

start=$(now)
docker stop --time "$STOP_SECONDS" "$container" > /dev/null
code=$(docker inspect -f '{{.State.ExitCode}}' "$container")
[ "$code" = 0 ] || die "stopped with exit code $code"
summary=$(docker logs "$container" 2> /dev/null | grep '^stopped: ') || die "the logs have no summary line"
[[ $summary == *' 0 dropped' ]] || die "requests were dropped: $summary"
say "stopped in $(since "$start") with exit code 0; $summary"
