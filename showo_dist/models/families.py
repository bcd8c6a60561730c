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
        padded_rows: new tokens start from the rows that pad the language model's table, as far as there are
            any; without it, all new rows are drawn.
    """

    changes: Mapping[str, Any] = field(default_factory=dict)
    padded_rows: bool = False


# phi-1.5's own config has no norms on q and k: Show-o adds them (docs/specification.md, section 2). The
# published code keeps the 905 padding rows of phi-1.5's table, behind the text, for the first new tokens.
FAMILIES = {"phi": Family({"qk_layernorm": True}, padded_rows=True)}


def family_of(model_type: str) -> Family:
    """The family's entry, or that of a family that needs nothing."""
    return FAMILIES.get(model_type, Family())
