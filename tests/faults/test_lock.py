"""The lock on a run's folder: one living run, whoever died before; and ranks without a launcher end."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from showo_dist.runtime import lock
from showo_dist.runtime.lock import NAME, Owner, locked
from showo_launch.exit_codes import USER_ERROR
from tests.faults.processes import start
from tests.faults.test_supervise import (
    _children,
    _losses,
    _supervising,
    _training,
    _wait_for_step,
    launchers,
    undisturbed,
)
from tests.holding import HOLD, holding, said
from tests.training.conftest import TinyWorld

__all__ = ["undisturbed"]
LIMIT_S = 600.0


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_GRACE_S", 0.5)
    monkeypatch.setattr(lock, "_SILENT_S", 2.0)
    monkeypatch.setattr(lock, "_BEAT_S", 0.3)


def test_a_living_owner_is_named(tmp_path: Path) -> None:
    with holding(tmp_path / "run") as holder:
        assert said(holder) == "held"
        wanted = rf"run: a run on host \S+, pid {holder.pid}, writes there since \d{{4}}-\d\d-\d\d "
        with pytest.raises(ValueError, match=wanted), locked(tmp_path / "run"):
            pass
    with locked(tmp_path / "run"):
        assert Owner.of(tmp_path / "run") == replace(
            Owner.this_process(), since=json.loads((tmp_path / "run" / NAME).read_text())["since"]
        )
    assert not (tmp_path / "run" / NAME).exists()


@pytest.mark.parametrize("reaped", [True, False])
def test_a_killed_owner_does_not_keep_the_folder(tmp_path: Path, reaped: bool) -> None:
    with holding(tmp_path) as holder:
        assert said(holder) == "held"
        holder.send_signal(signal.SIGKILL)
        if reaped:
            holder.wait()
        began = time.monotonic()
        with locked(tmp_path):
            assert time.monotonic() - began < 5


def test_a_process_id_given_to_another_process_does_not(tmp_path: Path) -> None:
    own = Owner.this_process()
    (tmp_path / NAME).write_text(json.dumps(asdict(replace(own, ticks=own.ticks - 1))))
    with locked(tmp_path):
        pass


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": 1}', "null"])
def test_a_damaged_file_does_not(tmp_path: Path, text: str) -> None:
    (tmp_path / NAME).write_text(text)
    with locked(tmp_path):
        pass


def test_on_another_machine_the_beat_decides(tmp_path: Path) -> None:
    elsewhere = replace(Owner.this_process(), host="elsewhere", machine="another", pid=7)
    path = tmp_path / NAME
    path.write_text(json.dumps(asdict(elsewhere)))
    ended = threading.Event()
    beats = threading.Thread(target=lock._beat, args=(tmp_path, elsewhere, ended))
    beats.start()
    with pytest.raises(ValueError, match="host elsewhere, pid 7"), locked(tmp_path):
        pass
    ended.set()
    beats.join()
    # Clocks of machines differ: a time that lies ahead does not keep the folder either.
    os.utime(path, (time.time() + 9999,) * 2)
    with locked(tmp_path):
        assert Owner.of(tmp_path) != elsewhere


@pytest.mark.slow
def test_of_many_newcomers_one_takes_a_dead_owners_folder(tmp_path: Path) -> None:
    dead = replace(Owner.this_process(), ticks=1)
    (tmp_path / NAME).write_text(json.dumps(asdict(dead)))
    command = [sys.executable, "-c", HOLD, str(tmp_path), "30"]
    newcomers = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        for _ in range(4)
    ]
    try:
        lines = [said(newcomer) for newcomer in newcomers]
    finally:
        for newcomer in newcomers:
            newcomer.kill()
            newcomer.communicate()
    assert lines.count("held") == 1, lines
    assert sum("writes there since" in line for line in lines) == 3, lines


@pytest.mark.slow
def test_a_second_start_beside_a_living_run_is_refused(
    tiny_world: TinyWorld, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = [f"config={tiny_world.config}", f"experiment.output_dir={run}"]
    arguments += ["training.max_train_steps=1000000"]
    first = start(arguments, run, 1)
    try:
        first.wait_for_step(2, LIMIT_S)
        partial = run / ".checkpoint-000002.0123abcd.partial"
        partial.mkdir()
        second = start(arguments, run, 1, number=1)
        assert second.codes(LIMIT_S) == [USER_ERROR], second.printed()
        assert re.search(rf"pid {first.processes[0].pid}, writes there since", second.printed())
        assert partial.is_dir(), "the second start removed what the first was writing"
        assert first.processes[0].is_alive()
    finally:
        first.end()


# Its parent is a launcher that dies; before that, this process or a child that it forked gets a signal.
ORPHAN = """
import os, signal, sys, time
from showo_dist.faults.signals import StopRequest

with StopRequest() as stop:
    receiver = os.getpid() if sys.argv[1] == "rank" else os.fork()
    if not receiver:
        time.sleep(60)
    time.sleep(0.5)
    os.kill(receiver, signal.SIGTERM)
    time.sleep(0.5)
    if receiver != os.getpid():
        os.kill(receiver, signal.SIGKILL)
    before = stop.reason
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(4)
    print(before, stop.reason, sep=", ")
"""


@pytest.mark.parametrize(
    ("receiver", "reasons"),
    [("rank", "SIGTERM, SIGTERM"), ("child", "None, death of the launcher")],
)
def test_a_signal_counts_more_than_the_death_of_the_launcher(receiver: str, reasons: str) -> None:
    """A run that was asked to stop must not be restarted; a signal to a data worker asks for nothing."""
    shell = ["sh", "-c", '"$0" -c "$1" "$2"; true', sys.executable, ORPHAN, receiver]
    environment = {**os.environ, "TORCHELASTIC_RUN_ID": "1"}
    done = subprocess.run(
        shell, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.stdout.strip() == reasons, done.stderr


@pytest.mark.slow
@launchers
def test_a_run_goes_on_after_its_launcher_was_killed(
    tiny_world: TinyWorld, undisturbed: dict[int, float], tmp_path: Path, launcher: str
) -> None:
    """Its ranks save and end; the supervisor waits for them and starts the run again."""
    run = tmp_path / "run"
    command = _training(launcher, tiny_world, run)
    with _supervising("--restarts", "1", "--", *command) as supervised:
        _wait_for_step(run, 7)
        (started,) = _children(supervised.pid)
        os.kill(started, signal.SIGKILL)
        stderr = supervised.communicate(timeout=LIMIT_S)[1]
    assert supervised.returncode == 0, stderr[-3000:]
    assert "death of the launcher on rank" in stderr and "restarting on 2 ranks" in stderr
    assert _losses(run) == undisturbed
