"""Compile the CPU kernels: once per machine, atomically, and with a fallback."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from showo_dist.runtime.lock import started_at
from showo_kernels.cpu import compiled
from showo_kernels.folders import check_cache_folders, make_private
from tests.conftest import ROOT
from tests.kernels.layouts import NO_NATIVE

pytestmark = pytest.mark.skipif(NO_NATIVE is not None, reason=f"{NO_NATIVE}")

SELECT = "from showo_kernels import select_backend; print(*select_backend('auto', 'cpu'))"


def compiler(folder: Path, *lines: str) -> Path:
    """A C++ compiler that does something else first."""
    path = folder / "c++"
    path.write_text("\n".join(["#!/bin/sh", *lines, 'exec g++ "$@"', ""]))
    path.chmod(0o755)
    return path


def start(
    folder: Path, cxx: str | Path, *, script: str = SELECT, **settings: str
) -> subprocess.Popen[str]:
    """A process of its own group that asks for the backend of a CPU."""
    settings |= {"TORCH_EXTENSIONS_DIR": str(folder / "cache"), "CXX": str(cxx)}
    return subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def answer(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    return out.strip()


def test_without_a_compiler_it_is_sdpa(tmp_path: Path) -> None:
    selected = answer(start(tmp_path, "no-such-compiler"))
    assert selected.startswith(
        "sdpa native: it could not be compiled: no C++ compiler 'no-such-compiler'"
    )
    assert "apt install g++" in selected


def test_without_the_instructions_it_is_sdpa(tmp_path: Path) -> None:
    # torch's own switch, which makes it report an older processor.
    selected = answer(start(tmp_path, "g++", ATEN_CPU_CAPABILITY="avx2"))
    assert selected == "sdpa native: the processor has no AVX-512"


def test_an_error_of_the_compiler_is_named(tmp_path: Path) -> None:
    selected = answer(start(tmp_path, compiler(tmp_path, "echo 'x.h: error: gone' >&2; exit 1")))
    assert (
        selected.startswith("sdpa native: it could not be compiled:")
        and "x.h: error: gone" in selected
    )


def test_killed_while_compiling_then_made_once_for_two(tmp_path: Path) -> None:
    began = tmp_path / "began"
    victim = start(tmp_path, compiler(tmp_path, f"echo x >> {began}", "sleep 100"))
    end = time.monotonic() + 60
    while not began.exists() and time.monotonic() < end:
        time.sleep(0.05)
    os.killpg(victim.pid, signal.SIGKILL)
    victim.communicate()
    began.unlink()

    # The same path, so the same file is made.
    cxx = compiler(tmp_path, f"echo x >> {began}")
    processes = [start(tmp_path, cxx) for _ in range(2)]
    assert all(answer(process).startswith("native") for process in processes)
    assert began.read_text() == "x\n"
    assert answer(start(tmp_path, cxx)).startswith("native")
    assert began.read_text() == "x\n"
    made = [
        path.suffix for path in (tmp_path / "cache" / "showo_kernels").iterdir() if path.is_file()
    ]
    assert sorted(made) == [".lock", ".sha256", ".so"]


def _made(folder: Path) -> Path:
    (library,) = (folder / "cache" / "showo_kernels").glob("*.so")
    return library


def _copying(folder: Path, *lines: str) -> Path:
    """A compiler that takes no time: it hands out what the real one made before."""
    made = compiled._ensure_compiled()
    return compiler(folder, *lines, f'while [ "$1" != -o ]; do shift; done; exec cp {made} "$2"')


def test_a_damaged_library_is_compiled_again(tmp_path: Path) -> None:
    began = tmp_path / "began"
    cxx = _copying(tmp_path, f"echo x >> {began}")
    assert answer(start(tmp_path, cxx)).startswith("native")
    whole = _made(tmp_path).read_bytes()
    flipped = bytearray(whole)
    flipped[len(flipped) // 2] ^= 1
    damages = [b"", whole[:1000], whole[: len(whole) // 2], whole[:-1], bytes(flipped)]
    for damaged in damages:
        _made(tmp_path).write_bytes(damaged)
        assert not compiled._is_whole(_made(tmp_path))
    assert answer(start(tmp_path, cxx)).startswith("native")
    assert _made(tmp_path).read_bytes() == whole
    _made(tmp_path).with_suffix(".sha256").unlink()
    assert answer(start(tmp_path, cxx)).startswith("native")
    assert began.read_text() == "x\n" * 3


@pytest.mark.parametrize("fault", ["mode", "owner"])
def test_a_folder_that_others_can_write_is_refused(tmp_path: Path, fault: str) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    if fault == "mode":
        folder.chmod(0o777)
    elif os.getuid():
        pytest.skip("only root can give a folder to another user")
    else:
        os.chown(folder, 12345, 12345)
    wanted = "can be written by everybody" if fault == "mode" else "belongs to another user"
    with pytest.raises(OSError, match=f"{wanted}.*; set TORCH_EXTENSIONS_DIR to a folder"):
        make_private(folder, "TORCH_EXTENSIONS_DIR")
    for variable in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(variable, str(folder))
            with pytest.raises(ValueError, match=f"host .*{wanted}.*set {variable} to"):
                check_cache_folders()
    selected = answer(start(tmp_path, "g++"))
    assert selected.startswith("sdpa native: it could not be compiled:") and wanted in selected


def test_the_folder_for_temporary_files_of_everybody_is_allowed(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    make_private(tmp_path, "X")
    make_private(tmp_path / "own" / "new", "X")
    assert (tmp_path / "own" / "new").stat().st_mode & 0o777 == 0o700


def test_a_compiler_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    cxx = compiler(tmp_path, f"sleep 1000 & echo $! > {pid}; wait")
    hurried = f"import showo_kernels.cpu.compiled as c; c.LIMIT_S = 2; {SELECT}"
    assert "no end after 2 s" in answer(start(tmp_path, cxx, script=hurried))
    until = time.monotonic() + 20
    while started_at(int(pid.read_text())) is not None:
        assert time.monotonic() < until, "a child of the compiler still runs"
        time.sleep(0.05)


def test_without_home_and_without_a_name(tmp_path: Path) -> None:
    """A user id that passwd does not know, in an environment that it cannot write."""
    script = (
        "import os, pwd, sys, tempfile\n"
        "def unknown(*_): raise KeyError('uid not found')\n"
        f"pwd.getpwuid, sys.prefix, tempfile.tempdir = unknown, '/proc', {str(tmp_path)!r}\n"
        "for name in ('HOME', 'TORCH_EXTENSIONS_DIR'): os.environ.pop(name, None)\n"
        f"os.access = lambda path, mode: not str(path).startswith('/proc')\n{SELECT}"
    )
    assert answer(start(tmp_path, _copying(tmp_path), script=script)).startswith("native")
    assert list((tmp_path / f"torch_extensions-{os.getuid()}").glob("showo_kernels/*.so"))
