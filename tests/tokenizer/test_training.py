"""Real training runs: the same curve on any number of ranks, exact resume, metrics and warnings."""

import io
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from showo_data.shards import OpenShards, write_shard
from showo_dist.config.loader import load_file as load_config
from showo_dist.logging import read_metrics
from showo_dist.models.magvitv2 import MAGVITv2
from showo_dist.runtime.ranks import Ranks
from showo_dist.tokenizer.__main__ import main
from showo_dist.tokenizer.batches import training_batches, validation_images
from showo_dist.tokenizer.config import TokenizerConfig
from showo_dist.tokenizer.trainer import Trainer
from tests.holding import refused_then_done
from tests.tokenizer.conftest import TINY

ALONE = Ranks(0, 1, torch.device("cpu"))


def values(shards: Path, out: Path, **more: Any) -> dict[str, Any]:
    """The config of a short run; ``more`` are dotted keys with ``__`` for the dot."""
    config: dict[str, Any] = {
        "model": TINY,
        "dataset": {"shards": str(shards / "train-{000000..000002}.tar"), "validation_images": 4},
        "experiment": {"output_dir": str(out), "log_every": 1},
        "optimizer": {"learning_rate": 2e-3, "warmup_steps": 2},
        "training": {"max_train_steps": 8, "batch_size": 8, "mixed_precision": "fp32"},
        "loss": {"codebook": "joint"},
        "wandb": {"mode": "disabled"},
    }
    for key, value in more.items():
        section, _, name = key.partition("__")
        config[section] = {**config[section], name: value}
    return config


def config_of(path: Path, config: dict[str, Any]) -> TokenizerConfig:
    path.write_text(json.dumps(config))  # JSON is YAML
    return load_config(path, schema=TokenizerConfig)


def curve(run_folder: Path, name: str = "loss") -> list[float]:
    return [line[name] for line in read_metrics(run_folder / "metrics.jsonl") if name in line]


def png_samples(shard: Path, count: int) -> list[dict[str, Any]]:
    """The first images of a shard, as samples without their texts."""
    files = OpenShards()
    table = files.table(str(shard))
    return [
        {"__key__": table.key(i), "png": files.read(str(shard), member)}
        for i in range(count)
        for member in table.members(i)
        if member.extension == "png"
    ]


def test_images_beside_their_codes_are_read(shards: Path, tmp_path: Path) -> None:
    """Codes of another tokenizer, as ``encode --keep-images`` stores them, replace no image here."""
    codes = io.BytesIO()
    np.save(codes, np.zeros(16, np.uint16))
    images = png_samples(shards / "train-000000.tar", 4)
    encoded = [{**image, "codes.npy": codes.getvalue()} for image in images]
    write_shard(tmp_path / "a.tar", encoded)
    raw = values(shards, tmp_path / "run", dataset__shards=str(tmp_path / "a.tar"))
    config = config_of(tmp_path / "a.yaml", raw)
    batch = next(training_batches(config, ALONE, 0))
    assert (batch.read, len(batch.pixels_B3HW), batch.skipped) == (8, 8, [])
    assert len(validation_images(config)) == 4


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(shards: Path, tmp_path: Path) -> None:
    """Also if a rank's share of a step is a single image, and that one is unreadable."""
    images = png_samples(shards / "train-000000.tar", 20)
    for number in (3, 4, 11):
        images[number]["png"] = b"no image"
    write_shard(tmp_path / "some-broken.tar", images)
    folders = {"one": tmp_path / "one", "two": tmp_path / "two"}
    for name, folder in folders.items():
        config = values(shards, folder, dataset__shards=str(tmp_path / "some-broken.tar"))
        config["dataset"]["max_bad_fraction"] = 0.5
        config["training"] |= {"batch_size": 2, "max_train_steps": 12}
        (tmp_path / f"{name}.yaml").write_text(json.dumps(config))
    Trainer(load_config(tmp_path / "one.yaml", schema=TokenizerConfig), ALONE).train()
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    subprocess.run(
        [*launch, "-m", "showo_dist.tokenizer", f"config={tmp_path / 'two.yaml'}"],
        check=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    for name in ("loss", "grad_norm", "joint_entropy", "codes_in_use"):
        one, two = (curve(folder, name) for folder in folders.values())
        torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: n + m)
    loss = curve(folders["two"])
    assert loss[-1] < 0.8 * loss[0]


def test_resumed_run_is_the_uninterrupted_one(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    every = {"experiment__save_every": 3, "experiment__keep_last": 0}
    config = config_of(tmp_path / "config.yaml", values(shards, out, **every))
    expected = load_file(Trainer(config, ALONE).train() / "model.safetensors")
    losses = curve(out)
    for late in ("step-00000006", "step-00000008", "final"):  # as if killed in step 5
        shutil.rmtree(out / late)
    (out / ".step-00000006.partial").mkdir()  # begun, never finished

    resumed = Trainer(config, ALONE)
    assert resumed.step == 3
    weights = load_file(resumed.train() / "model.safetensors")
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
    assert curve(out) == losses


def test_one_run_writes_to_a_folder(shards: Path, tmp_path: Path) -> None:
    run, path = tmp_path / "run", tmp_path / "config.yaml"
    path.write_text(json.dumps(values(shards, run, training__max_train_steps=1)))
    refused_then_done(run, lambda: main([f"config={path}"]))
    assert (run / "final").is_dir()


def test_finished_run_is_not_trained_again(shards: Path, tmp_path: Path) -> None:
    config = config_of(tmp_path / "config.yaml", values(shards, tmp_path / "run"))
    final = Trainer(config, ALONE).train() / "model.safetensors"
    expected, written = load_file(final), final.stat().st_mtime_ns
    again = Trainer(config, ALONE)
    assert again.step == 8
    again.train()
    assert final.stat().st_mtime_ns > written
    assert all(torch.equal(load_file(final)[name], value) for name, value in expected.items())
    assert len(curve(tmp_path / "run")) == 8


def test_run_reports_what_it_does(shards: Path, tmp_path: Path) -> None:
    more = {"experiment__eval_every": 4, "training__mixed_precision": "bf16"}
    config = config_of(tmp_path / "config.yaml", values(shards, tmp_path / "run", **more))
    final = Trainer(config, ALONE).train()
    run = tmp_path / "run"
    assert [p.name for p in sorted((run / "images").iterdir())] == [
        "reconstruction-000004.png",
        "reconstruction-000008.png",
    ]
    psnr = curve(run, "eval/psnr")
    assert len(psnr) == 2 and 0 < psnr[0] < psnr[1]
    line = read_metrics(run / "metrics.jsonl")[-2]
    assert line["step"] == 8 and 0 < line["codes_in_use"] <= 16 and line["images_per_s"] > 0
    assert load_config(run / "config.yaml", schema=TokenizerConfig) == config
    assert MAGVITv2.from_pretrained(final).config == config.model


def test_collapse_is_announced(shards: Path, tmp_path: Path) -> None:
    weights = {"loss__codebook_entropy": 0.0, "loss__sample_entropy": 100.0, "loss__l1": 0.0}
    more = weights | {"loss__l2": 0.0, "optimizer__learning_rate": 0.05}
    config = config_of(tmp_path / "config.yaml", values(shards, tmp_path / "run", **more))
    Trainer(config, ALONE).train()
    assert "CODEBOOK COLLAPSE" in (tmp_path / "run" / "events.jsonl").read_text()


def test_unreadable_images_are_absent_and_bounded(shards: Path, tmp_path: Path) -> None:
    samples = png_samples(shards / "train-000000.tar", 8)
    write_shard(tmp_path / "good.tar", samples[:7])
    broken = [*samples[:7], {**samples[7], "png": b"no image"}]
    write_shard(tmp_path / "broken.tar", broken)
    final = {}
    for name, size in (("good", 7), ("broken", 8)):
        config = values(shards, tmp_path / name, dataset__shards=str(tmp_path / f"{name}.tar"))
        config["dataset"] |= {"max_bad_fraction": 0.2, "streams": 1}
        config["training"]["batch_size"] = size  # a step is an epoch
        final[name] = curve_of(config, tmp_path)
    torch.testing.assert_close(final["broken"], final["good"], rtol=1e-4, atol=1e-5)

    config["dataset"]["max_bad_fraction"] = 0.01  # of the first 200 samples: two
    config["experiment"]["output_dir"] = str(tmp_path / "strict")
    (tmp_path / "strict.yaml").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"dataset\.max_bad_fraction = 0\.01: .* are bad") as error:
        main([f"config={tmp_path / 'strict.yaml'}"])
    assert f"broken-image 3; most in {tmp_path / 'broken.tar'} 3" in str(error.value)


def curve_of(config: dict[str, Any], tmp_path: Path) -> list[float]:
    Trainer(config_of(tmp_path / "config.yaml", config), ALONE).train()
    return curve(Path(config["experiment"]["output_dir"]))


def test_another_batch_size_goes_on_at_the_same_image(shards: Path, tmp_path: Path) -> None:
    """After 4 steps of 8 images the next step begins with image 32, whatever the size of the batches."""
    run = tmp_path / "run"
    config = values(shards, run, training__max_train_steps=4)
    Trainer(config_of(tmp_path / "a.yaml", config), ALONE).train()
    config = values(shards, run, training__batch_size=4, training__max_train_steps=6)
    config["experiment"]["resume_from_checkpoint"] = "latest"
    trainer = Trainer(config_of(tmp_path / "a.yaml", config), ALONE)
    assert (trainer.step, trainer.position) == (4, 32)
    trainer.train()
    assert json.loads((run / "step-00000006" / "state.json").read_text())["position"] == 40


def test_steps_without_a_finite_gradient_change_nothing_and_end_the_run(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = values(shards, tmp_path / "run", experiment__save_every=1)
    trainer = Trainer(config_of(tmp_path / "a.yaml", config), ALONE)
    trainer.config.training.max_train_steps = 100
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    weight = next(trainer.model.parameters())
    weight.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(
        ValueError, match=r"optimizer\.learning_rate = 0\.002: .* 10 steps in a row"
    ):
        trainer.train()
    after = trainer.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    resumed = Trainer(config_of(tmp_path / "a.yaml", config), ALONE)
    assert resumed.step == 9, "without moments, which no gradient has made"


def test_a_damaged_checkpoint_is_named(shards: Path, tmp_path: Path) -> None:
    config = values(shards, tmp_path / "run", training__max_train_steps=2)
    config["experiment"]["save_every"] = 1
    Trainer(config_of(tmp_path / "a.yaml", config), ALONE).train()
    moments = tmp_path / "run" / "step-00000002" / "optimizer.safetensors"
    moments.write_bytes(moments.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"step-00000002: optimizer\.safetensors .*cannot be read"):
        Trainer(config_of(tmp_path / "a.yaml", config), ALONE)


def test_a_run_that_was_set_back_goes_on_from_its_own_checkpoint(
    shards: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    config = values(shards, run, experiment__save_every=2, experiment__keep_last=0)
    Trainer(config_of(tmp_path / "a.yaml", config), ALONE).train()
    back = values(shards, run, training__max_train_steps=3)
    back["experiment"]["resume_from_checkpoint"] = str(run / "step-00000002")
    Trainer(config_of(tmp_path / "a.yaml", back), ALONE).train()
    assert (run / "step-00000008").is_dir()
    again = Trainer(config_of(tmp_path / "a.yaml", config), ALONE)
    assert again.step == 3
