"""Logits of the first round, codes sampled for a seed and greedy answers equal the published ones."""

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from showo_dist.generation.answer import answer
from showo_dist.generation.sampling import ImageSampler, SamplingOptions, sample_codes
from showo_dist.sequences import TextEncoder, Vocabulary
from showo_dist.sequences.builders import mmu_caption
from showo_dist.sequences.masking import mask_schedule
from tests.parity.cut_golden import kept


@pytest.fixture
def guidances(tensors: Any) -> list[str]:
    names = [
        re.fullmatch(r"t2i\.guidance_(.*)\.tokens", key) for key in tensors("showo_vq_generate")
    ]
    return sorted(match[1] for match in names if match)


def test_t2i(
    tensors: Any,
    texts: dict,
    encoder: TextEncoder,
    vocabulary: Vocabulary,
    meta: SimpleNamespace,
    build_model: Any,
    guidances: list[str],
) -> None:
    golden, settings = tensors("showo_vq_generate"), meta.t2i_generate
    model = build_model(tensors("showo_vq_train")).eval()
    prompts = [encoder.encode(text) for text in texts["captions"]]
    assert len(guidances) >= 2
    for guidance in guidances:
        options = SamplingOptions(
            steps=settings["timesteps"],
            guidance=float(guidance),
            temperature=settings["temperature"],
            schedule=mask_schedule(settings["schedule"]),
        )
        sampler = ImageSampler(
            model, vocabulary, prompts, budget=meta.text_len, options=options, tokens=meta.img
        )
        name = f"t2i.guidance_{guidance}.first_logits"
        logits = kept(golden, name, sampler.image_logits())
        torch.testing.assert_close(logits, golden[name], rtol=0, atol=1e-4)
        torch.manual_seed(settings["manual_seed"])
        assert torch.equal(sample_codes(sampler), golden[f"t2i.guidance_{guidance}.tokens"])


def test_greedy_answer(
    tensors: Any, vocabulary: Vocabulary, meta: SimpleNamespace, build_model: Any
) -> None:
    golden = tensors("showo_vq_generate")
    model = build_model(tensors("showo_vq_train")).eval()
    ids = golden["mmu.prompt_ids"][0]
    codes, text = ids[2 : 2 + meta.img] - vocabulary.image_offset, ids[3 + meta.img :]
    prompt = mmu_caption(text.tolist(), codes, len(text) + 1, vocabulary)
    prompt.ids_L, prompt.spans[-1] = prompt.ids_L[:-1], type(prompt.spans[-1])(len(text))
    assert torch.equal(prompt.ids_L, ids)
    wanted = golden["mmu.greedy_tokens"].tolist()
    (tokens,) = answer(model, vocabulary, [prompt], max_new_tokens=len(wanted))
    assert tokens == wanted[: len(tokens)]
    assert len(tokens) == len(wanted) or wanted[len(tokens)] == vocabulary.eos
