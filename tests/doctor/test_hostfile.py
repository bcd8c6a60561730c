"""Hostfiles are read as by DeepSpeed; a line that it would misread is refused with what to write."""

import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from showo_launch.doctor.sessions import find_hosts
from showo_launch.hostfile import address, read_hostfile
from tests.conftest import ROOT


def _file(folder: Path, content: str | bytes) -> Path:
    path = folder / "hosts"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("b slots=2\na slots=8\n", {"b": 2, "a": 8}),
        ("a slots=2\r\n\r\nb slots=2\r\n", {"a": 2, "b": 2}),
        ("a slots=2\r\rb slots=2", {"a": 2, "b": 2}),
        ("\ufeffa slots=2\n", {"a": 2}),
        ("# none\n\n  \t\n a\tslots=2 # two\n#b slots=1\n", {"a": 2}),
        ("me@a.example slots=02 max_slots=4\n", {"me@a.example": 2}),
        ("10.0.0.1 slots=1\nfd00:0::1 slots=1\nfe80::1%eth0 slots=1\nme@10.0.0.2 slots=1",
         {"10.0.0.1": 1, "fd00::1": 1, "fe80::1%eth0": 1, "me@10.0.0.2": 1}),
    ],
)  # fmt: skip
def test_hosts_and_slots(tmp_path: Path, content: str, expected: dict[str, int]) -> None:
    assert list(read_hostfile(_file(tmp_path, content)).items()) == list(expected.items())


@pytest.mark.parametrize(
    ("content", "line", "advice"),
    [
        ("a slots=1\nb\n", 2, "b has no slots; write b slots=N"),
        ("b max_slots=4", 1, "b has no slots; write b slots=N"),
        ("a slot=2", 1, "'slot=2' after a is not slots=N; write a slots=N"),
        ("a Slots=2", 1, "write a slots=N"),
        ("a slots = 2", 1, "'slots' after a is not slots=N"),
        ("a slots=", 1, "write a slots=N"),
        ("a slots=0", 1, "'slots=0' after a is not slots=N; write a slots=N, N at least 1"),
        ("a slots=two", 1, "'slots=two'"),
        ("a slots=2,", 1, "'slots=2,'"),
        ("a slots=2 slots=2", 1, "slots twice"),
        ("a slots=4 max_slots=2", 1, "max_slots is below slots=4"),
        ("a slots=2 b slots=2", 1, "'b' after a"),
        ("\n\na slots=1\n# a\na slots=1", 5, "a is in line 3 already; write each host once"),
        ("a slots=1\nme@A slots=1", 2, "me@A is in line 1 already"),
        ("fd00::1 slots=1\nfd00:0::1 slots=1", 2, "in line 1 already"),
        ("a:8 slots=1", 1, "'a:8' is neither a name nor an address"),
        ("[fd00::1] slots=1", 1, "without brackets"),
        ("node[1-6] slots=1", 1, "one host per line"),
        (
            "me@fd00::1 slots=1",
            1,
            "pdsh takes no user before an IPv6 address; write fd00::1 slots=N",
        ),
        ("@a slots=1", 1, "no user before the @"),
        ("me@ slots=1", 1, "not the name of a host"),
        ("-oProxyCommand=x slots=1", 1, "not the name of a host"),
    ],
)
def test_a_bad_line_is_named_with_what_to_write(
    tmp_path: Path, content: str, line: int, advice: str
) -> None:
    path = _file(tmp_path, content)
    with pytest.raises(ValueError) as raised:
        read_hostfile(path)
    assert str(raised.value).startswith(f"{path}:{line}: ") and advice in str(raised.value)


@pytest.mark.parametrize(
    ("content", "problem"),
    [("", "no host"), ("# a slots=1\n", "no host"), ("a slots=1".encode("utf-16"), "UTF-8")],
)
def test_a_bad_file_is_named(tmp_path: Path, content: str | bytes, problem: str) -> None:
    path = _file(tmp_path, content)
    with pytest.raises(ValueError, match=problem) as raised:
        read_hostfile(path)
    assert str(raised.value).startswith(f"{path}: ")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="/nowhere/hosts: No such file"):
        read_hostfile(Path("/nowhere/hosts"))


def test_deepspeed_reads_the_printed_lines_alike(tmp_path: Path) -> None:
    from deepspeed.launcher.runner import fetch_hostfile

    path = _file(tmp_path, "\ufeff# x\r\nme@a max_slots=9 slots=2\r\n\r\nfd00::1 slots=1 # y\r\n")
    expected = {"me@a": 2, "fd00::1": 1}
    assert read_hostfile(path) == expected
    _file(tmp_path, _bash(f'read_hosts {path}; echo "$hostfile_lines"').stdout)
    assert dict(fetch_hostfile(str(path))) == expected


def test_doctor_uses_the_user_for_ssh_only(tmp_path: Path) -> None:
    (host,) = find_hosts(_file(tmp_path, "me@127.0.0.1 slots=3"))
    assert (host.name, host.slots, host.way) == ("me@127.0.0.1", 3, "ssh")
    assert host.resolve() == address(host.name) == "127.0.0.1"
    (host,) = find_hosts(_file(tmp_path, "::1 slots=3"))
    assert host.resolve() == "::1"


def _bash(commands: str) -> subprocess.CompletedProcess[str]:
    """Commands in a shell that has the functions of the launchers."""
    script = f"set -euo pipefail; source launchers/common.sh; {commands}"
    return subprocess.run(
        ["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


def test_the_shell_scripts_read_the_same(tmp_path: Path) -> None:
    path = _file(tmp_path, "\ufeffme@a slots=2\r\n\r\nfd00::1 slots=3 # x\r\n")
    done = _bash(f"read_hosts {path}; echo ${{hosts[*]}} ${{slots_of[*]}}")
    assert (done.returncode, done.stdout) == (0, "a fd00::1 2 3\n"), done.stderr


@pytest.mark.parametrize(
    ("content", "line"), [("a\n", "hosts:1: a has no slots"), (None, "No such")]
)
def test_the_shell_scripts_end_with_the_same_line(
    tmp_path: Path, content: str | None, line: str
) -> None:
    path = tmp_path / "hosts" if content is None else _file(tmp_path, content)
    done = _bash(f"read_hosts {path}; echo not here")
    assert (done.returncode, done.stdout) == (2, "")
    assert line in done.stderr and done.stderr.count("\n") == 1


def test_reading_is_quick_and_needs_no_installed_package() -> None:
    """Without site-packages, as the scripts call it."""
    words = [sys.executable, "-S", "-m", "showo_launch.hostfile", str(ROOT / "launchers" / "hosts")]
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run(words, cwd=ROOT / "launchers", check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.3, seconds


def test_the_variables_that_other_hosts_get() -> None:
    passed = [
        "NCCL_DEBUG=INFO",
        "https_proxy=http://p:3128",
        "NO_PROXY=a,b",
        "all_proxy=socks5://p",
    ]
    kept = [
        "HF_TOKEN=x",
        "http_proxy=http://me:word@p:3128",
        "MY_NCCL_DEBUG=1",
        "no_proxy_list=1",
        "DS_ENV_FILE=/x",
    ]
    listed = " ".join(shlex.quote(word) for word in (*passed, *kept))
    done = _bash(f"env() {{ command env -i {listed} env; }}; passed_environment")
    assert (done.returncode, sorted(done.stdout.splitlines())) == (0, sorted(passed)), done.stderr


@pytest.mark.parametrize("name", ["plain", "it's", 'a "q" b', "x=y [1] {2}", "$HOME", " -n"])
def test_the_shell_scripts_put_logs_into_the_folder_of_the_run(tmp_path: Path, name: str) -> None:
    words = ["config=configs/mini/pretrain.yaml", f"experiment.output_dir={tmp_path}/{name}"]
    listed = " ".join(shlex.quote(word) for word in words)
    done = _bash(f'training_arguments=({listed}); prepare_run; printf %s "$logs"')
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/{name}/logs"), done.stderr
    assert Path(done.stdout).is_dir()
