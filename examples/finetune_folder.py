"""Fine-tune Show-o on a folder of your own images and captions, and compare its images before and after.

    python examples/finetune_folder.py FOLDER --model MODEL --out runs/mine [--steps N] [key=value …]

FOLDER holds images; the caption of ``cat.jpg`` is in ``cat.txt`` beside it. MODEL is a checkpoint of this
project, a released folder or a hub id. Any config key may follow (docs/configuration.md). With the released
weights on one GPU, training adapters (LoRA) instead of all weights:

    python examples/finetune_folder.py photos --model showlab/show-o-512x512 --out runs/photos --steps 1000 \\
        lora.rank=16 lora.alpha=32 optimizer.params.learning_rate=1.0e-4 model.gradient_checkpointing=true

All weights on eight GPUs: leave out the ``lora`` keys and add ``--launch "deepspeed --num_gpus 8 --module"``.
``showo-dist plan config=runs/photos/finetune.yaml`` predicts the memory. A second call resumes the training
from its last checkpoint. The results are ``checkpoint-…`` and ``before-after.png`` in the folder of the run.
"""

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

from showo_data.convert import Target, convert, folder_items
from showo_dist.config import to_yaml
from showo_dist.config.rules import check
from showo_dist.generation import Pipeline
from showo_dist.generation.networks import read_model_config
from showo_dist.logging.grids import labelled_grid

SHOWN = 6  # captions to generate images for, before and after


def write_shards(folder: Path, out: Path) -> str:
    """Convert the folder to shards and return their pattern."""
    report = convert(folder_items(folder), Target(out=out, settings={"source": str(folder)}))
    print(report.summary())
    return f"{out}/train-{{000000..{report.all_shards - 1:06d}}}.tar"


def write_config(model: str, out: Path, shards: str, steps: int, changes: list[str]) -> Path:
    """Derive the config of the run from the model's own: the text-to-image flow alone, on the shards."""
    settings = {
        "experiment.name": out.name,
        "experiment.output_dir": out,
        "experiment.init_from": model,
        "experiment.save_every": max(1, steps // 4),
        "experiment.keep_last": 1,
        "experiment.eval_every": 0,
        "experiment.generate_every": 0,
        "experiment.log_every": 10,
        "dataset.gen_type": "t2i",
        "dataset.params.train_t2i_shards_path_or_url": shards,
        "training.max_train_steps": steps,
        "training.t2i_coeff": 1.0,
        "training.batch_size_t2i": 4,
        "training.batch_size_lm": -1,
        "training.batch_size_mmu": -1,
        "training.batch_size_recon": -1,
        "training.batch_size_edit": -1,
        # The model's own optimizer and schedule are those of its training.
        "optimizer.name": "adamw",
        "optimizer.trained": "all",
        "optimizer.params.learning_rate": 1.0e-5,
        "lr_scheduler.steps": "null",
        "lr_scheduler.params.learning_rate": "null",
        "lr_scheduler.params.warmup_steps": steps // 10,
    }
    config = read_model_config(model, [*(f"{k}={v}" for k, v in settings.items()), *changes])
    check(config)
    path = out / "finetune.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description="Fine-tune on a folder of images and captions.")
    parser.add_argument("folder", type=Path, help="images, each with its caption in a .txt file")
    parser.add_argument("changes", nargs="*", metavar="key=value", help="config keys")
    parser.add_argument("--model", required=True, help="weights to start from")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--steps", type=int, default=500, help="optimizer steps (%(default)s)")
    parser.add_argument("--launch", default=f"{sys.executable} -m", help="launcher (%(default)s)")
    options = parser.parse_intermixed_args()
    captions = [path.read_text(encoding="utf-8") for path in sorted(options.folder.rglob("*.txt"))]
    if not captions:
        parser.error(f"{options.folder} holds no captions: cat.jpg needs a cat.txt beside it")

    shards = write_shards(options.folder, options.out / "shards")
    config = write_config(options.model, options.out, shards, options.steps, options.changes)
    launcher = shlex.split(options.launch)
    subprocess.run([*launcher, "showo_dist.train", f"config={config}"], check=True)

    tuned = options.out / f"checkpoint-{options.steps:06d}"
    rows = [Pipeline.load(model).generate(captions[:SHOWN]) for model in (options.model, tuned)]
    grid = labelled_grid(rows, captions[:SHOWN], ["before", "after"], tile=256)
    grid.save(options.out / "before-after.png")
    print(f"{tuned} and {options.out / 'before-after.png'}")


if __name__ == "__main__":
    main()
