"""The launchers' shell scripts, in a copy of the project whose programs of a cluster are stand-ins."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.forks import free_port

OWN = socket.gethostname()
TRAINING = (f"config={ROOT}/configs/mini/pretrain.yaml", "experiment.output_dir=run")
# As on Debian, this machine's own name has an address of the interface lo.
GETENT = f'case $2 in {OWN}|me) echo "127.0.1.1 STREAM";; *) echo "10.0.0.2 STREAM";; esac'
IP = 'case $* in *"get 127."*) echo "local 127.0.1.1 dev lo";; *get*) echo "10.0.0.2 dev eth7";; esac'
ARGUMENTS = 'printf "%s\\n" "$@" >arguments'  # records one argument per line
PROGRAMS = {
    "getent": GETENT,
    "ip": IP,
    "deepspeed": f'{ARGUMENTS}; echo "arguments $*"; env',
    "torchrun": ARGUMENTS,
    "scontrol": 'case $1 in show) echo one; echo two;; *) echo "scontrol $*";; esac',
    "srun": f'{ARGUMENTS}; echo "$SHOWO_STARTED" >>started\n'
    '[ -z "$REPORT" ] || echo "{\\"code\\": $REPORT}" >"$SHOWO_DIST_REPORTS/rank"; exit $CODE',
}
# Values that a shell or pdsh would change.
VALUES = ("experiment.name=a%h", "dataset.params.train_t2i_shards_path_or_url=train-{000..003}.tar")


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
        kept = {
            k: v
            for k, v in os.environ.items()
            if not k.startswith(("CUDA", "GLOO", "OMP", "SLURM"))
        }
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

    def job(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run train.sbatch in an allocation."""
        job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "one", "SLURM_NNODES": "1"}
        job |= {"SLURM_SUBMIT_DIR": str(self.folder), "SLURM_CPUS_ON_NODE": "2"}
        job |= {"MAX_RESTARTS": "2", "REPORT": "", "CODE": "0"}
        return self.run("launchers/slurm/train.sbatch", *words, **(job | variables))

    def started(self) -> list[str]:
        """The arguments of the launcher that was started last."""
        return (self.folder / "arguments").read_text().splitlines()


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
    requeued, before = [], int(time.time())
    # Reported and exit codes: time limits, failures with and without a report, a mistake in the config.
    starts = [*[("75", "1")] * 4, ("76", "1"), ("75", "1"), ("", "137"), ("2", "2"), ("76", "1")]
    for number, (report, code) in enumerate(starts):
        variables = {"SLURM_RESTART_COUNT": str(number), "REPORT": report, "CODE": code}
        done = project.job(*TRAINING, **variables)
        assert done.returncode == int(code), done
        requeued.append("scontrol requeue 7" in done.stdout)
    assert requeued == [*[True] * 7, False, False]
    failures = (project.folder / "run" / "logs" / "slurm-7-failures").read_text()
    assert failures == "start 4: code 1\nstart 6: code 137\nstart 8: code 1\n"
    began = (project.folder / "started").read_text().split()
    assert len(began) == len(starts) and len({*began}) == 1, "one time for all starts"
    assert before <= int(began[0]) <= time.time()


def test_slurm_gets_the_arguments_unchanged(project: Project) -> None:
    words = [*TRAINING, *VALUES]
    done = project.job(*words, RANKS_PER_NODE="2")
    assert done.returncode == 0, done
    assert project.started() == [
        *(
            "--nodes=1",
            "--ntasks=2",
            "--ntasks-per-node=2",
            "--cpus-per-task=1",
            "--distribution=block",
        ),
        *("--kill-on-bad-exit=0", "--wait=600", "--gpu-bind=none"),
        f"--output={project.folder}/run/logs/slurm-7-0-task%t.log",
        f"{project.folder}/launchers/slurm/task.sh",
        *words,
    ]


def test_deepspeed_gets_the_arguments_quoted_for_remote_shells(project: Project) -> None:
    words, logs = [*TRAINING, *VALUES], f"{project.folder}/run/logs"
    own = ["--master_port", "29501"]
    assert project.run("launchers/deepspeed.sh", *own, *words).returncode == 0
    remote = [*TRAINING, VALUES[0].replace("%", "%%"), f"'{VALUES[1]}'"]
    module = ["--hostfile", f"{logs}/hostfile", "--module", "showo_dist.train"]
    log = ["--enable_each_rank_log", f"'{logs}'"]
    assert project.started() == [*own, *log, "--force_multi", *module, *remote]
    assert project.run("launchers/deepspeed.sh", "--no_ssh", *words).returncode == 0
    place = ["--node_rank", "0", "--master_addr", OWN]
    assert project.started() == ["--no_ssh", log[0], logs, *place, *module, *words]


@pytest.mark.parametrize("launcher", ["deepspeed.sh", "torchrun.sh", "slurm/train.sbatch"])
def test_a_key_before_the_config_is_refused(project: Project, launcher: str) -> None:
    words = (f"launchers/{launcher}", "training.seed=5", *TRAINING)
    line = refusal(project.job(*words[1:]) if "slurm" in launcher else project.run(*words))
    assert "training.seed=5: config=FILE comes before the keys" in line


def test_slurm_takes_no_options_of_a_launcher(project: Project) -> None:
    assert "--quiet: only config=FILE and keys" in refusal(project.job("--quiet", *TRAINING))


def test_torchrun_does_not_restart(project: Project) -> None:
    for words in ["--max-restarts", "3"], ["--max_restarts=3"]:
        line = refusal(project.run("launchers/torchrun.sh", *words, *TRAINING))
        assert "use launchers/supervise" in line
    done = project.run("launchers/torchrun.sh", *TRAINING, PET_MAX_RESTARTS="3")
    assert done.returncode == 0, done
    assert project.started()[-6:-4] == ["--max-restarts", "0"]


def test_gpus_that_deepspeed_would_not_use_are_refused(project: Project) -> None:
    for words in ([], ["--no_ssh"], ["--include", "two"]):
        done = project.run("launchers/deepspeed.sh", *words, *TRAINING, CUDA_VISIBLE_DEVICES="4,5")
        assert "--include HOST:4,5,6,7" in refusal(done)
    for words, devices in ([], "-1"), ([], "0,1,2,3"), (["--include", "two:0"], "4,5"):
        done = project.run(
            "launchers/deepspeed.sh", *words, *TRAINING, CUDA_VISIBLE_DEVICES=devices
        )
        assert done.returncode == 0, done


def test_doctor_checks_the_environment_of_the_run(project: Project) -> None:
    """The variables that deepspeed.sh passes on, in place of sshd, which passes none."""
    (project.folder / "hosts").write_text("127.0.0.1 slots=1\n127.0.0.2 slots=1\n")
    (project.folder / ".deepspeed_env").write_text("MINE=a b\n")
    project.add("getent", 'echo "10.0.0.2 STREAM"')
    project.add("ssh", 'exec env -i PATH="$PATH" bash -c "${@: -1}"')
    words = [
        "doctor",
        "--hostfile",
        "hosts",
        "--quick",
        "--free-gb",
        "0",
        "--port",
        str(free_port()),
    ]
    project.add("python", f'env >"environment-$$"; exec {sys.executable} "$@"')
    words += ["--python", str(project.bin / "python")]
    done = project.run("showo-dist", *words, NCCL_DEBUG="INFO", HF_TOKEN="x", COLUMNS="200")
    found = [line for line in done.stdout.splitlines() if line.startswith("127.")]
    assert [line.partition(";")[0] for line in found] == [
        f"127.0.0.{number}: interface: no eth7" for number in (1, 2)
    ], done
    environments = [path.read_text().splitlines() for path in project.folder.glob("environment-*")]
    assert len(environments) == 2
    for environment in environments:
        assert {"MINE=a b", "NCCL_DEBUG=INFO", "GLOO_SOCKET_IFNAME=eth7"} <= {*environment}
        assert "HF_TOKEN=x" not in environment


@pytest.mark.parametrize("given", [{}, {"OMP_NUM_THREADS": "3"}])
def test_a_task_of_slurm_divides_its_cores_once(project: Project, given: dict[str, str]) -> None:
    project.add("python", 'echo "$MASTER_ADDR $OMP_NUM_THREADS"')
    task = {"SLURM_JOB_NODELIST": "x", "SLURM_PROCID": "1", "SLURM_LOCALID": "1"}
    task |= {"SLURM_NTASKS": "2", "RANKS_PER_NODE": "2", "SLURM_CPUS_PER_TASK": "4"}
    done = project.run("launchers/slurm/task.sh", *TRAINING, **task, **given)
    assert done.stdout == f"one {given.get('OMP_NUM_THREADS', '4')}\n", done.stderr
