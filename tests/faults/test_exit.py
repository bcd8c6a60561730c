"""A run that succeeded ends with its exit code, whatever torch's threads still do."""

import subprocess
import sys

import pytest

# Torch's store releases and takes the interpreter's lock all the time, as gloo's threads do now and then.
SCRIPT = """
import atexit, sys, threading
from datetime import timedelta
import torch.distributed as dist
from showo_dist.runtime.exits import run_and_exit

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


def _end(ending: str, call: str = 'run_and_exit("test", run)') -> subprocess.CompletedProcess[str]:
    script = SCRIPT.format(ending=ending, call=call)
    command = [sys.executable, "-c", script]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_threads_in_torch_do_not_abort_a_process_that_ends() -> None:
    ended = _end("return 0")
    assert (ended.returncode, ended.stdout) == (0, "done\nhandlers run\n"), ended.stderr


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="newer Pythons let such threads hang")
def test_they_would_if_the_interpreter_were_torn_down() -> None:
    ended = _end("return 0", call="run()")
    # The output may be lost as well: a thread can abort the process before the interpreter flushes it.
    assert ended.returncode == -6 and "terminate called" in ended.stderr, ended


def test_the_exit_code_is_the_one_asked_for() -> None:
    assert _end("return 75").returncode == 75
    assert _end("sys.exit(3)").returncode == 3
    assert _end("sys.exit()").returncode == 0
    failed = _end("raise KeyError('unexpected')")
    assert failed.returncode == 1
    assert "unexpected" in failed.stderr and "Traceback" in failed.stderr
    named = _end("sys.exit('a reason')")
    assert (named.returncode, named.stderr) == (1, "a reason\n")
