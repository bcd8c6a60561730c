"""Stand-ins for everything that a reproduction downloads, for its miniature.

    python -m showo_dist.recipe.stand_ins FOLDER config=FILE

Data and prompts come from the mini world, in the formats of the published sets. The networks have the sizes
of the training config, and random weights. Equal configs give equal bytes.
"""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from showo_data.mini import prompts
from showo_data.mini.writing import image_sample
from showo_dist.checkpoint.parts import save_tensors
from showo_dist.config import TrainConfig, load, to_yaml
from showo_dist.models.magvitv2 import MAGVITv2
from showo_dist.models.magvitv2.config import MAGVITv2Config, StackConfig
from showo_dist.models.showo import build_showo
from showo_dist.models.weights.folder import CONFIG_NAME, SAFETENSORS_NAME
from showo_dist.models.weights.pretrained import config_json
from showo_dist.recipe import stand_in_scorers
from showo_dist.sequences.train_tokenizer import train

IMAGES = 16
PROMPTS_PER_TAG = 1
SEED = 0


def write_data(root: Path) -> list[str]:
    """Write ``recon.parquet``, ``llava.json`` and ``images``; returns all texts."""
    import pyarrow
    from pyarrow import parquet

    samples = [image_sample(SEED, index) for index in range(IMAGES)]
    images = root / "images"
    images.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    items: list[dict[str, Any]] = []
    for sample in samples:
        name = f"{sample['__key__']}.png"
        (images / name).write_bytes(sample["png"])
        rows.append({"id": name, "prompt": sample["txt"], "image": {"bytes": sample["png"]}})
        items.append({"image": name, "conversations": sample["json"]["conversations"]})
    parquet.write_table(pyarrow.Table.from_pylist(rows), root / "recon.parquet")
    (root / "llava.json").write_text(json.dumps(items))
    turns = [turn["value"] for item in items for turn in item["conversations"]]
    return [*turns, *(row["prompt"] for row in rows)]


def write_prompts(root: Path) -> None:
    """Write prompts as GenEval, DPG-Bench and WISE have them."""
    asked = prompts(SEED, PROMPTS_PER_TAG)
    lines = [json.dumps(prompt) for prompt in asked]
    (root / "geneval.jsonl").write_text("\n".join([*lines, ""]))
    for folder in ("dpg", "wise"):
        (root / folder).mkdir(exist_ok=True)
    entries = []
    for number, prompt in enumerate(asked, start=1):
        (root / "dpg" / f"{prompt['tag']}.txt").write_text(prompt["prompt"])
        about = {"Explanation": "stand-in", "Category": "stand-in", "Subcategory": prompt["tag"]}
        entries.append({"Prompt": prompt["prompt"], "prompt_id": number, **about})
    (root / "wise" / "stand-in.json").write_text(json.dumps(entries))


def write_networks(root: Path, config: TrainConfig, texts: Iterator[str]) -> None:
    """Write tokenizers, the CLIP tower and Show-o with random weights of the config's sizes."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    showo, resolution = config.model.showo, config.dataset.preprocessing.resolution
    train(texts, showo.llm_vocab_size).save_pretrained(root / "text")
    torch.manual_seed(SEED)
    stack = StackConfig(channels=8, multipliers=[1, 1, 1, 1], res_blocks=[0, 0, 0, 1])
    bits = (showo.codebook_size - 1).bit_length()
    sizes = MAGVITv2Config(
        resolution=resolution, bits=bits, norm_groups=4, encoder=stack, decoder=stack
    )
    MAGVITv2(sizes).save_pretrained(root / "vq")
    patches = round(showo.clip_tokens**0.5)
    tower = CLIPVisionConfig(
        hidden_size=showo.clip_dim,
        intermediate_size=2 * showo.clip_dim,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=8 * patches,
        patch_size=8,
    )
    CLIPVisionModel(tower).save_pretrained(root / "clip")
    folder = root / "show-o"
    folder.mkdir(exist_ok=True)
    model = build_showo(showo)
    state = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    save_tensors(state, folder / SAFETENSORS_NAME)
    (folder / CONFIG_NAME).write_text(config_json(showo, model))
    (folder / "config.yaml").write_text(to_yaml(config))


def main(argv: list[str]) -> None:
    """``FOLDER config=FILE``: write everything to FOLDER."""
    root, config = Path(argv[0]), load(argv[1:], TrainConfig, check=False)
    texts = write_data(root)
    write_prompts(root)
    shutil.copyfile(stand_in_scorers.__file__, root / "scorers.py")
    write_networks(root, config, iter(texts))


if __name__ == "__main__":
    main(sys.argv[1:])
