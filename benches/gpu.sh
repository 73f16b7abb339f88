#!/usr/bin/env bash
# Proves the kernels on a GPU and measures them.
#
#   benches/gpu.sh build FOLDER        where Rust and nvcc are: puts the programs into FOLDER
#   benches/gpu.sh run FOLDER [OUT]    where a GPU is, in the repository's folder: needs no Rust; PyTorch for ceilings and peers,
#                                      compute-sanitizer where there is one. Figures also go to OUT (default: FOLDER/results)
#
# TUCO_GPU_SHAPES (default "llama-3-8b llama-2-7b") and TUCO_GPU_TOKENS (65536) choose what is timed. The programs of a run are those
# of one commit, which FOLDER/commit names.
set -euo pipefail
cd "$(dirname "$0")/.."
what=${1:?build or run} folder=${2:?the folder of the programs}

build() {
    mkdir -p "$folder"
    cargo build --release --locked --features cuda
    local tests
    tests=$(cargo test --release --locked --features cuda --test gpu --no-run --message-format=json |
        python3 -c 'import json, sys
for line in map(json.loads, sys.stdin):
    if line.get("executable") and line["target"]["name"] == "gpu":
        print(line["executable"])')
    strip -o "$folder/tuco" target/release/tuco
    strip -o "$folder/gpu" "$tests"
    git describe --always --dirty >"$folder/commit"
}

title() { printf '\n## %s\n\n' "$*"; }

run() {
    local out=${1:-$folder/results}
    mkdir -p "$out"
    exec > >(tee "$out/report.md") 2>&1
    title "tuco $(cat "$folder/commit"), $(nvidia-smi --query-gpu=name,driver_version,clocks.max.sm --format=csv,noheader | head -1)"
    export TUCO_DEVICE=cuda
    failed=0

    title Tests
    # One at a time: each has the GPU for itself.
    timeout 150 "$folder/gpu" --test-threads 1 || failed=1
    if command -v compute-sanitizer >/dev/null; then
        for tool in memcheck racecheck; do
            title "compute-sanitizer $tool"
            # Leaks are not looked for: the driver frees what the process leaves.
            timeout 90 compute-sanitizer --tool "$tool" --error-exitcode 1 "$folder/gpu" every_kernel --test-threads 1 |
                tail -5 || failed=1
        done
    fi

    title Ceilings
    python3 benches/peers.py ceilings | tee "$out/ceilings.json"
    ceiling() { python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$out/ceilings.json" "$1"; }
    limits=(--peak-tflops "$(ceiling peak_tflops)" --copy-rate "$(ceiling copy_rate)")
    local tokens=${TUCO_GPU_TOKENS:-65536} repeat=(--repeat 5)
    bench() {
        local name=$1
        shift
        title "$name"
        "$folder/tuco" bench "${limits[@]}" "${repeat[@]}" --output "$out/$name.json" "$@" || failed=1
    }
    for shape in ${TUCO_GPU_SHAPES:-llama-3-8b llama-2-7b}; do
        bench "$shape-512" --shape "$shape" --tokens "$tokens" --lengths 512 --resident on --by-kernel
    done
    bench llama-3-8b-4096 --shape llama-3-8b --tokens "$tokens" --lengths 4096 --resident on --by-kernel --repeat 2
    bench mixed --shape llama-3-8b --tokens "$tokens" --lengths 64,1200,210,350,96,520,160,40,820,280,130,450 --resident on
    bench batch-1 --shape llama-3-8b --tokens 512 --lengths 512 --resident on
    bench streamed --shape llama-3-8b --tokens "$tokens" --lengths 512 --resident off --repeat 2
    bench portable --shape llama-3-8b --tokens "$tokens" --lengths 512 --resident on --kernels sm_80 --by-kernel --repeat 2
    title Peers
    for name in llama-3-8b-512 mixed; do
        if [ -f "$out/$name.json" ]; then python3 benches/peers.py run "$out/$name.json" || failed=1; fi
    done
    # For attention alone.
    python3 benches/peers.py run "$out/llama-3-8b-4096.json" --no-transformers || failed=1
    exit "$failed"
}

case $what in
build) build ;;
run) run "${3:-}" ;;
*) sed -n '2,11p' "$0" && exit 2 ;;
esac
