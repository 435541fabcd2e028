#!/bin/bash
# Runs every curl line of README.md against a running server, so that what a reader tries first is known to work.
#
#   scripts/readme-requests.sh HOST:PORT
#
# A line fails if the status is not 2xx or the answer has not the shape of its protocol. Every model in models/ must occur.
set -euo pipefail
cd "$(dirname "$0")/.."
address=${1:?usage: readme-requests.sh HOST:PORT}
readme_address=localhost:8080

die() { printf 'README requests: FAILED: %s\n' "$*" >&2; exit 1; }

# Commands as bash would read them: up to a line that neither ends in a backslash nor leaves a quotation open.
commands=()
fence=false
pending=
while IFS= read -r line; do
    if [[ $line == '```'* ]]; then
        if $fence; then fence=false; elif [[ $line =~ ^\`\`\`(sh|bash|console)$ ]]; then fence=true; fi
        continue
    fi
    $fence || continue
    [ -n "$pending" ] || [[ $line == 'curl '* ]] || continue
    pending+=$line$'\n'
    quotes=${pending//[^\']/}
    [[ $line == *\\ ]] || [ $((${#quotes} % 2)) = 1 ] || { commands+=("$pending"); pending=; }
done < README.md
[ ${#commands[@]} -gt 0 ] || die "README.md has no curl line"

for model in models/*/; do
    model=$(basename "$model")
    [[ "${commands[*]}" == *"/$model"[:/]* ]] || die "README.md shows no request for the model $model"
done

curl() { command curl --silent --show-error --fail-with-body --max-time 10 "$@"; }
for text in "${commands[@]}"; do
    [[ $text == *"$readme_address"* ]] || die "not a request to $readme_address: $text"
    answer=$(eval "${text//$readme_address/$address}") || die "$text$answer"
    case $text in
        *:predict* | */predict*) wanted='{"predictions":*' ;;
        */infer*) wanted='{*"outputs":*' ;;
        *) wanted='*' ;;
    esac
    # shellcheck disable=SC2053  # a pattern, on purpose
    [[ ${answer// /} == $wanted ]] || die "not the answer of its protocol: $text$answer"
    # A long answer is cut only on the screen.
    printf '  %.60s… → %.80s\n' "$(head -n 1 <<< "$text")" "$(head -n 1 <<< "$answer")"
done
echo "README requests: ${#commands[@]} answered"
