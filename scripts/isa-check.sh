#!/bin/bash
# Loads every model with each instruction set of this machine and verifies its recorded answers with it.
# The tests iterate instruction sets within the engine; this is the way a user forces one.
set -euo pipefail
cd "$(dirname "$0")/.."
binary=${1:?usage: isa-check.sh BINARY}
has() { grep -qw "$1" /proc/cpuinfo; }

checked=()
for isa in scalar avx2 avx512 amx; do
    case $isa in
        avx2) has avx2 && has fma ;;
        avx512) has avx512f && has avx512bw && has avx512dq && has avx512vl ;;
        amx) has avx512_bf16 && has amx_tile && has amx_bf16 ;;
    esac || { echo "isa: this machine has no $isa"; continue; }
    NDSERVE_ISA=$isa "$binary" check models > /dev/null || {
        NDSERVE_ISA=$isa "$binary" check models >&2 || true
        echo "isa: FAILED: the models do not pass with $isa" >&2
        exit 1
    }
    checked+=("$isa")
done
echo "isa: every model gives its recorded answers with ${checked[*]}"
