#!/usr/bin/env bash
# Runs on a machine with a GPU, without a network, in an unpacked bundle (make gpu-bundle): the tests marked cuda, the benchmark of the GPU
# and the bf16 evidence, in this order and in at most GPU_SECONDS. Every step writes its results as they come, so that a cut loses none.
#   OUT=FOLDER        where results go (results)
#   PYTHON=PATH       the Python that has torch (python3)
#   GPU_SECONDS=N     time for everything (540)
set -u
cd "$(dirname "$0")/.."
export OUT="${OUT:-$PWD/results}" PYTHON="${PYTHON:-python3}" PYTHONUNBUFFERED=1
export WORKBENCH_RUNS="${WORKBENCH_RUNS:-$OUT/runs}"
end=$((SECONDS + ${GPU_SECONDS:-540}))
mkdir -p "$OUT"
if compgen -G 'gpu/wheels/*.whl' > /dev/null; then
    "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --target "$OUT/site" gpu/wheels/*.whl || exit 1
fi
export PYTHONPATH="$PWD:$OUT/site${PYTHONPATH:+:$PYTHONPATH}"

# step NAME SECONDS COMMAND...: at most so many seconds, and never more than are left; how it ended goes to NAME.json
step() {
    local name=$1 most=$2 left=$((end - SECONDS)) began=$SECONDS
    shift 2
    ((left < most)) && most=$left
    if ((most <= 0)); then
        printf '{"step": "%s", "status": null, "seconds": 0, "cut": true}\n' "$name" > "$OUT/$name.json"
        return
    fi
    printf '{"step": "%s", "status": null, "seconds": null, "cut": true}\n' "$name" > "$OUT/$name.json"
    timeout --kill-after=5 "$most" "$@" > "$OUT/$name.jsonl" 2> "$OUT/$name.log"
    local status=$?
    printf '{"step": "%s", "status": %d, "seconds": %d, "cut": %s}\n' "$name" "$status" $((SECONDS - began)) \
        "$( ((status == 124 || status == 137)) && echo true || echo false)" > "$OUT/$name.json"
    echo "$name: status $status after $((SECONDS - began)) s"
}

step machine 60 "$PYTHON" -m gpu.machine
step tests 120 "$PYTHON" -m pytest -q -p no:cacheprovider -n 0 -m cuda tests/training tests/detectors tests/benchmarks --junitxml="$OUT/tests.xml"
step benchmark 300 "$PYTHON" -m benchmarks gpu
step evidence 540 "$PYTHON" -m gpu.evidence
