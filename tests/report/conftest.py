"""Folders of runs as the tools write them, with known contents."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from showo_data.mini import Object, Scene, draw, prompts, score
from showo_dist.evaluation.mini import save_answers, save_verdicts
from showo_dist.evaluation.mini_scores import Generated, MiniQuestion, image_scores, question_scores
from showo_dist.generation.output import save_image
from showo_dist.logging import RunLogger
from showo_dist.logging.grids import labelled_grid
from showo_dist.models.magvitv2 import MAGVITv2, MAGVITv2Config, StackConfig

CENTRES = [(14, 14), (48, 14), (14, 48), (48, 48)]


def image_of(prompt: dict[str, Any], colour: str) -> Image.Image:
    """The objects of a prompt, in ``colour`` where it names none, at places of its own."""
    wanted = [entry for entry in prompt["include"] for _ in range(entry["count"])]
    objects = [
        Object(entry["class"], entry.get("color", colour), "small", centre)
        for entry, centre in zip(wanted, CENTRES, strict=False)
    ]
    return draw(Scene(tuple(objects)))


def _settings(stage: str) -> dict[str, Any]:
    return {
        "checkpoint": f"runs/{stage}/checkpoint-000040",
        "prompts": "data/prompts.jsonl",
        "shards": "data/val-*.tar",
        "seed": 3,
        "batch": 32,
        "steps": 12,
        "guidance": 2.0,
        "temperature": 1.0,
    }


def write_evaluation(folder: Path, stage: str, wrong_every: int) -> None:
    """An evaluation in which every n-th image shows one red circle, and every n-th answer is "no"."""
    folder.mkdir(parents=True)
    circle = draw(Scene((Object("circle", "red", "large", (32, 32)),)))
    generated = []
    for index, prompt in enumerate(prompts(0, 4)):
        image = circle if index % wrong_every == 0 else image_of(prompt, "green")
        generated.append(Generated(index, prompt, image, score(image, prompt)))
    for item in generated:
        save_image(item.image, folder / item.file, _settings(stage))
    save_verdicts(generated, folder)
    questions = [
        MiniQuestion(str(i), circle, text, wanted)
        for i, (text, wanted) in enumerate(
            [("what is shown?", "a red circle"), ("how many objects are there?", "one")] * 6
        )
    ]
    answers = ["no" if i % wrong_every == 0 else q.wanted for i, q in enumerate(questions)]
    records = save_answers(questions, answers, folder)
    scores = {"framework": "mini", "settings": _settings(stage), **image_scores(generated)}
    scores["questions"] = question_scores(records)
    (folder / "scores.json").write_text(json.dumps(scores))


def write_metrics(folder: Path, steps: int, **constant: float) -> None:
    """A run whose losses fall, logged by the real logger."""
    options: dict[str, Any] = {"config": {}, "project": "p", "wandb_mode": "disabled"}
    with RunLogger(
        folder, rank=0, total_steps=steps, start_step=0, name=folder.name, **options
    ) as log:
        for step in range(1, steps + 1):
            log.log(step, {"loss": 5 / step, **{k: v / step for k, v in constant.items()}})
        if folder.name == "tokenizer":
            log.log(steps, {"eval/psnr": 23.456, "eval/codes_in_use": 11})
            circle = image_of({"include": [{"class": "circle", "count": 2}]}, "blue")
            log.images(steps, "reconstruction", labelled_grid([[circle] * 8] * 2), "pairs")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Tokenizer, pre-training, RecA and both evaluations."""
    root = tmp_path / "runs" / "mini"
    write_metrics(root / "tokenizer", 30, codes_in_use=300, code_perplexity=200)
    stack = StackConfig(channels=4, multipliers=[1, 1], res_blocks=[0, 0])
    config = MAGVITv2Config(resolution=16, norm_groups=2, encoder=stack, decoder=stack)
    MAGVITv2(config).save_pretrained(root / "tokenizer" / "final")
    speed = {"tokens_per_s": 9000.0, "samples_per_s": 80.0, "step_s": 2.0, "data_wait_s": 0.5}
    write_metrics(
        root / "pretrain", 40, **{"loss/t2i": 4.0, "loss/mmu": 3.0, "loss/lm": 2.0}, **speed
    )
    write_metrics(root / "reca", 20, **{"loss/recon": 1.0, "loss/mmu": 2.0}, memory_gb=3.0)
    write_evaluation(root / "eval-pretrain", "pretrain", wrong_every=2)
    write_evaluation(root / "eval-reca", "reca", wrong_every=5)
    return root
