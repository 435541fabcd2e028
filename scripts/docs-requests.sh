#!/bin/bash
# Runs every curl line of README.md and of the pages of protocols against a running server with the models of this repository, so
# that what a reader tries is known to work.
#
#   scripts/docs-requests.sh HOST:PORT
#
# A line fails if the status is not 2xx or the answer has not the shape of its protocol. README must have each model in models/.
set -euo pipefail
cd "$(dirname "$0")/.."
address=${1:?usage: docs-requests.sh HOST:PORT}
readme_address=localhost:8080
pages=(README.md docs/explaining.md docs/protocols/*.md)

die() { printf 'requests: FAILED: %s\n' "$*" >&2; exit 1; }

# Commands as bash would read them: up to a line that neither ends in a backslash nor leaves a quotation open.
commands=()
read_page() {
    local line fence=false pending='' quotes before=${#commands[@]}
    while IFS= read -r line; do
        if [[ $line == '```'* ]]; then
            if $fence; then fence=false; elif [[ $line =~ ^\`\`\`(sh|bash|console)$ ]]; then fence=true; fi
            continue
        fi
        $fence || continue
        [ -n "$pending" ] || [[ $line =~ ^(curl |printf .*[|] curl ) ]] || continue
        pending+=$line$'\n'
        quotes=${pending//[^\']/}
        [[ $line == *\\ ]] || [ $((${#quotes} % 2)) = 1 ] || { commands+=("$pending"); pending=; }
    done < "$1"
    [ ${#commands[@]} -gt "$before" ] || [ "$1" = docs/protocols/grpc.md ] || die "$1 has no curl line"
}

for page in "${pages[@]}"; do
    read_page "$page"
    [ "$page" = README.md ] || continue
    for model in models/*/; do
        model=$(basename "$model")
        [[ "${commands[*]}" == *"/$model"[:/]* ]] || die "README.md shows no request for the model $model"
    done
done

# What the lines read and write lies here.
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cp models/two-features/1/model.onnx "$folder/my.onnx"
cd "$folder"

curl() { command curl --silent --show-error --fail-with-body --max-time 10 "$@"; }
for text in "${commands[@]}"; do
    [[ $text == *"$readme_address"* ]] || die "not a request to $readme_address: $text"
    answer=$(eval "${text//$readme_address/$address}") || die "$text$answer"
    case $text in
        *'Content-Length: 0'*) wanted= ;;
        *cloudevents*) wanted='{"specversion":*"data":{"predictions":*' ;;
        *'"inputs": {'*) wanted='{"outputs":*' ;;
        *:predict* | */predict*) wanted='{"predictions":*' ;;
        */infer*) wanted='{*"outputs":*' ;;
        *) wanted='*' ;;
    esac
    # shellcheck disable=SC2053  # a pattern, on purpose
    [[ ${answer// /} == $wanted ]] || die "not the answer of its protocol: $text$answer"
    # A long answer is cut only on the screen.
    printf '  %.60s… → %.80s\n' "$(head -n 1 <<< "$text")" "$(head -n 1 <<< "$answer")"
done
echo "requests: ${#commands[@]} of ${#pages[@]} pages answered"
