"""Compile the CPU kernels against the installed torch, once per machine, and load them."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch
from filelock import FileLock  # torch itself depends on it

from showo_kernels.folders import make_private

log = logging.getLogger(__name__)

LIMIT_S = 300.0  # for the compiler, which takes about ten seconds
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
    """The folder for compiled extensions: ``TORCH_EXTENSIONS_DIR``, else the first place that can be written
    of the environment, the user's cache and the folder for temporary files."""
    if named := os.environ.get("TORCH_EXTENSIONS_DIR"):
        return Path(named)
    places = [Path(sys.prefix)]
    with suppress(
        RuntimeError
    ):  # in a container a user may have neither HOME nor an entry in passwd
        places.append(Path.home() / ".cache")
    for place in places:
        if os.access(next(p for p in (place, *place.parents) if p.exists()), os.W_OK):
            return place / "torch_extensions"
    return Path(tempfile.gettempdir()) / f"torch_extensions-{os.getuid()}"


def _library() -> Path:
    """The path of the compiled kernels, whose name depends on sources, flags, compiler and torch version."""
    made_of = "\n".join(
        [_compiler(), *FLAGS, torch.__version__, *(path.read_text() for path in SOURCES)]
    )
    digest = hashlib.sha256(made_of.encode()).hexdigest()[:16]
    return _root() / "showo_kernels" / f"cpu-{digest}.so"


def _checksum_of(library: Path) -> Path:
    return library.with_suffix(".sha256")


def _is_whole(library: Path) -> bool:
    """Whether the library is what the compiler wrote; a crash or a full disk can leave a cut file."""
    with suppress(OSError):
        digest = hashlib.sha256(library.read_bytes()).hexdigest()
        return _checksum_of(library).read_text() == digest
    return False


def _run(command: list[str]) -> tuple[int, str]:
    """Exit code and stderr of a command that gets :data:`LIMIT_S` seconds, its child processes included.

    Raises:
        OSError: it took longer, or cannot be started.
    """
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        process_group=0,
    ) as started:
        try:
            _, errors = started.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            raise OSError(f"{command[0]}: no end after {LIMIT_S:g} s") from None
        finally:
            with suppress(ProcessLookupError):  # usually all have ended
                os.killpg(started.pid, signal.SIGKILL)
    return started.returncode, errors


def _publish(made: Path, target: Path) -> None:
    """Rename a file once it is on the disk."""
    with made.open("rb") as file:
        os.fsync(file.fileno())
    made.replace(target)


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
        code, errors = _run(command)
        if code:
            lines = errors.splitlines()
            first = next((line for line in lines if "error" in line), f"exit {code}")
            raise OSError(f"{command[0]}: {first!r}")
        checksum = Path(folder) / "checksum"
        checksum.write_text(hashlib.sha256(made.read_bytes()).hexdigest())
        _publish(made, library)
        _publish(checksum, _checksum_of(library))


def _ensure_compiled() -> Path:
    """Return the path of the compiled kernels; one process compiles them while the others wait.

    Raises:
        OSError: there is no compiler, it failed, or the folder is not safe.
    """
    library = _library()
    for folder in (library.parent.parent, library.parent):
        make_private(folder, "TORCH_EXTENSIONS_DIR")
    if not _is_whole(library):
        if shutil.which(_compiler()) is None:
            raise OSError(f"no C++ compiler {_compiler()!r} (apt install g++, or set CXX)")
        # The system releases the lock when its holder dies.
        with FileLock(library.with_suffix(".lock"), timeout=2 * LIMIT_S):
            if not _is_whole(library):
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
    except (OSError, NotImplementedError) as error:  # the second: a disk without locks
        return f"it could not be compiled: {error}"
    return None
