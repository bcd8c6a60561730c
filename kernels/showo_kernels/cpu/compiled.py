"""Compiles the CPU kernels for the torch that is installed, once per machine, and loads them."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import torch
from filelock import FileLock  # torch itself depends on it

log = logging.getLogger(__name__)

SOURCES = sorted(path for path in Path(__file__).parent.iterdir() if path.suffix in (".cpp", ".h"))
TORCH = Path(torch.__file__).parent
# Named one by one, not -march=native: a home folder may be shared by machines with other processors.
INSTRUCTIONS = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "fma", "prefer-vector-width=512")
FLAGS = (
    *("-std=c++20", "-O3", "-fPIC", "-shared", "-fopenmp", "-fno-math-errno", "-fno-trapping-math"),
    *(f"-m{name}" for name in INSTRUCTIONS),
    *("-DCPU_CAPABILITY=AVX512", "-DCPU_CAPABILITY_AVX512"),  # for torch's vector headers
    f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
    *(f"-I{TORCH / 'include'}", f"-L{TORCH / 'lib'}", "-ltorch_cpu", "-lc10"),
)


def _compiler() -> str:
    return os.environ.get("CXX", "g++")


def _root() -> Path:
    """torch's setting, else the environment's own folder, else the user's."""
    if named := os.environ.get("TORCH_EXTENSIONS_DIR"):
        return Path(named)
    own = Path(sys.prefix) if os.access(sys.prefix, os.W_OK) else Path.home() / ".cache"
    return own / "torch_extensions"


def _library() -> Path:
    """Where the compiled kernels belong: another source, torch or compiler is another file."""
    made_of = "\n".join(
        [_compiler(), *FLAGS, torch.__version__, *(path.read_text() for path in SOURCES)]
    )
    digest = hashlib.sha256(made_of.encode()).hexdigest()[:16]
    return _root() / "showo_kernels" / f"cpu-{digest}.so"


def _compile(library: Path) -> None:
    """Put the compiled kernels at ``library``: whole, or not at all."""
    # Seen without any setting of logging: nothing else says what the wait is for.
    log.warning("compiling the CPU kernels, once, about ten seconds: %s", library)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        units = [str(path) for path in SOURCES if path.suffix == ".cpp"]
        command = [_compiler(), *units, "-o", str(made), *FLAGS]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            said = done.stderr.splitlines()
            first = next((line for line in said if "error" in line), f"exit {done.returncode}")
            raise OSError(f"{command[0]} said {first!r}")
        made.replace(library)


def _made() -> Path:
    """The compiled kernels, made by one process while the others wait."""
    library = _library()
    if not library.exists():
        if shutil.which(_compiler()) is None:
            raise OSError(f"no C++ compiler {_compiler()!r} (apt install g++, or set CXX)")
        library.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(library.with_suffix(".lock")):  # the system frees it when a process dies
            if not library.exists():
                _compile(library)
    return library


@cache
def obstacle() -> str | None:
    """Load the kernels, compiled first where they are not yet.

    Returns:
        None when ``torch.ops.showo_kernels`` holds them, else what keeps it from holding them.
    """
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return "the processor has no AVX-512"
    if not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return "the processor has no instructions for bf16"
    try:
        torch.ops.load_library(_made())
    except OSError as error:
        return f"it could not be compiled: {error}"
    return None
