r"""Score the samplers of image codes on the mini world, and bound what reusing keys and values could gain.

    OMP_NUM_THREADS=1 python benchmarks/samplers.py runs/mini/pretrain/checkpoint-002200 \
        --prompts data/mini/prompts.jsonl [--limit 20] [--seeds 0 1 2] [--steps 24] [--json FILE]

Every setting generates the same prompts with the same seeds, in as many rounds, and is scored by the mini
world's checker with a 95 % Wilson interval. The bound: a round that kept the keys and values of generated
codes would compute the masked rows alone. It is timed with so many rows, as if keeping them cost nothing.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from common import Clock, interleaved, report

from showo_data.mini import TAGS, score
from showo_dist.evaluation.mini import read_prompts
from showo_dist.evaluation.mini_scores import wilson
from showo_dist.generation import Pipeline, SamplingOptions
from showo_dist.generation.cache import PrefixCache
from showo_dist.generation.samplers import SAMPLERS
from showo_dist.sequences.builders import t2i_prompt

ALL = 0  # as many rounds as an image has codes
CHANGES: dict[str, dict[str, Any]] = {
    **{name: {"sampler": name} for name in SAMPLERS if name != "one-by-one"},
    "remdm, 30 %": {"sampler": "remdm", "remask": 0.3},
    "refine, 20 %": {"sampler": "refine", "remask": 0.2},
    "top-p 0.9": {"top_p": 0.9},
    "top-p 0.6": {"top_p": 0.6},
    "linear guidance": {"guidance_schedule": "linear"},
    "guidance in the first 80 %": {"guidance_interval": (0.0, 0.8)},
    "guidance from 20 % on": {"guidance_interval": (0.2, 1.0)},
    "confidence, all rounds": {"steps": ALL},
    "refine, all rounds": {"sampler": "refine", "steps": ALL},
    "one-by-one": {"sampler": "one-by-one", "steps": ALL},
}


def scored(
    pipeline: Pipeline, options: SamplingOptions, prompts: list[dict[str, Any]], seeds: list[int]
) -> dict[str, Any]:
    """Generate every prompt once per seed; returns correct images, in all and per category."""
    right = dict.fromkeys(TAGS, 0)
    start = time.perf_counter()
    for seed in seeds:
        texts = [prompt["prompt"] for prompt in prompts]
        for prompt, image in zip(prompts, pipeline.generate(texts, options, seed), strict=True):
            right[prompt["tag"]] += score(image, prompt).correct
    count, found = len(prompts) * len(seeds), sum(right.values())
    low, high = wilson(found, count)
    interval = f"{low:.0%} to {high:.0%}"
    timed = {"seconds": time.perf_counter() - start}
    return {"right": found, "of": count, "share": found / count, "95 %": interval} | right | timed


def masked_share(options: SamplingOptions, tokens: int) -> float:
    """Share of the image's codes that are masked before a round, on average over the rounds."""
    counts = [float(tokens)]
    for step in range(1, options.steps):
        wanted = int(tokens * options.schedule(torch.tensor(step / options.steps)))
        counts.append(max(1, min(wanted, counts[-1] - 1)))
    return fmean(counts) / tokens


def round_times(pipeline: Pipeline, tokens: int, masked: int, repeats: int) -> tuple[float, float]:
    """CPU seconds of a round over all image rows, and of one over the masked rows alone, for 32 images."""
    blank_N = torch.full((tokens,), pipeline.vocabulary.codebook)
    prompt = t2i_prompt(pipeline.text.encode("a ring"), blank_N, 64, pipeline.vocabulary)
    start = len(prompt) - tokens - 2
    prefix = replace(
        prompt,
        ids_L=prompt.ids_L[:start],
        spans=prompt.spans[:-1],
        label_rows_P=prompt.label_rows_P[:0],
        targets_P=prompt.targets_P[:0],
        weights_P=None,
    )

    def side(rows: int) -> Any:
        cache = PrefixCache(pipeline.model, pipeline.vocabulary, [prefix] * 32, rows, rows)
        ids_BQ = torch.full((32, rows), pipeline.vocabulary.mask)

        def run(clock: Clock) -> None:
            clock("round", lambda: cache.extend(ids_BQ))
            cache.forget()

        return run

    sides = {"all": side(tokens + 2), "masked": side(masked + 2)}
    timings = interleaved(sides, torch.device("cpu"), repeats)
    return timings["all"]["round"].cpu_s, timings["masked"]["round"].cpu_s


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--prompts", type=Path, required=True, help="prompts.jsonl of the data set")
    parser.add_argument("--limit", type=int, help="at most so many prompts of each category")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=24, help="rounds per image")
    parser.add_argument("--only", nargs="+", choices=CHANGES, default=list(CHANGES))
    parser.add_argument("--repeats", type=int, default=15, help="of the timed rounds")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    parser.set_defaults(device="cpu")
    options = parser.parse_args(argv)
    pipeline = Pipeline.load(options.checkpoint, device="cpu", precision="fp32")
    prompts = read_prompts(options.prompts, options.limit)
    tokens, usual = pipeline.tokens, replace(pipeline.options, steps=options.steps)
    rows = []
    for name in options.only:
        changes = CHANGES[name]
        steps = tokens if changes.get("steps") == ALL else options.steps
        changed = replace(usual, **{**changes, "steps": steps})
        found = scored(pipeline, changed, prompts, options.seeds)
        rows.append({"setting": name, "rounds": changed.steps} | found)
        print(
            f"{name}: {found['right']} of {found['of']} right, {found['seconds']:.0f} s", flush=True
        )
    share = masked_share(usual, tokens)
    whole, part = round_times(pipeline, tokens, round(share * tokens), options.repeats)
    findings = {
        "masked codes before a round, mean share": share,
        "CPU time of a round of masked rows / of all rows": part / whole,
        "gain at most, reusing every other round": 2 / (1 + part / whole),
        "gain at most, reusing in all rounds but the first": whole / part,
    }
    settings = {"checkpoint": options.checkpoint, "seeds": len(options.seeds)}
    report("samplers", rows, findings, settings, options)


if __name__ == "__main__":
    main()
