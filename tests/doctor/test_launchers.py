"""The launchers' shell scripts, in a copy of the project whose programs of a cluster are stand-ins."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

OWN = socket.gethostname()
TRAINING = (f"config={ROOT}/configs/mini/pretrain.yaml", "experiment.output_dir=run")
# As on Debian, this machine's own name has an address of the interface lo.
GETENT = f'case $2 in {OWN}|me) echo "127.0.1.1 STREAM";; *) echo "10.0.0.2 STREAM";; esac'
IP = 'case $* in *"get 127."*) echo "local 127.0.1.1 dev lo";; *get*) echo "10.0.0.2 dev eth7";; esac'
PROGRAMS = {
    "getent": GETENT,
    "ip": IP,
    "deepspeed": 'echo "arguments $*"; env',
    "scontrol": 'case $1 in show) echo one; echo two;; *) echo "scontrol $*";; esac',
    "srun": '[ -z "$REPORT" ] || echo "{\\"code\\": $REPORT}" >"$SHOWO_DIST_REPORTS/rank"; exit $CODE',
}


class Project:
    """A folder with the launchers."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin = folder, folder.parent / "bin"
        shutil.copytree(ROOT / "launchers", folder / "launchers")
        (folder / "hosts").write_text(f"{OWN} slots=1\ntwo slots=1\n")
        self.bin.mkdir(exist_ok=True)
        for name, script in PROGRAMS.items():
            self.add(name, script)

    def add(self, name: str, script: str) -> None:
        (self.bin / name).write_text(f"#!/bin/bash\n{script}\n")
        (self.bin / name).chmod(0o755)

    def run(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        path = f"{self.bin}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("GLOO", "OMP", "SLURM"))}
        environment = {
            **kept,
            "HOME": str(self.bin),
            "PATH": path,
            "HOSTFILE": "hosts",
            **variables,
        }
        # Not a pipe: deepspeed.sh follows a log until its process is gone, and keeps a pipe open so long.
        with (self.bin / "out").open("w+") as out, (self.bin / "err").open("w+") as err:
            code = subprocess.call(
                words, cwd=self.folder, env=environment, stdout=out, stderr=err, timeout=120
            )
            texts = [stream.seek(0) or stream.read() for stream in (out, err)]
        return subprocess.CompletedProcess(words, code, *texts)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """The one line with which a script refuses to start, behind those about the config."""
    lines = [x for x in done.stderr.splitlines() if not x.startswith("without effect: ")]
    assert done.returncode == 2 and len(lines) == 1, done
    return lines[0]


def interface(project: Project, *hosts: str, **variables: str) -> subprocess.CompletedProcess[str]:
    script = f"set -eu; . launchers/common.sh; prepare_environment {' '.join(hosts)}"
    return project.run("bash", "-c", f"{script}; echo $GLOO_SOCKET_IFNAME", **variables)


def test_gloo_gets_an_interface_that_leads_to_the_other_hosts(project: Project) -> None:
    for hosts in ([OWN, "two"], ["two", OWN], [OWN, "me", "two"]):
        assert interface(project, *hosts).stdout == "eth7\n", hosts
    assert interface(project, OWN).stdout == "lo\n"
    assert "correct /etc/hosts" in refusal(interface(project, OWN, "me"))
    assert interface(project, OWN, "me", GLOO_SOCKET_IFNAME="eth1").stdout == "eth1\n"


@pytest.mark.parametrize("words", [["--include", "two"], ["--exclude=two"], ["-i", f"{OWN}:0"]])
def test_hosts_are_not_selected_without_ssh(project: Project, words: list[str]) -> None:
    done = project.run("launchers/deepspeed.sh", "--no_ssh", *words, *TRAINING)
    assert f"{words[0].partition('=')[0]}, with --no_ssh: remove hosts from hosts" in refusal(done)
    done = project.run("launchers/deepspeed.sh", *words, *TRAINING)
    assert done.returncode == 0 and f"arguments {' '.join(words)}" in done.stdout, done.stderr


@pytest.mark.parametrize("name", ["a b", "a$HOME", "100%n", "it's", "[x]", "a\\b"])
def test_a_folder_that_deepspeed_would_not_quote_is_refused(tmp_path: Path, name: str) -> None:
    project = Project(tmp_path / name)
    line = refusal(project.run("launchers/deepspeed.sh", *TRAINING))
    assert f"{project.folder}: over ssh, DeepSpeed leaves paths unquoted" in line
    done = project.run("launchers/deepspeed.sh", "--no_ssh", *TRAINING)
    assert done.returncode == 0, done.stderr


def test_the_users_environment_reaches_the_ranks(project: Project) -> None:
    (project.bin / ".deepspeed_env").write_text("# mine\n\nFIRST=1\nGLOO_SOCKET_IFNAME=eth1")
    (project.folder / ".deepspeed_env").write_text("SECOND=a b=c\n")
    wanted = ["FIRST=1", "GLOO_SOCKET_IFNAME=eth1", "SECOND=a b=c"]
    done = project.run("launchers/deepspeed.sh", "--no_ssh", *TRAINING)
    assert {*wanted} <= {*done.stdout.splitlines()}, done
    done = project.run("launchers/deepspeed.sh", *TRAINING)
    assert done.returncode == 0, done.stderr
    passed = (project.folder / "run" / "logs" / "deepspeed_env").read_text().splitlines()
    assert passed[-3:] == wanted


def test_slurm_restarts_after_so_many_failures_and_any_number_of_requeues(project: Project) -> None:
    job = {
        "SLURM_SUBMIT_DIR": str(project.folder),
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "one",
        "SLURM_NNODES": "1",
        "SLURM_CPUS_ON_NODE": "2",
        "MAX_RESTARTS": "2",
    }
    requeued = []
    # Reported and exit codes: time limits, failures with and without a report, a mistake in the config.
    starts = [*[("75", "1")] * 4, ("76", "1"), ("75", "1"), ("", "137"), ("2", "2"), ("76", "1")]
    for number, (report, code) in enumerate(starts):
        variables = {"SLURM_RESTART_COUNT": str(number), "REPORT": report, "CODE": code}
        batch = str(project.folder / "launchers/slurm/train.sbatch")
        done = project.run(batch, *TRAINING, **job, **variables)
        assert done.returncode == int(code), done
        requeued.append("scontrol requeue 7" in done.stdout)
    assert requeued == [*[True] * 7, False, False]
    failures = (project.folder / "run" / "logs" / "slurm-7-failures").read_text()
    assert failures == "start 4: code 1\nstart 6: code 137\nstart 8: code 1\n"


@pytest.mark.parametrize("given", [{}, {"OMP_NUM_THREADS": "3"}])
def test_a_task_of_slurm_divides_its_cores_once(project: Project, given: dict[str, str]) -> None:
    project.add("python", 'echo "$MASTER_ADDR $OMP_NUM_THREADS"')
    task = {"SLURM_JOB_NODELIST": "x", "SLURM_PROCID": "1", "SLURM_LOCALID": "1"}
    task |= {"SLURM_NTASKS": "2", "RANKS_PER_NODE": "2", "SLURM_CPUS_PER_TASK": "4"}
    done = project.run("launchers/slurm/task.sh", *TRAINING, **task, **given)
    assert done.stdout == f"one {given.get('OMP_NUM_THREADS', '4')}\n", done.stderr
