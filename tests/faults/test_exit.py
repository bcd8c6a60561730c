"""A run that was good ends as one, whatever torch's threads still do."""

import subprocess
import sys

import pytest

# Torch's store gives the interpreter back and takes it again all the time, as gloo's threads do now and then.
SCRIPT = """
import atexit, sys, threading
from datetime import timedelta
import torch.distributed as dist
from showo_dist.runtime.exits import exit_plainly

store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

def ask():
    while True:
        store.set("alive", "yes")

def run():
    for _ in range(8):
        threading.Thread(target=ask, daemon=True).start()
    atexit.register(print, "handlers run")
    print("done")
    {ending}

{call}
"""


def _end(ending: str, call: str = 'exit_plainly("test", run)') -> subprocess.CompletedProcess[str]:
    script = SCRIPT.format(ending=ending, call=call)
    command = [sys.executable, "-c", script]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_threads_in_torch_do_not_abort_a_process_that_ends() -> None:
    ended = _end("return 0")
    assert (ended.returncode, ended.stdout) == (0, "done\nhandlers run\n"), ended.stderr


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="newer Pythons let such threads hang")
def test_they_would_if_the_interpreter_was_torn_down() -> None:
    ended = _end("return 0", call="run()")
    # What was printed may be lost as well: some thread can abort before the interpreter flushes.
    assert ended.returncode == -6 and "terminate called" in ended.stderr, ended


def test_the_exit_code_is_the_one_asked_for() -> None:
    assert _end("return 75").returncode == 75
    assert _end("sys.exit(3)").returncode == 3
    assert _end("sys.exit()").returncode == 0
    failed = _end("raise KeyError('nobody foresaw it')")
    assert failed.returncode == 1
    assert "nobody foresaw it" in failed.stderr and "Traceback" in failed.stderr
    named = _end("sys.exit('a reason')")
    assert (named.returncode, named.stderr) == (1, "a reason\n")
