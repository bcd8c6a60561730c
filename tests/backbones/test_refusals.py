"""Families that cannot compute Show-o's mask or losses are refused when a model is built, in one line."""

import re

import pytest

from showo_dist.config.model import ShowoConfig
from showo_dist.models import backbone
from showo_dist.models.backbone import block_of, windows_note
from showo_dist.models.showo import ShowO, build_showo, empty_model
from showo_dist.models.weights.lora import LoraConfig, adapted_layers
from tests.families import FAMILIES, llm_config
from tests.single_pass.batches import build_tiny, tiny_sizes

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
REFUSED = {
    "gemma2": "soft-capped attention scores",
    "granite_swa": "attention sinks",
    "stablelm": "do not hand the attention plan on, so our mask would be lost",
    "qwen3_5_text": "2 of its 2 blocks (0, 1) mix tokens without transformers' attention interface",
    "falcon_h1": "convolutions over tokens",
    "cohere": "logits are scaled or capped behind the head",
    "mixtral": "a mixture of experts",
    "minicpm3": "heads are of two sizes, 96 for queries and 8 for values",
    "bloom": "takes no position_ids",
    "gpt2": "dropout on attention weights",
    "falcon": "its attention is not transformers' interface",
    "gpt_oss": "a mixture of experts",
    "aria_text": "a mixture of experts",
    "gemma3": "it has several parts; name its language model alone, gemma3_text",
    "gemma4_text": "its blocks look up token ids in tables of their own",
    "hrm_text": "1 of its parameters, as model.z_L_init, have no part in a text's pass",
    "modernbert-decoder": "its config always has a padding token",
    "t5": "transformers has no causal language model of it",
}


def built(**fields: object) -> ShowO:
    return build_showo(ShowoConfig(vocab_size=96, llm_config={**SIZES, **fields}))


@pytest.mark.parametrize("family", REFUSED)
@pytest.mark.parametrize("build", [build_showo, empty_model])
def test_what_a_family_lacks_is_one_line(family: str, build: type) -> None:
    with pytest.raises(ValueError) as caught:
        build(ShowoConfig(vocab_size=96, llm_config={**SIZES, "model_type": family}))
    message = str(caught.value)
    assert message.startswith(f"{family} is no backbone for Show-o: ") and "\n" not in message
    assert REFUSED[family] in message


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model_type": "lama"}, "model_type = 'lama': unknown family; nearest known: llama"),
        (
            {"model_type": "qwen2", "num_key_value_head": 2},
            "num_key_value_head = 2: unknown field of qwen2; nearest known: num_key_value_heads",
        ),
        ({"model_type": "llama", "attention_dropout": 0.1}, "dropout on attention weights"),
        (
            {"model_type": "lfm2", "layer_types": ["conv", "full_attention"]},
            "1 of its 2 blocks (0) mix tokens without",
        ),
        ({"model_type": "zamba2"}, "llm_config: ValueError: `num_hidden_layers` (2) must be equal"),
        ({"model_type": "qwen3", "head_dim": "8"}, "llm_config: TypeError: Field 'head_dim'"),
        ({"model_type": "granite", "logits_scaling": 8.0}, "scaled or capped behind the head"),
        ({"model_type": "gemma3_text", "final_logit_softcapping": 30.0}, "scaled or capped"),
    ],
)
def test_a_field_that_cannot_be_honoured_is_one_line(fields: dict, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        built(**fields)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("convention", "other", "words"),
    [
        ("EMBEDDINGS", ("wte.",), r"embed_tokens\.weight: its table has none of the names wte\."),
        ("_BLOCK", re.compile(r"\.stages\.(\d+)\."), r"layers\.0\..*: its blocks are not named"),
    ],
)
def test_names_that_do_not_tell_table_and_blocks_apart(
    monkeypatch: pytest.MonkeyPatch, convention: str, other: object, words: str
) -> None:
    """Weight decay would take the table for a matrix, and Muon would leave the blocks to AdamW."""
    model = build_tiny(family="llama").showo
    monkeypatch.setattr(backbone, convention, other)
    with pytest.raises(ValueError, match=words):
        backbone._check_names(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_windows_are_off_with_a_note(family: str) -> None:
    note = windows_note(build_tiny(family=family).config)
    if "sliding_window" in FAMILIES[family]:
        assert note == f"{family}'s sliding_window of 4 tokens is off: Show-o's mask alone decides"
    else:
        assert note is None


@pytest.mark.parametrize("family", FAMILIES)
def test_the_parts_are_found_in_the_model_itself(family: str) -> None:
    model = empty_model(tiny_sizes(family))
    names = dict(model.named_parameters())
    outside = {name: p for name, p in names.items() if block_of(name) is None}
    rows = {name for name, p in outside.items() if p.shape[0] == model.config.vocab_size}
    assert set(model.tables) == rows and len(model.blocks) == 2
    config = llm_config(family)
    assert model.attention_width == 2 * 4 * config.get("head_dim", 8)
    assert model.embeddings.weight is not model.head.weight


def test_adapters_name_the_blocks_own_layers() -> None:
    model = build_tiny(family="gpt_neox")
    layers = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
    assert adapted_layers(model, LoraConfig(rank=2)) == layers
    with pytest.raises(ValueError, match="= q_proj: expected some of query_key_value, dense"):
        adapted_layers(model, LoraConfig(rank=2, target_modules=["dense", "q_proj"]))
    published = ["q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"]
    assert adapted_layers(build_tiny(), LoraConfig(rank=2)) == published
