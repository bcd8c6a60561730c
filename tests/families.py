"""The tiny random backbones that all tests of families run over, one entry per family."""

from typing import Any

from showo_dist.models.families import RELEASED

_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
# Each with what is peculiar to it: grouped heads, heads of another width, scaled positions, windows, norms.
FAMILIES: dict[str, dict[str, Any]] = {
    "phi": {**_SIZES, "num_key_value_heads": 2},
    "llama": {
        **_SIZES,
        "num_key_value_heads": 2,
        "max_position_embeddings": 131072,  # more than the model has numbers
        "rope_parameters": {
            **RELEASED["meta-llama/Llama-3.1-8B"]["rope_parameters"],
            "original_max_position_embeddings": 16,
        },
    },
    "qwen2": {**_SIZES, "num_key_value_heads": 1, "tie_word_embeddings": True},
    "qwen3": {**_SIZES, "num_key_value_heads": 2, "head_dim": 12},
    "gemma": {**_SIZES, "num_key_value_heads": 1, "head_dim": 16},
    "gemma3_text": {
        **_SIZES,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "query_pre_attn_scalar": 24,
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "mistral": {**_SIZES, "num_key_value_heads": 2, "sliding_window": 4},
    "gpt_neox": {**_SIZES, "attention_bias": True},
}


def llm_config(family: str) -> dict[str, Any]:
    """The family's entry as ``model.showo.llm_config``."""
    return {"model_type": family, **FAMILIES[family]}
