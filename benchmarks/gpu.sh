#!/usr/bin/env bash
# The figures that need a GPU, part by part, in at most nine minutes of one H200: random weights, nothing is downloaded.
# usage: benchmarks/gpu.sh [--tiny] [FOLDER]    FOLDER is runs/gpu; --tiny runs everything small, on the CPU
# Each part adds JSON lines to FOLDER/<part>.jsonl and is done when FOLDER/<part>.done exists: a second call goes on
# with the others. A part that takes too long is ended; the lines that it has written stay.
set -uo pipefail
cd "$(dirname "$0")/.."
tiny=false
if [[ ${1:-} == --tiny ]]; then tiny=true && shift; fi
folder=${1:-runs/gpu}
mkdir -p "$folder"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} PYTHONPATH=.
failed=()

part() { # part NAME SECONDS MODULE ARGUMENT...
    local name=$1 seconds=$2 module=$3
    shift 3
    if [[ -e $folder/$name.done ]]; then return; fi
    rm -f "$folder/$name.jsonl"
    if timeout "$seconds" python -m "benchmarks.$module" "$@" --json "$folder/$name.jsonl" >"$folder/$name.log" 2>&1; then
        touch "$folder/$name.done"
    else
        failed+=("$name")
    fi
}

if $tiny; then
    export CUDA_VISIBLE_DEVICES=
    part z_image 300 overhead --size tiny --steps 2 --repeats 1 --no-compile
    part kernels 300 kernels --kernels forecast --forms reference --repeats 1
    part search 300 throughput batching replay spill --prompts 1 --candidates 2 --repeats 1 --sizes 1 2
else
    some=(--plans "all computed" "FORA N=2" "every other step")
    # a step by real steps, blocks and components: what is gained, what could be, and what an empty schedule costs
    part pixart 50 overhead --size xl --no-compile --repeats 5
    for name in flux_dev wan21_1_3b z_image_turbo qwen_image; do
        part "$name" 40 overhead --size "$name" --steps 4 --repeats 3 --no-compile "${some[@]}"
    done
    # the same with compiled blocks and CUDA graphs
    part pixart_compiled 90 overhead --size xl --repeats 5 "${some[@]}"
    part z_image_compiled 60 overhead --size z_image_turbo --steps 4 --repeats 3 "${some[@]}"
    # Triton against torch.compile, eager and a copy of as many bytes
    part kernels 90 kernels --device cuda --repeats 10
    # calls by their number of pictures; the pipeline's call as a search runs it; states in host memory
    part search 90 throughput batching replay spill --device cuda --repeats 5
fi
cat "$folder"/*.jsonl
if ((${#failed[@]})); then
    printf 'ended early or failed: %s; see the logs in %s\n' "${failed[*]}" "$folder" >&2
    exit 1
fi
