"""Compile the CPU kernels against the installed torch, once per machine, and load them."""

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
# Named one by one instead of -march=native: machines with different processors may share a home folder.
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
    """The folder for compiled extensions: torch's setting, or in the environment, or in the user's cache."""
    if named := os.environ.get("TORCH_EXTENSIONS_DIR"):
        return Path(named)
    own = Path(sys.prefix) if os.access(sys.prefix, os.W_OK) else Path.home() / ".cache"
    return own / "torch_extensions"


def _library() -> Path:
    """The path of the compiled kernels, whose name depends on sources, flags, compiler and torch version."""
    made_of = "\n".join(
        [_compiler(), *FLAGS, torch.__version__, *(path.read_text() for path in SOURCES)]
    )
    digest = hashlib.sha256(made_of.encode()).hexdigest()[:16]
    return _root() / "showo_kernels" / f"cpu-{digest}.so"


def _compile(library: Path) -> None:
    """Compile the kernels into a temporary folder and rename the result to ``library``.

    Raises:
        OSError: the compiler failed; the message has its first error.
    """
    # A warning is shown without any logging setup, and nothing else explains the wait.
    log.warning("compiling the CPU kernels, once, about ten seconds: %s", library)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        units = [str(path) for path in SOURCES if path.suffix == ".cpp"]
        command = [_compiler(), *units, "-o", str(made), *FLAGS]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            lines = done.stderr.splitlines()
            first = next((line for line in lines if "error" in line), f"exit {done.returncode}")
            raise OSError(f"{command[0]}: {first!r}")
        made.replace(library)


def _ensure_compiled() -> Path:
    """Return the path of the compiled kernels; one process compiles them while the others wait.

    Raises:
        OSError: there is no compiler, or it failed.
    """
    library = _library()
    if not library.exists():
        if shutil.which(_compiler()) is None:
            raise OSError(f"no C++ compiler {_compiler()!r} (apt install g++, or set CXX)")
        library.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(library.with_suffix(".lock")):  # the system releases it when its holder dies
            if not library.exists():
                _compile(library)
    return library


@cache
def obstacle() -> str | None:
    """Load the kernels into ``torch.ops.showo_kernels``, compiling them at first use.

    Returns:
        None, or the reason why they cannot be used on this machine.
    """
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return "the processor has no AVX-512"
    if not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return "the processor has no instructions for bf16"
    try:
        torch.ops.load_library(_ensure_compiled())
    except OSError as error:
        return f"it could not be compiled: {error}"
    return None
