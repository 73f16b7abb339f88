#!/usr/bin/env bash
# Proves the kernels on a GPU and measures them.
#
#   CUDA_HOME=$(.ci/nvcc) benches/gpu.sh build FOLDER   where Rust is: puts the programs into FOLDER, compressed (21 MB)
#   benches/gpu.sh run STAGE FOLDER OUT                 where a GPU is, in the repository's folder: needs Python, but no Rust
#
# Stages, of at most 8 minutes each:
#   tests      every test of tests/gpu.rs, in a process of its own
#   bench      tuco bench with the shapes of real models; PyTorch for ceilings
#   peers      PyTorch with the same prompts and as kernels; times tuco first, unless bench has done so in this run
#   sanitize   every kernel under compute-sanitizer: memcheck and synccheck
#   race       and racecheck, where kernels have no bulk copies
#   all        these, one after the other
#
# OUT gets report.md, to which each run adds, results.json, written anew after every bench, and the logs of tests and sanitizers: what was
# measured stays, also if a run is killed. The exit code is 0 if all ran and all held.
# TUCO_GPU_SHAPES (default "llama-3-8b llama-2-7b") and TUCO_GPU_TOKENS (49152) choose what is timed.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
    sed -n '2,/^set/{/^set/!p}' "$0" >&2
    exit 2
}

build() {
    mkdir -p "$folder"
    # cargo makes tuco for its tests: so both come of one build.
    cargo test --release --locked --features cuda --test gpu --no-run --message-format=json |
        python3 -c 'import json, sys
for line in map(json.loads, sys.stdin):
    if line.get("executable") and line["target"]["name"] in ("tuco", "gpu"):
        print(line["target"]["name"], line["executable"])' |
        while read -r name program; do strip -o "$folder/$name" "$program"; done
    gzip -9 -f "$folder/tuco" "$folder/gpu"
    git describe --always --dirty >"$folder/commit"
}

title() { printf '\n## %s\n\n' "$*"; }

# Runs a command for so many seconds at most, and never beyond the stage's end. A second signal, as tuco only takes note of the first.
limited() {
    local seconds=$1 left=$((end - SECONDS))
    shift
    if ((left < 10)); then
        echo "the stage's time is over" >&2
        return 124
    fi
    timeout -k 5 $((seconds < left ? seconds : left)) "$@"
}

# Says how a command failed; what comes after it goes on.
note() {
    case $1 in
    0) return ;;
    124 | 137) printf '\n**Stopped**, its time was over.\n' ;;
    *) printf '\n**Failed** with exit code %s.\n' "$1" ;;
    esac
    failed=1
}

attempt() {
    local status=0
    limited "$@" || status=$?
    note "$status"
}

# Makes the JSON of a file a part of results.json.
put() {
    python3 - "$out/results.json" "$commit" "$gpu" "$@" <<'PYTHON' || failed=1
import json, os, sys
path, commit, gpu, name, part = sys.argv[1:]
results = {}
if os.path.exists(path):
    with open(path) as file:
        results = json.load(file)
with open(part) as file:
    results[name] = json.load(file) | {"commit": commit, "gpu": gpu}
with open(path + ".new", "w") as file:
    json.dump(results, file, indent=1)
os.replace(path + ".new", path)
PYTHON
}

# The tests that this GPU runs are those which are not ignored.
list_tests() {
    all=$(limited 60 "$work/gpu" --list) && ignored=$(limited 60 "$work/gpu" --list --ignored)
}

is_ignored() { grep -qxF "$1: test" <<<"$ignored"; }

# SECONDS LOG NAME COMMAND…: runs one test, by a command where there is one. The program is also content if it knows no such test; this is not.
run_test() {
    local seconds=$1 log=$2 name=$3
    shift 3
    limited "$seconds" "$@" "$work/gpu" --exact "$name" --nocapture >"$log" 2>&1 </dev/null || return
    grep -q '1 passed' "$log"
}

tests() {
    title Tests
    if ! list_tests; then
        failed=1
        return
    fi
    local name status start log=$work/test.log
    while IFS= read -r name; do
        name=${name%: test}
        if is_ignored "$name"; then
            echo "- ignored: $name"
            continue
        fi
        start=$SECONDS status=0
        run_test 120 "$log" "$name" || status=$?
        cat "$log" >>"$out/tests.log"
        if ((status == 0)); then
            echo "- ok, $((SECONDS - start)) s: $name"
        else
            failed=1
            printf -- '- **failed**, exit code %s, %s s: %s\n\n```\n' "$status" $((SECONDS - start)) "$name"
            tail -n 30 "$log" | cut -c 1-200
            printf '```\n\n'
        fi
        sed -n 's/^report: /  - /p' "$log"
    done <<<"$all"
}

# Sets `limits`, once.
ceilings() {
    [ -z "${limits+set}" ] || return 0
    limits=()
    title Ceilings
    local status=0 found
    limited 90 python3 benches/peers.py ceilings >"$work/ceilings.json" || status=$?
    note "$status"
    if found=$(python3 -c 'import json, sys
found = json.load(open(sys.argv[1]))
print("--peak-tflops", found["peak_tflops"], "--copy-rate", found["copy_rate"])' "$work/ceilings.json" 2>/dev/null); then
        echo "$found"
        read -ra limits <<<"$found"
        put ceilings "$work/ceilings.json"
    else
        echo "No ceilings: shares of floors are missing."
    fi
}

# NAME REPEAT FLAGS…: times tuco, unless it was done.
time_tuco() {
    local name=$1 repeat=$2 file=$work/$1.json
    shift 2
    [ ! -f "$file" ] || return 0
    title "$name"
    attempt 120 "$work/tuco" bench "${limits[@]}" --repeat "$repeat" --output "$file" "$@"
    if [ -f "$file" ]; then put "$name" "$file"; fi
}

time_512() { time_tuco "$1-512" 5 --shape "$1" --tokens "$tokens" --resident on --by-kernel; }

time_mixed() {
    local lengths=64,1200,210,350,96,520,160,40,820,280,130,450
    time_tuco mixed 5 --shape llama-3-8b --tokens "$tokens" --lengths "$lengths" --resident on
}

bench() {
    ceilings
    local shape
    for shape in ${TUCO_GPU_SHAPES:-llama-3-8b llama-2-7b}; do time_512 "$shape"; done
    time_tuco batch-1 5 --shape llama-3-8b --tokens 512 --resident on --by-kernel
    time_tuco batch-32 5 --shape llama-3-8b --tokens 2048 --lengths 64 --resident on --by-kernel
    time_tuco llama-3-8b-4096 2 --shape llama-3-8b --tokens "$tokens" --lengths 4096 --resident on --by-kernel
    time_mixed
    time_tuco portable 2 --shape llama-3-8b --tokens "$tokens" --resident on --kernels sm_80 --by-kernel
    time_tuco adapter 3 --shape llama-3-8b --adapter-rank 16 --tokens "$tokens" --resident on --by-kernel
    time_tuco streamed 2 --shape llama-3-8b --tokens "$tokens" --resident off
}

peers() {
    ceilings
    time_512 llama-3-8b
    time_mixed
    local lengths
    if [ ! -f "$work/llama-3-8b-512.json" ]; then
        printf '\nNo peers without the time of tuco.\n'
        return
    fi
    for lengths in 512 4096; do
        title "Libraries' kernels, prompts of $lengths"
        attempt 60 python3 benches/peers.py kernels "$work/llama-3-8b-512.json" --lengths "$lengths"
    done
    title "Peers, prompts of 512"
    attempt 230 python3 benches/peers.py run "$work/llama-3-8b-512.json"
    [ -f "$work/mixed.json" ] || return 0
    title "Peers, mixed prompts"
    attempt 170 python3 benches/peers.py run "$work/mixed.json" --peers packed,trimmed,hooks
}

# Runs these tools of compute-sanitizer over the tests whose names a pattern matches.
sanitizers() {
    local tests=$1
    shift
    title "Sanitizers: $*"
    if ! command -v compute-sanitizer >/dev/null; then
        echo "**Missing**: compute-sanitizer is neither in PATH nor in /usr/local/cuda/bin."
        failed=1
        return
    fi
    if ! list_tests; then
        failed=1
        return
    fi
    local name tool
    while IFS= read -r name; do
        name=${name%: test}
        if ! [[ $name =~ $tests ]] || is_ignored "$name"; then continue; fi
        for tool in "$@"; do sanitize_test "$tool" "$name"; done
    done <<<"$all"
}

# Only many prompts make blocks that stay go round their rings more than once.
sanitize() { sanitizers '^(every_kernel|many_prompts)_' memcheck synccheck; }

# It does not follow bulk copies.
race() { sanitizers '^every_kernel_.*_sm_80$' racecheck; }

# Leaks are not looked for, as the driver frees what the process leaves; nor errors of calls, as kernels are looked for in one module after the
# other.
sanitize_test() {
    local tool=$1 name=$2 log=$out/$1.$2.log status=0 start=$SECONDS
    run_test 220 "$log" "$name" compute-sanitizer --tool "$tool" --report-api-errors no --error-exitcode 1 || status=$?
    local last
    last=$(sed -n 's/^========= //p' "$log" | tail -n 1)
    echo "- $tool, $((SECONDS - start)) s: $name: ${last:-no findings told, $(head -c 200 "$log")}"
    if ((status)); then
        printf '\n```\n'
        sed -n '/^=========/p' "$log" | head -n 60
        printf '```\n'
    fi
    note "$status"
    gzip -f "$log"
}

run() {
    local stages
    case $stage in
    tests | bench | peers | sanitize | race) stages=("$stage") ;;
    all) stages=(tests bench peers sanitize race) ;;
    *) usage ;;
    esac
    mkdir -p "$out"
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    for program in tuco gpu; do
        gzip -dc "$folder/$program.gz" >"$work/$program"
        chmod +x "$work/$program"
    done
    commit=$(cat "$folder/commit")
    gpu=$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader) || gpu="no GPU that nvidia-smi shows"
    gpu=${gpu%%$'\n'*}
    tokens=${TUCO_GPU_TOKENS:-49152}
    export TUCO_DEVICE=cuda TUCO_NEEDS_GPU=1 PYTHONUNBUFFERED=1 PATH=$PATH:/usr/local/cuda/bin
    set +e
    (
        set -e
        failed=0
        printf '# tuco %s on %s\n' "$commit" "${gpu/,/, driver}"
        for stage in "${stages[@]}"; do
            end=$((SECONDS + 465))
            "$stage"
        done
        exit "$failed"
    ) 2>&1 | tee -a "$out/report.md"
    exit "${PIPESTATUS[0]}"
}

case ${1:-} in
build)
    [ $# = 2 ] || usage
    folder=$2
    build
    ;;
run)
    [ $# = 4 ] || usage
    stage=$2 folder=$3 out=$4
    run
    ;;
*) usage ;;
esac
