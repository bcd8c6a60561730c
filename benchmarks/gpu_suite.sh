#!/usr/bin/env bash
# GPU tests and benchmarks, with their output in one folder:
#
#     benchmarks/gpu_suite.sh [FOLDER]        default: runs/gpu
#
# Needs torch (2.10 or later, CUDA), transformers, omegaconf, pytest and hypothesis; neither DeepSpeed nor an
# installed copy of this project. PYTHON=... chooses the interpreter. Every part is run; the exit code says
# whether all of them passed.

set -uo pipefail
cd "$(dirname "$0")/.."

out=${1:-runs/gpu}
python=${PYTHON:-python3}
export PYTHONPATH=".:kernels:data_pipelines${PYTHONPATH:+:$PYTHONPATH}"
mkdir -p "$out"
failed=0

part() {
    local name=$1
    shift
    echo "== $name: $*"
    "$@" 2>&1 | tee "$out/$name.txt" || { failed=1; echo "== $name FAILED"; }
}

# The kernels' tests, and every other file with GPU tests whose imports this image has.
tests=(tests/kernels)
while read -r file; do
    if "$python" -m pytest -q --collect-only -p no:cacheprovider "$file" >/dev/null 2>&1; then
        tests+=("$file")
    else
        echo "left out, its imports fail: $file"
    fi
done < <(grep -rl --include='test_*.py' --exclude-dir=kernels 'pytest.mark.gpu' tests | sort)

part machine "$python" -c 'import torch; print(torch.__version__, torch.cuda.get_device_name())'
part tests "$python" -m pytest -m gpu -p no:cacheprovider "${tests[@]}"
part attention "$python" benchmarks/attention.py --device cuda --json "$out/attention.json"
part single_pass "$python" benchmarks/single_pass.py --device cuda --json "$out/single_pass.json"

exit $failed
