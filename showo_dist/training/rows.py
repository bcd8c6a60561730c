"""Rows of a token budget (``training.tokens_per_step``): how many a step has, and what each of them holds."""

from bisect import bisect_left
from collections.abc import Sequence as Seq
from copy import deepcopy

from showo_dist.config import TrainConfig, active_flows, wants_system_prompt
from showo_dist.sequences.builders import CLIP_RECON_TEXT_WIDTH


def micro_steps_of(config: TrainConfig, prompt: int, system: int) -> int:
    """Micro-steps of an optimizer step: the rows that the longest possible samples need, or the accumulation.

    They follow from the config alone. So all ranks run equally many, as the collectives of ZeRO 2 and 3
    need, and no rank asks the others how long their samples are.

    Args:
        config: of the run.
        prompt, system: tokens of the longest reconstruction prompt and of the system prompt.

    Raises:
        ValueError: a sample can be longer than the budget.
    """
    budget, training = config.training.tokens_per_step, config.training
    if budget is None:
        return training.gradient_accumulation_steps
    longest = longest_samples(config, prompt, system)
    flow = max(longest, key=lambda name: longest[name])
    if longest[flow] > budget:
        raise ValueError(
            f"training.tokens_per_step = {budget}: a {flow} sample of this config can have {longest[flow]} "
            "tokens; set at least as many, or lower dataset.preprocessing.max_seq_length"
        )
    return rows_needed(window_of(config, longest), budget)


def window_of(config: TrainConfig, lengths: dict[str, int]) -> list[int]:
    """Lengths of a rank's samples of one optimizer step, in order, from a length for each flow."""
    return [
        lengths[name]
        for _ in range(config.training.gradient_accumulation_steps)
        for name, flow in active_flows(config).items()
        for _ in range(flow.batch_size)
    ]


def longest_samples(config: TrainConfig, prompt: int, system: int) -> dict[str, int]:
    """Tokens of the longest sequence of each active flow (docs/specification.md, sections 3 to 5).

    Args:
        config, prompt, system: as for :func:`micro_steps_of`.
    """
    showo, training = config.model.showo, config.training
    budget, image = config.dataset.preprocessing.max_seq_length, showo.num_vq_tokens
    whole = max(budget, 2) + image + 3  # a dropped caption leaves 2 tokens of text
    system = system if wants_system_prompt(config) else 0
    if showo.w_clip_vit:
        condition, text = showo.clip_tokens, min(prompt + 2, CLIP_RECON_TEXT_WIDTH - 3)
    else:
        condition = image if training.resize_back else image // training.down_scale**2
        text = prompt + 2
    further = config.dataset.max_images - 1  # images, with soi and eoi
    if config.dataset.und_type == "captioning":
        understanding = whole
    elif showo.w_clip_vit:
        understanding = max(whole, showo.clip_tokens + system + 3)
        understanding += further * (showo.clip_tokens + 2)
    else:
        understanding = whole + system + further * (image + 2)
    lengths = {
        "t2i": whole,
        "lm": whole,
        "mmu": understanding,
        "recon": condition + text + image + 5,
        "edit": 2 * image + max(budget, 2) + 5,
    }
    return {name: lengths[name] for name in active_flows(config)}


def of_engine(config: TrainConfig, micro_steps: int) -> TrainConfig:
    """The config for an engine, whose window has ``micro_steps``."""
    changed = deepcopy(config)
    changed.training.gradient_accumulation_steps = micro_steps
    return changed


def rows_needed(lengths: Seq[int], limit: int) -> int:
    """Rows of up to ``limit`` tokens that hold sequences of these lengths in their order."""
    return len(_ends(lengths, limit))


def cut(lengths: Seq[int], rows: int) -> list[slice]:
    """Cut a list of sequences into ``rows`` stretches whose longest is as short as possible.

    Args:
        lengths: tokens of the sequences.
        rows: stretches; the last ones are empty where there are fewer sequences.
    """
    shortest = max(lengths, default=0)
    limits = range(shortest, sum(lengths) + 1)
    # Fewer rows are needed as the limit grows.
    found = bisect_left(limits, -rows, key=lambda limit: -rows_needed(lengths, limit))
    ends = _ends(lengths, limits[found])
    ends += [len(lengths)] * (rows - len(ends))
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def _ends(lengths: Seq[int], limit: int) -> list[int]:
    """Where the rows end that take one sequence after another as long as they fit."""
    ends, held = [], 0
    for number, length in enumerate(lengths):
        if number and held + length > limit:
            ends.append(number)
            held = 0
        held += length
    return [*ends, len(lengths)]
