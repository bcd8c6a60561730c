"""The layout of an edit: its tokens, positions, labels and attention, written out by hand."""

import pytest
import torch

from showo_dist.sequences import Vocabulary, builders
from showo_dist.sequences.masking import IGNORE, MaskedCodes
from showo_kernels import Visibility

V = Vocabulary(text=50, codebook=16, bos=0, end=1)
SOURCE = torch.tensor([1, 2, 3, 4])
# The second and the last code of 5, 6, 7, 8 are masked.
MASKED = MaskedCodes(
    torch.tensor([5, 16, 7, 16]), torch.tensor([IGNORE, 6, IGNORE, 8]), None, rate=0.5
)


def test_tokens_positions_and_labels() -> None:
    row = builders.edit([10, 11], SOURCE, MASKED, 7, V)
    code = V.image_offset
    source = [V.mmu, V.soi, code + 1, code + 2, code + 3, code + 4, V.eoi]
    image = [V.soi, code + 5, V.mask, code + 7, V.mask, V.eoi]
    assert row.ids_L.tolist() == [*source, 0, 10, 11, 1, *image]
    assert row.position_ids_L is not None
    # The instruction has 4 of 7 tokens, so its positions and all behind it are 3 further.
    assert row.position_ids_L.tolist() == [*range(7), *range(10, 20)]
    assert row.flow == "edit" and row.masking_rate == 0.5 and row.features_SC is None
    assert row.label_rows_P.tolist() == [13, 15]
    assert row.targets_P.tolist() == [code + 6, code + 8]


def test_visibility() -> None:
    """mmu and the instruction are causal; soi SOURCE eoi and soi IMAGE eoi see all of themselves."""
    row = builders.edit([10, 11], SOURCE, MASKED, 7, V)
    seen = Visibility.from_documents([row.spans]).dense()
    last = [0, *[6] * 6, 7, 8, 9, 10, *[16] * 6]  # the last token that each token sees
    wanted = torch.tensor([[column <= end for column in range(17)] for end in last])
    assert torch.equal(seen, wanted)


@pytest.mark.parametrize("budget", [2, 3, 7, 30])
@pytest.mark.parametrize("length", [0, 1, 5, 40])
def test_a_code_and_its_source_are_at_one_distance(length: int, budget: int) -> None:
    row = builders.edit([9] * length, SOURCE, MASKED, budget, V)
    positions = row.position_ids_L
    assert positions is not None and len(positions) == len(row)
    assert (positions.diff() > 0).all()
    source, image = positions[2:6], positions[-5:-1]
    assert (image - source == len(SOURCE) + 2 + budget).all()
    # bos, instruction and eos; cut to the budget.
    assert len(row) == 7 + min(length + 2, budget) + 6
    assert row.ids_L[-7] == V.eos


def test_a_prompt_is_an_edit_without_labels() -> None:
    row = builders.edit([10], SOURCE, MASKED, 7, V)
    prompt = builders.edit_prompt([10], SOURCE, MASKED.inputs_N, 7, V)
    assert torch.equal(row.ids_L, prompt.ids_L) and row.spans == prompt.spans
    assert torch.equal(row.position_ids_L, prompt.position_ids_L)  # type: ignore[arg-type]
    assert len(prompt.label_rows_P) == 0
