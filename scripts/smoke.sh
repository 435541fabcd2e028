#!/bin/bash
# Starts a release binary as a user would, sends it the requests of README.md and the docs, and stops it with SIGTERM. The models
# are what the image gets of them, so that a file that serving needs and .dockerignore leaves out is seen before an image is built.
#
#   scripts/smoke.sh [BINARY]      default target/release/ndserve
set -euo pipefail
cd "$(dirname "$0")/.."
binary=${1:-target/release/ndserve}
work=$(mktemp -d)
log=$work/log
pid=

die() { printf 'smoke: FAILED: %s\n' "$*" >&2; cat "$log" >&2; exit 1; }
cleanup() {
    [ -z "$pid" ] || kill -KILL "$pid" 2> /dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 143' TERM INT

tar --create --exclude-from=<(grep '^models/' .dockerignore) models | tar --extract --directory "$work"

start=$(date +%s%N)
# Port 0: the system takes a free one, and the first line of the log tells which.
"$binary" serve --models "$work/models" --listen 127.0.0.1:0 > "$log" 2>&1 &
pid=$!
ready=false
for _ in $(seq 1000); do
    address=$(sed -n 's|.*listens on http://\([0-9.:]*\).*|\1|p' "$log")
    if [ -n "$address" ] && "$binary" healthcheck --url "http://$address/readyz" 2> /dev/null; then
        ready=true
        break
    fi
    kill -0 "$pid" 2> /dev/null || die "the server does not start"
    sleep 0.01
done
$ready || die "not ready within 10 s"
echo "smoke: ready $((($(date +%s%N) - start) / 1000000)) ms after the start, on $address"

scripts/docs-requests.sh "$address" || die "the server's log follows"

kill -TERM "$pid"
code=0
wait "$pid" || code=$?
pid=
[ $code = 0 ] || die "exit code $code after SIGTERM"
summary=$(grep '^stopped: ' "$log") || die "no summary line"
[[ $summary == *' 0 dropped' ]] || die "$summary"
echo "smoke: exit code 0; $summary"
