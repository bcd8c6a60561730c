"""Every decoder of transformers, as small as possible: accepted with our mask, or refused in one line."""

import re
from functools import cache
from typing import Any

import pytest
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from showo_dist.config.model import ShowoConfig
from showo_dist.models.backbone import unknown_fields
from showo_dist.models.showo import ShowO
from tests.backbones.test_attention import check_influence
from tests.conftest import ROOT
from tests.single_pass.batches import FEATURE_WIDTH, VOCABULARY, build_noisy

# Fields by which families give their sizes, and dropout that a user would switch off.
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rotary_dim": 4,
    "attention_dropout": 0.0,
    "attn_pdrop": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
PAGE = ROOT / "docs" / "backbones.md"
FAMILIES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def small_config(family: str) -> dict[str, Any]:
    """``llm_config`` of a family, with those sizes that it has."""
    unknown = {line.split(" = ")[0] for line in unknown_fields(family, SMALL)}
    return {"model_type": family} | {k: v for k, v in SMALL.items() if k not in unknown}


def sizes_of(family: str) -> ShowoConfig:
    return ShowoConfig(
        vocab_size=VOCABULARY.size,
        llm_vocab_size=VOCABULARY.text,
        codebook_size=VOCABULARY.codebook,
        w_clip_vit=True,
        clip_dim=FEATURE_WIDTH,
        llm_config=small_config(family),
    )


@cache
def listed() -> tuple[str, set[str]]:
    """The version of transformers that the page names, and the families that it lists as accepted."""
    found = re.search(r"Accepted of transformers (\S+): ([^.]+)\.", PAGE.read_text())
    assert found is not None
    return found[1], set(re.findall(r"`([^`]+)`", found[2]))


@pytest.mark.backbones
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_computes_our_mask_or_is_refused(family: str) -> None:
    """Accepted: a changed token moves exactly the rows that see it."""
    version, accepted = listed()
    if not transformers.__version__.startswith(f"{version}."):
        pytest.skip(f"the page lists the families of transformers {version}")

    def build() -> ShowO:
        return build_noisy(sizes_of(family)).eval()

    if family in accepted:
        check_influence(build())
        return
    with pytest.raises(ValueError) as caught:
        build()
    assert "\n" not in str(caught.value)
    assert re.search("is no backbone for Show-o: |llm_config: ", str(caught.value))
