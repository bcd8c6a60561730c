"""The web server of a flow's shards dies: samples are skipped, until they are too many."""

import re
from contextlib import ExitStack
from pathlib import Path

import pytest

from showo_dist.logging import read_metrics
from showo_launch.exit_codes import USER_ERROR
from tests.data.server import serving_apart
from tests.faults.processes import start
from tests.training.conftest import TinyWorld

LIMIT_S = 300.0
OF_SERVER = 1  # samples per step of the flow whose server dies
LIMIT = 0.05


@pytest.mark.slow
def test_a_run_goes_on_without_its_server_and_ends_with_one_line(
    tiny_world: TinyWorld, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with ExitStack() as server:
        url = server.enter_context(serving_apart(tiny_world.data, lambda path, before: None))
        arguments = [
            f"config={tiny_world.config}",
            f"experiment.output_dir={run}",
            f"dataset.params.train_lm_shards_path_or_url={url}/text-000000.tar",
            f"data.cache_dir={tmp_path}/cache",
            # A dead server refuses at once, but retries and their pauses take seven seconds.
            "data.timeout_s=20",
            f"data.max_bad_fraction={LIMIT}",
            "training.max_train_steps=1000000",
        ]
        life = start(arguments, run, 1)
        life.wait_for_step(3, LIMIT_S)
        server.close()  # kills the process
    last = read_metrics(run / "metrics.jsonl")[-1]["step"]
    assert life.codes(LIMIT_S) == [USER_ERROR], life.printed()
    wanted = rf"data\.max_bad_fraction = {LIMIT}: .* samples are bad: .*http-unreachable.*{url}"
    assert len(re.findall(wanted, life.printed(0))) >= 1, life.printed()
    assert "Traceback" not in life.printed()
    lines = read_metrics(run / "metrics.jsonl")
    # Fewer than 200 samples count as 200, so that many steps at least had a bad sample.
    assert lines[-1]["step"] >= min(last, 3) + int(LIMIT * 200 / OF_SERVER) - 2
    assert lines[-1]["skipped"] > LIMIT * 200 / 2
    assert all(line["loss"] is not None for line in lines), "the other flows were trained on"
