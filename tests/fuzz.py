"""Run the fuzz tests in chunks: ``python tests/fuzz.py [CASES]``; a later call resumes behind the last chunk.

``runs/fuzz.json`` holds the number of the next case and the CPU seconds so far. A chunk that fails is
repeated by the next call, and the command that repeats it alone is printed. CASES (100,000) are divided
among the kinds.
"""

import json
import os
import resource
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
STATE = ROOT / "runs" / "fuzz.json"
KINDS = 7  # members, shards, indices, weights, configs, HTTP answers, inputs of conversions
CHUNK = 1000  # cases of every kind
CHUNK_S = 3600  # against hangs that no signal interrupts
# Most of the time went into flushing small files to the disk.
_FILES = {"TMPDIR": "/dev/shm"} if os.access("/dev/shm", os.W_OK) else {}


def main() -> int:
    """Run the cases that are left; return pytest's exit code of the first chunk that fails."""
    last = int(sys.argv[1] if len(sys.argv) > 1 else 100_000) // KINDS
    tests = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("tests/*/test_fuzz*.py"))
    state = json.loads(STATE.read_text()) if STATE.is_file() else {}
    first, before_s = state.get("next", 0), state.get("cpu_s", 0.0)
    while first < last:
        size = min(CHUNK, last - first)
        chosen = {"SHOWO_FUZZ_FIRST": str(first), "SHOWO_FUZZ_CASES": str(size)}
        command = [sys.executable, "-m", "pytest", "-q", *tests]
        code = _run(command, os.environ | chosen | _FILES)
        if code:
            words = [*(f"{key}={value}" for key, value in chosen.items()), *command]
            print(f"repeat with: {shlex.join(words)}", flush=True)
            return code
        first += size
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_s = before_s + used.ru_utime + used.ru_stime
        STATE.parent.mkdir(exist_ok=True)
        STATE.write_text(json.dumps({"next": first, "cpu_s": round(cpu_s)}))
        print(
            f"fuzz: {first:,} of {last:,} cases of every kind, {cpu_s / 60:.0f} CPU minutes",
            flush=True,
        )
    return 0


def _run(command: list[str], environment: dict[str, str]) -> int:
    try:
        return subprocess.run(command, cwd=ROOT, env=environment, timeout=CHUNK_S).returncode
    except subprocess.TimeoutExpired:
        print(f"fuzz: a chunk takes longer than {CHUNK_S} s", flush=True)
        return 1


if __name__ == "__main__":
    sys.exit(main())
