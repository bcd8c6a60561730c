#!/usr/bin/env bash
# Run the GPU tests and benchmarks and write their output to one folder:
#
#     benchmarks/gpu_suite.sh [FOLDER]        default: runs/gpu
#     benchmarks/gpu_suite.sh --tests         only the tests (make test-gpu)
#
# It runs on a bare CUDA image: torch (2.10 or later), numpy, pytest and hypothesis are enough for the kernels'
# tests and the benchmarks of attention and losses. Parts whose imports fail are skipped and named. The project
# need not be installed. PYTHON=... chooses the interpreter. The exit code is 0 if every part that ran passed.

set -uo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
[ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ] && python=.venv/bin/python
export PYTHONPATH=".:kernels:data_pipelines:launchers${PYTHONPATH:+:$PYTHONPATH}"

# The kernels' tests, and every other file with GPU tests whose imports this image has.
gpu_tests() {
    echo tests/kernels
    local file
    while read -r file; do
        if "$python" -m pytest -q --collect-only -p no:cacheprovider "$file" >/dev/null 2>&1; then
            echo "$file"
        else
            echo "skipped, its imports fail here: $file" >&2
        fi
    done < <(grep -rl --include='test_*.py' --exclude-dir=kernels 'pytest.mark.gpu' tests | sort)
}

run_tests() {
    local files
    mapfile -t files < <(gpu_tests)
    "$python" -m pytest -m gpu -rs -p no:cacheprovider "${files[@]}"
}

[ "${1:-}" = --tests ] && { run_tests; exit; }

out=${1:-runs/gpu}
mkdir -p "$out"
failed=0

part() {
    local name=$1
    shift
    echo "== $name: $*"
    "$@" 2>&1 | tee "$out/$name.txt" || { failed=1; echo "== $name FAILED"; }
}

benchmark() {
    local file=benchmarks/$1.py
    if "$python" "$file" --help >/dev/null 2>&1; then
        part "$1" "$python" "$file" --device cuda --json "$out/$1.json"
    else
        echo "skipped, its imports fail here: $file"
    fi
}

part machine "$python" -c 'import torch; print(torch.__version__, torch.cuda.get_device_name())'
part tests run_tests
if [ "$failed" = 1 ] && ! "$python" -c 'import torch; torch.cuda.current_device()' 2>/dev/null; then
    echo "no CUDA device: no benchmarks"
    exit 1
fi
for name in attention losses single_pass generation; do
    benchmark "$name"
done

exit $failed
