"""Train the understanding encoder of the CLIP variants: a small CLIPModel, on complete captions.

The folder is read like a released one (``model.clip_model_name``). A patch has the size of a code's cell.
"""

import argparse
import json
from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel

from mini_paper.arms import PATCH, WIDTH
from showo_data import FlowSpec, Sample, Source, clip_transform
from showo_data.files import folder_aside
from showo_dist.logging.progress import progress_display
from showo_dist.mini import TEXT_TOKENS
from showo_dist.sequences import TextEncoder

TEXT_LENGTH = 48
BATCH = 64
# Images of the held-out shards among which each caption has to find its own.
HELD_OUT = 64
_BLOCKS = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 4}


class Pairs:
    """Images and captions of shards.

    Args:
        pattern: shards, as a brace pattern.
        size: side of the images in pixels.
        text: the text tokenizer.
    """

    def __init__(self, pattern: str, size: int, text: TextEncoder) -> None:
        transform = clip_transform(size)
        self._source = Source(
            FlowSpec(
                flow="clip",
                kind="caption",
                urls=(pattern,),
                batch=1,
                transform=transform,
                encoded=(),
            )
        )
        self._text = text

    def read(self, start: int, count: int) -> dict[str, torch.Tensor]:
        """The arguments of ``CLIPModel`` for ``count`` pairs; texts end, and are padded, with eos."""
        samples = [self._sample(start + i) for i in range(count)]
        ids = [self._text.encode(s.text or "", TEXT_LENGTH - 1) for s in samples]
        rows = [[*row, *[self._text.eos] * (TEXT_LENGTH - len(row))] for row in ids]
        pixels = torch.stack([s.image_3HW for s in samples if s.image_3HW is not None])
        return {"input_ids": torch.tensor(rows), "pixel_values": pixels}

    def _sample(self, position: int) -> Sample:
        found = self._source[position]
        if not isinstance(found, Sample):
            raise ValueError(f"{found.shard}: {found.reason}; write the data again")
        return found


def build(size: int, end: int) -> CLIPModel:
    """A model with random weights.

    Args:
        size: side of its images in pixels.
        end: id of eos, whose row is the text's.
    """
    text = {"vocab_size": TEXT_TOKENS, "eos_token_id": end, "max_position_embeddings": TEXT_LENGTH}
    vision = {"image_size": size, "patch_size": PATCH}
    return CLIPModel(
        CLIPConfig(
            text_config={**_BLOCKS, **text, "num_hidden_layers": 2},
            vision_config={**_BLOCKS, **vision, "num_hidden_layers": 3},
            projection_dim=WIDTH // 2,
        )
    )


def train(model: CLIPModel, pairs: Pairs, steps: int) -> float:
    """Train contrastively, with a rate that rises and falls; returns the mean loss of the last tenth."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    progress = progress_display("CLIP", steps)
    losses = []
    for step in range(steps):
        loss = model(**pairs.read(step * BATCH, BATCH), return_loss=True).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(float(loss))
        progress.log(step + 1, {"loss": losses[-1]})
    progress.close()
    tail = losses[-max(1, steps // 10) :]
    return sum(tail) / len(tail)


@torch.no_grad()
def retrieval(model: CLIPModel, pairs: Pairs) -> float:
    """Share of held-out captions that are nearest to their own image among ``HELD_OUT``."""
    logits = model.eval()(**pairs.read(0, HELD_OUT)).logits_per_text
    return float((logits.argmax(-1) == torch.arange(len(logits))).float().mean())


def main(argv: list[str]) -> None:
    """Train and save."""
    parser = argparse.ArgumentParser("mini_paper.py clip", description=__doc__)
    parser.add_argument("--shards", required=True, help="with complete captions")
    parser.add_argument("--held-out", required=True, help="shards to measure retrieval on")
    parser.add_argument("--tokenizer", required=True, help="text tokenizer")
    parser.add_argument("--size", type=int, default=64, help="pixels (%(default)s)")
    parser.add_argument("--steps", type=int, default=400, help="of 64 pairs (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(argv)
    torch.manual_seed(options.seed)
    text = TextEncoder(options.tokenizer, TEXT_TOKENS)
    model = build(options.size, text.eos)
    loss = train(model, Pairs(options.shards, options.size, text), options.steps)
    found = retrieval(model, Pairs(options.held_out, options.size, text))
    with folder_aside(options.out, replace=True) as folder:
        model.save_pretrained(folder)
        record = {"size": options.size, "steps": options.steps, "loss": loss, "retrieval": found}
        (folder / "training.json").write_text(json.dumps(record) + "\n")
    print(
        f"{options.out}: loss {loss:.3f}, {found:.0%} of {HELD_OUT} held-out captions find their image"
    )
