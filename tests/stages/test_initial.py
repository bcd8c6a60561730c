"""Which rows of a table become which when vocabulary or codebook change, and what the new ones are."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from showo_dist.config import TrainConfig
from showo_dist.config.model import ShowoConfig
from showo_dist.models.showo import build_showo
from showo_dist.models.weights.folder import CONFIG_NAME, SAFETENSORS_NAME
from showo_dist.models.weights.initial import InitialWeights, kept_rows
from showo_dist.models.weights.pretrained import config_json, load_showo
from showo_dist.models.weights.start import initial_weights, load_initial
from showo_dist.sequences import Vocabulary
from tests.tiny import save_showo

TABLES = ("showo.model.embed_tokens.weight", "showo.lm_head.weight", "showo.lm_head.bias")
LLM = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def sizes(text: int, codes: int, clip: bool = False, **changes: object) -> ShowoConfig:
    return ShowoConfig(
        llm_model_path=None,
        llm_config=LLM,
        vocab_size=text + 10 + codes + 1,
        llm_vocab_size=text,
        codebook_size=codes,
        w_clip_vit=clip,
        clip_dim=6,
        **changes,  # type: ignore[arg-type]
    )


def saved(folder: Path, showo: ShowoConfig) -> dict[str, Tensor]:
    torch.manual_seed(1)
    model = build_showo(showo)
    save_showo(model, showo, folder)
    return model.state_dict()


@pytest.mark.parametrize(
    ("old", "new"), [((20, 8), (20, 16)), ((20, 8), (24, 4)), ((9, 4), (9, 4))]
)
def test_a_token_keeps_its_row(old: tuple[int, int], new: tuple[int, int]) -> None:
    """Every meaning that both vocabularies have is at its place in both; nothing else is kept."""
    before, after = Vocabulary(*old, bos=0), Vocabulary(*new, bos=0)
    wanted = {i: i for i in range(min(old[0], new[0]))}
    for name in ("pad", "soi", "eoi", "t2i", "mmu", "mask"):
        wanted[getattr(before, name)] = getattr(after, name)
    for token in ("<|sov|>", "<|eov|>", "<|t2v|>", "<|v2v|>", "<|lvg|>"):
        wanted[before.special(token)] = after.special(token)
    for code in range(min(old[1], new[1])):
        wanted[before.image_offset + code] = after.image_offset + code
    old_rows, new_rows = kept_rows(sizes(*old), sizes(*new))
    assert dict(zip(old_rows.tolist(), new_rows.tolist(), strict=True)) == wanted


@pytest.fixture
def grown(tmp_path: Path) -> tuple[dict[str, Tensor], InitialWeights]:
    old = saved(tmp_path / "old", sizes(20, 8))
    return old, initial_weights(sizes(24, 16, clip=True, resize=True), tmp_path / "old", seed=3)


@pytest.mark.parametrize("name", TABLES)
def test_tables_grow(grown: tuple[dict[str, Tensor], InitialWeights], name: str) -> None:
    old, weights = grown
    new = weights.read(name)
    old_rows, new_rows = kept_rows(sizes(20, 8), sizes(24, 16))
    assert torch.equal(new[new_rows], old[name][old_rows])
    drawn = sorted(set(range(len(new))) - set(new_rows.tolist()))
    assert len(drawn) == 4 + 8
    if new.ndim == 1:
        assert not new[drawn].any()
    else:
        assert new[drawn].std() == pytest.approx(0.02, rel=0.25)
        assert len(new[drawn].unique(dim=0)) == len(drawn)


def test_everything_else_is_as_it_was(
    grown: tuple[dict[str, Tensor], InitialWeights],
) -> None:
    old, weights = grown
    for name in old.keys() - set(TABLES):
        assert torch.equal(weights.read(name), old[name]), name
    new = weights.expected.keys() - old.keys()
    assert new == {f"mm_projector.{i}.{part}" for i in (0, 2) for part in ("weight", "bias")}
    projector = weights.read("mm_projector.0.weight")
    assert projector.shape == (16, 6) and 0 < projector.abs().max() <= 6**-0.5
    assert weights.changes[0].startswith("vocabulary resized (20 -> 24 text tokens")
    assert weights.changes[1] == "CLIP projector drawn anew"


def test_what_is_drawn_follows_from_seed_and_name(
    grown: tuple[dict[str, Tensor], InitialWeights],
) -> None:
    _, weights = grown
    again = initial_weights(sizes(24, 16, clip=True, resize=True), weights.source.folder, seed=3)
    other = initial_weights(sizes(24, 16, clip=True, resize=True), weights.source.folder, seed=4)
    torch.rand(5)  # the global generator has no say
    for name in ("mm_projector.2.weight", TABLES[0]):
        assert torch.equal(again.read(name), weights.read(name))
        assert not torch.equal(other.read(name), weights.read(name))
    assert not torch.equal(weights.read(TABLES[0])[20:24], weights.read(TABLES[1])[20:24])


def test_moments_move_with_their_rows(
    grown: tuple[dict[str, Tensor], InitialWeights],
) -> None:
    _, weights = grown
    moment = torch.rand(39, 16) + 1
    carried = weights.carried(TABLES[0], moment)
    old_rows, new_rows = kept_rows(sizes(20, 8), sizes(24, 16))
    assert torch.equal(carried[new_rows], moment[old_rows])
    assert int((carried == 0).all(dim=1).sum()) == len(carried) - len(new_rows)
    assert not weights.carried("mm_projector.0.weight", None).any()


@pytest.mark.parametrize(
    ("new", "words"),
    [
        (sizes(24, 8), ["20 -> 24 text tokens", "8 image codes", "model.showo.resize=true"]),
        (sizes(20, 4), ["20 text tokens", "8 -> 4 image codes", "model.showo.resize=true"]),
        (sizes(20, 8), ["CLIP projector", "w_clip_vit is false", "model.showo.resize=true"]),
    ],
)
def test_not_without_being_asked(tmp_path: Path, new: ShowoConfig, words: list[str]) -> None:
    saved(tmp_path / "old", sizes(20, 8, clip=True))
    with pytest.raises(ValueError) as caught:
        initial_weights(new, tmp_path / "old", seed=0)
    for word in words:
        assert word in str(caught.value)


def test_a_projector_is_added_unasked(tmp_path: Path) -> None:
    saved(tmp_path / "old", sizes(20, 8))
    weights = initial_weights(sizes(20, 8, clip=True), tmp_path / "old", seed=0)
    assert weights.changes == ["CLIP projector drawn anew"]
    assert len(weights.drawn) == 4


def test_a_projector_is_left_out_when_asked(tmp_path: Path) -> None:
    saved(tmp_path / "old", sizes(20, 8, clip=True))
    weights = initial_weights(sizes(20, 8, resize=True), tmp_path / "old", seed=0)
    assert weights.changes == ["CLIP projector left out"] and not weights.drawn


def test_adapters_merge_where_the_projector_was_left_out(tmp_path: Path) -> None:
    """A checkpoint of LoRA over a model with a projector: the base's other weights, and the same again."""
    base = saved(tmp_path / "base", sizes(20, 8, clip=True))
    config = TrainConfig()
    config.model.showo = sizes(20, 8, resize=True)
    config.lora.rank = 2
    config.experiment.init_from = str(tmp_path / "base")
    model, _ = load_initial(config, torch.device("cpu"))
    own = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    (tmp_path / "lora").mkdir()
    save_file(own, tmp_path / "lora" / SAFETENSORS_NAME)
    (tmp_path / "lora" / CONFIG_NAME).write_text(config_json(config.model.showo, model))
    merged = load_showo(tmp_path / "lora").state_dict()
    assert merged.keys() == {name for name in base if not name.startswith("mm_projector.")}
    assert all(torch.equal(tensor, base[name]) for name, tensor in merged.items())
    resumed, _ = load_initial(config, torch.device("cpu"), resume=tmp_path / "lora")
    for name, tensor in resumed.named_parameters():
        assert torch.equal(tensor, model.get_parameter(name))


def test_no_key_makes_another_width_fit(tmp_path: Path) -> None:
    saved(tmp_path / "old", sizes(20, 8))
    wider = sizes(20, 16, resize=True)
    wider.llm_config = {**LLM, "hidden_size": 32}
    with pytest.raises(ValueError, match="do not fit"):
        initial_weights(wider, tmp_path / "old", seed=0)
