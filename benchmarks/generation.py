"""Time cached generation and answers against the published loops, on the same weights.

    python benchmarks/generation.py [--device cuda] [--size show-o] [--dtype bf16] [--json FILE]

The published side is a plain re-creation: every round and every new token computes the whole padded sequence
under a dense mask, with all logits. Both sides use the same random numbers, and their tokens are compared
before anything is timed. Batches are also compared with one item at a time.

All loops are run in full. Stages: ``read`` is computed once (the texts before the image; the prompts),
``work`` is the rounds or the new tokens, ``step`` one of them, ``decode`` turns codes into pixels.
"""

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from common import Clock, Side, Timing, arguments, interleaved, report
from torch import Tensor
from transformers import PhiConfig, PhiForCausalLM

from showo_dist.generation.answer import read, write
from showo_dist.generation.sampling import ImageSampler, SamplingOptions, sample_codes
from showo_dist.models.magvitv2 import MAGVITv2, MAGVITv2Config, StackConfig
from showo_dist.models.showo import ShowO
from showo_dist.runtime.numerics import uses_bf16
from showo_dist.sequences import Sequence, Vocabulary
from showo_dist.sequences.builders import mmu_llava, t2i_prompt
from showo_dist.sequences.masking import mask_schedule
from showo_kernels import Visibility, select_backend


@dataclass(frozen=True)
class Sizes:
    """Sizes of the model, the sequences and the work."""

    width: int
    layers: int
    heads: int
    text: int
    codebook: int
    image: int
    budget: int
    rounds: int
    new_tokens: int
    batch: int
    tokenizer: StackConfig = field(default_factory=StackConfig)


_SMALL_STACK = StackConfig(channels=32, multipliers=[1, 1, 2, 2, 4], res_blocks=[1, 1, 1, 1, 1])
SIZES = {
    "tiny": Sizes(32, 2, 2, 300, 16, 16, 24, 3, 5, 2, _SMALL_STACK),
    "small": Sizes(512, 8, 8, 50295, 8192, 256, 128, 8, 100, 4, _SMALL_STACK),
    "show-o": Sizes(2048, 24, 32, 50295, 8192, 256, 128, 16, 100, 8),
}
GUIDANCE = 1.75
QUESTION_TOKENS, PROMPT_TOKENS = 16, 12


class Bench:
    """A model with random weights, a batch of prompts, and this project's generation.

    Args:
        sizes: of the model, the sequences and the work.
        device: where to run.
        dtype: of the transformer.
    """

    def __init__(self, sizes: Sizes, device: torch.device, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        self.sizes, self.device = sizes, device
        self.vocabulary = Vocabulary(sizes.text, sizes.codebook, bos=0)
        backend, _ = select_backend("auto", device, dtype)
        config = PhiConfig(
            vocab_size=self.vocabulary.size,
            hidden_size=sizes.width,
            intermediate_size=4 * sizes.width,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.heads,
            num_key_value_heads=sizes.heads,
            max_position_embeddings=2048,
        )
        with torch.device(device):
            self.model = ShowO(config, attention=backend).to(dtype).eval()
        rotary = self.model.showo.model.rotary_emb
        self.model.showo.model.rotary_emb = type(rotary)(config=config).to(device)
        with torch.no_grad():
            self.model.showo.lm_head.bias[self.vocabulary.eos] = -1e4  # answers of full length
        stacks = {"encoder": sizes.tokenizer, "decoder": sizes.tokenizer}
        bits = sizes.codebook.bit_length() - 1
        self.vq = (
            MAGVITv2(MAGVITv2Config(bits=bits, **stacks)).to(device).eval().requires_grad_(False)
        )
        self.codes_BN = torch.randint(sizes.codebook, (sizes.batch, sizes.image))
        self.prompts = self._texts(PROMPT_TOKENS)
        self.questions = [
            mmu_llava(text, [False] * len(text), codes_N, len(text), self.vocabulary)
            for text, codes_N in zip(self._texts(QUESTION_TOKENS), self.codes_BN, strict=True)
        ]
        self.options = SamplingOptions(sizes.rounds, GUIDANCE, 1.0, mask_schedule("cosine"))

    def _texts(self, length: int) -> list[list[int]]:
        """Make texts of different lengths around ``length``."""
        return [
            torch.randint(1, self.sizes.text, (length + index,)).tolist()
            for index in range(self.sizes.batch)
        ]

    def sample_codes(self, clock: Clock, chosen: slice = slice(None)) -> Tensor:
        """Generate codes with this project's sampler."""
        sampler = ImageSampler(
            self.model,
            self.vocabulary,
            self.prompts[chosen],
            budget=self.sizes.budget,
            options=self.options,
            tokens=self.sizes.image,
        )
        generator = torch.Generator(self.device).manual_seed(1)
        clock("read", lambda: sampler.canvas)
        codes_BN = clock("work", lambda: sample_codes(sampler, generator))
        clock("decode", lambda: self.vq.decode(codes_BN))
        return codes_BN

    def answer(self, clock: Clock, chosen: slice = slice(None)) -> list[list[int]]:
        """Answer with this project's cache."""
        prompts, tokens = self.questions[chosen], self.sizes.new_tokens
        cache = clock("read", lambda: read(self.model, self.vocabulary, prompts, tokens))
        return clock("work", lambda: write(cache, self.vocabulary.eos, tokens))


class Published:
    """The published loops: padded rows, a dense mask, all logits, the whole sequence in every step.

    Args:
        bench: its weights and prompts are used.
    """

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        config = copy.deepcopy(bench.model.config)
        config._attn_implementation = "sdpa"
        with torch.device("meta"):
            self.phi = PhiForCausalLM(config).eval()
        self.phi.load_state_dict(bench.model.showo.state_dict(), assign=True)
        self.phi.model.rotary_emb = bench.model.showo.model.rotary_emb
        for layer in self.phi.model.layers:  # fused as ours is: the activation is not compared
            layer.mlp.activation_fn = torch.nn.GELU(approximate="tanh")

    @torch.no_grad()
    def logits(self, ids_BL: Tensor, visible_BLL: Tensor) -> Tensor:
        """Compute all logits (B, L, V) with the library's own model."""
        return self.phi(
            input_ids=ids_BL, attention_mask=visible_BLL[:, None], use_cache=False
        ).logits

    def sample_codes(self, clock: Clock, chosen: slice = slice(None)) -> Tensor:
        """Generate codes as published: both halves padded to text budget + N + 3."""
        bench = self.bench
        blank_N = torch.full((bench.sizes.image,), bench.vocabulary.codebook)
        prompts = bench.prompts[chosen]
        halves = [(p, bench.sizes.budget) for p in prompts] + [([], 2)] * len(prompts)
        rows = [t2i_prompt(text, blank_N, room, bench.vocabulary) for text, room in halves]
        length = bench.sizes.budget + bench.sizes.image + 3
        ids_XL, visible_XLL = _padded(rows, length, bench.vocabulary.pad)
        sampler = _PublishedSampler(self, ids_XL, visible_XLL, prompts)
        generator = torch.Generator(bench.device).manual_seed(1)
        codes_BN = clock("work", lambda: sample_codes(sampler, generator))
        clock("decode", lambda: bench.vq.decode(codes_BN))
        return codes_BN

    def answer(self, clock: Clock, chosen: slice = slice(None)) -> list[list[int]]:
        """Answer one prompt after the other; every token takes a pass over the whole sequence."""
        return clock("work", lambda: [self._continued(q) for q in self.bench.questions[chosen]])

    def _continued(self, question: Sequence) -> list[int]:
        ids_1L, visible_1LL = _padded([question], len(question), self.bench.vocabulary.pad)
        ids_1L, visible_1LL = ids_1L.to(self.bench.device), visible_1LL.to(self.bench.device)
        tokens: list[int] = []
        for _ in range(self.bench.sizes.new_tokens):
            token = self.logits(ids_1L, visible_1LL)[:, -1].argmax(-1)
            tokens.append(int(token))
            ids_1L = torch.cat([ids_1L, token[None]], dim=1)
            visible_1LL = F.pad(F.pad(visible_1LL, (0, 1)), (0, 0, 0, 1), value=True)
        return tokens


class _PublishedSampler(ImageSampler):
    """The same sampler with logits that are computed as published."""

    def __init__(
        self, published: Published, ids_XL: Tensor, visible_XLL: Tensor, prompts: list[list[int]]
    ) -> None:
        bench = published.bench
        super().__init__(
            bench.model,
            bench.vocabulary,
            prompts,
            budget=bench.sizes.budget,
            options=bench.options,
            tokens=bench.sizes.image,
        )
        self._published = published
        self._ids_XL, self._visible_XLL = (x.to(bench.device) for x in (ids_XL, visible_XLL))

    def image_logits(self, ids: slice = slice(None)) -> Tensor:
        image = slice(-1 - self.codes_BN.shape[1], -1)
        self._ids_XL[:, image] = (self.codes_BN + self.vocabulary.image_offset).repeat(2, 1)
        return self._published.logits(self._ids_XL, self._visible_XLL)[:, image, ids]


def _padded(rows: list[Sequence], length: int, pad: int) -> tuple[Tensor, Tensor]:
    """Pad ids on the left (X, L), and build the mask (X, L, L); padding sees everything, as published."""
    ids_XL = torch.full((len(rows), length), pad)
    visible_XLL = torch.zeros(len(rows), length, length, dtype=torch.bool)
    for index, row in enumerate(rows):
        start = length - len(row)
        ids_XL[index, start:] = row.ids_L
        visible_XLL[index, :start] = True
        visible_XLL[index, start:, start:] = Visibility.from_documents([row.spans]).dense()
    return ids_XL, visible_XLL


Work = Callable[[Clock, slice], Any]


def _sides(bench: Bench, published: Published) -> dict[str, dict[str, Side]]:
    """Pair the published loops with ours on one item, and ours one by one with ours in a batch."""
    count, first, every = bench.sizes.batch, slice(0, 1), slice(None)

    def on(work: Work, chosen: slice) -> Side:
        return lambda clock: work(clock, chosen)

    def one_by_one(work: Work) -> Side:
        items = [slice(index, index + 1) for index in range(count)]

        def all_of_them() -> None:
            for chosen in items:
                work(Clock(bench.device), chosen)

        return lambda clock: clock("all", all_of_them)

    return {
        "generate 1": {
            "published": on(published.sample_codes, first),
            "ours": on(bench.sample_codes, first),
        },
        "answer 1": {"published": on(published.answer, first), "ours": on(bench.answer, first)},
        f"generate {count}": {
            "one by one": one_by_one(bench.sample_codes),
            "batch": on(bench.sample_codes, every),
        },
        f"answer {count}": {
            "one by one": one_by_one(bench.answer),
            "batch": on(bench.answer, every),
        },
    }


def _row(work: str, side: str, stages: dict[str, Timing], steps: int) -> dict[str, Any]:
    """Make one row of the table; a stage that a side does not time separately is None.

    Args:
        work: the task.
        side: of the comparison.
        stages: its timings.
        steps: rounds or new tokens of ``work``.
    """
    row: dict[str, Any] = {"task": f"{work}, {side}"}
    for stage in ("read", "work", "decode"):
        row[f"{stage} ms"] = stages[stage].wall_s * 1e3 if stage in stages else None
    row["step ms"] = row["work ms"] / steps if "work" in stages else None
    row["total ms"] = sum(timing.wall_s for timing in stages.values()) * 1e3
    row["cpu ms"] = sum(timing.cpu_s for timing in stages.values()) * 1e3
    return row


def _ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Divide the first side of each comparison by the second, in wall time and in this process's CPU time."""
    found = {}
    for slow, fast in zip(rows[0::2], rows[1::2], strict=True):
        name = f"{slow['task']} / {fast['task'].rpartition(', ')[2]}"
        found[f"{name}, wall"] = slow["total ms"] / fast["total ms"]
        found[f"{name}, cpu"] = slow["cpu ms"] / fast["cpu ms"]
    return found


def _agreement(bench: Bench, published: Published) -> dict[str, float]:
    """Return the share of equal tokens (rounding may change a sampled one); this also warms both sides up."""
    clock, first = Clock(bench.device), slice(0, 1)
    generated = bench.sample_codes(clock, first) == published.sample_codes(clock, first)
    answers = [torch.tensor(side.answer(clock, first)) for side in (bench, published)]
    return {
        "equal image codes": generated.float().mean().item(),
        "equal answer tokens": (answers[0] == answers[1]).float().mean().item(),
    }


def main() -> None:
    """Compare the tokens, time all sides and print the table."""
    options = arguments(__doc__, list(SIZES), repeats=3)
    device = torch.device(options.device)
    # As Pipeline.load: a CPU computes in fp32 unless --dtype says otherwise.
    on_gpu = device.type == "cuda" and uses_bf16(options.dtype, device)
    dtype = torch.bfloat16 if on_gpu or options.dtype == "bf16" else torch.float32
    bench = Bench(SIZES[options.size], device, dtype)
    published = Published(bench)
    agreement = _agreement(bench, published)
    rows = []
    steps = {"generate": bench.sizes.rounds, "answer": bench.sizes.new_tokens}
    for work, sides in _sides(bench, published).items():
        timings = interleaved(sides, device, options.repeats, warm_up="published" not in sides)
        for side, stages in timings.items():
            rows.append(_row(work, side, stages, steps[work.split()[0]]))
    settings = {key: value for key, value in asdict(bench.sizes).items() if key != "tokenizer"}
    settings |= {"dtype": str(dtype), "guidance": GUIDANCE}
    report("generation", rows, agreement | _ratios(rows), settings, options)


if __name__ == "__main__":
    main()
