"""Compile the CPU kernels: once per machine, atomically, and with a fallback."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

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


def start(folder: Path, cxx: str | Path, **settings: str) -> subprocess.Popen[str]:
    """A process of its own group that asks for the backend of a CPU."""
    settings |= {"TORCH_EXTENSIONS_DIR": str(folder / "cache"), "CXX": str(cxx)}
    return subprocess.Popen(
        [sys.executable, "-c", SELECT],
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
    assert sorted(made) == [".lock", ".so"]
