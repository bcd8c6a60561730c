#!/usr/bin/env bash
# Create .venv with the torch build for this machine, the project and its tools. Run by make.
set -euo pipefail
cd "$(dirname "$0")/.."

TORCH=2.13.0
CPU_INDEX=https://download.pytorch.org/whl/cpu

find_python() {
    local candidate
    for candidate in python3.13 python3.12 python3.11 python3; do
        if command -v "$candidate" >/dev/null &&
            "$candidate" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "install: Python 3.11 or newer is needed, none was found" >&2
    exit 1
}

has_gpu() { command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q GPU; }

# The CPU build comes from the index that pip is configured for, else from PyTorch's own. PyPI's build works
# on a CPU too, but brings CUDA libraries along; it is the last resort.
install_torch() {
    if .venv/bin/python -c "import torch; raise SystemExit(torch.__version__.split('+')[0] != '$TORCH')" 2>/dev/null; then
        return
    fi
    if has_gpu; then
        .venv/bin/pip install "torch==$TORCH"
        return
    fi
    .venv/bin/pip install --quiet "torch==$TORCH+cpu" 2>/dev/null ||
        .venv/bin/pip install --quiet --extra-index-url "$CPU_INDEX" "torch==$TORCH+cpu" 2>/dev/null ||
        .venv/bin/pip install "torch==$TORCH"
}

python=$(find_python)
[ -x .venv/bin/pip ] || "$python" -m venv .venv || {
    echo "install: '$python -m venv' failed; on Debian the package python3-venv has it" >&2
    exit 1
}
echo "install: torch $TORCH"
install_torch
echo "install: the project and its dependencies"
# The version of torch's metadata keeps the installed build: torch.__version__ of PyPI's wheel is 2.13.0+cu130, which
# no index has. DeepSpeed compiles its ops when they are first used.
DS_BUILD_OPS=0 .venv/bin/pip install --quiet --editable '.[dev]' "torch==$(
    .venv/bin/python -c 'from importlib.metadata import version; print(version("torch"))'
)"
echo "install: done, $(.venv/bin/python --version), torch $(
    .venv/bin/python -c 'import torch; print(torch.__version__)'
)"
