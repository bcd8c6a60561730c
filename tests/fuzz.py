"""Run the fuzz tests in chunks: ``python tests/fuzz.py [CASES]``; a later call resumes behind the last chunk.

``runs/fuzz.json`` holds the number of the next case. A chunk that fails is repeated by the next call, and the
command that repeats it alone is printed. CASES (100,000) are divided among the kinds of damages.
"""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
STATE = ROOT / "runs" / "fuzz.json"
KINDS = 6  # members, shards, indices, weights, configs, HTTP answers
CHUNK = 500  # cases of every kind


def main() -> int:
    """Run the cases that are left; return pytest's exit code of the first chunk that fails."""
    last = int(sys.argv[1] if len(sys.argv) > 1 else 100_000) // KINDS
    tests = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("tests/*/test_fuzz*.py"))
    first = json.loads(STATE.read_text())["next"] if STATE.is_file() else 0
    while first < last:
        size = min(CHUNK, last - first)
        chosen = {"SHOWO_FUZZ_FIRST": str(first), "SHOWO_FUZZ_CASES": str(size)}
        command = [sys.executable, "-m", "pytest", "-q", "-x", *tests]
        code = subprocess.run(command, cwd=ROOT, env=os.environ | chosen).returncode
        if code:
            words = [*(f"{key}={value}" for key, value in chosen.items()), *command]
            print(f"repeat with: {shlex.join(words)}", flush=True)
            return code
        first += size
        STATE.parent.mkdir(exist_ok=True)
        STATE.write_text(json.dumps({"next": first}))
        print(f"fuzz: {first:,} of {last:,} cases of every kind", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
