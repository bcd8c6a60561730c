"""What a language model's family needs beyond what its own config says; most families need nothing.

The decoder, its blocks, embedding table, head, heads, norms, biases and rotary positions all come from the
model itself (:mod:`showo_dist.models.backbone`). A family is named by its ``model_type`` in transformers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Family:
    """Where a family differs.

    Attributes:
        changes: fields of its config that are set whatever the language model says.
        drawn_whole: random weights are drawn for the whole model in one go, and new tokens start from the
            rows that pad the language model's table, as in the published code. Else a part's draws
            depend on its name alone, and all new rows are drawn.
    """

    changes: Mapping[str, Any] = field(default_factory=dict)
    drawn_whole: bool = False


# phi-1.5's own config has no norms on q and k: Show-o adds them (docs/specification.md, section 2). The
# published code keeps the 905 padding rows of phi-1.5's table, behind the text, for the first new tokens.
FAMILIES = {"phi": Family({"qk_layernorm": True}, drawn_whole=True)}


# Sizes of released language models, as their own config.json has them, so that a plan reads no file.
_QWEN: dict[str, Any] = {
    "model_type": "qwen2",
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
}
RELEASED: dict[str, dict[str, Any]] = {
    "microsoft/phi-1_5": {"model_type": "phi"},  # the defaults of its family
    "meta-llama/Llama-3.1-8B": {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
    "Qwen/Qwen2.5-1.5B": _QWEN
    | {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "max_position_embeddings": 131072,
    },
    "Qwen/Qwen2.5-3B": _QWEN
    | {
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "max_position_embeddings": 32768,
    },
}


def family_of(model_type: str) -> Family:
    """The family's entry, or that of a family that needs nothing."""
    return FAMILIES.get(model_type, Family())
